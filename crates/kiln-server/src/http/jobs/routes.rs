//! The paths of kiln's own API.

use super::asked::BODY;
use super::{cancel, create, delete, events, list as list_jobs, show, show_picture};
use crate::http::App;
use crate::http::openapi::shape::{
    Shape, any_object, event, list, map, number, object, one_of, or_null, partly, text, whole,
};
use crate::http::openapi::{Routes, binary, op};
use crate::http::{options, settings};

const PNG: &str = "image/png";

/// The paths of jobs, and what jobs can choose from.
pub(in crate::http) fn routes() -> Routes<App> {
    let create_op = op("Takes a job").json(&BODY).answers(202, "application/json", job());
    let create_op = create_op.header("Idempotency-Key", "who sends one twice gets the same job", key());
    let listed = object([("jobs", list(job()))]);
    let cancelled = object([("id", text()), ("status", one_of(&["cancelled"]))]);
    let events_op = op("Follows a job by server-sent events").answers(200, "text/event-stream", event());
    Routes::new("kiln")
        .post("/v1/jobs", create, create_op.draws())
        .get("/v1/jobs", list_jobs, op("The newest jobs").ok(listed))
        .get("/v1/jobs/{id}", show, op("A job").ok(job()))
        .delete("/v1/jobs/{id}", delete, op("Cancels and forgets a job").answers_empty(204))
        .post(
            "/v1/jobs/{id}/cancel",
            cancel,
            op("Cancels a job").answers(202, "application/json", cancelled).refuses(409),
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

fn key() -> Shape {
    use utoipa::openapi::schema::{ObjectBuilder, Type};
    let plain = ObjectBuilder::new().schema_type(Type::String).max_length(Some(super::MAX_KEY));
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
