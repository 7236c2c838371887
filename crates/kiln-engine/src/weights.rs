use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread;

use crate::{WeightOverride, WeightSource};

/// Makes the weights on several threads, no more at a time than there are threads, and hands each over as it is done.
pub(crate) fn for_each_weight(
    source: &dyn WeightSource,
    threads: Option<usize>,
    mut take: impl FnMut(&str, WeightOverride) -> Result<(), String>,
) -> Result<(), String> {
    let names = source.names();
    let cores = || thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.unwrap_or_else(cores).clamp(1, names.len().max(1));
    let next = AtomicUsize::new(0);
    let (sender, receiver) = sync_channel(0);
    thread::scope(|scope| {
        for _ in 0..threads {
            let (sender, next, names) = (sender.clone(), &next, &names);
            scope.spawn(move || {
                while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if sender.send((name, source.weight(name))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        // An early return drops the receiver, which stops the threads.
        receiver.into_iter().try_for_each(|(name, weight)| take(name, weight?))
    })
}
