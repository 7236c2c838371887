//! Which jobs each client has, the newest first.

use std::collections::{BTreeMap, HashMap};
use std::time::{SystemTime, UNIX_EPOCH};

use kiln_server::store::Record;
use kiln_server::{ClientId, JobId};

/// The jobs of all clients by their numbers in the stream.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// Clients in the order in which they appeared.
    clients: Vec<ClientId>,
    of: Vec<BTreeMap<u64, Known>>,
    places: HashMap<u128, (usize, u64)>,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    id: u128,
    /// Seconds since 1970.
    created: u64,
    /// Whether its client may ask for it later.
    is_kept: bool,
}

/// A job's name, which is a number in hexadecimal.
fn number(id: &JobId) -> u128 {
    u128::from_str_radix(id.as_str(), 16).unwrap_or_default()
}

fn name(number: u128) -> Option<JobId> {
    JobId::parse(&format!("{number:032x}"))
}

impl Index {
    /// Takes in a job, unless it has no number yet.
    pub(super) fn insert(&mut self, record: &Record, is_kept: bool) {
        let Record { client, sequence, id, created, .. } = record;
        // One that is queued anew has another number.
        self.remove(id);
        let at = self.clients.iter().position(|known| known == client).unwrap_or_else(|| {
            self.clients.push(client.clone());
            self.of.push(BTreeMap::new());
            self.clients.len() - 1
        });
        if *sequence > 0 {
            self.of[at].insert(*sequence, Known { id: number(id), created: *created, is_kept });
            self.places.insert(number(id), (at, *sequence));
        }
    }

    pub(super) fn newest(&self, client: &ClientId, before: u64, limit: usize) -> Vec<JobId> {
        let at = self.clients.iter().position(|known| known == client);
        let jobs = at.into_iter().flat_map(|at| self.of[at].range(..before).rev());
        jobs.filter(|(_, known)| known.is_kept).take(limit).filter_map(|(_, known)| name(known.id)).collect()
    }

    /// The jobs that were sent first, of all clients.
    pub(super) fn oldest(&self, limit: usize) -> Vec<JobId> {
        let mut first: Vec<(&u64, &Known)> = self.of.iter().flat_map(|of| of.iter().take(limit)).collect();
        first.sort_by_key(|(sequence, _)| **sequence);
        first.into_iter().take(limit).filter_map(|(_, known)| name(known.id)).collect()
    }

    /// Forgets a job.
    pub(super) fn remove(&mut self, id: &JobId) {
        if let Some((at, sequence)) = self.places.remove(&number(id)) {
            self.of[at].remove(&sequence);
        }
    }

    /// Forgets jobs that were sent before.
    pub(super) fn prune(&mut self, oldest: SystemTime) {
        let oldest = oldest.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        for of in &mut self.of {
            of.retain(|_, known| {
                let stays = known.created >= oldest;
                if !stays {
                    self.places.remove(&known.id);
                }
                stays
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kiln_runtime::Request;
    use kiln_server::Spec;

    use super::*;

    fn record(client: &str, sequence: u64, id: &JobId, created: u64) -> Record {
        let spec = Spec { model: "shapes".into(), loras: Vec::new(), request: Request::new("a star") };
        Record { sequence, created, ..Record::new(id.clone(), spec, ClientId(client.into())) }
    }

    #[test]
    fn clients_see_their_own_jobs_the_newest_first() {
        let (ann, bob) = (ClientId("ann".into()), ClientId("bob".into()));
        let ids: Vec<JobId> = (0..5).map(|_| JobId::random()).collect();
        let mut index = Index::default();
        for (i, id) in ids.iter().enumerate() {
            let client = if i == 2 { "bob" } else { "ann" };
            // Nobody asks later for the last one.
            index.insert(&record(client, 1 + i as u64, id, 100 + i as u64), i != 4);
        }
        assert_eq!(index.newest(&ann, u64::MAX, 2), [ids[3].clone(), ids[1].clone()]);
        assert_eq!(index.newest(&ann, 4, 9), [ids[1].clone(), ids[0].clone()]);
        assert_eq!(index.oldest(3), ids[..3]);
        index.remove(&ids[3]);
        index.prune(UNIX_EPOCH + Duration::from_secs(101));
        assert_eq!(index.newest(&ann, u64::MAX, 9), [ids[1].clone()]);
        assert_eq!(index.newest(&bob, u64::MAX, 9), [ids[2].clone()]);
        // One that is tried again is the newest, once it is queued.
        index.insert(&record("ann", 0, &ids[1], 200), true);
        assert!(index.newest(&ann, u64::MAX, 9).is_empty());
        index.insert(&record("ann", 9, &ids[1], 200), true);
        index.insert(&record("ann", 8, &ids[3], 200), true);
        assert_eq!(index.newest(&ann, u64::MAX, 9), [ids[1].clone(), ids[3].clone()]);
    }
}
