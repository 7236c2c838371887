//! Fields of requests, as tables: what reads bodies checks them by these, and the OpenAPI document shows these.

use std::fmt::Display;

use serde_json::{Map, Value};

use super::error::ApiError;
use crate::models::MAX_FACTOR;

/// A field of a request.
#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) is_required: bool,
    /// One line for people.
    pub(crate) about: &'static str,
}

/// What the value of a field is. `null` says as little as nothing, unless the field is required.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Text,
    /// `auto` or `WIDTHxHEIGHT`.
    Size,
    Word(&'static [&'static str]),
    /// A whole number from one to another; `7.0` is one.
    Whole(i128, i128),
    /// A number from one to another.
    Number(f64, f64),
    Flag,
    /// What is off, and cannot be switched on.
    Off,
    /// What is on, and cannot be switched off.
    On,
    /// A text that says nothing, or `None`, for what cannot be chosen.
    Unset,
    /// From -1, which is none as an empty text is, to the largest number of 64 bits.
    Seed,
    /// Numbers by name: `{"a": 1}`, `[{"name": "a", "weight": 1}]`, or the fields `loras[a]` of a form.
    Factors,
    /// A picture's file: base64 in JSON, with or without `data:` before it; a file in forms.
    Picture,
    /// One picture, alone or in a list.
    OnePicture,
    Object(&'static Table),
    /// A list whose objects have these fields; what is no object is passed over.
    Objects(&'static Table),
    /// A list of empty texts, for what cannot be chosen.
    Empties,
    Any,
}

/// The fields of an object.
#[derive(Debug)]
pub(crate) struct Table {
    groups: &'static [&'static [Field]],
    pub(crate) manner: Manner,
}

/// How exact clients have to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Fields that are not in the table are refused.
    Strict,
    /// Numbers and truth values come as text, too; fields of other programs are passed over.
    Loose,
}

/// Largest number, as a factor.
pub(crate) const MAX_NUMBER: f64 = MAX_FACTOR as f64;

/// A factor.
pub(crate) const NUMBER: Kind = Kind::Number(-MAX_NUMBER, MAX_NUMBER);

/// A part of the whole.
pub(crate) const SHARE: Kind = Kind::Number(0.0, 1.0);

/// All numbers that are no less than none.
pub(crate) const SEED: Kind = Kind::Whole(0, u64::MAX as i128);

/// A count that has no bound of its own.
pub(crate) const COUNT: Kind = Kind::Whole(1, u32::MAX as i128);

/// A field that may be left out.
pub(crate) const fn field(name: &'static str, kind: Kind, about: &'static str) -> Field {
    Field { name, kind, is_required: false, about }
}

/// A field that has to be there.
pub(crate) const fn needed(name: &'static str, kind: Kind, about: &'static str) -> Field {
    Field { name, kind, is_required: true, about }
}

impl Table {
    /// Fields of an exact object.
    pub(crate) const fn strict(groups: &'static [&'static [Field]]) -> Table {
        Table { groups, manner: Manner::Strict }
    }

    /// Fields of an object that clients fill loosely.
    pub(crate) const fn loose(groups: &'static [&'static [Field]]) -> Table {
        Table { groups, manner: Manner::Loose }
    }

    pub(crate) fn fields(&self) -> impl Iterator<Item = &'static Field> {
        self.groups.iter().flat_map(|group| group.iter())
    }

    /// The field of a name.
    pub(crate) fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields().find(|field| field.name == name)
    }

    /// Refuses values that are none of their fields', names that are no field's, and what is missing.
    pub(crate) fn check(&self, values: &Map<String, Value>) -> Result<(), ApiError> {
        for (name, value) in values.iter().filter(|(_, value)| !value.is_null()) {
            match self.field(name) {
                Some(field) => self.check_value(field, value)?,
                None if self.manner == Manner::Loose => {}
                None => return Err(unknown(name)),
            }
        }
        let is_missing =
            |field: &&Field| field.is_required && values.get(field.name).is_none_or(Value::is_null);
        self.fields().find(is_missing).map_or(Ok(()), |field| Err(missing(field.name)))
    }

    fn check_value(&self, field: &Field, value: &Value) -> Result<(), ApiError> {
        match (field.kind, value) {
            (Kind::Object(table), Value::Object(values)) => table.check(values),
            (Kind::Objects(table), Value::Array(list)) => {
                list.iter().filter_map(Value::as_object).try_for_each(|values| table.check(values))
            }
            (kind, value) if kind.takes(value, self.manner) => Ok(()),
            (kind, value) => Err(wrong(field.name, value, kind.expected())),
        }
    }
}

impl Kind {
    fn takes(self, value: &Value, manner: Manner) -> bool {
        match self {
            Kind::Text | Kind::Picture => value.is_string(),
            Kind::Size => value.as_str().is_some_and(|text| text == "auto" || sides(text).is_some()),
            Kind::Word(words) => value.as_str().is_some_and(|text| words.contains(&text)),
            Kind::Whole(least, most) => whole(value, manner).is_some_and(|x| (least..=most).contains(&x)),
            Kind::Number(least, most) => number(value, manner).is_some_and(|x| (least..=most).contains(&x)),
            Kind::Flag => flag(value, manner).is_some(),
            Kind::Off => flag(value, manner) == Some(false),
            Kind::On => flag(value, manner) == Some(true),
            Kind::Unset => value.as_str().is_some_and(is_open),
            Kind::Seed => {
                *value == "" || whole(value, manner).is_some_and(|x| (-1..=u64::MAX.into()).contains(&x))
            }
            Kind::Factors => factors(value).is_some(),
            Kind::OnePicture => match value {
                Value::Array(list) => list.len() == 1 && list[0].is_string(),
                value => value.is_string(),
            },
            Kind::Empties => value.as_array().is_some_and(|list| list.iter().all(|value| *value == "")),
            Kind::Object(_) | Kind::Objects(_) => false,
            Kind::Any => true,
        }
    }

    /// What messages say a value is not.
    fn expected(self) -> String {
        match self {
            Kind::Text => "a text".into(),
            Kind::Size => "auto or WIDTHxHEIGHT".into(),
            Kind::Word(words) => format!("one of {}", words.join(", ")),
            Kind::Whole(least, most) if most >= u64::MAX.into() => format!("a whole number from {least}"),
            Kind::Whole(least, most) => format!("a whole number from {least} to {most}"),
            Kind::Number(least, most) if least == most => format!("{least}, with which alone kiln draws"),
            Kind::Number(least, most) => format!("a number from {least} to {most}"),
            Kind::Flag => "true or false".into(),
            Kind::Off => "false: kiln does not do this".into(),
            Kind::On => "true: kiln does nothing else".into(),
            Kind::Unset => "empty: kiln does not do this".into(),
            Kind::Seed => "a seed, a whole number from -1 to 18446744073709551615".into(),
            Kind::Factors => "factors by name".into(),
            Kind::Picture => "a picture in base64".into(),
            Kind::OnePicture => "one picture in base64".into(),
            Kind::Object(_) => "an object".into(),
            Kind::Objects(_) => "a list".into(),
            Kind::Empties => "a list of empty texts: there are none to choose from".into(),
            Kind::Any => "anything".into(),
        }
    }
}

/// Whether a text chooses nothing.
pub(crate) fn is_open(text: &str) -> bool {
    text.trim().is_empty() || text.eq_ignore_ascii_case("none")
}

/// Width and height of `WIDTHxHEIGHT`, of at most five digits each.
pub(crate) fn sides(text: &str) -> Option<(u32, u32)> {
    let is_side = |text: &&str| {
        (1..=5).contains(&text.len()) && !text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit())
    };
    let side = |text: &str| Some(text).filter(is_side).and_then(|text| text.parse().ok());
    let (width, height) = text.split_once('x')?;
    side(width).zip(side(height))
}

/// A whole number.
pub(crate) fn whole(value: &Value, manner: Manner) -> Option<i128> {
    match value {
        Value::Number(number) => {
            let is_whole = |x: &f64| x.fract() == 0.0 && x.abs() < 9e15;
            number.as_i128().or_else(|| number.as_f64().filter(is_whole).map(|x| x as i128))
        }
        Value::String(text) if manner == Manner::Loose => text
            .trim()
            .parse::<i64>()
            .ok()
            .map(i128::from)
            .or_else(|| text.trim().parse::<u64>().ok().map(i128::from)),
        _ => None,
    }
}

/// A number.
pub(crate) fn number(value: &Value, manner: Manner) -> Option<f64> {
    let number = match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) if manner == Manner::Loose => text.trim().parse().ok(),
        _ => None,
    };
    number.filter(|x| x.is_finite())
}

/// Yes or no.
pub(crate) fn flag(value: &Value, manner: Manner) -> Option<bool> {
    match value {
        Value::Bool(flag) => Some(*flag),
        Value::Number(number) if manner == Manner::Loose => {
            number.as_f64().filter(|x| [0.0, 1.0].contains(x)).map(|x| x == 1.0)
        }
        Value::String(text) if manner == Manner::Loose => text.to_ascii_lowercase().parse().ok(),
        _ => None,
    }
}

/// Factors by name.
pub(crate) fn factors(value: &Value) -> Option<Vec<(String, f32)>> {
    let number = |value: &Value| value.as_f64().filter(|x| x.abs() <= MAX_NUMBER).map(|x| x as f32);
    let named = |entry: &Value| {
        let fields = entry.as_object()?;
        let is_known = fields.keys().all(|key| key == "name" || key == "weight");
        let weight = fields.get("weight").filter(|weight| !weight.is_null());
        let name = fields.get("name").filter(|_| is_known)?.as_str()?;
        Some((name.to_owned(), weight.map_or(Some(1.0), number)?))
    };
    match value {
        Value::Object(map) => map.iter().map(|(name, value)| Some((name.clone(), number(value)?))).collect(),
        Value::Array(list) => list.iter().map(named).collect(),
        _ => None,
    }
}

/// The refusal of a field that means nothing here.
pub(crate) fn unknown(key: &str) -> ApiError {
    let key = shown(key);
    let error = ApiError::invalid(&key, format!("{key}: is not a parameter of this path"));
    ApiError { code: "unknown_parameter", ..error }
}

/// The refusal of a request without a field.
pub(crate) fn missing(key: &str) -> ApiError {
    ApiError { code: "missing_required_parameter", ..ApiError::invalid(key, format!("{key}: is missing")) }
}

/// The refusal of a value.
fn wrong(key: &str, value: &Value, expected: impl Display) -> ApiError {
    ApiError::invalid(key, format!("{key}: {} is not {expected}", shown(&value.to_string())))
}

/// A client's text as messages show it.
pub(crate) fn shown(text: &str) -> String {
    text.chars().take(64).filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const INNER: Table = Table::strict(&[&[needed("n", Kind::Whole(1, 10), "")]]);
    const FIELDS: &[Field] = &[
        field("n", Kind::Whole(1, 10), ""),
        field("flag", Kind::Flag, ""),
        field("in", Kind::Object(&INNER), ""),
    ];
    const STRICT: Table = Table::strict(&[FIELDS]);
    const LOOSE: Table = Table::loose(&[FIELDS]);

    fn refusal(table: &Table, values: Value) -> Option<String> {
        table.check(values.as_object().expect("an object")).err().map(|error| error.message)
    }

    #[test]
    fn exact_clients_and_loose_ones_are_checked_by_the_same_table() {
        for (values, strict, loose) in [
            (json!({ "n": 10, "flag": true, "in": null }), true, true),
            (json!({ "n": 7.0 }), true, true),
            (json!({ "n": "7", "flag": "True" }), false, true),
            (json!({ "flag": 1 }), false, true),
            (json!({ "other": 1 }), false, true),
            (json!({ "other": null }), true, true),
            (json!({ "n": 0 }), false, false),
            (json!({ "n": "11" }), false, false),
            (json!({ "n": 1.5 }), false, false),
            (json!({ "in": { "n": 1 } }), true, true),
            (json!({ "in": {} }), false, false),
            (json!({ "in": { "n": null } }), false, false),
            (json!({ "in": [] }), false, false),
        ] {
            let found = (refusal(&STRICT, values.clone()).is_none(), refusal(&LOOSE, values.clone()).is_none());
            assert_eq!(found, (strict, loose), "{values}");
        }
        let message = refusal(&STRICT, json!({ "n": 4294967296u64 }));
        assert_eq!(message.as_deref(), Some("n: 4294967296 is not a whole number from 1 to 10"));
    }

    #[test]
    fn sizes_have_two_plain_sides() {
        assert_eq!(sides("64x128"), Some((64, 128)));
        for wrong in ["", "64", "0x64", "064x64", "+64x64", "64x64x64", "100000x64", "64x", "64x-1"] {
            assert_eq!(sides(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn factors_have_names() {
        let found = factors(&json!([{ "name": "a", "weight": 2 }, { "name": "b" }]));
        assert_eq!(found, Some(vec![("a".into(), 2.0), ("b".into(), 1.0)]));
        for wrong in
            [json!({ "a": "x" }), json!({ "a": 1e300 }), json!(["a"]), json!([{ "weight": 1 }]), json!("a")]
        {
            assert_eq!(factors(&wrong), None, "{wrong}");
        }
    }
}
