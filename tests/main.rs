//! The integration tests: behaviour at the boundary that a user sees, and numbers against diffusers.
#![recursion_limit = "256"]

mod approximations;
mod architecture;
mod brought;
#[cfg(target_os = "linux")]
mod capi;
mod checkpoints;
mod circles;
mod cli;
mod compile;
mod docs;
#[cfg(unix)]
mod export;
mod families;
#[cfg(unix)]
mod fleet;
mod forms;
mod generator;
mod gpu;
mod image;
mod infotext;
mod kernels;
mod ladder;
mod lora;
mod memory;
mod original;
#[cfg(target_os = "linux")]
mod outputs;
mod pipeline;
mod properties;
mod scheduler;
mod server;
mod session;
mod support;
mod tasks;
mod tensorrt;
mod tokenizer;
mod tracing;
#[cfg(target_os = "linux")]
mod tutorials;
mod workspace;

use support::fixtures;
