//! What the server calls.

use std::ffi::c_void;
use std::ptr::{null_mut, slice_from_raw_parts};

use kiln_server::inference::Backend;

use crate::error::{Failure, check, guard};
use crate::log;
use crate::model;
use crate::request::Request;
use crate::sys::{self, Status};

/// Refuses a server whose interface lacks what is called here.
///
/// # Safety
/// The server calls it once, after it has loaded the library.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn TRITONBACKEND_Initialize(_backend: *mut c_void) -> Status {
    guard(|| {
        log::start();
        let (mut major, mut minor) = (0, 0);
        // SAFETY: the places are valid.
        check(unsafe { sys::TRITONBACKEND_ApiVersion(&mut major, &mut minor) })?;
        match major == sys::API_MAJOR && minor >= sys::API_MINOR {
            true => Ok(()),
            false => {
                let message = format!(
                    "the backend kiln needs version {}.{} of Triton's backend interface or a later one of {}; \
                     this server has {major}.{minor}",
                    sys::API_MAJOR,
                    sys::API_MINOR,
                    sys::API_MAJOR
                );
                Err(Failure::new(sys::ERROR_UNSUPPORTED, message))
            }
        }
    })
}

/// Opens a model.
///
/// # Safety
/// The server calls it, with a model that has no state.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn TRITONBACKEND_ModelInitialize(model: *mut sys::Model) -> Status {
    // SAFETY: the server's promise.
    guard(|| unsafe {
        let state = Box::into_raw(Box::new(model::open(model)?));
        check(sys::TRITONBACKEND_ModelSetState(model, state.cast())).inspect_err(|_| drop(Box::from_raw(state)))
    })
}

/// Closes a model.
///
/// # Safety
/// The server calls it, when no request of the model is left.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn TRITONBACKEND_ModelFinalize(model: *mut sys::Model) -> Status {
    // SAFETY: the state is what was set above, and nothing uses it any more.
    guard(|| unsafe {
        let state = state(model)?;
        if !state.is_null() {
            drop(Box::from_raw(state));
        }
        Ok(())
    })
}

/// Takes requests, each of which is answered when its pictures are done. More may come meanwhile.
///
/// # Safety
/// The server calls it, with so many requests, which are kiln's from here on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn TRITONBACKEND_ModelInstanceExecute(
    instance: *mut sys::Instance,
    requests: *mut *mut sys::Request,
    count: u32,
) -> Status {
    // SAFETY: the server's promise; a model outlives its instances, and both outlive their requests.
    guard(|| unsafe {
        let mut model = null_mut();
        check(sys::TRITONBACKEND_ModelInstanceModel(instance, &mut model))?;
        let backend = state(model)?.as_ref();
        let backend = backend.ok_or_else(|| Failure::new(sys::ERROR_INTERNAL, "the model is not open"))?;
        for request in &*slice_from_raw_parts(requests, count as usize) {
            Request { request: *request, instance }.start(backend);
        }
        Ok(())
    })
}

/// # Safety
/// The model was initialized.
unsafe fn state(model: *mut sys::Model) -> Result<*mut Backend, Failure> {
    let mut state = null_mut();
    // SAFETY: the caller's promise.
    check(unsafe { sys::TRITONBACKEND_ModelState(model, &mut state) })?;
    Ok(state.cast())
}
