//! The certificate that callers see, where the operator brings none.
//!
//! It is renewed in time, and when another CA issues.
//!
//! The node makes the key, which never leaves it; the leader opens the CA's key for one signature.
//! Where it is kept and how it is put into service is `node`'s business.

use std::sync::Arc;
use std::time::Duration;

use domain::{Namespace, NodeId, view};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use tokio::sync::watch;
use x509_parser::pem::Pem;
use zeroize::Zeroizing;

use super::authority;
use super::messages::{Message, Reply, unexpected};
use crate::propose::now;
use crate::wrapping::{self, Bound};
use crate::{Custody, Error};

const RETRY: Duration = Duration::from_millis(250);
/// How often it is looked whether the CA is another one by now.
const LOOK: Duration = Duration::from_secs(2);
const MISTAKEN: Duration = Duration::from_mins(10);

#[derive(Clone, Debug, Default)]
pub struct CertificateOptions {
    /// Further names that callers use for this node: those of load balancers and services.
    pub names: Vec<String>,
    /// The certificate in use, PEM; renewed at two thirds of its life, at once when there is none.
    pub current_pem: Option<String>,
}

/// A certificate with its chain and its key, PEM.
pub struct Issued {
    pub chain_pem: String,
    pub key_pem: Zeroizing<String>,
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued").finish_non_exhaustive()
    }
}

/// Asks until there is a certificate, and again before it ends.
pub(super) async fn renew(custody: Custody, options: CertificateOptions) {
    let mut issued = options.current_pem;
    let mut due = issued.as_deref().and_then(renewal_at).unwrap_or(0);
    loop {
        let time = now().0 / 1000;
        if time < due && !custody.is_of_another_authority(issued.as_deref()) {
            tokio::time::sleep(LOOK.min(Duration::from_secs(due - time))).await;
            continue;
        }
        match custody.request_certificate(&options.names).await {
            Ok(fresh) => {
                due = renewal_at(&fresh.chain_pem).unwrap_or(0);
                issued = Some(fresh.chain_pem.clone());
                if due <= now().0 / 1000 {
                    tracing::error!("the cluster issued a certificate that is due already");
                    tokio::time::sleep(MISTAKEN).await;
                }
                custody.cluster_state().issued.send_replace(Some(Arc::new(fresh)));
                tracing::info!("a certificate for callers was issued");
                // A state that is behind takes the CA that just issued for another one.
                tokio::time::sleep(LOOK).await;
            }
            Err(error) => {
                tracing::debug!(%error, "no certificate yet");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

impl Custody {
    /// Each certificate that was issued to this node; it has to be put into service.
    pub fn certificate(&self) -> watch::Receiver<Option<Arc<Issued>>> {
        self.cluster_state().issued.subscribe()
    }

    /// Whether this chain is not of the CA that issues now, as far as this node's state tells.
    fn is_of_another_authority(&self, chain_pem: Option<&str>) -> bool {
        let current = self.replica().read(|view| view::authority(view)).ok().flatten();
        match (chain_pem, current) {
            (Some(chain), Some(current)) => !chain.ends_with(&current.certificate_pem),
            (None, _) | (_, None) => false,
        }
    }

    async fn request_certificate(&self, names: &[String]) -> Result<Issued, Error> {
        let failed = |error: rcgen::Error| Error::Internal(error.to_string());
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let spki = key.subject_public_key_info();
        match self.ask_leader(Message::Certify { spki, names: names.to_vec() }).await? {
            Reply::Certificate(chain_pem) => {
                Ok(Issued { chain_pem, key_pem: Zeroizing::new(key.serialize_pem()) })
            }
            other => Err(unexpected(&other)),
        }
    }
}

/// On the leader: signs for a member, for its own names and no other member's.
pub(super) async fn certify(
    custody: &Custody,
    node: NodeId,
    spki: &[u8],
    asked: &[String],
) -> Result<String, Error> {
    // A leader that lost its leadership unseen could sign for a node that was removed.
    custody.replica().barrier(tokio::time::Instant::now() + RETRY).await?;
    let found = custody.replica().read(|view| {
        let members = view::members(view)?;
        let authority = view::authority(view)?;
        let Some(authority) = authority else { return Ok(None) };
        let key = view::key(view, &Namespace::system(), &authority.key)?;
        let Some(key) = key else { return Ok(None) };
        let version = view::version(view, key.id, key.primary)?;
        Ok::<_, Error>(Some((members, authority, key, version)))
    })?;
    let missing = || Error::Internal("the cluster has no CA".into());
    let (members, authority, key, version) = found.ok_or_else(missing)?;
    let version = version.ok_or_else(missing)?;
    let member = members
        .iter()
        .find(|member| member.node == node && member.standing != domain::Standing::Removed)
        .ok_or_else(|| Error::NotFound(format!("node {node}")))?;
    let anothers =
        |name: &String| members.iter().any(|other| other.node != node && other.name == *name);
    // A member says itself where it is, so that is no better than what it asks for.
    let mut names = authority::names(&member.name, &member.api_address, asked);
    names.retain(|name| !anothers(name));
    let bound = Bound::of(custody.lineage(), &key, version.version);
    let wrapped = version.state.wrapped().ok_or_else(missing)?;
    let secret = wrapping::unwrap(custody.slot(), &bound, wrapped).await?;
    authority::issue(&authority.certificate_pem, &secret, &names, spki).map_err(Error::Internal)
}

/// Two thirds into the life of the first certificate, in seconds since the epoch.
fn renewal_at(chain_pem: &str) -> Option<u64> {
    let pem = Pem::iter_from_buffer(chain_pem.as_bytes()).next()?.ok()?;
    let certificate = pem.parse_x509().ok()?;
    let validity = certificate.validity();
    let (from, to) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    u64::try_from(from + (to - from) / 3 * 2).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_at_two_thirds() {
        let ca = authority::make().unwrap();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let spki = key.subject_public_key_info();
        let chain = authority::issue(&ca.certificate_pem, &ca.key, &["n1".into()], &spki).unwrap();
        let days = (renewal_at(&chain).unwrap() - now().0 / 1000) / (24 * 3600);
        assert!((18..=20).contains(&days), "{days} days of 30");
        assert_eq!(renewal_at("nonsense"), None);
    }
}
