//! Worker threads with a session each, a bounded queue, a deadline for every call, and the
//! supervisor that checks the token's health each second.
//!
//! A call into a PKCS#11 module can not be cancelled. A worker that is stuck beyond its deadline is
//! given up and replaced, up to a cap; beyond it the slot is unhealthy until the calls come back. The
//! askers do not wait for any of this: they have their own clock.
//!
//! A device that gives no further session makes the pool smaller: a worker that gets none leaves its
//! call to another that has one, and goes. After a while the pool tries to grow again.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crypto::wrapped::Suite;
use tokio::sync::watch;

use crate::contract::{Fault, Hsm, Session};
use crate::ladder::Bench;
use crate::slot::GONE;
use crate::{Health, HsmError, Info, KekId, Options, canary};

const HEALTH_EVERY: Duration = Duration::from_secs(1);
/// How long the health check waits for an answer. It goes before all other calls.
const HEALTH_LIMIT: Duration = Duration::from_secs(2);
/// How long a pool stays small before it asks the device for another session.
const GROW_AFTER: Duration = Duration::from_secs(10);
/// A slow answer is not yet a broken device; a definite fault is.
const SLOW_MAX: u32 = 3;
/// How many workers may be stuck for each that was asked for.
const STUCK_FACTOR: usize = 3;

pub(crate) struct Pool {
    hsm: Arc<dyn Hsm>,
    options: Options,
    queue: Mutex<Queue>,
    ready: Condvar,
    closing: Condvar,
    desks: Mutex<Vec<(Arc<Desk>, JoinHandle<()>)>>,
    supervisor: Mutex<Option<JoinHandle<()>>>,
    shrunk: Mutex<Shrunk>,
    name: Mutex<Option<String>>,
    /// In the order they were given; the last one is the one that the health check opens.
    canaries: Mutex<Vec<(KekId, Vec<u8>)>>,
    health: watch::Sender<Health>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    closed: bool,
}

/// Workers that the device gave no session to.
#[derive(Default)]
struct Shrunk {
    by: usize,
    since: Option<Instant>,
}

/// What the supervisor sees of a worker.
#[derive(Default)]
struct Desk {
    /// The deadline of the call it is in.
    busy: Mutex<Option<Instant>>,
    given_up: AtomicBool,
}

/// What a worker does with a call; without a bench it says that the slot is closed.
type Run = Box<dyn FnOnce(Option<&mut Bench>) + Send>;

/// A call, waiting for a worker.
pub(crate) struct Job {
    deadline: Instant,
    run: Run,
}

impl Job {
    pub(crate) fn new<T>(
        deadline: Instant,
        mut attempt: impl FnMut(&mut dyn Session) -> Result<T, Fault> + Send + 'static,
        answer: impl FnOnce(Result<T, HsmError>) + Send + 'static,
    ) -> Self {
        let run = Box::new(move |bench: Option<&mut Bench>| {
            answer(match bench {
                Some(bench) => bench.run(deadline, &mut attempt),
                None => Err(HsmError::Closed),
            });
        });
        Self { deadline, run }
    }
}

impl Pool {
    pub(crate) fn start(hsm: Arc<dyn Hsm>, mut options: Options) -> Arc<Self> {
        options.workers = options.workers.max(1);
        let pool = Arc::new(Self {
            hsm,
            options,
            queue: Mutex::default(),
            ready: Condvar::new(),
            closing: Condvar::new(),
            desks: Mutex::default(),
            supervisor: Mutex::default(),
            shrunk: Mutex::default(),
            name: Mutex::default(),
            canaries: Mutex::default(),
            health: watch::Sender::new(Health::Healthy),
        });
        for _ in 0..pool.options.workers {
            pool.hire();
        }
        metrics::gauge!("strongroom_hsm_healthy").set(1.0);
        pool.show_workers(0);
        let supervised = Arc::clone(&pool);
        *lock(&pool.supervisor) = spawn("hsm-health", move || supervised.supervise());
        pool
    }

    pub(crate) fn info(&self) -> Info {
        self.hsm.info()
    }

    pub(crate) fn suite(&self) -> Suite {
        self.hsm.suite()
    }

    pub(crate) fn deadline(&self) -> Duration {
        self.options.deadline
    }

    pub(crate) fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    pub(crate) fn set_name(&self, name: String) {
        *lock(&self.name) = Some(name);
    }

    pub(crate) fn name(&self) -> Result<String, HsmError> {
        lock(&self.name).clone().ok_or(HsmError::NoIdentity)
    }

    pub(crate) fn set_canary(&self, kek: KekId, canary: Vec<u8>) {
        let mut canaries = lock(&self.canaries);
        canaries.retain(|(known, _)| *known != kek);
        canaries.push((kek, canary));
    }

    pub(crate) fn drop_canary(&self, kek: KekId) {
        lock(&self.canaries).retain(|(known, _)| *known != kek);
    }

    fn canary(&self, kek: KekId) -> Option<Vec<u8>> {
        let canaries = lock(&self.canaries);
        canaries.iter().find(|(known, _)| *known == kek).map(|(_, canary)| canary.clone())
    }

    pub(crate) fn submit(&self, job: Job) -> Result<(), HsmError> {
        let mut queue = lock(&self.queue);
        if queue.closed {
            return Err(HsmError::Closed);
        }
        if queue.jobs.len() >= self.options.queue.max(1) {
            return Err(HsmError::Busy);
        }
        queue.jobs.push_back(job);
        drop(queue);
        self.ready.notify_one();
        Ok(())
    }

    /// Puts a job before all others, however many there are.
    fn submit_first(&self, job: Job) -> Result<(), HsmError> {
        let mut queue = lock(&self.queue);
        if queue.closed {
            return Err(HsmError::Closed);
        }
        queue.jobs.push_front(job);
        drop(queue);
        self.ready.notify_one();
        Ok(())
    }

    /// Asks and blocks for the answer.
    pub(crate) fn ask<T: Send + 'static>(
        &self,
        name: &'static str,
        limit: Duration,
        attempt: impl FnMut(&mut dyn Session) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, HsmError> {
        Self::ask_by(name, limit, |job| self.submit(job), attempt)
    }

    fn ask_by<T: Send + 'static>(
        name: &'static str,
        limit: Duration,
        submit: impl FnOnce(Job) -> Result<(), HsmError>,
        attempt: impl FnMut(&mut dyn Session) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, HsmError> {
        let started = Instant::now();
        let (answer, wait) = mpsc::sync_channel(1);
        let job = Job::new(started + limit, attempt, move |result| {
            let _ = answer.send(result);
        });
        let result = submit(job).and_then(|()| match wait.recv_timeout(limit) {
            Ok(result) => result,
            Err(mpsc::RecvTimeoutError::Timeout) => Err(HsmError::Deadline(limit)),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(HsmError::Closed),
        });
        record(name, started, result.as_ref().err());
        result
    }

    /// What a fault means, once the device itself was asked: is it this blob, is the KEK not here,
    /// or is it the device?
    pub(crate) fn sure(&self, session: &mut dyn Session, kek: KekId, fault: Fault) -> Fault {
        match fault {
            Fault::Suspect(what) => {
                let canary = self.canary(kek);
                match canary::sings(session, kek, canary.as_deref()) {
                    Ok(true) => Fault::Final(HsmError::Integrity),
                    Ok(false) => Fault::Device(format!("{what}, and the canary does not open")),
                    Err(fault) => fault,
                }
            }
            Fault::Missing(error) => match self.name().map(|name| session.is_present(&name)) {
                Ok(Ok(true)) => Fault::Final(error),
                Ok(Err(fault)) => fault,
                Ok(Ok(false)) | Err(_) => Fault::Missing(error),
            },
            other => other,
        }
    }

    /// Refuses new calls and lets the threads end; the last of them releases the token.
    pub(crate) fn stop(&self) {
        let waiting = {
            let mut queue = lock(&self.queue);
            queue.closed = true;
            std::mem::take(&mut queue.jobs)
        };
        self.ready.notify_all();
        self.closing.notify_all();
        for job in waiting {
            (job.run)(None);
        }
    }

    /// Waits until the token is released.
    pub(crate) fn join(&self) {
        let supervisor = lock(&self.supervisor).take();
        if let Some(supervisor) = supervisor {
            let _ = supervisor.join();
        }
    }

    fn hire(self: &Arc<Self>) {
        let desk = Arc::new(Desk::default());
        let (pool, own) = (Arc::clone(self), Arc::clone(&desk));
        if let Some(thread) = spawn("hsm-worker", move || pool.work(&own)) {
            lock(&self.desks).push((desk, thread));
        }
    }

    fn work(&self, desk: &Desk) {
        let mut bench = Bench::new(Arc::clone(&self.hsm));
        while let Some(job) = self.next() {
            // An asker whose deadline is past has left; its answer is dropped with the job.
            if Instant::now() >= job.deadline {
                continue;
            }
            *lock(&desk.busy) = Some(job.deadline);
            if let Some(what) = bench.refusal()
                && self.shrink(&what)
            {
                if let Err(refused) = self.submit_first(job) {
                    tracing::debug!(%refused, "the call of a worker that leaves");
                }
                return;
            }
            (job.run)(Some(&mut bench));
            *lock(&desk.busy) = None;
            if desk.given_up.load(Ordering::Acquire) {
                return;
            }
        }
    }

    /// One worker fewer, unless it is the last.
    fn shrink(&self, what: &str) -> bool {
        metrics::counter!("strongroom_hsm_sessions_refused_total").increment(1);
        let mut shrunk = lock(&self.shrunk);
        if shrunk.by + 1 >= self.options.workers {
            return false;
        }
        shrunk.by += 1;
        shrunk.since = Some(Instant::now());
        let workers = self.show_workers(shrunk.by);
        tracing::warn!(workers, what, "the token gives no further session: fewer workers share it");
        true
    }

    fn show_workers(&self, shrunk: usize) -> usize {
        let workers = self.options.workers - shrunk;
        #[expect(clippy::cast_precision_loss, reason = "they are few")]
        metrics::gauge!("strongroom_hsm_workers").set(workers as f64);
        workers
    }

    /// How many workers there should be now.
    fn wanted(&self) -> usize {
        let mut shrunk = lock(&self.shrunk);
        if shrunk.by > 0 && shrunk.since.is_some_and(|since| since.elapsed() >= GROW_AFTER) {
            shrunk.by -= 1;
            shrunk.since = Some(Instant::now());
            self.show_workers(shrunk.by);
        }
        self.options.workers - shrunk.by
    }

    fn next(&self) -> Option<Job> {
        let mut queue = lock(&self.queue);
        loop {
            if queue.closed {
                return None;
            }
            if let Some(job) = queue.jobs.pop_front() {
                return Some(job);
            }
            queue = self.ready.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn supervise(self: &Arc<Self>) {
        let mut slow = 0;
        loop {
            let queue = lock(&self.queue);
            let (queue, _) = self
                .closing
                .wait_timeout_while(queue, HEALTH_EVERY, |queue| !queue.closed)
                .unwrap_or_else(PoisonError::into_inner);
            if queue.closed {
                break;
            }
            drop(queue);
            let checked = self.check();
            let stuck = self.replace_stuck();
            slow = match checked {
                Err(HsmError::Deadline(_)) => slow + 1,
                Ok(()) | Err(_) => 0,
            };
            match (checked, stuck) {
                (Err(HsmError::Closed), _) => {}
                (Ok(()), _) => self.publish(Health::Healthy),
                (Err(_), Some(stuck)) => self.publish(Health::Unhealthy(stuck)),
                (Err(HsmError::Deadline(_)), None) if slow < SLOW_MAX => {}
                (Err(error), None) => self.publish(Health::Unhealthy(error.to_string())),
            }
        }
        self.release();
    }

    fn check(self: &Arc<Self>) -> Result<(), HsmError> {
        let checked = lock(&self.canaries).last().cloned();
        let name = self.name().ok();
        let pool = Arc::clone(self);
        let limit = self.options.deadline.min(HEALTH_LIMIT);
        let submit = |job| self.submit_first(job);
        Self::ask_by("canary", limit, submit, move |session| match (&checked, &name) {
            (Some((kek, canary)), _) => {
                let sings = match session.refresh(*kek) {
                    Ok(()) => canary::sings(session, *kek, Some(canary)),
                    Err(fault) => Err(fault),
                };
                match sings {
                    Ok(true) => Ok(()),
                    Ok(false) => Err(Fault::Device("the KEK does not open its canary".to_owned())),
                    Err(fault) => Err(pool.sure(session, *kek, fault)),
                }
            }
            (None, Some(name)) if session.is_present(name)? => Ok(()),
            (None, Some(_)) => Err(Fault::Missing(HsmError::Device(GONE.to_owned()))),
            (None, None) => session.random(16).map(drop),
        })
    }

    /// Replaces workers that are stuck; says so when there are too many to go on.
    fn replace_stuck(self: &Arc<Self>) -> Option<String> {
        let (now, wanted) = (Instant::now(), self.wanted());
        let (stuck, missing) = {
            let mut desks = lock(&self.desks);
            desks.retain(|(_, thread)| !thread.is_finished());
            for (desk, _) in desks.iter() {
                if lock(&desk.busy).is_some_and(|deadline| deadline < now) {
                    desk.given_up.store(true, Ordering::Release);
                }
            }
            let stuck = desks.iter().filter(|(desk, _)| desk.given_up.load(Ordering::Acquire));
            let stuck = stuck.count();
            (stuck, wanted.saturating_sub(desks.len() - stuck))
        };
        let cap = self.options.workers * STUCK_FACTOR;
        for _ in 0..missing.min(cap.saturating_sub(stuck)) {
            tracing::info!(stuck, "another worker for the token");
            self.hire();
        }
        (stuck >= cap).then(|| format!("{stuck} calls never came back from the token"))
    }

    fn publish(&self, health: Health) {
        self.health.send_if_modified(|current| {
            if *current == health {
                return false;
            }
            match &health {
                Health::Healthy => tracing::info!("the slot is healthy"),
                Health::Unhealthy(reason) => tracing::warn!(reason, "the slot is unhealthy"),
            }
            metrics::gauge!("strongroom_hsm_healthy").set(if health.is_healthy() {
                1.0
            } else {
                0.0
            });
            *current = health;
            true
        });
    }

    /// Waits for the workers, each no longer than a deadline, and releases the token unless one is
    /// still inside it: finalizing a module under a running call is worse than not finalizing it.
    fn release(&self) {
        let until = Instant::now() + self.options.deadline;
        let desks = std::mem::take(&mut *lock(&self.desks));
        for (_, thread) in desks {
            while !thread.is_finished() && Instant::now() < until {
                thread::sleep(Duration::from_millis(1));
            }
            if !thread.is_finished() {
                tracing::warn!(
                    "a call never came back from the token; the module is left as it is"
                );
                return;
            }
            let _ = thread.join();
        }
        self.hsm.close();
    }
}

/// Every call is counted and timed here, whoever asked.
pub(crate) fn record(name: &'static str, started: Instant, error: Option<&HsmError>) {
    let outcome = error.map_or("ok", HsmError::outcome);
    metrics::counter!("strongroom_hsm_operations_total", "op" => name, "outcome" => outcome)
        .increment(1);
    metrics::histogram!("strongroom_hsm_operation_seconds", "op" => name)
        .record(started.elapsed().as_secs_f64());
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Option<JoinHandle<()>> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(|error| tracing::error!(%error, "no thread can be started"))
        .ok()
}

/// What these locks guard is whole after every statement, so a panic elsewhere does not spoil it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;

    fn pool(workers: usize, queue: usize) -> (Arc<Fake>, Arc<Pool>) {
        let fake = Arc::new(Fake::default());
        let options = Options { workers, queue, deadline: Duration::from_millis(200) };
        (Arc::clone(&fake), Pool::start(fake, options))
    }

    fn random(pool: &Pool) -> Result<(), HsmError> {
        pool.ask("random", pool.deadline(), |session| session.random(1).map(drop))
    }

    fn until(mut there: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !there() {
            assert!(Instant::now() < end, "it never came");
            thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn a_call_that_hangs_ends_at_its_deadline_and_its_worker_is_replaced() {
        let (fake, pool) = pool(1, 16);
        fake.hang();
        assert_eq!(random(&pool), Err(HsmError::Deadline(pool.deadline())));
        // The hung call keeps its thread; a new one is hired and answers.
        fake.hang_no_more();
        until(|| random(&pool).is_ok());
        assert_eq!(fake.hanging(), 1);
        until(|| pool.health().borrow().is_healthy());
        fake.let_go();
        pool.stop();
        pool.join();
        assert!(fake.is_closed());
    }

    #[test]
    fn too_many_hung_calls_make_the_slot_unhealthy_until_they_come_back() {
        let (fake, pool) = pool(1, 16);
        fake.hang();
        until(
            || matches!(&*pool.health().borrow(), Health::Unhealthy(reason) if reason.contains("never came back")),
        );
        assert_eq!(fake.hanging(), STUCK_FACTOR, "replaced up to the cap");
        fake.hang_no_more();
        fake.let_go();
        until(|| pool.health().borrow().is_healthy());
        pool.stop();
        pool.join();
        assert!(fake.is_closed());
    }

    #[test]
    fn a_device_with_few_sessions_is_shared_by_fewer_workers() {
        let (fake, pool) = pool(4, 1024);
        fake.give(2);
        let asked = (0..64).map(|_| {
            let pool = Arc::clone(&pool);
            thread::spawn(move || random(&pool))
        });
        for answer in asked.collect::<Vec<_>>() {
            assert_eq!(answer.join().unwrap(), Ok(()), "no call is lost to a refused session");
        }
        assert!(fake.in_use() <= 2);
        fake.give(0);
        fake.fail_with(&[Fault::Session("closed".to_owned()), Fault::Session("closed".to_owned())]);
        until(|| random(&pool) == Err(HsmError::Device("SESSION_COUNT".to_owned())));
        fake.give(1);
        until(|| random(&pool).is_ok());
        pool.stop();
        pool.join();
    }

    #[test]
    fn a_module_with_a_call_inside_is_not_finalized() {
        let (fake, pool) = pool(1, 16);
        fake.hang();
        assert!(random(&pool).is_err());
        pool.stop();
        pool.join();
        assert!(!fake.is_closed());
        fake.let_go();
    }

    #[test]
    fn a_full_queue_refuses_and_a_closed_one_answers_all() {
        let (fake, pool) = pool(1, 2);
        fake.hang();
        let (answer, answers) = mpsc::channel();
        let job = || {
            let answer = answer.clone();
            let late = Instant::now() + Duration::from_mins(1);
            Job::new(
                late,
                |session| session.random(1).map(drop),
                move |result| {
                    let _ = answer.send(result);
                },
            )
        };
        pool.submit(job()).unwrap();
        until(|| fake.hanging() == 1);
        pool.submit(job()).unwrap();
        until(|| pool.submit(job()) == Err(HsmError::Busy));
        pool.stop();
        assert_eq!(answers.recv().unwrap(), Err(HsmError::Closed));
        assert_eq!(pool.submit(job()), Err(HsmError::Closed));
        fake.let_go();
        pool.join();
    }
}
