//! What happens to a job, as server-sent events.

use std::convert::Infallible;
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use kiln_runtime::Size;
use kiln_runtime::image::RgbImage;
use serde_json::json;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio_stream::wrappers::ReceiverStream;

use super::view::View;
use super::{owned, record};
use crate::http::App;
use crate::http::encode::png;
use crate::http::error::ApiError;
use crate::http::wait::event;
use crate::store::Record;
use crate::{ClientId, Job, JobId, Status};

/// How often a job is looked at whose state does not change, for its position and remaining time.
const BEAT: Duration = Duration::from_secs(2);

/// How long, and how often, a job is looked for whose end is not on disk and that nobody draws.
const SEARCH: (Duration, usize) = (Duration::from_millis(50), 40);

/// `GET /v1/jobs/{id}/events`: `queued`, `loading`, `drawing`, `preview`, `decoding`, then one of `done`, `failed` and
/// `cancelled`, each with the job as data.
pub(crate) async fn events(
    State(app): State<App>,
    Extension(client): Extension<ClientId>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let id = owned(&app, &client, &id).await?;
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from_stream(ReceiverStream::new(follow(app, id)))).into_response())
}

fn follow(app: App, id: JobId) -> Receiver<Result<Bytes, Infallible>> {
    let (sender, receiver) = channel(4);
    tokio::spawn(async move {
        let mut follower = Follower { app, id, sender, told: String::new(), shown: None };
        // Whoever asked has left.
        let _ = follower.run().await;
    });
    receiver
}

struct Follower {
    app: App,
    id: JobId,
    sender: Sender<Result<Bytes, Infallible>>,
    /// The last event.
    told: String,
    /// The step of the last preview.
    shown: Option<usize>,
}

/// The reader has gone.
struct Gone;

impl Follower {
    async fn run(&mut self) -> Result<(), Gone> {
        let unknown = || ApiError::new(StatusCode::NOT_FOUND, "not_found", "the job is not known any more");
        let mut lost = unknown();
        for _ in 0..SEARCH.1 {
            // The job first: where it is gone, its end is on disk.
            let job = self.app.service.job(&self.id);
            match (record(&self.app, &self.id).await, job) {
                (Ok(Some(record)), _) if record.ended.is_some() => return self.tell(record, None).await,
                (Ok(Some(record)), Some(job)) => {
                    let watcher = job.watch();
                    if self.watch(record, job, watcher).await? {
                        return Ok(());
                    }
                    continue;
                }
                (Ok(None), _) => {
                    lost = unknown();
                    break;
                }
                (Ok(Some(_)), None) => lost = unknown(),
                // The store may come back.
                (Err(error), _) => lost = error,
            }
            tokio::time::sleep(SEARCH.0).await;
        }
        let lost = json!({ "error": { "message": lost.message, "code": lost.code } });
        self.send(event(Some("error"), &lost)).await
    }

    /// Tells what changes of a job until it is gone, or is left for the next start: whether it is left.
    async fn watch(
        &mut self,
        record: Record,
        job: std::sync::Arc<Job>,
        mut watcher: watch::Receiver<Status>,
    ) -> Result<bool, Gone> {
        while self.app.service.job(&self.id).is_some() {
            let status = watcher.borrow_and_update().clone();
            self.show(&status).await?;
            self.tell(record.clone(), Some(&job)).await?;
            if self.app.service.leaves(&job) {
                return Ok(true);
            }
            let is_final = status.phase.is_final();
            let beat = if is_final { SEARCH.0 } else { BEAT };
            tokio::select! {
                _ = watcher.changed() => {}
                () = self.app.service.closed(), if !self.app.service.is_closed() => {}
                () = self.sender.closed() => return Err(Gone),
                () = tokio::time::sleep(beat) => {}
            }
        }
        Ok(false)
    }

    async fn show(&mut self, status: &Status) -> Result<(), Gone> {
        match &status.preview {
            Some((step, preview)) if self.shown != Some(*step) && !status.phase.is_final() => {
                self.shown = Some(*step);
                match preview_event(preview, *step).await {
                    Some(text) => self.send(text).await,
                    None => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    /// Tells how far the job is, unless that was told before.
    async fn tell(&mut self, record: Record, job: Option<&Job>) -> Result<(), Gone> {
        let mut view = View::of(&self.app, record, job);
        view.settings = None;
        let text = event(Some(view.status), &json!(view));
        if text == self.told {
            return Ok(());
        }
        self.told.clone_from(&text);
        self.send(text).await
    }

    async fn send(&self, text: String) -> Result<(), Gone> {
        self.sender.send(Ok(Bytes::from(text))).await.map_err(|_| Gone)
    }
}

async fn preview_event(preview: &RgbImage, step: usize) -> Option<String> {
    let preview = preview.clone();
    let file = spawn_blocking(move || {
        let size = preview.size();
        png(&preview.resized(Size::new(size.width * 4, size.height * 4)), "")
    });
    let file = file.await.ok()?.ok()?;
    Some(event(Some("preview"), &json!({ "step": step, "png": BASE64_STANDARD.encode(file) })))
}
