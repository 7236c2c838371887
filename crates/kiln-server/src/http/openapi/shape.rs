//! Schemas of answers.

use utoipa::openapi::schema::{
    AdditionalProperties, AnyOfBuilder, ArrayBuilder, ObjectBuilder, SchemaType, Type,
};
use utoipa::openapi::{RefOr, Schema};

/// A schema.
pub(crate) type Shape = Schema;

pub(crate) fn of(kind: Type) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(kind)
}

pub(crate) fn any() -> Shape {
    ObjectBuilder::new().schema_type(SchemaType::AnyValue).into()
}

pub(crate) fn text() -> Shape {
    of(Type::String).into()
}

/// A number that is no less than none.
pub(crate) fn whole() -> Shape {
    of(Type::Integer).minimum(Some(0)).into()
}

pub(crate) fn integer() -> Shape {
    of(Type::Integer).into()
}

pub(crate) fn number() -> Shape {
    of(Type::Number).into()
}

pub(crate) fn flag() -> Shape {
    of(Type::Boolean).into()
}

pub(crate) fn null() -> Shape {
    of(Type::Null).into()
}

pub(crate) fn or_null(shape: Shape) -> Shape {
    AnyOfBuilder::new().item(shape).item(null()).into()
}

pub(crate) fn one_of(words: &[&str]) -> Shape {
    of(Type::String).enum_values(Some(words.iter().copied())).into()
}

pub(crate) fn either<const N: usize>(shapes: [Shape; N]) -> Shape {
    shapes.into_iter().fold(AnyOfBuilder::new(), AnyOfBuilder::item).into()
}

/// An object that has no other fields.
pub(crate) fn closed(shape: Shape) -> Shape {
    match shape {
        Schema::Object(mut object) => {
            object.additional_properties = Some(Box::new(AdditionalProperties::FreeForm(false)));
            Schema::Object(object)
        }
        other => other,
    }
}

/// An event that a server sends.
pub(crate) fn event() -> Shape {
    partly([("data", text())], [("event", text())])
}

/// A file in base64.
pub(crate) fn base64() -> Shape {
    of(Type::String).content_encoding("base64").into()
}

pub(crate) fn list(items: Shape) -> Shape {
    ArrayBuilder::new().items(RefOr::T(items)).into()
}

pub(crate) fn any_object() -> Shape {
    of(Type::Object).into()
}

/// An object whose values are alike.
pub(crate) fn map(values: Shape) -> Shape {
    of(Type::Object).additional_properties(Some(AdditionalProperties::RefOr(RefOr::T(values)))).into()
}

/// An object that has all of these fields.
pub(crate) fn object<const N: usize>(fields: [(&str, Shape); N]) -> Shape {
    partly(fields, [])
}

/// An object that has all of the first fields, and may have the second ones.
pub(crate) fn partly<const N: usize, const M: usize>(
    fields: [(&str, Shape); N],
    optional: [(&str, Shape); M],
) -> Shape {
    let mut object = of(Type::Object);
    for (name, shape) in fields {
        object = object.property(name, shape).required(name);
    }
    optional.into_iter().fold(object, |object, (name, shape)| object.property(name, shape)).into()
}
