//! A generation that is open, and how it is changed.
//!
//! Every record is shown in one place only: among the recent ones, among those that are being written,
//! or in one layer. Whoever changes it hides it where it was.

use std::collections::BTreeSet;
use std::sync::Arc;

use domain::{Broken, Changes, Record};

use crate::snapshots::SnapshotFile;
use crate::state::digest::SetKey;
use crate::state::freeze::Frozen;
use crate::state::generation::Current;
use crate::state::layer::Layer;
use crate::state::note::{NOTE_KEY, Note};
use crate::state::recent::Recent;
use crate::state::run;
use crate::state::view::View;

/// Of a mark of the earlier form, which is followed by the name that it hides.
const MARK: usize = 2;

/// Its records sum to its note.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) number: u64,
    pub(crate) tree: sled::Db,
    /// The oldest first: a snapshot, if there is one, then the runs.
    layers: Vec<Layer>,
    /// On its way into a run.
    writing: Option<Writing>,
    recent: Recent,
    /// Of the last run.
    run: u32,
    /// How often records moved from one of these to another.
    moves: u64,
    pub(crate) note: Note,
    /// As sled holds it.
    pub(super) stored: Note,
}

#[derive(Debug)]
struct Writing {
    recent: Arc<Recent>,
    hidden: BTreeSet<Vec<u8>>,
}

/// What is to be written as a run.
pub(super) struct Taken {
    pub(super) tree: sled::Db,
    pub(super) number: u32,
    pub(super) recent: Arc<Recent>,
    pub(super) note: Note,
}

/// Where records are that are about to be changed.
#[derive(Debug, Default)]
pub(super) struct Staged {
    places: Vec<Option<Place>>,
    /// The generation that it was found out of, and how often records had moved in it.
    seen: (u64, u64),
    /// What each of the changed records is now, in the order of the changes.
    pub(super) before: Vec<Option<Vec<u8>>>,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    Recent,
    Writing,
    Layer(usize, u64),
}

impl Loaded {
    /// `note` is durable, and what the layer sums to.
    pub(super) fn new(number: u64, tree: sled::Db, base: Option<Layer>, note: Note) -> Self {
        let layers = base.into_iter().collect();
        let (recent, stored) = (Recent::default(), note.clone());
        Self { number, tree, layers, writing: None, recent, run: 0, moves: 0, note, stored }
    }

    /// Reads every record, and says so if they do not sum to the note.
    pub(super) fn check(
        number: u64,
        tree: sled::Db,
        base: Option<Layer>,
        key: &SetKey,
    ) -> Result<Self, String> {
        let sled = |error: sled::Error| format!("sled: {error}");
        let text = |broken: Broken| broken.to_string();
        let sealed = tree.get(NOTE_KEY).map_err(sled)?;
        let note = Note::open(key, &sealed.ok_or("there is no note")?)?;
        let mut loaded = Self::new(number, tree, base, Note::default());
        if let Some(file) = loaded.base() {
            loaded.note = file.contents.sums.clone();
        }
        for single in run::singles(&loaded.tree) {
            let (name, value) = single.map_err(sled)?;
            let change = match name.first() {
                Some(0) => (name[MARK..].to_vec(), None),
                _ => (name.to_vec(), Some(value.to_vec())),
            };
            loaded.put(key, [change].into()).map_err(text)?;
        }
        let last = run::last(&loaded.tree)?;
        run::remove_after(&loaded.tree, last).map_err(sled)?;
        for number in 1..=last {
            let Self { tree, layers, note: sums, .. } = &mut loaded;
            let layer = run::read(tree, number, |name, value| {
                let mut before = None;
                for layer in layers.iter_mut() {
                    if let Some(found) = layer.find(name).map_err(text)? {
                        layer.hide(found.ordinal);
                        before = Some(found.value);
                    }
                }
                sums.count(key, name, before.as_deref(), value);
                Ok(())
            })?;
            loaded.layers.push(layer);
        }
        loaded.run = last;
        let found = &loaded.note;
        if !found.sums_to(&note) {
            return Err(format!(
                "its records do not sum to its digest: {} records of {} bytes, noted were {} of {}",
                found.records, found.bytes, note.records, note.bytes
            ));
        }
        loaded.stored = note.clone();
        loaded.note = note;
        Ok(loaded)
    }

    pub(crate) fn current(&self) -> Current {
        Current { number: self.number, base: self.base().map(|file| file.name().to_owned()) }
    }

    /// The snapshot that it stands on.
    pub(crate) fn base(&self) -> Option<&SnapshotFile> {
        self.layers.first().and_then(Layer::file)
    }

    /// How many runs there are, and about how many bytes are in none yet.
    pub(super) fn weight(&self) -> (usize, usize) {
        (self.layers.len() - usize::from(self.base().is_some()), self.recent.bytes())
    }

    pub(crate) fn view(&self) -> View<'_> {
        View::new(self)
    }

    fn find(&self, name: &[u8]) -> Result<Option<(Place, Vec<u8>)>, Broken> {
        if let Some(value) = self.recent.get(name) {
            return Ok(Some((Place::Recent, value.clone())));
        }
        let shown = |writing: &&Writing| !writing.hidden.contains(name);
        let writing = self.writing.as_ref().filter(shown);
        if let Some(value) = writing.and_then(|writing| writing.recent.get(name)) {
            return Ok(Some((Place::Writing, value.clone())));
        }
        for (number, layer) in self.layers.iter().enumerate().rev() {
            if let Some(found) = layer.find(name)? {
                return Ok(Some((Place::Layer(number, found.ordinal), found.value)));
            }
        }
        Ok(None)
    }

    pub(super) fn get(&self, name: &[u8]) -> Result<Option<Vec<u8>>, Broken> {
        Ok(self.find(name)?.map(|(_, value)| value))
    }

    /// Up to `limit` records whose key begins with `prefix` and is not before `start`, in order.
    pub(super) fn scan(
        &self,
        prefix: &[u8],
        start: &[u8],
        limit: usize,
    ) -> Result<Vec<Record>, Broken> {
        let mut ways: Ways<'_> = Vec::with_capacity(2 + self.layers.len());
        ways.push(Box::new(self.recent.from(start).map(Ok)));
        if let Some(Writing { recent, hidden }) = &self.writing {
            let shown = recent.from(start).filter(|(name, _)| !hidden.contains(name));
            ways.push(Box::new(shown.map(Ok)));
        }
        for layer in &self.layers {
            ways.push(Box::new(layer.from(prefix, start, limit)));
        }
        let mut found = Vec::new();
        for record in merged(ways).take(limit) {
            let record = record?;
            if !record.0.starts_with(prefix) {
                break;
            }
            found.push(record);
        }
        Ok(found)
    }

    /// Finds out where the records are, and counts what the changes come to in `note`.
    pub(super) fn stage(
        &self,
        key: &SetKey,
        changes: &Changes,
        note: &mut Note,
    ) -> Result<Staged, Broken> {
        let mut staged = Staged { seen: (self.number, self.moves), ..Staged::default() };
        for (name, change) in changes {
            if name.first().is_none_or(|table| *table == 0) {
                return Err(Broken("a change of a record that is not domain's".into()));
            }
            let (place, before) = self.find(name)?.unzip();
            note.count(key, name, before.as_deref(), change.as_deref());
            staged.places.push(place);
            staged.before.push(before);
        }
        Ok(staged)
    }

    /// Makes them, and the note with them. If the process dies now, the log has them.
    pub(super) fn make(
        &mut self,
        changes: Changes,
        staged: &Staged,
        note: Note,
    ) -> Result<(), Broken> {
        let moved = ((self.number, self.moves) != staged.seen).then(|| {
            changes.keys().map(|name| Ok(self.find(name)?.unzip().0)).collect::<Result<Vec<_>, _>>()
        });
        let moved = moved.transpose()?;
        let places = moved.as_ref().unwrap_or(&staged.places);
        for ((name, change), place) in changes.into_iter().zip(places) {
            match place {
                None | Some(Place::Recent) => {}
                Some(Place::Writing) => {
                    if let Some(writing) = &mut self.writing {
                        writing.hidden.insert(name.clone());
                    }
                }
                Some(Place::Layer(number, ordinal)) => self.layers[*number].hide(*ordinal),
            }
            self.recent.set(name, change);
        }
        self.note = note;
        Ok(())
    }

    /// As it is being made, nobody reads it and its index stays.
    pub(super) fn put(&mut self, key: &SetKey, changes: Changes) -> Result<(), Broken> {
        let mut note = self.note.clone();
        let staged = self.stage(key, &changes, &mut note)?;
        self.make(changes, &staged, note)
    }

    /// Holds on to what it is now; nothing is being written.
    pub(super) fn freeze(&self) -> Frozen {
        Frozen {
            note: self.note.clone(),
            generation: self.number,
            run: self.run,
            layers: self.layers.clone(),
            recent: self.recent.clone(),
        }
    }

    /// The runs that were written after this one.
    pub(super) fn runs_after(&self, run: u32) -> &[Layer] {
        let before = run as usize + usize::from(self.base().is_some());
        self.layers.get(before..).unwrap_or_default()
    }

    /// The names of what is in no run yet.
    pub(super) fn recent_names(&self) -> BTreeSet<Vec<u8>> {
        self.recent.names().cloned().collect()
    }

    /// Takes in a run that another generation has above the same base.
    pub(super) fn adopt(&mut self, run: &Layer) -> Result<(), Broken> {
        let (Some((base, _)), number) = (self.layers.split_first_mut(), self.run + 1) else {
            return Err(Broken("a run is adopted where there is no base".into()));
        };
        let copy = run.copy_to(&self.tree, number, |name| base.hide_named(name))?;
        self.layers.push(copy);
        self.run = number;
        Ok(())
    }

    /// Hides these records of the base.
    pub(super) fn hide(&mut self, names: &BTreeSet<Vec<u8>>) -> Result<(), Broken> {
        let base = self.layers.first_mut();
        base.map_or(Ok(()), |base| names.iter().try_for_each(|name| base.hide_named(name)))
    }

    /// Takes the place of another generation, whose runs after `run` it has adopted; what is hidden in
    /// the base is hidden already.
    pub(super) fn succeed(&mut self, before: &mut Self, run: u32) -> Result<(), Broken> {
        for (mine, theirs) in self.layers.iter_mut().skip(1).zip(before.runs_after(run)) {
            mine.hide_as(theirs);
        }
        let layers: u64 = self.layers.iter().map(Layer::shown).sum();
        let shown = layers + before.recent.records().len() as u64;
        if shown != before.note.records {
            let records = before.note.records;
            return Err(Broken(format!("it shows {shown} records where there are {records}")));
        }
        self.recent = std::mem::take(&mut before.recent);
        self.note = before.note.clone();
        Ok(())
    }

    /// Begins a run with what is recent, if anything is. One at a time.
    pub(super) fn take(&mut self) -> Taken {
        let recent = Arc::new(std::mem::take(&mut self.recent));
        self.writing = Some(Writing { recent: Arc::clone(&recent), hidden: BTreeSet::new() });
        self.moves += 1;
        self.run += u32::from(!recent.is_empty());
        let (tree, note) = (self.tree.clone(), self.note.clone());
        Taken { tree, number: self.run, recent, note }
    }

    /// The run is written: its layer takes the place of what was taken.
    pub(super) fn settle(&mut self, mut layer: Layer, note: Note) -> Result<(), Broken> {
        self.stored = note;
        let Some(Writing { recent, hidden }) = self.writing.take() else { return Ok(()) };
        if !recent.is_empty() {
            hidden.iter().try_for_each(|name| layer.hide_named(name))?;
            self.layers.push(layer);
            self.moves += 1;
        }
        Ok(())
    }

    /// Changes a record behind the back of the digest, as failing memory would.
    #[cfg(test)]
    pub(super) fn spoil(&mut self) {
        let last = self.scan(&[], &[], usize::MAX).expect("it reads").pop();
        let (name, _) = last.expect("there are records");
        let (key, note) = (SetKey::new(&[0; 16]), self.note.clone());
        self.put(&key, [(name, Some(b"spoiled".to_vec()))].into()).expect("it is made");
        self.note = note;
    }
}

pub(super) type Ways<'a> = Vec<Box<dyn Iterator<Item = Result<Record, Broken>> + 'a>>;

/// What is on several ways, each in order, in order. No key is on two of them.
pub(super) fn merged(ways: Ways<'_>) -> impl Iterator<Item = Result<Record, Broken>> + use<'_> {
    let mut ways: Vec<_> = ways.into_iter().map(Iterator::peekable).collect();
    std::iter::from_fn(move || {
        let mut first: Option<(usize, &[u8])> = None;
        for (number, way) in ways.iter_mut().enumerate() {
            match way.peek() {
                // No name comes before none.
                Some(Err(_)) => first = Some((number, &[])),
                Some(Ok((name, _))) if first.is_none_or(|(_, least)| **name < *least) => {
                    first = Some((number, name));
                }
                _ => {}
            }
        }
        let (number, _) = first?;
        ways[number].next()
    })
}
