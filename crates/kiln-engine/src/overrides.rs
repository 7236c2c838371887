use std::fmt::Debug;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread;

use half::{bf16, f16};

/// Weights that take the place of those in a model's weight file, made when an engine is loaded.
pub trait WeightSource: Debug + Send + Sync {
    /// Name of the weight file, which lies beside the model.
    fn file(&self) -> &str;

    /// Names of the weights.
    fn names(&self) -> Vec<String>;

    /// Makes a weight; several threads may ask at once.
    fn weight(&self, name: &str) -> Result<WeightOverride, String>;
}

/// A weight that takes the place of another of the same type and shape.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightOverride {
    /// First byte in the weight file.
    pub offset: u64,
    /// Shape of the initializer.
    pub shape: Vec<usize>,
    /// The elements in row-major order.
    pub elements: Elements,
}

/// Elements of a weight in the type that it is stored in.
#[derive(Clone, Debug, PartialEq)]
pub enum Elements {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// 16-bit floats.
    F16(Vec<f16>),
    /// bfloat16.
    BF16(Vec<bf16>),
}

impl Elements {
    /// The elements as they lie in a file, with the least significant byte first.
    pub(crate) fn to_le_bytes(&self) -> Vec<u8> {
        match self {
            Elements::F32(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Elements::F16(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Elements::BF16(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        }
    }
}

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
