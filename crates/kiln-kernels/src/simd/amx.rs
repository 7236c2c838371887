//! AMX: products of bf16 pairs in tiles of 32 x 32, summed in f32 by `tdpbf16ps`, and of bytes, summed in whole numbers by
//! `tdpbusd`.
//!
//! The layouts are those of `vdpbf16ps` and `vpdpbusd`: a row's words are a tile's row, and 16 steps of a panel a tile of the right factor.
//! Tiles are written in assembly, because the intrinsics are not stable. They live from one block of it to the next:
//! a compiler that may not use AMX itself makes no use of tile registers in between.

use std::arch::asm;
use std::cell::Cell;

use super::Tile;
use super::tile::ROW;
use crate::weights::PANEL;

/// Rows of the largest tile of sums: two of the processor's.
pub(super) const ROWS: usize = 2 * HALF;
/// Rows, and words of a row, of the processor's largest tile.
const HALF: usize = 16;

/// What `ldtilecfg` reads (Intel's Software Developer's Manual, `LDTILECFG`).
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Rows of the left factor's two tiles, and words of a step of the loop.
#[derive(Clone, Copy, PartialEq)]
struct Shape {
    rows: [usize; 2],
    words: usize,
}

thread_local! {
    /// The shape that this thread's tiles have.
    static SHAPE: Cell<Option<Shape>> = const { Cell::new(None) };
}

impl Shape {
    /// Gives the thread's tiles this shape: 0 to 3 are sums, 4 and 5 the left factor, 6 and 7 the right one.
    ///
    /// # Safety
    /// The processor has AMX, and the process may use it.
    unsafe fn load(self) {
        if SHAPE.replace(Some(self)) == Some(self) {
            return;
        }
        let ([first, second], words) = (self.rows, self.words);
        let mut config =
            Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let tiles = [first, first, second, second, first, second, words, words];
        for (tile, rows) in tiles.into_iter().enumerate() {
            let is_left = tile == 4 || tile == 5;
            config.rows[tile] = rows as u8;
            config.row_bytes[tile] = if is_left { 4 * words } else { 64 } as u16;
            // A tile without rows has no bytes either.
            if rows == 0 {
                config.row_bytes[tile] = 0;
            }
        }
        // SAFETY: the caller's promise; the instruction reads the 64 bytes of `config`.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &config, options(nostack, readonly)) }
    }
}

/// Gives the tiles of this thread back to the processor.
///
/// # Safety
/// The processor has AMX, and the process may use it.
pub(super) unsafe fn release() {
    if SHAPE.take().is_some() {
        // SAFETY: the caller's promise.
        unsafe { asm!("tilerelease", options(nostack, nomem)) }
    }
}

/// The product of `rows <= ROWS` rows and a panel without gaps.
///
/// # Safety
/// As [`super::Simd::tile_bf16`] and [`super::Simd::tile_int8`]; the process may use AMX.
pub(super) unsafe fn multiply<W: Words>(rows: usize, tile: Tile) {
    let rows = if rows > HALF { [rows.div_ceil(2), rows / 2] } else { [rows, 0] };
    let (whole, rest) = (tile.steps / HALF, tile.steps % HALF);
    // SAFETY: the caller's promise.
    unsafe {
        if whole > 0 {
            Shape { rows, words: HALF }.load();
            W::steps(rows, tile, whole);
        }
        if rest > 0 {
            let (a, b) = (tile.a.add(whole * HALF), tile.b.add(whole * HALF * PANEL));
            Shape { rows, words: rest }.load();
            W::steps(rows, Tile { a, b, add: tile.add || whole > 0, ..tile }, 1);
        }
    }
}

/// What the words of a step are.
pub(super) trait Words {
    /// So many steps of the shape's words.
    ///
    /// # Safety
    /// As [`multiply`]; the tiles have the shape.
    unsafe fn steps(rows: [usize; 2], tile: Tile, n: usize);
}

/// Pairs of bf16.
pub(super) struct Pairs;

/// Four bytes, those of the left factor without sign.
pub(super) struct Bytes;

macro_rules! words {
    ($($words:ty: $product:literal)+) => {
        $(
        impl Words for $words {
            #[inline(always)]
            unsafe fn steps(rows: [usize; 2], tile: Tile, n: usize) {
                const A: usize = 4 * ROW;
                const B: usize = 4 * PANEL;
                let second = tile.a.wrapping_add(rows[0] * ROW);
                let (c, c_second) = (tile.c, tile.c.wrapping_add(rows[0] * tile.stride));
                let c_bytes = 4 * tile.stride;
                // SAFETY: the caller's promise; tiles are read and written within the rows and words of their shape.
                unsafe {
                    match (rows[1] > 0, tile.add) {
                        (true, true) => asm!(
                            "tileloadd tmm0, [{c} + {s}]", "tileloadd tmm1, [{c} + {s} + 64]",
                            "tileloadd tmm2, [{d} + {s}]", "tileloadd tmm3, [{d} + {s} + 64]",
                            c = in(reg) c, d = in(reg) c_second, s = in(reg) c_bytes, options(nostack, readonly)
                        ),
                        (false, true) => asm!(
                            "tileloadd tmm0, [{c} + {s}]", "tileloadd tmm1, [{c} + {s} + 64]",
                            c = in(reg) c, s = in(reg) c_bytes, options(nostack, readonly)
                        ),
                        (true, false) => asm!(
                            "tilezero tmm0",
                            "tilezero tmm1",
                            "tilezero tmm2",
                            "tilezero tmm3",
                            options(nostack, nomem)
                        ),
                        (false, false) => asm!("tilezero tmm0", "tilezero tmm1", options(nostack, nomem)),
                    }
                    match rows[1] > 0 {
                        true => asm!(
                            "2:",
                            "tileloadd tmm4, [{a} + {sa}]",
                            "tileloadd tmm6, [{b} + {sb}]",
                            "tileloadd tmm7, [{b} + {sb} + 64]",
                            "tileloadd tmm5, [{a2} + {sa}]",
                            concat!($product, " tmm0, tmm4, tmm6"),
                            concat!($product, " tmm1, tmm4, tmm7"),
                            concat!($product, " tmm2, tmm5, tmm6"),
                            concat!($product, " tmm3, tmm5, tmm7"),
                            "add {a}, 64",
                            "add {a2}, 64",
                            "add {b}, {b_step}",
                            "dec {n}",
                            "jnz 2b",
                            "tilestored [{c} + {sc}], tmm0",
                            "tilestored [{c} + {sc} + 64], tmm1",
                            "tilestored [{d} + {sc}], tmm2",
                            "tilestored [{d} + {sc} + 64], tmm3",
                            a = inout(reg) tile.a => _, a2 = inout(reg) second => _, b = inout(reg) tile.b => _,
                            n = inout(reg) n => _, sa = in(reg) A, sb = in(reg) B, b_step = const HALF * B,
                            c = in(reg) c, d = in(reg) c_second, sc = in(reg) c_bytes, options(nostack)
                        ),
                        false => asm!(
                            "2:",
                            "tileloadd tmm4, [{a} + {sa}]",
                            "tileloadd tmm6, [{b} + {sb}]",
                            "tileloadd tmm7, [{b} + {sb} + 64]",
                            concat!($product, " tmm0, tmm4, tmm6"),
                            concat!($product, " tmm1, tmm4, tmm7"),
                            "add {a}, 64",
                            "add {b}, {b_step}",
                            "dec {n}",
                            "jnz 2b",
                            "tilestored [{c} + {sc}], tmm0",
                            "tilestored [{c} + {sc} + 64], tmm1",
                            a = inout(reg) tile.a => _, b = inout(reg) tile.b => _, n = inout(reg) n => _,
                            sa = in(reg) A, sb = in(reg) B, b_step = const HALF * B,
                            c = in(reg) c, sc = in(reg) c_bytes, options(nostack)
                        ),
                    }
                }
            }
        }
        )+
    };
}

words! {
    Pairs: "tdpbf16ps"
    Bytes: "tdpbusd"
}

/// Whether the processor has AMX with bf16 and int8, and Linux lets the process use it, which is asked for once.
#[cfg(all(target_os = "linux", not(miri)))]
pub(crate) fn is_available() -> bool {
    use std::arch::x86_64::{__cpuid_count, _xgetbv};
    use std::sync::OnceLock;

    static IS_AVAILABLE: OnceLock<bool> = OnceLock::new();
    /// `arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)` (Linux, Documentation/arch/x86/xstate.rst).
    const ARCH_PRCTL: usize = 158;
    const REQUEST: usize = 0x1023;
    const TILE_DATA: usize = 18;
    const TILES_BF16_INT8: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    const STATE: u64 = 0b11 << 17;

    #[target_feature(enable = "xsave")]
    fn enabled() -> u64 {
        // SAFETY: the processor has `xgetbv`, whose register 0 every operating system lets read.
        unsafe { _xgetbv(0) }
    }

    *IS_AVAILABLE.get_or_init(|| {
        if !is_x86_feature_detected!("xsave") || !is_x86_feature_detected!("avx512bf16") {
            return false;
        }
        // SAFETY: a processor with AVX-512 has this leaf, and with `xsave` the register.
        let has_it = unsafe {
            __cpuid_count(7, 0).edx & TILES_BF16_INT8 == TILES_BF16_INT8 && enabled() & STATE == STATE
        };
        if !has_it {
            return false;
        }
        let result: isize;
        // SAFETY: the call changes what the process may use, and no memory; the kernel changes these registers alone.
        unsafe {
            asm!("syscall", inout("rax") ARCH_PRCTL => result, in("rdi") REQUEST, in("rsi") TILE_DATA,
                out("rcx") _, out("r11") _, options(nostack));
        }
        result == 0
    })
}

/// Elsewhere nobody asks the operating system for it.
#[cfg(any(not(target_os = "linux"), miri))]
pub(crate) fn is_available() -> bool {
    false
}
