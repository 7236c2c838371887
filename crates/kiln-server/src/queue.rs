//! Jobs that wait: bounded, and fair between clients.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::{ClientId, Job, JobId};

/// How often a job may be overtaken by others that fit into a running batch.
const PATIENCE: usize = 16;

/// Jobs that wait, in rounds: each client's first, then each client's second.
#[derive(Debug)]
pub(crate) struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
    capacity: usize,
}

#[derive(Debug, Default)]
struct Waiting {
    by_client: BTreeMap<ClientId, VecDeque<Entry>>,
    /// Clients in the order of their turns.
    turns: VecDeque<ClientId>,
    n: usize,
    /// Places that are kept for jobs of each client which come at once.
    kept: BTreeMap<ClientId, usize>,
    is_closed: bool,
}

/// A place in the queue; kept until a job takes it, or it is dropped.
pub struct Place<'a> {
    queue: &'a Queue,
    client: ClientId,
}

impl Place<'_> {
    /// Adds the job that it was kept for behind its client's others.
    pub(crate) fn fill(self, job: Arc<Job>) {
        self.queue.lock().push(job);
        self.queue.changed.notify_all();
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut waiting = self.queue.lock();
        match waiting.kept.get_mut(&self.client) {
            Some(n) if *n > 1 => *n -= 1,
            _ => drop(waiting.kept.remove(&self.client)),
        }
    }
}

#[derive(Debug)]
struct Entry {
    job: Arc<Job>,
    overtaken: usize,
}

impl Queue {
    pub(crate) fn new(capacity: usize) -> Queue {
        Queue { waiting: Mutex::default(), changed: Condvar::new(), capacity }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a place for a job of a client; none where the queue, or the client's share of it, is full.
    pub(crate) fn place(&self, client: &ClientId, share: usize) -> Option<Place<'_>> {
        let mut waiting = self.lock();
        let kept = waiting.kept.get(client).copied().unwrap_or_default();
        let of_client = waiting.by_client.get(client).map_or(0, VecDeque::len) + kept;
        let n = waiting.n + waiting.kept.values().sum::<usize>();
        if n >= self.capacity || of_client >= share {
            return None;
        }
        waiting.kept.insert(client.clone(), kept + 1);
        drop(waiting);
        Some(Place { queue: self, client: client.clone() })
    }

    /// Puts back jobs that were taken before, whatever the capacity.
    pub(crate) fn restore(&self, jobs: impl IntoIterator<Item = Arc<Job>>) {
        let mut waiting = self.lock();
        jobs.into_iter().for_each(|job| waiting.push(job));
        drop(waiting);
        self.changed.notify_all();
    }

    /// The next job; waits for one at most so long.
    pub(crate) fn next(&self, wait: Duration) -> Option<Arc<Job>> {
        let waiting = self.lock();
        let is_idle = |waiting: &mut Waiting| waiting.n == 0 && !waiting.is_closed;
        let waited = self.changed.wait_timeout_while(waiting, wait, is_idle);
        let (mut waiting, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if waiting.is_closed {
            return None;
        }
        let first = waiting.order().first().map(|job| job.id.clone())?;
        waiting.take(&first)
    }

    /// The next job that fits; none where it would overtake one that has been overtaken too often.
    pub(crate) fn next_fitting(&self, fits: impl Fn(&Job) -> bool) -> Option<Arc<Job>> {
        let mut waiting = self.lock();
        if waiting.is_closed {
            return None;
        }
        let order = waiting.order();
        let at = order.iter().position(|job| fits(job))?;
        let id = order[at].id.clone();
        let ahead: Vec<JobId> = order[..at].iter().map(|job| job.id.clone()).collect();
        waiting.overtake(&ahead).then(|| waiting.take(&id)).flatten()
    }

    /// Takes a job out that nobody wants any more, which is no turn of its client's.
    pub(crate) fn remove(&self, id: &JobId) -> Option<Arc<Job>> {
        self.lock().take_out(id)
    }

    /// All jobs in the order of their turns.
    pub(crate) fn jobs(&self) -> Vec<Arc<Job>> {
        self.lock().order()
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().n
    }

    /// Gives out no job any more.
    pub(crate) fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().is_closed
    }
}

impl Waiting {
    fn push(&mut self, job: Arc<Job>) {
        let client = job.client.clone();
        if !self.by_client.contains_key(&client) {
            self.turns.push_back(client.clone());
        }
        self.by_client.entry(client).or_default().push_back(Entry { job, overtaken: 0 });
        self.n += 1;
    }

    fn order(&self) -> Vec<Arc<Job>> {
        let mut order = Vec::with_capacity(self.n);
        for round in 0.. {
            let before = order.len();
            let of_round = self.turns.iter().filter_map(|client| self.by_client[client].get(round));
            order.extend(of_round.map(|entry| entry.job.clone()));
            if order.len() == before {
                break;
            }
        }
        order
    }

    /// Takes a job out; its client's turn is over.
    fn take(&mut self, id: &JobId) -> Option<Arc<Job>> {
        let job = self.take_out(id)?;
        if let Some(at) = self.turns.iter().position(|client| *client == job.client) {
            let client = self.turns.remove(at)?;
            self.turns.push_back(client);
        }
        Some(job)
    }

    fn take_out(&mut self, id: &JobId) -> Option<Arc<Job>> {
        let find = |entries: &VecDeque<Entry>| entries.iter().position(|entry| entry.job.id == *id);
        let (client, at) =
            self.by_client.iter().find_map(|(client, entries)| Some((client.clone(), find(entries)?)))?;
        let entries = self.by_client.get_mut(&client)?;
        let entry = entries.remove(at)?;
        self.n -= 1;
        if entries.is_empty() {
            self.by_client.remove(&client);
            self.turns.retain(|other| *other != client);
        }
        Some(entry.job)
    }

    /// Counts that jobs are overtaken, unless one of them has been too often.
    fn overtake(&mut self, ahead: &[JobId]) -> bool {
        let is_ahead = |entry: &&mut Entry| ahead.contains(&entry.job.id);
        let mut entries: Vec<&mut Entry> = self.by_client.values_mut().flatten().filter(is_ahead).collect();
        if entries.iter().any(|entry| entry.overtaken >= PATIENCE) {
            return false;
        }
        entries.iter_mut().for_each(|entry| entry.overtaken += 1);
        true
    }
}

#[cfg(test)]
mod tests {
    use kiln_runtime::Request;

    use super::*;
    use crate::Spec;

    fn job(client: &str) -> Arc<Job> {
        let spec = Spec { model: "shapes".into(), request: Request::new("a star"), loras: Vec::new() };
        Arc::new(Job::new(JobId::random(), spec, ClientId(client.into()), 1.0))
    }

    #[test]
    fn a_job_that_is_cancelled_costs_its_client_no_turn() {
        let queue = Queue::new(9);
        let jobs = [job("ann"), job("ann"), job("bob")];
        queue.restore(jobs.clone());
        queue.remove(&jobs[0].id).expect("a job");
        let next = || queue.next(Duration::ZERO).map(|job| job.client.0.clone());
        assert_eq!([next(), next(), next()], [Some("ann".into()), Some("bob".into()), None]);
    }

    #[test]
    fn places_are_kept_until_they_are_filled_or_given_up() {
        let queue = Queue::new(2);
        let (ann, bob) = (ClientId("ann".into()), ClientId("bob".into()));
        let place = queue.place(&ann, 1).expect("a place");
        assert!(queue.place(&ann, 1).is_none());
        let other = queue.place(&bob, 1).expect("a place");
        assert!(queue.place(&ClientId("cy".into()), 1).is_none());
        drop(other);
        place.fill(job("ann"));
        assert!(queue.place(&ann, 1).is_none() && queue.place(&bob, 1).is_some());
    }
}
