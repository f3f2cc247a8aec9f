//! The ladder of recoveries: what is done when an attempt fails, before the caller is told.
//!
//! Each rung is tried at most once for a call, cheap ones first, then the call is tried again. Which
//! rung a fault starts at follows from what it says about the device. A wrong PIN is never tried
//! again: the token refuses every later recovery itself.

use std::sync::Arc;
use std::time::Instant;

use crate::HsmError;
use crate::contract::{Fault, Hsm, Rung, Session};

/// A worker's place: the token, and the session this thread has with it.
pub(crate) struct Bench {
    hsm: Arc<dyn Hsm>,
    session: Option<(u64, Box<dyn Session>)>,
}

impl Bench {
    pub(crate) fn new(hsm: Arc<dyn Hsm>) -> Self {
        Self { hsm, session: None }
    }

    /// Sees to it that there is a session. Says so when the device gives none, and nothing of other
    /// faults, which belong to a call.
    pub(crate) fn refusal(&mut self) -> Option<String> {
        match self.session(self.hsm.generation()) {
            Err(Fault::Full(what)) => Some(what),
            Ok(_) | Err(_) => None,
        }
    }

    pub(crate) fn run<T>(
        &mut self,
        deadline: Instant,
        attempt: &mut dyn FnMut(&mut dyn Session) -> Result<T, Fault>,
    ) -> Result<T, HsmError> {
        let mut lowest = Some(Rung::Reopen);
        loop {
            let seen = self.hsm.generation();
            let fault = match self.session(seen).and_then(&mut *attempt) {
                Ok(value) => {
                    self.hsm.works();
                    return Ok(value);
                }
                Err(Fault::Final(error)) => return Err(error),
                Err(fault) => fault,
            };
            self.session = None;
            // Neither a login nor a new life of the module makes room for a session.
            if matches!(fault, Fault::Full(_)) && lowest > Some(Rung::Reopen) {
                return Err(fault.into_error());
            }
            let rung = match lowest {
                Some(lowest) if Instant::now() < deadline => lowest.max(start(&fault)),
                _ => return Err(fault.into_error()),
            };
            tracing::debug!(?fault, ?rung, "the token failed, trying to recover");
            lowest = self.climb(rung, seen)?;
        }
    }

    /// The session of this generation, or a new one. One of an older generation is dropped first, and
    /// the token knows whether to close it.
    fn session(&mut self, generation: u64) -> Result<&mut dyn Session, Fault> {
        let kept = self.session.take().filter(|(born, _)| *born == generation);
        let (_, session) = self.session.insert(match kept {
            Some(kept) => kept,
            None => (generation, self.hsm.session()?),
        });
        Ok(&mut **session)
    }

    /// Recovers by this rung, or by a higher one when it fails; gives the rung that is left.
    fn climb(&self, rung: Rung, seen: u64) -> Result<Option<Rung>, HsmError> {
        let mut rung = rung;
        loop {
            let above = match rung {
                Rung::Reopen => return Ok(Some(Rung::Relogin)),
                Rung::Relogin => Some(Rung::Reinitialize),
                Rung::Reinitialize => None,
            };
            match (self.hsm.recover(rung, seen), above) {
                (Ok(()), above) => return Ok(above),
                (Err(Fault::Final(error)), _) => return Err(error),
                (Err(_), Some(above)) => rung = above,
                (Err(fault), None) => return Err(fault.into_error()),
            }
        }
    }
}

fn start(fault: &Fault) -> Rung {
    match fault {
        Fault::Session(_) | Fault::Full(_) | Fault::Suspect(_) | Fault::Final(_) => Rung::Reopen,
        Fault::Missing(_) | Fault::Login(_) => Rung::Relogin,
        Fault::Device(_) => Rung::Reinitialize,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::fake::Fake;

    fn soon() -> Instant {
        Instant::now() + Duration::from_mins(1)
    }

    /// What one call does when its attempts end in these faults, and then in success.
    fn climbed(faults: &[Fault]) -> (Result<(), HsmError>, Vec<Rung>, usize) {
        let fake = Arc::new(Fake::default());
        fake.fail_with(faults);
        let mut bench = Bench::new(Arc::clone(&fake) as Arc<dyn Hsm>);
        let result = bench.run(soon(), &mut |session| session.random(1).map(drop));
        (result, fake.recoveries(), fake.sessions())
    }

    #[test]
    fn each_fault_starts_at_its_rung_and_goes_up_from_there() {
        use Rung::{Reinitialize, Relogin};
        let session = || Fault::Session("lost".to_owned());
        let login = || Fault::Login("out".to_owned());
        let device = || Fault::Device("broken".to_owned());
        let gone = || Fault::Missing(HsmError::NoIdentity);
        let full = || Fault::Full("SESSION_COUNT".to_owned());
        let stories: [(&[Fault], &[Rung], usize); 8] = [
            (&[], &[], 1),
            (&[session()], &[], 2),
            (&[full()], &[], 2),
            (&[login()], &[Relogin], 2),
            (&[gone()], &[Relogin], 2),
            (&[device()], &[Reinitialize], 2),
            (&[session(), session(), session()], &[Relogin, Reinitialize], 4),
            (&[gone(), gone()], &[Relogin, Reinitialize], 3),
        ];
        for (faults, rungs, sessions) in stories {
            let expected = (Ok(()), rungs.to_vec(), sessions);
            assert_eq!(climbed(faults), expected, "{faults:?}");
        }
    }

    #[test]
    fn the_ladder_ends() {
        let fault = || Fault::Device("broken".to_owned());
        let (result, rungs, _) = climbed(&[fault(), fault()]);
        assert_eq!(result, Err(HsmError::Device("broken".to_owned())));
        assert_eq!(rungs, [Rung::Reinitialize]);
    }

    #[test]
    fn a_full_device_is_not_disturbed() {
        let fault = || Fault::Full("SESSION_COUNT".to_owned());
        let (result, rungs, _) = climbed(&[fault(), fault()]);
        assert_eq!(result, Err(HsmError::Device("SESSION_COUNT".to_owned())));
        assert_eq!(rungs, []);
    }

    #[test]
    fn what_is_final_is_not_tried_again() {
        let (result, rungs, sessions) = climbed(&[Fault::Final(HsmError::Integrity)]);
        assert_eq!((result, rungs, sessions), (Err(HsmError::Integrity), Vec::new(), 1));
    }

    #[test]
    fn a_deadline_ends_the_climb() {
        let fake = Arc::new(Fake::default());
        fake.fail_with(&[Fault::Device("slow".to_owned())]);
        let mut bench = Bench::new(Arc::clone(&fake) as Arc<dyn Hsm>);
        let result = bench.run(Instant::now(), &mut |session| session.random(1).map(drop));
        assert_eq!(result, Err(HsmError::Device("slow".to_owned())));
        assert!(fake.recoveries().is_empty());
    }

    /// A refused PIN is final: the rung above would log in again.
    #[test]
    fn a_refused_pin_ends_the_climb() {
        let fake = Arc::new(Fake::default());
        fake.fail_with(&[Fault::Login("out".to_owned())]);
        let refused = HsmError::Device("the PIN is wrong".to_owned());
        fake.refuse_recovery(Fault::Final(refused.clone()));
        let mut bench = Bench::new(Arc::clone(&fake) as Arc<dyn Hsm>);
        let result = bench.run(soon(), &mut |session| session.random(1).map(drop));
        assert_eq!(result, Err(refused));
        assert_eq!(fake.recoveries(), [Rung::Relogin]);
    }
}
