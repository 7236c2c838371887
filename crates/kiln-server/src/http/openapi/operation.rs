//! What the document says of a method of a path.

use utoipa::openapi::path::{Operation, OperationBuilder, ParameterBuilder, ParameterIn};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, SchemaFormat, Type};
use utoipa::openapi::security::SecurityRequirement;
use utoipa::openapi::{Content, HttpMethod, Ref, RefOr, Required, ResponseBuilder, Schema};

use super::body::{self, Writing};
use super::shape::{self, Shape};
use crate::http::error::Dialect;
use crate::http::schema::{Manner, Table};

/// What is said of a method of a path.
pub(crate) struct Op {
    summary: &'static str,
    bodies: Vec<(&'static str, Shape)>,
    needs_body: bool,
    parameters: Vec<(ParameterIn, &'static str, &'static str, Shape)>,
    answers: Vec<(u16, &'static str, Option<Shape>)>,
    /// Statuses of refusals that not all paths have.
    refusals: Vec<u16>,
    door: Door,
}

/// Who may come in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Door {
    Key,
    /// A key, or a path that nobody can guess.
    Link,
    Open,
}

/// An operation of which nothing is known but what it does.
pub(crate) fn op(summary: &'static str) -> Op {
    Op {
        summary,
        bodies: Vec::new(),
        needs_body: false,
        parameters: Vec::new(),
        answers: Vec::new(),
        refusals: Vec::new(),
        door: Door::Key,
    }
}

/// A file's bytes.
pub(crate) fn binary() -> Shape {
    let format = SchemaFormat::KnownFormat(KnownFormat::Binary);
    ObjectBuilder::new().schema_type(Type::String).format(Some(format)).into()
}

impl Op {
    /// Takes a JSON object with these fields.
    pub(crate) fn json(self, table: &Table) -> Op {
        let needs_body = table.manner == Manner::Strict || table.fields().any(|field| field.is_required);
        Op { needs_body, ..self.body("application/json", body::object(table, Writing::Json)) }
    }

    /// Takes a JSON object, or a form, with these fields.
    pub(crate) fn form(self, table: &Table) -> Op {
        self.json(table).body("multipart/form-data", body::object(table, Writing::Form))
    }

    /// Takes a body of a type.
    pub(crate) fn body(mut self, media_type: &'static str, shape: Shape) -> Op {
        self.bodies.push((media_type, shape));
        Op { needs_body: true, ..self }
    }

    /// Takes a parameter behind `?`.
    pub(crate) fn query(mut self, name: &'static str, about: &'static str, shape: Shape) -> Op {
        self.parameters.push((ParameterIn::Query, name, about, shape));
        self
    }

    /// Takes a header.
    pub(crate) fn header(mut self, name: &'static str, about: &'static str, shape: Shape) -> Op {
        self.parameters.push((ParameterIn::Header, name, about, shape));
        self
    }

    /// Answers with JSON.
    pub(crate) fn ok(self, shape: Shape) -> Op {
        self.answers(200, "application/json", shape)
    }

    /// Answers with a body of a type.
    pub(crate) fn answers(mut self, status: u16, media_type: &'static str, shape: Shape) -> Op {
        self.answers.push((status, media_type, Some(shape)));
        self
    }

    /// Answers without a body.
    pub(crate) fn answers_empty(mut self, status: u16) -> Op {
        self.answers.push((status, "", None));
        self
    }

    /// Refuses with a status that not all paths have.
    pub(crate) fn refuses(mut self, status: u16) -> Op {
        self.refusals.push(status);
        self
    }

    /// Draws, with all that can hinder it.
    pub(crate) fn draws(self) -> Op {
        [404, 409, 500, 507].into_iter().fold(self, Op::refuses)
    }

    /// Needs no key.
    pub(crate) fn open(self) -> Op {
        Op { door: Door::Open, ..self }
    }

    /// Needs no key where the path is right.
    pub(crate) fn by_link(self) -> Op {
        Op { door: Door::Link, ..self }
    }

    /// What the document says.
    pub(super) fn operation(&self, method: &HttpMethod, path: &str, tag: &str) -> Operation {
        let id = format!("{}_{}", name(method), path.trim_matches('/'));
        let id: String = id.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        let mut operation = OperationBuilder::new().tag(tag).operation_id(Some(id)).summary(Some(self.summary));
        for name in path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')) {
            let shape = if name == "index" { shape::whole() } else { shape::text() };
            let parameter = parameter(ParameterIn::Path, name, "", shape).required(Required::True);
            operation = operation.parameter(parameter);
        }
        for (place, name, about, shape) in &self.parameters {
            let parameter = parameter(place.clone(), name, about, shape.clone());
            operation = operation.parameter(parameter.required(Required::False));
        }
        operation = self.secured(self.with_answers(operation, method, path));
        operation.request_body(self.request_body()).build()
    }

    fn request_body(&self) -> Option<utoipa::openapi::request_body::RequestBody> {
        let required = if self.needs_body { Required::True } else { Required::False };
        let body = RequestBodyBuilder::new().required(Some(required));
        let put = |body: RequestBodyBuilder, (media_type, shape): &(&str, Shape)| {
            body.content(*media_type, Content::new(Some(shape.clone())))
        };
        (!self.bodies.is_empty()).then(|| self.bodies.iter().fold(body, put).build())
    }

    fn with_answers(
        &self,
        mut operation: OperationBuilder,
        method: &HttpMethod,
        path: &str,
    ) -> OperationBuilder {
        let mut statuses: Vec<u16> = self.answers.iter().map(|(status, ..)| *status).collect();
        statuses.dedup();
        for status in statuses {
            let of_status = self.answers.iter().filter(|(own, ..)| *own == status);
            let put =
                |response: ResponseBuilder, (_, media_type, shape): &(u16, &str, Option<Shape>)| match shape {
                    Some(shape) => response.content(*media_type, Content::new(Some(shape.clone()))),
                    None => response,
                };
            let response = of_status.fold(ResponseBuilder::new().description(meaning(status)), put);
            operation = operation.response(status.to_string(), response.build());
        }
        for status in self.all_refusals(method, path) {
            let schema: RefOr<Schema> = Ref::from_schema_name(Dialect::of(path).name()).into();
            let response = ResponseBuilder::new().description(meaning(status));
            let response = response.content("application/json", Content::new(Some(schema)));
            operation = operation.response(status.to_string(), response.build());
        }
        operation
    }

    fn all_refusals(&self, method: &HttpMethod, path: &str) -> Vec<u16> {
        let mut statuses = vec![400, 408, 413];
        if self.door != Door::Open {
            statuses.push(401);
            statuses.extend((*method != HttpMethod::Get).then_some([403, 429]).into_iter().flatten());
        }
        statuses.extend(path.contains('{').then_some(404));
        statuses.extend(&self.refusals);
        statuses.sort_unstable();
        statuses.dedup();
        statuses
    }

    fn secured(&self, operation: OperationBuilder) -> OperationBuilder {
        match self.door {
            Door::Key => operation,
            Door::Link => operation.security(SecurityRequirement::default()),
            Door::Open => operation.securities(Some([])),
        }
    }
}

fn parameter(place: ParameterIn, name: &str, about: &str, shape: Shape) -> ParameterBuilder {
    let about = Some(about).filter(|about| !about.is_empty());
    ParameterBuilder::new().name(name).parameter_in(place).description(about).schema(Some(shape))
}

fn name(method: &HttpMethod) -> &'static str {
    match method {
        HttpMethod::Post => "post",
        HttpMethod::Delete => "delete",
        _ => "get",
    }
}

fn meaning(status: u16) -> &'static str {
    match status {
        200 => "done",
        202 => "taken",
        204 => "gone",
        304 => "the browser has it",
        400 => "the request is wrong",
        401 => "a key is needed",
        403 => "a page of another origin sends this",
        404 => "there is none",
        408 => "the body came too slowly",
        409 => "it has ended, or was cancelled",
        413 => "the body is too large",
        422 => "the key came with another body before",
        429 => "too much at once; Retry-After says when to try again",
        503 => "not now",
        504 => "the client's time was over",
        507 => "there is not enough memory or storage",
        _ => "something went wrong",
    }
}
