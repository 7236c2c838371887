//! Files that change a network's weights: LoRAs (Hu et al. 2021) and their relatives.
//!
//! A [`LoraFile`] is read and checked by its header; a [`LoraPlan`] says which weights of a model several of them change;
//! [`WeightChanges::apply`] makes the changes to one weight. Names and arithmetic are those of diffusers'
//! `loaders/lora_conversion_utils.py`, `utils/state_dict_utils.py` and `fuse_lora`, of peft and of lycoris-lora.

mod change;
mod error;
mod file;
mod keys;
mod module;
mod names;
mod plan;
mod settings;
mod words;

pub use error::LoraError;
pub use file::LoraFile;
pub use keys::Naming;
pub use module::LoraModule;
pub use names::ModelWeights;
pub use plan::{Lora, LoraPlan, WeightChanges};
pub use words::{LearnedTable, LearnedWord};
