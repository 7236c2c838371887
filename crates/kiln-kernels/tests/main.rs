//! Kernels against sums in f64, with every instruction set that the processor has.

mod accuracy;
mod convolution;
mod linear;
mod pools;
mod reference;
mod weights;
