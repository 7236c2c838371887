//! What flags, environment and models file come to.

use std::ffi::OsStr;
use std::path::absolute;

use clap::{Arg, ArgAction, ArgMatches, ValueHint};
use kiln_server::ServerOptions;
use kiln_server::config::ModelConfig;
use serde_json::{Map, Value, json};

use crate::args::{self, ACTIONS};
use crate::failure::Failure;
use crate::output;

/// Prints every flag under its name, with `_` for `-`, and the models, as a models file.
pub(super) fn print(options: &ServerOptions, models: &[ModelConfig]) -> Result<(), Failure> {
    let mut config = flags()?;
    config.insert("state".into(), json!(options.state));
    config.insert("allow_host".into(), json!(options.hosts));
    // As many as a fleet takes are no number.
    let bound = |n: usize| Some(n).filter(|n| *n != usize::MAX);
    config.insert("queue".into(), json!(bound(options.queue)));
    config.insert("queue_share".into(), json!(bound(options.share)));
    let models: Vec<ModelConfig> = models.iter().cloned().map(from_anywhere).collect();
    config.insert("models".into(), serde_json::to_value(models).map_err(Failure::unexpected)?);
    let text = serde_yaml::to_string(&config).map_err(Failure::unexpected)?;
    output::data(text.trim_end());
    Ok(())
}

/// The model with paths that are the same from every folder.
fn from_anywhere(mut model: ModelConfig) -> ModelConfig {
    model.bundle = absolute(&model.bundle).unwrap_or(model.bundle);
    model.loras.values_mut().for_each(|lora| *lora = absolute(&*lora).unwrap_or_else(|_| lora.clone()));
    model
}

/// The flags as they stand on the command line, in the environment, in the models file, or by default.
fn flags() -> Result<Map<String, Value>, Failure> {
    let command = args::command();
    let matches = args::matches(&command).map_err(Failure::unexpected)?;
    let given = matches.subcommand().and_then(|(name, given)| Some((command.find_subcommand(name)?, given)));
    let Some((serve, given)) = given else { return Ok(Map::new()) };
    let named = serve.get_arguments().filter_map(|flag| Some((flag.get_long()?, flag)));
    let settings = named.filter(|(name, _)| !ACTIONS.contains(name));
    Ok(settings.map(|(name, flag)| (name.replace('-', "_"), value(flag, given))).collect())
}

fn value(flag: &Arg, given: &ArgMatches) -> Value {
    let id = flag.get_id().as_str();
    let is_path = flag.get_value_hint() == ValueHint::AnyPath;
    let text = |text: &OsStr| match absolute(text) {
        Ok(path) if is_path => path.to_string_lossy().into(),
        _ => scalar(&text.to_string_lossy()),
    };
    let mut texts = given.get_raw(id).into_iter().flatten().map(text);
    match flag.get_action() {
        ArgAction::SetTrue => given.get_flag(id).into(),
        ArgAction::Append => texts.collect(),
        _ => texts.next_back().unwrap_or_default(),
    }
}

/// A number where the text is one.
fn scalar(text: &str) -> Value {
    text.parse::<u64>().map_or_else(|_| text.into(), Value::from)
}
