//! What plugins are made from, `PluginField` of `NvInferPluginBase.h`.

use std::ffi::{CString, c_char, c_void};
use std::sync::Arc;

use super::PluginResult;
use crate::TrtError;
use crate::error::TrtErrorKind::Argument;
use crate::object::{c_string, text};

/// A named value.
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    /// Name.
    pub name: String,
    /// Value.
    pub value: FieldValue,
}

/// A value that plugins are made from.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum FieldValue {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// 64-bit floats.
    F64(Vec<f64>),
    /// 8-bit integers.
    I8(Vec<i8>),
    /// 16-bit integers.
    I16(Vec<i16>),
    /// 32-bit integers, which the ONNX parser gives for integer attributes.
    I32(Vec<i32>),
    /// 64-bit integers.
    I64(Vec<i64>),
    /// Text.
    Text(String),
    /// Bytes that only the plugin knows how to read.
    Bytes(Vec<u8>),
}

/// Types of fields, `PluginFieldType` of `NvInferPluginBase.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FieldKind {
    /// 32-bit floats.
    F32,
    /// 64-bit floats.
    F64,
    /// 8-bit integers.
    I8,
    /// 16-bit integers.
    I16,
    /// 32-bit integers.
    I32,
    /// 64-bit integers.
    I64,
    /// Text.
    Text,
    /// Bytes.
    Bytes,
}

/// A field that a plugin is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldSpec {
    /// Name of the attribute.
    pub name: String,
    /// Its type.
    pub kind: FieldKind,
}

impl FieldKind {
    fn number(self) -> i32 {
        match self {
            FieldKind::F32 => 1,
            FieldKind::F64 => 2,
            FieldKind::I8 => 3,
            FieldKind::I16 => 4,
            FieldKind::I32 => 5,
            FieldKind::Text => 6,
            FieldKind::Bytes => 8,
            FieldKind::I64 => 10,
        }
    }
}

impl FieldValue {
    /// Type, address and number of elements.
    fn parts(&self) -> (FieldKind, *const c_void, usize) {
        match self {
            FieldValue::F32(values) => (FieldKind::F32, values.as_ptr().cast(), values.len()),
            FieldValue::F64(values) => (FieldKind::F64, values.as_ptr().cast(), values.len()),
            FieldValue::I8(values) => (FieldKind::I8, values.as_ptr().cast(), values.len()),
            FieldValue::I16(values) => (FieldKind::I16, values.as_ptr().cast(), values.len()),
            FieldValue::I32(values) => (FieldKind::I32, values.as_ptr().cast(), values.len()),
            FieldValue::I64(values) => (FieldKind::I64, values.as_ptr().cast(), values.len()),
            FieldValue::Text(text) => (FieldKind::Text, text.as_ptr().cast(), text.len()),
            FieldValue::Bytes(bytes) => (FieldKind::Bytes, bytes.as_ptr().cast(), bytes.len()),
        }
    }
}

/// `PluginField` of `NvInferPluginBase.h`.
#[repr(C)]
struct RawField {
    name: *const c_char,
    data: *const c_void,
    kind: i32,
    length: i32,
}

/// `PluginFieldCollection` of `NvInferPluginBase.h`.
#[repr(C)]
pub(super) struct RawCollection {
    n_fields: i32,
    fields: *const RawField,
}

/// A collection, and what it points to.
pub(super) struct Collection {
    raw: RawCollection,
    _fields: Box<[RawField]>,
    _names: Vec<CString>,
    _values: Vec<FieldValue>,
}

// SAFETY: the pointers are to what the collection owns and nobody changes.
unsafe impl Send for Collection {}
// SAFETY: as above.
unsafe impl Sync for Collection {}

impl Collection {
    /// Fields with values; TensorRT holds their address.
    pub(super) fn of_values(fields: Vec<Field>) -> Result<Arc<Collection>, TrtError> {
        let (names, values): (Vec<_>, Vec<_>) =
            fields.into_iter().map(|field| (field.name, field.value)).unzip();
        let raw = values.iter().map(FieldValue::parts).collect::<Vec<_>>();
        Collection::new(&names, &raw, values)
    }

    /// Names and types of fields.
    pub(super) fn of_specs(specs: &[FieldSpec]) -> Result<Arc<Collection>, TrtError> {
        let names: Vec<_> = specs.iter().map(|spec| spec.name.clone()).collect();
        let raw: Vec<_> = specs.iter().map(|spec| (spec.kind, std::ptr::null(), 1)).collect();
        Collection::new(&names, &raw, Vec::new())
    }

    fn new(
        names: &[String],
        parts: &[(FieldKind, *const c_void, usize)],
        values: Vec<FieldValue>,
    ) -> Result<Arc<Collection>, TrtError> {
        let names = names.iter().map(|name| c_string(name)).collect::<Result<Vec<_>, _>>()?;
        let field = |(name, (kind, data, n)): (&CString, &(FieldKind, *const c_void, usize))| {
            let length = i32::try_from(*n)
                .map_err(|_| TrtError::new(Argument, format!("field {name:?} has {n} elements")))?;
            Ok(RawField { name: name.as_ptr(), data: *data, kind: kind.number(), length })
        };
        let fields: Box<[_]> = names.iter().zip(parts).map(field).collect::<Result<_, TrtError>>()?;
        let raw = RawCollection { n_fields: fields.len() as i32, fields: fields.as_ptr() };
        Ok(Arc::new(Collection { raw, _fields: fields, _names: names, _values: values }))
    }

    pub(super) fn as_ptr(&self) -> *const RawCollection {
        &self.raw
    }
}

/// The fields of a collection of TensorRT's; none for null.
///
/// # Safety
///
/// The collection is one of TensorRT's that is alive.
pub(super) unsafe fn read_fields(collection: *const RawCollection) -> PluginResult<Vec<Field>> {
    // SAFETY: the caller gives a collection that is alive, or null.
    let Some(collection) = (unsafe { collection.as_ref() }) else { return Ok(Vec::new()) };
    let n = usize::try_from(collection.n_fields).unwrap_or(0);
    if n == 0 || collection.fields.is_null() {
        return Ok(Vec::new());
    }
    // SAFETY: a collection points to as many fields as it says.
    let fields = unsafe { std::slice::from_raw_parts(collection.fields, n) };
    fields.iter().filter(|field| !field.data.is_null()).map(read_field).collect()
}

fn read_field(field: &RawField) -> PluginResult<Field> {
    let name = text(field.name);
    let value = match field.kind {
        1 => FieldValue::F32(elements(field)),
        2 => FieldValue::F64(elements(field)),
        3 => FieldValue::I8(elements(field)),
        4 => FieldValue::I16(elements(field)),
        5 => FieldValue::I32(elements(field)),
        6 => {
            let bytes = elements::<u8>(field);
            let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
            FieldValue::Text(String::from_utf8_lossy(&bytes[..end]).into_owned())
        }
        8 => FieldValue::Bytes(elements(field)),
        10 => FieldValue::I64(elements(field)),
        other => return Err(format!("field '{name}' is of type {other}, which plugins do not read").into()),
    };
    Ok(Field { name, value })
}

/// The elements of a field, which need not be aligned.
fn elements<T: Number>(field: &RawField) -> Vec<T> {
    let data = field.data.cast::<T>();
    let n = usize::try_from(field.length).unwrap_or(0);
    // SAFETY: the field has `n` elements of a type with the size of T, and all bits are a number.
    (0..n).map(|index| unsafe { data.add(index).read_unaligned() }).collect()
}

/// Types of which all bits are a value.
trait Number: Copy {}
impl Number for f32 {}
impl Number for f64 {}
impl Number for i8 {}
impl Number for u8 {}
impl Number for i16 {}
impl Number for i32 {}
impl Number for i64 {}
