//! What networks of diffusion models compute, for processors.
//!
//! - [`Conv`] computes 2-D convolutions of `[batch][channel][y][x]`, upsampled or not, by Winograd's algorithm or implicit
//!   GEMM, [`Linear`] linear layers; both add bias and residual. [`Attention`] never keeps scores in memory.
//! - [`GroupNorm`] normalises.
//! - [`Weights`] are read as checkpoints store them, in f32 or bf16: a mapped file of safetensors will do.
//! - [`Isa`] says which instructions are used, [`Parallel`] is the caller's pool of threads. There is no global state,
//!   and no environment variable is read.
//! - Nothing is allocated while an operator runs: intermediate results are in a scratch that the caller brings, whose
//!   length a plan says.
//!
//! Factors are f32, bf16 or, of linear layers, int8 ([`Element`], [`Factors`]), results always f32. NaN and infinity reach every output that they reach by
//! definition; Winograd spreads them over the output's tile, and makes infinities NaN, as int8 does in the row's or output's results. Denormals are kept in f32, and
//! are zeros as factors in bf16.
//!
//! This is the crate of kiln's where `unsafe` is for speed: intrinsics, and unchecked access to blocks whose sizes are
//! computed in one place and checked against the caller's slices before any work.

mod attention;
pub mod bf16;
mod conv;
mod error;
mod gemm;
mod implicit;
mod int8;
mod isa;
mod linear;
mod memory;
mod norm;
mod output;
mod parallel;
mod simd;
mod weights;
mod winograd;

pub use attention::{Attention, AttentionTensors};
pub use conv::{Algorithm, Conv, ConvShape};
pub use error::Error;
pub use isa::Isa;
pub use linear::Linear;
pub use norm::{GroupNorm, NormTensors};
pub use output::Tensors;
pub use parallel::{Parallel, Serial, Threads};
pub use weights::{Element, Factors, Values, Weights};
