use serde_json::{Map, Value};

use super::class::{self, SchedulerClass};
use super::keys::{self, refuse};
use super::{SchedulerConfig, SchedulerError, elsewhere};

/// How a pipeline of diffusers corrects the configuration of the scheduler that it is made with.
///
/// A correction of a value that the file does not give is not carried over to another class, as there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Correction {
    /// Not at all.
    #[default]
    None,
    /// `StableDiffusionPipeline`: `clip_sample` off and `steps_offset` 1.
    StableDiffusion,
    /// `StableDiffusionInpaintPipeline`: `steps_offset` 1 and `skip_prk_steps` on.
    Inpainting,
}

impl Correction {
    /// Corrects what a file gives.
    pub(super) fn apply(self, given: &mut Map<String, Value>) {
        let (key, is_on) = match self {
            Correction::None => return,
            Correction::StableDiffusion => ("clip_sample", false),
            Correction::Inpainting => ("skip_prk_steps", true),
        };
        if let Some(value) = given.get_mut(key).filter(|value| **value == Value::Bool(!is_on)) {
            *value = is_on.into();
        }
        if let Some(offset) = given.get_mut("steps_offset") {
            *offset = 1.into();
        }
    }
}

/// `scheduler_config.json` before a class reads it, which may be one that does not run here.
#[derive(Clone, Debug, PartialEq)]
pub struct SchedulerSettings {
    class: String,
    /// Where the class is named.
    key: &'static str,
    given: Map<String, Value>,
    correction: Correction,
}

impl SchedulerSettings {
    /// Reads the text of a `scheduler_config.json`. A file without a class is DDIM's.
    ///
    /// # Errors
    ///
    /// Where it is not a JSON object, or where its class is not a name.
    pub fn from_json(text: &str) -> Result<SchedulerSettings, SchedulerError> {
        let mut given = keys::object(text)?;
        let class = match given.get("_class_name") {
            None | Some(Value::Null) => SchedulerClass::Ddim.name().to_owned(),
            Some(Value::String(name)) => name.clone(),
            Some(list @ Value::Array(_)) => list.to_string(),
            Some(other) => return Err(refuse("_class_name", format!("{other} is not a name"))),
        };
        if let Some(Value::Array(defaults)) = given.remove("_use_default_values") {
            given.retain(|key, _| !defaults.iter().any(|default| default == key));
        }
        Ok(SchedulerSettings { class, key: "_class_name", given, correction: Correction::None })
    }

    /// The same settings for the class that `model_index.json` names, which decides (diffusers
    /// `pipelines/pipeline_loading_utils.py`, `load_sub_model`).
    ///
    /// `key` is where it is named.
    #[must_use]
    pub fn of_class(self, key: &'static str, class: impl Into<String>) -> SchedulerSettings {
        SchedulerSettings { class: class.into(), key, ..self }
    }

    /// The same settings as a pipeline corrects them.
    #[must_use]
    pub fn corrected(&self, correction: Correction) -> SchedulerSettings {
        SchedulerSettings { correction, ..self.clone() }
    }

    /// The name of the class, which may be none of those that run here.
    pub fn class(&self) -> &str {
        &self.class
    }

    /// What the class reads in them.
    ///
    /// # Errors
    ///
    /// [`SchedulerError::Class`] where the class does not run here, and [`SchedulerError::Config`] for a value that it
    /// does not know.
    pub fn config(&self) -> Result<SchedulerConfig, SchedulerError> {
        let class = SchedulerClass::from_name(&self.class);
        let class = class.ok_or_else(|| elsewhere::unsupported(self.key, &self.class))?;
        Ok(SchedulerConfig::read(class, self.given.clone())?.corrected(self.correction))
    }

    /// The configuration of another scheduler, as [`SchedulerConfig::with_scheduler`] makes it; also where that of the
    /// settings' own class does not run here.
    pub fn with_scheduler(&self, name: &str) -> Result<SchedulerConfig, SchedulerError> {
        if let Ok(own) = self.config() {
            return own.with_scheduler(name);
        }
        let mut given = self.given.clone();
        self.correction.apply(&mut given);
        read_named(name, given)
    }

    /// Keys that no scheduler of diffusers reads, and which are ignored as there.
    pub fn ignored(&self) -> impl Iterator<Item = &str> {
        self.given.keys().map(String::as_str).filter(|key| !keys::is_known(key))
    }
}

/// The configuration of the scheduler of a name, from what a file gives.
pub(super) fn read_named(name: &str, mut given: Map<String, Value>) -> Result<SchedulerConfig, SchedulerError> {
    let (class, set) = class::by_name(name)?;
    given.extend(set);
    SchedulerConfig::read(class, given)
}
