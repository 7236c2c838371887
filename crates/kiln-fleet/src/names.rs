//! What streams, buckets and subjects are called.

use std::fmt;
use std::str::FromStr;

use kiln_server::JobId;
use serde::{Deserialize, Serialize};

/// The names of a fleet's streams, buckets and subjects, all of which begin with the fleet's own name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names(String);

impl Default for Names {
    fn default() -> Names {
        Names("kiln".into())
    }
}

impl FromStr for Names {
    type Err = &'static str;

    fn from_str(name: &str) -> Result<Names, &'static str> {
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        match (1..=32).contains(&name.len()) && name.bytes().all(is_plain) {
            true => Ok(Names(name.into())),
            false => Err("is no name of up to 32 letters, digits, '-' and '_'"),
        }
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Names {
    /// The stream of jobs that wait or are drawn.
    pub fn jobs(&self) -> String {
        format!("{self}-jobs")
    }

    /// The stream of jobs that were given up.
    pub fn dead(&self) -> String {
        format!("{self}-dead")
    }

    /// The bucket of records: what is known of each job.
    pub fn records(&self) -> String {
        format!("{self}-records")
    }

    /// The bucket of workers that live.
    pub fn workers(&self) -> String {
        format!("{self}-workers")
    }

    /// The bucket of the fleet's settings.
    pub fn settings(&self) -> String {
        format!("{self}-settings")
    }

    /// The object store for pictures.
    pub fn pictures(&self) -> String {
        format!("{self}-pictures")
    }

    /// The object store for packed bundles.
    pub fn bundles(&self) -> String {
        format!("{self}-bundles")
    }

    /// All subjects of jobs.
    pub fn all_jobs(&self) -> String {
        format!("{self}.jobs.>")
    }

    /// All subjects of jobs that were given up.
    pub fn all_dead(&self) -> String {
        format!("{self}.dead.>")
    }

    /// The subject of a job that was given up.
    pub fn dead_job(&self, lane: &Lane, id: &JobId) -> String {
        format!("{self}.dead.{}.{id}", token(&lane.model))
    }

    /// The subject of a client's jobs in a lane, by the client's token.
    pub fn queue(&self, lane: &Lane, client: &str) -> String {
        format!("{self}.jobs.{lane}.{client}")
    }

    /// The lane and the client's token of a subject of jobs.
    pub fn parse_queue(&self, subject: &str) -> Option<(Lane, String)> {
        let rest = subject.strip_prefix(&self.0)?.strip_prefix(".jobs.")?;
        let (lane, client) = rest.rsplit_once('.')?;
        Some((lane.parse().ok()?, client.into()))
    }

    /// What tells workers that a lane has a new job.
    pub fn arrival(&self, lane: &Lane) -> String {
        format!("{self}.new.{lane}")
    }

    /// The lane that such a subject names.
    pub fn parse_arrival(&self, subject: &str) -> Option<Lane> {
        subject.strip_prefix(&self.0)?.strip_prefix(".new.")?.parse().ok()
    }

    /// All of them.
    pub fn arrivals(&self) -> String {
        format!("{self}.new.>")
    }

    /// What happens to a job.
    pub fn event(&self, id: &JobId) -> String {
        format!("{self}.events.{id}")
    }

    /// What happens to all jobs.
    pub fn events(&self) -> String {
        format!("{self}.events.*")
    }

    /// What tells whoever draws a job to stop.
    pub fn stop(&self, id: &JobId) -> String {
        format!("{self}.stops.{id}")
    }

    /// All of them.
    pub fn stops(&self) -> String {
        format!("{self}.stops.*")
    }

    /// What tells a worker to end.
    pub fn drain(&self, worker: &str) -> String {
        format!("{self}.drain.{}", token(worker))
    }
}

/// What jobs and workers have in common who can come together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Lane {
    /// The class of devices that the bundle is for: its target.
    pub class: String,
    /// The model's name.
    pub model: String,
    /// The bundle's digest, as 64 hexadecimal digits; subjects have the first 16.
    pub bundle: String,
}

impl Lane {
    /// The part of the digest that names show.
    pub fn short(&self) -> &str {
        self.bundle.get(..16).unwrap_or(&self.bundle)
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", token(&self.class), token(&self.model), self.short())
    }
}

impl FromStr for Lane {
    type Err = ();

    /// Reads it from a subject, with what that has of the digest.
    fn from_str(text: &str) -> Result<Lane, ()> {
        let mut parts = text.split('.');
        let lane = match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(class), Some(model), Some(bundle), None) => {
                Lane { class: untoken(class), model: untoken(model), bundle: bundle.into() }
            }
            _ => return Err(()),
        };
        Ok(lane)
    }
}

/// A text as one token of a subject, a key, or the name of a consumer: what may not stand there is written as `=` and two
/// hexadecimal digits, and nothing as `=`.
pub(crate) fn token(text: &str) -> String {
    let mut token = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_' {
            true => token.push(byte.into()),
            false => token += &format!("={byte:02X}"),
        }
    }
    if token.is_empty() { "=".into() } else { token }
}

/// The text of a token.
pub(crate) fn untoken(token: &str) -> String {
    let mut bytes = Vec::with_capacity(token.len());
    let mut rest = token;
    while let Some((plain, escaped)) = rest.split_once('=') {
        bytes.extend(plain.bytes());
        let (digits, after) = escaped.split_at(escaped.len().min(2));
        bytes.extend(u8::from_str_radix(digits, 16).ok());
        rest = after;
    }
    bytes.extend(rest.bytes());
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_plain_and_can_be_read_back() {
        for text in ["", "ann", "sd-1.5", "a b*>c", "=", "Zoë"] {
            let written = token(text);
            assert!(written.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_=".contains(&b)), "{written}");
            assert_eq!(untoken(&written), text);
        }
    }

    #[test]
    fn subjects_name_the_lane_and_the_client() {
        let names = Names::default();
        let lane = Lane { class: "cpu".into(), model: "sd.v1".into(), bundle: "0123456789abcdef".repeat(4) };
        let subject = names.queue(&lane, &token("ann.lee"));
        assert_eq!(subject, "kiln.jobs.cpu.sd=2Ev1.0123456789abcdef.ann=2Elee");
        let (read, client) = names.parse_queue(&subject).expect("a lane");
        assert_eq!(
            (read.model.as_str(), read.short(), untoken(&client).as_str()),
            ("sd.v1", lane.short(), "ann.lee")
        );
        assert_eq!(names.parse_queue("kiln.jobs.cpu.shapes"), None);
        assert!("two words".parse::<Names>().is_err() && "".parse::<Names>().is_err());
    }
}
