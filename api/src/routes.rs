//! The table of routes: what the router serves and what the OpenAPI document says.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method};
use axum::response::Response;
use axum::routing::{MethodFilter, on};
use bytes::Bytes;
use custody::Custody;
use wire::Code;
use wire::recipient::{DataKey, DataKeyRequest, Decrypt, Plaintext, Random, RandomRequest};

use crate::edge::{Edge, Handler, Line, Node, Options, Streaming, identify};
use crate::forward::Forwarder;
use crate::metrics::count_unmatched;
use crate::problem::Problem;
use crate::reply::Reply;
use crate::route::{Kind, Route, delete, get, patch, post};
use crate::{backup, cluster, keys, kits, openapi, page, settings, sys, tokens, uses, versions};

/// The API of one node: what it does itself, and what it takes to the leader.
pub fn router(custody: Custody, forwarder: Arc<dyn Forwarder>, options: Options) -> Router {
    let table = documented(table());
    table.router(Edge::new(custody, forwarder, options))
}

#[rustfmt::skip]
pub(crate) fn table() -> Table<Custody> {
    Table::default()
        // System
        .on(get("/v1/sys/live", "live", "Whether the process answers").kind(Kind::Node), sys::live)
        .on(get("/v1/sys/ready", "ready", "Whether the node can serve").kind(Kind::Node), sys::ready)
        .on(get("/v1/sys/health", "health", "What the node says of itself").kind(Kind::Node)
            .answers::<wire::Health>(), sys::health)
        // Cluster
        .on(get("/v1/cluster", "show_cluster", "The cluster, its nodes and what it survives")
            .answers::<wire::ClusterStatus>(), cluster::show)
        .on(post("/v1/cluster/join-tokens", "create_join_token", "Make a token with which nodes ask to join")
            .takes::<wire::CreateJoinToken>().creates::<wire::JoinToken>(), cluster::create_join_token)
        .on(get("/v1/cluster/join-tokens", "list_join_tokens", "The join tokens, without their secrets")
            .answers::<wire::JoinTokens>(), cluster::join_tokens)
        .on(delete("/v1/cluster/join-tokens/{id}", "revoke_join_token", "Revoke a join token, and its grant"),
            cluster::revoke_join_token)
        .on(post("/v1/cluster/join-tokens/{id}/grant", "grant_joins", "Let a join token admit, by operators' signatures")
            .takes::<wire::GrantJoins>(), cluster::grant_joins)
        .on(get("/v1/cluster/joins", "list_joins", "The nodes that wait to be admitted")
            .answers::<wire::Joins>(), cluster::joins)
        .on(post("/v1/cluster/joins/{id}/approve", "approve_join", "Admit a node by an operator's signature")
            .takes::<wire::Approve>().answers::<wire::NodeStatus>(), cluster::approve)
        .on(delete("/v1/cluster/nodes/{id}", "remove_node", "Take a node out for good")
            .query(&[cluster::FORCE, cluster::HSM_LOST]), cluster::remove_node)
        .on(get("/v1/cluster/exposures/{id}", "list_exposed_versions", "What the lost slot of a node and a copy of the log open still")
            .query(&[page::SIZE, page::TOKEN]).answers::<wire::ExposedVersions>(), cluster::exposed)
        .on(post("/v1/cluster/nodes/{id}/cordon", "cordon_node", "Keep a node from leading")
            .answers::<wire::NodeStatus>(), cluster::cordon)
        .on(post("/v1/cluster/nodes/{id}/uncordon", "uncordon_node", "Let a node lead again")
            .answers::<wire::NodeStatus>(), cluster::uncordon)
        .on(post("/v1/cluster/transfer-leader", "transfer_leader", "Have another node lead").kind(Kind::Once)
            .may_take::<wire::TransferLeader>().answers::<wire::TransferLeader>(), cluster::transfer_leader)
        .on(post("/v1/cluster/rotate-kek", "rotate_kek", "Make a new epoch of the KEK")
            .answers::<wire::Kek>(), cluster::rotate_kek)
        .on(get("/v1/cluster/ca", "show_ca", "What callers have to trust")
            .answers::<wire::ClusterCa>(), cluster::show_ca)
        .on(post("/v1/cluster/rotate-ca", "rotate_ca", "Make another CA for the nodes' certificates")
            .may_take::<wire::RotateCa>(), cluster::rotate_ca)
        .on(delete("/v1/cluster/former-ca", "drop_former_ca", "Trust the CA before no more"), cluster::drop_former_ca)
        .on(get("/v1/cluster/operators", "show_operators", "Who may admit members")
            .answers::<wire::ClusterOperators>(), cluster::show_operators)
        .on(post("/v1/cluster/operators", "rotate_operators", "Hand over to other operators, by both's signatures")
            .takes::<wire::RotateOperators>(), cluster::rotate_operators)
        .on(post("/v1/cluster/snapshot", "make_snapshot", "Build a snapshot now").kind(Kind::Once)
            .answers::<wire::Snapshot>(), cluster::snapshot)
        .stream(post("/v1/cluster/backup", "make_backup", "The whole state, encrypted for its recipients (age v1)").kind(Kind::Here)
            .takes::<wire::MakeBackup>().streams(wire::OCTETS), backup::make)
        .on(get("/v1/cluster/tombstones", "list_tombstones", "What is destroyed or disabled: what a restore must not bring back")
            .query(&[page::SIZE, page::TOKEN]).answers::<wire::Tombstones>(), backup::tombstones)
        .on(get("/v1/cluster/settings", "show_settings", "The cluster's settings")
            .answers::<wire::Settings>(), settings::show)
        .on(patch("/v1/cluster/settings", "update_settings", "Change settings")
            .takes::<wire::SettingsPatch>().answers::<wire::Settings>(), settings::update)
        .on(get("/v1/cluster/recovery-kits", "list_recovery_kits", "The recovery kits, and what is wrapped to each")
            .answers::<wire::RecoveryKits>(), kits::list)
        .on(post("/v1/cluster/recovery-kits", "pin_recovery_kit", "Have every epoch wrapped to a kit, too")
            .takes::<wire::PinRecoveryKit>().creates::<wire::RecoveryKit>(), kits::pin)
        .on(delete("/v1/cluster/recovery-kits/{id}", "drop_recovery_kit", "Wrap nothing more to a kit"), kits::drop)
        // Tokens
        .on(post("/v1/tokens", "create_token", "Make a bearer token")
            .takes::<wire::CreateToken>().creates::<wire::CreatedToken>(), tokens::create)
        .on(get("/v1/tokens", "list_tokens", "The bearer tokens, without their secrets")
            .query(&[page::SIZE, page::TOKEN]).answers::<wire::Tokens>(), tokens::list)
        .on(delete("/v1/tokens/{id}", "revoke_token", "Revoke a token"), tokens::revoke)
        // Keys
        .on(post("/v1/keys", "create_key", "Create a key")
            .takes::<wire::CreateKey>().creates::<wire::Key>(), keys::create)
        .on(get("/v1/keys", "list_keys", "The keys, by name")
            .query(&[page::SIZE, page::TOKEN, keys::STATE, keys::ALGORITHM, keys::LABEL])
            .answers::<wire::Keys>(), keys::list)
        .on(get("/v1/keys/{name}", "show_key", "A key").answers::<wire::Key>(), keys::show)
        .on(patch("/v1/keys/{name}", "update_key", "Change what is said of a key")
            .takes::<wire::UpdateKey>().answers::<wire::Key>(), keys::update)
        .on(post("/v1/keys/{name}/rotate", "rotate_key", "Make a new primary version")
            .answers::<wire::Key>(), keys::rotate)
        .on(post("/v1/keys/{name}/disable", "disable_key", "Refuse uses of a key")
            .answers::<wire::Key>(), keys::disable)
        .on(post("/v1/keys/{name}/enable", "enable_key", "Allow uses again")
            .answers::<wire::Key>(), keys::enable)
        .on(post("/v1/keys/{name}/schedule-destruction", "schedule_key_destruction", "Destroy a key later")
            .may_take::<wire::ScheduleDestruction>().answers::<wire::Key>(), keys::schedule_destruction)
        .on(post("/v1/keys/{name}/cancel-destruction", "cancel_key_destruction", "Keep a key after all")
            .answers::<wire::Key>(), keys::cancel_destruction)
        // Versions
        .on(get("/v1/keys/{name}/versions", "list_versions", "The versions of a key")
            .query(&[page::SIZE, page::TOKEN]).answers::<wire::Versions>(), versions::list)
        .on(post("/v1/keys/{name}/versions/{version}/disable", "disable_version", "Refuse uses of a version")
            .answers::<wire::Version>(), versions::disable)
        .on(post("/v1/keys/{name}/versions/{version}/enable", "enable_version", "Allow uses again")
            .answers::<wire::Version>(), versions::enable)
        .on(post("/v1/keys/{name}/versions/{version}/schedule-destruction", "schedule_version_destruction", "Destroy a version later")
            .may_take::<wire::ScheduleDestruction>().answers::<wire::Version>(), versions::schedule_destruction)
        .on(post("/v1/keys/{name}/versions/{version}/cancel-destruction", "cancel_version_destruction", "Keep a version after all")
            .answers::<wire::Version>(), versions::cancel_destruction)
        // Uses
        .on(post("/v1/keys/{name}/encrypt", "encrypt", "Encrypt a small value, or a batch of them").kind(Kind::Use)
            .takes_batch::<wire::Encrypt>().answers_batch::<wire::Ciphertext>(), uses::encrypt)
        .on(post("/v1/keys/{name}/decrypt", "decrypt", "Decrypt what this key encrypted").kind(Kind::Use)
            .takes_batch::<Decrypt>().answers_batch::<Plaintext>(), uses::decrypt)
        .on(post("/v1/decrypt", "decrypt_any", "Decrypt with the key that the ciphertext names").kind(Kind::Use)
            .takes_batch::<Decrypt>().answers_batch::<Plaintext>(), uses::decrypt_any)
        .on(post("/v1/keys/{name}/reencrypt", "reencrypt", "Encrypt anew; the plaintext never leaves").kind(Kind::Use)
            .takes_batch::<wire::Reencrypt>().answers_batch::<wire::Ciphertext>(), uses::reencrypt)
        .on(post("/v1/keys/{name}/data-key", "make_data_key", "Make a data key").kind(Kind::Use)
            .takes::<DataKeyRequest>().answers::<DataKey>(), uses::data_key)
        .on(post("/v1/random", "draw_random", "Draw random bytes").kind(Kind::Use)
            .takes::<RandomRequest>().answers::<Random>(), uses::random)
}

/// The document stands in the table that it is made of.
fn documented<N: Node>(table: Table<N>) -> Table<N> {
    let route = get("/v1/openapi.json", "openapi", "This document").kind(Kind::Node);
    let routes = table.routes.iter().chain([&route]);
    let document = Bytes::from(openapi::document(routes));
    table.on(route, move |_, _| {
        let document = document.clone();
        async move { Ok(Reply::document(document)) }
    })
}

/// Routes, and how they are served.
pub(crate) struct Table<N> {
    pub(crate) routes: Vec<Route>,
    router: Router<Edge<N>>,
}

impl<N: Node> Default for Table<N> {
    fn default() -> Self {
        Self { routes: Vec::new(), router: Router::new() }
    }
}

impl<N: Node> Table<N> {
    pub(crate) fn on<H>(self, route: Route, handler: H) -> Self
    where
        H: Handler<N> + Clone + 'static,
    {
        let line = Arc::new(Line::from(route.clone()));
        self.add(route, move |State(edge): State<Edge<N>>, request: Request| {
            let (line, handler) = (line.clone(), handler.clone());
            async move { edge.serve(&line, &handler, request).await }
        })
    }

    /// A route of kind `Here` whose answer is a stream.
    pub(crate) fn stream<H>(self, route: Route, handler: H) -> Self
    where
        H: Streaming<N> + Clone + 'static,
    {
        let line = Arc::new(Line::from(route.clone()));
        self.add(route, move |State(edge): State<Edge<N>>, request: Request| {
            let (line, handler) = (line.clone(), handler.clone());
            async move { edge.stream(&line, &handler, request).await }
        })
    }

    /// At its path, and at that in a namespace where it has one.
    fn add<T: 'static>(
        mut self,
        route: Route,
        serve: impl axum::handler::Handler<T, Edge<N>>,
    ) -> Self {
        let filter =
            MethodFilter::try_from(route.method.clone()).expect("the table has no CONNECT");
        let serve = on(filter, serve);
        if let Some(path) = route.namespaced() {
            self.router = self.router.route(&path, serve.clone());
        }
        self.router = self.router.route(route.path, serve);
        self.routes.push(route);
        self
    }

    pub(crate) fn router(self, edge: Edge<N>) -> Router {
        let refuse = |code: Code| {
            move |State(edge): State<Edge<N>>, method: Method, headers: HeaderMap| async move {
                unmatched(&edge, code, &method, &headers)
            }
        };
        self.router
            .fallback(refuse(Code::NotFound))
            .method_not_allowed_fallback(refuse(Code::MethodNotAllowed))
            .with_state(edge)
    }
}

/// A path that is not in the table, or a method that its path does not take.
fn unmatched<N: Node>(
    edge: &Edge<N>,
    code: Code,
    method: &Method,
    headers: &HeaderMap,
) -> Response {
    let (request_id, _) = identify(headers);
    let text = request_id.to_str().expect("a request id is visible ASCII").to_owned();
    let reply = Problem::new(code).reply(&text);
    count_unmatched(method, reply.status);
    reply.into_response(request_id, edge.node.node_id())
}
