//! Bodies that are JSON or a form, told by what they hold.

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Multipart, Request};
use axum::http::{StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Body as _;
use serde_json::{Map, Value};

use super::error::ApiError;
use super::fields::Fields;
use super::schema::{Field, Kind, Table, unknown};
use super::upload::bytes;

/// Most parts of a form.
const MAX_PARTS: usize = 64;

/// A body: its fields, and its pictures in the order in which they came.
#[derive(Clone, Debug, Default)]
pub(crate) struct Form {
    pub(crate) fields: Fields,
    files: Vec<(String, Bytes)>,
    /// What it was read from, whose room is taken as long as the form is there.
    #[expect(dead_code, reason = "held")]
    body: Bytes,
}

impl Form {
    /// Reads a JSON object or a form; parts that are pictures, whose names may end in `[]`, are files.
    pub(crate) async fn read(request: Request, table: &Table) -> Result<Form, ApiError> {
        let (parts, body) = request.into_parts();
        let bytes = body.collect().await.map_err(|_| refuse("body: broke off"))?.to_bytes();
        let is_json = bytes.trim_ascii_start().first() == Some(&b'{');
        let is_form = parts.headers.get(header::CONTENT_TYPE).is_some_and(|kind| {
            kind.to_str().is_ok_and(|kind| kind.to_ascii_lowercase().starts_with("multipart/form-data"))
        });
        match is_form && !is_json {
            false => Ok(Form { fields: Fields::of_json(&bytes, table)?, files: Vec::new(), body: bytes }),
            true => {
                let request = Request::from_parts(parts, Body::from(bytes.clone()));
                let parts = Multipart::from_request(request, &()).await.map_err(|e| refuse(e.body_text()))?;
                Ok(Form { body: bytes, ..Form::of_parts(parts, table).await? })
            }
        }
    }

    async fn of_parts(mut parts: Multipart, table: &Table) -> Result<Form, ApiError> {
        let (mut values, mut files, mut n_parts) = (Map::new(), Vec::new(), 0);
        let broken = |e: axum::extract::multipart::MultipartError| refuse(e.body_text());
        while let Some(part) = parts.next_field().await.map_err(broken)? {
            n_parts += 1;
            if n_parts > MAX_PARTS {
                return Err(refuse(format!("form: more than {MAX_PARTS} parts")));
            }
            let name = part.name().unwrap_or_default().to_owned();
            let plain = name.strip_suffix("[]").unwrap_or(&name);
            let bytes = part.bytes().await.map_err(broken)?;
            match table.field(plain).is_some_and(is_file) {
                true => files.push((plain.to_owned(), bytes)),
                false => {
                    let text = String::from_utf8(bytes.into());
                    let text = text.map_err(|_| ApiError::invalid(&name, format!("{name}: is not UTF-8")))?;
                    values.insert(name, Value::String(text));
                }
            }
        }
        let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
        Ok(Form { fields: Fields::of_form(values, &names, table)?, files, body: Bytes::new() })
    }

    /// The files of a name: parts of the form, or base64 in JSON.
    pub(crate) fn files(&mut self, name: &str) -> Result<Vec<Bytes>, ApiError> {
        let mut found: Vec<Bytes> =
            self.files.extract_if(.., |(own, _)| own == name).map(|(_, file)| file).collect();
        let given = match self.fields.value(name) {
            None => Vec::new(),
            Some(Value::Array(list)) => list,
            Some(one) => vec![one],
        };
        for value in given {
            found.push(bytes(name, value.as_str().unwrap_or_default())?.into());
        }
        Ok(found)
    }

    /// Refuses what nobody has taken.
    pub(crate) fn finish(self) -> Result<(), ApiError> {
        match self.files.first() {
            Some((name, _)) => Err(unknown(name)),
            None => self.fields.finish(),
        }
    }
}

/// Bytes of a body that was read.
pub(crate) fn size(body: &Body) -> usize {
    body.size_hint().exact().and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX)
}

fn is_file(field: &Field) -> bool {
    matches!(field.kind, Kind::Picture | Kind::OnePicture)
}

fn refuse(message: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, "invalid_form", message)
}
