//! Virtual tables: which entry a method is, which number an enumerator has, and calls through them.

use std::collections::{BTreeMap, HashMap};
use std::ffi::c_void;

use serde::Deserialize;

use crate::Product;
use crate::error::TrtError;
use crate::error::TrtErrorKind::{Library, Unsupported};

/// The tables of one major version, as `vtables.py` writes them.
#[derive(Deserialize)]
struct Family {
    order: HashMap<String, Vec<String>>,
    lengths: BTreeMap<u32, HashMap<String, usize>>,
    enumerators: HashMap<String, HashMap<String, i32>>,
}

/// The tables of the release that is loaded.
#[derive(Debug)]
pub(crate) struct Tables {
    /// `TensorRT-RTX 1.7.1`.
    pub(crate) release: String,
    order: HashMap<String, Vec<String>>,
    enumerators: HashMap<String, HashMap<String, i32>>,
}

impl Tables {
    pub(crate) fn find(product: Product, [major, minor, patch]: [u32; 3]) -> Result<Tables, TrtError> {
        let release = format!("{product} {major}.{minor}.{patch}");
        let unknown =
            |known: &str| TrtError::new(Library, format!("{release} is not supported; supported: {known}"));
        let families: HashMap<String, Family> = serde_json::from_str(include_str!("../vtables.json"))
            .map_err(|e| TrtError::new(Library, format!("the tables of TensorRT: {e}")))?;
        let (name, known) = match product {
            Product::Rtx => (format!("rtx {major}"), "1.6, 1.7"),
            Product::Enterprise => (format!("enterprise {major}"), "10.14 and later, 11.x"),
        };
        let mut family = families.into_iter().find(|(key, _)| *key == name).ok_or_else(|| unknown(known))?.1;
        let lengths = match product {
            // The tables of TensorRT-RTX have changed within its major version.
            Product::Rtx => family.lengths.remove(&minor),
            Product::Enterprise => {
                family.lengths.range(..=minor).next_back().map(|(_, lengths)| lengths.clone())
            }
        };
        let lengths = lengths.ok_or_else(|| unknown(known))?;
        for (class, methods) in &mut family.order {
            methods.truncate(lengths.get(class).copied().unwrap_or(0));
        }
        Ok(Tables { release, order: family.order, enumerators: family.enumerators })
    }

    /// Position of a method in the virtual table of its class; of overloads, the first that is not deprecated.
    pub(crate) fn entry(&self, class: &str, method: &str) -> Result<usize, TrtError> {
        let methods = self.order.get(class);
        methods.and_then(|methods| methods.iter().position(|name| name == method)).ok_or_else(|| {
            TrtError::new(
                Unsupported,
                format!("{} has no {}::{method}", self.release, class.trim_start_matches('V')),
            )
        })
    }

    /// The methods of a class, in their order.
    pub(crate) fn order(&self, class: &str) -> Result<&[String], TrtError> {
        let methods = self.order.get(class).filter(|methods| !methods.is_empty());
        methods
            .map(Vec::as_slice)
            .ok_or_else(|| TrtError::new(Unsupported, format!("{} has no {class}", self.release)))
    }

    pub(crate) fn number(&self, enumeration: &str, name: &str) -> Result<i32, TrtError> {
        let found = self.enumerators.get(enumeration).and_then(|numbers| numbers.get(name));
        found
            .copied()
            .ok_or_else(|| TrtError::new(Unsupported, format!("{} has no {enumeration}::{name}", self.release)))
    }

    /// The enumerator of a number.
    pub(crate) fn name(&self, enumeration: &str, number: i32) -> Option<&str> {
        let numbers = self.enumerators.get(enumeration)?;
        numbers.iter().find(|(_, value)| **value == number).map(|(name, _)| name.as_str())
    }
}

/// What a method is called on, and the method, of the object of that class.
pub(crate) fn method(
    tables: &Tables,
    object: *mut c_void,
    class: &str,
    method: &str,
) -> Result<(*mut c_void, *const c_void), TrtError> {
    let entry = tables.entry(class, method)?;
    let this = match class {
        "IParser" | "IParserError" | "IPluginRegistry" => object,
        "VAttentionBoundaryLayer" => field(object, 2),
        _ => field(object, 1),
    };
    Ok((this, table_entry(this, entry)))
}

/// A pointer-sized field of an object; the virtual table is the first.
fn field(object: *mut c_void, index: usize) -> *mut c_void {
    // SAFETY: API objects hold their virtual table and, per level of inheritance, one pointer to an implementation.
    unsafe { *object.cast::<*mut c_void>().add(index) }
}

pub(crate) fn table_entry(object: *mut c_void, entry: usize) -> *const c_void {
    // SAFETY: a C++ object with virtual methods starts with the pointer to its table, which has this entry in this release.
    unsafe { *(*object.cast::<*const *const c_void>()).add(entry) }
}

/// Sizes of a tensor, `Dims64` of `NvInferRuntimeBase.h`; -1 where a size is open.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dims {
    n: i32,
    sizes: [i64; Dims::MAX],
}

impl Dims {
    /// Most sizes of a tensor.
    pub(crate) const MAX: usize = 8;

    pub(crate) fn new(sizes: &[i64]) -> Option<Dims> {
        let mut dims = Dims { n: sizes.len() as i32, sizes: [0; Dims::MAX] };
        dims.sizes.get_mut(..sizes.len())?.copy_from_slice(sizes);
        Some(dims)
    }

    /// Whether these are sizes at all; TensorRT answers a wrong question with a negative number of them.
    pub(crate) fn is_valid(&self) -> bool {
        self.n >= 0
    }

    pub(crate) fn as_slice(&self) -> &[i64] {
        let n = usize::try_from(self.n).unwrap_or(0).min(self.sizes.len());
        &self.sizes[..n]
    }

    pub(crate) fn to_vec(self) -> Vec<i64> {
        self.as_slice().to_vec()
    }
}

/// Calls a method of an object by its name in the headers: `call!(object, VBuilder.setMaxThreads(n => i32) -> bool)`.
///
/// # Safety
///
/// The types must be those of the header, and pointers must be what the method expects.
macro_rules! call {
    ($object:expr, $class:ident.$method:ident($($value:expr => $type:ty),*) -> $result:ty) => {{
        let (this, entry) = $object.method(stringify!($class), stringify!($method))?;
        // SAFETY: the release's table has this method at this entry, and the caller vouches for its type.
        let method = unsafe {
            std::mem::transmute::<
                *const std::ffi::c_void,
                unsafe extern "C" fn(*mut std::ffi::c_void $(, $type)*) -> $result,
            >(entry)
        };
        // SAFETY: `this` is a live object of the class; the caller vouches for the arguments.
        unsafe { method(this $(, $value)*) }
    }};
}

pub(crate) use call;
