//! A cluster of ours as a target of load.

use std::fs;
use std::net::SocketAddr;
use std::str::FromStr;

use chaos_tests::dev_cluster::DevCluster;
use serde::Deserialize;
use wire::CreateKey;

use crate::load::{Load, Request, Target};

pub fn target(cluster: &DevCluster) -> Target {
    #[derive(Deserialize)]
    struct Description {
        nodes: Vec<Process>,
    }
    #[derive(Deserialize)]
    struct Process {
        pid: u32,
    }
    let description = fs::read(cluster.folder().join("data/cluster.json")).expect("it is there");
    let Description { nodes } = serde_json::from_slice(&description).expect("it has the processes");
    let addresses = cluster.nodes.iter().map(|node| address(&node.address)).collect();
    let processes = nodes.iter().map(|process| process.pid).collect();
    let ca = fs::read_to_string(&cluster.ca).expect("the CA is a file");
    Target::new(addresses, processes, &cluster.token, &ca)
}

/// Where the nodes publish their metrics.
pub fn metrics(cluster: &DevCluster) -> Vec<SocketAddr> {
    cluster.nodes.iter().map(|node| address(&node.admin_address)).collect()
}

/// A new key each time; its name begins with this.
pub fn create(target: &Target, prefix: &str) -> Load {
    let (token, prefix) = (target.token.clone(), prefix.to_owned());
    Load::new(move |name| {
        let key = CreateKey { name: format!("{prefix}-{name}"), ..CreateKey::default() };
        Request::json(&token, "/v1/keys", &key)
    })
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("dev listens on 127.0.0.1")
}

/// A size from the environment.
pub fn size<T: FromStr>(name: &str, small: T) -> T {
    std::env::var(name).map_or(small, |text| {
        text.parse().unwrap_or_else(|_| panic!("{name} is a number, got {text}"))
    })
}
