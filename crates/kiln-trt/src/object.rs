//! Owned and borrowed objects of TensorRT.

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_void};
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::error::TrtErrorKind::{self, Argument};
use crate::sys::{self, table_entry};
use crate::{Library, TrtError};

/// An object of TensorRT's: its virtual table and, for all but the ONNX parser's, the object that implements it.
#[derive(Debug)]
pub(crate) struct Object {
    library: Arc<Library>,
    pointer: NonNull<c_void>,
    /// Entry of the deleting destructor in the object's own table, for objects that are ours to delete.
    destructor: Option<usize>,
    /// What must live longer than this object.
    _keeps: Option<Arc<Object>>,
}

/// TensorRT's objects may be used by one thread at a time, whichever it is.
// SAFETY: no method is bound to the thread that made an object.
unsafe impl Send for Object {}
// SAFETY: the safe types that call methods are `Unshared` or hold a lock meanwhile; others only keep objects alive.
unsafe impl Sync for Object {}

/// Makes a type that calls methods of an object one that threads do not share.
pub(crate) type Unshared = PhantomData<Cell<()>>;

/// The deleting destructor's entry in the tables of API objects, after the complete one.
const DELETING: usize = 1;

impl Object {
    /// Takes over what a factory returned; null is a failure of `kind`, of which the library has told the reason.
    pub(crate) fn owned(
        library: &Arc<Library>,
        pointer: *mut c_void,
        keeps: Option<&Arc<Object>>,
        kind: TrtErrorKind,
        what: &str,
    ) -> Result<Object, TrtError> {
        Ok(Object::borrowed(library, pointer, keeps, kind, what)?.deleted_by(DELETING))
    }

    /// An object that belongs to another one, which is kept.
    pub(crate) fn borrowed(
        library: &Arc<Library>,
        pointer: *mut c_void,
        keeps: Option<&Arc<Object>>,
        kind: TrtErrorKind,
        what: &str,
    ) -> Result<Object, TrtError> {
        let pointer = NonNull::new(pointer).ok_or_else(|| library.failure(kind, what))?;
        Ok(Object { library: library.clone(), pointer, destructor: None, _keeps: keeps.cloned() })
    }

    /// The same object, ours to delete by the destructor at that entry.
    pub(crate) fn deleted_by(mut self, entry: usize) -> Object {
        self.destructor = Some(entry);
        self
    }

    pub(crate) fn library(&self) -> &Arc<Library> {
        &self.library
    }

    pub(crate) fn as_ptr(&self) -> *mut c_void {
        self.pointer.as_ptr()
    }

    /// What a method is called on, and the method.
    pub(crate) fn method(&self, class: &str, method: &str) -> Result<(*mut c_void, *const c_void), TrtError> {
        sys::method(self.library.tables(), self.as_ptr(), class, method)
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        if let Some(entry) = self.destructor {
            let destructor = table_entry(self.as_ptr(), entry);
            // SAFETY: the entry is the deleting destructor, the object is ours, and nothing that it needs is gone.
            unsafe {
                let delete =
                    std::mem::transmute::<*const c_void, unsafe extern "C" fn(*mut c_void)>(destructor);
                delete(self.as_ptr());
            }
        }
    }
}

/// The text of a C string of TensorRT's; empty for null.
pub(crate) fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: TensorRT returns strings that end in zero and live as long as what they describe.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

pub(crate) fn c_string(text: &str) -> Result<CString, TrtError> {
    CString::new(text).map_err(|_| TrtError::new(Argument, format!("{text:?} contains a zero byte")))
}
