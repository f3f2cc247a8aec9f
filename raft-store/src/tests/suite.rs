//! openraft's own suite, on the real log and the real state.

use std::sync::Arc;

use openraft::StorageError;
use openraft::storage::RaftStateMachine;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;

use super::commands::{CLUSTER, LINEAGE};
use crate::Config;
use crate::fatal::Fatal;
use crate::log_store::LogStore;
use crate::recovery;
use crate::room::Room;
use crate::state::StateMachine;
use crate::types::TypeConfig;

struct Stores;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Stores {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().expect("a directory");
        let mut config = Config::new(dir.path().join("node"), domain::NodeId(0), CLUSTER, LINEAGE);
        config.segment_bytes = 1 << 20;
        config.sled_cache_bytes = 1 << 20;
        let opened = recovery::create(&config, &Fatal::new()).expect("it is created");
        let log = LogStore::new(opened.log, None);
        // The suite applies what it never logged and purges what it never applied, so neither
        // waits for the other here.
        let room = Room::new(&config.dir, Arc::clone(&config.space), 0).expect("there is a disk");
        let (weight, room) = (Arc::default(), Arc::new(room));
        let machine =
            StateMachine::new(opened.store, opened.shelf, None, weight, room, domain::FORMAT);
        Ok((dir, log, machine))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openrafts_suite_holds() {
    let (_dir, _log, mut machine) = Stores.build().await.expect("they are built");
    assert_eq!(machine.applied_state().await.expect("it reads").0, None);
    Suite::test_all(Stores).await.expect("the suite holds");
}
