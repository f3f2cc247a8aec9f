//! `status`: what each node says of itself, and what the cluster says of all.

use std::time::Duration;

use client::{Client, Error};
use serde::Serialize;
use wire::{ClusterStatus, Code, Health};

use crate::cluster::describe;
use crate::output::{or_dash, rows};
use crate::{Failure, Global};

/// A node that does not answer must not hold up the others.
const PATIENCE: Duration = Duration::from_secs(3);

#[derive(Serialize)]
struct Status {
    nodes: Vec<Node>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<ClusterStatus>,
}

#[derive(Serialize)]
struct Node {
    address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    health: Option<Health>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl Node {
    fn row(&self) -> [String; 7] {
        let address = self.address.clone();
        let Some(health) = &self.health else {
            let [node, role, leader, hsm, version] = [(); 5].map(|()| "-".to_owned());
            return [address, node, "no answer".to_owned(), role, leader, hsm, version];
        };
        [
            address,
            or_dash(health.node_id),
            health.phase.to_string(),
            or_dash(health.role),
            or_dash(health.leader),
            format!("{} {}", health.hsm.kind, health.hsm.state),
            health.version.clone(),
        ]
    }
}

pub(crate) async fn run(global: &Global) -> Result<(), Failure> {
    let client = global.client()?;
    let asked: Vec<_> = (0..client.addresses().len())
        .map(|index| {
            let node = client.pinned(index).with_deadline(PATIENCE);
            tokio::spawn(async move { node.health().await })
        })
        .collect();
    let mut nodes = Vec::new();
    let mut failed = None;
    for (address, answer) in client.addresses().iter().zip(asked) {
        let (health, error) = match answer.await.map_err(Failure::local)? {
            Ok(health) => (Some(health), None),
            Err(error) => {
                let said = error.to_string();
                failed = Some(error);
                (None, Some(said))
            }
        };
        nodes.push(Node { address: address.clone(), health, error });
    }
    if let (true, Some(error)) = (nodes.iter().all(|node| node.health.is_none()), failed) {
        return Err(error.into());
    }
    let cluster = cluster(&client).await;
    global.show(&Status { nodes, cluster }, |status| {
        let table = rows(
            ["ADDRESS", "NODE", "PHASE", "ROLE", "LEADER", "HSM", "VERSION"],
            status.nodes.iter().map(Node::row),
        );
        match &status.cluster {
            Some(cluster) => format!("{table}\n\n{}", describe(cluster)),
            None => table,
        }
    })
}

/// Only those who may see it do; the rest of `status` is for everyone.
async fn cluster(client: &Client) -> Option<ClusterStatus> {
    match client.with_deadline(PATIENCE).cluster().await {
        Ok(cluster) => Some(cluster),
        Err(Error::Problem(problem))
            if matches!(problem.code, Code::Unauthenticated | Code::Forbidden) =>
        {
            None
        }
        Err(error) => {
            eprintln!("the cluster does not answer: {error}");
            None
        }
    }
}
