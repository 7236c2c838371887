//! `progress`, `interrupt` and `skip`: of the caller's own newest call alone.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::{Query, State};
use axum::{Extension, Json};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use kiln_runtime::Size;
use kiln_runtime::image::RgbImage;
use serde::Deserialize;
use serde_json::{Value, json};

use super::panel::Call;
use super::{Caller, Shared};
use crate::Phase;
use crate::http::App;
use crate::http::encode::png;

/// Pixels of a preview per latent.
const PREVIEW_SCALE: u32 = 4;

#[derive(Deserialize)]
pub(super) struct Asked {
    #[serde(default)]
    skip_current_image: Option<String>,
}

/// `GET progress`
pub(super) async fn show(
    State(app): State<App>,
    Extension(panel): Shared,
    Extension(client): Caller,
    Query(asked): Query<Asked>,
) -> Json<Value> {
    let call = panel.newest(&client);
    let Some(call) = call else {
        return Json(json!({
            "progress": 0.0, "eta_relative": 0.0, "state": Far::default().state(None),
            "current_image": null, "textinfo": null,
        }));
    };
    let far = Far::of(&call);
    let eta = call.jobs.last().and_then(|job| app.service.remaining(job));
    let skips =
        asked.skip_current_image.is_some_and(|skip| ["true", "1"].contains(&&*skip.to_ascii_lowercase()));
    let preview = if skips { None } else { preview(&call).await };
    Json(json!({
        "progress": far.share(),
        "eta_relative": eta.map_or(0.0, |eta| eta.as_secs_f64()),
        "state": far.state(Some(&call)),
        "current_image": preview,
        "textinfo": null,
    }))
}

/// How far a call is.
#[derive(Default)]
struct Far {
    jobs: usize,
    done: usize,
    step: usize,
    steps: usize,
}

impl Far {
    fn of(call: &Call) -> Far {
        let done = call.jobs.iter().filter(|job| job.status().phase.is_final()).count();
        let current = call.jobs.iter().map(|job| job.status().phase).find(|phase| !phase.is_final());
        let (step, steps) = match current {
            Some(Phase::Drawing { step, steps }) => (step, steps),
            Some(Phase::Decoding) => (1, 1),
            _ => (0, 0),
        };
        Far { jobs: call.jobs.len(), done, step, steps }
    }

    /// From 0.01, as long as something is under way, to 1.
    fn share(&self) -> f64 {
        let current = if self.steps > 0 { self.step as f64 / self.steps as f64 } else { 0.0 };
        (0.01 + (self.done as f64 + current) / self.jobs.max(1) as f64).min(1.0)
    }

    fn state(&self, call: Option<&Call>) -> Value {
        let is = |of: fn(&Call) -> bool| call.is_some_and(of);
        json!({
            "skipped": is(|call| call.is_skipped),
            "interrupted": is(|call| call.is_interrupted),
            "stopping_generation": is(|call| call.is_interrupted),
            "job": call.map_or("", |call| call.task),
            "job_count": self.jobs,
            "job_timestamp": timestamp(call.map_or(UNIX_EPOCH, |call| call.begun)),
            "job_no": self.done,
            "sampling_step": self.step,
            "sampling_steps": self.steps,
        })
    }
}

async fn preview(call: &Call) -> Option<String> {
    let previews = call.jobs.iter().map(|job| job.status()).filter(|status| !status.phase.is_final());
    let (_, preview) = previews.filter_map(|status| status.preview).next()?;
    let file = tokio::task::spawn_blocking(move || enlarged(&preview)).await;
    Some(BASE64_STANDARD.encode(file.ok()??))
}

fn enlarged(preview: &RgbImage) -> Option<Vec<u8>> {
    let Size { width, height } = preview.size();
    png(&preview.resized(Size::new(width * PREVIEW_SCALE, height * PREVIEW_SCALE)), "").ok()
}

/// `20261128140900`, in UTC (Howard Hinnant's `civil_from_days`).
pub(super) fn timestamp(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let (days, of_day) = (seconds / 86400 + 719_468, seconds % 86400);
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let shifted = (5 * day + 2) / 153;
    let (day, month) =
        (day - (153 * shifted + 2) / 5 + 1, if shifted < 10 { shifted + 3 } else { shifted - 9 });
    let year = year + 400 * era + u64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}{month:02}{day:02}{hour:02}{minute:02}{second:02}")
}

/// `POST interrupt`: ends the call; what is drawn already is its answer.
pub(super) async fn interrupt(
    State(app): State<App>,
    Extension(panel): Shared,
    Extension(client): Caller,
) -> Json<Value> {
    if let Some(call) = panel.mark(&client, |call| call.is_interrupted = true) {
        call.jobs.iter().for_each(|job| app.service.cancel(job));
    }
    Json(json!({}))
}

/// `POST skip`: ends the iteration that is drawn; the next one follows.
pub(super) async fn skip(
    State(app): State<App>,
    Extension(panel): Shared,
    Extension(client): Caller,
) -> Json<Value> {
    let call = panel.mark(&client, |call| call.is_skipped = true);
    let jobs = call.iter().flat_map(|call| &call.jobs);
    if let Some(job) = jobs.into_iter().find(|job| !job.status().phase.is_final()) {
        app.service.cancel(job);
    }
    Json(Value::Null)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_dates() {
        for (seconds, text) in [
            (0, "19700101000000"),
            (951_782_400, "20000229000000"),
            (1_767_225_599, "20251231235959"),
            (1_795_874_946, "20261128140906"),
        ] {
            assert_eq!(timestamp(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }
}
