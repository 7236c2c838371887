//! Which parts of an address range are taken, and which parts of it hold memory.

use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Unit in which memory is given back: that of huge pages on most processors.
pub(super) const GRANULE: usize = 2 << 20;

/// Unit in which extents are taken.
const PAGE: usize = 4096;

/// Extents of the ranges that were added, taken from the lowest address at which they fit, which keeps what is taken
/// together and what was used in use.
#[derive(Debug, Default)]
pub(super) struct Extents {
    /// Start and length of what is free, no two of them adjacent.
    free: BTreeMap<usize, usize>,
    taken: HashMap<usize, usize>,
    /// Granules, by their number, that hold memory: they were taken since they were last given back.
    touched: BTreeSet<usize>,
    /// Granules that got memory of others.
    refilled: BTreeSet<usize>,
}

/// Most granules that get memory of others: each may count against the mappings that a process can have, 65530 by
/// default (`vm.max_map_count`).
const MOST_REFILLED: usize = 16 << 10;

/// What becomes of the memory of an idle granule, whose place a granule without takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refill {
    /// Its address.
    pub(super) from: usize,
    /// The other's.
    pub(super) to: usize,
    /// Whether it may move there; else it is to be given back.
    pub(super) may_move: bool,
}

impl Extents {
    /// Adds a range to take extents from; its ends lie on granules.
    pub(super) fn add(&mut self, start: usize, len: usize) {
        self.release(start, len);
    }

    /// The start of `len` bytes that nobody else has; `None` where no range has room for them.
    pub(super) fn take(&mut self, len: usize) -> Option<usize> {
        let len = len.checked_next_multiple_of(PAGE)?.max(PAGE);
        let (&start, &room) = self.free.iter().find(|(_, room)| **room >= len)?;
        self.free.remove(&start);
        if room > len {
            self.free.insert(start + len, room - len);
        }
        self.taken.insert(start, len);
        Some(start)
    }

    /// What to do before the extent at `start` is used, so that no more granules hold memory than before as long as others
    /// are idle: as many of these as it has granules without memory give theirs.
    pub(super) fn refills(&mut self, start: usize) -> Vec<Refill> {
        let len = self.taken.get(&start).copied().unwrap_or(0);
        let granules = start / GRANULE..(start + len).div_ceil(GRANULE);
        let empty: Vec<usize> = granules.filter(|granule| !self.touched.contains(granule)).collect();
        self.touched.extend(&empty);
        if empty.is_empty() {
            return Vec::new();
        }
        let idle: Vec<usize> = self.idle().collect();
        // The highest, in order: neighbours that stay neighbours are one mapping.
        let idle = &idle[idle.len().saturating_sub(empty.len())..];
        let pairs = idle.iter().zip(empty);
        let refill = |(&from, to): (&usize, usize)| {
            self.touched.remove(&from);
            let may_move = self.refilled.len() < MOST_REFILLED || self.refilled.contains(&to);
            if may_move {
                self.refilled.insert(to);
            }
            Refill { from: from * GRANULE, to: to * GRANULE, may_move }
        };
        pairs.map(refill).collect()
    }

    /// Gives an extent back by its start; whether there was such a one.
    pub(super) fn put(&mut self, start: usize) -> bool {
        let Some(len) = self.taken.remove(&start) else { return false };
        self.release(start, len);
        true
    }

    fn release(&mut self, mut start: usize, mut len: usize) {
        if let Some((&before, &its)) = self.free.range(..start).next_back()
            && before + its == start
        {
            self.free.remove(&before);
            (start, len) = (before, its + len);
        }
        if let Some(its) = self.free.remove(&(start + len)) {
            len += its;
        }
        self.free.insert(start, len);
    }

    /// Starts and lengths of free memory to give back, so that at most `keep` bytes of it stay; the highest first.
    pub(super) fn discard(&mut self, keep: usize) -> Vec<(usize, usize)> {
        let idle: Vec<usize> = self.idle().collect();
        let surplus = idle.len().saturating_sub(keep / GRANULE);
        let mut ranges: Vec<(usize, usize)> = Vec::new();
        for granule in idle.into_iter().rev().take(surplus) {
            self.touched.remove(&granule);
            let start = granule * GRANULE;
            match ranges.last_mut() {
                Some((first, len)) if start + GRANULE == *first => (*first, *len) = (start, *len + GRANULE),
                _ => ranges.push((start, GRANULE)),
            }
        }
        ranges
    }

    /// Granules that hold memory and that nobody has.
    fn idle(&self) -> impl Iterator<Item = usize> {
        self.free.iter().flat_map(|(start, len)| {
            let (first, end) = (start.div_ceil(GRANULE), (start + len) / GRANULE);
            self.touched.range(first..end.max(first)).copied()
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BASE: usize = 64 * GRANULE;

    fn extents(granules: usize) -> Extents {
        let mut extents = Extents::default();
        extents.add(BASE, granules * GRANULE);
        extents
    }

    /// Takes an extent that is used at once.
    fn take(extents: &mut Extents, len: usize) -> Option<usize> {
        let start = extents.take(len)?;
        extents.refills(start);
        Some(start)
    }

    #[test]
    fn what_is_put_back_can_be_taken_whole() {
        let mut extents = extents(4);
        let parts: Vec<usize> = (0..4).filter_map(|_| extents.take(GRANULE)).collect();
        assert_eq!(parts, [0, 1, 2, 3].map(|i| BASE + i * GRANULE));
        assert_eq!(extents.take(1), None);
        assert!([1, 3, 0, 2].iter().all(|&i| extents.put(parts[i])));
        assert_eq!(extents.take(4 * GRANULE), Some(BASE));
        assert!(!extents.put(BASE + GRANULE), "nobody took it");
    }

    #[test]
    fn only_idle_memory_that_was_used_is_given_back() {
        let mut extents = extents(8);
        assert_eq!(extents.discard(0), [], "nothing was used");
        let [low, high] = [3, 2].map(|n| take(&mut extents, n * GRANULE).expect("room"));
        extents.put(low);
        assert_eq!(extents.discard(2 * GRANULE), [(BASE + 2 * GRANULE, GRANULE)]);
        assert_eq!(extents.discard(0), [(BASE, 2 * GRANULE)]);
        assert_eq!(extents.discard(0), []);
        extents.put(high);
        assert_eq!(extents.discard(0), [(BASE + 3 * GRANULE, 2 * GRANULE)]);
    }

    #[test]
    fn memory_of_idle_granules_goes_where_there_is_none() {
        let mut extents = extents(8);
        let [low, middle] = [2, 1].map(|n| take(&mut extents, n * GRANULE).expect("room"));
        extents.put(low);
        // It does not fit into the two that are free below.
        let high = extents.take(3 * GRANULE).expect("room");
        let refill = |i: usize| Refill { from: low + i * GRANULE, to: high + i * GRANULE, may_move: true };
        assert_eq!(extents.refills(high), [refill(0), refill(1)]);
        assert_eq!(extents.discard(0), [], "four granules are used, and no other holds memory");
        assert_eq!((middle, extents.refills(high)), (BASE + 2 * GRANULE, vec![]));
    }

    #[test]
    fn memory_is_given_back_where_no_more_of_it_may_move() {
        let mut extents = extents(4);
        extents.refilled = (0..MOST_REFILLED).map(|i| (1 << 40) + i).collect();
        let low = take(&mut extents, GRANULE).expect("room");
        let middle = take(&mut extents, GRANULE).expect("room");
        extents.put(low);
        let high = extents.take(2 * GRANULE).expect("room");
        assert_eq!(extents.refills(high), [Refill { from: low, to: high, may_move: false }]);
        assert_eq!((middle, extents.discard(0)), (BASE + GRANULE, vec![]));
    }

    proptest! {
        #[test]
        fn no_more_granules_hold_memory_than_were_ever_taken_at_once(
            actions in prop::collection::vec((any::<bool>(), 1usize..3 * GRANULE), 1..200),
        ) {
            let mut extents = extents(64);
            let (mut held, mut most): (Vec<(usize, usize)>, usize) = (Vec::new(), 0);
            for (takes, n) in actions {
                match (takes || held.is_empty()).then(|| take(&mut extents, n)).flatten() {
                    Some(start) => held.push((start, n)),
                    None if held.is_empty() => {}
                    None => {
                        let (start, _) = held.swap_remove(n % held.len());
                        extents.put(start);
                    }
                }
                let granules = held.iter().flat_map(|(start, n)| start / GRANULE..(start + n).div_ceil(GRANULE));
                let granules: BTreeSet<usize> = granules.collect();
                prop_assert!(granules.is_subset(&extents.touched));
                most = most.max(granules.len());
                prop_assert!(extents.touched.len() <= most);
            }
        }

        #[test]
        fn extents_never_overlap(actions in prop::collection::vec((any::<bool>(), 1usize..3 * GRANULE), 1..200)) {
            let mut extents = extents(16);
            let mut held: Vec<(usize, usize)> = Vec::new();
            for (takes, n) in actions {
                if takes || held.is_empty() {
                    let Some(start) = take(&mut extents, n) else { continue };
                    prop_assert!(start >= BASE && start + n <= BASE + 16 * GRANULE);
                    prop_assert!(held.iter().all(|(at, len)| start + n <= *at || at + len <= start));
                    held.push((start, n));
                } else {
                    let (start, _) = held.swap_remove(n % held.len());
                    prop_assert!(extents.put(start));
                }
                for (start, len) in extents.discard(n) {
                    prop_assert!(held.iter().all(|(at, its)| start + len <= *at || at + its <= start));
                }
            }
            held.iter().for_each(|(start, _)| { extents.put(*start); });
            prop_assert_eq!(extents.take(16 * GRANULE), Some(BASE));
        }
    }
}
