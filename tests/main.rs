//! The integration tests: behaviour at the boundary that a user sees, and numbers against diffusers.

mod checkpoints;
mod cli;
mod compile;
mod docs;
mod families;
mod fixtures;
mod generator;
mod gpu;
mod image;
mod ladder;
mod lora;
mod memory;
mod original;
mod pipeline;
mod properties;
mod scheduler;
mod support;
mod tasks;
mod tensorrt;
mod tokenizer;
mod tracing;
mod workspace;
