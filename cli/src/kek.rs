//! The key-encryption key as a person reads it: how far a rotation is, what still needs the epochs
//! before, and what a lost slot exposes.

use std::time::{Duration, Instant};

use client::{Client, Error};
use indicatif::{ProgressBar, ProgressStyle};
use wire::{ClusterStatus, ExposedVersion, Exposure, KekState, NodeId, OutgoingEpoch, Page};

use crate::Failure;
use crate::output::rows;

const LOOK: Duration = Duration::from_millis(500);

/// Waits until nothing is under an epoch before this one, and every slot that answers has let them
/// go. What does not open stays, and so does what an absent slot holds: the first is a failure.
pub(crate) async fn wait(client: &Client, epoch: u32, limit: Duration) -> Result<String, Failure> {
    let until = Instant::now() + limit;
    let bar = bar();
    loop {
        let failure = match client.cluster().await {
            Ok(cluster) => {
                bar.set_length(cluster.kek.total);
                bar.set_position(cluster.kek.rewrapped);
                bar.set_message(phase(&cluster, epoch));
                if let Some(end) = ended(&cluster, epoch) {
                    bar.finish_and_clear();
                    return end.map_err(Failure::local);
                }
                None
            }
            // A leader that changes is no end.
            Err(error @ (Error::Unreachable { .. } | Error::Protocol { .. })) => Some(error),
            Err(Error::Problem(problem)) if problem.status >= 500 => Some(Error::Problem(problem)),
            Err(error) => return Err(error.into()),
        };
        if Instant::now() >= until {
            bar.finish_and_clear();
            let why = failure.map_or_else(String::new, |error| format!(": {error}"));
            return Err(Failure::local(format_args!(
                "epoch {epoch} is not in the place of those before after {limit:?}{why}; it goes on, \
                 see `cluster status`"
            )));
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn bar() -> ProgressBar {
    let style = "{bar:32} {pos}/{len} blobs {msg} {eta}";
    let style = ProgressStyle::with_template(style).expect("the template is well-formed");
    ProgressBar::new(0).with_style(style)
}

fn before(cluster: &ClusterStatus, epoch: u32) -> impl Iterator<Item = &OutgoingEpoch> {
    cluster.kek.outgoing.iter().filter(move |one| one.epoch < epoch)
}

fn phase(cluster: &ClusterStatus, epoch: u32) -> String {
    if cluster.kek.epoch < epoch {
        "epoch is distributed".to_owned()
    } else if before(cluster, epoch).any(|one| one.versions > one.damaged) {
        "re-wrapped".to_owned()
    } else {
        "re-wrapped, slots destroy the old epoch".to_owned()
    }
}

/// How a rotation ended, if it has.
fn ended(cluster: &ClusterStatus, epoch: u32) -> Option<Result<String, String>> {
    if cluster.kek.epoch < epoch {
        return None;
    }
    let answers = |node: &NodeId| {
        cluster.nodes.iter().any(|known| known.id == *node && known.phase.is_some())
    };
    let (mut damaged, mut waits) = (0, Vec::new());
    for one in before(cluster, epoch) {
        let moving = one.versions > one.damaged;
        let held = one.versions == 0 && one.held_by.iter().any(answers);
        if moving || held || (one.versions == 0 && one.state != KekState::Retired) {
            return None;
        }
        damaged += one.damaged;
        waits.extend(&one.held_by);
    }
    if damaged > 0 {
        let why = format!("{damaged} versions do not open and stay under the epoch before");
        return Some(Err(why));
    }
    waits.sort_unstable();
    waits.dedup();
    let done = format!("epoch {epoch} is in the place of those before");
    Some(Ok(match waits.as_slice() {
        [] => done,
        nodes => format!("{done}; {} will destroy them when it answers again", list(nodes)),
    }))
}

/// What still needs epochs that nothing new is wrapped under, a line each.
pub(crate) fn outgoing(cluster: &ClusterStatus) -> String {
    let line = |one: &OutgoingEpoch| {
        let mut needs = Vec::new();
        if one.versions > 0 {
            needs.push(format!("{} versions are under it", one.versions));
        }
        if one.damaged > 0 {
            needs.push(format!("{} of them do not open: destroy them", one.damaged));
        }
        if !one.held_by.is_empty() {
            let gone = (one.slots as usize).saturating_sub(one.held_by.len());
            let held_by = list(&one.held_by);
            needs.push(format!("destroyed by {gone} of {} slots, not by {held_by}", one.slots));
        }
        if !one.kept_by.is_empty() {
            needs.push(format!("logs or snapshots of {} hold blobs of it", list(&one.kept_by)));
        }
        if one.in_backup {
            needs.push("so does the last backup".to_owned());
        }
        format!("\nepoch {} is {}: {}", one.epoch, one.state, needs.join("; "))
    };
    cluster.kek.outgoing.iter().map(line).collect()
}

/// What lost slots expose, a line each.
pub(crate) fn exposures(exposures: &[Exposure]) -> String {
    let line = |one: &Exposure| {
        let Exposure { node, name, at, versions, keys, rotated, .. } = one;
        let rotation = match one.rotated_at {
            Some(at) => format!("every key of it was rotated by {at}"),
            None => format!("{rotated} of {keys} keys looked at to be rotated"),
        };
        format!(
            "\nEXPOSED: the slot of node {node} ({name}) is in other hands since {at}; with a copy of \
             the log it opens {versions} versions; {rotation}; see `cluster exposed {node}`"
        )
    };
    exposures.iter().map(line).collect()
}

/// Everything that the lost slot of a node opens, page by page.
pub(crate) async fn exposed(client: &Client, node: NodeId) -> Result<Vec<ExposedVersion>, Failure> {
    let mut page = Page { page_size: Some(wire::PAGE_SIZE_MAX), ..Page::default() };
    let mut all: Vec<ExposedVersion> = Vec::new();
    loop {
        let found = client.exposed(node, &page).await?;
        all.extend(found.versions);
        page.page_token = found.next_page_token;
        if page.page_token.is_none() {
            // What was re-wrapped meanwhile stands on two pages.
            let name = |one: &ExposedVersion| (one.namespace.clone(), one.key.clone(), one.version);
            all.sort_by_key(name);
            all.dedup_by_key(|one| name(one));
            return Ok(all);
        }
    }
}

pub(crate) fn exposed_table(versions: &[ExposedVersion]) -> String {
    rows(
        ["NAMESPACE", "KEY", "VERSION", "STATE", "PRIMARY"],
        versions.iter().map(|one| {
            [
                one.namespace.clone(),
                one.key.clone(),
                one.version.to_string(),
                one.state.to_string(),
                if one.primary { "yes".to_owned() } else { "no".to_owned() },
            ]
        }),
    )
}

pub(crate) fn list(nodes: &[NodeId]) -> String {
    let nodes: Vec<String> = nodes.iter().map(|node| format!("node {node}")).collect();
    nodes.join(", ")
}
