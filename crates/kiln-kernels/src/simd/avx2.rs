//! AVX2 and FMA: vectors of eight, tiles of 6 x 16.

use std::arch::x86_64::*;

use super::tile::{Bytes, Dot, Pairs, Single, by_rows, multiply};
use super::{Kernel, MAX_LANES, Simd, Tile};

/// Vectors of eight.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

const LANES: usize = 8;

/// # Safety
/// As [`super::run`].
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn run<K: Kernel>(kernel: &K, lane: usize, item: usize) {
    // SAFETY: the caller's promise.
    unsafe { kernel.run::<Avx2>(lane, item) }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn columns<D: Dot<Avx2>, const ROWS: usize>(tile: Tile) {
    for column in (0..tile.columns).step_by(2 * LANES) {
        // SAFETY: the caller's promise.
        unsafe { multiply::<Avx2, D, ROWS, 2>(tile.right(column)) }
    }
}

/// Words of which the first `n` are set.
#[inline(always)]
unsafe fn mask(n: usize) -> __m256i {
    static MASK: [i32; 2 * LANES] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
    // SAFETY: `n` is at most 8, so that 8 words from there are in the table.
    unsafe { _mm256_loadu_si256(MASK.as_ptr().add(LANES - n).cast()) }
}

/// Each element rounded to bf16, in the upper half of its word, as [`crate::bf16::from_f32`] does it.
#[inline(always)]
unsafe fn round(v: __m256) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let bits = _mm256_castps_si256(v);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
        let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
        let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
        let exponent = _mm256_and_si256(bits, _mm256_set1_epi32(0x7f80_0000));
        let denormal = _mm256_cmpeq_epi32(exponent, _mm256_setzero_si256());
        let sign = _mm256_and_si256(bits, _mm256_set1_epi32(i32::MIN));
        let finite = _mm256_blendv_epi8(rounded, sign, denormal);
        _mm256_and_si256(_mm256_blendv_epi8(finite, quiet, nan), _mm256_set1_epi32(-0x1_0000))
    }
}

impl Simd for Avx2 {
    const LANES: usize = LANES;
    const ROWS: usize = 6;
    type V = __m256;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn load_n(from: *const f32, n: usize) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_maskload_ps(from, mask(n)) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, v: __m256) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_ps(to, v) }
    }

    #[inline(always)]
    unsafe fn store_n(to: *mut f32, v: __m256, n: usize) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_maskstore_ps(to, mask(n), v) }
    }

    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn sub(a: __m256, b: __m256) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_sub_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn mul_add(a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn neg_mul_add(a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_fnmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn div(a: __m256, b: __m256) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_div_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn max(a: __m256, b: __m256) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_max_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn scale(v: __m256, n: __m256) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe {
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_mul_ps(v, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
        }
    }

    #[inline(always)]
    unsafe fn transpose(rows: &mut [__m256; MAX_LANES]) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut pairs = [rows[0]; LANES];
            for i in 0..LANES / 2 {
                pairs[2 * i] = _mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
                pairs[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
            }
            let mut fours = [rows[0]; LANES];
            for i in 0..2 {
                for j in 0..2 {
                    let (a, b) = (pairs[4 * i + j], pairs[4 * i + j + 2]);
                    let (a, b) = (_mm256_castps_pd(a), _mm256_castps_pd(b));
                    fours[4 * i + 2 * j] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
                    fours[4 * i + 2 * j + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
                }
            }
            for i in 0..LANES / 2 {
                rows[i] = _mm256_permute2f128_ps::<0x20>(fours[i], fours[i + 4]);
                rows[i + 4] = _mm256_permute2f128_ps::<0x31>(fours[i], fours[i + 4]);
            }
        }
    }

    #[inline(always)]
    unsafe fn low_half(v: __m256) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(v))) }
    }

    #[inline(always)]
    unsafe fn high_half(v: __m256) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(v), _mm256_set1_epi32(-0x1_0000))) }
    }

    #[inline(always)]
    unsafe fn pair(low: __m256, high: __m256) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_castsi256_ps(_mm256_or_si256(_mm256_srli_epi32::<16>(round(low)), round(high))) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe {
            let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))
        }
    }

    #[inline(always)]
    unsafe fn store_bf16(to: *mut u16, v: __m256) {
        // SAFETY: the caller's promise.
        unsafe {
            let words = _mm256_srli_epi32::<16>(round(v));
            let halves = _mm256_permute4x64_epi64::<0b00_00_10_00>(_mm256_packus_epi32(words, words));
            _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(halves));
        }
    }

    #[inline(always)]
    unsafe fn bytes(v: [__m256; 4]) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe {
            let low = |v| _mm256_and_si256(_mm256_cvtps_epi32(v), _mm256_set1_epi32(0xff));
            let first = _mm256_or_si256(low(v[0]), _mm256_slli_epi32::<8>(low(v[1])));
            let second = _mm256_or_si256(low(v[2]), _mm256_slli_epi32::<8>(_mm256_cvtps_epi32(v[3])));
            _mm256_castsi256_ps(_mm256_or_si256(first, _mm256_slli_epi32::<16>(second)))
        }
    }

    #[inline(always)]
    unsafe fn store_bytes(to: *mut u8, v: __m256) {
        // SAFETY: the caller's promise.
        unsafe {
            let words = _mm256_cvtps_epi32(v);
            let halves = _mm_packs_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            let bytes = _mm_xor_si128(_mm_packs_epi16(halves, halves), _mm_set1_epi8(i8::MIN));
            _mm_storel_epi64(to.cast(), bytes);
        }
    }

    #[inline(always)]
    unsafe fn dot_bytes(sum: __m256, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe {
            let (a, b) = (_mm256_castps_si256(a), _mm256_castps_si256(b));
            let low = _mm256_and_si256(a, _mm256_set1_epi16(0xff));
            let even = _mm256_madd_epi16(low, _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(b)));
            let odd = _mm256_madd_epi16(_mm256_srli_epi16::<8>(a), _mm256_srai_epi16::<8>(b));
            let sum = _mm256_add_epi32(_mm256_castps_si256(sum), even);
            _mm256_castsi256_ps(_mm256_add_epi32(sum, odd))
        }
    }

    #[inline(always)]
    unsafe fn add_whole(a: __m256, b: __m256) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b))) }
    }

    #[inline(always)]
    unsafe fn sub_whole(a: __m256, b: __m256) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_castsi256_ps(_mm256_sub_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b))) }
    }

    #[inline(always)]
    unsafe fn from_whole(v: __m256) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_cvtepi32_ps(_mm256_castps_si256(v)) }
    }

    #[inline(always)]
    unsafe fn prefetch(from: *const f32) {
        // SAFETY: a prefetch reads nothing, so that every address is right.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) }
    }

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
