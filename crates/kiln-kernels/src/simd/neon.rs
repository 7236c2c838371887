//! NEON: vectors of four, tiles of 6 x 16.

use std::arch::aarch64::*;

use super::tile::{Bytes, Dot, Pairs, Single, by_rows, multiply};
use super::{Kernel, MAX_LANES, Simd, Tile};
use crate::{bf16, int8};

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
    unsafe fn bytes(v: [float32x4_t; 4]) -> float32x4_t {
        let v = v.map(array);
        vector(std::array::from_fn(|i| f32::from_bits(u32::from_le_bytes(v.map(|v| int8::round(v[i]) as u8)))))
    }

    #[inline(always)]
    unsafe fn store_bytes(to: *mut u8, v: float32x4_t) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[u8; LANES]>().write_unaligned(array(v).map(|x| int8::round(x) as u8 ^ 0x80)) }
    }

    #[inline(always)]
    unsafe fn dot_bytes(sum: float32x4_t, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: the caller's promise.
        unsafe {
            let (a, b) = (vreinterpretq_u8_f32(a), vreinterpretq_s8_f32(b));
            let low = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(a)));
            let high = vreinterpretq_s16_u16(vmovl_high_u8(a));
            let (b_low, b_high) = (vmovl_s8(vget_low_s8(b)), vmovl_high_s8(b));
            // Products of two words each, added pair by pair.
            let first =
                vpaddq_s32(vmull_s16(vget_low_s16(low), vget_low_s16(b_low)), vmull_high_s16(low, b_low));
            let second =
                vpaddq_s32(vmull_s16(vget_low_s16(high), vget_low_s16(b_high)), vmull_high_s16(high, b_high));
            let sum = vaddq_s32(vreinterpretq_s32_f32(sum), vpaddq_s32(first, second));
            vreinterpretq_f32_s32(sum)
        }
    }

    #[inline(always)]
    unsafe fn add_whole(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: the caller's promise.
        unsafe { vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(a), vreinterpretq_s32_f32(b))) }
    }

    #[inline(always)]
    unsafe fn sub_whole(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: the caller's promise.
        unsafe { vreinterpretq_f32_s32(vsubq_s32(vreinterpretq_s32_f32(a), vreinterpretq_s32_f32(b))) }
    }

    #[inline(always)]
    unsafe fn from_whole(v: float32x4_t) -> float32x4_t {
        // SAFETY: the caller's promise.
        unsafe { vcvtq_f32_s32(vreinterpretq_s32_f32(v)) }
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

    unsafe fn tile_int8(rows: usize, tile: Tile) {
        // SAFETY: the caller's promise.
        unsafe { by_rows!(rows, columns::<Bytes>(tile), 1 2 3 4 5 6) }
    }
}
