//! TensorRT's messages: events of `tracing`, and the reasons of failures.

use std::ffi::{c_char, c_void};
use std::sync::{Mutex, PoisonError};

use crate::TrtError;
use crate::callback::{InterfaceInfo, VirtualTable, guard};
use crate::object::text;
use crate::sys::Tables;

/// An `ILogger` of TensorRT's, made here: its virtual table comes first, as in C++.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Logger {
    address: *const *const c_void,
    _table: VirtualTable,
    errors: Mutex<Vec<String>>,
}

// SAFETY: the table is constant, and the messages are behind a lock.
unsafe impl Send for Logger {}
// SAFETY: as above.
unsafe impl Sync for Logger {}

/// Most reasons that are kept for the next failure.
const MAX_ERRORS: usize = 16;

/// `ILogger::Severity` of `NvInferRuntime.h`, as far as errors go.
const ERROR: i32 = 1;

extern "C" fn interface_info(_this: *const Logger) -> InterfaceInfo {
    InterfaceInfo::first(c"ILogger")
}

extern "C" fn log(this: *const Logger, severity: i32, message: *const c_char) {
    // SAFETY: TensorRT calls with the logger that it was given, which is never freed.
    let logger = unsafe { &*this };
    guard("a subscriber", (), || logger.record(severity, &text(message)));
}

impl Logger {
    /// TensorRT keeps the first logger that it is given as long as the process lives, and so it is never freed.
    pub(crate) fn leaked(tables: &Tables) -> Result<&'static Logger, TrtError> {
        let functions = [("getInterfaceInfo", interface_info as *const c_void), ("log", log as *const c_void)];
        let table = VirtualTable::new(tables, "ILogger", &functions)?;
        Ok(Box::leak(Box::new(Logger { address: table.address(), _table: table, errors: Mutex::default() })))
    }

    pub(crate) fn as_ptr(&self) -> *mut c_void {
        std::ptr::from_ref(self).cast_mut().cast()
    }

    /// An error of a plugin of the application's.
    pub(crate) fn report(&self, plugin: &str, reason: &str) {
        self.record(ERROR, &format!("{OWN}{plugin}' {reason}"));
    }

    /// The errors since they were last taken.
    pub(crate) fn take_errors(&self) -> Vec<String> {
        std::mem::take(&mut *self.errors.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn record(&self, severity: i32, message: &str) {
        if severity <= ERROR {
            let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
            if errors.len() < MAX_ERRORS {
                errors.push(message.to_owned());
            }
        }
        emit(severity, message);
    }
}

fn emit(severity: i32, message: &str) {
    match severity {
        ..=ERROR => tracing::error!(target: "tensorrt", node = node(message), "{message}"),
        2 => tracing::warn!(target: "tensorrt", node = node(message), "{message}"),
        3 => tracing::debug!(target: "tensorrt", node = node(message), "{message}"),
        _ => tracing::trace!(target: "tensorrt", node = node(message), "{message}"),
    }
}

/// How messages of the application's plugins start.
const OWN: &str = "plugin '";

/// Whether a message is of a plugin of the application's.
pub(crate) fn is_own(message: &str) -> bool {
    message.starts_with(OWN)
}

/// What comes before a node's or layer's name in messages.
const INTRODUCTIONS: [&str; 5] = [
    "Node name: ",
    "Invalid Node - ",
    "Parsing node: ",
    "implementation for node ",
    "implementation of layer ",
];

/// What comes after one.
const ENDS: [&str; 6] = ["\n", ". ", ".)", " [", " (", " In "];

/// The node or layer that a message names: after an introduction, after the kind of an error as in
/// `API Usage Error (/mid/MatMul: last dimension`, or after a kind of layer as in `IShuffleLayer /mid/Reshape: reshaping`.
pub(crate) fn node(message: &str) -> Option<&str> {
    let introduced = INTRODUCTIONS.iter().find_map(|introduction| after(message, introduction)).map(|rest| {
        let end = ENDS.iter().filter_map(|end| rest.find(end)).min().unwrap_or(rest.len());
        rest[..end].trim_end_matches('.')
    });
    let of_error = || before_colon(after(message, " Error (")?);
    let of_layer = || {
        let kinds = message.match_indices("Layer ").filter(|(at, _)| is_kind(&message[..*at]));
        kinds.map(|(at, kind)| &message[at + kind.len()..]).find_map(before_colon)
    };
    introduced.or_else(of_error).or_else(of_layer).filter(|name| !name.is_empty())
}

fn after<'m>(message: &'m str, introduction: &str) -> Option<&'m str> {
    message.split_once(introduction).map(|(_, rest)| rest)
}

/// A name that ends in a colon; names have no spaces here.
fn before_colon(text: &str) -> Option<&str> {
    text.split_once(": ").map(|(name, _)| name).filter(|name| !name.contains(char::is_whitespace))
}

/// Whether the last word is the start of an interface's name, as `IShuffle`.
fn is_kind(text: &str) -> bool {
    let word = text.rsplit(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
    word.len() > 1 && word.starts_with('I')
}
