//! The handle: call members, send them uploads, introduce this node to a stranger, serve.

use std::fmt;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::connection::Connection;
use crate::dial::dial;
use crate::error::{CallError, NotSent, SetupError};
use crate::pool::Pool;
use crate::serve::{self, Inbound};
use crate::tls::{Expect, Tls};
use crate::{Identity, Lane, NodeId, Options, Pace, Roster, Service, upload};

/// This node among its peers. Clones share their connections.
#[derive(Clone)]
pub struct Peers(Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) tls: Tls,
    pub(crate) roster: Arc<dyn Roster>,
    pub(crate) options: Options,
    pub(crate) pool: Pool,
    pub(crate) inbound: Inbound,
}

/// A connection to a server that nobody has vouched for yet. What its first answer proves decides
/// whether `server_spki` is believed.
#[derive(Debug)]
pub struct Introduction {
    pub server_spki: Vec<u8>,
    connection: Connection,
}

impl Peers {
    pub fn new(
        identity: Arc<dyn Identity>,
        roster: Arc<dyn Roster>,
        options: Options,
    ) -> Result<Self, SetupError> {
        options.check()?;
        let tls = Tls::new(identity, &roster)?;
        let (pool, inbound) = (Pool::default(), Inbound::default());
        Ok(Self(Arc::new(Inner { tls, roster, options, pool, inbound })))
    }

    /// Serves until told to stop, or dropped; then takes no more, lets running calls end within
    /// [`Options::drain_timeout`], and returns.
    pub async fn serve(
        &self,
        listener: TcpListener,
        service: Arc<dyn Service>,
        stop: CancellationToken,
    ) {
        serve::serve(Arc::clone(&self.0), listener, service, &stop).await;
    }

    /// One request to a member, on any lane but snapshot.
    ///
    /// Dropping the future withdraws the request if it has not left.
    pub async fn call(
        &self,
        to: NodeId,
        address: &str,
        lane: Lane,
        request: Bytes,
        deadline: Instant,
    ) -> Result<Bytes, CallError> {
        if lane == Lane::Snapshot {
            return Err(NotSent::WrongLane.into());
        }
        let mut again = true;
        loop {
            let connection = Pool::connection(&self.0, to, address, lane, deadline).await?;
            match connection.call(request.clone(), deadline).await {
                // Found closed before the request left: once more, on a new connection.
                Err(CallError::NotSent(NotSent::Closed)) if again => again = false,
                outcome => return outcome,
            }
        }
    }

    /// One upload to a member, on a connection of its own. The receiver sets the pace; chunks may
    /// arrive cut smaller. Dropping the future closes the connection, which the receiver sees as
    /// an error. Once connected, only the receiver's refusal is definite.
    pub async fn send(
        &self,
        to: NodeId,
        address: &str,
        header: Bytes,
        body: impl Stream<Item = io::Result<Bytes>> + Send,
        pace: Pace,
    ) -> Result<Bytes, CallError> {
        let spki = self.0.roster.spki(to).ok_or(NotSent::NoSuchNode(to))?;
        let (tls, options) = (&self.0.tls, &self.0.options);
        let dialed = dial(tls, options, address, Lane::Snapshot, Expect::Key(spki)).await?;
        upload::send(dialed, header, body, pace).await
    }

    /// The join lane to a server that the roster does not have.
    pub async fn introduce(
        &self,
        address: &str,
        deadline: Instant,
    ) -> Result<Introduction, CallError> {
        let (tls, options) = (&self.0.tls, &self.0.options);
        let dialing = dial(tls, options, address, Lane::Join, Expect::AnyKey);
        let dialed = timeout_at(deadline, dialing).await.map_err(|_| NotSent::Deadline)??;
        let server_spki = dialed.spki.clone();
        let connection = Connection::start(dialed, options.ping_interval);
        Ok(Introduction { server_spki, connection })
    }

    /// Closes a member's connections, both ways, after its removal from the roster.
    pub fn forget(&self, node: NodeId) {
        self.0.pool.forget(node);
        self.0.inbound.cut(node);
    }
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peers").field("options", &self.0.options).finish_non_exhaustive()
    }
}

impl Inner {
    pub(crate) async fn connect(
        &self,
        address: &str,
        lane: Lane,
        expect: Expect,
    ) -> Result<Connection, NotSent> {
        let dialed = dial(&self.tls, &self.options, address, lane, expect).await?;
        Ok(Connection::start(dialed, self.options.ping_interval))
    }
}

impl Introduction {
    pub async fn call(&self, request: Bytes, deadline: Instant) -> Result<Bytes, CallError> {
        self.connection.call(request, deadline).await
    }
}
