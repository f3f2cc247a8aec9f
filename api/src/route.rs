//! What a route is: the line of the table that the router and the OpenAPI document are made of.

use axum::http::{Method, StatusCode};
use utoipa::ToSchema;
use utoipa::openapi::schema::Schema;
use utoipa::openapi::{Ref, RefOr};

/// What the edge may do with a request whose first attempt failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    /// The asked node answers, whoever asks.
    Node,
    /// The asked node answers, once it has caught up with the leader, whom it may.
    Here,
    /// A read: repeated freely.
    Read,
    /// A use of a key: repeated freely, as it leaves nothing behind.
    Use,
    /// A change told to the log under an operation id: told twice, it happens once.
    Change,
    /// Something that would happen twice: not repeated once it may have begun.
    Once,
}

/// A parameter of the query string.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parameter {
    pub(crate) name: &'static str,
    /// The values it may have; any when empty.
    pub(crate) words: &'static [&'static str],
    pub(crate) describe: &'static str,
}

const CONSISTENCY: Parameter = Parameter {
    name: "consistency",
    words: &["linearizable", "stale"],
    describe: "`stale` lets the asked node answer from its own state",
};
const DRY_RUN: Parameter = Parameter {
    name: "dry_run",
    words: &["true", "false"],
    describe: "`true` authenticates, authorizes and validates, and does nothing",
};

/// One line of the table.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub(crate) method: Method,
    pub(crate) path: &'static str,
    /// The operation's id in the OpenAPI document.
    pub(crate) name: &'static str,
    pub(crate) summary: &'static str,
    pub(crate) kind: Kind,
    pub(crate) query: &'static [Parameter],
    pub(crate) request: Option<Shape>,
    pub(crate) request_required: bool,
    pub(crate) answer: Option<Shape>,
    /// The media type of an answer that is no JSON.
    pub(crate) stream: Option<&'static str>,
    pub(crate) status: StatusCode,
}

/// The JSON of a body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// How it stands in the document: a name to refer to, or itself.
    pub(crate) schema: fn() -> RefOr<Schema>,
    /// All the named schemas it needs.
    pub(crate) collect: fn(&mut Vec<(String, RefOr<Schema>)>),
    pub(crate) batch: Batch,
}

/// Whether a body may be many.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Batch {
    No,
    /// Or `{"batch": [...]}`.
    Items,
    /// Or `{"results": [...]}`.
    Results,
}

pub(crate) fn get(path: &'static str, name: &'static str, summary: &'static str) -> Route {
    Route::new(Method::GET, Kind::Read, path, name, summary)
}

pub(crate) fn post(path: &'static str, name: &'static str, summary: &'static str) -> Route {
    Route::new(Method::POST, Kind::Change, path, name, summary)
}

pub(crate) fn patch(path: &'static str, name: &'static str, summary: &'static str) -> Route {
    Route::new(Method::PATCH, Kind::Change, path, name, summary)
}

pub(crate) fn delete(path: &'static str, name: &'static str, summary: &'static str) -> Route {
    Route::new(Method::DELETE, Kind::Change, path, name, summary)
}

impl Route {
    fn new(
        method: Method,
        kind: Kind,
        path: &'static str,
        name: &'static str,
        summary: &'static str,
    ) -> Self {
        Self {
            method,
            path,
            name,
            summary,
            kind,
            query: &[],
            request: None,
            request_required: false,
            answer: None,
            stream: None,
            status: StatusCode::NO_CONTENT,
        }
    }

    pub(crate) fn kind(self, kind: Kind) -> Self {
        Self { kind, ..self }
    }

    pub(crate) fn query(self, query: &'static [Parameter]) -> Self {
        Self { query, ..self }
    }

    pub(crate) fn takes<T: ToSchema>(self) -> Self {
        Self { request: Some(Shape::of::<T>(Batch::No)), request_required: true, ..self }
    }

    pub(crate) fn may_take<T: ToSchema>(self) -> Self {
        Self { request_required: false, ..self.takes::<T>() }
    }

    pub(crate) fn takes_batch<T: ToSchema>(self) -> Self {
        Self { request: Some(Shape::of::<T>(Batch::Items)), ..self.takes::<T>() }
    }

    pub(crate) fn answers<T: ToSchema>(self) -> Self {
        Self { answer: Some(Shape::of::<T>(Batch::No)), status: StatusCode::OK, ..self }
    }

    pub(crate) fn answers_batch<T: ToSchema>(self) -> Self {
        Self { answer: Some(Shape::of::<T>(Batch::Results)), status: StatusCode::OK, ..self }
    }

    pub(crate) fn streams(self, media_type: &'static str) -> Self {
        Self { stream: Some(media_type), status: StatusCode::OK, ..self }
    }

    pub(crate) fn creates<T: ToSchema>(self) -> Self {
        Self { status: StatusCode::CREATED, ..self.answers::<T>() }
    }

    /// Every parameter the route knows: its own, and those of its kind.
    pub(crate) fn parameters(&self) -> impl Iterator<Item = &'static Parameter> {
        let common: &'static [Parameter] = match self.kind {
            Kind::Node | Kind::Here => &[],
            Kind::Read => &[CONSISTENCY],
            Kind::Use | Kind::Change | Kind::Once => &[DRY_RUN],
        };
        self.query.iter().chain(common)
    }

    /// Whether what the route changes has a revision to be compared: keys, and versions through them.
    pub(crate) fn has_revision(&self) -> bool {
        self.path.starts_with("/v1/keys/{name}")
    }

    /// The path of the same resource in a named namespace.
    pub(crate) fn namespaced(&self) -> Option<String> {
        self.path.strip_prefix("/v1/keys").map(|rest| format!("/v1/namespaces/{{ns}}/keys{rest}"))
    }
}

impl Shape {
    fn of<T: ToSchema>(batch: Batch) -> Self {
        let schema = || Ref::from_schema_name(T::name()).into();
        let collect = |schemas: &mut Vec<_>| {
            schemas.push((T::name().into_owned(), T::schema()));
            T::schemas(schemas);
        };
        Self { schema, collect, batch }
    }
}
