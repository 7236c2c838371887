//! Products of rows that are brought into blocks and weights that are brought into panels, in blocks that stay in the
//! caches. The panels of as many groups of outputs as fit a bound are made first, by all lanes, then those of the next.
//!
//! A block is up to 96 rows (48 with AVX-512, 64 or 128 in AMX's tiles) of up to 128 words (128 f32, 256 bf16 or 512 int8 of
//! neighbouring `k`), [`ROW`] words apart: 64 KiB at most. It is multiplied with a panel's 16 KiB of the same `k`, which
//! stay in L1, panel after panel. The sums of a block are `[panel][row][32]`, at most 480 KiB, in L2.

use std::ops::Range;

use crate::error::{product, sum};
use crate::memory::{LINE, Shared};
use crate::parallel::Pool;
use crate::simd::{self, Ahead, Kernel, ROW, Simd, Tile};
use crate::weights::PANEL;
use crate::{Element, Error, Factors, Isa, Weights, int8};

/// Rows of the largest block, where panels are in L2. With AVX-512, a block and a panel are in an L1 of 48 KiB; with AMX, a
/// block is two of its tiles.
pub(crate) fn most_rows(isa: Isa, factors: Factors) -> usize {
    match isa {
        _ if is_in_tiles(isa, factors) => 64,
        Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512Vnni | Isa::Avx512 => 48,
        _ => 96,
    }
}

/// Whether AMX multiplies them.
fn is_in_tiles(isa: Isa, factors: Factors) -> bool {
    isa == Isa::Amx && factors != Factors::Floats(Element::F32)
}

/// Words of a row of AMX's tiles.
const TILE_WORDS: usize = 16;

/// Words of `k`, up to whole tiles of AMX: giving tiles another shape takes longer than multiplying zeros.
pub(crate) fn whole_words(isa: Isa, factors: Factors, k: usize) -> usize {
    let words = k.div_ceil(factors.per_word());
    if is_in_tiles(isa, factors) { words.next_multiple_of(TILE_WORDS) } else { words }
}

/// Panels whose sums a block keeps.
const MAX_PANELS: usize = 40;

/// Words of `k` from which on panels are read from memory rather than L2.
const LONG: usize = 1024;

/// Rows of the largest block of a product, and panels whose sums it keeps. Where panels are long, AMX waits for them: more
/// rows share each, at as many sums.
fn largest_block(isa: Isa, factors: Factors, k_words: usize) -> [usize; 2] {
    let rows = most_rows(isa, factors);
    match is_in_tiles(isa, factors) && k_words >= LONG {
        true => [2 * rows, MAX_PANELS / 2],
        false => [rows, MAX_PANELS],
    }
}

/// Words of the panels that there are at once, unless a group has more: 16 MiB.
const MAX_WORDS: usize = 4 << 20;

/// The left factor, and where the sums go.
pub(crate) trait Rows: Sync {
    /// Copies `k` of `rows` into a block.
    ///
    /// # Safety
    /// The processor has `S`; `to` has [`ROW`] words for each row, written by nobody else.
    unsafe fn pack<S: Simd>(&self, rows: Range<usize>, k: Range<usize>, to: *mut f32);

    /// Makes f32 of the sums of `rows` and a panel, `[row][32]`, in their place, where they are not of f32; `panel_end` is
    /// behind the panel's words.
    ///
    /// # Safety
    /// The processor has `S`; nobody else writes the sums.
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, _rows: Range<usize>, _sums: *mut f32, _panel_end: *const f32) {}

    /// Writes the sums of `rows` and a panel of outputs, `[row][32]`, behind which those of their gates are, where they
    /// have some; they may be overwritten.
    ///
    /// # Safety
    /// The processor has `S`; nobody else writes the same rows and panel.
    unsafe fn write<S: Simd>(&self, rows: Range<usize>, panel: usize, sums: *mut f32);
}

/// The right factor.
pub(crate) trait Columns: Sync {
    /// Writes the panel of the outputs from `first` on: the words of all steps, and in int8 the tail.
    ///
    /// # Safety
    /// The processor has `S`; `to` has room for a panel, written by nobody else.
    unsafe fn pack<S: Simd>(&self, first: usize, to: *mut f32);
}

/// Weights whose `k` are in the order in which they are stored.
pub(crate) struct Stored<'a> {
    pub(crate) weights: Weights<'a>,
    pub(crate) element: Element,
}

impl Columns for Stored<'_> {
    #[inline(always)]
    unsafe fn pack<S: Simd>(&self, first: usize, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { self.weights.pack::<S>(first, 0..self.weights.k(), self.element, to) }
    }
}

/// How a product is split.
#[derive(Clone, Copy)]
pub(crate) struct Blocks {
    rows: usize,
    n: usize,
    k: usize,
    factors: Factors,
    panels: usize,
    /// Rows of the largest block.
    block: usize,
    row_blocks: usize,
    groups: usize,
    /// Whether the second half of the outputs are gates of the first: panels of both alternate.
    is_gated: bool,
}

impl Blocks {
    /// Blocks of `rows` x `n` outputs for as many lanes: several items a lane where there are as many.
    /// With gates, `n` is even.
    pub(crate) fn new(
        isa: Isa,
        rows: usize,
        [n, k]: [usize; 2],
        factors: Factors,
        lanes: usize,
        is_gated: bool,
    ) -> Self {
        let units = if is_gated { (n / 2).div_ceil(PANEL) } else { n.div_ceil(PANEL) };
        let panels = if is_gated { 2 * units } else { units };
        let [block, most_panels] = largest_block(isa, factors, k.div_ceil(factors.per_word()));
        let row_blocks = rows.div_ceil(block);
        let wanted = lanes.saturating_mul(4).div_ceil(row_blocks).min(units);
        let groups = panels.div_ceil(most_panels).max(wanted);
        Self { rows, n, k, factors, panels, block, row_blocks, groups, is_gated }
    }

    /// Panels that are written together.
    fn unit(&self) -> usize {
        if self.is_gated { 2 } else { 1 }
    }

    fn group_panels(&self) -> usize {
        (self.panels / self.unit()).div_ceil(self.groups) * self.unit()
    }

    /// Panels of a group.
    fn group(&self, index: usize) -> Range<usize> {
        let units = part(self.panels / self.unit(), self.groups, index);
        units.start * self.unit()..units.end * self.unit()
    }

    /// Outputs of a panel.
    fn outputs(&self, panel: usize) -> Range<usize> {
        let (first, end) = match (self.is_gated, panel % 2) {
            (false, _) => (panel * PANEL, self.n),
            (true, 0) => (panel / 2 * PANEL, self.n / 2),
            (true, _) => (self.n / 2 + panel / 2 * PANEL, self.n),
        };
        first..end.min(first + PANEL)
    }

    /// Words that a lane needs.
    fn lane_words(&self) -> Result<usize, Error> {
        product(&[self.block, ROW + self.group_panels() * PANEL])
    }

    /// Words of a panel.
    fn panel_words(&self) -> usize {
        let tail = if self.factors == Factors::Int8 { int8::TAIL } else { 0 };
        self.k.div_ceil(self.factors.per_word()) * PANEL + tail
    }

    /// Words that `lanes` need: their own, and the panels.
    pub(crate) fn scratch_len(&self, lanes: usize) -> Result<usize, Error> {
        let at_once = self.panels.min(self.groups_at_once() * self.group_panels());
        let panels = product(&[at_once, self.panel_words()])?;
        sum(&[product(&[lanes, self.lane_words()?])?, panels, LINE])
    }

    /// Groups whose panels there are at once.
    fn groups_at_once(&self) -> usize {
        (MAX_WORDS / self.panel_words() / self.group_panels()).clamp(1, self.groups)
    }
}

/// Panels in the making, one an item.
struct Panels<'a, C> {
    columns: &'a C,
    blocks: Blocks,
    first: usize,
    to: Shared,
}

impl<C: Columns> Kernel for Panels<'_, C> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, _lane: usize, item: usize) {
        let to = self.to.at(item * self.blocks.panel_words());
        let first = self.blocks.outputs(self.first + item).start;
        // SAFETY: the item's panel is its own; the scratch has room for all that there are at once.
        unsafe { self.columns.pack::<S>(first, to) }
    }
}

/// Part `index` of `n` parts of `0..len`, whose lengths differ by 1 at most.
pub(crate) fn part(len: usize, n: usize, index: usize) -> Range<usize> {
    let (least, longer) = (len / n, len % n);
    let start = index * least + index.min(longer);
    start..start + least + usize::from(index < longer)
}

/// A product as a kernel.
///
/// Safe to run once for each item on any lane that no other item has at the same time.
struct Gemm<'a, R> {
    rows: &'a R,
    blocks: Blocks,
    /// Of each lane, and of the panels.
    scratch: Shared,
    panels: Shared,
    /// The first of the panels that there are, and the groups that they are of.
    first: usize,
    groups: Range<usize>,
    lane_words: usize,
}

/// Multiplies `rows` with `columns`; `scratch` is as long as [`Blocks::scratch_len`] says for the pool's lanes.
pub(crate) fn run<R: Rows, C: Columns>(
    isa: Isa,
    pool: Pool<'_>,
    blocks: Blocks,
    rows: &R,
    columns: &C,
    scratch: &mut [f32],
) -> Result<(), Error> {
    let (scratch, lane_words) = (Shared::aligned(scratch), blocks.lane_words()?);
    let panels = scratch.shifted(pool.lanes * lane_words);
    for first in (0..blocks.groups).step_by(blocks.groups_at_once()) {
        let groups = first..blocks.groups.min(first + blocks.groups_at_once());
        let made = blocks.group(groups.start).start..blocks.group(groups.end - 1).end;
        let making = Panels { columns, blocks, first: made.start, to: panels };
        simd::for_each(isa, pool, made.len(), &making)?;
        let gemm =
            Gemm { rows, blocks, scratch, panels, first: made.start, groups: groups.clone(), lane_words };
        simd::for_each(isa, pool, blocks.row_blocks * groups.len(), &gemm)?;
    }
    Ok(())
}

impl<R: Rows> Kernel for Gemm<'_, R> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, lane: usize, item: usize) {
        let rows = part(self.blocks.rows, self.blocks.row_blocks, item % self.blocks.row_blocks);
        let panels = self.blocks.group(self.groups.start + item / self.blocks.row_blocks);
        let block = self.scratch.at(lane * self.lane_words);
        let sums = block.wrapping_add(self.blocks.block * ROW);
        // SAFETY: the lane's part of the scratch is a block and sums; the item's rows and panels are its own.
        unsafe {
            self.sum::<S>(rows.clone(), panels.clone(), block, sums);
            for (i, panel) in panels.clone().enumerate() {
                self.rows.finish::<S>(rows.clone(), sums.add(i * rows.len() * PANEL), self.panel(panel + 1));
            }
            for (i, panel) in panels.enumerate().step_by(self.blocks.unit()) {
                let sums = sums.add(i * rows.len() * PANEL);
                self.rows.write::<S>(rows.clone(), panel / self.blocks.unit(), sums);
            }
        }
    }
}

impl<R: Rows> Gemm<'_, R> {
    /// The words of a panel.
    #[inline(always)]
    fn panel(&self, panel: usize) -> *const f32 {
        self.panels.at((panel - self.first) * self.blocks.panel_words()).cast_const()
    }

    #[inline(always)]
    unsafe fn sum<S: Simd>(&self, rows: Range<usize>, panels: Range<usize>, block: *mut f32, sums: *mut f32) {
        let factors = self.blocks.factors;
        let k_block = ROW * factors.per_word();
        for start in (0..self.blocks.k).step_by(k_block) {
            let k = start..self.blocks.k.min(start + k_block);
            let steps = k.len().div_ceil(factors.per_word());
            // SAFETY: the caller's promise; a panel has 32 words a step.
            unsafe {
                self.rows.pack::<S>(rows.clone(), k, block);
                for (i, panel) in panels.clone().enumerate() {
                    let words = |panel| self.panel(panel).wrapping_add(start / factors.per_word() * PANEL);
                    let (b, c) = (words(panel), sums.add(i * rows.len() * PANEL));
                    let columns = self.blocks.outputs(panel).len();
                    let next = words(if panel + 1 < panels.end { panel + 1 } else { panels.start });
                    let block = Block { a: block, b, skip: 0, steps, c, columns, add: start > 0 };
                    multiply::<S>(factors, rows.len(), block, (next, steps * PANEL));
                }
            }
        }
    }
}

/// A block of rows, a panel, and their sums `[row][32]`.
#[derive(Clone, Copy)]
pub(crate) struct Block {
    pub(crate) a: *const f32,
    pub(crate) b: *const f32,
    /// Words of the panel to skip after every [`GROUP`](simd::GROUP) steps.
    pub(crate) skip: usize,
    pub(crate) steps: usize,
    pub(crate) c: *mut f32,
    /// Columns of the panel that are needed; the others' sums may be left as they are.
    pub(crate) columns: usize,
    /// Whether the sums are added to what is there.
    pub(crate) add: bool,
}

/// `rows` rows of a block times a panel, in tiles of about the same height. Meanwhile, the `next` words are brought
/// into L2, and so are the rows that follow.
///
/// # Safety
/// The processor has `S`; the block, panel and sums are of the sizes that `block` says.
#[inline(always)]
pub(crate) unsafe fn multiply<S: Simd>(
    factors: impl Into<Factors>,
    rows: usize,
    block: Block,
    next: (*const f32, usize),
) {
    let factors = factors.into();
    let most = match factors {
        Factors::Floats(Element::F32) => S::ROWS,
        Factors::Floats(Element::Bf16) | Factors::Int8 => S::NARROW_ROWS,
    };
    let n_tiles = rows.div_ceil(most);
    let Block { b, skip, steps, columns, add, .. } = block;
    let words = next.1.div_ceil(n_tiles * steps);
    for index in 0..n_tiles {
        let rows = part(rows, n_tiles, index);
        let (a, c) = (block.a.wrapping_add(rows.start * ROW), block.c.wrapping_add(rows.start * PANEL));
        let rows_ahead = Ahead { from: a.wrapping_add(rows.len() * ROW), words: LINE };
        let next = Ahead { from: next.0.wrapping_add(index * steps * words), words };
        let tile = Tile { a, b, skip, steps, c, stride: PANEL, columns, add, ahead: [rows_ahead, next] };
        // SAFETY: the caller's promise.
        unsafe {
            match factors {
                Factors::Floats(Element::F32) => S::tile(rows.len(), tile),
                Factors::Floats(Element::Bf16) => S::tile_bf16(rows.len(), tile),
                Factors::Int8 => S::tile_int8(rows.len(), tile),
            }
        }
    }
}

/// Stores a vector of neighbouring `k` into a block's row, `k` elements behind its start.
///
/// # Safety
/// The processor has `S`; the row has as many elements.
#[inline(always)]
pub(crate) unsafe fn store<S: Simd>(element: Element, row: *mut f32, k: usize, v: S::V) {
    // SAFETY: the caller's promise.
    unsafe {
        match element {
            Element::F32 => S::store(row.add(k), v),
            Element::Bf16 => S::store_bf16(row.cast::<u16>().add(k), v),
        }
    }
}
