//! A server that reads and checks requests, and draws nothing.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::Request;
use kiln_runtime::{Backends, Libraries, MemoryOptions, Pool};
use kiln_server::config::{Limits, ModelConfig};
use kiln_server::{Runtime, doorkeeper};
use tokio::runtime;
use tower::ServiceExt;

use crate::{Nothing, bundle_of, folder};

/// Most bytes of an answer.
const MAX_ANSWER: usize = 64 << 20;

/// Limits of a model whose pictures are soon read.
const LIMITS: Limits = Limits {
    side: 128,
    pixels: 128 * 128,
    pixels_together: 4 * 128 * 128,
    steps: 150,
    pictures: 4,
    prompt_bytes: 1 << 10,
};

/// What answers, on this thread.
struct Asked {
    runtime: runtime::Runtime,
    router: Router,
}

thread_local! {
    static ASKED: Asked = Asked::new();
}

impl Asked {
    fn new() -> Asked {
        let bundle = bundle_of(include_str!("corpus/manifest/dynamic")).expect("a bundle");
        let config = ModelConfig {
            name: "m".into(),
            bundle: "m".into(),
            title: None,
            loras: [("a".to_owned(), "a".into())].into(),
            scheduler: None,
            steps: None,
            limits: LIMITS,
            preload: false,
            keep: false,
        };
        let runtime = Runtime {
            backends: Backends::new(Libraries::default()),
            pool: Pool::new(),
            memory: MemoryOptions::default(),
            seal_key: None,
            kernels: None,
        };
        let state = folder().join("state");
        let router = doorkeeper::refusing(&config, bundle, Arc::new(Nothing), &runtime, &state).expect("paths");
        let runtime = runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        Asked { runtime, router }
    }
}

/// Posts a body; the answer is no fault of the server, and JSON where it is a refusal.
pub fn post(path: &str, headers: &[(&str, &str)], body: &[u8]) {
    let Some(request) = request(path, headers, body) else { return };
    ASKED.with(|asked| {
        asked.runtime.block_on(async {
            let Ok(response) = asked.router.clone().oneshot(request).await;
            let status = response.status();
            let body = to_bytes(response.into_body(), MAX_ANSWER).await.expect("a body");
            assert!(!status.is_server_error(), "{status}: {}", String::from_utf8_lossy(&body));
            if status.is_client_error() {
                serde_json::from_slice::<serde_json::Value>(&body).expect("JSON");
            }
        });
    });
}

/// None where the path or a header is none.
fn request(path: &str, headers: &[(&str, &str)], body: &[u8]) -> Option<Request<Body>> {
    let mut request = Request::post(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Body::from(body.to_vec())).ok()
}

/// The first line of an input, and the rest.
pub fn first_line(input: &[u8]) -> (&str, &[u8]) {
    let end = input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len());
    let line = std::str::from_utf8(&input[..end]).unwrap_or_default();
    (line, input.get(end + 1..).unwrap_or_default())
}

/// Posts the rest of an input below a path that its first line names, if that is one of these.
pub fn post_to(paths: &[&str], headers: &[(&str, &str)], input: &[u8]) {
    let (line, body) = first_line(input);
    if let Some(path) = paths.iter().find(|path| path.ends_with(line)) {
        post(path, headers, body);
    }
}
