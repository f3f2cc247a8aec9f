//! A past point in time of the records, read while they change.
//!
//! What makes it up is never written to, but for the bits that hide records: of those it has its own.
//! So reading it takes no lock, and whoever changes records neither waits for it nor leaves it
//! anything.

use domain::{Broken, Record};

use crate::state::layer::Layer;
use crate::state::loaded::{Ways, merged};
use crate::state::note::Note;
use crate::state::recent::Recent;

#[derive(Debug)]
pub(crate) struct Frozen {
    /// As of the moment.
    pub(crate) note: Note,
    /// What it is a moment of.
    pub(super) generation: u64,
    /// The last run then: what changed since is in later ones, or in none yet.
    pub(super) run: u32,
    pub(super) layers: Vec<Layer>,
    /// What was in no run then.
    pub(super) recent: Recent,
}

impl Frozen {
    /// All records as they were, in order.
    pub(crate) fn records(&self) -> impl Iterator<Item = Result<Record, Broken>> {
        let mut ways: Ways<'_> = vec![Box::new(self.recent.from(&[]).map(Ok))];
        for layer in &self.layers {
            ways.push(Box::new(layer.all()));
        }
        merged(ways)
    }
}
