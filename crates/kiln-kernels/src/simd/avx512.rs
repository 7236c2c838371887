//! AVX-512F and BW, alone, with VNNI, with BF16 and with AMX: vectors of sixteen, tiles of 12 x 32.

use std::arch::x86_64::*;

use super::tile::{Bytes, Dot, Pairs, Single, by_rows, multiply};
use super::{Kernel, MAX_LANES, Simd, Tile, amx};
use crate::gemm::part;

/// Vectors of sixteen, of a processor with this and all lower levels.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const LEVEL: u8>;

/// AVX-512F and BW alone.
const BW: u8 = 0;
/// The processor multiplies words of four bytes itself.
const VNNI: u8 = 1;
/// The processor multiplies and rounds bf16 itself.
const BF16: u8 = 2;
/// The processor multiplies tiles of bf16 and of bytes.
const AMX: u8 = 3;

const LANES: usize = 16;
/// Rows of a tile in vectors.
const ROWS: usize = 12;

/// # Safety
/// As [`super::run`].
#[target_feature(enable = "avx512f,avx512bw,fma")]
pub(super) unsafe fn run<K: Kernel>(kernel: &K, lane: usize, item: usize) {
    // SAFETY: the caller's promise.
    unsafe { kernel.run::<Avx512<BW>>(lane, item) }
}

/// # Safety
/// As [`super::run`].
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,fma")]
pub(super) unsafe fn run_vnni<K: Kernel>(kernel: &K, lane: usize, item: usize) {
    // SAFETY: the caller's promise.
    unsafe { kernel.run::<Avx512<VNNI>>(lane, item) }
}

/// # Safety
/// As [`super::run`].
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx512bf16,fma")]
pub(super) unsafe fn run_bf16<K: Kernel>(kernel: &K, lane: usize, item: usize) {
    // SAFETY: the caller's promise.
    unsafe { kernel.run::<Avx512<BF16>>(lane, item) }
}

/// # Safety
/// As [`super::run`].
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx512bf16,fma")]
pub(super) unsafe fn run_amx<K: Kernel>(kernel: &K, lane: usize, item: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        kernel.run::<Avx512<AMX>>(lane, item);
        amx::release();
    }
}

#[target_feature(enable = "avx512f,avx512bw,fma")]
unsafe fn columns<D: Dot<Avx512<BW>>, const ROWS: usize>(tile: Tile) {
    // SAFETY: the caller's promise.
    unsafe {
        match tile.columns <= LANES {
            true => multiply::<Avx512<BW>, D, ROWS, 1>(tile),
            false => multiply::<Avx512<BW>, D, ROWS, 2>(tile),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni,fma")]
unsafe fn columns_of_bytes<D: Dot<Avx512<VNNI>>, const ROWS: usize>(tile: Tile) {
    // SAFETY: the caller's promise.
    unsafe {
        match tile.columns <= LANES {
            true => multiply::<Avx512<VNNI>, D, ROWS, 1>(tile),
            false => multiply::<Avx512<VNNI>, D, ROWS, 2>(tile),
        }
    }
}

/// bf16 pairs by `vdpbf16ps`.
struct NativePairs;

impl Dot<Avx512<BF16>> for NativePairs {
    #[inline(always)]
    unsafe fn dot(sum: __m512, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller's promise; both are 64 bytes of any value.
        unsafe {
            let [a, b] = std::mem::transmute::<[__m512; 2], [__m512bh; 2]>([a, b]);
            _mm512_dpbf16_ps(sum, a, b)
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16,fma")]
unsafe fn columns_of_pairs<D: Dot<Avx512<BF16>>, const ROWS: usize>(tile: Tile) {
    // SAFETY: the caller's promise.
    unsafe {
        match tile.columns <= LANES {
            true => multiply::<Avx512<BF16>, D, ROWS, 1>(tile),
            false => multiply::<Avx512<BF16>, D, ROWS, 2>(tile),
        }
    }
}

/// Each element rounded to bf16, in the upper half of its word, as [`crate::bf16::from_f32`] does it.
#[inline(always)]
unsafe fn round(v: __m512) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe {
        let bits = _mm512_castps_si512(v);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
        let denormal = _mm512_testn_epi32_mask(bits, _mm512_set1_epi32(0x7f80_0000));
        let finite = _mm512_mask_and_epi32(rounded, denormal, bits, _mm512_set1_epi32(i32::MIN));
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
        let all = _mm512_mask_or_epi32(finite, nan, bits, _mm512_set1_epi32(0x0040_0000));
        _mm512_and_si512(all, _mm512_set1_epi32(-0x1_0000))
    }
}

/// Each element rounded to bf16, in the lower half of its word.
#[inline(always)]
unsafe fn halves<const LEVEL: u8>(v: __m512) -> __m512i {
    // SAFETY: the caller's promise; `__m256bh` is 32 bytes of any value.
    unsafe {
        match LEVEL >= BF16 {
            true => _mm512_cvtepu16_epi32(std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(v))),
            false => _mm512_srli_epi32::<16>(round(v)),
        }
    }
}

#[inline(always)]
fn mask(n: usize) -> __mmask16 {
    ((1u32 << n) - 1) as __mmask16
}

/// Transposes the 4 x 4 squares within each 128 bits, of four vectors.
#[inline(always)]
unsafe fn transpose_quarters(v: [__m512; 4]) -> [__m512; 4] {
    // SAFETY: the caller's promise.
    unsafe {
        let low = _mm512_castps_pd(_mm512_unpacklo_ps(v[0], v[1]));
        let high = _mm512_castps_pd(_mm512_unpackhi_ps(v[0], v[1]));
        let low2 = _mm512_castps_pd(_mm512_unpacklo_ps(v[2], v[3]));
        let high2 = _mm512_castps_pd(_mm512_unpackhi_ps(v[2], v[3]));
        [
            _mm512_castpd_ps(_mm512_unpacklo_pd(low, low2)),
            _mm512_castpd_ps(_mm512_unpackhi_pd(low, low2)),
            _mm512_castpd_ps(_mm512_unpacklo_pd(high, high2)),
            _mm512_castpd_ps(_mm512_unpackhi_pd(high, high2)),
        ]
    }
}

/// Transposes the square of 128-bit quarters of four vectors.
#[inline(always)]
unsafe fn transpose_across(v: [__m512; 4]) -> [__m512; 4] {
    // SAFETY: the caller's promise.
    unsafe {
        let even = _mm512_shuffle_f32x4::<0b10_00_10_00>(v[0], v[1]);
        let odd = _mm512_shuffle_f32x4::<0b11_01_11_01>(v[0], v[1]);
        let even2 = _mm512_shuffle_f32x4::<0b10_00_10_00>(v[2], v[3]);
        let odd2 = _mm512_shuffle_f32x4::<0b11_01_11_01>(v[2], v[3]);
        [
            _mm512_shuffle_f32x4::<0b10_00_10_00>(even, even2),
            _mm512_shuffle_f32x4::<0b10_00_10_00>(odd, odd2),
            _mm512_shuffle_f32x4::<0b11_01_11_01>(even, even2),
            _mm512_shuffle_f32x4::<0b11_01_11_01>(odd, odd2),
        ]
    }
}

impl<const LEVEL: u8> Simd for Avx512<LEVEL> {
    const LANES: usize = LANES;
    const ROWS: usize = ROWS;
    const NARROW_ROWS: usize = if LEVEL == AMX { amx::ROWS } else { ROWS };
    type V = __m512;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn load_n(from: *const f32, n: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_maskz_loadu_ps(mask(n), from) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, v: __m512) {
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_ps(to, v) }
    }

    #[inline(always)]
    unsafe fn store_n(to: *mut f32, v: __m512, n: usize) {
        // SAFETY: the caller's promise.
        unsafe { _mm512_mask_storeu_ps(to, mask(n), v) }
    }

    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn neg_mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_fnmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn scale(v: __m512, n: __m512) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_scalef_ps(v, n) }
    }

    #[inline(always)]
    unsafe fn transpose(rows: &mut [__m512; MAX_LANES]) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut columns = [rows[0]; LANES];
            for i in (0..LANES).step_by(4) {
                let four = transpose_quarters([rows[i], rows[i + 1], rows[i + 2], rows[i + 3]]);
                columns[i..i + 4].copy_from_slice(&four);
            }
            for i in 0..4 {
                let four = transpose_across([columns[i], columns[i + 4], columns[i + 8], columns[i + 12]]);
                for (j, v) in four.into_iter().enumerate() {
                    rows[4 * j + i] = v;
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn low_half(v: __m512) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_castps_si512(v))) }
    }

    #[inline(always)]
    unsafe fn high_half(v: __m512) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(-0x1_0000))) }
    }

    #[inline(always)]
    unsafe fn pair(low: __m512, high: __m512) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe {
            let high = match LEVEL >= BF16 {
                true => _mm512_slli_epi32::<16>(halves::<LEVEL>(high)),
                false => round(high),
            };
            _mm512_castsi512_ps(_mm512_or_si512(halves::<LEVEL>(low), high))
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe {
            let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
        }
    }

    #[inline(always)]
    unsafe fn store_bf16(to: *mut u16, v: __m512) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(halves::<LEVEL>(v))) }
    }

    #[inline(always)]
    unsafe fn bytes(v: [__m512; 4]) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe {
            let low = |v| _mm512_and_si512(_mm512_cvtps_epi32(v), _mm512_set1_epi32(0xff));
            let first = _mm512_or_si512(low(v[0]), _mm512_slli_epi32::<8>(low(v[1])));
            let second = _mm512_or_si512(low(v[2]), _mm512_slli_epi32::<8>(_mm512_cvtps_epi32(v[3])));
            _mm512_castsi512_ps(_mm512_or_si512(first, _mm512_slli_epi32::<16>(second)))
        }
    }

    #[inline(always)]
    unsafe fn store_bytes(to: *mut u8, v: __m512) {
        // SAFETY: the caller's promise.
        unsafe {
            let bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v));
            _mm_storeu_si128(to.cast(), _mm_xor_si128(bytes, _mm_set1_epi8(i8::MIN)));
        }
    }

    #[inline(always)]
    unsafe fn dot_bytes(sum: __m512, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe {
            let (sum, a, b) = (_mm512_castps_si512(sum), _mm512_castps_si512(a), _mm512_castps_si512(b));
            if LEVEL >= VNNI {
                return _mm512_castsi512_ps(_mm512_dpbusd_epi32(sum, a, b));
            }
            let low = _mm512_and_si512(a, _mm512_set1_epi16(0xff));
            let even = _mm512_madd_epi16(low, _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(b)));
            let odd = _mm512_madd_epi16(_mm512_srli_epi16::<8>(a), _mm512_srai_epi16::<8>(b));
            _mm512_castsi512_ps(_mm512_add_epi32(_mm512_add_epi32(sum, even), odd))
        }
    }

    #[inline(always)]
    unsafe fn add_whole(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b))) }
    }

    #[inline(always)]
    unsafe fn sub_whole(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_castsi512_ps(_mm512_sub_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b))) }
    }

    #[inline(always)]
    unsafe fn from_whole(v: __m512) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_cvtepi32_ps(_mm512_castps_si512(v)) }
    }

    #[inline(always)]
    unsafe fn prefetch(from: *const f32) {
        // SAFETY: a prefetch reads nothing, so that every address is right.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) }
    }

    unsafe fn tile(rows: usize, tile: Tile) {
        // SAFETY: the caller's promise.
        unsafe { by_rows!(rows, columns::<Single>(tile), 1 2 3 4 5 6 7 8 9 10 11 12) }
    }

    unsafe fn tile_bf16(rows: usize, tile: Tile) {
        // SAFETY: the caller's promise.
        unsafe {
            match LEVEL {
                AMX if tile.skip == 0 => amx::multiply::<amx::Pairs>(rows, tile),
                // Panels with gaps are no tiles.
                AMX => {
                    let n = rows.div_ceil(ROWS);
                    for rows in (0..n).map(|index| part(rows, n, index)) {
                        Avx512::<BF16>::tile_bf16(rows.len(), tile.below(rows.start));
                    }
                }
                BF16 => by_rows!(rows, columns_of_pairs::<NativePairs>(tile), 1 2 3 4 5 6 7 8 9 10 11 12),
                _ => by_rows!(rows, columns::<Pairs>(tile), 1 2 3 4 5 6 7 8 9 10 11 12),
            }
        }
    }

    unsafe fn tile_int8(rows: usize, tile: Tile) {
        // SAFETY: the caller's promise.
        unsafe {
            match LEVEL {
                AMX => amx::multiply::<amx::Bytes>(rows, tile),
                VNNI | BF16 => by_rows!(rows, columns_of_bytes::<Bytes>(tile), 1 2 3 4 5 6 7 8 9 10 11 12),
                _ => by_rows!(rows, columns::<Bytes>(tile), 1 2 3 4 5 6 7 8 9 10 11 12),
            }
        }
    }
}
