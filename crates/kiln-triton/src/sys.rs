//! What the server provides, of version 1 of its backends' interface.
//!
//! Source: `include/triton/core/tritonbackend.h` and `tritonserver.h` of Triton's core.

use std::ffi::{c_char, c_int, c_void};

macro_rules! opaque {
    ($($name:ident)*) => { $(
        #[repr(C)]
        pub(crate) struct $name([u8; 0]);
    )* };
}

opaque!(TritonError Message Model Instance Request Input Response Output);

/// An error to be deleted, or `NULL` for success.
pub(crate) type Status = *mut TritonError;

pub(crate) const API_MAJOR: u32 = 1;
/// The minor version that first had all of these functions (`TRITONBACKEND_RequestIsCancelled`, of 2023).
pub(crate) const API_MINOR: u32 = 16;

pub(crate) const ERROR_INTERNAL: u32 = 1;
pub(crate) const ERROR_INVALID: u32 = 3;
pub(crate) const ERROR_UNAVAILABLE: u32 = 4;
pub(crate) const ERROR_UNSUPPORTED: u32 = 5;
pub(crate) const ERROR_CANCELLED: u32 = 7;

pub(crate) const MEMORY_GPU: u32 = 2;
pub(crate) const MEMORY_CPU: u32 = 0;

pub(crate) const PARAMETER_STRING: u32 = 0;
pub(crate) const PARAMETER_INT: u32 = 1;
pub(crate) const PARAMETER_BOOL: u32 = 2;
pub(crate) const PARAMETER_DOUBLE: u32 = 3;

pub(crate) const LOG_INFO: u32 = 0;
pub(crate) const LOG_WARN: u32 = 1;
pub(crate) const LOG_ERROR: u32 = 2;

/// Of a request's release: all of it; of a response: it is the last one.
pub(crate) const ALL: u32 = 1;

pub(crate) const TYPE_UINT8: u32 = 2;
pub(crate) const TYPE_INT64: u32 = 9;
pub(crate) const TYPE_BYTES: u32 = 13;

unsafe extern "C" {
    pub(crate) fn TRITONSERVER_ErrorNew(code: u32, message: *const c_char) -> Status;
    pub(crate) fn TRITONSERVER_ErrorDelete(error: Status);
    pub(crate) fn TRITONSERVER_ErrorMessage(error: Status) -> *const c_char;
    pub(crate) fn TRITONSERVER_DataTypeString(datatype: u32) -> *const c_char;
    pub(crate) fn TRITONSERVER_MessageDelete(message: *mut Message) -> Status;
    pub(crate) fn TRITONSERVER_MessageSerializeToJson(
        message: *mut Message,
        base: *mut *const c_char,
        n_bytes: *mut usize,
    ) -> Status;
    pub(crate) fn TRITONSERVER_LogMessage(
        level: u32,
        file: *const c_char,
        line: c_int,
        message: *const c_char,
    ) -> Status;

    pub(crate) fn TRITONBACKEND_ApiVersion(major: *mut u32, minor: *mut u32) -> Status;

    pub(crate) fn TRITONBACKEND_ModelName(model: *mut Model, name: *mut *const c_char) -> Status;
    pub(crate) fn TRITONBACKEND_ModelVersion(model: *mut Model, version: *mut u64) -> Status;
    pub(crate) fn TRITONBACKEND_ModelRepository(
        model: *mut Model,
        kind: *mut u32,
        location: *mut *const c_char,
    ) -> Status;
    pub(crate) fn TRITONBACKEND_ModelConfig(
        model: *mut Model,
        version: u32,
        config: *mut *mut Message,
    ) -> Status;
    pub(crate) fn TRITONBACKEND_ModelState(model: *mut Model, state: *mut *mut c_void) -> Status;
    pub(crate) fn TRITONBACKEND_ModelSetState(model: *mut Model, state: *mut c_void) -> Status;

    pub(crate) fn TRITONBACKEND_ModelInstanceModel(instance: *mut Instance, model: *mut *mut Model) -> Status;
    pub(crate) fn TRITONBACKEND_ModelInstanceReportStatistics(
        instance: *mut Instance,
        request: *mut Request,
        success: bool,
        start: u64,
        compute_start: u64,
        compute_end: u64,
        end: u64,
    ) -> Status;

    pub(crate) fn TRITONBACKEND_ModelInstanceReportBatchStatistics(
        instance: *mut Instance,
        n_items: u64,
        start: u64,
        compute_start: u64,
        compute_end: u64,
        end: u64,
    ) -> Status;

    pub(crate) fn TRITONBACKEND_RequestIsCancelled(request: *mut Request, is_cancelled: *mut bool) -> Status;
    pub(crate) fn TRITONBACKEND_RequestInputCount(request: *mut Request, count: *mut u32) -> Status;
    pub(crate) fn TRITONBACKEND_RequestInputByIndex(
        request: *mut Request,
        index: u32,
        input: *mut *mut Input,
    ) -> Status;
    pub(crate) fn TRITONBACKEND_RequestOutputCount(request: *mut Request, count: *mut u32) -> Status;
    pub(crate) fn TRITONBACKEND_RequestOutputName(
        request: *mut Request,
        index: u32,
        name: *mut *const c_char,
    ) -> Status;
    pub(crate) fn TRITONBACKEND_RequestParameterCount(request: *mut Request, count: *mut u32) -> Status;
    pub(crate) fn TRITONBACKEND_RequestParameter(
        request: *mut Request,
        index: u32,
        key: *mut *const c_char,
        kind: *mut u32,
        value: *mut *const c_void,
    ) -> Status;
    pub(crate) fn TRITONBACKEND_RequestRelease(request: *mut Request, flags: u32) -> Status;

    pub(crate) fn TRITONBACKEND_InputProperties(
        input: *mut Input,
        name: *mut *const c_char,
        datatype: *mut u32,
        shape: *mut *const i64,
        n_sides: *mut u32,
        n_bytes: *mut u64,
        n_buffers: *mut u32,
    ) -> Status;
    pub(crate) fn TRITONBACKEND_InputBuffer(
        input: *mut Input,
        index: u32,
        buffer: *mut *const c_void,
        n_bytes: *mut u64,
        memory: *mut u32,
        memory_id: *mut i64,
    ) -> Status;

    pub(crate) fn TRITONBACKEND_ResponseNew(response: *mut *mut Response, request: *mut Request) -> Status;
    pub(crate) fn TRITONBACKEND_ResponseOutput(
        response: *mut Response,
        output: *mut *mut Output,
        name: *const c_char,
        datatype: u32,
        shape: *const i64,
        n_sides: u32,
    ) -> Status;
    pub(crate) fn TRITONBACKEND_OutputBuffer(
        output: *mut Output,
        buffer: *mut *mut c_void,
        n_bytes: u64,
        memory: *mut u32,
        memory_id: *mut i64,
    ) -> Status;
    pub(crate) fn TRITONBACKEND_ResponseSend(response: *mut Response, flags: u32, error: Status) -> Status;
}
