//! Arrays, without intrinsics.

use super::tile::{Bytes, Pairs, Single, by_rows, multiply};
use super::{MAX_LANES, Simd, Tile};
use crate::{bf16, int8};

/// Vectors of four, which compilers map to what every processor has.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

const LANES: usize = 4;
type V = [f32; LANES];

#[inline(always)]
fn zip(a: V, b: V, f: impl Fn(f32, f32) -> f32) -> V {
    std::array::from_fn(|i| f(a[i], b[i]))
}

unsafe fn columns<D: super::tile::Dot<Portable>, const ROWS: usize>(tile: Tile) {
    for column in (0..tile.columns).step_by(2 * LANES) {
        // SAFETY: the caller's promise.
        unsafe { multiply::<Portable, D, ROWS, 2>(tile.right(column)) }
    }
}

impl Simd for Portable {
    const LANES: usize = LANES;
    const ROWS: usize = 4;
    type V = V;

    #[inline(always)]
    unsafe fn splat(x: f32) -> V {
        [x; LANES]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> V {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<V>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn load_n(from: *const f32, n: usize) -> V {
        // SAFETY: the caller's promise.
        std::array::from_fn(|i| if i < n { unsafe { *from.add(i) } } else { 0.0 })
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, v: V) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<V>().write_unaligned(v) }
    }

    #[inline(always)]
    unsafe fn store_n(to: *mut f32, v: V, n: usize) {
        for (i, &x) in v.iter().enumerate().take(n) {
            // SAFETY: the caller's promise.
            unsafe { *to.add(i) = x }
        }
    }

    #[inline(always)]
    unsafe fn add(a: V, b: V) -> V {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn sub(a: V, b: V) -> V {
        zip(a, b, |a, b| a - b)
    }

    #[inline(always)]
    unsafe fn mul(a: V, b: V) -> V {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    unsafe fn mul_add(a: V, b: V, c: V) -> V {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    unsafe fn neg_mul_add(a: V, b: V, c: V) -> V {
        std::array::from_fn(|i| c[i] - a[i] * b[i])
    }

    #[inline(always)]
    unsafe fn div(a: V, b: V) -> V {
        zip(a, b, |a, b| a / b)
    }

    #[inline(always)]
    unsafe fn max(a: V, b: V) -> V {
        zip(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    unsafe fn scale(v: V, n: V) -> V {
        zip(v, n, |v, n| v * f32::from_bits(((n as i32 + 127) as u32) << 23))
    }

    #[inline(always)]
    unsafe fn transpose(rows: &mut [V; MAX_LANES]) {
        let square: [V; LANES] = std::array::from_fn(|i| std::array::from_fn(|j| rows[j][i]));
        rows[..LANES].copy_from_slice(&square);
    }

    #[inline(always)]
    unsafe fn low_half(v: V) -> V {
        v.map(|x| f32::from_bits(x.to_bits() << 16))
    }

    #[inline(always)]
    unsafe fn high_half(v: V) -> V {
        v.map(|x| f32::from_bits(x.to_bits() & 0xffff_0000))
    }

    #[inline(always)]
    unsafe fn pair(low: V, high: V) -> V {
        zip(low, high, |low, high| f32::from_bits(bf16::pair(low, high)))
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> V {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<[u16; LANES]>().read_unaligned().map(bf16::to_f32) }
    }

    #[inline(always)]
    unsafe fn store_bf16(to: *mut u16, v: V) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[u16; LANES]>().write_unaligned(v.map(bf16::from_f32)) }
    }

    #[inline(always)]
    unsafe fn bytes(v: [V; 4]) -> V {
        std::array::from_fn(|i| f32::from_bits(u32::from_le_bytes(v.map(|v| int8::round(v[i]) as u8))))
    }

    #[inline(always)]
    unsafe fn store_bytes(to: *mut u8, v: V) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[u8; LANES]>().write_unaligned(v.map(|x| int8::round(x) as u8 ^ 0x80)) }
    }

    #[inline(always)]
    unsafe fn dot_bytes(sum: V, a: V, b: V) -> V {
        std::array::from_fn(|i| f32::from_bits(int8::dot(sum[i].to_bits(), a[i].to_bits(), b[i].to_bits())))
    }

    #[inline(always)]
    unsafe fn add_whole(a: V, b: V) -> V {
        zip(a, b, |a, b| f32::from_bits(a.to_bits().wrapping_add(b.to_bits())))
    }

    #[inline(always)]
    unsafe fn sub_whole(a: V, b: V) -> V {
        zip(a, b, |a, b| f32::from_bits(a.to_bits().wrapping_sub(b.to_bits())))
    }

    #[inline(always)]
    unsafe fn from_whole(v: V) -> V {
        v.map(|x| x.to_bits() as i32 as f32)
    }

    #[inline(always)]
    unsafe fn prefetch(_: *const f32) {}

    unsafe fn tile(rows: usize, tile: Tile) {
        // SAFETY: the caller's promise.
        unsafe { by_rows!(rows, columns::<Single>(tile), 1 2 3 4) }
    }

    unsafe fn tile_bf16(rows: usize, tile: Tile) {
        // SAFETY: the caller's promise.
        unsafe { by_rows!(rows, columns::<Pairs>(tile), 1 2 3 4) }
    }

    unsafe fn tile_int8(rows: usize, tile: Tile) {
        // SAFETY: the caller's promise.
        unsafe { by_rows!(rows, columns::<Bytes>(tile), 1 2 3 4) }
    }
}
