//! Pictures behind links: kept in memory for a while, under names that nobody can guess.
//!
//! Whoever knows the name may see the picture: the link is the credential, because some clients fetch it without their key.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Uri, header};
use axum::response::{IntoResponse, Response};

use super::App;
use super::encode::Format;
use super::error::ApiError;
use super::openapi::{Routes, binary, op};
use crate::JobId;

/// How long a picture is kept.
const AGE: Duration = Duration::from_secs(3600);

/// How many bytes are kept, the newest.
const BYTES: usize = 256 << 20;

/// Where pictures are.
const FOLDER: &str = "/v1/files/";

/// Pictures by name.
#[derive(Debug)]
pub struct Files {
    kept: Mutex<Kept>,
    age: Duration,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Kept {
    files: HashMap<String, (Bytes, Format)>,
    /// Names, the oldest first.
    order: VecDeque<(String, Instant)>,
    bytes: usize,
}

impl Default for Files {
    fn default() -> Files {
        Files { kept: Mutex::default(), age: AGE, bytes: BYTES }
    }
}

impl Files {
    /// Keeps a picture; its path.
    pub(crate) fn keep(&self, file: Bytes, format: Format) -> String {
        let name = format!("{}.{}", JobId::random(), format.name());
        let path = format!("{FOLDER}{name}");
        let mut kept = self.kept();
        kept.bytes += file.len();
        kept.order.push_back((name.clone(), Instant::now()));
        kept.files.insert(name, (file, format));
        while kept.bytes > self.bytes && kept.order.len() > 1 {
            kept.drop_oldest();
        }
        path
    }

    /// Whether there is a picture at a path.
    pub(crate) fn holds(&self, path: &str) -> bool {
        path.strip_prefix(FOLDER).is_some_and(|name| self.kept().files.contains_key(name))
    }

    /// How many bytes they have.
    pub(crate) fn bytes(&self) -> usize {
        self.kept().bytes
    }

    fn get(&self, name: &str) -> Option<(Bytes, Format)> {
        self.kept().files.get(name).cloned()
    }

    /// What is kept, without what is too old.
    fn kept(&self) -> MutexGuard<'_, Kept> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        while kept.order.front().is_some_and(|(_, since)| since.elapsed() > self.age) {
            kept.drop_oldest();
        }
        kept
    }
}

impl Kept {
    fn drop_oldest(&mut self) {
        let Some((name, _)) = self.order.pop_front() else { return };
        let dropped = self.files.remove(&name);
        self.bytes -= dropped.map_or(0, |(file, _)| file.len());
    }
}

/// The path of pictures behind links.
pub(super) fn routes() -> Routes<App> {
    let about = [Format::Png, Format::Jpeg, Format::Webp].into_iter();
    let about = about
        .fold(op("A picture of an answer"), |about, format| about.answers(200, format.media_type(), binary()));
    Routes::new("OpenAI").get("/v1/files/{name}", show, about.by_link())
}

/// `GET /v1/files/{name}`
async fn show(State(app): State<App>, Path(name): Path<String>) -> Result<Response, ApiError> {
    let (file, format) = app.files.get(&name).ok_or_else(|| ApiError::not_found("file"))?;
    let headers = [
        (header::CONTENT_TYPE, format.media_type()),
        (header::CACHE_CONTROL, "private, max-age=3600"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    Ok((headers, file).into_response())
}

/// A path as logs may show it: without the names that are keys.
pub(crate) fn without_name(path: &str) -> &str {
    if path.starts_with(FOLDER) { FOLDER } else { path }
}

/// The server as its client sees it, such as `http://127.0.0.1:7860`: clients refuse links to any other. A proxy says with
/// `X-Forwarded-Proto` and `X-Forwarded-Host` what it was asked for. None where the request names no host.
pub(crate) fn origin(app: &App, headers: &HeaderMap, uri: &Uri) -> Option<String> {
    let given = |name: &str| {
        let value = headers.get(name)?.to_str().ok()?;
        value.split(',').next().map(|first| first.trim().to_owned())
    };
    let scheme = given("x-forwarded-proto").map(|scheme| scheme.to_ascii_lowercase());
    let scheme = scheme.filter(|scheme| scheme == "http" || scheme == "https");
    let host = given("x-forwarded-host").filter(|host| is_host(host)).or_else(|| given("host"));
    let host = host.or_else(|| uri.authority().map(|authority| authority.as_str().to_owned()));
    let host = host.filter(|host| is_host(host))?;
    Some(format!("{}://{host}", scheme.as_deref().unwrap_or(app.scheme)))
}

fn is_host(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
    !text.is_empty() && text.len() <= 300 && text.chars().all(is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(path: &str) -> &str {
        path.strip_prefix(FOLDER).expect("a path of the folder")
    }

    #[test]
    fn the_newest_stay() {
        let files = Files { bytes: 10, ..Files::default() };
        let first = files.keep(Bytes::from_static(b"12345"), Format::Png);
        let second = files.keep(Bytes::from_static(b"12345"), Format::Jpeg);
        assert!(files.holds(&first) && first.ends_with(".png") && second.ends_with(".jpeg"));
        let third = files.keep(Bytes::from_static(b"1"), Format::Png);
        assert!(!files.holds(&first) && files.holds(&second) && files.holds(&third));
        let large = files.keep(Bytes::from_static(b"123456789012"), Format::Png);
        assert!(
            !files.holds(&third) && files.get(name(&large)).is_some(),
            "the newest stays whatever its size"
        );
        assert!(!files.holds("/v1/files/") && !files.holds(&large.to_uppercase()));
    }

    #[test]
    fn the_old_go() {
        let files = Files { age: Duration::from_millis(1), ..Files::default() };
        let path = files.keep(Bytes::from_static(b"1"), Format::Png);
        std::thread::sleep(Duration::from_millis(5));
        assert!(!files.holds(&path));
        assert_eq!(files.kept().bytes, 0);
    }
}
