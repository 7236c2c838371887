//! One request, from its inputs to its answer.

use std::ffi::c_void;
use std::ptr::{null, null_mut};
use std::time::Duration;

use kiln_server::inference::{Backend, Call, OutputTensor};

use tracing::Level;

use crate::error::{Failure, c_string, caught, check, text};
use crate::log::say;
use crate::sys;

/// Parameters that the server itself adds to requests begin with this.
const OF_SERVER: &str = "triton_";

/// A request that is kiln's until it is released.
#[derive(Clone, Copy)]
pub(crate) struct Request {
    pub(crate) request: *mut sys::Request,
    pub(crate) instance: *mut sys::Instance,
}

// SAFETY: the server's functions may be called from any thread, and kiln calls them for a request one after another, but
// for whether it is cancelled, which the server guards.
unsafe impl Send for Request {}

impl Request {
    /// Has the request drawn, and answers it later.
    ///
    /// # Safety
    /// The request was handed over by the server, and neither it nor its instance is gone before it is released.
    pub(crate) unsafe fn start(self, backend: &Backend) {
        let begun = now();
        // SAFETY: the caller's promise.
        let call = caught(|| unsafe { self.read(backend) });
        match call {
            Ok(call) => backend.draw(
                call,
                // SAFETY: it is asked before the request is released.
                move || unsafe { self.is_cancelled() },
                // SAFETY: the caller's promise; this is the one place that releases it.
                move |drawn| unsafe { self.finish(begun, drawn.map_err(Failure::from)) },
            ),
            // SAFETY: as above.
            Err(failure) => unsafe { self.finish(begun, Err(failure)) },
        }
    }

    /// # Safety
    /// As [`Self::start`].
    unsafe fn read(self, backend: &Backend) -> Result<Call, Failure> {
        let mut call = backend.call()?;
        let mut count = 0;
        // SAFETY: the caller's promise; indices are below the counts.
        unsafe {
            check(sys::TRITONBACKEND_RequestInputCount(self.request, &mut count))?;
            for index in 0..count {
                let mut input = null_mut();
                check(sys::TRITONBACKEND_RequestInputByIndex(self.request, index, &mut input))?;
                read_input(input, &mut call)?;
            }
            check(sys::TRITONBACKEND_RequestParameterCount(self.request, &mut count))?;
            for index in 0..count {
                self.read_parameter(index, &mut call)?;
            }
            check(sys::TRITONBACKEND_RequestOutputCount(self.request, &mut count))?;
            for index in 0..count {
                let mut name = null();
                check(sys::TRITONBACKEND_RequestOutputName(self.request, index, &mut name))?;
                call.output(&text(name))?;
            }
        }
        Ok(call)
    }

    /// # Safety
    /// As [`Self::start`]; the request has so many parameters.
    unsafe fn read_parameter(self, index: u32, call: &mut Call) -> Result<(), Failure> {
        let (mut key, mut kind, mut value) = (null(), 0, null::<c_void>());
        // SAFETY: the caller's promise; the value is of its kind.
        unsafe {
            let found =
                sys::TRITONBACKEND_RequestParameter(self.request, index, &mut key, &mut kind, &mut value);
            check(found)?;
            let key = text(key);
            match kind {
                _ if key.starts_with(OF_SERVER) => {}
                sys::PARAMETER_STRING => call.text(&key, &text(value.cast()))?,
                sys::PARAMETER_INT => call.integer(&key, value.cast::<i64>().read_unaligned())?,
                sys::PARAMETER_DOUBLE => call.float(&key, value.cast::<f64>().read_unaligned())?,
                sys::PARAMETER_BOOL => call.integer(&key, value.cast::<u8>().read().into())?,
                _ => return Err(Failure::new(sys::ERROR_UNSUPPORTED, format!("{key}: bytes as a parameter"))),
            }
        }
        Ok(())
    }

    /// # Safety
    /// As [`Self::start`].
    unsafe fn is_cancelled(self) -> bool {
        let mut is_cancelled = false;
        // SAFETY: the caller's promise.
        let asked = check(unsafe { sys::TRITONBACKEND_RequestIsCancelled(self.request, &mut is_cancelled) });
        asked.is_ok() && is_cancelled
    }

    /// Answers the request, and gives it back.
    ///
    /// # Safety
    /// As [`Self::start`]; nothing uses the request afterwards.
    unsafe fn finish(self, begun: u64, drawn: Result<Vec<OutputTensor>, Failure>) {
        let (request, done) = (self.request, now());
        // SAFETY: the caller's promise.
        let told = unsafe {
            let mut response = null_mut();
            let made = check(sys::TRITONBACKEND_ResponseNew(&mut response, request));
            let written = drawn.and_then(|tensors| match response.is_null() {
                true => Err(Failure::new(sys::ERROR_INTERNAL, "the server makes no response")),
                false => tensors.iter().try_for_each(|tensor| write(response, tensor)),
            });
            let counted = count(self, written.is_ok(), [begun, begun, done, now()]);
            let error = written.map_or_else(Failure::into_status, |()| null_mut());
            let sent = match response.is_null() {
                true => Ok(()),
                false => check(sys::TRITONBACKEND_ResponseSend(response, sys::ALL, error)),
            };
            // It was read, and not taken over.
            if !error.is_null() {
                sys::TRITONSERVER_ErrorDelete(error);
            }
            let released = check(sys::TRITONBACKEND_RequestRelease(request, sys::ALL));
            made.and(counted).and(sent).and(released)
        };
        if let Err(failure) = told {
            say(Level::ERROR, &format!("a request was not answered: {failure:?}"));
        }
    }
}

/// Counts a request, with the times at which it began, its pictures were begun and done, and it ended.
///
/// # Safety
/// As [`Request::start`]; the request has not been released.
unsafe fn count(counted: Request, is_success: bool, times: [u64; 4]) -> Result<(), Failure> {
    let ([start, compute_start, compute_end, end], Request { request, instance }) = (times, counted);
    // SAFETY: the caller's promise.
    unsafe {
        check(sys::TRITONBACKEND_ModelInstanceReportStatistics(
            instance,
            request,
            is_success,
            start,
            compute_start,
            compute_end,
            end,
        ))?;
        match is_success {
            true => check(sys::TRITONBACKEND_ModelInstanceReportBatchStatistics(
                instance,
                1,
                start,
                compute_start,
                compute_end,
                end,
            )),
            false => Ok(()),
        }
    }
}

/// # Safety
/// It is an input of a request that has not been released.
unsafe fn read_input(input: *mut sys::Input, call: &mut Call) -> Result<(), Failure> {
    let (mut name, mut datatype, mut shape) = (null(), 0, null());
    let (mut n_sides, mut n_bytes, mut n_buffers) = (0, 0, 0);
    // SAFETY: the caller's promise; what is read lives as long as the request.
    unsafe {
        check(sys::TRITONBACKEND_InputProperties(
            input,
            &mut name,
            &mut datatype,
            &mut shape,
            &mut n_sides,
            &mut n_bytes,
            &mut n_buffers,
        ))?;
        let name = text(name);
        let mut data = Vec::with_capacity(usize::try_from(n_bytes).unwrap_or(0));
        for index in 0..n_buffers {
            let (mut buffer, mut n_bytes, mut memory, mut memory_id) = (null(), 0, sys::MEMORY_CPU, 0);
            check(sys::TRITONBACKEND_InputBuffer(
                input,
                index,
                &mut buffer,
                &mut n_bytes,
                &mut memory,
                &mut memory_id,
            ))?;
            if memory == sys::MEMORY_GPU {
                return Err(Failure::new(sys::ERROR_UNSUPPORTED, format!("{name}: lies in a GPU's memory")));
            }
            if n_bytes > 0 {
                data.extend_from_slice(std::slice::from_raw_parts(buffer.cast::<u8>(), n_bytes as usize));
            }
        }
        let shape = if n_sides == 0 { &[] } else { std::slice::from_raw_parts(shape, n_sides as usize) };
        let datatype = text(sys::TRITONSERVER_DataTypeString(datatype));
        Ok(call.input(&name, &datatype, shape, data)?)
    }
}

/// # Safety
/// The response has not been sent.
unsafe fn write(response: *mut sys::Response, tensor: &OutputTensor) -> Result<(), Failure> {
    let datatype = match tensor.datatype {
        "UINT8" => sys::TYPE_UINT8,
        "INT64" => sys::TYPE_INT64,
        _ => sys::TYPE_BYTES,
    };
    let (name, n_bytes) = (c_string(tensor.name), tensor.data.len());
    let (mut output, mut buffer) = (null_mut(), null_mut());
    let (mut memory, mut memory_id) = (sys::MEMORY_CPU, 0);
    // SAFETY: the caller's promise; the buffer holds as many bytes as were asked for.
    unsafe {
        check(sys::TRITONBACKEND_ResponseOutput(
            response,
            &mut output,
            name.as_ptr(),
            datatype,
            tensor.shape.as_ptr(),
            tensor.shape.len() as u32,
        ))?;
        check(sys::TRITONBACKEND_OutputBuffer(
            output,
            &mut buffer,
            n_bytes as u64,
            &mut memory,
            &mut memory_id,
        ))?;
        if memory == sys::MEMORY_GPU {
            return Err(Failure::new(sys::ERROR_UNSUPPORTED, "the answer is wanted in a GPU's memory"));
        }
        if n_bytes > 0 {
            buffer.cast::<u8>().copy_from_nonoverlapping(tensor.data.as_ptr(), n_bytes);
        }
    }
    Ok(())
}

/// Nanoseconds of the clock that the server's statistics go by, `CLOCK_MONOTONIC`.
fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the place is valid, and the clock is there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32).as_nanos() as u64
}
