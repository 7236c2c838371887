//! What all processes of a fleet have agreed on.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The form of orders, records and events that this version writes, and the newest that it reads.
pub const PROTOCOL: u32 = 1;

/// Fewest bytes of pictures that make a fleet: some large ones.
const LEAST_PICTURES: u64 = 16 << 20;

/// What a fleet is like. Made with it, and read by whoever joins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The form of what is written.
    pub protocol: u32,
    /// Where pictures are stored: nothing for the object store of the queue's server, `s3://BUCKET/PREFIX`, or the path of a
    /// folder that all machines share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub results: Option<String>,
    /// Seconds for which records, pictures and jobs that were given up are kept.
    pub keep: u64,
    /// Most bytes of pictures in the object store of the queue's server.
    pub keep_bytes: u64,
    /// Seconds without progress after which a job is given to another worker.
    pub lease: u64,
    /// How often a job may end its worker, or find no memory, before it is given up.
    pub attempts: u32,
    /// Most jobs that wait or are drawn.
    pub queue: u64,
    /// Servers of a cluster that each have everything.
    pub replicas: usize,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            protocol: PROTOCOL,
            results: None,
            keep: 7 * 24 * 3600,
            keep_bytes: 4 << 30,
            lease: 60,
            attempts: 3,
            queue: 100_000,
            replicas: 1,
        }
    }
}

impl Settings {
    /// Most bytes of jobs that wait or are drawn. Most jobs have about one KiB.
    pub fn queue_bytes(&self) -> u64 {
        (self.keep_bytes / 4).min(1 << 30)
    }

    /// How long records and pictures are kept.
    pub fn keep(&self) -> Duration {
        Duration::from_secs(self.keep)
    }

    /// How long a worker may show no progress.
    pub fn lease(&self) -> Duration {
        Duration::from_secs(self.lease)
    }

    /// Refuses what makes no fleet.
    pub fn check(&self) -> Result<(), String> {
        let positive = [
            ("keep", self.keep),
            ("keep-size", self.keep_bytes),
            ("attempts", self.attempts.into()),
            ("queue", self.queue),
            ("replicas", self.replicas as u64),
        ];
        if let Some((name, _)) = positive.into_iter().find(|(_, value)| *value == 0) {
            return Err(format!("{name}: 0 allows nothing"));
        }
        if self.keep_bytes < LEAST_PICTURES {
            return Err(format!(
                "keep-size: {} bytes are less than the 16 MiB that pictures need",
                self.keep_bytes
            ));
        }
        if self.lease < 2 {
            return Err(format!(
                "lease: {} s is less than the 2 s within which a worker shows progress",
                self.lease
            ));
        }
        Ok(())
    }
}
