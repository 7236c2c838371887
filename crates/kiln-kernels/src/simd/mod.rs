//! Vectors of each instruction set behind one trait, so that every kernel is written once.
//!
//! Functions over [`Simd`] are `#[inline(always)]` down to the intrinsics, and become code of an instruction set in
//! [`run`], the one place that enters it. So all of them are unsafe for the same reason: the processor must have it.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod functions;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
mod tile;

use crate::parallel::Pool;
use crate::{Error, Isa};
pub(crate) use functions::{exp2, exp2_for_bf16, gelu, silu};
pub(crate) use tile::{Ahead, GROUP, ROW, Tile};

/// The most lanes that a vector has.
pub(crate) const MAX_LANES: usize = 16;
/// Elements of the narrowest.
pub(crate) const MIN_LANES: usize = 4;

/// Vectors of f32. Loads and stores need no alignment.
///
/// # Safety
/// Every function needs a processor that has the instruction set, and pointers to as many elements as it says.
pub(crate) trait Simd: Copy {
    /// Elements of a vector, a power of two.
    const LANES: usize;
    /// Rows of the largest tile of a product.
    const ROWS: usize;
    /// The same where a word is several factors.
    const NARROW_ROWS: usize = Self::ROWS;
    /// A vector.
    type V: Copy;

    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    /// The first `n <= LANES` elements; the others are zero.
    unsafe fn load_n(from: *const f32, n: usize) -> Self::V;
    unsafe fn store(to: *mut f32, v: Self::V);
    /// Stores the first `n <= LANES` elements.
    unsafe fn store_n(to: *mut f32, v: Self::V, n: usize);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`.
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `c - a * b`.
    unsafe fn neg_mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger of each; `b` where one is NaN, or NaN.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// `v` times 2 to the power of `n`, which is whole and from -126 to 127.
    unsafe fn scale(v: Self::V, n: Self::V) -> Self::V;
    /// Transposes the square of the first `LANES` vectors.
    unsafe fn transpose(rows: &mut [Self::V; MAX_LANES]);
    /// The element that the lower halves of the words are, as bf16.
    unsafe fn low_half(v: Self::V) -> Self::V;
    /// The element that the upper halves of the words are, as bf16.
    unsafe fn high_half(v: Self::V) -> Self::V;
    /// Words of which `low`, rounded to bf16, is the lower half, and `high` the upper one.
    unsafe fn pair(low: Self::V, high: Self::V) -> Self::V;
    /// `LANES` elements of bf16.
    unsafe fn load_bf16(from: *const u16) -> Self::V;
    /// Stores `LANES` elements rounded to bf16.
    unsafe fn store_bf16(to: *mut u16, v: Self::V);
    /// Words of four bytes, which are elements from -128 to 127, rounded, the first in the lowest.
    unsafe fn bytes(v: [Self::V; 4]) -> Self::V;
    /// Stores `LANES` elements from -128 to 127, rounded, as bytes that are 128 larger.
    unsafe fn store_bytes(to: *mut u8, v: Self::V);
    /// Adds the products of the four bytes of each word of `a`, without sign, and of `b`, with one, to whole numbers.
    unsafe fn dot_bytes(sum: Self::V, a: Self::V, b: Self::V) -> Self::V;
    /// The sum of whole numbers.
    unsafe fn add_whole(a: Self::V, b: Self::V) -> Self::V;
    /// The difference of whole numbers.
    unsafe fn sub_whole(a: Self::V, b: Self::V) -> Self::V;
    /// Whole numbers as f32.
    unsafe fn from_whole(v: Self::V) -> Self::V;
    /// Brings a cache line into L2; any address will do.
    unsafe fn prefetch(from: *const f32);
    /// The product of `rows <= ROWS` rows and a panel.
    unsafe fn tile(rows: usize, tile: Tile);
    /// The same of bf16 pairs, `rows <= NARROW_ROWS`.
    unsafe fn tile_bf16(rows: usize, tile: Tile);
    /// The same of four bytes, those of the panel with a sign, whose sums are whole numbers.
    unsafe fn tile_int8(rows: usize, tile: Tile);
}

/// Work that is written for every instruction set. An implementation is sound where each item is run once, and no two
/// items at once have the same lane.
pub(crate) trait Kernel: Sync {
    /// # Safety
    /// The processor has `S`, and items and lanes are as said above.
    unsafe fn run<S: Simd>(&self, lane: usize, item: usize);
}

/// Runs all items of `kernel` on `pool` with the instructions of `isa`.
pub(crate) fn for_each<K: Kernel>(isa: Isa, pool: Pool<'_>, n_items: usize, kernel: &K) -> Result<(), Error> {
    let isa = isa.checked()?;
    pool.for_each(n_items, &|lane, item| {
        // SAFETY: the instruction set is checked; `Pool::for_each` gives items and lanes out once.
        unsafe { run(isa, kernel, lane, item) }
    });
    Ok(())
}

/// Runs one item.
///
/// # Safety
/// The processor has `isa`, and items and lanes are as [`Kernel`] says.
unsafe fn run<K: Kernel>(isa: Isa, kernel: &K, lane: usize, item: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::run(kernel, lane, item),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => avx512::run(kernel, lane, item),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => avx512::run_vnni(kernel, lane, item),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => avx512::run_bf16(kernel, lane, item),
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => avx512::run_amx(kernel, lane, item),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => neon::run(kernel, lane, item),
            _ => kernel.run::<portable::Portable>(lane, item),
        }
    }
}
