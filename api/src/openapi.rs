//! The OpenAPI 3.1 document, made of the table of routes.
//!
//! It is built and not declared beside the handlers, so that a route can not be served without
//! standing in it.

use std::collections::BTreeMap;

use axum::http::Method;
use utoipa::openapi::path::{HttpMethod, Operation, OperationBuilder, Parameter, ParameterIn};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{
    ArrayBuilder, ComponentsBuilder, ObjectBuilder, OneOfBuilder, Schema, Type,
};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    ContentBuilder, Info, OpenApiBuilder, Paths, Ref, RefOr, Required, ResponseBuilder,
};
use utoipa::{PartialSchema, ToSchema};

use crate::call::MERGE_PATCH;
use crate::route::{Batch, Kind, Route, Shape};

const BEARER: &str = "bearer";

pub(crate) fn document<'a>(routes: impl Iterator<Item = &'a Route>) -> Vec<u8> {
    let mut schemas = vec![(wire::Problem::name().into_owned(), wire::Problem::schema())];
    wire::Problem::schemas(&mut schemas);
    let mut paths = Paths::new();
    for route in routes {
        for shape in [&route.request, &route.answer].into_iter().flatten() {
            (shape.collect)(&mut schemas);
        }
        let methods = vec![method(&route.method)];
        paths.add_path_operation(route.path, methods.clone(), operation(route, false));
        if let Some(path) = route.namespaced() {
            paths.add_path_operation(path, methods, operation(route, true));
        }
    }
    let schemas: BTreeMap<String, RefOr<Schema>> = schemas.into_iter().collect();
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
    let components = ComponentsBuilder::new()
        .schemas_from_iter(schemas)
        .security_scheme(BEARER, SecurityScheme::Http(bearer))
        .build();
    let document = OpenApiBuilder::new()
        .info(Info::new("Strongroom", env!("CARGO_PKG_VERSION")))
        .paths(paths)
        .components(Some(components))
        .build();
    serde_json::to_vec(&document).expect("the document is plain data")
}

fn method(method: &Method) -> HttpMethod {
    match *method {
        Method::GET => HttpMethod::Get,
        Method::PATCH => HttpMethod::Patch,
        Method::DELETE => HttpMethod::Delete,
        _ => HttpMethod::Post,
    }
}

fn operation(route: &Route, namespaced: bool) -> Operation {
    let id = if namespaced { format!("{}_in_namespace", route.name) } else { route.name.into() };
    let mut operation = OperationBuilder::new()
        .operation_id(Some(id))
        .summary(Some(route.summary))
        .tag(tag(route.path))
        .response(route.status.as_str(), answer(route))
        .response("default", problem());
    if namespaced {
        operation = operation.parameter(path_parameter("ns"));
    }
    for name in route.path.split('/').filter_map(|part| part.strip_prefix('{')) {
        operation = operation.parameter(path_parameter(name.trim_end_matches('}')));
    }
    for parameter in route.parameters() {
        let mut schema = ObjectBuilder::new().schema_type(Type::String);
        if !parameter.words.is_empty() {
            schema = schema.enum_values(Some(parameter.words.iter().copied()));
        }
        let parameter = Parameter::builder()
            .name(parameter.name)
            .parameter_in(ParameterIn::Query)
            .required(Required::False)
            .description(Some(parameter.describe))
            .schema(Some(schema.build()));
        operation = operation.parameter(parameter);
    }
    for (name, describe) in headers(route.kind) {
        let parameter = Parameter::builder()
            .name(*name)
            .parameter_in(ParameterIn::Header)
            .required(Required::False)
            .description(Some(*describe))
            .schema(Some(ObjectBuilder::new().schema_type(Type::String).build()));
        operation = operation.parameter(parameter);
    }
    if let Some(shape) = &route.request {
        let media_type =
            if route.method == Method::PATCH { MERGE_PATCH } else { "application/json" };
        let required = if route.request_required { Required::True } else { Required::False };
        let body = RequestBodyBuilder::new()
            .required(Some(required))
            .content(media_type, ContentBuilder::new().schema(Some(schema(shape))).build());
        operation = operation.request_body(Some(body.build()));
    }
    if route.kind != Kind::Node {
        operation = operation.security(SecurityRequirement::new(BEARER, [] as [&str; 0]));
    }
    operation.build()
}

fn headers(kind: Kind) -> &'static [(&'static str, &'static str)] {
    match kind {
        Kind::Change | Kind::Once => &[
            ("Idempotency-Key", "at most 255 characters: the same request under it happens once"),
            ("If-Match", "the `ETag` that the resource must still have"),
        ],
        Kind::Node | Kind::Here | Kind::Read | Kind::Use => &[],
    }
}

fn tag(path: &str) -> &str {
    match path.split('/').nth(2) {
        Some("sys" | "openapi.json") => "system",
        Some("cluster" | "tokens") => "cluster",
        _ => "keys",
    }
}

fn path_parameter(name: &str) -> Parameter {
    let of = match name {
        "version" => Type::Integer,
        _ => Type::String,
    };
    Parameter::builder()
        .name(name)
        .parameter_in(ParameterIn::Path)
        .required(Required::True)
        .schema(Some(ObjectBuilder::new().schema_type(of).build()))
        .build()
}

fn answer(route: &Route) -> utoipa::openapi::Response {
    let response = ResponseBuilder::new().description("Done");
    match &route.answer {
        None => match route.stream {
            Some(media_type) => response.content(media_type, ContentBuilder::new().build()).build(),
            None => response.build(),
        },
        Some(shape) => {
            let content = ContentBuilder::new().schema(Some(schema(shape))).build();
            response.content("application/json", content).build()
        }
    }
}

fn problem() -> utoipa::openapi::Response {
    let schema: RefOr<Schema> = Ref::from_schema_name(wire::Problem::name()).into();
    ResponseBuilder::new()
        .description("What went wrong (RFC 9457)")
        .content(wire::PROBLEM_JSON, ContentBuilder::new().schema(Some(schema)).build())
        .build()
}

/// One, or many in an object.
fn schema(shape: &Shape) -> RefOr<Schema> {
    let one = (shape.schema)();
    let (name, item): (_, RefOr<Schema>) = match shape.batch {
        Batch::No => return one,
        Batch::Items => ("batch", one.clone()),
        Batch::Results => {
            let problem: RefOr<Schema> = Ref::from_schema_name(wire::Problem::name()).into();
            let failed = ObjectBuilder::new().property("problem", problem).required("problem");
            let item = OneOfBuilder::new().item(one.clone()).item(failed.build()).build();
            ("results", Schema::OneOf(item).into())
        }
    };
    let items = ArrayBuilder::new().items(item).max_items(Some(wire::BATCH_MAX)).build();
    let many = ObjectBuilder::new().property(name, items).required(name).build();
    Schema::OneOf(OneOfBuilder::new().item(one).item(many).build()).into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Every call of API.md that is not for a later issue.
    const CONTRACT: &str = "
        GET /v1/sys/live  GET /v1/sys/ready  GET /v1/sys/health
        GET /v1/cluster  POST /v1/cluster/join-tokens  GET /v1/cluster/joins
        GET /v1/cluster/join-tokens  DELETE /v1/cluster/join-tokens/{id}
        POST /v1/cluster/join-tokens/{id}/grant
        GET /v1/cluster/exposures/{id}  GET /v1/cluster/operators  POST /v1/cluster/operators
        GET /v1/cluster/ca  POST /v1/cluster/rotate-ca  DELETE /v1/cluster/former-ca
        POST /v1/cluster/joins/{id}/approve  DELETE /v1/cluster/nodes/{id}
        POST /v1/cluster/transfer-leader  POST /v1/cluster/nodes/{id}/cordon
        POST /v1/cluster/nodes/{id}/uncordon  POST /v1/cluster/rotate-kek
        GET /v1/cluster/recovery-kits  POST /v1/cluster/recovery-kits
        DELETE /v1/cluster/recovery-kits/{id}
        POST /v1/cluster/backup  GET /v1/cluster/tombstones
        POST /v1/cluster/snapshot  GET /v1/cluster/settings  PATCH /v1/cluster/settings
        POST /v1/tokens  GET /v1/tokens  DELETE /v1/tokens/{id}
        POST /v1/keys  GET /v1/keys  GET /v1/keys/{name}  PATCH /v1/keys/{name}
        GET /v1/keys/{name}/versions  POST /v1/keys/{name}/rotate  POST /v1/keys/{name}/disable
        POST /v1/keys/{name}/enable  POST /v1/keys/{name}/schedule-destruction
        POST /v1/keys/{name}/cancel-destruction
        POST /v1/keys/{name}/versions/{version}/disable
        POST /v1/keys/{name}/versions/{version}/enable
        POST /v1/keys/{name}/versions/{version}/schedule-destruction
        POST /v1/keys/{name}/versions/{version}/cancel-destruction
        POST /v1/keys/{name}/encrypt  POST /v1/keys/{name}/decrypt  POST /v1/decrypt
        POST /v1/keys/{name}/reencrypt  POST /v1/keys/{name}/data-key  POST /v1/random";

    fn parsed() -> serde_json::Value {
        serde_json::from_slice(&document(crate::routes::table().routes.iter())).unwrap()
    }

    fn operations(document: &serde_json::Value) -> BTreeSet<String> {
        let paths = document["paths"].as_object().unwrap();
        let each = paths.iter().flat_map(|(path, item)| {
            let methods = item.as_object().unwrap().keys();
            methods.map(move |method| format!("{} {path}", method.to_uppercase()))
        });
        each.collect()
    }

    #[test]
    fn the_document_is_the_contract() {
        let document = parsed();
        assert_eq!(document["openapi"], "3.1.0");
        let words: Vec<&str> = CONTRACT.split_whitespace().collect();
        let mut expected: BTreeSet<String> = words.chunks(2).map(|call| call.join(" ")).collect();
        let namespaced = |call: &String| call.replace("/v1/keys", "/v1/namespaces/{ns}/keys");
        expected.extend(expected.iter().map(namespaced).collect::<Vec<_>>());
        assert_eq!(operations(&document), expected);
    }

    #[test]
    fn every_route_of_the_router_is_in_it() {
        let document = parsed();
        let operations = operations(&document);
        for route in crate::routes::table().routes {
            let call = format!("{} {}", route.method, route.path);
            assert!(operations.contains(&call), "{call}");
        }
    }

    #[test]
    fn every_reference_leads_somewhere_and_ids_are_unique() {
        let document = parsed();
        let (mut references, mut ids) = (Vec::new(), Vec::new());
        walk(&document, &mut references, &mut ids);
        assert!(references.len() > 50);
        for reference in references {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
        }
        let unique: BTreeSet<&String> = ids.iter().collect();
        assert_eq!(unique.len(), ids.len());
    }

    fn walk(value: &serde_json::Value, references: &mut Vec<String>, ids: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(fields) => {
                for (name, value) in fields {
                    match (name.as_str(), value.as_str()) {
                        ("$ref", Some(reference)) => references.push(reference.to_owned()),
                        ("operationId", Some(id)) => ids.push(id.to_owned()),
                        _ => walk(value, references, ids),
                    }
                }
            }
            serde_json::Value::Array(items) => {
                for item in items {
                    walk(item, references, ids);
                }
            }
            _ => {}
        }
    }
}
