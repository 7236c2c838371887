//! Reading `config.json`: every key is either understood, known to change nothing, or refused by name.
//!
//! Keys that a class does not know change nothing in diffusers and transformers either, whatever their values.

use std::collections::BTreeSet;

use kiln_graph::TraceError;
use serde_json::{Map, Value};

use crate::known;

/// Largest width, vocabulary or size that a configuration may ask for.
const MAX_SIZE: u64 = 1 << 20;

pub(crate) struct ConfigReader<'a> {
    origin: &'a str,
    class: &'a str,
    map: &'a Map<String, Value>,
    /// Keys whose values count for nothing, since the class's defaults were in use when the file was written (diffusers'
    /// `configuration_utils.py`, `extract_init_dict`).
    defaulted: BTreeSet<&'a str>,
    read: BTreeSet<&'static str>,
}

/// Keys of a configuration that its class does not know, but for those that ask for nothing.
pub fn unknown_keys<'a>(class: &str, value: &'a Value) -> Vec<&'a str> {
    let asks = |(key, value): &(&String, &Value)| !key.starts_with('_') && asks_for_something(value);
    let keys = value.as_object().into_iter().flatten().filter(asks).map(|(key, _)| key.as_str());
    keys.filter(|key| !known::takes(class, key) && !HOUSEKEEPING.contains(key)).collect()
}

/// Keys of transformers' configurations that say where a file comes from.
const HOUSEKEEPING: [&str; 7] =
    ["architectures", "dropout", "dtype", "model_type", "torch_dtype", "transformers_version", "use_cache"];

fn asks_for_something(value: &Value) -> bool {
    !value.is_null() && *value != Value::Bool(false)
}

impl<'a> ConfigReader<'a> {
    pub(crate) fn new(
        origin: &'a str,
        value: &'a Value,
        class: &'a str,
    ) -> Result<ConfigReader<'a>, TraceError> {
        let Some(map) = value.as_object() else {
            return Err(config_error(origin, "(root)", "is not a JSON object"));
        };
        let defaulted = map.get("_use_default_values").and_then(Value::as_array).into_iter().flatten();
        let defaulted = defaulted.filter_map(Value::as_str).collect();
        let reader = ConfigReader { origin, class, map, defaulted, read: BTreeSet::new() };
        match map.get("_class_name").and_then(Value::as_str) {
            Some(found) if found != class => {
                Err(reader.error("_class_name", format!("'{found}' where a {class} is expected")))
            }
            _ => Ok(reader),
        }
    }

    pub(crate) fn error(&self, key: &str, reason: impl Into<String>) -> TraceError {
        config_error(self.origin, key, reason)
    }

    /// What a key says; `None` where it is absent or null.
    pub(crate) fn get(&mut self, key: &'static str) -> Option<&'a Value> {
        self.read.insert(key);
        self.found(key).filter(|value| !value.is_null())
    }

    fn found(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|_| !self.defaulted.contains(key))
    }

    /// A size: a positive number that is safe to compute with.
    pub(crate) fn size(&mut self, key: &'static str, default: Option<u64>) -> Result<u64, TraceError> {
        let value = match (self.get(key), default) {
            (Some(value), _) => value,
            (None, Some(default)) => return Ok(default),
            (None, None) => return Err(self.error(key, "is missing")),
        };
        self.as_size(key, value)
    }

    pub(crate) fn optional_size(&mut self, key: &'static str) -> Result<Option<u64>, TraceError> {
        self.get(key).map(|value| self.as_size(key, value)).transpose()
    }

    fn as_size(&self, key: &str, value: &Value) -> Result<u64, TraceError> {
        value
            .as_u64()
            .filter(|n| (1..=MAX_SIZE).contains(n))
            .ok_or_else(|| self.error(key, format!("{value} is not a number from 1 to {MAX_SIZE}")))
    }

    /// Whether the key is present and not null.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.found(key).is_some_and(|value| !value.is_null())
    }

    /// Whether the key is present and null.
    pub(crate) fn is_null(&self, key: &str) -> bool {
        self.found(key).is_some_and(Value::is_null)
    }

    /// One size for both axes, or a pair.
    pub(crate) fn optional_pair(&mut self, key: &'static str) -> Result<Option<[u64; 2]>, TraceError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(pair)) if pair.len() == 2 => {
                Ok(Some([self.as_size(key, &pair[0])?, self.as_size(key, &pair[1])?]))
            }
            Some(value) => self.as_size(key, value).map(|n| Some([n, n])),
        }
    }

    /// A list of one to eight sizes.
    pub(crate) fn sizes(&mut self, key: &'static str) -> Result<Vec<u64>, TraceError> {
        let Some(value) = self.get(key) else { return Err(self.error(key, "is missing")) };
        let list = self.list(key, value)?;
        list.iter().map(|value| self.as_size(key, value)).collect()
    }

    /// A list of one to eight numbers that may be zero.
    pub(crate) fn counts(&mut self, key: &'static str) -> Result<Vec<u64>, TraceError> {
        let Some(value) = self.get(key) else { return Err(self.error(key, "is missing")) };
        let list = self.list(key, value)?;
        let count = |value: &Value| match value.as_u64() {
            Some(0) => Ok(0),
            _ => self.as_size(key, value),
        };
        list.iter().map(count).collect()
    }

    /// One size for all levels, or a list of one per level.
    pub(crate) fn size_per_level(
        &mut self,
        key: &'static str,
        default: u64,
        n_levels: usize,
    ) -> Result<Vec<u64>, TraceError> {
        let sizes = match self.get(key) {
            None => vec![default; n_levels],
            Some(value @ Value::Array(_)) => {
                self.list(key, value)?.iter().map(|v| self.as_size(key, v)).collect::<Result<_, _>>()?
            }
            Some(value) => vec![self.as_size(key, value)?; n_levels],
        };
        if sizes.len() != n_levels {
            let reason = format!("has {} entries for {n_levels} levels", sizes.len());
            return Err(self.error(key, reason));
        }
        Ok(sizes)
    }

    /// A list of one to eight entries.
    pub(crate) fn list(&self, key: &str, value: &'a Value) -> Result<&'a [Value], TraceError> {
        match value.as_array() {
            Some(list) if (1..=8).contains(&list.len()) => Ok(list),
            _ => Err(self.error(key, format!("{value} is not a list of 1 to 8 entries"))),
        }
    }

    pub(crate) fn names(&mut self, key: &'static str) -> Result<Vec<&'a str>, TraceError> {
        let Some(value) = self.get(key) else { return Err(self.error(key, "is missing")) };
        let list = self.list(key, value)?;
        list.iter().map(|v| v.as_str().ok_or_else(|| self.error(key, format!("{v} is not a name")))).collect()
    }

    pub(crate) fn bool(&mut self, key: &'static str, default: bool) -> Result<bool, TraceError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => {
                value.as_bool().ok_or_else(|| self.error(key, format!("{value} is neither true nor false")))
            }
        }
    }

    /// A number that is finite, and not zero unless it is, as a 32-bit float too: networks compute with these.
    pub(crate) fn number(&mut self, key: &'static str, default: f64) -> Result<f64, TraceError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value
                .as_f64()
                .filter(|n| (*n as f32).is_finite() && (*n == 0.0 || *n as f32 != 0.0))
                .ok_or_else(|| self.error(key, format!("{value} is not a finite number in 32 bits"))),
        }
    }

    /// A number above zero.
    pub(crate) fn positive(&mut self, key: &'static str, default: f64) -> Result<f64, TraceError> {
        match self.number(key, default)? {
            number if number > 0.0 => Ok(number),
            number => Err(self.error(key, format!("{number} is not a positive number"))),
        }
    }

    /// One of a few names.
    pub(crate) fn choice<T: Copy>(
        &mut self,
        key: &'static str,
        default: &str,
        choices: &[(&str, T)],
    ) -> Result<T, TraceError> {
        let found = match self.get(key) {
            None => default,
            Some(value) => value.as_str().ok_or_else(|| self.error(key, format!("{value} is not a name")))?,
        };
        choices.iter().find(|(name, _)| *name == found).map(|(_, choice)| *choice).ok_or_else(|| {
            let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
            self.error(key, format!("'{found}' is not supported; supported: {}", names.join(", ")))
        })
    }

    /// Refuses any value but the one that kiln implements; absent and null mean that value.
    pub(crate) fn only(&mut self, key: &'static str, supported: impl Into<Value>) -> Result<(), TraceError> {
        let supported = supported.into();
        match self.get(key) {
            Some(found) if !same(found, &supported) => {
                Err(self.error(key, format!("{found} is not supported; supported: {supported}")))
            }
            _ => Ok(()),
        }
    }

    /// Like [`ConfigReader::only`], but the value may also be a list of that value.
    pub(crate) fn only_all(&mut self, key: &'static str, supported: bool) -> Result<(), TraceError> {
        match self.get(key).and_then(Value::as_array) {
            Some(list) if list.iter().all(|value| *value == Value::Bool(supported)) => Ok(()),
            _ => self.only(key, supported),
        }
    }

    /// Keys that have no influence on what the network computes.
    pub(crate) fn ignore(&mut self, keys: &[&'static str]) {
        self.read.extend(keys);
    }

    /// Refuses keys that the class knows and that were not read; a value of null or false asks for nothing and passes.
    pub(crate) fn finish(self) -> Result<(), TraceError> {
        let is_refused = |key: &str| {
            known::takes(self.class, key) && !self.read.contains(key) && !self.defaulted.contains(key)
        };
        let unread = self.map.iter().find(|(key, value)| is_refused(key) && asks_for_something(value));
        match unread {
            None => Ok(()),
            Some((key, value)) => Err(self.error(key, format!("{value} is not supported"))),
        }
    }
}

fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

fn config_error(origin: &str, key: &str, reason: impl Into<String>) -> TraceError {
    TraceError::Config { origin: origin.into(), key: key.into(), reason: reason.into() }
}
