//! Watching and stopping.

use std::ffi::{CString, c_void};
use std::ops::ControlFlow;

use kiln_runtime::{CancelToken, Event};

use crate::boundary::{Versioned, c_string, free};
use crate::output::borrowed;
use crate::request::kiln_picture;

/// A component is being loaded: `text` is its name.
pub const KILN_EVENT_LOADING: u32 = 1;
/// The first step starts; `steps` are to be made.
pub const KILN_EVENT_STARTED: u32 = 2;
/// `step` of `steps` are done.
pub const KILN_EVENT_STEP: u32 = 3;
/// What the pictures look like so far, `pictures`.
pub const KILN_EVENT_PREVIEW: u32 = 4;
/// `step` of `steps` pictures are decoded.
pub const KILN_EVENT_DECODING: u32 = 5;
/// Something of the request is read in another way than its author may think: `text` says how.
pub const KILN_EVENT_NOTICE: u32 = 6;

/// What a pipeline is about to do or has done. It is valid while the function runs.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kiln_event {
    /// Bytes that the library has filled.
    pub size: usize,
    /// `KILN_EVENT_*`; a program passes over those that it does not know.
    pub kind: u32,
    /// How much is done.
    pub step: u32,
    /// How much there is to do.
    pub steps: u32,
    /// Number of pictures.
    pub n_pictures: u32,
    /// Previews, one per prompt.
    pub pictures: *const kiln_picture,
    /// One line of UTF-8, or `NULL`.
    pub text: *const std::ffi::c_char,
}

/// Told of every event, on the thread that draws; anything but 0 cancels. It must not unwind: C++ exceptions stay in it.
pub type kiln_on_event = Option<unsafe extern "C" fn(event: *const kiln_event, user: *mut c_void) -> i32>;

/// How a run is watched and stopped. With all zeros but the size, it is neither.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kiln_watch {
    /// `sizeof(kiln_watch)`.
    pub size: usize,
    /// Told of every event; `NULL` for nobody.
    pub on_event: kiln_on_event,
    /// What it is given besides.
    pub user: *mut c_void,
    /// Stops the run from any thread; `NULL` for nothing.
    pub cancel: *const kiln_cancel,
    /// A preview after every so many evaluations of the denoiser; 0 for none. Each takes as long as decoding does.
    pub preview_every: u32,
    /// 0.
    pub reserved: u32,
}

// SAFETY: it is `repr(C)`, begins with its size, and holds numbers, pointers and a function that may be none.
unsafe impl Versioned for kiln_watch {
    const NAME: &'static str = "kiln_watch";
}

/// Stops runs from any thread.
pub struct kiln_cancel(pub(crate) CancelToken);

/// Something to stop runs with, of one or of several pipelines. Once it has stopped, it stays so: a new run takes a new one.
#[unsafe(no_mangle)]
pub extern "C" fn kiln_cancel_new() -> *mut kiln_cancel {
    Box::into_raw(Box::new(kiln_cancel(CancelToken::new())))
}

/// Stops the runs that have it, before their next step; from any thread and any signal handler.
///
/// # Safety
/// `cancel` is `NULL` or has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_cancel_now(cancel: *const kiln_cancel) {
    // SAFETY: the caller's promise.
    if let Some(cancel) = unsafe { cancel.as_ref() } {
        cancel.0.cancel();
    }
}

/// Frees it, once the calls that were given it have returned.
///
/// # Safety
/// As [`kiln_cancel_now`]; it is not used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_cancel_free(cancel: *mut kiln_cancel) {
    // SAFETY: the caller's promise.
    unsafe { free(cancel) }
}

/// What a caller's function is told of an event.
struct Told {
    kind: u32,
    step: usize,
    steps: usize,
    text: Option<CString>,
}

fn told(event: &Event) -> Option<Told> {
    let counted = |kind, step, steps| Some(Told { kind, step, steps, text: None });
    let said = |kind, text: String| Some(Told { kind, step: 0, steps: 0, text: Some(c_string(text)) });
    match event {
        Event::Loading(component) => said(KILN_EVENT_LOADING, component.to_string()),
        Event::Started { steps } => counted(KILN_EVENT_STARTED, 0, *steps),
        Event::Step { step, steps, .. } => counted(KILN_EVENT_STEP, *step, *steps),
        Event::Preview { step, .. } => counted(KILN_EVENT_PREVIEW, *step, 0),
        Event::Decoding { done, total } => counted(KILN_EVENT_DECODING, *done, *total),
        other => other.notice().and_then(|notice| said(KILN_EVENT_NOTICE, notice)),
    }
}

/// Tells a caller's function of an event.
///
/// # Safety
/// The function may be called with `user`.
pub(crate) unsafe fn tell(
    function: unsafe extern "C" fn(*const kiln_event, *mut c_void) -> i32,
    user: *mut c_void,
    event: &Event,
) -> ControlFlow<()> {
    let Some(Told { kind, step, steps, text }) = told(event) else { return ControlFlow::Continue(()) };
    let images = if let Event::Preview { images, .. } = event { images.as_slice() } else { &[] };
    let pictures: Vec<kiln_picture> = images.iter().map(borrowed).collect();
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let event = kiln_event {
        size: size_of::<kiln_event>(),
        kind,
        step: number(step),
        steps: number(steps),
        n_pictures: number(pictures.len()),
        pictures: if pictures.is_empty() { std::ptr::null() } else { pictures.as_ptr() },
        text: text.as_ref().map_or(std::ptr::null(), |text| text.as_ptr()),
    };
    // SAFETY: the caller's promise.
    match unsafe { function(&raw const event, user) } {
        0 => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    }
}
