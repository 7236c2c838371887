//! The transforms of Winograd's minimal filtering, F(m x m, 3 x 3), one dimension at a time.
//!
//! By Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015): `output = A^T [(G g) . (B^T d)]`,
//! with matrices that the Toom-Cook construction gives for interpolation points 0, +-a, +-b and infinity.

use crate::simd::Simd;

/// The largest `m`.
pub(crate) const MAX_M: usize = 4;
/// The largest tile of the input, `m + 2`.
pub(crate) const MAX_TILE: usize = 6;

/// One F(m, 3). Of arrays, the first `TILE` (inputs and products) and `M` (outputs) elements count.
///
/// # Safety
/// Every function needs a processor that has `S`.
pub(crate) trait Transform {
    /// Rows and columns of an output tile.
    const M: usize;
    /// Rows and columns of an input tile.
    const TILE: usize = Self::M + 2;

    /// `B^T d`.
    unsafe fn input<S: Simd>(d: [S::V; MAX_TILE]) -> [S::V; MAX_TILE];
    /// `G g`.
    unsafe fn weight<S: Simd>(g: [S::V; 3]) -> [S::V; MAX_TILE];
    /// `A^T m`.
    unsafe fn output<S: Simd>(m: [S::V; MAX_TILE]) -> [S::V; MAX_M];
}

/// F(2, 3) with the points 0, 1, -1.
pub(crate) struct F2;

impl Transform for F2 {
    const M: usize = 2;

    #[inline(always)]
    unsafe fn input<S: Simd>(d: [S::V; MAX_TILE]) -> [S::V; MAX_TILE] {
        // SAFETY: the caller's promise.
        unsafe { [S::sub(d[0], d[2]), S::add(d[1], d[2]), S::sub(d[2], d[1]), S::sub(d[3], d[1]), d[4], d[5]] }
    }

    #[inline(always)]
    unsafe fn weight<S: Simd>(g: [S::V; 3]) -> [S::V; MAX_TILE] {
        // SAFETY: the caller's promise.
        unsafe {
            let half = S::splat(0.5);
            let (even, odd) = (S::mul(S::add(g[0], g[2]), half), S::mul(g[1], half));
            let zero = S::splat(0.0);
            [g[0], S::add(even, odd), S::sub(even, odd), g[2], zero, zero]
        }
    }

    #[inline(always)]
    unsafe fn output<S: Simd>(m: [S::V; MAX_TILE]) -> [S::V; MAX_M] {
        // SAFETY: the caller's promise.
        unsafe {
            let (sum, difference) = (S::add(m[1], m[2]), S::sub(m[1], m[2]));
            [S::add(m[0], sum), S::add(difference, m[3]), m[4], m[5]]
        }
    }
}

/// F(4, 3) with the points 0, +-a, +-b.
pub(crate) struct F4;

/// The first pair of points. Of points with few binary digits, these have about the least error: half that of 1 and 2.
const A: f32 = 0.625;
/// The second pair of points.
const B: f32 = 1.5;
const A2: f32 = A * A;
const B2: f32 = B * B;

impl Transform for F4 {
    const M: usize = 4;

    #[inline(always)]
    unsafe fn input<S: Simd>(d: [S::V; MAX_TILE]) -> [S::V; MAX_TILE] {
        // SAFETY: the caller's promise.
        unsafe {
            let (a, b, a2, b2) = (S::splat(A), S::splat(B), S::splat(A2), S::splat(B2));
            let (product, sum) = (S::splat(A2 * B2), S::splat(A2 + B2));
            let (even, odd) = (S::neg_mul_add(b2, d[2], d[4]), S::neg_mul_add(b2, d[1], d[3]));
            let (even2, odd2) = (S::neg_mul_add(a2, d[2], d[4]), S::neg_mul_add(a2, d[1], d[3]));
            [
                S::mul_add(product, d[0], S::neg_mul_add(sum, d[2], d[4])),
                S::mul_add(a, odd, even),
                S::neg_mul_add(a, odd, even),
                S::mul_add(b, odd2, even2),
                S::neg_mul_add(b, odd2, even2),
                S::mul_add(product, d[1], S::neg_mul_add(sum, d[3], d[5])),
            ]
        }
    }

    #[inline(always)]
    unsafe fn weight<S: Simd>(g: [S::V; 3]) -> [S::V; MAX_TILE] {
        const AT_0: f32 = 1.0 / (A2 * B2);
        const AT_A: f32 = 1.0 / (2.0 * A2 * (A2 - B2));
        const AT_B: f32 = 1.0 / (2.0 * B2 * (B2 - A2));
        // SAFETY: the caller's promise.
        unsafe {
            let even = S::mul(S::splat(AT_A), S::mul_add(S::splat(A2), g[2], g[0]));
            let even2 = S::mul(S::splat(AT_B), S::mul_add(S::splat(B2), g[2], g[0]));
            let (odd, odd2) = (S::splat(AT_A * A), S::splat(AT_B * B));
            [
                S::mul(S::splat(AT_0), g[0]),
                S::mul_add(odd, g[1], even),
                S::neg_mul_add(odd, g[1], even),
                S::mul_add(odd2, g[1], even2),
                S::neg_mul_add(odd2, g[1], even2),
                g[2],
            ]
        }
    }

    #[inline(always)]
    unsafe fn output<S: Simd>(m: [S::V; MAX_TILE]) -> [S::V; MAX_M] {
        // SAFETY: the caller's promise.
        unsafe {
            let (sum, difference) = (S::add(m[1], m[2]), S::sub(m[1], m[2]));
            let (sum2, difference2) = (S::add(m[3], m[4]), S::sub(m[3], m[4]));
            let odd = S::mul(S::splat(A), difference);
            let even = S::mul(S::splat(A2), sum);
            let cube = S::mul_add(S::splat(A2 * A), difference, m[5]);
            [
                S::add(m[0], S::add(sum, sum2)),
                S::mul_add(S::splat(B), difference2, odd),
                S::mul_add(S::splat(B2), sum2, even),
                S::mul_add(S::splat(B2 * B), difference2, cube),
            ]
        }
    }
}
