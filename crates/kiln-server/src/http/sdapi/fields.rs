//! Bodies whose fields clients fill loosely: numbers as text, null for what is left open, keys of other programs.

use axum::body::Bytes;
use serde_json::{Map, Value};

use crate::http::error::ApiError;
use crate::http::error::read;

/// Most characters of a value that a message shows.
const SHOWN: usize = 64;

/// The fields of a body, or of an object in it.
#[derive(Clone, Debug, Default)]
pub(super) struct Fields(pub(super) Map<String, Value>);

impl Fields {
    /// The object that a body is; an empty body has none.
    pub(super) fn of(body: &Bytes) -> Result<Fields, ApiError> {
        match body.is_empty() {
            true => Ok(Fields::default()),
            false => Ok(Fields(read(body)?)),
        }
    }

    /// A value, unless it is null.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&str>, ApiError> {
        let text = |value: &Value| value.as_str().is_none().then(|| refuse(key, value, "a text"));
        match self.get(key).and_then(text) {
            Some(error) => Err(error),
            None => Ok(self.get(key).and_then(Value::as_str)),
        }
    }

    /// A text that says something: neither empty nor `None`.
    pub(super) fn choice(&self, key: &str) -> Result<Option<&str>, ApiError> {
        let is_open = |text: &&str| text.trim().is_empty() || text.eq_ignore_ascii_case("none");
        Ok(self.text(key)?.filter(|text| !is_open(text)))
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, ApiError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let flag = match value {
            Value::Bool(flag) => Some(*flag),
            Value::Number(number) => number.as_f64().filter(|x| [0.0, 1.0].contains(x)).map(|x| x == 1.0),
            Value::String(text) => text.to_ascii_lowercase().parse().ok(),
            _ => None,
        };
        flag.map(Some).ok_or_else(|| refuse(key, value, "true or false"))
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = match value {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        number.filter(|x| x.is_finite()).map(Some).ok_or_else(|| refuse(key, value, "a number"))
    }

    /// A number of this range.
    pub(super) fn within(&self, key: &str, least: f64, most: f64) -> Result<Option<f64>, ApiError> {
        match self.number(key)? {
            Some(number) if !(least..=most).contains(&number) => {
                Err(invalid(key, format!("{number} is not a number from {least} to {most}")))
            }
            number => Ok(number),
        }
    }

    /// A whole number of this range; `7.0` is one.
    pub(super) fn whole(&self, key: &str, least: i64, most: i64) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let expected = format!("a whole number from {least} to {most}");
        let number = whole(value).filter(|number| (i128::from(least)..=i128::from(most)).contains(number));
        let number = number.and_then(|number| i64::try_from(number).ok());
        number.map(Some).ok_or_else(|| refuse(key, value, &expected))
    }

    /// A seed; -1 and nothing are none.
    pub(super) fn seed(&self, key: &str) -> Result<Option<u64>, ApiError> {
        let Some(value) = self.get(key).filter(|value| **value != "") else { return Ok(None) };
        match whole(value) {
            Some(-1) => Ok(None),
            number => match number.and_then(|number| u64::try_from(number).ok()) {
                Some(seed) => Ok(Some(seed)),
                None => Err(refuse(key, value, "a seed, a whole number from -1 to 18446744073709551615")),
            },
        }
    }

    pub(super) fn list(&self, key: &str) -> Result<&[Value], ApiError> {
        match self.get(key) {
            None => Ok(&[]),
            Some(Value::Array(list)) => Ok(list),
            Some(value) => Err(refuse(key, value, "a list")),
        }
    }

    pub(super) fn object(&self, key: &str) -> Result<Fields, ApiError> {
        match self.get(key) {
            None => Ok(Fields::default()),
            Some(Value::Object(object)) => Ok(Fields(object.clone())),
            Some(value) => Err(refuse(key, value, "an object")),
        }
    }
}

fn whole(value: &Value) -> Option<i128> {
    match value {
        Value::Number(number) => {
            let whole = number.as_i64().map(i128::from).or(number.as_u64().map(i128::from));
            let is_whole = |x: &f64| x.fract() == 0.0 && x.abs() < 9e15;
            whole.or_else(|| number.as_f64().filter(is_whole).map(|x| x as i128))
        }
        Value::String(text) => text.trim().parse::<i64>().ok().map(i128::from),
        _ => None,
    }
}

/// A field whose value is refused.
pub(super) fn invalid(key: &str, reason: impl AsRef<str>) -> ApiError {
    ApiError::invalid(key, format!("{key}: {}", reason.as_ref()))
}

/// A field whose value is of another kind; the value is cut short.
fn refuse(key: &str, value: &Value, expected: &str) -> ApiError {
    let text = match value {
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
        other => other.to_string(),
    };
    invalid(key, format!("{} is not {expected}", shown(&text)))
}

/// A client's text as messages show it.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(SHOWN).flat_map(char::escape_debug).collect()
}
