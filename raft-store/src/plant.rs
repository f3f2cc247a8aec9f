//! A replica made out of records: how a cluster that succeeds another begins.
//!
//! Its first state is a snapshot, its log begins after it, and its one member is the node that it is
//! made for. Nothing here decides what the records say.

use std::collections::BTreeSet;
use std::io;

use domain::{Broken, Changes, Records};
use tokio::sync::oneshot;

use crate::codec::encode;
use crate::config::Config;
use crate::error::OpenError;
use crate::log_store::completion;
use crate::recovery::{Identity, log_options, occupy, prepare};
use crate::snapshots::{Shelf, SnapshotFile, SnapshotWriter};
use crate::types::{Membership, SnapshotMeta, Vote, log_id};

/// Read at a time.
const PAGE: usize = 1_024;

/// What stands on the disk.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Planted {
    pub records: u64,
    pub bytes: u64,
    /// 64 hexadecimal digits.
    pub digest: String,
}

/// Makes a replica in an empty directory whose state at this position of the log is `base` with the
/// changes made. Only when this returns is there a replica; what a crash leaves behind is none.
pub fn plant(
    config: &Config,
    (term, index): (u64, u64),
    base: &impl Records,
    changes: &Changes,
) -> Result<Planted, OpenError> {
    let _lock = occupy(config)?;
    let (generations, shelf) = prepare(config)?;
    let planted = (|| {
        let file = write_snapshot(config, &shelf, (term, index), base, changes)?;
        let loaded = generations.over(&file)?;
        generations.switch(&loaded.current())?;
        let note = &loaded.note;
        let (records, bytes, digest) = (note.records, note.bytes, note.digest.to_hex());
        Ok(Planted { records, bytes, digest })
    })();
    let planted = planted.map_err(OpenError::io(&config.dir))?;
    begin_log(config, term, index)?;
    // Last, since with it the directory holds a replica.
    Identity::of(config).write(config)?;
    Ok(planted)
}

fn write_snapshot(
    config: &Config,
    shelf: &Shelf,
    (term, index): (u64, u64),
    base: &impl Records,
    changes: &Changes,
) -> io::Result<SnapshotFile> {
    let node = BTreeSet::from([config.node.0]);
    let members = openraft::Membership::new(vec![node.clone()], node).map_err(io::Error::other)?;
    let at = Some(log_id(term, index));
    let meta = SnapshotMeta { last_log_id: at, last_membership: Membership::new(at, members) };
    let aside = shelf.aside();
    let mut writer = SnapshotWriter::create(shelf.disk(), &aside, shelf.origin(), &meta)?;
    for page in changed(base, changes) {
        writer.records(&page.map_err(io::Error::other)?)?;
    }
    writer.finish()?;
    shelf.admit(&shelf.verify(&aside)?)
}

/// The log goes on where the state ends, in a term that nobody has voted in for another.
fn begin_log(config: &Config, term: u64, index: u64) -> Result<(), OpenError> {
    let log = wal::Log::create(&config.dir.join("log"), log_options(config))?;
    let purged = wal::Purged { index, term, note: Vec::new() };
    let (done, first) = completion();
    log.save_vote(encode(&Vote::new(term, config.node.0)), done);
    let (done, second) = completion();
    log.purge(purged, done);
    let written = written(first).and_then(|()| written(second));
    let written = written.and_then(|()| log.close().map_err(io::Error::other));
    written.map_err(OpenError::io(&config.dir))
}

fn written(done: oneshot::Receiver<io::Result<()>>) -> io::Result<()> {
    done.blocking_recv().map_err(io::Error::other)?
}

/// The records with the changes made, a page at a time, in order. A page may be empty.
fn changed<'a>(
    base: &'a impl Records,
    changes: &'a Changes,
) -> impl Iterator<Item = Result<Vec<domain::Record>, Broken>> + 'a {
    use std::ops::Bound::{Excluded, Included, Unbounded};
    let mut after: Option<Vec<u8>> = None;
    let mut finished = false;
    std::iter::from_fn(move || {
        if finished {
            return None;
        }
        let page = match base.scan(&[], after.as_deref(), PAGE) {
            Ok(page) => page,
            Err(broken) => {
                finished = true;
                return Some(Err(broken));
            }
        };
        let upto = page.last().filter(|_| page.len() == PAGE).map(|(name, _)| name.clone());
        finished = upto.is_none();
        let from = after.as_ref().map_or(Unbounded, Excluded);
        let to = upto.as_ref().map_or(Unbounded, Included);
        let mut merged: Changes =
            page.into_iter().map(|(name, value)| (name, Some(value))).collect();
        let among = changes.range::<Vec<u8>, _>((from, to));
        merged.extend(among.map(|(name, change)| (name.clone(), change.clone())));
        after = upto;
        Some(Ok(merged.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn pages_and_changes_make_one_sequence() {
        let record = |number: u32| (number.to_be_bytes().to_vec(), vec![1]);
        for count in [0, 1, 1023, 1024, 1025, 2048, 3000] {
            let base: BTreeMap<_, _> = (1..=count).map(|number| record(2 * number)).collect();
            let changes: Changes = (0..count + 2)
                .map(|number| (number.to_be_bytes().to_vec(), (number % 3 > 0).then(|| vec![2])))
                .collect();
            let found: Vec<_> = changed(&base, &changes).flat_map(Result::unwrap).collect();
            let mut expected = base.clone();
            for (name, change) in &changes {
                match change {
                    Some(value) => expected.insert(name.clone(), value.clone()),
                    None => expected.remove(name),
                };
            }
            assert_eq!(found, expected.into_iter().collect::<Vec<_>>(), "{count}");
        }
    }
}
