//! Fields of a request, taken one by one: wrong ones are named, and so are those that nobody takes.

use axum::http::StatusCode;
use serde_json::{Map, Value};

use super::error::ApiError;
use super::schema::{self, Field, Kind, Manner, Table, unknown};

/// What a client has sent, by name, in agreement with a table. `null` says as little as nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Fields(Map<String, Value>);

impl Fields {
    /// The fields of a JSON object.
    pub(crate) fn of_json(body: &[u8], table: &Table) -> Result<Fields, ApiError> {
        let refuse = |message: String| ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", message);
        match serde_json::from_slice(body) {
            Ok(Value::Object(values)) => Fields::checked(values, table),
            Ok(_) => Err(refuse("body: is not a JSON object".into())),
            Err(e) => Err(refuse(format!("body: {}", e.to_string().chars().take(200).collect::<String>()))),
        }
    }

    /// The fields of a form, whose values are texts; its files are not among them.
    pub(crate) fn of_form(
        values: Map<String, Value>,
        files: &[&str],
        table: &Table,
    ) -> Result<Fields, ApiError> {
        let whole = |name: &str| table.fields().find(|field| is_part(name, field));
        let (parts, plain): (Vec<_>, Vec<_>) = values.into_iter().partition(|(name, _)| whole(name).is_some());
        let read = |(name, value): (String, Value)| match table.field(&name) {
            Some(field) => (name, of_text(field, value)),
            None => (name, value),
        };
        let mut plain: Map<String, Value> = plain.into_iter().map(read).collect();
        for (name, value) in parts {
            whole(&name).map_or(Ok(()), |field| add_factor(&mut plain, field, &name, value))?;
        }
        let placeholder = |name: &&str| ((*name).to_owned(), Value::from(""));
        let with_files: Map<_, _> = files.iter().map(placeholder).chain(plain.clone()).collect();
        table.check(&with_files)?;
        Ok(Fields(plain))
    }

    fn checked(values: Map<String, Value>, table: &Table) -> Result<Fields, ApiError> {
        table.check(&values)?;
        Ok(Fields(values))
    }

    /// The fields of an object within these.
    pub(crate) fn object(&mut self, key: &str) -> Option<Fields> {
        match self.value(key) {
            Some(Value::Object(values)) => Some(Fields(values)),
            _ => None,
        }
    }

    /// A value of any kind.
    pub(crate) fn value(&mut self, key: &str) -> Option<Value> {
        self.0.remove(key).filter(|value| !value.is_null())
    }

    pub(crate) fn text(&mut self, key: &str) -> Option<String> {
        match self.value(key) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn whole(&mut self, key: &str) -> Option<u64> {
        self.value(key).and_then(|value| schema::whole(&value, Manner::Strict)?.try_into().ok())
    }

    pub(crate) fn number(&mut self, key: &str) -> Option<f64> {
        self.value(key).and_then(|value| schema::number(&value, Manner::Strict))
    }

    pub(crate) fn flag(&mut self, key: &str) -> Option<bool> {
        self.value(key).and_then(|value| schema::flag(&value, Manner::Strict))
    }

    pub(crate) fn factors(&mut self, key: &str) -> Vec<(String, f32)> {
        self.value(key).and_then(|value| schema::factors(&value)).unwrap_or_default()
    }

    /// Refuses what nobody has taken.
    pub(crate) fn finish(self) -> Result<(), ApiError> {
        match self.0.into_iter().find(|(_, value)| !value.is_null()) {
            None => Ok(()),
            Some((key, _)) => Err(unknown(&key)),
        }
    }
}

/// A value that a form has as text.
fn of_text(field: &Field, value: Value) -> Value {
    let is_text = matches!(
        field.kind,
        Kind::Text | Kind::Size | Kind::Word(_) | Kind::Picture | Kind::OnePicture | Kind::Any
    );
    let parsed = value.as_str().filter(|_| !is_text).and_then(|text| serde_json::from_str(text).ok());
    parsed.unwrap_or(value)
}

/// Whether a form's field is the factor of one name, `loras[a]`.
fn is_part(name: &str, field: &Field) -> bool {
    let is_inner = |name: &str| name.strip_prefix(field.name).is_some_and(|rest| rest.starts_with('['));
    matches!(field.kind, Kind::Factors) && is_inner(name)
}

/// Puts the factor of one name to the others.
fn add_factor(plain: &mut Map<String, Value>, field: &Field, name: &str, value: Value) -> Result<(), ApiError> {
    let inner = name[field.name.len() + 1..].trim_end_matches(']');
    let factors = plain.entry(field.name).or_insert_with(|| Map::new().into());
    let Value::Object(factors) = factors else { return Err(unknown(name)) };
    factors.insert(inner.to_owned(), of_text(field, value));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::schema::{NUMBER, field};
    use super::*;

    const TABLE: Table = Table::strict(&[&[
        field("n", Kind::Whole(1, 10), ""),
        field("g", NUMBER, ""),
        field("stream", Kind::Flag, ""),
        field("prompt", Kind::Text, ""),
        field("loras", Kind::Factors, ""),
    ]]);

    #[track_caller]
    fn check_refusal(found: Result<Fields, ApiError>, param: &str, expected: &str) {
        let error = found.expect_err("a refusal");
        assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(param)));
        let message = &error.message;
        assert!(message.starts_with(&format!("{param}: ")) && message.ends_with(expected), "{message}");
    }

    #[test]
    fn numbers_out_of_range_and_of_other_types_are_named() {
        let json = |text: &str| Fields::of_json(text.as_bytes(), &TABLE);
        for value in ["0", "11", "-1", "4294967296", "18446744073709551616", "1.5", "\"2\"", "true", "[1]"] {
            check_refusal(json(&format!("{{\"n\": {value}}}")), "n", " is not a whole number from 1 to 10");
        }
        assert_eq!(json("{\"n\": null}").expect("fields").whole("n"), None);
        check_refusal(json("{\"g\": 1e300}"), "g", " is not a number from -10000 to 10000");
        check_refusal(json("{\"a\": null, \"b\": 1}"), "b", " is not a parameter of this path");
        assert!(json("{\"g\": 1e400}").is_err());
        assert!(json("[1]").is_err());
    }

    #[test]
    fn what_nobody_takes_is_refused() {
        let mut fields = Fields::of_json(b"{\"n\": 2, \"g\": 1}", &TABLE).expect("fields");
        assert_eq!(fields.whole("n"), Some(2));
        check_refusal(fields.finish().map(|()| Fields::default()), "g", " is not a parameter of this path");
    }

    #[test]
    fn forms_have_numbers_as_text_and_json_has_not() {
        let form = |text: &str| match serde_json::from_str(text) {
            Ok(Value::Object(values)) => Fields::of_form(values, &[], &TABLE),
            other => panic!("{other:?}"),
        };
        let text = r#"{"n": "2", "stream": "true", "prompt": "7", "loras": "{\"b\": 1}", "loras[a]": "0.5"}"#;
        let mut fields = form(text).expect("fields");
        assert_eq!(fields.whole("n"), Some(2));
        assert_eq!(fields.flag("stream"), Some(true));
        assert_eq!(fields.text("prompt"), Some("7".into()));
        let mut factors = fields.factors("loras");
        factors.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(factors, vec![("a".into(), 0.5), ("b".into(), 1.0)]);
        assert_eq!(fields.finish(), Ok(()));
        check_refusal(form(r#"{"n": "x"}"#), "n", " is not a whole number from 1 to 10");
        check_refusal(form(r#"{"loras[a]": "x"}"#), "loras", " is not factors by name");
    }
}
