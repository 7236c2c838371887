//! The inner loop of every product: rows times a panel, summed in registers.

use super::Simd;
use crate::weights::PANEL;

/// Words between rows of a block: 128 f32 or 256 bf16. A constant, so that all rows of a tile are addressed from one
/// register.
pub(crate) const ROW: usize = 128;

/// Steps of a panel that lie one after the other in every layout.
pub(crate) const GROUP: usize = 8;

/// `c[row][column] (+)= sum over steps of a[row][step] * b[step][column]`, for the 32 columns of a panel.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    /// Words of the first row; rows are [`ROW`] words apart.
    pub(crate) a: *const f32,
    /// Words of the panel, 32 a step.
    pub(crate) b: *const f32,
    /// Words of the panel to skip after every [`GROUP`] steps.
    pub(crate) skip: usize,
    /// Steps, at most [`ROW`].
    pub(crate) steps: usize,
    /// Sums, `stride` words from row to row.
    pub(crate) c: *mut f32,
    pub(crate) stride: usize,
    /// Columns that are needed, at most 32; the others' sums may be left as they are.
    pub(crate) columns: usize,
    /// Whether the sums are added to what is there.
    pub(crate) add: bool,
    /// What comes next, brought into L2 meanwhile: an address and the words that it advances by in a step.
    pub(crate) ahead: [Ahead; 2],
}

/// Memory that is needed soon. It may lie outside of any allocation, because it is not read.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    pub(crate) from: *const f32,
    /// Words that a step advances by.
    pub(crate) words: usize,
}

impl Tile {
    /// The same tile `rows` further down.
    #[inline(always)]
    pub(crate) fn below(self, rows: usize) -> Tile {
        Tile { a: self.a.wrapping_add(rows * ROW), c: self.c.wrapping_add(rows * self.stride), ..self }
    }

    /// The same tile `columns` to the right.
    #[inline(always)]
    pub(crate) fn right(self, columns: usize) -> Tile {
        Tile { b: self.b.wrapping_add(columns), c: self.c.wrapping_add(columns), ..self }
    }
}

/// How the words of a step are multiplied.
pub(crate) trait Dot<S: Simd> {
    unsafe fn dot(sum: S::V, a: S::V, b: S::V) -> S::V;

    /// The sum of two sums.
    #[inline(always)]
    unsafe fn add(a: S::V, b: S::V) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { S::add(a, b) }
    }
}

/// Words are f32.
pub(crate) struct Single;

impl<S: Simd> Dot<S> for Single {
    #[inline(always)]
    unsafe fn dot(sum: S::V, a: S::V, b: S::V) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { S::mul_add(a, b, sum) }
    }
}

/// Words are bf16 pairs, multiplied exactly and summed in the order of `vdpbf16ps`.
pub(crate) struct Pairs;

impl<S: Simd> Dot<S> for Pairs {
    #[inline(always)]
    unsafe fn dot(sum: S::V, a: S::V, b: S::V) -> S::V {
        // SAFETY: the caller's promise.
        unsafe {
            let sum = S::mul_add(S::high_half(a), S::high_half(b), sum);
            S::mul_add(S::low_half(a), S::low_half(b), sum)
        }
    }
}

/// Words are four bytes, and sums whole numbers.
pub(crate) struct Bytes;

impl<S: Simd> Dot<S> for Bytes {
    #[inline(always)]
    unsafe fn dot(sum: S::V, a: S::V, b: S::V) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { S::dot_bytes(sum, a, b) }
    }

    #[inline(always)]
    unsafe fn add(a: S::V, b: S::V) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { S::add_whole(a, b) }
    }
}

/// `ROWS` rows and `VECTORS` vectors of columns.
///
/// # Safety
/// The processor has `S`; `a`, `b` and `c` are of the sizes that [`Tile`] says, and `c` is written by nobody else.
#[inline(always)]
pub(crate) unsafe fn multiply<S: Simd, D: Dot<S>, const ROWS: usize, const VECTORS: usize>(tile: Tile) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[S::splat(0.0); VECTORS]; ROWS];
        let (mut a, mut b) = (tile.a, tile.b);
        let [mut first, mut second] = tile.ahead;
        for group in (0..tile.steps).step_by(GROUP) {
            for _ in 0..GROUP.min(tile.steps - group) {
                step::<S, D, ROWS, VECTORS>(&mut sums, a, b);
                S::prefetch(first.from);
                S::prefetch(second.from);
                first.from = first.from.wrapping_add(first.words);
                second.from = second.from.wrapping_add(second.words);
                // Behind the last step, both may be past their ends.
                (a, b) = (a.wrapping_add(1), b.wrapping_add(PANEL));
            }
            b = b.wrapping_add(tile.skip);
        }
        store::<S, D, ROWS, VECTORS>(&sums, tile);
    }
}

#[inline(always)]
unsafe fn step<S: Simd, D: Dot<S>, const ROWS: usize, const VECTORS: usize>(
    sums: &mut [[S::V; VECTORS]; ROWS],
    a: *const f32,
    b: *const f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut columns = [S::splat(0.0); VECTORS];
        for (j, column) in columns.iter_mut().enumerate() {
            *column = S::load(b.add(j * S::LANES));
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            let row = S::splat(*a.add(r * ROW));
            for j in 0..VECTORS {
                sums[j] = D::dot(sums[j], row, columns[j]);
            }
        }
    }
}

#[inline(always)]
unsafe fn store<S: Simd, D: Dot<S>, const ROWS: usize, const VECTORS: usize>(
    sums: &[[S::V; VECTORS]; ROWS],
    tile: Tile,
) {
    // SAFETY: the caller's promise.
    unsafe {
        for (r, sums) in sums.iter().enumerate() {
            for (j, &sum) in sums.iter().enumerate() {
                let c = tile.c.add(r * tile.stride + j * S::LANES);
                S::store(c, if tile.add { D::add(S::load(c), sum) } else { sum });
            }
        }
    }
}

/// Calls `$function` for the number of rows at hand, each of which is code of its own.
macro_rules! by_rows {
    ($rows:expr, $function:ident::<$dot:ty>($tile:expr), $($count:literal)+) => {
        match $rows {
            $($count => $function::<$dot, $count>($tile),)+
            rows => unreachable!("{rows} rows"),
        }
    };
}
pub(crate) use by_rows;
