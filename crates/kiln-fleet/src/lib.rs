//! Draws jobs on many machines: a durable queue over NATS JetStream that workers pull from.
//!
//! ```text
//! clients ── kiln serve (Front) ──┐                        ┌── kiln worker (FleetWorker) ── device
//!                                 ├── NATS JetStream ──────┤
//! clients ── kiln serve (Front) ──┘   jobs, records,       └── kiln worker (FleetWorker) ── device
//!                                     pictures
//! ```
//!
//! A job is an [`Order`]: a message of a work-queue stream while it waits or is drawn, and a record in a bucket for as long as
//! it is kept. Servers take jobs and mirror the fleet's queue; workers pull jobs, draw them and store the pictures; neither
//! knows of the other. What is decided about a job is decided by comparing and swapping its record.

mod broker;
mod bundles;
mod card;
mod depot;
mod error;
mod events;
mod front;
mod names;
mod nkey;
mod operate;
mod queue;
mod records;
mod roster;
mod settings;
mod worker;

pub use broker::{Address, Broker};
pub use bundles::{Bundles, Packed};
pub use card::{Card, CardModel};
pub use error::FleetError;
pub use front::Front;
pub use names::{Lane, Names};
pub use nkey::Nkey;
pub use operate::{Depth, Overview};
pub use records::Order;
pub use settings::{PROTOCOL, Settings};
pub use worker::{FleetWorker, FleetWorkerOptions, StartError};
