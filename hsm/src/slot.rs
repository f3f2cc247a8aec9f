//! The facade: what the rest of the program may ask of its slot.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crypto::wrapped::Suite;
use crypto::{Sealed, SecretBytes};
use tokio::sync::{oneshot, watch};

use crate::contract::{Fault, Hsm, Session};
use crate::pool::{Job, Pool};
use crate::{
    Health, HsmError, Info, KekId, MadeEpoch, NodeKeys, OpenError, Options, TokenConfig, embedded,
    pkcs11,
};

/// Making an RSA key takes seconds on a small device.
const KEY_MAKING: Duration = Duration::from_mins(1);

/// The slot of this node. Cheap to clone; the last clone to go closes it.
#[derive(Clone)]
pub struct Slot {
    pool: Arc<Owner>,
}

/// A wrapped key that is to be moved to another KEK, and what it is bound to before and after.
#[derive(Clone, Debug)]
pub struct Rewrap {
    /// As [`Slot::unwrap`] takes it.
    pub sealed: Sealed,
    pub aad: Vec<u8>,
    pub aad_after: Vec<u8>,
}

/// Closes the pool when the last slot goes; the worker threads hold only the pool.
struct Owner(Arc<Pool>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.stop();
    }
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Slot").field(&self.info()).finish()
    }
}

impl Slot {
    /// Opens the token and logs in, once. Blocks for as long as that takes (some 100 ms).
    pub fn open(config: TokenConfig, options: Options) -> Result<Self, OpenError> {
        let hsm: Arc<dyn Hsm> = match config {
            TokenConfig::Embedded { path, pin } => Arc::new(embedded::Token::open(path, &pin)?),
            TokenConfig::Pkcs11(config) => Arc::new(pkcs11::Token::open(config)?),
        };
        Ok(Self { pool: Arc::new(Owner(Pool::start(hsm, options))) })
    }

    pub fn info(&self) -> Info {
        self.pool.0.info()
    }

    /// Finds the two keys of this node, or makes them. Keys whose attributes would let anything out
    /// are refused. From here on the identity key of this name signs and its enrolment key accepts.
    pub async fn node_keys(&self, name: &str) -> Result<NodeKeys, HsmError> {
        let name = name.to_owned();
        let asked = name.clone();
        let keys = self
            .call_within("node_keys", KEY_MAKING, move |session| session.node_keys(&asked))
            .await?;
        self.pool.0.set_name(name);
        Ok(keys)
    }

    /// ECDSA P-256 over SHA-256 of the message by the identity key; ASN.1 DER.
    pub async fn sign(&self, message: Vec<u8>) -> Result<Vec<u8>, HsmError> {
        let name = self.pool.0.name()?;
        self.call("sign", move |session| session.sign(&name, &message)).await
    }

    /// The same, for callers that can not wait asynchronously: the TLS handshake.
    pub fn sign_blocking(&self, message: &[u8]) -> Result<Vec<u8>, HsmError> {
        let name = self.pool.0.name()?;
        let message = message.to_vec();
        let limit = self.pool.0.deadline();
        self.pool.0.ask("sign", limit, move |session| session.sign(&name, &message))
    }

    /// Makes a KEK inside the token, wraps it to every recipient's enrolment key, and lets it go:
    /// afterwards it exists in the shares only, one of which should be this slot's own.
    pub async fn make_epoch(
        &self,
        kek: KekId,
        recipients: Vec<Vec<u8>>,
    ) -> Result<MadeEpoch, HsmError> {
        self.call("make_epoch", move |session| session.make_epoch(kek, &recipients)).await
    }

    /// Takes a KEK in for good, after it opened the canary. Doing it again is no harm.
    pub async fn accept_share(
        &self,
        kek: KekId,
        share: Vec<u8>,
        canary: Vec<u8>,
    ) -> Result<(), HsmError> {
        let name = self.pool.0.name()?;
        self.call("accept_share", move |session| session.accept_share(&name, kek, &share, &canary))
            .await
    }

    pub async fn holds(&self, kek: KekId) -> Result<bool, HsmError> {
        let name = self.pool.0.name().ok();
        self.call("holds", move |session| {
            let held = session.holds(kek)?;
            // A token that went away shows nothing, without an error. Then "no" is not an answer.
            if let Some(name) = name.as_deref().filter(|_| !held)
                && !session.is_present(name)?
            {
                return Err(Fault::Missing(HsmError::Device(GONE.to_owned())));
            }
            Ok(held)
        })
        .await
    }

    /// Destroys a KEK in this slot. One that is not there is forgotten already.
    pub async fn forget(&self, kek: KekId) -> Result<(), HsmError> {
        self.pool.0.drop_canary(kek);
        self.call("forget", move |session| session.forget(kek)).await
    }

    /// Whose IVs it wraps with; what it unwraps may be of any suite.
    pub fn suite(&self) -> Suite {
        self.pool.0.suite()
    }

    /// Wraps a key by AES-256-GCM under a fresh IV.
    pub async fn wrap(
        &self,
        kek: KekId,
        key: SecretBytes,
        aad: Vec<u8>,
    ) -> Result<Sealed, HsmError> {
        let pool = Arc::clone(&self.pool.0);
        self.call("wrap", move |session| {
            session.wrap(kek, &key, &aad).map_err(|fault| pool.sure(session, kek, fault))
        })
        .await
    }

    /// Makes a key of the token's random bytes and wraps it, as [`Slot::wrap`] does, in one call.
    pub async fn make_wrapped(
        &self,
        kek: KekId,
        length: usize,
        aad: Vec<u8>,
    ) -> Result<Sealed, HsmError> {
        let pool = Arc::clone(&self.pool.0);
        self.call("make_wrapped", move |session| {
            let key = session.random(length)?;
            session.wrap(kek, &key, &aad).map_err(|fault| pool.sure(session, kek, fault))
        })
        .await
    }

    /// [`HsmError::Integrity`] means that this blob is bad: the device was asked for its canary, and
    /// opened it.
    pub async fn unwrap(
        &self,
        kek: KekId,
        sealed: Sealed,
        aad: Vec<u8>,
    ) -> Result<SecretBytes, HsmError> {
        let pool = Arc::clone(&self.pool.0);
        self.call("unwrap", move |session| {
            session.unwrap(kek, &sealed, &aad).map_err(|fault| pool.sure(session, kek, fault))
        })
        .await
    }

    /// Unwraps blobs under one KEK and wraps them under another, all in one call: the key bytes never
    /// leave the worker. `None` stands for a blob that is bad, as [`HsmError::Integrity`] would say.
    pub async fn rewrap(
        &self,
        from: KekId,
        to: KekId,
        blobs: Vec<Rewrap>,
    ) -> Result<Vec<Option<Sealed>>, HsmError> {
        let pool = Arc::clone(&self.pool.0);
        self.call("rewrap", move |session| {
            let mut moved = Vec::with_capacity(blobs.len());
            for Rewrap { sealed, aad, aad_after } in &blobs {
                let unwrapped = session.unwrap(from, sealed, aad);
                match unwrapped.map_err(|fault| pool.sure(session, from, fault)) {
                    Ok(key) => {
                        let wrapped = session.wrap(to, &key, aad_after);
                        moved.push(Some(wrapped.map_err(|fault| pool.sure(session, to, fault))?));
                    }
                    Err(Fault::Final(HsmError::Integrity)) => moved.push(None),
                    Err(fault) => return Err(fault),
                }
            }
            Ok(moved)
        })
        .await
    }

    /// Random bytes of the token.
    pub async fn random(&self, length: usize) -> Result<SecretBytes, HsmError> {
        self.call("random", move |session| session.random(length)).await
    }

    /// What the health check opens each second; the last KEK that was given one is the one checked.
    pub fn set_canary(&self, kek: KekId, canary: Vec<u8>) {
        self.pool.0.set_canary(kek, canary);
    }

    pub fn health(&self) -> watch::Receiver<Health> {
        self.pool.0.health()
    }

    /// Ends the threads and releases the module, which has to happen before the process exits. Other
    /// clones of this slot answer [`HsmError::Closed`] from here on.
    pub async fn close(self) {
        let (done, wait) = oneshot::channel();
        let pool = Arc::clone(&self.pool.0);
        let closer = std::thread::Builder::new().name("hsm-close".to_owned()).spawn(move || {
            pool.stop();
            pool.join();
            let _ = done.send(());
        });
        if closer.is_ok() {
            let _ = wait.await;
        }
    }

    async fn call<T: Send + 'static>(
        &self,
        name: &'static str,
        attempt: impl FnMut(&mut dyn Session) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, HsmError> {
        self.call_within(name, self.pool.0.deadline(), attempt).await
    }

    async fn call_within<T: Send + 'static>(
        &self,
        name: &'static str,
        limit: Duration,
        attempt: impl FnMut(&mut dyn Session) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, HsmError> {
        let started = Instant::now();
        let (answer, wait) = oneshot::channel();
        let result = match self.pool.0.submit(Job::new(started + limit, attempt, move |result| {
            let _ = answer.send(result);
        })) {
            Err(refused) => Err(refused),
            Ok(()) => match tokio::time::timeout(limit, wait).await {
                Ok(Ok(result)) => result,
                Ok(Err(_)) => Err(HsmError::Closed),
                Err(_) => Err(HsmError::Deadline(limit)),
            },
        };
        crate::pool::record(name, started, result.as_ref().err());
        result
    }
}

pub(crate) const GONE: &str = "the token shows none of its keys";
