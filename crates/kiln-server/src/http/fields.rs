//! Fields of a request, taken one by one: wrong ones are named, and so are those that nobody takes.

use std::fmt::Display;
use std::ops::RangeInclusive;

use axum::http::StatusCode;
use serde_json::{Map, Value};

use super::error::ApiError;

/// What a client has sent, by name. `null` says as little as nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Fields {
    values: Map<String, Value>,
    /// Whether numbers come as text, as in forms.
    is_form: bool,
}

impl Fields {
    /// The fields of a JSON object.
    pub(crate) fn of_json(body: &[u8]) -> Result<Fields, ApiError> {
        let refuse = |message: String| ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", message);
        match serde_json::from_slice(body) {
            Ok(Value::Object(values)) => Ok(Fields { values, is_form: false }),
            Ok(_) => Err(refuse("body: is not a JSON object".into())),
            Err(e) => Err(refuse(format!("body: {}", e.to_string().chars().take(200).collect::<String>()))),
        }
    }

    /// The fields of a form.
    pub(crate) fn of_form(values: Map<String, Value>) -> Fields {
        Fields { values, is_form: true }
    }

    /// The fields of an object within these.
    pub(crate) fn object(&mut self, key: &str) -> Result<Fields, ApiError> {
        match self.value(key) {
            None => Ok(Fields { values: Map::new(), ..*self }),
            Some(Value::Object(values)) => Ok(Fields { values, ..*self }),
            Some(other) => Err(wrong(key, &other, "an object")),
        }
    }

    /// A value of any kind.
    pub(crate) fn value(&mut self, key: &str) -> Option<Value> {
        self.values.remove(key).filter(|value| !value.is_null())
    }

    /// A value that is no text, also where it came as one.
    fn plain(&mut self, key: &str) -> Option<Value> {
        let value = self.value(key)?;
        let parsed = value.as_str().filter(|_| self.is_form).and_then(|text| serde_json::from_str(text).ok());
        Some(parsed.unwrap_or(value))
    }

    /// A text.
    pub(crate) fn text(&mut self, key: &str) -> Result<Option<String>, ApiError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(key, &other, "a text")),
        }
    }

    /// A text that has to be there.
    pub(crate) fn needed_text(&mut self, key: &str) -> Result<String, ApiError> {
        let missing = || ApiError {
            code: "missing_required_parameter",
            ..ApiError::invalid(key, format!("{key}: is missing"))
        };
        self.text(key)?.ok_or_else(missing)
    }

    /// One of a few words.
    pub(crate) fn word(&mut self, key: &str, words: &[&'static str]) -> Result<Option<&'static str>, ApiError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let found = value.as_str().and_then(|text| words.iter().find(|word| **word == text));
        found.map(|word| Some(*word)).ok_or_else(|| wrong(key, &value, format!("one of {}", words.join(", "))))
    }

    /// A whole number.
    pub(crate) fn whole(&mut self, key: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, ApiError> {
        let Some(value) = self.plain(key) else { return Ok(None) };
        let (least, most) = (range.start(), range.end());
        let found = value.as_u64().filter(|number| range.contains(number));
        let expected = || match *most == u64::MAX {
            true => format!("a whole number from {least}"),
            false => format!("a whole number from {least} to {most}"),
        };
        found.map(Some).ok_or_else(|| wrong(key, &value, expected()))
    }

    /// A number in the range of those with 32 bits.
    pub(crate) fn number(&mut self, key: &str) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.plain(key) else { return Ok(None) };
        number(&value).map(Some).ok_or_else(|| wrong(key, &value, "a number"))
    }

    /// Yes or no.
    pub(crate) fn flag(&mut self, key: &str) -> Result<Option<bool>, ApiError> {
        let Some(value) = self.plain(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| wrong(key, &value, "true or false"))
    }

    /// Factors by name, as `{"a": 1}`, as `[{"name": "a", "weight": 1}]`, or as the fields `loras[a]` of a form.
    pub(crate) fn factors(&mut self, key: &str) -> Result<Vec<(String, f32)>, ApiError> {
        let mut found = match self.plain(key) {
            None => Vec::new(),
            Some(Value::Object(map)) => map.into_iter().collect(),
            Some(Value::Array(list)) => {
                list.into_iter().map(|entry| named(key, entry)).collect::<Result<_, _>>()?
            }
            Some(other) => return Err(wrong(key, &other, "factors by name")),
        };
        let prefix = format!("{key}[");
        let names: Vec<String> = self.values.keys().filter(|name| name.starts_with(&prefix)).cloned().collect();
        for name in names {
            let inner = name[prefix.len()..].trim_end_matches(']').to_owned();
            found.extend(self.plain(&name).map(|value| (inner, value)));
        }
        let factor = |(name, value): (String, Value)| match number(&value) {
            Some(weight) => Ok((name, weight as f32)),
            None => Err(wrong(key, &value, "a number")),
        };
        found.into_iter().map(factor).collect()
    }

    /// Refuses what nobody has taken.
    pub(crate) fn finish(self) -> Result<(), ApiError> {
        match self.values.into_iter().find(|(_, value)| !value.is_null()) {
            None => Ok(()),
            Some((key, _)) => Err(unknown(&key)),
        }
    }
}

/// The refusal of a field that means nothing here.
pub(crate) fn unknown(key: &str) -> ApiError {
    let key = shown(key);
    let error = ApiError::invalid(&key, format!("{key}: is not a parameter of this path"));
    ApiError { code: "unknown_parameter", ..error }
}

fn number(value: &Value) -> Option<f64> {
    value.as_f64().filter(|number| (*number as f32).is_finite())
}

fn named(key: &str, entry: Value) -> Result<(String, Value), ApiError> {
    let name = entry.get("name").and_then(Value::as_str).map(str::to_owned);
    match (name, entry.get("weight")) {
        (Some(name), weight) => Ok((name, weight.cloned().unwrap_or(1.into()))),
        (None, _) => Err(wrong(key, &entry, "a name and a weight")),
    }
}

fn wrong(key: &str, value: &Value, expected: impl Display) -> ApiError {
    ApiError::invalid(key, format!("{key}: {} is not {expected}", shown(&value.to_string())))
}

/// A value as messages show it.
pub(crate) fn shown(text: &str) -> String {
    text.chars().take(64).filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Fields {
        Fields::of_json(text.as_bytes()).expect("an object")
    }

    #[track_caller]
    fn check_refusal<T: std::fmt::Debug>(found: Result<T, ApiError>, message: &str) {
        let error = found.expect_err("a refusal");
        assert_eq!((error.status.as_u16(), error.message.as_str()), (400, message));
    }

    #[test]
    fn numbers_out_of_range_and_of_other_types_are_named() {
        for value in ["0", "11", "-1", "4294967296", "18446744073709551616", "1.5", "\"2\"", "true", "[1]"] {
            let message = format!("n: {} is not a whole number from 1 to 10", value);
            let message = message.replace("18446744073709551616", "1.8446744073709552e+19");
            check_refusal(json(&format!("{{\"n\": {value}}}")).whole("n", 1..=10), &message);
        }
        assert_eq!(json("{\"n\": null}").whole("n", 1..=10), Ok(None));
        check_refusal(json("{\"g\": 1e300}").number("g"), "g: 1e+300 is not a number");
        assert!(Fields::of_json(b"{\"g\": 1e400}").is_err());
        assert!(Fields::of_json(b"[1]").is_err());
        check_refusal(json("{\"a\": null, \"b\": 1}").finish(), "b: is not a parameter of this path");
    }

    #[test]
    fn forms_have_numbers_as_text_and_json_has_not() {
        let values = |text: &str| match serde_json::from_str(text) {
            Ok(Value::Object(values)) => Fields::of_form(values),
            other => panic!("{other:?}"),
        };
        let mut form =
            values(r#"{"n": "2", "stream": "true", "prompt": "7", "loras[a]": "0.5", "loras": "{\"b\": 1}"}"#);
        assert_eq!(form.whole("n", 1..=10), Ok(Some(2)));
        assert_eq!(form.flag("stream"), Ok(Some(true)));
        assert_eq!(form.text("prompt"), Ok(Some("7".into())));
        assert_eq!(form.factors("loras"), Ok(vec![("b".into(), 1.0), ("a".into(), 0.5)]));
        assert_eq!(form.finish(), Ok(()));
        assert_eq!(
            json(r#"{"loras": [{"name": "a", "weight": 2}, {"name": "b"}]}"#).factors("loras"),
            Ok(vec![("a".into(), 2.0), ("b".into(), 1.0)])
        );
    }
}
