//! The paths of this API, and what they take and answer.

use super::options::{FIXED, OFF};
use super::tables::{EXTRA_BATCH, EXTRA_SINGLE, IMG2IMG, OPTIONS, PNG_INFO, TXT2IMG};
use super::{controlnet as nets, draw, extras, lists, options, progress};
use crate::http::App;
use crate::http::openapi::shape::{
    Shape, any_object, base64, flag, list, map, null, number, object, of, or_null, partly, text, whole,
};
use crate::http::openapi::{Op, Routes, op};
use utoipa::openapi::schema::Type;

const TAG: &str = "AUTOMATIC1111's web UI";

/// Paths below `/sdapi/v1`.
pub(super) fn web_ui() -> Routes<App> {
    let drawn = || object([("images", list(base64())), ("parameters", any_object()), ("info", text())]);
    let routes = Routes::new(TAG)
        .post("/txt2img", draw::txt2img, op("Draws a prompt").json(&TXT2IMG).ok(drawn()).draws())
        .post("/img2img", draw::img2img, op("Changes a picture").json(&IMG2IMG).ok(drawn()).draws())
        .get("/progress", progress::show, progress_op())
        .post("/interrupt", progress::interrupt, op("Ends the caller's newest call").ok(any_object()))
        .post("/skip", progress::skip, op("Ends what is drawn of the caller's newest call").ok(null()))
        .get("/options", options::show, op("What the caller has chosen").ok(chosen()))
        .post("/options", options::change, op("Chooses for later calls").json(&OPTIONS).ok(null()).refuses(404))
        .post("/png-info", extras::read, op("How a picture was made").json(&PNG_INFO).ok(png_info()))
        .post("/extra-single-image", extras::resize, resizes("image", base64()).json(&EXTRA_SINGLE))
        .post("/extra-batch-images", extras::resize_all, resizes("images", list(base64())).json(&EXTRA_BATCH))
        .post("/interrogate", extras::interrogate, op("Is refused: kiln has no model that describes pictures"));
    commands(lists_of(routes))
}

/// Paths below `/controlnet`.
pub(super) fn controlnet() -> Routes<App> {
    let models = object([("model_list", list(text()))]);
    let modules = object([("module_list", list(text())), ("module_detail", any_object())]);
    let units = object([("control_net_unit_count", whole())]);
    Routes::new(TAG)
        .get("/version", nets::version, op("The API's version").ok(object([("version", whole())])))
        .get("/model_list", nets::models, op("ControlNets of the caller's model").ok(models))
        .get("/module_list", nets::modules, op("Preprocessors, of which there are none").ok(modules))
        .get(
            "/control_types",
            nets::types,
            op("Kinds of ControlNets").ok(object([("control_types", any_object())])),
        )
        .get("/settings", nets::settings, op("How many units there are").ok(units))
        .post("/detect", nets::detect, op("Is refused: kiln has no preprocessors"))
}

fn lists_of(routes: Routes<App>) -> Routes<App> {
    let none = |summary| op(summary).ok(list(any_object()));
    let scripts = object([("txt2img", list(text())), ("img2img", list(text()))]);
    let embeddings = object([("loaded", any_object()), ("skipped", any_object())]);
    routes
        .get("/samplers", lists::samplers, op("Samplers").ok(list(sampler())))
        .get("/schedulers", lists::schedulers, op("Schedules of noise").ok(list(named(["name", "label"]))))
        .get("/upscalers", lists::upscalers, op("What enlarges pictures").ok(list(named(["name"]))))
        .get(
            "/latent-upscale-modes",
            lists::latent_upscale_modes,
            op("What enlarges latents").ok(list(named(["name"]))),
        )
        .get(
            "/sd-models",
            lists::models,
            op("The models").ok(list(named(["title", "model_name", "hash", "sha256", "filename"]))),
        )
        .get(
            "/loras",
            lists::loras,
            op("LoRAs of the caller's model").ok(list(named(["name", "alias", "path"]))),
        )
        .get("/sd-vae", lists::none, none("VAEs, of which there are none apart"))
        .get("/sd-modules", lists::none, none("Modules, of which there are none apart"))
        .get("/embeddings", lists::embeddings, op("Learned words, of which there are none").ok(embeddings))
        .get("/hypernetworks", lists::none, none("Hypernetworks, of which there are none"))
        .get("/face-restorers", lists::none, none("What mends faces, of which there is none"))
        .get("/realesrgan-models", lists::none, none("Upscaling models, of which there are none"))
        .get("/prompt-styles", lists::none, none("Styles, of which there are none"))
        .get("/scripts", lists::scripts, op("Scripts, of which there are none").ok(scripts))
        .get("/script-info", lists::none, none("Scripts, of which there are none"))
        .get("/cmd-flags", lists::flags, op("Flags").ok(map(flag())))
        .get(
            "/memory",
            lists::memory,
            op("Bytes of the process").ok(object([("ram", any_object()), ("cuda", any_object())])),
        )
}

/// What kiln does by itself.
fn commands(routes: Routes<App>) -> Routes<App> {
    let paths = ["refresh-checkpoints", "refresh-loras", "refresh-vae", "refresh-embeddings"];
    let paths = paths.into_iter().chain(["unload-checkpoint", "reload-checkpoint"]);
    let about = || op("Has no effect: kiln does this by itself").ok(null());
    paths.fold(routes, |routes, path| routes.post(&format!("/{path}"), lists::done, about()))
}

fn progress_op() -> Op {
    let counts = ["job_count", "job_no", "sampling_step", "sampling_steps"];
    let state = partly(
        [
            ("skipped", flag()),
            ("interrupted", flag()),
            ("stopping_generation", flag()),
            ("job", text()),
            ("job_timestamp", text()),
        ],
        counts.map(|name| (name, whole())),
    );
    let far = object([
        ("progress", number()),
        ("eta_relative", number()),
        ("state", state),
        ("current_image", or_null(base64())),
        ("textinfo", null()),
    ]);
    op("How far the caller's newest call is").query("skip_current_image", "true for no picture", text()).ok(far)
}

/// The options that there are.
fn chosen() -> Shape {
    let fixed = FIXED.iter().map(|field| (field.name, number()));
    let off = OFF.iter().map(|field| (field.name, flag()));
    let texts = ["samples_format", "sd_model_checkpoint", "sd_checkpoint_hash", "sd_vae", "randn_source"];
    let texts = texts.map(|name| (name, text())).into_iter();
    let numbers = ["CLIP_stop_at_last_layers", "eta_ddim"].map(|name| (name, number()));
    let own = of(Type::Object);
    texts
        .chain(numbers)
        .chain(fixed)
        .chain(off)
        .fold(own, |own, (name, shape)| own.property(name, shape))
        .into()
}

fn png_info() -> Shape {
    object([("info", text()), ("items", map(text())), ("parameters", map(text()))])
}

fn resizes(name: &'static str, pictures: Shape) -> Op {
    op("Resizes").ok(object([(name, pictures), ("html_info", text())]))
}

fn sampler() -> Shape {
    object([("name", text()), ("aliases", list(text())), ("options", map(text()))])
}

fn named<const N: usize>(names: [&'static str; N]) -> Shape {
    object(names.map(|name| (name, text())))
}
