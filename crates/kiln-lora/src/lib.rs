//! LoRA files (Hu et al. 2021): low-rank changes of a network's weights.
//!
//! A [`LoraFile`] is read and checked by its header; a [`LoraPlan`] says which weights of a model several of them change;
//! [`WeightChanges::apply`] adds the changes to one weight. Names and arithmetic are those of diffusers'
//! `loaders/lora_conversion_utils.py`, `utils/state_dict_utils.py` and `fuse_lora`.

mod error;
mod file;
mod keys;
mod names;
mod plan;

pub use error::LoraError;
pub use file::{LoraFile, LoraModule};
pub use keys::Naming;
pub use names::ModelWeights;
pub use plan::{Lora, LoraPlan, WeightChanges};
