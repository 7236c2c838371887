//! The pages at `/` and `/docs`: plain HTML, style and scripts inside the program, which speak to kiln's own API and to
//! nobody else.

use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::App;
use super::openapi::shape::text;
use super::openapi::{Routes, op};

/// A file of the page.
#[derive(Clone, Copy)]
struct File {
    path: &'static str,
    about: &'static str,
    media_type: &'static str,
    content: &'static str,
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

const fn file(path: &'static str, media_type: &'static str, content: &'static str) -> File {
    File { path, about: "A file of the pages", media_type, content }
}

const fn page(path: &'static str, about: &'static str, content: &'static str) -> File {
    File { path, about, media_type: HTML, content }
}

const FILES: [File; 12] = [
    page("/", "The page to draw with", include_str!("index.html")),
    page("/docs", "A page that shows this document", include_str!("docs.html")),
    file("/page/docs.css", CSS, include_str!("docs.css")),
    file("/page/docs.js", JAVASCRIPT, include_str!("docs.js")),
    file("/page/page.css", CSS, include_str!("page.css")),
    file("/page/page.js", JAVASCRIPT, include_str!("page.js")),
    file("/page/api.js", JAVASCRIPT, include_str!("api.js")),
    file("/page/form.js", JAVASCRIPT, include_str!("form.js")),
    file("/page/gallery.js", JAVASCRIPT, include_str!("gallery.js")),
    file("/page/jobs.js", JAVASCRIPT, include_str!("jobs.js")),
    file("/page/start.js", JAVASCRIPT, include_str!("start.js")),
    file("/page/icon.svg", SVG, include_str!("icon.svg")),
];

/// What the page may do: nothing but what its own files ask of this server.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; \
    connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'";

/// The paths of the page's files.
pub(super) fn routes() -> Routes<App> {
    FILES.into_iter().fold(Routes::new("page"), |routes, file| {
        let about = op(file.about).answers(200, file.media_type, text()).answers_empty(304);
        routes.get(file.path, async move |headers: HeaderMap| file.answer(&headers), about)
    })
}

/// Whether a file of the page lies at a path.
pub(super) fn is_at(path: &str) -> bool {
    FILES.iter().any(|file| file.path == path)
}

impl File {
    /// The file; nothing but its tag where the browser has it.
    fn answer(self, asked: &HeaderMap) -> Response {
        let tag = format!("\"{}\"", &blake3::hash(self.content.as_bytes()).to_hex()[..32]);
        let is_known =
            asked.get_all(header::IF_NONE_MATCH).iter().any(|known| is_among(known.as_bytes(), &tag));
        let headers = [
            (header::ETAG, tag.as_str()),
            (header::CACHE_CONTROL, "no-cache"),
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "no-referrer"),
            (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        ];
        match is_known {
            true => (StatusCode::NOT_MODIFIED, headers).into_response(),
            false => (headers, [(header::CONTENT_TYPE, self.media_type)], self.content).into_response(),
        }
    }
}

/// Whether a tag is one of those that `If-None-Match` lists (RFC 9110, section 13.1.2).
fn is_among(known: &[u8], tag: &str) -> bool {
    let known = String::from_utf8_lossy(known);
    known.split(',').map(|one| one.trim()).any(|one| one == "*" || one.trim_start_matches("W/") == tag)
}
