//! A job as its client sees it.

use serde::Serialize;
use serde_json::{Value, json};

use crate::http::App;
use crate::http::settings::Settings;
use crate::store::{Ending, Record};
use crate::{Job, JobId, Phase};

/// What clients see of a job.
#[derive(Serialize)]
pub(super) struct View {
    id: JobId,
    pub(super) status: &'static str,
    /// Whether it was told to stop; it does before its next step.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    is_cancelled: bool,
    model: String,
    created: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ended: Option<u64>,
    /// Jobs that are drawn before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remaining_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    step: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    steps: Option<usize>,
    seeds: Vec<u64>,
    /// Not in events, which repeat the rest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) settings: Option<Settings>,
    pictures: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    infotexts: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Value>,
}

impl View {
    pub(super) fn of(app: &App, record: Record, job: Option<&Job>) -> View {
        let settings = Settings::of(&record.id, &record.spec);
        let mut view = View {
            id: record.id,
            status: "queued",
            is_cancelled: false,
            model: record.spec.model,
            created: record.created,
            ended: record.ended,
            position: None,
            remaining_seconds: None,
            step: None,
            steps: None,
            seeds: record.spec.request.seeds,
            settings: Some(settings),
            pictures: Vec::new(),
            infotexts: Vec::new(),
            error: None,
        };
        match record.ending {
            Ending::Done { pictures, infotexts } => {
                view.status = "done";
                view.pictures = (0..pictures).map(|i| format!("/v1/jobs/{}/pictures/{i}", view.id)).collect();
                view.infotexts = infotexts;
            }
            Ending::Failed { fault } => {
                view.status = "failed";
                view.error = Some(json!({ "code": fault.kind, "message": fault.message }));
            }
            Ending::Cancelled => (view.status, view.is_cancelled) = ("cancelled", true),
            Ending::Open => view.live(app, job),
        }
        view
    }

    /// How far a job is that has not ended on disk yet.
    fn live(&mut self, app: &App, job: Option<&Job>) {
        let Some(job) = job else { return };
        let status = job.status();
        self.is_cancelled = job.was_stopped();
        self.status = match &status.phase {
            // It is drawn after the next start.
            _ if app.service.leaves(job) => "queued",
            phase if phase.is_final() => "saving",
            phase => phase.name(),
        };
        self.position = app.service.position(&job.id);
        self.remaining_seconds = app.service.remaining(job).map(|time| time.as_secs_f64());
        if let Phase::Drawing { step, steps } = status.phase {
            (self.step, self.steps) = (Some(step), Some(steps));
        }
    }
}
