//! A bundle that draws.

use std::ffi::{CString, c_char, c_void};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard};

use kiln_runtime::{Bundle, Error, Event, LoraFile, MemoryChoice, Pipeline, Request, Watch};

use crate::boundary::{c_string, free, given, guard, read, slice, text, write};
use crate::error::{KILN_REQUEST, KILN_UNEXPECTED, kiln_error, kiln_status};
use crate::memory::{kiln_memory, kiln_plan, memory_of};
use crate::options::{kiln_options, open};
use crate::output::kiln_output;
use crate::request::{kiln_request, request_of};
use crate::watch::{kiln_watch, tell};

/// A bundle that draws. Calls from several threads wait for each other.
pub struct kiln_pipeline {
    pipeline: Mutex<Pipeline>,
    notices: Vec<CString>,
}

impl kiln_pipeline {
    fn lock(&self) -> Result<MutexGuard<'_, Pipeline>, kiln_error> {
        let broken =
            |_| kiln_error::new(KILN_UNEXPECTED, "an earlier fault broke this pipeline: open another one");
        self.pipeline.lock().map_err(broken)
    }
}

/// Opens a bundle; its engines are loaded when they are first needed.
///
/// `path` is the bundle's folder. `options` may be `NULL`. `*pipeline` becomes `NULL` on failure. `error` may be `NULL`, else
/// `*error` becomes an error to free, or `NULL`.
///
/// # Safety
/// Pointers are `NULL`, or what is said of them here and in their structs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_open(
    path: *const c_char,
    options: *const kiln_options,
    pipeline: *mut *mut kiln_pipeline,
    error: *mut *mut kiln_error,
) -> kiln_status {
    // SAFETY: the caller's promise.
    unsafe {
        guard(error, || {
            given(pipeline, "the place for the pipeline")?;
            pipeline.write(std::ptr::null_mut());
            let path = text(path, "path")?.ok_or_else(|| kiln_error::request("path is NULL"))?;
            let opened = open(path, options)?;
            let notices = opened.notices().iter().map(c_string).collect();
            pipeline.write(Box::into_raw(Box::new(kiln_pipeline { pipeline: Mutex::new(opened), notices })));
            Ok(())
        })
    }
}

/// Frees a pipeline and its engines; `NULL` is nothing to free. Outputs stay.
///
/// # Safety
/// `pipeline` is `NULL` or has not been freed, and no call uses it, nor will one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_pipeline_free(pipeline: *mut kiln_pipeline) {
    // SAFETY: the caller's promise.
    unsafe { free(pipeline) }
}

/// What took the place of something better when the pipeline was opened, and why, one line each: that of number `index`,
/// valid until the pipeline is freed; `NULL` behind the last.
///
/// # Safety
/// `pipeline` is `NULL` or has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_pipeline_notice(pipeline: *const kiln_pipeline, index: usize) -> *const c_char {
    // SAFETY: the caller's promise.
    let notice = unsafe { pipeline.as_ref() }.and_then(|pipeline| pipeline.notices.get(index));
    notice.map_or(std::ptr::null(), |notice| notice.as_ptr())
}

/// Draws. `watch` may be `NULL`. `*output` becomes the pictures, to be freed, or `NULL` on failure. A pipeline that was
/// stopped, or whose call failed, draws again.
///
/// # Safety
/// Pointers are `NULL`, or what is said of them here and in their structs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_pipeline_generate(
    pipeline: *const kiln_pipeline,
    request: *const kiln_request,
    watch: *const kiln_watch,
    output: *mut *mut kiln_output,
    error: *mut *mut kiln_error,
) -> kiln_status {
    // SAFETY: the caller's promise.
    unsafe {
        guard(error, || {
            given(output, "the place for the output")?;
            output.write(std::ptr::null_mut());
            let pipeline = given(pipeline, "pipeline")?;
            let request = request_of(request)?;
            let drawn = generate(&mut *pipeline.lock()?, &request, watch)?;
            output.write(Box::into_raw(Box::new(drawn)));
            Ok(())
        })
    }
}

/// What a caller's function is given.
struct User(*mut c_void);

// SAFETY: events are told on the thread that the function was handed over on.
unsafe impl Send for User {}

impl User {
    fn get(&self) -> *mut c_void {
        self.0
    }
}

/// # Safety
/// As [`kiln_pipeline_generate`].
unsafe fn generate(
    pipeline: &mut Pipeline,
    request: &Request,
    watch: *const kiln_watch,
) -> Result<kiln_output, kiln_error> {
    // SAFETY: the caller's promise.
    let Some(of) = (unsafe { read(watch)? }) else { return Ok(pipeline.generate(request)?.into()) };
    let (function, user) = (of.on_event, User(of.user));
    let mut on_event = move |event: Event| match function {
        // SAFETY: the caller's promise.
        Some(function) => unsafe { tell(function, user.get(), &event) },
        None => ControlFlow::Continue(()),
    };
    let mut watch = Watch::new().previews(of.preview_every as usize).on_event(&mut on_event);
    // SAFETY: the caller's promise.
    if let Some(cancel) = unsafe { of.cancel.as_ref() } {
        watch = watch.cancel(&cancel.0);
    }
    Ok(pipeline.generate_with(request, watch)?.into())
}

/// Draws with LoRAs from now on: so many files or folders, each with its weight. None of them gives the bundle's own
/// weights back. On failure nothing has changed.
///
/// # Safety
/// Pointers are `NULL`, or there are as many paths and weights.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_pipeline_set_loras(
    pipeline: *const kiln_pipeline,
    paths: *const *const c_char,
    weights: *const f32,
    n: usize,
    error: *mut *mut kiln_error,
) -> kiln_status {
    // SAFETY: the caller's promise.
    unsafe {
        guard(error, || {
            let pipeline = given(pipeline, "pipeline")?;
            let weights = slice(weights, n, "weights")?;
            let mut loras = Vec::with_capacity(n.min(64));
            for (i, &path) in slice(paths, n, "paths")?.iter().enumerate() {
                let path = text(path, &format!("paths[{i}]"))?;
                let path = path.ok_or_else(|| kiln_error::request(format!("paths[{i}] is NULL")))?;
                let file = LoraFile::open(path).map_err(Error::from)?;
                loras.push((Arc::new(file), weights[i]));
            }
            pipeline.lock()?.set_loras(&loras)?;
            Ok(())
        })
    }
}

/// Adds a ControlNet, a bundle's folder; requests then have one picture more in `controls`.
///
/// # Safety
/// Pointers are `NULL`, or what is said of them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_pipeline_add_controlnet(
    pipeline: *const kiln_pipeline,
    path: *const c_char,
    error: *mut *mut kiln_error,
) -> kiln_status {
    // SAFETY: the caller's promise.
    unsafe {
        guard(error, || {
            let pipeline = given(pipeline, "pipeline")?;
            let path = text(path, "path")?.ok_or_else(|| kiln_error::request("path is NULL"))?;
            let bundle = Bundle::open(path)?;
            Ok(pipeline.lock()?.add_controlnet(bundle)?)
        })
    }
}

/// Adds a textual inversion, a file, under the token that prompts name it by; `NULL` for the file's own.
///
/// # Safety
/// As [`kiln_pipeline_add_controlnet`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_pipeline_add_embedding(
    pipeline: *const kiln_pipeline,
    path: *const c_char,
    token: *const c_char,
    error: *mut *mut kiln_error,
) -> kiln_status {
    // SAFETY: the caller's promise.
    unsafe {
        guard(error, || {
            let pipeline = given(pipeline, "pipeline")?;
            let path = text(path, "path")?.ok_or_else(|| kiln_error::request("path is NULL"))?;
            pipeline.lock()?.add_embedding(path, text(token, "token")?)?;
            Ok(())
        })
    }
}

/// Spends memory in another way from now on; engines that must go leave at once. `NULL` for the defaults.
///
/// # Safety
/// As [`kiln_pipeline_add_controlnet`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_pipeline_set_memory(
    pipeline: *const kiln_pipeline,
    memory: *const kiln_memory,
    error: *mut *mut kiln_error,
) -> kiln_status {
    // SAFETY: the caller's promise.
    unsafe {
        guard(error, || {
            let memory = memory_of(memory)?.unwrap_or_default();
            Ok(given(pipeline, "pipeline")?.lock()?.set_memory(memory)?)
        })
    }
}

/// What a request will take within so many bytes of memory, spent in the fastest way that fits; 0 for what takes most and
/// is fastest. The bundle must have been measured, as `kiln compile` does.
///
/// # Safety
/// As [`kiln_pipeline_generate`]; `plan` is a struct as its size says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_pipeline_plan(
    pipeline: *const kiln_pipeline,
    request: *const kiln_request,
    budget: u64,
    plan: *mut kiln_plan,
    error: *mut *mut kiln_error,
) -> kiln_status {
    // SAFETY: the caller's promise.
    unsafe {
        guard(error, || {
            let request = request_of(request)?;
            let choice = choice(&*given(pipeline, "pipeline")?.lock()?, &request, budget)?;
            write(plan, kiln_plan::from(&choice))
        })
    }
}

fn choice(pipeline: &Pipeline, request: &Request, budget: u64) -> Result<MemoryChoice, kiln_error> {
    let unmeasured = || kiln_error::new(KILN_REQUEST, "the bundle has no figures: kiln measure makes them");
    let figures = pipeline.bundle().figures()?.ok_or_else(unmeasured)?;
    let plan = pipeline.plan(request, &figures)?;
    Ok(plan.within(if budget == 0 { u64::MAX } else { budget })?)
}

/// Gives back all engines; the next run loads them again.
///
/// # Safety
/// As [`kiln_pipeline_add_controlnet`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_pipeline_release(
    pipeline: *const kiln_pipeline,
    error: *mut *mut kiln_error,
) -> kiln_status {
    // SAFETY: the caller's promise.
    unsafe {
        guard(error, || {
            given(pipeline, "pipeline")?.lock()?.release();
            Ok(())
        })
    }
}
