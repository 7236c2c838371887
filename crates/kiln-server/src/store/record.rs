//! What is written down of a job.

use std::time::Duration;

use kiln_runtime::Request;
use serde::{Deserialize, Serialize};

use super::files;
use crate::{ClientId, Fault, FaultKind, JobId, Spec};

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

/// The form that records are written in.
pub(super) const VERSION: u32 = 1;

/// What is known of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The form that it was written in; 0 is that of before there were numbers.
    #[serde(default)]
    pub version: u32,
    /// Larger than that of all jobs before it.
    #[serde(default)]
    pub sequence: u64,
    /// Its name.
    pub id: JobId,
    /// Who sent it.
    pub client: ClientId,
    /// What to draw. On disk its pictures have no pixels, which are in files beside the database.
    pub spec: Spec,
    /// The sender's own name for it.
    #[serde(default)]
    pub idempotency_key: Option<String>,
    /// What tells the sender's words from others under the same key.
    #[serde(default)]
    pub digest: Option<String>,
    /// Seconds since 1970.
    pub created: u64,
    /// Seconds since 1970.
    #[serde(default)]
    pub ended: Option<u64>,
    /// Whether it was ever begun to be drawn.
    #[serde(default)]
    pub begun: bool,
    /// How often it was, by a process that did not end in order.
    #[serde(default)]
    pub attempts: u32,
    /// How it ended.
    pub ending: Ending,
    /// Whether this is all that can be read of it.
    #[serde(skip)]
    pub is_torn: bool,
}

/// What every form of a record has.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Torn {
    sequence: u64,
    client: ClientId,
    idempotency_key: Option<String>,
    created: u64,
    spec: TornSpec,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct TornSpec {
    model: String,
}

impl Record {
    /// A job that is new.
    pub fn new(id: JobId, spec: Spec, client: ClientId) -> Record {
        Record {
            version: VERSION,
            sequence: 0,
            id,
            client,
            spec,
            idempotency_key: None,
            digest: None,
            created: super::now(),
            ended: None,
            begun: false,
            attempts: 0,
            ending: Ending::Open,
            is_torn: false,
        }
    }

    /// The record of a job. One that another version has written, and that cannot be read, is that of a job that failed.
    pub(super) fn read(id: &str, text: &[u8]) -> Option<Record> {
        match serde_json::from_slice::<Record>(text) {
            Ok(record) if record.version <= VERSION && record.id.as_str() == id => Some(record),
            _ => Record::torn(JobId::parse(id)?, text),
        }
    }

    fn torn(id: JobId, text: &[u8]) -> Option<Record> {
        let torn: Torn = serde_json::from_slice(text).unwrap_or_default();
        let spec = Spec { model: torn.spec.model, loras: Vec::new(), request: Request::new("") };
        let message = "the job was written down by another version of the server, which this one cannot read";
        Some(Record {
            sequence: torn.sequence,
            idempotency_key: torn.idempotency_key,
            created: torn.created,
            ended: Some(torn.created),
            ending: Ending::Failed { fault: Fault::new(FaultKind::Internal, message) },
            is_torn: true,
            ..Record::new(id, spec, torn.client)
        })
    }

    /// The files of pictures that belong to it, those that a job came to before it failed among them.
    pub(super) fn files(&self) -> Vec<String> {
        let mut request = self.spec.request.clone();
        let sources: Vec<String> =
            files::sources(&mut request).map(|(source, _)| source.file(&self.id)).collect();
        sources.into_iter().chain(self.pictures()).collect()
    }

    /// The files of pictures that it comes to.
    pub(super) fn pictures(&self) -> impl Iterator<Item = String> {
        (0..self.spec.request.prompts.len()).map(|i| picture_file(&self.id, i))
    }

    /// Whether a picture is in the record itself.
    pub(super) fn holds_pictures(&mut self) -> bool {
        files::sources(&mut self.spec.request).any(|(_, picture)| files::has_pixels(picture))
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
