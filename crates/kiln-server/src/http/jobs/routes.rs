//! The paths of kiln's own API.

use utoipa::openapi::schema::Type;

use super::asked::BODY;
use super::events::events;
use super::{cancel, create, delete, list as list_jobs, page, show, show_picture};
use crate::http::App;
use crate::http::openapi::shape::{
    Shape, any_object, event, flag, list, map, number, object, of, one_of, or_null, partly, text, whole,
};
use crate::http::openapi::{Routes, binary, op};
use crate::http::{options, settings};

const PNG: &str = "image/png";

/// The paths of jobs, and what jobs can choose from.
pub(in crate::http) fn routes() -> Routes<App> {
    let create_op = op("Takes a job").json(&BODY).answers(202, "application/json", job());
    let create_op = create_op.header("Idempotency-Key", "who sends one twice gets the same job", key());
    let listed = object([("jobs", list(job()))]);
    let create_op = create_op.refuses(422);
    let list_op = op("The newest jobs").query("limit", "number of jobs; 200 by default", page_limit());
    let list_op = list_op.query("before", "the id of a job: those that came before it", job_id());
    let events_op = op("Follows a job by server-sent events").answers(200, "text/event-stream", event());
    Routes::new("kiln")
        .post("/v1/jobs", create, create_op.draws())
        .get("/v1/jobs", list_jobs, list_op.ok(listed))
        .get("/v1/jobs/{id}", show, op("A job").ok(job()))
        .delete("/v1/jobs/{id}", delete, op("Cancels and forgets a job").answers_empty(204))
        .post(
            "/v1/jobs/{id}/cancel",
            cancel,
            op("Stops a job before its next step").answers(202, "application/json", job()).refuses(409),
        )
        .get("/v1/jobs/{id}/events", events, events_op)
        .get(
            "/v1/jobs/{id}/pictures/{index}",
            show_picture,
            op("A picture of a job").answers(200, PNG, binary()),
        )
        .get(
            "/v1/jobs/{id}/init_image",
            settings::init_image,
            op("The picture that a job started from").answers(200, PNG, binary()),
        )
        .get("/v1/jobs/{id}/mask", settings::mask, op("Where a job painted").answers(200, PNG, binary()))
        .get("/v1/options", options::show, op("What requests can choose from").ok(choices()))
}

fn page_limit() -> Shape {
    of(Type::Integer).minimum(Some(1)).maximum(Some(page::MAX)).into()
}

fn job_id() -> Shape {
    of(Type::String).pattern(Some("^[0-9a-f]{32}$")).into()
}

fn key() -> Shape {
    let plain = of(Type::String).max_length(Some(super::MAX_KEY));
    plain.pattern(Some("^[!-~]([ -~]*[!-~])?$")).into()
}

/// What clients see of a job.
fn job() -> Shape {
    let statuses = ["queued", "loading", "drawing", "decoding", "saving", "done", "failed", "cancelled"];
    partly(
        [
            ("id", text()),
            ("status", one_of(&statuses)),
            ("model", text()),
            ("created", whole()),
            ("seeds", list(whole())),
            ("pictures", list(text())),
        ],
        [
            ("is_cancelled", flag()),
            ("ended", whole()),
            ("position", whole()),
            ("remaining_seconds", number()),
            ("step", whole()),
            ("steps", whole()),
            ("settings", sent_settings()),
            ("infotexts", list(text())),
            ("error", object([("code", text()), ("message", text())])),
        ],
    )
}

/// A job's request, as it can be sent again.
fn sent_settings() -> Shape {
    partly(
        [
            ("model", text()),
            ("prompt", text()),
            ("negative_prompt", text()),
            ("n", whole()),
            ("guidance_rescale", number()),
            ("guidance_start", number()),
            ("guidance_end", number()),
            ("deep_every", whole()),
            ("eta", number()),
            ("clip_skip", whole()),
            ("loras", map(number())),
        ],
        [
            ("seed", whole()),
            ("width", whole()),
            ("height", whole()),
            ("steps", whole()),
            ("guidance_scale", number()),
            ("scheduler", text()),
            ("init_image", text()),
            ("mask", text()),
            ("strength", number()),
            ("hires", any_object()),
        ],
    )
}

fn choices() -> Shape {
    let limits = ["side", "pixels", "steps", "pictures", "prompt_bytes"].map(|name| (name, whole()));
    let model = object([
        ("name", text()),
        ("title", text()),
        ("class", text()),
        ("width", whole()),
        ("height", whole()),
        ("steps", whole()),
        ("guidance_scale", number()),
        ("scheduler", or_null(text())),
        ("schedulers", list(text())),
        ("loras", list(text())),
        ("limits", object(limits)),
    ]);
    object([("models", list(model)), ("max_body_bytes", whole())])
}
