//! One member of a cluster is damaged while it is stopped, in every file and at every page, and
//! starts again with its two peers in reach.
//!
//! It may be intact, repaired, or refuse to start. It may never hold other records than its peers,
//! and never take part with less than it had acknowledged or voted.

use std::collections::BTreeMap;
use std::fs;
use std::ops::AddAssign;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use domain::{NodeId, Records};
use tokio::time::Instant;
use wal::fault::Random;

use super::{scratch, size};
use crate::tests::commands::{CLUSTER, create_key};
use crate::tests::house::{House, copy, soon, until, within};
use crate::{OpenError, RecoveryReport, Replica, Role};

const PAGE: usize = 4096;

/// Its files are damaged.
const VICTIM: u64 = 3;

/// It has to take part again within this time, else it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Damage {
    BitFlip,
    ZeroedPage,
    Truncation,
    Deletion,
    OlderCopy,
}

/// What is done to the stopped member. A path is from its directory; the empty one is all of it.
#[derive(Clone, Debug)]
struct Case {
    kind: &'static str,
    damage: Damage,
    path: PathBuf,
    at: usize,
}

#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Verdict {
    Intact,
    /// How.
    Repaired(String),
    /// With which error.
    Refused(String),
    /// It served other records, or has other entries, than its peers.
    Wrong(String),
    /// It took part with less than it had acknowledged or voted.
    Forgot,
    /// It started, and neither took part nor stopped.
    Hung,
}

/// A file that is of no kind fails the sweep: it would be one that nobody thought of.
fn kind(path: &Path) -> &'static str {
    let (name, text) = (path.file_name().unwrap_or_default(), path.to_string_lossy());
    let name = name.to_str().expect("our names are plain");
    match name {
        "LOCK" => "lock",
        "node.json" => "identity",
        "CURRENT" => "CURRENT",
        // A start that was killed leaves it.
        "OPENING" => "opening marker",
        "tail" => "tail marker",
        _ if text.starts_with("quarantine/") => "quarantine",
        "db" => "sled db",
        "conf" => "sled conf",
        _ if name.starts_with("segment-") => "log segment",
        _ if name.starts_with("spare-") => "spare segment",
        _ if name.starts_with("snap.") => "sled snap",
        _ if name.ends_with(".snapshot") => "snapshot",
        // A snapshot that was being built, or sent here, when the member was stopped.
        _ if name.starts_with("aside-") => "unfinished snapshot",
        _ if text.contains("/blobs/") => "sled blob",
        _ => panic!("a file that nobody thought of: {text}"),
    }
}

// ---- the cluster and its files ----

/// What a replica's log says of it.
struct Promised {
    /// The term of the last vote.
    vote: u64,
    /// What it acknowledged.
    entries: BTreeMap<u64, wal::Entry>,
    last: u64,
}

impl Promised {
    /// A copy is opened, since opening changes it; `None` if it is refused.
    fn of(dir: &Path, scratch: &Path) -> Option<Self> {
        let _ = fs::remove_dir_all(scratch);
        if !dir.join("log").exists() {
            return None;
        }
        copy(&dir.join("log"), scratch);
        let identity = wal::Identity { cluster: CLUSTER.0, node: VICTIM };
        let options = wal::Options { segment_bytes: SEGMENT, ..wal::Options::new(identity) };
        let (log, found) = wal::Log::open(scratch, options).ok()?;
        let vote: Option<crate::types::Vote> =
            found.vote.map(|vote| crate::codec::decode(&vote).expect("it is a vote"));
        let first = found.purged.map_or(0, |purged| purged.index + 1);
        let last = found.last.map_or(0, |(last, _)| last);
        let entries = log.read(first..=last).expect("it was read when it was opened");
        log.close().expect("it closes");
        let entries = entries.into_iter().map(|entry| (entry.index, entry)).collect();
        Some(Self { vote: vote.map_or(0, |vote| vote.leader_id().term), entries, last })
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(at) = open.pop() {
        for entry in fs::read_dir(at).expect("it reads").flatten() {
            if entry.path().is_dir() {
                open.push(entry.path());
            } else {
                found.push(entry.path().strip_prefix(dir).expect("it is in it").to_path_buf());
            }
        }
    }
    found.sort();
    found
}

/// Writes so many keys, and then until the log begins after `purged`, so that files are purged and
/// used again.
async fn write(leader: &Replica, next: &mut u64, keys: u64, purged: u64) {
    let end = *next + keys;
    while *next < end || leader.status().purged_index <= purged {
        let batch = (*next..*next + 20).map(|number| {
            let leader = leader.clone();
            tokio::spawn(async move { leader.propose(create_key(number), soon()).await })
        });
        for proposal in batch.collect::<Vec<_>>() {
            proposal.await.expect("no panic").expect("it is committed");
        }
        *next += 20;
    }
}

fn caught_up(replica: &Replica, leader: &Replica) -> bool {
    replica.status().applied_index >= leader.status().applied_index
}

const SEGMENT: u64 = 64 << 10;

/// A cluster whose third member is stopped, with its files as they are and as they were earlier.
struct Scene {
    house: House,
    leader: Replica,
    whole: PathBuf,
    older: PathBuf,
    promised: Promised,
}

impl Scene {
    async fn set() -> Self {
        let mut house = House::on(scratch(), 3);
        house.adjust = |config| {
            config.segment_bytes = SEGMENT;
            config.snapshot_log_bytes = 48 << 10;
            // Several clusters share a machine, and none of them shall elect another leader.
            config.election_min = Duration::from_secs(2);
            config.election_max = Duration::from_secs(4);
        };
        let replicas = house.form().await;
        let (mut next, keys) = (1, size("SWEEP_KEYS", 300));
        write(&replicas[0], &mut next, keys, 0).await;
        until("it has applied all", || caught_up(&replicas[2], &replicas[0])).await;
        drop(replicas);
        within(20, house.stop(VICTIM)).await;
        let older = house.dir(VICTIM).with_extension("older");
        copy(&house.dir(VICTIM), &older);
        let victim = house.open(VICTIM).await.expect("it comes back").0;

        // Later votes, other snapshots, and a log that begins after where the older state ends.
        let (first, second) = (house.replica(1), house.replica(2));
        first.transfer_leader(NodeId(2), soon()).await.expect("it is handed over");
        until("the second leads", || second.status().role == Role::Leader).await;
        second.transfer_leader(NodeId(1), soon()).await.expect("and back");
        until("the first leads", || first.status().role == Role::Leader).await;
        let purged = first.status().applied_index;
        write(&first, &mut next, keys / 2, purged).await;
        until("it has applied all", || caught_up(&victim, &first)).await;
        until("it has purged as well", || victim.status().purged_index > purged).await;
        drop(victim);
        within(20, house.stop(VICTIM)).await;
        let whole = house.dir(VICTIM).with_extension("whole");
        fs::rename(house.dir(VICTIM), &whole).expect("it moves");
        leave_behind(&whole, &older);
        let promised = Promised::of(&whole, &whole.with_extension("scratch")).expect("it is whole");
        Self { house, leader: first, whole, older, promised }
    }

    /// Every damage to every file that changes anything, at every page.
    fn cases(&self) -> Vec<Case> {
        let mut cases = Vec::new();
        let mut random = Random(1);
        for path in files(&self.whole) {
            let kind = kind(&path);
            let case = |damage, at| Case { kind, damage, path: path.clone(), at };
            let bytes = fs::read(self.whole.join(&path)).expect("it reads");
            for start in (0..bytes.len()).step_by(PAGE) {
                let page = &bytes[start..bytes.len().min(start + PAGE)];
                let within = usize::try_from(random.below(page.len() as u64)).expect("a page");
                cases.push(case(Damage::BitFlip, start + within));
                if page.iter().any(|byte| *byte != 0) {
                    cases.push(case(Damage::ZeroedPage, start));
                }
                cases.push(case(Damage::Truncation, start));
            }
            if (1..PAGE).contains(&bytes.len()) {
                // Small files by bytes, since they have but one page.
                cases.extend((0..bytes.len()).step_by(7).map(|at| case(Damage::BitFlip, at)));
                cases.push(case(Damage::Truncation, bytes.len() - 1));
            }
            cases.push(case(Damage::Deletion, 0));
            if fs::read(self.older.join(&path)).is_ok_and(|older| older != bytes) {
                cases.push(case(Damage::OlderCopy, 0));
            }
        }
        for (kind, path) in
            [("the log", "log"), ("the state", "state"), ("the snapshots", "snapshots")]
        {
            let path = PathBuf::from(path);
            cases.push(Case { kind, damage: Damage::Deletion, path: path.clone(), at: 0 });
            cases.push(Case { kind, damage: Damage::OlderCopy, path, at: 0 });
        }
        let path = PathBuf::new();
        cases.push(Case { kind: "the whole disk", damage: Damage::OlderCopy, path, at: 0 });
        cases
    }

    /// Does it to a copy of the victim's files.
    fn damage(&self, case: &Case) {
        self.restore();
        let dir = self.house.dir(VICTIM);
        let (path, older) = (dir.join(&case.path), self.older.join(&case.path));
        let change = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = fs::read(&path).expect("it reads");
            change(&mut bytes);
            fs::write(&path, bytes).expect("it is written");
        };
        match case.damage {
            Damage::BitFlip => change(&|bytes| bytes[case.at] ^= 1 << (case.at % 8)),
            Damage::ZeroedPage => change(&|bytes| {
                let end = bytes.len().min(case.at + PAGE);
                bytes[case.at..end].fill(0);
            }),
            Damage::Truncation => change(&|bytes| bytes.truncate(case.at)),
            Damage::Deletion if path.is_dir() => fs::remove_dir_all(&path).expect("it goes"),
            Damage::Deletion => fs::remove_file(&path).expect("it goes"),
            Damage::OlderCopy if path.is_dir() => {
                fs::remove_dir_all(&path).expect("it goes");
                copy(&older, &path);
            }
            Damage::OlderCopy => drop(fs::copy(&older, &path).expect("it copies")),
        }
    }

    fn restore(&self) {
        let dir = self.house.dir(VICTIM);
        let _ = fs::remove_dir_all(&dir);
        copy(&self.whole, &dir);
    }

    /// What the log, were it believed, says that it should not.
    fn log_lies(&self) -> Option<Verdict> {
        let dir = self.house.dir(VICTIM);
        let found = Promised::of(&dir, &dir.with_extension("scratch"))?;
        if found.vote < self.promised.vote || found.last < self.promised.last {
            return Some(Verdict::Forgot);
        }
        let other = |entry: &wal::Entry| {
            self.promised.entries.get(&entry.index).is_some_and(|right| right != entry)
        };
        let wrong = found.entries.values().find(|entry| other(entry));
        wrong.map(|entry| Verdict::Wrong(format!("entry {} is another", entry.index)))
    }

    async fn judge(&mut self, case: &Case) -> Verdict {
        self.damage(case);
        self.start().await
    }

    async fn start(&mut self) -> Verdict {
        let lies = self.log_lies();
        let (victim, report) = match self.house.open(VICTIM).await {
            Ok(opened) => opened,
            Err(error) => return Verdict::Refused(name(&error)),
        };
        let verdict = match lies {
            Some(lie) => lie,
            None => self.takes_part(&victim, &report).await,
        };
        drop(victim);
        self.house.kill(VICTIM);
        verdict
    }

    async fn takes_part(&self, victim: &Replica, report: &RecoveryReport) -> Verdict {
        let deadline = Instant::now() + PATIENCE;
        let agreed = tokio::select! {
            agreed = self.agrees(victim, deadline) => agreed,
            why = victim.fatal() => return Verdict::Refused(format!("stopped: {why}")),
        };
        let put_away = |file: &str| {
            let quarantine = self.house.dir(VICTIM).join("quarantine");
            fs::read_dir(quarantine)
                .into_iter()
                .flatten()
                .flatten()
                .any(|entry| entry.file_name().to_string_lossy().ends_with(file))
        };
        match agreed {
            None => Verdict::Hung,
            Some(Some(why)) => Verdict::Wrong(format!("{why}, after {report:?}")),
            Some(None) if report.quarantined.is_some() => {
                Verdict::Repaired(format!("state {:?}", report.path))
            }
            Some(None) if put_away(".snapshot") => Verdict::Repaired("snapshot put away".into()),
            Some(None) if report.trimmed_log_bytes > 0 => Verdict::Repaired("log trimmed".into()),
            Some(None) => Verdict::Intact,
        }
    }

    /// How its records differ from the leader's at an equal index, if they do; `None` if it does not
    /// come that far.
    async fn agrees(&self, victim: &Replica, deadline: Instant) -> Option<Option<String>> {
        while Instant::now() < deadline {
            let (mine, theirs) = (victim.status().state_digest, self.leader.status().state_digest);
            if mine.index == theirs.index {
                let (found, right) = (records(victim), records(&self.leader));
                return Some(if mine != theirs {
                    Some(format!("{mine:?} is not {theirs:?}"))
                } else if found != right {
                    let other = found.iter().zip(&right).position(|(found, right)| found != right);
                    let (count, of) = (found.len(), right.len());
                    Some(format!("{count} of {of} records, another one at {other:?}"))
                } else {
                    None
                });
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        None
    }
}

/// What a killed start and damages of long ago have left in both: files of their own kinds.
fn leave_behind(whole: &Path, older: &Path) {
    for dir in [whole, older] {
        fs::write(dir.join("state/OPENING"), "1\n").expect("it is written");
        let quarantine = dir.join("quarantine");
        let state = quarantine.join("state-1000-gen-000001");
        fs::create_dir_all(&state).expect("a directory");
        fs::write(state.join("db"), [7; 100]).expect("it is written");
    }
    fs::write(whole.join("snapshots/aside-0.tmp"), [7; 100]).expect("it is written");
}

fn records(replica: &Replica) -> Vec<domain::Record> {
    replica.read(|view| view.scan(&[], None, usize::MAX).expect("it reads"))
}

fn name(error: &OpenError) -> String {
    let text = format!("{error:?}");
    text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned()
}

// ---- the sweep ----

#[derive(Clone, Debug, Default)]
struct Row {
    intact: u64,
    repaired: u64,
    refused: u64,
    wrong: u64,
    forgot: u64,
    hung: u64,
}

impl Row {
    fn count(&mut self, verdict: &Verdict) {
        *match verdict {
            Verdict::Intact => &mut self.intact,
            Verdict::Repaired(_) => &mut self.repaired,
            Verdict::Refused(_) => &mut self.refused,
            Verdict::Wrong(_) => &mut self.wrong,
            Verdict::Forgot => &mut self.forgot,
            Verdict::Hung => &mut self.hung,
        } += 1;
    }
}

impl AddAssign<&Row> for Row {
    fn add_assign(&mut self, other: &Row) {
        self.intact += other.intact;
        self.repaired += other.repaired;
        self.refused += other.refused;
        self.wrong += other.wrong;
        self.forgot += other.forgot;
        self.hung += other.hung;
    }
}

type Judged = Vec<(Case, Verdict)>;

/// Of every kind and damage one, and from there every so many; of those, one house's share.
fn sample(cases: Vec<Case>, stride: u64, (house, houses): (u64, u64)) -> Vec<Case> {
    let mut groups: BTreeMap<_, Vec<Case>> = BTreeMap::new();
    for case in cases {
        groups.entry((case.kind, case.damage)).or_default().push(case);
    }
    let mut random = Random(stride);
    let mut taken = Vec::new();
    for ((kind, damage), group) in groups {
        let first = random.below(stride.min(group.len() as u64));
        // The files of two houses are much alike, and not the same.
        let shift = kind.len() as u64 + damage as u64;
        let mine = |at: u64| at % stride == first && (at / stride + shift) % houses == house;
        taken.extend((0..).zip(group).filter(|(at, _)| mine(*at)).map(|(_, case)| case));
    }
    taken
}

/// One cluster's share of the cases.
async fn share(house: u64, houses: u64, stride: u64, done: &AtomicU64) -> Judged {
    let mut scene = Scene::set().await;
    // What is whole must be found whole, before and after: else the sweep judges itself.
    scene.restore();
    assert_eq!(scene.start().await, Verdict::Intact);
    let mut cases = scene.cases();
    if let Ok(only) = std::env::var("SWEEP_KIND") {
        cases.retain(|case| case.kind == only);
    }
    let cases = sample(cases, stride, (house, houses));
    let total = cases.len() as u64 * houses;
    let mut judged = Vec::new();
    for case in cases {
        let verdict = scene.judge(&case).await;
        judged.push((case, verdict));
        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
        if done.is_multiple_of(100) {
            println!("{done} of about {total}");
        }
    }
    scene.restore();
    assert_eq!(scene.start().await, Verdict::Intact);
    judged
}

#[test]
fn damage_is_repaired_or_refused_and_never_believed() {
    let (stride, houses) = (size("SWEEP_STRIDE", 30), size("SWEEP_HOUSES", 2));
    let done = AtomicU64::new(0);
    let judged: Judged = std::thread::scope(|scope| {
        let shares = (0..houses).map(|house| {
            let done = &done;
            scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(1)
                    .enable_all()
                    .build();
                runtime.expect("a runtime").block_on(share(house, houses, stride, done))
            })
        });
        let shares: Vec<_> = shares.collect();
        shares.into_iter().flat_map(|share| share.join().expect("no panic")).collect()
    });
    report(&judged);
    let failures: Vec<_> = judged
        .iter()
        .filter(|(_, verdict)| {
            matches!(verdict, Verdict::Wrong(_) | Verdict::Forgot | Verdict::Hung)
        })
        .map(|(case, verdict)| format!("{verdict:?}: {case:?}"))
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// The sweep can fail: without the comparison with the others a member starts that forgot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_ask_the_others_forgets() {
    let mut scene = Scene::set().await;
    let case =
        Case { kind: "the whole disk", damage: Damage::OlderCopy, path: PathBuf::new(), at: 0 };
    assert_eq!(scene.judge(&case).await, Verdict::Refused("WentBack".into()));
    scene.house.hide(true);
    assert_eq!(scene.judge(&case).await, Verdict::Forgot);
}

fn report(judged: &Judged) {
    let mut rows: BTreeMap<(&str, Damage), Row> = BTreeMap::new();
    let mut ways: BTreeMap<(&str, Damage), BTreeMap<&str, u64>> = BTreeMap::new();
    let mut all = Row::default();
    for (case, verdict) in judged {
        let mut row = Row::default();
        row.count(verdict);
        all += &row;
        *rows.entry((case.kind, case.damage)).or_default() += &row;
        if let Verdict::Repaired(how) | Verdict::Refused(how) = verdict {
            *ways.entry((case.kind, case.damage)).or_default().entry(how).or_default() += 1;
        }
    }
    for ((kind, damage), row) in &rows {
        let Row { intact, repaired, refused, .. } = row;
        let ways = ways.remove(&(*kind, *damage)).unwrap_or_default();
        let ways: Vec<_> = ways.iter().map(|(how, count)| format!("{how} {count}")).collect();
        println!(
            "FIGURE {kind}, {damage:?} = intact {intact}, repaired {repaired}, refused {refused} \
             ({})",
            ways.join(", ")
        );
    }
    println!("FIGURE damages = {}", judged.len());
    println!("FIGURE intact = {}", all.intact);
    println!("FIGURE repaired = {}", all.repaired);
    println!("FIGURE refused = {}", all.refused);
    println!("FIGURE silently wrong = {}", all.wrong);
    println!("FIGURE took part with less than was promised = {}", all.forgot);
    println!("FIGURE hung = {}", all.hung);
}
