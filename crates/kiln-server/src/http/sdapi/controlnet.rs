//! ControlNets: units of a call (`sd-webui-controlnet`), and lists.

use axum::extract::State;
use axum::{Extension, Json};
use kiln_runtime::{Control, Size};
use serde_json::{Map, Value, json};

use super::fields::{Fields, invalid};
use super::paint::{self, Fit, Ready};
use super::tables::UNIT;
use super::{Caller, Shared};
use crate::ModelCard;
use crate::fault::shown;
use crate::http::App;
use crate::http::error::ApiError;
use crate::http::upload::picture;

/// The control pictures of units that are switched on, in the order of the model's ControlNets.
pub(super) fn units(
    units: &[Value],
    model: &ModelCard,
    init: Option<&Ready>,
    size: Size,
) -> Result<Vec<Control>, ApiError> {
    let mut placed: Vec<Option<Control>> = vec![None; model.controlnets.len()];
    for unit in units.iter().filter_map(Value::as_object) {
        let unit = Fields::of_object(unit.clone(), &UNIT)?;
        if unit.flag("enabled") == Some(false) {
            continue;
        }
        let at = place(&unit, model, &placed)?;
        placed[at] = Some(control(&unit, init, size)?);
    }
    let n = placed.iter().flatten().count();
    match n == 0 || n == placed.len() {
        true => Ok(placed.into_iter().flatten().collect()),
        false => Err(refuse(format!("{n} units for {} ControlNets, which work together", placed.len()))),
    }
}

fn refuse(reason: impl AsRef<str>) -> ApiError {
    invalid("alwayson_scripts.controlnet", reason)
}

/// The ControlNet that a unit names, or the first one that is free.
fn place(unit: &Fields, model: &ModelCard, placed: &[Option<Control>]) -> Result<usize, ApiError> {
    let name = unit.choice("model").map(|name| name.split(" [").next().unwrap_or(name));
    let at = match name {
        Some(name) => model.controlnets.iter().position(|known| known.eq_ignore_ascii_case(name)),
        None => placed.iter().position(Option::is_none),
    };
    match (at.filter(|at| placed[*at].is_none()), name) {
        (Some(at), _) => Ok(at),
        (None, _) if placed.is_empty() => Err(refuse("the model has no ControlNets")),
        (None, Some(name)) => Err(refuse(format!("'{}' is not free among the model's", shown(name)))),
        (None, None) => Err(refuse(format!("more units than the model's {} ControlNets", placed.len()))),
    }
}

fn control(unit: &Fields, init: Option<&Ready>, size: Size) -> Result<Control, ApiError> {
    if let Some(module) = unit.choice("module") {
        return Err(refuse(format!("module '{}': kiln has no preprocessors", shown(module))));
    }
    if unit.get("mask").is_some() || unit.get("mask_image").is_some() {
        return Err(refuse("mask: kiln's units have none"));
    }
    let mode = unit.get("control_mode").filter(|mode| **mode != 0 && **mode != "Balanced");
    if mode.is_some() {
        return Err(refuse("control_mode: kiln draws with Balanced alone"));
    }
    let given = unit.get("image").or(unit.get("input_image"));
    let text = given.and_then(|image| image.as_str().or(image.get("image").and_then(Value::as_str)));
    let fit = match unit.get("resize_mode") {
        Some(mode) if *mode == 0 || *mode == "Just Resize" => Fit::Stretch,
        Some(mode) if *mode == 2 || *mode == "Resize and Fill" => Fit::Fill,
        _ => Fit::Crop,
    };
    let image = match (text, init) {
        (Some(text), _) => paint::fitted(&picture("alwayson_scripts.controlnet.image", text)?, size, fit),
        (None, Some(init)) => init.1.clone(),
        (None, None) => return Err(refuse("a unit has no image")),
    };
    let scale = unit.number("weight").unwrap_or(1.0) as f32;
    let start = unit.number("guidance_start").unwrap_or(0.0);
    let end = unit.number("guidance_end").unwrap_or(1.0);
    Ok(Control::new(image).scale(scale).between(start, end))
}

/// `GET /controlnet/version`
pub(super) async fn version() -> Json<Value> {
    Json(json!({ "version": 2 }))
}

/// `GET /controlnet/model_list`: those of the client's model.
pub(super) async fn models(
    State(app): State<App>,
    Extension(panel): Shared,
    Extension(client): Caller,
) -> Result<Json<Value>, ApiError> {
    let models = app.service.models().cards();
    Ok(Json(json!({ "model_list": panel.settings(&client).model(&models)?.controlnets })))
}

/// `GET /controlnet/module_list`: there are no preprocessors.
pub(super) async fn modules() -> Json<Value> {
    Json(json!({ "module_list": ["none"], "module_detail": Map::new() }))
}

/// `GET /controlnet/control_types`
pub(super) async fn types(app: State<App>, panel: Shared, client: Caller) -> Result<Json<Value>, ApiError> {
    let models = models(app, panel, client).await?.0["model_list"].take();
    let all = json!({
        "module_list": ["none"], "model_list": models, "default_option": "none", "default_model": "None",
    });
    Ok(Json(json!({ "control_types": { "All": all } })))
}

/// `GET /controlnet/settings`
pub(super) async fn settings(app: State<App>, panel: Shared, client: Caller) -> Result<Json<Value>, ApiError> {
    let models = models(app, panel, client).await?.0["model_list"].take();
    Ok(Json(json!({ "control_net_unit_count": models.as_array().map_or(0, Vec::len) })))
}

/// `POST /controlnet/detect`
pub(super) async fn detect() -> ApiError {
    ApiError::invalid("controlnet_module", "controlnet_module: kiln has no preprocessors")
}
