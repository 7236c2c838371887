//! `kiln-trt` against libraries compiled from NVIDIA's headers, which tell what they were asked for.
#![expect(unsafe_code, reason = "runs on streams and memory are the caller's to vouch for")]

mod build;
mod library;
mod messages;
mod plugin;
mod refusals;
mod run;
mod weights;

pub(crate) use library::compile;
