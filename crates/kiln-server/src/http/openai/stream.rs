//! Answers as server-sent events.
//!
//! Clients take events of other types for pictures or die of them, so that what keeps the connection alive is a comment.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use kiln_runtime::Size;
use kiln_runtime::image::RgbImage;
use serde_json::Value;
use tokio::sync::mpsc::{self, Sender};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;

use super::answer::{Answer, now, usage};
use super::asked::Kind;
use crate::http::error::internal;
use crate::http::error::{ApiError, Dialect};
use crate::http::wait::event;
use crate::service::Ticket;
use crate::{Phase, Status};

/// How often a comment is sent while nothing else is.
const BEAT: Duration = Duration::from_secs(10);

/// A comment.
const COMMENT: &str = ": \n\n";

/// The last event.
const END: &str = "data: [DONE]\n\n";

/// Tells of a job until its pictures are there.
pub(super) fn follow(ticket: Ticket, answer: Answer) -> Response {
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        let told = async {
            if let Some(Err(error)) = tell(&sender, &ticket, &answer).await {
                send(&sender, event(None, &Dialect::OpenAi.body(&error))).await;
            }
            send(&sender, END.into()).await;
        };
        tokio::select! {
            () = told => {}
            // Nobody reads any more: the ticket is dropped.
            () = sender.closed() => {}
        }
    });
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    (headers, Body::from_stream(ReceiverStream::new(receiver))).into_response()
}

type Events = Sender<Result<Bytes, Infallible>>;

/// None where nobody reads any more.
async fn send(events: &Events, text: String) -> Option<()> {
    events.send(Ok(text.into())).await.ok()
}

async fn tell(events: &Events, ticket: &Ticket, answer: &Answer) -> Option<Result<(), ApiError>> {
    send(events, COMMENT.into()).await?;
    let mut watcher = ticket.job().watch();
    let mut partials = Partials::new(answer.n_partials);
    loop {
        let status = watcher.borrow_and_update().clone();
        if status.phase.is_final() {
            break;
        }
        if let Some((index, preview)) = partials.due(&status) {
            match answer.partial(index, preview).await {
                Ok(text) => send(events, text).await?,
                Err(error) => return Some(Err(error)),
            }
        }
        match timeout(BEAT, watcher.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => break,
            Err(_) => send(events, COMMENT.into()).await?,
        }
    }
    let finished = match ticket.pictures().await {
        Ok(finished) => finished,
        Err(fault) => return Some(Err(fault.into())),
    };
    for (i, image) in finished.images.iter().enumerate() {
        let infotext = finished.infotexts.get(i).cloned().unwrap_or_default();
        match answer.completed(image, infotext).await {
            Ok(text) => send(events, text).await?,
            Err(error) => return Some(Err(error)),
        }
    }
    Some(Ok(()))
}

/// Which previews are shown: so many, at equal distances.
#[derive(Debug, PartialEq)]
struct Partials {
    wanted: usize,
    /// Distances that are gone.
    gone: usize,
    sent: usize,
}

impl Partials {
    fn new(wanted: usize) -> Partials {
        Partials { wanted, gone: 0, sent: 0 }
    }

    /// The preview that is to be shown now, with its number.
    fn due<'a>(&mut self, status: &'a Status) -> Option<(usize, &'a RgbImage)> {
        let Phase::Drawing { steps, .. } = status.phase else { return None };
        let (step, preview) = status.preview.as_ref()?;
        let gone = (step * (self.wanted + 1) / steps.max(1)).min(self.wanted);
        if gone <= self.gone {
            return None;
        }
        self.gone = gone;
        self.sent += 1;
        Some((self.sent - 1, preview))
    }
}

impl Answer {
    fn event(&self, stage: &str, size: Size, file: &[u8]) -> Value {
        let path = if self.kind == Kind::Edit { "image_edit" } else { "image_generation" };
        let mut event = self.settings(size);
        event["type"] = format!("{path}.{stage}").into();
        event["b64_json"] = BASE64_STANDARD.encode(file).into();
        event["created_at"] = now().into();
        event
    }

    async fn partial(&self, index: usize, preview: &RgbImage) -> Result<String, ApiError> {
        let (preview, size) = (preview.clone(), self.preview_size);
        let preview = spawn_blocking(move || preview.resized(size)).await.map_err(|_| internal())?;
        let file = self.file(&preview, String::new()).await?;
        let mut data = self.event("partial_image", preview.size(), &file);
        data["partial_image_index"] = index.into();
        Ok(event(None, &data))
    }

    async fn completed(&self, image: &RgbImage, infotext: String) -> Result<String, ApiError> {
        let file = self.file(image, infotext).await?;
        let mut data = self.event("completed", image.size(), &file);
        data["usage"] = usage();
        Ok(event(None, &data))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn at(step: usize, steps: usize) -> Status {
        let preview = RgbImage::from_raw(1, 1, vec![0; 3]).expect("a picture");
        Status { phase: Phase::Drawing { step, steps }, preview: Some((step, Arc::new(preview))) }
    }

    fn shown(wanted: usize, steps: usize, seen: impl IntoIterator<Item = usize>) -> Vec<(usize, usize)> {
        let mut partials = Partials::new(wanted);
        let due = |step| partials.due(&at(step, steps)).map(|(index, _)| (step, index));
        seen.into_iter().filter_map(due).collect()
    }

    #[test]
    fn previews_are_shown_at_equal_distances() {
        assert_eq!(shown(3, 20, 1..=20), [(5, 0), (10, 1), (15, 2)]);
        assert_eq!(shown(1, 20, 1..=20), [(10, 0)]);
        assert_eq!(shown(0, 20, 1..=20), []);
        assert_eq!(shown(3, 2, 1..=2), [(1, 0), (2, 1)], "fewer where there are few steps");
        assert_eq!(shown(2, 9, [1, 8, 9]), [(8, 0)], "fewer where steps are missed");
    }
}
