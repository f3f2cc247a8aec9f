//! The leader's side of a join: who may ask, what its slot has to prove, whose place it takes.
//!
//! A place is taken by a node of the same name. Whoever proves the member's own identity key has its
//! slot, and lost its volume: it may. Another slot says so (`strongroom join --replace`). Either way
//! the member must not answer any more, and the removal must not hurt what `survives`. The old one
//! goes in the same command in which the new one comes.

use std::time::Duration;

use domain::{
    Application, Change, ENROLMENT_FORMAT, Grant, Join, JoinStatus, KekEpoch, Member, NodeId,
    Receipt, Reject, Signature, Standing, Statement, Voucher, view,
};
use tokio::time::Instant;

use super::challenge::Asker;
use super::join::{Admission, Answer, Apply, Ask, Proof, Request, Ticket, Vouched};
use super::messages::Message;
use super::operators;
use crate::settings::unexpected;
use crate::{Custody, Error};

const PATIENCE: Duration = Duration::from_secs(5);
/// A member that still runs answers within this.
const ANSWERS: Duration = Duration::from_secs(1);

pub(super) async fn answer(custody: &Custody, spki: &[u8], request: Request) -> Answer {
    let asked = match request {
        Request::Ask(ask) => Asked::Plainly(*ask),
        Request::Apply(apply) => Asked::New(*apply),
        Request::Prove(proof) => Asked::Proved(*proof),
        Request::Vouch(vouched) => Asked::Vouched(*vouched),
        Request::Who
        | Request::Introduce(_)
        | Request::Format
        | Request::Operators
        | Request::Follow(_) => {
            return Answer::Refused("only a request to join is relayed".into());
        }
    };
    // The handshake proved `spki`; whoever asks for another key does not hold it.
    if asked.ask().identity != spki {
        return Answer::Refused("the identity key is not the one of the connection".into());
    }
    match custody.consider(&asked).await {
        Ok(answer) => answer,
        Err(
            error @ (Error::Forbidden
            | Error::AlreadyExists(_)
            | Error::Invalid(_)
            | Error::WrongState(_)
            | Error::Cryptographic
            | Error::NotFound(_)),
        ) => Answer::Refused(match error {
            Error::Forbidden => Reject::JoinRefused.to_string(),
            other => other.to_string(),
        }),
        Err(error) => Answer::Unavailable(error.to_string()),
    }
}

enum Asked {
    /// As before format 3.
    Plainly(Ask),
    New(Apply),
    Proved(Proof),
    Vouched(Vouched),
}

impl Asked {
    fn ask(&self) -> &Ask {
        match self {
            Self::Plainly(ask) => ask,
            Self::New(apply) => &apply.ask,
            Self::Proved(proof) => &proof.apply.ask,
            Self::Vouched(vouched) => &vouched.apply.ask,
        }
    }

    fn replaces(&self) -> bool {
        match self {
            Self::Plainly(_) => false,
            Self::New(apply) => apply.replace,
            Self::Proved(proof) => proof.apply.replace,
            Self::Vouched(vouched) => vouched.apply.replace,
        }
    }
}

/// What the state says to a request.
struct Known {
    format: u16,
    /// The last join of these keys by this token.
    join: Option<Join>,
    /// The token is as it should be, as far as its secret goes.
    allowed: bool,
    /// And it has uses left, time left, and is for this name and zone.
    usable: bool,
    /// The member of this name.
    namesake: Option<Member>,
    grant: Option<Grant>,
}

impl Custody {
    async fn consider(&self, asked: &Asked) -> Result<Answer, Error> {
        let ask = asked.ask();
        let ticket = Ticket::parse(&ask.token).ok_or(Error::Forbidden)?;
        let digest = crypto::sha256(ask.token.as_bytes());
        let until = Instant::now() + PATIENCE;
        self.replica().barrier(until).await?;
        let known = self.known(&ticket, &digest, ask)?;
        let mut lost = None;
        if let Some(join) = &known.join {
            match join.status {
                JoinStatus::AwaitingApproval => {
                    return self.awaiting(&known, join.clone(), asked, until).await;
                }
                JoinStatus::Approved if self.has_run(join.node)? => lost = Some(join.node),
                JoinStatus::Approved => return self.admission(join.node),
            }
        }
        // A stranger without a token writes nothing into the log.
        if !known.allowed {
            return Err(Error::Forbidden);
        }
        check_name(&ask.name)?;
        if known.format < ENROLMENT_FORMAT {
            return self.ask_plainly(&ticket, digest, ask, lost, until).await;
        }
        if !known.usable {
            return Err(Error::Forbidden);
        }
        let replaces = Self::place(&known, asked, lost)?;
        if let Some(replaced) = replaces {
            self.may_go(replaced).await?;
        }
        let asker = Asker {
            lineage: self.lineage(),
            name: &ask.name,
            enrolment: &ask.enrolment,
            identity: &ask.identity,
        };
        let Asked::Proved(Proof { challenge, sealed, .. }) = asked else {
            if matches!(asked, Asked::Plainly(_)) {
                let why = "it does not answer the challenge that format 3 asks for";
                return Err(Error::Invalid(why.into()));
            }
            return Ok(Answer::Challenge(Box::new(self.challenge(&asker).await?)));
        };
        if !self.is_answered(*challenge, &asker, sealed.clone()).await? {
            tracing::warn!(name = %ask.name, "a joiner's slot did not answer the challenge");
            let why = "its slot does not unwrap what is wrapped to its enrolment key: the challenge \
                       was not answered";
            return Err(Error::Invalid(why.into()));
        }
        let change = Change::ApplyToJoin(Box::new(Application {
            token: ticket.id,
            digest,
            name: ask.name.clone(),
            enrolment: ask.enrolment.clone(),
            identity: ask.identity.clone(),
            api_address: ask.api_address.clone(),
            peer_address: ask.peer_address.clone(),
            zone: ask.zone.clone(),
            replaces,
            proved_to: self.node_id(),
        }));
        self.asked(change, known.grant, until).await
    }

    fn known(&self, ticket: &Ticket, digest: &[u8; 32], ask: &Ask) -> Result<Known, Error> {
        self.replica().read(|view| {
            let cluster = view::cluster(view)?.ok_or(Error::NotLeader { leader: None })?;
            let is_of = |join: &Join| {
                join.token == ticket.id
                    && join.statement.identity == ask.identity
                    && join.statement.enrolment == ask.enrolment
            };
            let token = view::join_token(view, ticket.id)?
                .filter(|token| crypto::digest::equal(&token.digest, digest));
            let now = view::now(view)?;
            let members = view::present_members(view)?;
            Ok(Known {
                format: cluster.format,
                join: view::joins(view)?.into_iter().rfind(is_of),
                usable: token
                    .as_ref()
                    .is_some_and(|token| token.lets_ask(&ask.name, ask.zone.as_deref(), now)),
                allowed: token.is_some(),
                namesake: members.into_iter().find(|member| member.name == ask.name),
                grant: view::grant(view, ticket.id)?,
            })
        })
    }

    /// As programs before format 3 ask.
    async fn ask_plainly(
        &self,
        ticket: &Ticket,
        digest: [u8; 32],
        ask: &Ask,
        lost: Option<NodeId>,
        until: Instant,
    ) -> Result<Answer, Error> {
        if let Some(node) = lost {
            return Ok(Answer::Refused(format!(
                "node {node} ran before and lost its data directory: remove it, and join anew \
                 with another join token"
            )));
        }
        let change = Change::RequestJoin {
            token: ticket.id,
            digest,
            name: ask.name.clone(),
            enrolment: ask.enrolment.clone(),
            identity: ask.identity.clone(),
            api_address: ask.api_address.clone(),
            peer_address: ask.peer_address.clone(),
            zone: ask.zone.clone(),
        };
        self.asked(change, None, until).await
    }

    /// Writes down that a node asks, and answers where its join stands then.
    async fn asked(
        &self,
        change: Change,
        grant: Option<Grant>,
        until: Instant,
    ) -> Result<Answer, Error> {
        match self.change_cluster(change, until).await?.1 {
            Receipt::Join(join) => match join.status {
                JoinStatus::AwaitingApproval => Ok(awaits(*join, grant)),
                JoinStatus::Approved => self.admission(join.node),
            },
            other => Err(unexpected(&other)),
        }
    }

    /// Whose place the joiner takes.
    fn place(known: &Known, asked: &Asked, lost: Option<NodeId>) -> Result<Option<NodeId>, Error> {
        if lost.is_some() {
            return Ok(lost);
        }
        let Some(namesake) = &known.namesake else { return Ok(None) };
        let statement: Option<Statement> = domain::decode(&namesake.statement).ok();
        let ask = asked.ask();
        // The handshake proved it.
        let same_slot = statement.is_some_and(|statement| statement.identity == ask.identity);
        if same_slot || asked.replaces() {
            return Ok(Some(namesake.node));
        }
        Err(Error::AlreadyExists(format!(
            "the node {} is member {} with another slot, whose place is taken with `--replace` \
             only: it",
            ask.name, namesake.node
        )))
    }

    /// Whether a member's place may be taken: it is silent, and nothing gets worse without it.
    pub(super) async fn may_go(&self, node: NodeId) -> Result<(), Error> {
        let answers =
            node == self.node_id() || self.call(node, &Message::Clock, ANSWERS).await.is_ok();
        if answers {
            return Err(Error::WrongState(format!(
                "node {node} answers still: stop it first, then take its place"
            )));
        }
        let survey = self.survey().await?;
        match super::verbs::loses(&survey.halves, node) {
            Some(why) => Err(Error::WrongState(format!("node {node} is needed: {why}"))),
            None => Ok(()),
        }
    }

    async fn awaiting(
        &self,
        known: &Known,
        join: Join,
        asked: &Asked,
        until: Instant,
    ) -> Result<Answer, Error> {
        let (Asked::Vouched(Vouched { signature, .. }), Some(grant)) = (asked, &known.grant) else {
            return Ok(awaits(join, known.grant.clone()));
        };
        let node = join.node;
        if let Some(replaced) = self.replaced_by(node)? {
            self.may_go(replaced).await?;
        }
        let statement = join.statement.to_bytes();
        let by = operators::verify_grant(&self.pinned(), grant)
            .map_err(|refused| Error::Invalid(format!("the grant: {refused}")))?
            .key;
        let voucher = Voucher { grant: grant.clone(), signature: signature.clone() };
        let signatures = vec![Signature { by, bytes: domain::encode(&voucher) }];
        operators::verify_bytes(&self.pinned(), node, &statement, &signatures)
            .map_err(|refused| Error::Invalid(refused.to_string()))?;
        self.change_cluster(Change::AdmitGranted { node, statement, signatures }, until).await?;
        self.admitted(node)?;
        self.admission(node)
    }

    /// The member that goes when this node comes, if it is there still.
    pub(super) fn replaced_by(&self, node: NodeId) -> Result<Option<NodeId>, Error> {
        self.replica().read(|view| {
            let enrolment = view::enrolment(view, node)?;
            let Some(replaced) = enrolment.and_then(|enrolment| enrolment.replaces) else {
                return Ok(None);
            };
            let member = view::member(view, replaced)?;
            Ok(member
                .filter(|member| member.standing != Standing::Removed)
                .map(|member| member.node))
        })
    }

    /// What follows on the leader when a node was admitted.
    pub(super) fn admitted(&self, node: NodeId) -> Result<(), Error> {
        self.cluster_state().wake.notify_one();
        let enrolment = self.replica().read(|view| view::enrolment(view, node))?;
        if let Some(replaced) = enrolment.and_then(|enrolment| enrolment.replaces) {
            tracing::info!(%node, %replaced, "one came in the place of the other");
            self.peers().forget(replaced.0);
        }
        Ok(())
    }

    /// Whoever took a KEK has run: it may have voted and acknowledged entries, and would come back
    /// under its id with an empty log.
    fn has_run(&self, node: NodeId) -> Result<bool, Error> {
        let votes = self.replica().status().voters.iter().any(|half| half.contains(&node));
        let took = |epoch: &KekEpoch| epoch.acknowledged.contains(&node);
        let present = |member: &Member| member.standing != Standing::Removed;
        self.replica().read(|view| {
            let present = view::member(view, node)?.as_ref().is_some_and(present);
            Ok(present && (votes || view::epochs(view)?.iter().any(took)))
        })
    }

    fn admission(&self, node: NodeId) -> Result<Answer, Error> {
        self.replica().read(|view| {
            let cluster = view::cluster(view)?.ok_or(Error::NotLeader { leader: None })?;
            let members = view::present_members(view)?;
            if !members.iter().any(|member| member.node == node) {
                return Ok(Answer::Refused(format!("node {node} was removed")));
            }
            Ok(Answer::Admitted(Box::new(Admission {
                cluster: cluster.id,
                node,
                members,
                authority_pem: view::trusted_authorities(view)?.concat(),
            })))
        })
    }
}

fn awaits(join: Join, grant: Option<Grant>) -> Answer {
    let statement = join.statement;
    match grant {
        Some(grant) => Answer::Grantable { statement, grant },
        None => Answer::Pending { statement },
    }
}

fn check_name(name: &str) -> Result<(), Error> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 128 || !name.chars().all(fits) {
        let why = "a node's name must be 1 to 128 letters, digits, '-', '_' and '.'";
        return Err(Error::Invalid(why.into()));
    }
    Ok(())
}
