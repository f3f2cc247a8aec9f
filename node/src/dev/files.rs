//! The files that `dev` leaves for people and programs: `env`, `ca.pem`, `token`, `cluster.json`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde_json::json;

use super::plan::{Plan, PlannedNode, secret_file};
use super::{SlotKind, softhsm};
use crate::admin::Founding;

pub(super) fn write_founding(plan: &Plan, founded: &Founding) -> io::Result<()> {
    fs::write(plan.ca(), &founded.ca)?;
    secret_file(&plan.token(), founded.token.as_bytes())?;
    let addresses: Vec<String> = plan.nodes.iter().map(PlannedNode::address).collect();
    let env = format!(
        "export STRONGROOM_ADDR={}\nexport STRONGROOM_TOKEN={}\nexport STRONGROOM_CACERT={:?}\n",
        addresses.join(","),
        founded.token,
        plan.ca().display().to_string(),
    );
    secret_file(&plan.dir.join("env"), env.as_bytes())
}

/// Last, and at once: who sees this file sees a whole cluster.
pub(super) fn write_cluster(plan: &Plan, pids: &[u32]) -> io::Result<()> {
    let token = fs::read_to_string(plan.token())?;
    let module = match plan.hsm {
        SlotKind::Softhsm => Some(softhsm::module().map_err(io::Error::other)?),
        SlotKind::Embedded => None,
    };
    let mut nodes = Vec::new();
    for (node, pid) in plan.nodes.iter().zip(pids) {
        // A node that lost its directory has none.
        let node_id = node_id(&node.data_dir()).ok();
        let mut entry = json!({
            "id": node_id,
            "name": node.name,
            "address": format!("127.0.0.1:{}", node.base),
            "peer_address": node.peer_address(),
            "admin_address": node.admin_address(),
            "pid": pid,
            "config": node.config(),
            "data_dir": node.data_dir(),
        });
        if let Some(module) = &module {
            entry["hsm"] = json!({
                "module": module,
                "token_label": node.name,
                "pin_file": node.pin_file(),
                "softhsm2_conf": softhsm::conf(node),
                "tokens_dir": softhsm::tokens_dir(node),
            });
        }
        nodes.push(entry);
    }
    let document = json!({
        "ca": plan.ca(),
        "token": token,
        "operator_key": plan.operator_key(),
        "nodes": nodes,
    });
    let (fresh, path) = (plan.dir.join("cluster.json.tmp"), plan.dir.join("cluster.json"));
    secret_file(&fresh, &serde_json::to_vec_pretty(&document).expect("a plain document"))?;
    fs::rename(fresh, path)?;
    File::open(&plan.dir)?.sync_all()?;
    io::stdout().flush()
}

/// The id that the node was given, from its own file.
fn node_id(data_dir: &Path) -> io::Result<u64> {
    let path = data_dir.join("node.json");
    let document: serde_json::Value = serde_json::from_slice(&fs::read(&path)?)?;
    let id = document.get("node_id").and_then(serde_json::Value::as_u64);
    id.ok_or_else(|| io::Error::other(format!("{} names no node", path.display())))
}
