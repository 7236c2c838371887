//! Schemas of bodies, made of the tables that bodies are checked by.

use serde_json::{Value, json};
use utoipa::Number;
use utoipa::openapi::schema::{
    AdditionalProperties, AnyOfBuilder, ArrayBuilder, KnownFormat, ObjectBuilder, SchemaFormat, SchemaType,
    Type,
};
use utoipa::openapi::{RefOr, Schema};

use super::shape;
use crate::http::schema::{Field, Kind, MAX_NUMBER, Manner, Table};

/// How bodies are written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Writing {
    Json,
    Form,
}

const SIZE: &str = "^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$";
const TRUTH: &str = "^([Tt][Rr][Uu][Ee]|[Ff][Aa][Ll][Ss][Ee])$";
const OPEN: &str = "^( *|[Nn][Oo][Nn][Ee])$";
const SEED: &str = "^(-1|[0-9]{0,18})$";

/// The schema of an object with these fields.
pub(super) fn object(table: &Table, writing: Writing) -> Schema {
    with_fields(table, writing, false).into()
}

fn with_fields(table: &Table, writing: Writing, is_nullable: bool) -> ObjectBuilder {
    let mut object = ObjectBuilder::new().schema_type(types([Type::Object], is_nullable));
    for field in table.fields() {
        object = object.property(field.name, value(field, table.manner, writing));
        if field.is_required {
            object = object.required(field.name);
        }
    }
    match table.manner {
        Manner::Strict => object.additional_properties(Some(AdditionalProperties::FreeForm(false))),
        Manner::Loose => object,
    }
}

/// The schema of a field's value.
fn value(field: &Field, manner: Manner, writing: Writing) -> Schema {
    let about = Some(field.about);
    let is_nullable = !field.is_required && writing == Writing::Json;
    let is_loose = manner == Manner::Loose;
    let plain = |kind: Type| ObjectBuilder::new().description(about).schema_type(types([kind], is_nullable));
    // Where numbers and truth values may be texts, these have a pattern.
    let or_text = |kind: Type, pattern: &str| match is_loose {
        true => {
            plain(kind.clone()).schema_type(types([kind, Type::String], is_nullable)).pattern(Some(pattern))
        }
        false => plain(kind),
    };
    let words = |words: Vec<Value>| {
        let null = is_nullable.then_some(Value::Null);
        let all: Vec<Value> = words.into_iter().chain(null).collect();
        ObjectBuilder::new().description(about).schema_type(SchemaType::AnyValue).enum_values(Some(all))
    };
    match field.kind {
        Kind::Text => plain(Type::String).into(),
        Kind::Size => plain(Type::String).pattern(Some(SIZE)).into(),
        Kind::Word(all) => words(all.iter().map(|word| json!(word)).collect()).into(),
        Kind::Whole(least, most) => or_text(Type::Integer, &wholes(least, most))
            .minimum(Some(integer(least)))
            .maximum(Some(integer(most)))
            .into(),
        Kind::Number(least, most) => or_text(Type::Number, &wholes(least.ceil() as i128, most.floor() as i128))
            .minimum(Some(least))
            .maximum(Some(most))
            .into(),
        Kind::Flag if is_loose => {
            let kinds = types([Type::Boolean, Type::Integer, Type::String], is_nullable);
            plain(Type::Boolean)
                .schema_type(kinds)
                .minimum(Some(0))
                .maximum(Some(1))
                .pattern(Some(TRUTH))
                .into()
        }
        Kind::Flag => plain(Type::Boolean).into(),
        Kind::Off => words(vec![false.into(), 0.into(), "false".into()]).into(),
        Kind::On => words(vec![true.into(), 1.into(), "true".into()]).into(),
        Kind::Unset => plain(Type::String).pattern(Some(OPEN)).into(),
        Kind::Seed => {
            let kinds = types([Type::Integer, Type::String], is_nullable);
            let seed = plain(Type::Integer).schema_type(kinds).pattern(Some(SEED));
            seed.minimum(Some(-1)).maximum(Some(integer(u64::MAX.into()))).into()
        }
        Kind::Factors => factors(about, is_nullable, writing),
        Kind::Picture | Kind::OnePicture if writing == Writing::Form => {
            plain(Type::String).format(Some(SchemaFormat::KnownFormat(KnownFormat::Binary))).into()
        }
        Kind::Picture => picture(plain(Type::String)).into(),
        Kind::OnePicture => {
            let one: Schema = picture(ObjectBuilder::new().schema_type(Type::String)).into();
            let listed = listed(one.clone()).min_items(Some(1)).max_items(Some(1));
            either(about, is_nullable, [one, listed.into()])
        }
        Kind::Object(table) => with_fields(table, writing, is_nullable).description(about).into(),
        Kind::Objects(table) => {
            let others = [Type::String, Type::Number, Type::Boolean, Type::Null, Type::Array];
            let others = ObjectBuilder::new().schema_type(types(others, false));
            let items = either(None, false, [object(table, writing), others.into()]);
            listed(items).description(about).schema_type(types([Type::Array], is_nullable)).into()
        }
        Kind::Empties => {
            let empty = ObjectBuilder::new().schema_type(Type::String).max_length(Some(0));
            listed(empty.into()).description(about).schema_type(types([Type::Array], is_nullable)).into()
        }
        Kind::Any => plain(Type::String).schema_type(SchemaType::AnyValue).into(),
    }
}

fn types<const N: usize>(kinds: [Type; N], is_nullable: bool) -> SchemaType {
    match (N, is_nullable) {
        (1, false) => kinds.into_iter().next().map_or(SchemaType::AnyValue, SchemaType::Type),
        _ => kinds.into_iter().chain(is_nullable.then_some(Type::Null)).collect(),
    }
}

fn listed(items: Schema) -> ArrayBuilder {
    ArrayBuilder::new().items(RefOr::T(items))
}

fn either<const N: usize>(about: Option<&str>, is_nullable: bool, schemas: [Schema; N]) -> Schema {
    let null = is_nullable.then(shape::null);
    let any = AnyOfBuilder::new().description(about);
    schemas.into_iter().chain(null).fold(any, |any, schema| any.item(schema)).into()
}

fn picture(text: ObjectBuilder) -> ObjectBuilder {
    let text = text.content_encoding("base64").content_media_type("image/*");
    text.format(Some(SchemaFormat::Custom("picture".into())))
}

fn factors(about: Option<&str>, is_nullable: bool, writing: Writing) -> Schema {
    let factor = || {
        let number = ObjectBuilder::new().schema_type(Type::Number);
        number.minimum(Some(-MAX_NUMBER)).maximum(Some(MAX_NUMBER))
    };
    let by_name = ObjectBuilder::new().schema_type(Type::Object).additional_properties(Some(factor()));
    let weight = factor().schema_type(types([Type::Number], true));
    let named = ObjectBuilder::new()
        .schema_type(Type::Object)
        .property("name", shape::text())
        .property("weight", weight)
        .required("name")
        .additional_properties(Some(AdditionalProperties::FreeForm(false)));
    match writing {
        Writing::Form => by_name.description(about).into(),
        Writing::Json => either(about, is_nullable, [by_name.into(), listed(named.into()).into()]),
    }
}

fn integer(x: i128) -> Number {
    match usize::try_from(x) {
        Ok(x) => Number::UInt(x),
        Err(_) => Number::Int(isize::try_from(x).unwrap_or(isize::MIN)),
    }
}

/// Texts of whole numbers within bounds: not all, but none that is beyond them.
fn wholes(least: i128, most: i128) -> String {
    let mut all = Vec::new();
    match least {
        ..=-1_000_000_000 => all.push("-[1-9][0-9]{0,8}".to_owned()),
        -999_999_999..=-1 => all.push("-1".to_owned()),
        _ => {}
    }
    if least <= 0 && most >= 0 {
        all.push("0".to_owned());
    }
    match most {
        ..1 => {}
        1..10 => all.push(format!("[1-{most}]")),
        _ => all.push(format!("[1-9][0-9]{{0,{}}}", most.ilog10().min(18) - 1)),
    }
    format!("^({})$", all.join("|"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_numbers_are_within_bounds() {
        for (least, most, expected) in [
            (1, 65536, "^([1-9][0-9]{0,3})$"),
            (0, 1, "^(0|[1-1])$"),
            (-1, 64, "^(-1|0|[1-9][0-9]{0,0})$"),
            (1, 1, "^([1-1])$"),
            (i128::MIN, 0, "^(-[1-9][0-9]{0,8}|0)$"),
            (0, u64::MAX.into(), "^(0|[1-9][0-9]{0,17})$"),
        ] {
            assert_eq!(wholes(least, most), expected);
        }
    }
}
