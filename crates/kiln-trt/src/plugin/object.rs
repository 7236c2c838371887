//! Plugins as TensorRT holds them: objects with four virtual tables, made here.

use std::ffi::{CString, c_char, c_void};
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::desc::TensorDesc;
use super::field::{Collection, RawCollection};
use super::{Plugin, PluginCreator, PluginResult, PluginRun, build};
use crate::callback::{InterfaceInfo, VirtualTable, guard};
use crate::logger::Logger;
use crate::object::c_string;
use crate::sys::Tables;
use crate::{CudaStream, TrtError};

/// What all plugins of a creator have in common.
pub(super) struct Identity {
    pub(super) name: CString,
    pub(super) version: CString,
    pub(super) namespace: CString,
    pub(super) tables: Arc<Tables>,
    pub(super) logger: &'static Logger,
    plugin: VirtualTable,
    core: VirtualTable,
    build: VirtualTable,
    runtime: VirtualTable,
}

impl Identity {
    pub(super) fn new(
        creator: &dyn PluginCreator,
        tables: &Arc<Tables>,
        logger: &'static Logger,
    ) -> Result<Identity, TrtError> {
        Ok(Identity {
            name: c_string(creator.name())?,
            version: c_string(creator.version())?,
            namespace: c_string(creator.namespace())?,
            tables: tables.clone(),
            logger,
            plugin: VirtualTable::new(tables, "IPluginV3", &PLUGIN.map(Function::entry))?,
            core: VirtualTable::new(tables, "IPluginV3OneCore", &CORE.map(Function::entry))?,
            build: VirtualTable::new(tables, "IPluginV3OneBuild", &build::METHODS.map(Function::entry))?,
            runtime: VirtualTable::new(tables, "IPluginV3OneRuntime", &RUNTIME.map(Function::entry))?,
        })
    }
}

/// A method's name and the function that it is.
#[derive(Clone, Copy)]
pub(super) struct Function(pub(super) &'static str, pub(super) *const c_void);

// SAFETY: functions are constant.
unsafe impl Sync for Function {}

impl Function {
    fn entry(self) -> (&'static str, *const c_void) {
        (self.0, self.1)
    }
}

static PLUGIN: [Function; 4] = [
    Function("getInterfaceInfo", plugin_info as *const c_void),
    Function("~deleting", delete as *const c_void),
    Function("getCapabilityInterface", capability as *const c_void),
    Function("clone", clone as *const c_void),
];

static CORE: [Function; 4] = [
    Function("getInterfaceInfo", core_info as *const c_void),
    Function("getPluginName", name as *const c_void),
    Function("getPluginVersion", version as *const c_void),
    Function("getPluginNamespace", namespace as *const c_void),
];

static RUNTIME: [Function; 6] = [
    Function("getInterfaceInfo", runtime_info as *const c_void),
    Function("setTactic", set_tactic as *const c_void),
    Function("onShapeChange", on_shape_change as *const c_void),
    Function("enqueue", enqueue as *const c_void),
    Function("attachToContext", attach_to_context as *const c_void),
    Function("getFieldsToSerialize", fields_to_serialize as *const c_void),
];

/// One interface of a plugin: its virtual table comes first, as in C++.
#[repr(C)]
pub(super) struct Part {
    address: *const *const c_void,
    owner: *mut PluginObject,
}

impl Part {
    fn new(table: &VirtualTable) -> Part {
        Part { address: table.address(), owner: null_mut() }
    }

    /// The plugin.
    ///
    /// # Safety
    ///
    /// The part is one that TensorRT calls a method of, whose plugin it has not deleted.
    pub(super) unsafe fn owner<'a>(this: *const Part) -> &'a PluginObject {
        // SAFETY: the caller vouches for the part, whose owner is set as long as it is alive.
        unsafe { &*(*this).owner }
    }
}

/// A plugin of TensorRT's.
#[repr(C)]
pub(super) struct PluginObject {
    plugin: Part,
    core: Part,
    build: Part,
    runtime: Part,
    identity: Arc<Identity>,
    inner: Box<dyn Plugin>,
    /// Numbers of inputs and outputs, which TensorRT tells before a run and not with it.
    counts: [AtomicUsize; 2],
    timing_cache_id: OnceLock<Option<CString>>,
    /// TensorRT keeps what it was given for as long as the plugin lives.
    serialized: Mutex<Vec<Arc<Collection>>>,
}

/// A count that TensorRT has not told.
const UNKNOWN: usize = usize::MAX;

/// `0 for success, else non-zero`.
pub(super) const OK: i32 = 0;
pub(super) const FAILED: i32 = 1;

impl PluginObject {
    /// Makes a plugin that TensorRT deletes.
    pub(super) fn leaked(identity: &Arc<Identity>, inner: Box<dyn Plugin>) -> *mut c_void {
        PluginObject::with_counts(identity, inner, [UNKNOWN; 2])
    }

    fn with_counts(identity: &Arc<Identity>, inner: Box<dyn Plugin>, counts: [usize; 2]) -> *mut c_void {
        let object = Box::into_raw(Box::new(PluginObject {
            plugin: Part::new(&identity.plugin),
            core: Part::new(&identity.core),
            build: Part::new(&identity.build),
            runtime: Part::new(&identity.runtime),
            identity: identity.clone(),
            inner,
            counts: counts.map(AtomicUsize::new),
            timing_cache_id: OnceLock::new(),
            serialized: Mutex::default(),
        }));
        // SAFETY: the object was just made, and nothing else knows it.
        unsafe {
            for part in [
                &raw mut (*object).plugin,
                &raw mut (*object).core,
                &raw mut (*object).build,
                &raw mut (*object).runtime,
            ] {
                (*part).owner = object;
            }
        }
        object.cast()
    }

    fn cloned(&self) -> *mut c_void {
        self.answer("cannot be cloned", null_mut(), |plugin| {
            let counts = [self.counts[0].load(Relaxed), self.counts[1].load(Relaxed)];
            Ok(PluginObject::with_counts(&self.identity, plugin.clone_plugin(), counts))
        })
    }

    pub(super) fn tables(&self) -> &Tables {
        &self.identity.tables
    }

    /// What the plugin answers; an error or a panic is told to the logger, and is `refusal` to TensorRT.
    pub(super) fn answer<T>(
        &self,
        what: &str,
        refusal: T,
        ask: impl FnOnce(&dyn Plugin) -> PluginResult<T>,
    ) -> T {
        self.identity.answer(what, refusal, || ask(&*self.inner))
    }

    /// The same of what succeeds or fails.
    pub(super) fn status(&self, what: &str, ask: impl FnOnce(&dyn Plugin) -> PluginResult<()>) -> i32 {
        self.answer(what, FAILED, |plugin| ask(plugin).map(|()| OK))
    }

    /// What tells plugins apart in the timing cache; lives as long as the plugin.
    pub(super) fn timing_cache_id(&self) -> *const c_char {
        self.answer("has no timing cache ID", null(), |plugin| {
            let made = || plugin.timing_cache_id().and_then(|id| c_string(&id).ok());
            let id = self.timing_cache_id.get_or_init(made);
            Ok(id.as_ref().map_or(null(), |id| id.as_ptr()))
        })
    }
}

impl Identity {
    /// As [`PluginObject::answer`].
    pub(super) fn answer<T>(&self, what: &str, refusal: T, ask: impl FnOnce() -> PluginResult<T>) -> T {
        let reason = match guard("a plugin", None, || Some(ask().map_err(|error| error.to_string()))) {
            Some(Ok(answer)) => return answer,
            Some(Err(reason)) => reason,
            None => "it panicked".into(),
        };
        let name = self.name.to_string_lossy();
        guard("a subscriber", (), || self.logger.report(&name, &format!("{what}: {reason}")));
        refusal
    }
}

/// A slice of C's; empty for null.
///
/// # Safety
///
/// `data` is null or points to `n` values that live as long as the slice is used.
pub(super) unsafe fn slice<'a, T>(data: *const T, n: i32) -> &'a [T] {
    match usize::try_from(n) {
        // SAFETY: the caller vouches for the values.
        Ok(n) if !data.is_null() => unsafe { std::slice::from_raw_parts(data, n) },
        _ => &[],
    }
}

extern "C" fn plugin_info(_this: *const Part) -> InterfaceInfo {
    InterfaceInfo::first(c"PLUGIN")
}

extern "C" fn core_info(_this: *const Part) -> InterfaceInfo {
    InterfaceInfo::first(c"PLUGIN_V3ONE_CORE")
}

extern "C" fn runtime_info(_this: *const Part) -> InterfaceInfo {
    InterfaceInfo::first(c"PLUGIN_V3ONE_RUNTIME")
}

extern "C" fn delete(this: *mut Part) {
    // SAFETY: TensorRT deletes a plugin once; the owner is the box that it was made from.
    let object = unsafe { Box::from_raw((*this).owner) };
    guard("a plugin's drop", (), || drop(object));
}

extern "C" fn capability(this: *const Part, kind: i32) -> *mut c_void {
    // SAFETY: TensorRT calls a plugin that it has not deleted.
    let object = unsafe { (*this).owner };
    // SAFETY: as above; the parts are parts of the object.
    unsafe {
        match kind {
            0 => (&raw mut (*object).core).cast(),
            1 => (&raw mut (*object).build).cast(),
            2 => (&raw mut (*object).runtime).cast(),
            _ => null_mut(),
        }
    }
}

extern "C" fn clone(this: *const Part) -> *mut c_void {
    // SAFETY: TensorRT calls a plugin that it has not deleted.
    unsafe { Part::owner(this) }.cloned()
}

extern "C" fn name(this: *const Part) -> *const c_char {
    // SAFETY: TensorRT calls a plugin that it has not deleted.
    unsafe { Part::owner(this) }.identity.name.as_ptr()
}

extern "C" fn version(this: *const Part) -> *const c_char {
    // SAFETY: TensorRT calls a plugin that it has not deleted.
    unsafe { Part::owner(this) }.identity.version.as_ptr()
}

extern "C" fn namespace(this: *const Part) -> *const c_char {
    // SAFETY: TensorRT calls a plugin that it has not deleted.
    unsafe { Part::owner(this) }.identity.namespace.as_ptr()
}

extern "C" fn set_tactic(this: *const Part, tactic: i32) -> i32 {
    // SAFETY: TensorRT calls a plugin that it has not deleted.
    let object = unsafe { Part::owner(this) };
    object.status("cannot take a tactic", |plugin| plugin.set_tactic(tactic))
}

extern "C" fn on_shape_change(
    this: *const Part,
    inputs: *const TensorDesc,
    n_inputs: i32,
    outputs: *const TensorDesc,
    n_outputs: i32,
) -> i32 {
    // SAFETY: TensorRT calls a plugin that it has not deleted, with as many tensors as it says.
    let (object, inputs, outputs) =
        unsafe { (Part::owner(this), slice(inputs, n_inputs), slice(outputs, n_outputs)) };
    object.counts[0].store(inputs.len(), Relaxed);
    object.counts[1].store(outputs.len(), Relaxed);
    object.status("cannot take the sizes", |plugin| plugin.on_shape_change(inputs, outputs))
}

extern "C" fn enqueue(
    this: *const Part,
    inputs: *const TensorDesc,
    outputs: *const TensorDesc,
    input_addresses: *const *const c_void,
    output_addresses: *const *mut c_void,
    workspace: *mut c_void,
    stream: *mut c_void,
) -> i32 {
    // SAFETY: TensorRT calls a plugin that it has not deleted.
    let object = unsafe { Part::owner(this) };
    let [n_inputs, n_outputs] = [object.counts[0].load(Relaxed), object.counts[1].load(Relaxed)];
    object.status("cannot run", |plugin| {
        if n_inputs == UNKNOWN || n_outputs == UNKNOWN {
            return Err("TensorRT has not told the sizes".into());
        }
        let (n_inputs, n_outputs) = (n_inputs as i32, n_outputs as i32);
        // SAFETY: TensorRT gives what it has told the numbers of in `on_shape_change`, and a stream that lives meanwhile.
        let run = unsafe {
            PluginRun {
                inputs: slice(inputs, n_inputs),
                outputs: slice(outputs, n_outputs),
                input_addresses: slice(input_addresses, n_inputs),
                output_addresses: slice(output_addresses, n_outputs),
                workspace,
                stream: CudaStream::from_raw(stream),
            }
        };
        // SAFETY: the addresses are TensorRT's, which keeps the memory until the stream is done.
        unsafe { plugin.enqueue(&run) }
    })
}

extern "C" fn attach_to_context(this: *const Part, _context: *mut c_void) -> *mut c_void {
    // SAFETY: TensorRT calls a plugin that it has not deleted.
    unsafe { Part::owner(this) }.cloned()
}

extern "C" fn fields_to_serialize(this: *const Part) -> *const RawCollection {
    // SAFETY: TensorRT calls a plugin that it has not deleted.
    let object = unsafe { Part::owner(this) };
    object.answer("cannot be serialized", null(), |plugin| {
        let fields = Collection::of_values(plugin.fields())?;
        let address = fields.as_ptr();
        object.serialized.lock().unwrap_or_else(PoisonError::into_inner).push(fields);
        Ok(address)
    })
}
