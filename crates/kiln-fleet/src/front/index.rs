//! Which jobs each client has, the newest first.

use std::collections::{BTreeMap, HashMap};
use std::time::{SystemTime, UNIX_EPOCH};

use kiln_server::{ClientId, JobId};

/// The jobs of all clients by their numbers in the stream.
#[derive(Debug, Default)]
pub(super) struct Index {
    of: HashMap<ClientId, BTreeMap<u64, Known>>,
}

#[derive(Debug)]
struct Known {
    id: JobId,
    created: u64,
}

impl Index {
    pub(super) fn insert(&mut self, client: &ClientId, sequence: u64, id: &JobId, created: u64) {
        let of = self.of.entry(client.clone()).or_default();
        of.insert(sequence, Known { id: id.clone(), created });
    }

    pub(super) fn newest(&self, client: &ClientId, before: u64, limit: usize) -> Vec<JobId> {
        let of = self.of.get(client).into_iter().flat_map(|of| of.range(..before).rev());
        of.take(limit).map(|(_, known)| known.id.clone()).collect()
    }

    /// Forgets a job.
    pub(super) fn remove(&mut self, id: &JobId) {
        self.of.values_mut().for_each(|of| of.retain(|_, known| known.id != *id));
        self.of.retain(|_, of| !of.is_empty());
    }

    /// Forgets jobs that were sent before.
    pub(super) fn prune(&mut self, oldest: SystemTime) {
        let oldest = oldest.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        self.of.values_mut().for_each(|of| of.retain(|_, known| known.created >= oldest));
        self.of.retain(|_, of| !of.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn clients_see_their_own_jobs_the_newest_first() {
        let (ann, bob) = (ClientId("ann".into()), ClientId("bob".into()));
        let ids: Vec<JobId> = (0..4).map(|_| JobId::random()).collect();
        let mut index = Index::default();
        for (i, id) in ids.iter().enumerate() {
            index.insert(if i == 2 { &bob } else { &ann }, i as u64, id, 100 + i as u64);
        }
        assert_eq!(index.newest(&ann, u64::MAX, 2), [ids[3].clone(), ids[1].clone()]);
        assert_eq!(index.newest(&ann, 3, 9), [ids[1].clone(), ids[0].clone()]);
        index.remove(&ids[3]);
        index.prune(UNIX_EPOCH + Duration::from_secs(101));
        assert_eq!(index.newest(&ann, u64::MAX, 9), [ids[1].clone()]);
        assert_eq!(index.newest(&bob, u64::MAX, 9), [ids[2].clone()]);
    }
}
