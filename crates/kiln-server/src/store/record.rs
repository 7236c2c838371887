//! What is written down of a job.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::files;
use crate::{ClientId, Fault, JobId, Spec};

/// How a stored job ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "phase")]
pub enum Ending {
    /// It has not.
    Open,
    /// With pictures.
    Done {
        /// Number of them.
        pictures: usize,
        /// How each was made.
        infotexts: Vec<String>,
    },
    /// Without.
    Failed {
        /// Why.
        fault: Fault,
    },
    /// Somebody stopped it.
    Cancelled,
}

/// What is known of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Its name.
    pub id: JobId,
    /// Who sent it.
    pub client: ClientId,
    /// What to draw. On disk its pictures have no pixels, which are in files beside the database.
    pub spec: Spec,
    /// The sender's own name for it.
    #[serde(default)]
    pub idempotency_key: Option<String>,
    /// Seconds since 1970.
    pub created: u64,
    /// Seconds since 1970.
    #[serde(default)]
    pub ended: Option<u64>,
    /// How often it was begun.
    #[serde(default)]
    pub attempts: u32,
    /// How it ended.
    pub ending: Ending,
}

impl Record {
    /// The files of pictures that belong to it.
    pub(super) fn files(&self) -> Vec<String> {
        let n_pictures = match self.ending {
            Ending::Done { pictures, .. } => pictures,
            _ => 0,
        };
        let mut request = self.spec.request.clone();
        let sources = files::sources(&self.id, &mut request).map(|(name, _)| name);
        sources.chain((0..n_pictures).map(|i| picture_file(&self.id, i))).collect()
    }

    /// Whether a picture is in the record itself.
    pub(super) fn holds_pictures(&mut self) -> bool {
        files::sources(&self.id, &mut self.spec.request).any(|(_, picture)| files::has_pixels(picture))
    }

    /// Its sender's name for it, among those of all senders.
    pub(super) fn key(&self) -> Option<String> {
        let key = self.idempotency_key.as_ref()?;
        Some(format!("{}\n{key}", self.client.0))
    }
}

/// The file of a picture that a job came to.
pub(super) fn picture_file(id: &JobId, index: usize) -> String {
    format!("{id}-{index}.png")
}

/// How much is kept of jobs that have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// How long.
    pub age: Duration,
    /// How many bytes of pictures.
    pub bytes: u64,
}
