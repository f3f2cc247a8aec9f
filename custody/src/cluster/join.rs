//! How a node becomes a member: it asks with a token, an operator signs, and both sides verify.
//!
//! The joiner trusts nothing but its token, which names the lineage and the digest of the operators'
//! keys. Before it shows the token to a server it checks that these operators signed for the key that
//! the server just proved in the handshake. The cluster trusts the key that the joiner proved in
//! the same handshake, and an operator who compares its fingerprint.
//!
//! A token lets a node ask. It admits nobody, unless operators signed a grant for it.

use std::time::Duration;

use crypto::sign::{GRANTED_MEMBER, OperatorKey};
use domain::{
    ClusterId, ENROLMENT_FORMAT, FORMAT_OLDEST, Grant, Lineage, Member, NodeId, Operators,
    OperatorsLink, OperatorsStatement, Standing, Statement, TokenId, view,
};
use hsm::{HsmError, NodeKeys, Slot};
use peers::{Bytes, CallError, Caller, Introduction, Peers, Refusal};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::challenge::{Asker, Challenge};
use super::messages::{Message, Reply, unexpected};
use super::operators::{self, Pinned, Refused};
use super::{SlotIdentity, admission, challenge};
use crate::{Custody, Error};

const POLL: Duration = Duration::from_millis(500);
const CALL: Duration = Duration::from_secs(5);

#[derive(Deserialize, Serialize)]
pub(super) enum Request {
    /// Who are you? Asked before anything is shown.
    Who,
    Ask(Box<Ask>),
    /// A member that the server's state does not know yet brings its signed statement, and others'.
    Introduce(Vec<Member>),
    /// In which format is the state? Programs before format 2 do not know the question.
    Format,
    /// As of format 3: whoever asks for the first time is given a challenge.
    Apply(Box<Apply>),
    Prove(Box<Proof>),
    /// The joiner's own statement, signed with the key of its token's grant.
    Vouch(Box<Vouched>),
    /// How did the operators change? Asked in format 3 and later.
    Operators,
    /// Before `Introduce`, by a member whom others signed for than those the server knows.
    Follow(Vec<OperatorsLink>),
}

#[derive(Debug, Deserialize, Serialize)]
pub(super) enum Answer {
    /// The server, as the operators signed for it.
    Presence {
        operators: Operators,
        member: Box<Member>,
    },
    Pending {
        statement: Statement,
    },
    Admitted(Box<Admission>),
    Introduced,
    /// For good.
    Refused(String),
    /// For now.
    Unavailable(String),
    Format {
        current: u16,
    },
    /// Nobody is shown to an operator before its slot answered.
    Challenge(Box<Challenge>),
    /// As `Pending`, under a grant: whoever has its key may sign.
    Grantable {
        statement: Statement,
        grant: Grant,
    },
    Operators {
        links: Vec<OperatorsLink>,
    },
}

#[derive(Deserialize, Serialize)]
pub(super) struct Ask {
    /// Without the private half of a grant's key, which is the joiner's alone.
    pub(super) token: String,
    pub(super) name: String,
    pub(super) enrolment: Vec<u8>,
    pub(super) identity: Vec<u8>,
    pub(super) api_address: String,
    pub(super) peer_address: String,
    pub(super) zone: Option<String>,
}

#[derive(Deserialize, Serialize)]
pub(super) struct Apply {
    pub(super) ask: Ask,
    /// A member of this name whose slot is lost goes when this node comes.
    pub(super) replace: bool,
}

#[derive(Deserialize, Serialize)]
pub(super) struct Proof {
    pub(super) apply: Apply,
    pub(super) challenge: [u8; 16],
    pub(super) sealed: Vec<u8>,
}

#[derive(Deserialize, Serialize)]
pub(super) struct Vouched {
    pub(super) apply: Apply,
    pub(super) signature: Vec<u8>,
}

#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Admission {
    pub(super) cluster: ClusterId,
    pub(super) node: NodeId,
    pub(super) members: Vec<Member>,
    pub(super) authority_pem: String,
}

/// A node that is not a member yet, as it wants to be known.
#[derive(Clone, Debug)]
pub struct Newcomer {
    pub name: String,
    pub api_address: String,
    pub peer_address: String,
    pub zone: Option<String>,
    /// The newest format of the state that it reads.
    pub format_max: u16,
    /// Take the place of the member of this name, whose slot is lost. Whoever has the slot of the
    /// member, and not its data, does so unasked.
    pub replace: bool,
}

/// What the joiner shows while it waits.
#[derive(Clone, Debug, PartialEq)]
pub enum Progress {
    /// No server answered as it should; it goes on trying.
    Waiting { why: String },
    /// An operator has to compare this fingerprint and sign.
    Pending { node: NodeId, fingerprint: String },
}

/// A member, though no replica runs yet: what `node` writes down before it starts one.
#[derive(Clone, Debug)]
pub struct Admitted {
    pub cluster: ClusterId,
    pub node: NodeId,
    pub pinned: Pinned,
    /// Verified; the seeds of the roster.
    pub members: Vec<Member>,
    pub authority_pem: String,
}

#[derive(Debug, Error)]
pub enum JoinError {
    #[error("the join token is malformed")]
    Token,
    #[error("the slot: {0}")]
    Slot(#[from] HsmError),
    #[error("the peers' wire: {0}")]
    Peers(#[from] peers::SetupError),
    #[error("the cluster refuses: {0}")]
    Refused(String),
    #[error("not admitted in time: {0}")]
    Deadline(String),
}

/// A join token's text: `sj.<id>.<secret>.<lineage>.<digest of the operators>`, and of one that
/// admits, the private half of its grant's key after it.
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) id: TokenId,
    lineage: Lineage,
    operators: [u8; 32],
    key: Option<OperatorKey>,
}

impl Ticket {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let parts: Vec<_> = text.split('.').collect();
        let (id, secret, lineage, digest, key) = match parts.as_slice() {
            ["sj", id, secret, lineage, digest] => (id, secret, lineage, digest, None),
            ["sj", id, secret, lineage, digest, seed] => {
                let mut key = Zeroizing::new([0; 32]);
                hex::decode_to_slice(seed, key.as_mut()).ok()?;
                (id, secret, lineage, digest, Some(OperatorKey::from_seed(&key)))
            }
            _ => return None,
        };
        let mut operators = [0; 32];
        hex::decode_to_slice(digest, &mut operators).ok()?;
        if secret.is_empty() {
            return None;
        }
        Some(Self { id: TokenId::parse(id)?, lineage: Lineage::parse(lineage)?, operators, key })
    }

    /// What is shown to the cluster of a token's text.
    fn shown(&self, text: &str) -> String {
        let most = if self.key.is_some() { 5 } else { usize::MAX };
        text.split('.').take(most).collect::<Vec<_>>().join(".")
    }
}

/// What follows `sj.<id>.<secret>` in a join token.
pub(super) fn token_tail(pinned: &Pinned) -> String {
    format!(".{}.{}", pinned.lineage, hex::encode(operators::digest(&pinned.operators)))
}

// The server's side.

impl Custody {
    /// Answers on the join lane. The caller proved its key in the handshake; it may be a member by
    /// now, who was admitted since it asked last.
    pub async fn handle_join(&self, from: Caller, request: &[u8]) -> Result<Vec<u8>, Refusal> {
        let spki = match from {
            Caller::Stranger { spki } => spki,
            Caller::Member(node) => {
                let peer = self.cluster_state().roster().peer(NodeId(node));
                let gone = || Refusal::Denied(format!("node {node} was removed"));
                peer.ok_or_else(gone)?.statement.identity
            }
        };
        let asked = domain::decode(request).map_err(|error| Refusal::Invalid(error.to_string()))?;
        let answer = match asked {
            Request::Who => self.presence(),
            Request::Format => self.format(),
            Request::Operators => self.operators_links(),
            Request::Follow(links) => {
                self.cluster_state().roster().follow(&links);
                Answer::Introduced
            }
            Request::Introduce(members) => self.meet(&spki, members),
            asked @ (Request::Ask(_)
            | Request::Apply(_)
            | Request::Prove(_)
            | Request::Vouch(_)) => {
                if self.is_leader() {
                    admission::answer(self, &spki, asked).await
                } else {
                    self.relay(&spki, request).await
                }
            }
        };
        Ok(domain::encode(&answer))
    }

    fn presence(&self) -> Answer {
        match self.replica().read(|view| view::member(view, self.node_id())) {
            Ok(Some(member)) => Answer::Presence {
                operators: self.pinned().operators.clone(),
                member: Box::new(Member {
                    api_address: String::new(),
                    peer_address: String::new(),
                    zone: None,
                    ..member
                }),
            },
            Ok(None) => Answer::Unavailable("this node does not know the cluster yet".into()),
            Err(broken) => Answer::Unavailable(broken.to_string()),
        }
    }

    fn operators_links(&self) -> Answer {
        match self.replica().read(|view| view::operators_links(view)) {
            Ok(links) => Answer::Operators { links },
            Err(broken) => Answer::Unavailable(broken.to_string()),
        }
    }

    fn format(&self) -> Answer {
        match self.replica().read(|view| view::cluster(view)) {
            Ok(Some(cluster)) => Answer::Format { current: cluster.format },
            Ok(None) => Answer::Unavailable("this node does not know the cluster yet".into()),
            Err(broken) => Answer::Unavailable(broken.to_string()),
        }
    }

    /// Who is signed for is a member, unless this node's own state says that it was removed.
    fn meet(&self, spki: &[u8], members: Vec<Member>) -> Answer {
        let names = |member: &&Member| {
            domain::decode::<Statement>(&member.statement)
                .is_ok_and(|statement| statement.identity == spki)
        };
        // One statement is verified for a stranger, however many it brings.
        let named = members.iter().find(names);
        if named.is_none_or(|member| operators::verify(&self.pinned(), member).is_err()) {
            return Answer::Refused("no operator signed for this key".into());
        }
        if named.is_some_and(|member| !self.cluster_state().roster().may_be_ours(member.node)) {
            return Answer::Refused(
                "this cluster took the place of yours: empty the node and let it join".into(),
            );
        }
        self.cluster_state().roster().introduce(members);
        Answer::Introduced
    }

    async fn relay(&self, spki: &[u8], request: &[u8]) -> Answer {
        let message = Message::JoinRelay { spki: spki.to_vec(), request: request.to_vec() };
        let answer = match self.ask_leader(message).await {
            Ok(Reply::Join(answer)) => {
                domain::decode(&answer).map_err(|error| Error::Internal(error.to_string()))
            }
            Ok(other) => Err(unexpected(&other)),
            Err(error) => Err(error),
        };
        answer.unwrap_or_else(|error| Answer::Unavailable(error.to_string()))
    }
}

// The joiner's side.

/// Asks until it is admitted, refused, or out of time. `addresses` are peer addresses of members.
pub async fn join(
    slot: &Slot,
    token: &str,
    addresses: &[String],
    me: &Newcomer,
    deadline: Instant,
    mut progress: impl FnMut(Progress),
) -> Result<Admitted, JoinError> {
    let ticket = Ticket::parse(token).ok_or(JoinError::Token)?;
    let keys = slot.node_keys(&me.name).await?;
    let identity = SlotIdentity::new(slot.clone(), keys.identity_spki.clone());
    let peers = Peers::new(
        std::sync::Arc::new(identity),
        std::sync::Arc::new(Nobody),
        peers::Options::default(),
    )?;
    let asking = Asking { slot, ticket, token, keys, me };
    let mut told = None;
    let mut why = "no address was given".to_owned();
    loop {
        for address in addresses {
            let now = match asking.ask(&peers, address).await {
                Ok(Heard::Admitted(admitted)) => return Ok(*admitted),
                Ok(Heard::Refused(why)) => return Err(JoinError::Refused(why)),
                Ok(Heard::Pending(node)) => {
                    let fingerprint = Statement::fingerprint_of(
                        &asking.keys.enrolment_spki,
                        &asking.keys.identity_spki,
                    );
                    why = format!("node {node} awaits an operator's signature");
                    Progress::Pending { node, fingerprint }
                }
                Err(failed) => {
                    why = format!("{address}: {failed}");
                    Progress::Waiting { why: why.clone() }
                }
            };
            let pending = matches!(now, Progress::Pending { .. });
            if told.as_ref() != Some(&now) {
                progress(now.clone());
                told = Some(now);
            }
            if pending {
                break;
            }
        }
        if Instant::now() + POLL >= deadline {
            return Err(JoinError::Deadline(why));
        }
        tokio::time::sleep(POLL).await;
    }
}

struct Asking<'a> {
    slot: &'a Slot,
    ticket: Ticket,
    token: &'a str,
    keys: NodeKeys,
    me: &'a Newcomer,
}

enum Heard {
    Pending(NodeId),
    Admitted(Box<Admitted>),
    Refused(String),
}

/// Why a server was not believed, or could not be asked. Another may do better.
#[derive(Debug, Error)]
enum Doubt {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("its answer does not decode")]
    Malformed,
    #[error("it is not of the cluster that the token names: {0}")]
    Foreign(&'static str),
    #[error("it is not signed for: {0}")]
    Unsigned(#[from] Refused),
    #[error("it answered something else")]
    Unexpected,
    #[error("{0}")]
    Unavailable(String),
    #[error("this slot does not answer the leader's challenge: {0}")]
    Slot(#[from] HsmError),
}

impl Asking<'_> {
    async fn ask(&self, peers: &Peers, address: &str) -> Result<Heard, Doubt> {
        let deadline = Instant::now() + CALL;
        let server = peers.introduce(address, deadline).await?;
        let who = tell(&server, &Request::Who, deadline).await?;
        let Answer::Presence { operators, member } = who else { return Err(Doubt::Unexpected) };
        let current = self.format(&server, deadline).await?;
        if let Err(newer) = domain::readable(current, self.me.format_max) {
            return Ok(Heard::Refused(newer.to_string()));
        }
        let links = if current < ENROLMENT_FORMAT {
            Vec::new()
        } else {
            let changes = tell(&server, &Request::Operators, deadline).await?;
            let Answer::Operators { links } = changes else { return Err(Doubt::Unexpected) };
            links
        };
        let pinned = self.ticket.pins(&operators, &links)?;
        Ticket::believe(&pinned, &member, &server.server_spki)?;
        // Only now is the token shown.
        let request = if current < ENROLMENT_FORMAT {
            Request::Ask(Box::new(self.question()))
        } else {
            Request::Apply(Box::new(self.application()))
        };
        let mut answer = tell(&server, &request, deadline).await?;
        if let Answer::Challenge(challenge) = answer {
            let sealed = challenge::answer(self.slot, &challenge, &self.asker()).await?;
            let (apply, challenge) = (self.application(), challenge.id);
            let request = Request::Prove(Box::new(Proof { apply, challenge, sealed }));
            answer = tell(&server, &request, deadline).await?;
        }
        if let Answer::Grantable { statement, grant } = answer {
            self.is_mine(&pinned, &statement)?;
            operators::verify_grant(&pinned, &grant)?;
            let Some(key) = &self.ticket.key else { return Ok(Heard::Pending(statement.node)) };
            let signature = key.sign(GRANTED_MEMBER, &statement.to_bytes()).to_vec();
            let apply = self.application();
            let request = Request::Vouch(Box::new(Vouched { apply, signature }));
            answer = tell(&server, &request, deadline).await?;
        }
        match answer {
            Answer::Pending { statement } => {
                self.is_mine(&pinned, &statement)?;
                Ok(Heard::Pending(statement.node))
            }
            Answer::Admitted(admission) => {
                self.accept(pinned, *admission).map(|admitted| Heard::Admitted(Box::new(admitted)))
            }
            Answer::Refused(why) => Ok(Heard::Refused(why)),
            Answer::Presence { .. }
            | Answer::Introduced
            | Answer::Unavailable(_)
            | Answer::Format { .. }
            | Answer::Challenge(_)
            | Answer::Operators { .. }
            | Answer::Grantable { .. } => Err(Doubt::Unexpected),
        }
    }

    fn question(&self) -> Ask {
        Ask {
            token: self.ticket.shown(self.token),
            name: self.me.name.clone(),
            enrolment: self.keys.enrolment_spki.clone(),
            identity: self.keys.identity_spki.clone(),
            api_address: self.me.api_address.clone(),
            peer_address: self.me.peer_address.clone(),
            zone: self.me.zone.clone(),
        }
    }

    fn application(&self) -> Apply {
        Apply { ask: self.question(), replace: self.me.replace }
    }

    fn asker(&self) -> Asker<'_> {
        Asker {
            lineage: self.ticket.lineage,
            name: &self.me.name,
            enrolment: &self.keys.enrolment_spki,
            identity: &self.keys.identity_spki,
        }
    }

    /// The format of the cluster's state. Whoever does not know the question knows one format.
    async fn format(&self, server: &Introduction, deadline: Instant) -> Result<u16, Doubt> {
        match tell(server, &Request::Format, deadline).await {
            Err(Doubt::Call(CallError::Refused(Refusal::Invalid(_)))) => Ok(FORMAT_OLDEST),
            answer => {
                let Answer::Format { current } = answer? else { return Err(Doubt::Unexpected) };
                Ok(current)
            }
        }
    }

    fn accept(&self, pinned: Pinned, admission: Admission) -> Result<Admitted, Doubt> {
        let Admission { cluster, node, members, authority_pem } = admission;
        let own = members
            .iter()
            .find(|member| member.node == node)
            .ok_or(Doubt::Foreign("this node is not among its members"))?;
        self.is_mine(&pinned, &operators::verify(&pinned, own)?)?;
        let believed = |member: &Member| operators::verify(&pinned, member).is_ok();
        let members = members.into_iter().filter(believed).collect();
        Ok(Admitted { cluster, node, pinned, members, authority_pem })
    }

    /// Whether a statement says exactly what was asked.
    fn is_mine(&self, pinned: &Pinned, statement: &Statement) -> Result<(), Doubt> {
        let same = statement.lineage == pinned.lineage
            && statement.name == self.me.name
            && statement.enrolment == self.keys.enrolment_spki
            && statement.identity == self.keys.identity_spki;
        if same { Ok(()) } else { Err(Doubt::Foreign("its statement is not about this node")) }
    }
}

impl Ticket {
    /// The operators that the token names, or those after them: pins begin with the token's, and move
    /// along signed changes. Where the token names operators that came by a change, that change is
    /// signed by all of them, so it says what else they stand by.
    fn pins(&self, operators: &Operators, links: &[OperatorsLink]) -> Result<Pinned, Doubt> {
        let named = |operators: &Operators| operators::digest(operators) == self.operators;
        let came = links
            .iter()
            .rev()
            .filter_map(|link| operators::proved_link(self.lineage, link).ok())
            .find(|statement| named(&statement.after));
        let began = || {
            let first = domain::decode::<OperatorsStatement>(&links.first()?.statement).ok()?;
            named(&first.before).then(|| Pinned::first(self.lineage, first.before))
        };
        let pinned = match came {
            Some(statement) => Some(Pinned::of_link(self.lineage, statement)),
            None => began(),
        };
        let unchanged = || named(operators).then(|| Pinned::first(self.lineage, operators.clone()));
        let pinned = pinned.or_else(unchanged);
        Ok(pinned.ok_or(Doubt::Foreign("the token names other operators"))?.after(links))
    }

    /// Believes a server if the operators signed for the key that it proved.
    fn believe(pinned: &Pinned, member: &Member, proved: &[u8]) -> Result<(), Doubt> {
        let statement = operators::verify(pinned, member)?;
        if member.standing == Standing::Removed {
            return Err(Doubt::Foreign("it was removed"));
        }
        if statement.identity != proved {
            return Err(Doubt::Foreign("its key is not the one that is signed for"));
        }
        Ok(())
    }
}

/// Asks a server, which may say that it can not answer now.
async fn tell(
    server: &Introduction,
    request: &Request,
    deadline: Instant,
) -> Result<Answer, Doubt> {
    let bytes = Zeroizing::new(domain::encode(request));
    let answer = server.call(Bytes::copy_from_slice(&bytes), deadline).await?;
    match domain::decode(&answer).map_err(|_| Doubt::Malformed)? {
        Answer::Unavailable(why) => Err(Doubt::Unavailable(why)),
        answer => Ok(answer),
    }
}

/// A joiner admits nobody.
#[derive(Debug)]
struct Nobody;

impl peers::Roster for Nobody {
    fn node(&self, _: &[u8]) -> Option<peers::NodeId> {
        None
    }

    fn spki(&self, _: peers::NodeId) -> Option<Vec<u8>> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::operators::tests::{LINEAGE, member, operators, statement};
    use super::*;

    fn ticket(pinned: &Pinned) -> Ticket {
        let text = format!("sj.{}.c2VjcmV0{}", TokenId([3; 16]), token_tail(pinned));
        Ticket::parse(&text).unwrap()
    }

    #[test]
    fn a_join_token_names_the_cluster() {
        let (_, pinned) = operators(1, 1);
        let ticket = ticket(&pinned);
        assert_eq!((ticket.id, ticket.lineage), (TokenId([3; 16]), LINEAGE));
        assert_eq!(ticket.operators, operators::digest(&pinned.operators));
        let tail = token_tail(&pinned);
        for text in ["", "sj", "sj.x.y", "sr.00.00", &format!("sj.{}.{tail}", TokenId([3; 16]))] {
            assert!(Ticket::parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn a_server_is_believed_for_the_key_it_proved_and_nothing_else() {
        let (keys, pinned) = operators(1, 1);
        let (strangers, foreign) = operators(1, 1);
        let ticket = ticket(&pinned);
        let server = statement(1);
        let signed = member(&server, &[&keys[0]]);
        let believe = |operators: &Operators, member: &Member, proved: &[u8]| {
            ticket
                .pins(operators, &[])
                .is_ok_and(|pinned| Ticket::believe(&pinned, member, proved).is_ok())
        };
        let ours = &pinned.operators;
        assert!(believe(ours, &signed, &server.identity));
        assert!(!believe(ours, &signed, &[2, 2]), "a stolen record, another key");
        let imposter = member(&server, &[&strangers[0]]);
        assert!(!believe(ours, &imposter, &server.identity), "signed by a stranger");
        assert!(!believe(&foreign.operators, &imposter, &server.identity), "other operators");
        let elsewhere = Statement { lineage: Lineage([9; 16]), ..server.clone() };
        let elsewhere = member(&elsewhere, &[&keys[0]]);
        assert!(!believe(ours, &elsewhere, &server.identity), "another lineage");
        let removed = Member { standing: Standing::Removed, ..signed };
        assert!(!believe(ours, &removed, &server.identity), "a removed member");
    }

    #[test]
    fn an_admission_is_taken_only_for_what_was_asked() {
        let (keys, pinned) = operators(1, 1);
        let me = Newcomer {
            name: "n2".into(),
            api_address: String::new(),
            peer_address: String::new(),
            zone: None,
            format_max: domain::FORMAT,
            replace: false,
        };
        let mine = statement(2);
        let node_keys = NodeKeys {
            enrolment_spki: mine.enrolment.clone(),
            identity_spki: mine.identity.clone(),
        };
        let dir = tempfile::tempdir().unwrap();
        let token = hsm::TokenConfig::Embedded {
            path: dir.path().join("token"),
            pin: secrecy::SecretString::from("1234"),
        };
        let slot = Slot::open(token, hsm::Options::default()).unwrap();
        let asking =
            Asking { slot: &slot, ticket: ticket(&pinned), token: "", keys: node_keys, me: &me };
        let admission = |own: Member| Admission {
            cluster: ClusterId([1; 16]),
            node: NodeId(2),
            members: vec![member(&statement(1), &[&keys[0]]), own],
            authority_pem: String::new(),
        };
        let taken = |own| asking.accept(pinned.clone(), admission(own)).is_ok();
        assert!(taken(member(&mine, &[&keys[0]])));
        assert!(!taken(member(&mine, &[])), "nobody signed");
        let swapped = Statement { enrolment: vec![9], ..mine.clone() };
        assert!(!taken(member(&swapped, &[&keys[0]])), "the enrolment key was swapped");
        assert!(!taken(member(&statement(3), &[&keys[0]])), "it is about another node");
    }
}
