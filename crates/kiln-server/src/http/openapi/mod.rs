//! The OpenAPI document: what it says of a path is said where the path is routed, and what it says of bodies comes from
//! the tables that bodies are checked by.
//!
//! Source: <https://spec.openapis.org/oas/v3.1.0>

mod body;
mod operation;
pub(crate) mod shape;

use axum::body::Bytes;
use axum::handler::Handler;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::MethodRouter;
use axum::{Extension, Router, routing};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Components, HttpMethod, Info, OpenApi, Paths};

use super::App;
use super::error::Dialect;
pub(crate) use operation::{Op, binary, op};

/// Routes, each with what the document says of it.
pub(crate) struct Routes<S = App> {
    router: Router<S>,
    described: Vec<Described>,
    /// What their operations have in common.
    tag: &'static str,
}

struct Described {
    method: HttpMethod,
    path: String,
    tag: &'static str,
    op: Op,
}

/// The document, as it is sent.
#[derive(Clone)]
pub(crate) struct Document(Bytes);

impl<S: Clone + Send + Sync + 'static> Routes<S> {
    /// None yet.
    pub(crate) fn new(tag: &'static str) -> Routes<S> {
        Routes { router: Router::new(), described: Vec::new(), tag }
    }

    pub(crate) fn get<T: 'static>(self, path: &str, handler: impl Handler<T, S>, op: Op) -> Routes<S> {
        self.add(HttpMethod::Get, path, routing::get(handler), op)
    }

    pub(crate) fn post<T: 'static>(self, path: &str, handler: impl Handler<T, S>, op: Op) -> Routes<S> {
        self.add(HttpMethod::Post, path, routing::post(handler), op)
    }

    pub(crate) fn delete<T: 'static>(self, path: &str, handler: impl Handler<T, S>, op: Op) -> Routes<S> {
        self.add(HttpMethod::Delete, path, routing::delete(handler), op)
    }

    fn add(mut self, method: HttpMethod, path: &str, route: MethodRouter<S>, op: Op) -> Routes<S> {
        self.router = self.router.route(path, route);
        self.described.push(Described { method, path: path.into(), tag: self.tag, op });
        self
    }

    /// These and others.
    pub(crate) fn merge(mut self, other: Routes<S>) -> Routes<S> {
        self.router = self.router.merge(other.router);
        self.described.extend(other.described);
        self
    }

    /// These, and others below a path.
    pub(crate) fn nest(mut self, path: &str, other: Routes<S>) -> Routes<S> {
        self.router = self.router.nest(path, other.router);
        let below = |it: Described| Described { path: format!("{path}{}", it.path), ..it };
        self.described.extend(other.described.into_iter().map(below));
        self
    }

    /// With something for the handlers of all.
    pub(crate) fn extension<T: Clone + Send + Sync + 'static>(self, shared: T) -> Routes<S> {
        Routes { router: self.router.layer(Extension(shared)), ..self }
    }

    pub(crate) fn with_state<S2>(self, state: S) -> Routes<S2> {
        Routes { router: self.router.with_state(state), described: self.described, tag: self.tag }
    }

    /// The router, which serves the document of all; `has_keys` where paths need one.
    pub(crate) fn into_router(self, has_keys: bool) -> Router<S> {
        let document = Document(document(&self.described, has_keys).to_json().unwrap_or_default().into());
        self.router.layer(Extension(document))
    }
}

/// The path of the document.
pub(super) fn routes() -> Routes<App> {
    let about = op("This document").ok(shape::any_object());
    Routes::new("document").get("/openapi.json", show, about)
}

async fn show(Extension(Document(text)): Extension<Document>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

fn document(described: &[Described], has_keys: bool) -> OpenApi {
    let mut paths = Paths::new();
    for Described { method, path, tag, op } in described {
        paths.add_path_operation(path, vec![method.clone()], op.operation(method, path, tag));
    }
    let mut components = Components::new();
    for dialect in [Dialect::OpenAi, Dialect::WebUi, Dialect::Inference] {
        components.schemas.insert(dialect.name().into(), dialect.schema().into());
    }
    components.add_security_scheme("key", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    components.add_security_scheme("password", SecurityScheme::Http(Http::new(HttpAuthScheme::Basic)));
    let mut info = Info::new("kiln", env!("CARGO_PKG_VERSION"));
    info.description = Some("Draws pictures with diffusion models, in the words of several APIs.".into());
    let mut document = OpenApi::new(info, paths);
    document.components = Some(components);
    let keys = ["key", "password"].map(|name| SecurityRequirement::new(name, [""; 0]));
    document.security = has_keys.then(|| keys.into());
    document
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::{of_app, of_inference};
    use super::*;

    /// Paths that a router says it has.
    fn routed<S>(router: &Router<S>) -> BTreeSet<String> {
        let text = format!("{router:?}");
        // Behind them is what answers where nothing is.
        let text = text.split("fallback_router").next().unwrap_or_default();
        let strings = text.split('"').skip(1).step_by(2);
        strings.filter(|text| text.starts_with('/')).map(str::to_owned).collect()
    }

    fn described<S>(routes: &Routes<S>) -> BTreeSet<String> {
        routes.described.iter().map(|it| it.path.clone()).collect()
    }

    #[test]
    fn every_route_is_in_the_document_and_every_path_of_it_is_routed() {
        let (app, inference) = (of_app(), of_inference());
        assert!(routed(&app.router).contains("/v1/jobs/{id}/pictures/{index}"));
        assert!(routed(&inference.router).contains("/v2/models/{model}/infer"));
        assert_eq!(routed(&app.router), described(&app));
        assert_eq!(routed(&inference.router), described(&inference));
    }

    #[test]
    fn a_route_beside_the_document_is_found() {
        let routes: Routes<App> = Routes::new("").get("/a", async || (), op("A"));
        let more = Routes { router: routes.router.clone().route("/b", routing::get(async || ())), ..routes };
        assert!(routed(&more.router).len() > described(&more).len());
    }

    #[test]
    fn operations_have_names_of_their_own() {
        let (app, inference) = (of_app(), of_inference());
        let all: Vec<Described> = app.described.into_iter().chain(inference.described).collect();
        let text = document(&all, true).to_json().expect("JSON");
        let ids: Vec<&str> =
            text.split("\"operationId\":\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        assert_eq!(ids.len(), all.len());
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), all.len());
    }
}
