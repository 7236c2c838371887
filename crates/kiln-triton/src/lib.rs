//! kiln as a backend of [Triton Inference Server](https://github.com/triton-inference-server/core): a model is a bundle,
//! its inputs are prompts and settings, its outputs pictures. There is no Python, and the denoising loop runs in one place;
//! requests that wait are drawn together, step by step, as by `kiln serve`.
//!
//! `kiln export triton` writes the model repository. The library lies in `backends/kiln/libtriton_kiln.so`.
//!
//! Triton calls the functions of `entry` and provides those of `sys`.

#![cfg(target_os = "linux")]

mod entry;
mod error;
mod log;
mod model;
mod request;
mod sys;
