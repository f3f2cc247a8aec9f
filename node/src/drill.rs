//! `recovery-kit drill --backup`: whether a kit opens all that a restore of a backup needs.
//!
//! Nothing is asked of a cluster, no slot is touched, nothing is written: what is opened is checked
//! against its canary and forgotten.

use std::path::Path;
use std::process::ExitCode;

use cli::kit::{Command, Drill, combine};
use cli::{Failure, Global, facts};
use crypto::kit::KitPrivate;
use domain::{KitId, view};
use serde::Serialize;

use crate::restore::{Restored, read_backup};
use crate::succession::{needed, text};

#[derive(Serialize)]
struct Drilled {
    kit: String,
    cluster_id: String,
    index: u64,
    epochs: Vec<u32>,
}

pub(crate) fn run(command: Command, global: &Global) -> ExitCode {
    let Command::Drill(Drill { shares, backup: Some(backup), identity: Some(identity) }) = command
    else {
        return Failure::local("there is no backup to drill with").report();
    };
    let drilled = combine(&shares).and_then(|kit| drilled(&kit, &backup, &identity));
    let shown = drilled.and_then(|drilled| {
        global.show(&drilled, |drilled| {
            facts([
                ("kit", drilled.kit.clone()),
                ("backup", format!("of {} up to {}", drilled.cluster_id, drilled.index)),
                ("opens", format!("the KEK of each epoch that it needs: {:?}", drilled.epochs)),
            ])
        })
    });
    match shown {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn drilled(kit: &KitPrivate, file: &Path, identity: &Path) -> Result<Drilled, Failure> {
    let wrong = |error: String| Failure::local(format_args!("{}: {error}", file.display()));
    let Restored { records, summary, .. } = read_backup(file, identity).map_err(Failure::local)?;
    let id = KitId(kit.id());
    let mut epochs = Vec::new();
    for epoch in needed(&records).map_err(wrong)? {
        let number = epoch.epoch;
        let mut escrow = view::escrow(&records, number).map_err(text).map_err(wrong)?;
        let share = escrow
            .remove(&id)
            .ok_or_else(|| wrong(format!("epoch {number} is not wrapped to the kit {id} in it")))?;
        kit.check(&share, &epoch.kek.0, &epoch.canary)
            .map_err(|error| wrong(format!("epoch {number}: {error}")))?;
        epochs.push(number.0);
    }
    let cluster_id = summary.cluster.to_string();
    Ok(Drilled { kit: id.to_string(), cluster_id, index: summary.index, epochs })
}
