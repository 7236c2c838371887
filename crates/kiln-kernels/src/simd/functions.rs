//! Powers of 2, and activations.

use std::f32::consts::{FRAC_1_SQRT_2, LN_2, LOG2_E};

use super::Simd;

/// 2 to the power of `v`, which is at most 126, with an error of 1.1e-7; of what is below -126, 2 to the power of -126.
///
/// # Safety
/// The processor has `S`.
#[inline(always)]
pub(crate) unsafe fn exp2<S: Simd>(v: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe { power::<S, 6>(v, [1.000_000_1, LN_2, 0.240_221_07, 0.055_503_57, 0.009_676_032, 0.001_339_086_3]) }
}

/// The same with an error of 1e-4, a twentieth of what rounding to bf16 makes.
///
/// # Safety
/// The processor has `S`.
#[inline(always)]
pub(crate) unsafe fn exp2_for_bf16<S: Simd>(v: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe { power::<S, 4>(v, [0.999_924_54, 0.693_136_75, 0.242_639_48, 0.055_838_283]) }
}

/// 2 to the power of `v`, by a polynomial that interpolates it between -0.5 and 0.5 at Chebyshev's points.
#[inline(always)]
unsafe fn power<S: Simd, const N: usize>(v: S::V, polynomial: [f32; N]) -> S::V {
    /// Numbers beside it have no fraction.
    const WHOLE: f32 = 12_582_912.0;
    // SAFETY: the caller's promise.
    unsafe {
        // A NaN stays: of two operands of which one is, it is the second.
        let v = S::max(S::splat(-126.0), v);
        let whole = S::sub(S::add(v, S::splat(WHOLE)), S::splat(WHOLE));
        let fraction = S::sub(v, whole);
        let mut sum = S::splat(polynomial[N - 1]);
        for factor in polynomial[..N - 1].iter().rev() {
            sum = S::mul_add(sum, fraction, S::splat(*factor));
        }
        S::scale(sum, whole)
    }
}

/// `x * sigmoid(x)`.
///
/// # Safety
/// The processor has `S`.
#[inline(always)]
pub(crate) unsafe fn silu<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        let exponent = S::max(S::splat(-126.0), S::mul(x, S::splat(LOG2_E)));
        S::div(x, S::add(S::splat(1.0), exp2::<S>(S::sub(S::splat(0.0), exponent))))
    }
}

/// `x` times the normal distribution's share below it, `x / 2 * (1 + erf(x / sqrt(2)))`.
///
/// The error function by Abramowitz and Stegun, "Handbook of Mathematical Functions", 7.1.26, with an error of 1.5e-7.
///
/// # Safety
/// The processor has `S`.
#[inline(always)]
pub(crate) unsafe fn gelu<S: Simd>(x: S::V) -> S::V {
    const STEP: f32 = 0.327_591_1;
    const POLYNOMIAL: [f32; 5] = [0.254_829_6, -0.284_496_72, 1.421_413_8, -1.453_152_1, 1.061_405_4];
    // SAFETY: the caller's promise.
    unsafe {
        let size = S::max(S::sub(S::splat(0.0), x), x);
        let scaled = S::mul(size, S::splat(FRAC_1_SQRT_2));
        let t = S::div(S::splat(1.0), S::mul_add(scaled, S::splat(STEP), S::splat(1.0)));
        let mut sum = S::splat(POLYNOMIAL[4]);
        for factor in POLYNOMIAL[..4].iter().rev() {
            sum = S::mul_add(sum, t, S::splat(*factor));
        }
        let exponent = S::mul(S::mul(scaled, scaled), S::splat(-LOG2_E));
        // The share beyond, on either side.
        let tails = S::mul(S::mul(sum, t), exp2::<S>(exponent));
        let positive = S::max(S::splat(0.0), x);
        S::neg_mul_add(S::mul(size, S::splat(0.5)), tails, positive)
    }
}
