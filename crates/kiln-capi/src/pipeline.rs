//! A bundle that draws.

use std::ffi::{CString, c_char, c_void};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

use kiln_runtime::{
    Bundle, Error, Event, Held, LoraFile, MemoryChoice, Pipeline, Request, SharedPipeline, Watch,
};

use crate::boundary::{c_string, free, given, guard, place, read, required, slice, text, write};
use crate::error::{KILN_INPUT, kiln_error, kiln_status};
use crate::memory::{kiln_memory, kiln_plan, memory_of};
use crate::options::{kiln_options, open};
use crate::output::kiln_output;
use crate::request::{kiln_request, request_of};
use crate::watch::{kiln_cancel, kiln_watch, tell};

/// A bundle that draws. Calls from several threads wait for each other.
pub struct kiln_pipeline {
    pipeline: SharedPipeline,
    /// They are added to and never removed, so that what was given out stays.
    notices: Mutex<Vec<CString>>,
}

const _: () = {
    const fn is_shared<T: Send + Sync>() {}
    is_shared::<kiln_pipeline>();
    is_shared::<kiln_output>();
    is_shared::<kiln_cancel>();
};

impl kiln_pipeline {
    fn hold(&self) -> Result<Held<'_>, kiln_error> {
        Ok(self.pipeline.hold()?)
    }

    fn notice(&self, notices: impl IntoIterator<Item = impl ToString>) {
        let mut all = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
        all.extend(notices.into_iter().map(c_string));
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
            place(pipeline, "pipeline")?;
            pipeline.write(std::ptr::null_mut());
            let path = required(path, "path")?;
            let opened = open(path, options)?;
            let mut notices: Vec<CString> = opened.notices().iter().map(c_string).collect();
            notices.extend(opened.scheduler_note().map(c_string));
            let opened = kiln_pipeline { pipeline: SharedPipeline::new(opened), notices: Mutex::new(notices) };
            pipeline.write(Box::into_raw(Box::new(opened)));
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

/// What a user should know, one line each: what took the place of something better when the pipeline was opened, what of a
/// LoRA does not fit, and how an embedding is called. That of number `index`, valid until the pipeline is freed; `NULL`
/// past the last.
///
/// # Safety
/// `pipeline` is `NULL` or has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_pipeline_notice(pipeline: *const kiln_pipeline, index: usize) -> *const c_char {
    // SAFETY: the caller's promise.
    let Some(pipeline) = (unsafe { pipeline.as_ref() }) else { return std::ptr::null() };
    let notices = pipeline.notices.lock().unwrap_or_else(PoisonError::into_inner);
    notices.get(index).map_or(std::ptr::null(), |notice| notice.as_ptr())
}

/// Draws. `watch` may be `NULL`. `*output` becomes the pictures, to be freed, or `NULL` on failure. A pipeline that was
/// stopped, or whose call failed, draws again, unless an error says that a fault broke it.
///
/// A call waits for another thread's; what would stop it does so when its turn comes.
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
            place(output, "output")?;
            output.write(std::ptr::null_mut());
            let pipeline = given(pipeline, "pipeline")?;
            let request = request_of(request)?;
            let drawn = generate(pipeline, &request, watch)?;
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
    pipeline: &kiln_pipeline,
    request: &Request,
    watch: *const kiln_watch,
) -> Result<kiln_output, kiln_error> {
    // SAFETY: the caller's promise.
    let Some(of) = (unsafe { read(watch)? }) else {
        return Ok(pipeline.hold()?.generate(request)?.into());
    };
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
    Ok(pipeline.hold()?.generate_with(request, watch)?.into())
}

/// Draws with LoRAs from now on: so many files or folders, each with its weight. With `n` of 0 the bundle's own weights
/// return. On failure no weight has changed; what of a file does not fit becomes a notice.
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
                let path = required(path, &format!("paths[{i}]"))?;
                let file = LoraFile::open(path).map_err(Error::from)?;
                loras.push((Arc::new(file), weights[i]));
            }
            let notices = pipeline.hold()?.set_loras(&loras)?;
            pipeline.notice(notices);
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
            let path = required(path, "path")?;
            let bundle = Bundle::open(path)?;
            Ok(pipeline.hold()?.add_controlnet(bundle)?)
        })
    }
}

/// Adds a textual inversion, a file, under the token that prompts name it by; `NULL` for the file's own, which becomes a
/// notice.
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
            let path = required(path, "path")?;
            let word = pipeline.hold()?.add_embedding(path, text(token, "token")?)?;
            pipeline.notice([format!("{path}: prompts name it {word}")]);
            Ok(())
        })
    }
}

/// Spends memory in another way from now on; all engines leave at once, and come back when they are needed. `NULL` for the
/// defaults.
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
            Ok(given(pipeline, "pipeline")?.hold()?.set_memory(memory)?)
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
            let choice = choice(&*given(pipeline, "pipeline")?.hold()?, &request, budget)?;
            write(plan, kiln_plan::from(&choice))
        })
    }
}

fn choice(pipeline: &Pipeline, request: &Request, budget: u64) -> Result<MemoryChoice, kiln_error> {
    let unmeasured =
        || kiln_error::new(KILN_INPUT, "the bundle has no figures").with_hint("kiln measure makes them");
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
            given(pipeline, "pipeline")?.hold()?.release();
            Ok(())
        })
    }
}
