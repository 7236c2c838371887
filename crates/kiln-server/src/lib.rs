//! Serves bundles: jobs wait in a bounded queue, a worker draws them in batches, and handlers speak the APIs that image
//! clients know.
//!
//! ```text
//! HTTP handlers ── Service ── Queue ── worker thread ── kiln_runtime::Session
//!                     │                     │
//!                   Store                 Status (a watch per job)
//! ```
//!
//! Handlers turn bodies into a [`Spec`] and wait for a [`Job`]; they know no engine. The worker owns every pipeline of its
//! device and knows no protocol. [`Service`] stands between them.

pub mod config;
#[doc(hidden)]
pub mod doorkeeper;
mod estimate;
mod fault;
mod grpc;
pub mod http;
pub mod inference;
mod job;
pub mod keeper;
mod metrics;
mod models;
#[cfg(feature = "otel")]
pub mod otel;
mod preview;
mod pulse;
mod queue;
mod readiness;
mod renewal;
mod server;
mod service;
mod spans;
pub mod store;
mod worker;

pub use fault::{Fault, FaultKind};
pub use job::{ClientId, Finished, Job, JobId, LoraChoice, Phase, Spec, Status};
pub use metrics::{FleetMoment, Memory};
pub use models::{ModelCard, Models, Runtime};
pub use preview::LatentColours;
pub use queue::Place;
pub use readiness::Load;
pub use renewal::Renewer;
pub use server::{Server, ServerError, ServerOptions};
pub use service::{Refusal, Service, Ticket};
pub use worker::{Worker, WorkerOptions};
