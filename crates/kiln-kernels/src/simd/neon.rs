//! NEON: vectors of four, tiles of 6 x 16.

use std::arch::aarch64::*;

use super::tile::{Dot, Pairs, Single, by_rows, multiply};
use super::{Kernel, MAX_LANES, Simd, Tile};
use crate::bf16;

/// Vectors of four.
#[derive(Clone, Copy)]
pub(crate) struct Neon;

const LANES: usize = 4;

/// # Safety
/// As [`super::run`].
#[target_feature(enable = "neon")]
pub(super) unsafe fn run<K: Kernel>(kernel: &K, lane: usize, item: usize) {
    // SAFETY: the caller's promise.
    unsafe { kernel.run::<Neon>(lane, item) }
}

#[target_feature(enable = "neon")]
unsafe fn columns<D: Dot<Neon>, const ROWS: usize>(tile: Tile) {
    for column in (0..tile.columns).step_by(4 * LANES) {
        // SAFETY: the caller's promise.
        unsafe { multiply::<Neon, D, ROWS, 4>(tile.right(column)) }
    }
}

#[inline(always)]
fn array(v: float32x4_t) -> [f32; LANES] {
    // SAFETY: both are 16 bytes of any value.
    unsafe { std::mem::transmute(v) }
}

#[inline(always)]
fn vector(v: [f32; LANES]) -> float32x4_t {
    // SAFETY: both are 16 bytes of any value.
    unsafe { std::mem::transmute(v) }
}

impl Simd for Neon {
    const LANES: usize = LANES;
    const ROWS: usize = 6;
    type V = float32x4_t;

    #[inline(always)]
    unsafe fn splat(x: f32) -> float32x4_t {
        // SAFETY: the caller's promise.
        unsafe { vdupq_n_f32(x) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> float32x4_t {
        // SAFETY: the caller's promise.
        unsafe { vld1q_f32(from) }
    }

    #[inline(always)]
    unsafe fn load_n(from: *const f32, n: usize) -> float32x4_t {
        // SAFETY: the caller's promise.
        vector(std::array::from_fn(|i| if i < n { unsafe { *from.add(i) } } else { 0.0 }))
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, v: float32x4_t) {
        // SAFETY: the caller's promise.
        unsafe { vst1q_f32(to, v) }
    }

    #[inline(always)]
    unsafe fn store_n(to: *mut f32, v: float32x4_t, n: usize) {
        for (i, &x) in array(v).iter().enumerate().take(n) {
            // SAFETY: the caller's promise.
            unsafe { *to.add(i) = x }
        }
    }

    #[inline(always)]
    unsafe fn add(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: the caller's promise.
        unsafe { vaddq_f32(a, b) }
    }

    #[inline(always)]
    unsafe fn sub(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: the caller's promise.
        unsafe { vsubq_f32(a, b) }
    }

    #[inline(always)]
    unsafe fn mul(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: the caller's promise.
        unsafe { vmulq_f32(a, b) }
    }

    #[inline(always)]
    unsafe fn mul_add(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        // SAFETY: the caller's promise.
        unsafe { vfmaq_f32(c, a, b) }
    }

    #[inline(always)]
    unsafe fn neg_mul_add(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        // SAFETY: the caller's promise.
        unsafe { vfmsq_f32(c, a, b) }
    }

    #[inline(always)]
    unsafe fn div(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: the caller's promise.
        unsafe { vdivq_f32(a, b) }
    }

    #[inline(always)]
    unsafe fn max(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: the caller's promise.
        unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) }
    }

    #[inline(always)]
    unsafe fn scale(v: float32x4_t, n: float32x4_t) -> float32x4_t {
        // SAFETY: the caller's promise.
        unsafe {
            let exponent = vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127));
            vmulq_f32(v, vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent)))
        }
    }

    #[inline(always)]
    unsafe fn transpose(rows: &mut [float32x4_t; MAX_LANES]) {
        // SAFETY: the caller's promise.
        unsafe {
            let (a, b) = (vtrnq_f32(rows[0], rows[1]), vtrnq_f32(rows[2], rows[3]));
            rows[0] = vcombine_f32(vget_low_f32(a.0), vget_low_f32(b.0));
            rows[1] = vcombine_f32(vget_low_f32(a.1), vget_low_f32(b.1));
            rows[2] = vcombine_f32(vget_high_f32(a.0), vget_high_f32(b.0));
            rows[3] = vcombine_f32(vget_high_f32(a.1), vget_high_f32(b.1));
        }
    }

    #[inline(always)]
    unsafe fn low_half(v: float32x4_t) -> float32x4_t {
        // SAFETY: the caller's promise.
        unsafe { vreinterpretq_f32_u32(vshlq_n_u32::<16>(vreinterpretq_u32_f32(v))) }
    }

    #[inline(always)]
    unsafe fn high_half(v: float32x4_t) -> float32x4_t {
        // SAFETY: the caller's promise.
        unsafe { vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(v), vdupq_n_u32(0xffff_0000))) }
    }

    #[inline(always)]
    unsafe fn pair(low: float32x4_t, high: float32x4_t) -> float32x4_t {
        let (low, high) = (array(low), array(high));
        vector(std::array::from_fn(|i| f32::from_bits(bf16::pair(low[i], high[i]))))
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> float32x4_t {
        // SAFETY: the caller's promise.
        unsafe { vreinterpretq_f32_u32(vshlq_n_u32::<16>(vmovl_u16(vld1_u16(from)))) }
    }

    #[inline(always)]
    unsafe fn store_bf16(to: *mut u16, v: float32x4_t) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[u16; LANES]>().write_unaligned(array(v).map(bf16::from_f32)) }
    }

    #[inline(always)]
    unsafe fn prefetch(_: *const f32) {}

    unsafe fn tile(rows: usize, tile: Tile) {
        // SAFETY: the caller's promise.
        unsafe { by_rows!(rows, columns::<Single>(tile), 1 2 3 4 5 6) }
    }

    unsafe fn tile_bf16(rows: usize, tile: Tile) {
        // SAFETY: the caller's promise.
        unsafe { by_rows!(rows, columns::<Pairs>(tile), 1 2 3 4 5 6) }
    }
}
