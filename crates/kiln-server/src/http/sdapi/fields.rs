//! Bodies whose fields clients fill loosely: numbers as text, null for what is left open, keys of other programs.

use axum::body::Bytes;
use serde_json::{Map, Value};

use crate::http::error::{ApiError, read};
use crate::http::schema::{self, Manner, Table};

/// The fields of a body, or of an object in it, in agreement with a table.
#[derive(Clone, Debug, Default)]
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    /// The object that a body is; an empty body has none.
    pub(super) fn of(body: &Bytes, table: &Table) -> Result<Fields, ApiError> {
        let values = if body.is_empty() { Map::new() } else { read(body)? };
        Fields::of_object(values, table)
    }

    /// The fields of an object.
    pub(super) fn of_object(values: Map<String, Value>, table: &Table) -> Result<Fields, ApiError> {
        table.check(&values)?;
        Ok(Fields(values))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.0.iter()
    }

    /// A value, unless it is null.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Value::as_str)
    }

    /// A text that says something: neither empty nor `None`.
    pub(super) fn choice(&self, key: &str) -> Option<&str> {
        self.text(key).filter(|text| !schema::is_open(text))
    }

    pub(super) fn flag(&self, key: &str) -> Option<bool> {
        self.get(key).and_then(|value| schema::flag(value, Manner::Loose))
    }

    pub(super) fn number(&self, key: &str) -> Option<f64> {
        self.get(key).and_then(|value| schema::number(value, Manner::Loose))
    }

    pub(super) fn whole(&self, key: &str) -> Option<i64> {
        self.get(key).and_then(|value| schema::whole(value, Manner::Loose)?.try_into().ok())
    }

    /// A seed; -1 and nothing are none.
    pub(super) fn seed(&self, key: &str) -> Option<u64> {
        self.get(key).and_then(|value| schema::whole(value, Manner::Loose)?.try_into().ok())
    }

    pub(super) fn list(&self, key: &str) -> &[Value] {
        self.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    /// The fields of an object in these, which the table of these has checked.
    pub(super) fn object(&self, key: &str) -> Fields {
        Fields(self.get(key).and_then(Value::as_object).cloned().unwrap_or_default())
    }
}

/// A field whose value is refused.
pub(super) fn invalid(key: &str, reason: impl AsRef<str>) -> ApiError {
    ApiError::invalid(key, format!("{key}: {}", reason.as_ref()))
}
