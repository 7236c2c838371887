//! Progress of builds.

use std::ffi::{c_char, c_void};
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::TrtError;
use crate::callback::{InterfaceInfo, VirtualTable, guard};
use crate::object::text;
use crate::sys::Tables;

/// What TensorRT tells of a build, `IProgressMonitor` of `NvInfer.h`; it calls from several threads.
///
/// Phases form a tree, their names are English and change between releases. A panic cancels the build.
pub trait ProgressMonitor: Send + Sync {
    /// A phase of `n_steps` steps starts, within another where one is named.
    fn phase_start(&self, phase: &str, parent: Option<&str>, n_steps: usize);

    /// A step, counted from 0, is done; `Break` stops the build, which then fails with
    /// [`TrtErrorKind::Cancelled`](crate::TrtErrorKind::Cancelled).
    fn step_complete(&self, phase: &str, step: usize) -> ControlFlow<()>;

    /// A phase ends, with or without all of its steps.
    fn phase_finish(&self, phase: &str);
}

/// An `IProgressMonitor` made here: its virtual table comes first, as in C++.
#[repr(C)]
pub(crate) struct MonitorObject {
    address: *const *const c_void,
    _table: VirtualTable,
    monitor: Arc<dyn ProgressMonitor>,
    is_cancelled: AtomicBool,
}

// SAFETY: the table is constant, and the monitor is for all threads.
unsafe impl Send for MonitorObject {}
// SAFETY: as above.
unsafe impl Sync for MonitorObject {}

impl fmt::Debug for MonitorObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MonitorObject").field("is_cancelled", &self.is_cancelled).finish_non_exhaustive()
    }
}

impl MonitorObject {
    pub(crate) fn new(tables: &Tables, monitor: Arc<dyn ProgressMonitor>) -> Result<Arc<Self>, TrtError> {
        let functions = [
            ("getInterfaceInfo", interface_info as *const c_void),
            ("phaseStart", phase_start as *const c_void),
            ("stepComplete", step_complete as *const c_void),
            ("phaseFinish", phase_finish as *const c_void),
        ];
        let table = VirtualTable::new(tables, "IProgressMonitor", &functions)?;
        let is_cancelled = AtomicBool::new(false);
        Ok(Arc::new(MonitorObject { address: table.address(), _table: table, monitor, is_cancelled }))
    }

    pub(crate) fn as_ptr(&self) -> *mut c_void {
        std::ptr::from_ref(self).cast_mut().cast()
    }

    /// Whether the build was cancelled since this was last asked.
    pub(crate) fn take_cancelled(&self) -> bool {
        self.is_cancelled.swap(false, Relaxed)
    }

    /// Asks the monitor; a panic is a wish to stop.
    fn ask(&self, question: impl FnOnce(&dyn ProgressMonitor) -> ControlFlow<()>) -> bool {
        let answer = guard("a progress monitor", ControlFlow::Break(()), || question(&*self.monitor));
        if answer.is_break() {
            self.is_cancelled.store(true, Relaxed);
        }
        !self.is_cancelled.load(Relaxed)
    }
}

extern "C" fn interface_info(_this: *const c_void) -> InterfaceInfo {
    InterfaceInfo::first(c"IProgressMonitor")
}

extern "C" fn phase_start(
    this: *const MonitorObject,
    phase: *const c_char,
    parent: *const c_char,
    n_steps: i32,
) {
    // SAFETY: the configuration that TensorRT has the monitor from owns it.
    let object = unsafe { &*this };
    let parent = (!parent.is_null()).then(|| text(parent));
    let n_steps = usize::try_from(n_steps).unwrap_or(0);
    object.ask(|monitor| {
        monitor.phase_start(&text(phase), parent.as_deref(), n_steps);
        ControlFlow::Continue(())
    });
}

extern "C" fn step_complete(this: *const MonitorObject, phase: *const c_char, step: i32) -> bool {
    // SAFETY: as in `phase_start`.
    let object = unsafe { &*this };
    let step = usize::try_from(step).unwrap_or(0);
    object.ask(|monitor| monitor.step_complete(&text(phase), step))
}

extern "C" fn phase_finish(this: *const MonitorObject, phase: *const c_char) {
    // SAFETY: as in `phase_start`.
    let object = unsafe { &*this };
    object.ask(|monitor| {
        monitor.phase_finish(&text(phase));
        ControlFlow::Continue(())
    });
}
