//! How a run is watched and stopped.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kiln_bundle::ComponentName;

use crate::image::RgbImage;

/// What a pipeline is about to do or has done.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// A component is being loaded.
    Loading(ComponentName),
    /// A prompt is longer than the text encoder reads; the tokens that were cut off.
    Truncated(usize),
    /// A prompt holds something that is read in another way than its author may think, and how.
    Misread(String),
    /// A mask is the same all over and tells no part of the picture from another.
    UniformMask {
        /// Whether all is painted and nothing of the picture kept; else nothing is painted.
        paints: bool,
        /// Whether the mask's file has an alpha channel that varies, which is not read.
        drops_alpha: bool,
    },
    /// The engines are loaded and the first step starts.
    Started {
        /// Evaluations of the denoiser to make, which for samplers of second order are nearly twice the steps.
        steps: usize,
    },
    /// An evaluation of the denoiser is done.
    Step {
        /// Evaluations done.
        step: usize,
        /// Evaluations to make.
        steps: usize,
        /// The timestep that was left.
        timestep: f32,
    },
    /// What the pictures look like so far, as [`Watch::previews`] asks for.
    Preview {
        /// Evaluations done.
        step: usize,
        /// One picture per prompt, decoded from the clean latents that the last prediction stands for.
        images: Vec<RgbImage>,
    },
    /// Latents are being decoded.
    Decoding {
        /// Pictures done.
        done: usize,
        /// Pictures to decode.
        total: usize,
    },
}

impl Event {
    /// What a user should know of the request, in one line; none where the event is about the run.
    pub fn notice(&self) -> Option<String> {
        match self {
            Event::Truncated(n) => Some(format!("the prompt is too long: its last {n} tokens are ignored")),
            Event::Misread(remark) => Some(format!("prompt: {remark}")),
            Event::UniformMask { paints, drops_alpha } => {
                let effect = match paints {
                    true => "the mask is light all over: all is painted, and nothing of the picture is kept",
                    false => "the mask is dark all over: nothing is painted",
                };
                let alpha = if *drops_alpha { "; its alpha channel, which varies, is not read" } else { "" };
                Some(format!("{effect}{alpha}"))
            }
            _ => None,
        }
    }
}

/// Told of every [`Event`]; `Break` cancels before the next one.
pub type OnEvent<'a> = dyn FnMut(Event) -> ControlFlow<()> + Send + 'a;

/// Stops runs from any thread: those that were given the token end with [`Error::Cancelled`](crate::Error::Cancelled) before
/// their next step.
///
/// A token that was cancelled stays so; a new run takes a new one.
#[derive(Clone, Debug, Default)]
pub struct CancelToken {
    is_cancelled: Arc<AtomicBool>,
}

impl CancelToken {
    /// A token that nobody has cancelled.
    pub fn new() -> CancelToken {
        CancelToken::default()
    }

    /// Stops the runs that have it.
    pub fn cancel(&self) {
        self.is_cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether somebody has cancelled it.
    pub fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::Relaxed)
    }
}

/// How a run is watched and stopped; not at all by default.
#[derive(Default)]
pub struct Watch<'a> {
    on_event: Option<&'a mut OnEvent<'a>>,
    cancel: Option<CancelToken>,
    preview_every: Option<usize>,
}

impl<'a> Watch<'a> {
    /// Watches nothing.
    pub fn new() -> Watch<'a> {
        Watch::default()
    }

    /// Calls a function with every event.
    #[must_use]
    pub fn on_event(self, on_event: &'a mut OnEvent<'a>) -> Watch<'a> {
        Watch { on_event: Some(on_event), ..self }
    }

    /// Stops the run when the token is cancelled.
    #[must_use]
    pub fn cancel(self, token: &CancelToken) -> Watch<'a> {
        Watch { cancel: Some(token.clone()), ..self }
    }

    /// Decodes what is there after every `every` evaluations of the denoiser, but for the last.
    ///
    /// Each preview takes as long as decoding the pictures does, and with offload the autoencoder is loaded beside the
    /// denoiser for it. On a GPU the loop comes back to the host for them, so the latents may differ in the last digits.
    #[must_use]
    pub fn previews(self, every: usize) -> Watch<'a> {
        Watch { preview_every: (every > 0).then_some(every), ..self }
    }

    /// Whether a preview is due after so many of all evaluations.
    pub(crate) fn wants_preview(&self, step: usize, steps: usize) -> bool {
        self.preview_every.is_some_and(|every| step < steps && step.is_multiple_of(every))
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn wants_previews(&self) -> bool {
        self.preview_every.is_some()
    }

    /// The token counts before and after: the function itself may cancel it.
    pub(crate) fn tell(&mut self, event: Event) -> ControlFlow<()> {
        self.check()?;
        self.on_event.as_mut().map_or(ControlFlow::Continue(()), |on_event| on_event(event))?;
        self.check()
    }

    fn check(&self) -> ControlFlow<()> {
        match self.cancel.as_ref().is_some_and(CancelToken::is_cancelled) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }
}
