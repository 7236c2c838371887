//! Objects with virtual tables in the order of TensorRT-RTX 1.7 or TensorRT 11.

use std::collections::HashMap;
use std::ffi::{c_char, c_void};
use std::sync::OnceLock;

use serde::Deserialize;

#[derive(Deserialize)]
struct Family {
    order: HashMap<String, Vec<String>>,
}

fn order(class: &str) -> &'static [String] {
    static FAMILY: OnceLock<Family> = OnceLock::new();
    let family = FAMILY.get_or_init(|| {
        let text = include_str!("../../../../crates/kiln-trt/vtables.json");
        let mut families: HashMap<String, serde_json::Value> = serde_json::from_str(text).expect("tables");
        let family = if is_rtx() { "rtx 1" } else { "enterprise 11" };
        serde_json::from_value(families.remove(family).expect("a family")).expect("a family")
    });
    &family.order[class]
}

/// Whether it is TensorRT-RTX; `FAKE_TENSORRT` is set where it is TensorRT.
pub(crate) fn is_rtx() -> bool {
    std::env::var_os("FAKE_TENSORRT").is_none()
}

/// A virtual table of a class, leaked; methods that are not given end the process, those of the other product are left out.
pub(crate) fn table(class: &str, methods: &[(&str, *const c_void)]) -> *const *const c_void {
    let find = |name: &String| {
        methods.iter().find(|(known, _)| known == name).map_or(unexpected as *const c_void, |(_, f)| *f)
    };
    let entries: Vec<*const c_void> = order(class).iter().map(find).collect();
    for (name, _) in methods.iter().filter(|_| is_rtx()) {
        assert!(order(class).iter().any(|known| known == name), "{class} has no {name}");
    }
    Box::leak(entries.into_boxed_slice()).as_ptr()
}

extern "C" fn unexpected() -> ! {
    die("a method is called that it does not have")
}

pub(crate) fn die(reason: &str) -> ! {
    eprintln!("fake TensorRT: {reason}");
    std::process::abort()
}

/// An object as applications see it: a table with destructors, and the object that implements it.
#[repr(C)]
pub(crate) struct Facade {
    table: *const *const c_void,
    implementation: *mut c_void,
}

/// Makes an object around an implementation, which starts with its own table.
pub(crate) fn facade<T>(implementation: Box<T>, delete: extern "C" fn(*mut Facade)) -> *mut c_void {
    let destructors = Box::leak(Box::new([unexpected as *const c_void, delete as *const c_void]));
    let implementation = Box::into_raw(implementation).cast();
    Box::into_raw(Box::new(Facade { table: destructors.as_ptr(), implementation })).cast()
}

/// What implements an object.
pub(crate) fn implementation<T>(facade: *mut c_void) -> *mut T {
    // SAFETY: `facade` made it around a `T`.
    unsafe { (*facade.cast::<Facade>()).implementation.cast() }
}

/// Frees an object; its implementation was a `T`.
pub(crate) fn free<T>(facade: *mut Facade) {
    // SAFETY: `facade` made both.
    unsafe {
        let facade = Box::from_raw(facade);
        drop(Box::from_raw(facade.implementation.cast::<T>()));
    }
}

/// The logger that the application gave.
#[derive(Clone, Copy)]
pub(crate) struct Logger(pub(crate) *mut c_void);

impl Logger {
    pub(crate) fn error(self, message: &str) {
        const ERROR: i32 = 1;
        let entry = order("ILogger").iter().position(|name| name == "log").expect("a method");
        let message = std::ffi::CString::new(message).unwrap_or_default();
        type Log = extern "C" fn(*mut c_void, i32, *const c_char);
        // SAFETY: the application's logger has this table.
        unsafe {
            let log = *(*self.0.cast::<*const *const c_void>()).add(entry);
            std::mem::transmute::<*const c_void, Log>(log)(self.0, ERROR, message.as_ptr());
        }
    }
}

/// `Dims64`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Dims {
    n: i32,
    sizes: [i64; 8],
}

impl Dims {
    pub(crate) const NONE: Dims = Dims { n: -1, sizes: [0; 8] };

    pub(crate) fn new(shape: &[i64]) -> Dims {
        let mut dims = Dims { n: shape.len() as i32, sizes: [0; 8] };
        dims.sizes[..shape.len()].copy_from_slice(shape);
        dims
    }

    pub(crate) fn to_vec(self) -> Vec<usize> {
        self.sizes[..self.n as usize].iter().map(|&n| n as usize).collect()
    }
}

pub(crate) fn text<'a>(pointer: *const c_char) -> &'a str {
    // SAFETY: applications give strings that end in zero.
    unsafe { std::ffi::CStr::from_ptr(pointer) }.to_str().unwrap_or_default()
}
