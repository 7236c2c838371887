//! Attention of several heads, whose scores never leave the caches: a block of queries meets the keys chunk by chunk, with
//! a running maximum and sum of each row (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018; Dao et
//! al., "FlashAttention", 2022).

use std::ops::Range;

use crate::error::{check_length, product, sum};
use crate::gemm::{self, Block, part};
use crate::memory::{LINE, Shared};
use crate::parallel::Pool;
use crate::simd::{self, Kernel, MAX_LANES, MIN_LANES, ROW, Simd, exp2, exp2_for_bf16};
use crate::weights::PANEL;
use crate::{Element, Error, Isa, Parallel, Values, Weights};

/// `output = softmax(scale * query * transposed key) * value` of each head, the softmax over keys.
///
/// Query and output are `[batch][query][head][element]`, key and value `[batch][key][head][element]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Images.
    pub batch: usize,
    /// Queries of an image.
    pub queries: usize,
    /// Keys of an image.
    pub keys: usize,
    /// Heads.
    pub heads: usize,
    /// Elements of a head.
    pub head_size: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// Whether query `i` meets keys up to `i` alone; then there are as many keys as queries.
    pub is_causal: bool,
    /// What factors are rounded to: queries, keys, values, and the exponentials of scores.
    pub products: Element,
    /// Instructions to use.
    pub isa: Isa,
}

/// What attention reads and writes.
#[derive(Debug)]
pub struct AttentionTensors<'a> {
    /// Queries.
    pub query: &'a [f32],
    /// Keys.
    pub key: &'a [f32],
    /// Values.
    pub value: &'a [f32],
    /// The output, overwritten.
    pub output: &'a mut [f32],
    /// Room for intermediate results, of at least [`Attention::scratch_len`].
    pub scratch: &'a mut [f32],
}

impl Attention {
    /// Elements of the scratch that a pool of `lanes` needs.
    pub fn scratch_len(&self, lanes: usize) -> Result<usize, Error> {
        self.check()?;
        sum(&[product(&[lanes.max(1), Layout::new(self)?.len])?, LINE])
    }

    /// Computes it.
    pub fn run(&self, pool: &dyn Parallel, tensors: AttentionTensors<'_>) -> Result<(), Error> {
        let pool = Pool::new(pool);
        let AttentionTensors { query, key, value, output, scratch } = tensors;
        let needed = self.scratch_len(pool.lanes)?;
        let of_queries = product(&[self.batch, self.queries, self.width()?])?;
        let of_keys = product(&[self.batch, self.keys, self.width()?])?;
        check_length("the query", of_queries, query.len())?;
        check_length("the key", of_keys, key.len())?;
        check_length("the value", of_keys, value.len())?;
        check_length("the output", of_queries, output.len())?;
        if scratch.len() < needed {
            return Err(Error::Length { what: "the scratch", expected: needed, found: scratch.len() });
        }
        let heads = self.batch * self.heads;
        let parts = (2 * pool.lanes).div_ceil(heads).min(self.queries.div_ceil(self.block()));
        let layout = Layout::new(self)?;
        let (output, scratch) = (Shared::new(output), Shared::aligned(scratch));
        let heads_of = Heads { of: *self, layout, query, key, value, output, scratch, parts };
        simd::for_each(self.isa, pool, heads * parts, &heads_of)
    }

    fn check(&self) -> Result<(), Error> {
        let sizes = [self.batch, self.queries, self.keys, self.heads, self.head_size];
        if sizes.contains(&0) {
            return Err(Error::Shape(format!("attention of the sizes {self:?} is empty")));
        }
        if self.is_causal && self.queries != self.keys {
            let Self { queries, keys, .. } = self;
            return Err(Error::Shape(format!("causal attention of {queries} queries and {keys} keys")));
        }
        Ok(())
    }

    /// Elements of all heads of a query or key.
    fn width(&self) -> Result<usize, Error> {
        product(&[self.heads, self.head_size])
    }

    /// Queries of the largest block.
    fn block(&self) -> usize {
        gemm::most_rows(self.isa, self.products.into())
    }

    /// Words of a product's `k` elements or keys.
    fn words(&self, k: usize) -> usize {
        gemm::whole_words(self.isa, self.products.into(), k)
    }

    /// Keys of a chunk: as many exponentials as a block's row holds.
    fn chunk(&self) -> usize {
        ROW * self.products.per_word()
    }
}

/// Where in a lane's scratch things lie, in words.
#[derive(Clone, Copy)]
struct Layout {
    /// Panels of 32 keys, a step an element, or a pair of them.
    keys: usize,
    /// Panels of 32 elements, a step a value, or a pair of them.
    values: usize,
    /// Queries, of which each block of [`ROW`] words is a block of its own.
    queries: usize,
    /// `[panel of keys][row][32]`.
    scores: usize,
    /// Exponentials of scores, a block.
    exponentials: usize,
    /// `[panel of elements][row][32]`.
    sums: usize,
    /// Of each row.
    maxima: usize,
    /// Factors by which a chunk shrinks what rows have summed up before.
    shrinking: usize,
    /// Sums of exponentials, a vector a row.
    weights: usize,
    len: usize,
}

impl Layout {
    fn new(of: &Attention) -> Result<Layout, Error> {
        let rows = of.block();
        let panels_of_keys = of.keys.div_ceil(PANEL);
        let panels_of_elements = of.head_size.div_ceil(PANEL);
        let mut len = 0;
        let mut place = |factors: &[usize]| {
            let at = len;
            len = sum(&[len, product(factors)?])?;
            Ok::<usize, Error>(at)
        };
        let words = of.words(of.head_size);
        let keys = place(&[panels_of_keys, words, PANEL])?;
        let values = place(&[panels_of_elements, of.words(of.keys), PANEL])?;
        let queries = place(&[words.div_ceil(ROW), rows, ROW])?;
        let scores = place(&[of.chunk(), rows])?;
        let exponentials = place(&[rows, ROW])?;
        let sums = place(&[panels_of_elements, rows, PANEL])?;
        let maxima = place(&[rows])?;
        let shrinking = place(&[rows])?;
        let weights = place(&[rows, MAX_LANES])?;
        Ok(Layout { keys, values, queries, scores, exponentials, sums, maxima, shrinking, weights, len })
    }
}

/// Attention as a kernel: an item is a part of the queries of a head of an image.
///
/// Safe to run once for each item on any lane that no other item has at the same time.
struct Heads<'a> {
    of: Attention,
    layout: Layout,
    query: &'a [f32],
    key: &'a [f32],
    value: &'a [f32],
    output: Shared,
    /// Of each lane.
    scratch: Shared,
    parts: usize,
}

impl Kernel for Heads<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, lane: usize, item: usize) {
        let Attention { queries, heads, head_size, .. } = self.of;
        let (head, queries) = (item / self.parts, part(queries, self.parts, item % self.parts));
        let (image, first) = (head / heads, head % heads * head_size);
        let head = Head { heads: self, image, first, scratch: self.scratch.at(lane * self.layout.len) };
        // SAFETY: the lane's scratch is as long as the layout says; the item's queries are its own.
        unsafe {
            head.pack_keys::<S>();
            head.pack_values::<S>();
            let n_blocks = queries.len().div_ceil(self.of.block());
            for block in (0..n_blocks).map(|index| part(queries.len(), n_blocks, index)) {
                head.attend::<S>(queries.start + block.start..queries.start + block.end);
            }
        }
    }
}

/// One head of an image.
///
/// Its functions need a processor that has `S`, and the lane's scratch to itself.
struct Head<'a> {
    heads: &'a Heads<'a>,
    image: usize,
    /// Its first element of a query's or key's.
    first: usize,
    scratch: *mut f32,
}

impl Head<'_> {
    #[inline(always)]
    fn at(&self, words: usize) -> *mut f32 {
        self.scratch.wrapping_add(words)
    }

    /// Index of the first element of a query or key, of which an image has `n`.
    #[inline(always)]
    fn index(&self, n: usize, row: usize) -> usize {
        (self.image * n + row) * self.width() + self.first
    }

    #[inline(always)]
    fn width(&self) -> usize {
        self.heads.of.heads * self.heads.of.head_size
    }

    /// Words of a panel of keys.
    #[inline(always)]
    fn key_words(&self) -> usize {
        self.heads.of.words(self.heads.of.head_size) * PANEL
    }

    #[inline(always)]
    unsafe fn pack_keys<S: Simd>(&self) {
        let Attention { keys, head_size, products, .. } = self.heads.of;
        let of_head = &self.heads.key[self.index(keys, 0)..];
        let rows = Weights::strided(Values::F32(of_head), [keys, head_size], self.width());
        for panel in 0..keys.div_ceil(PANEL) {
            let to = self.at(self.heads.layout.keys + panel * self.key_words());
            // SAFETY: the caller's promise; there is room for each panel.
            unsafe {
                rows.pack::<S>(panel * PANEL, 0..head_size, products, to);
                let rest = head_size.div_ceil(products.per_word()) * PANEL..self.key_words();
                rest.step_by(S::LANES).for_each(|at| S::store(to.add(at), S::splat(0.0)));
            }
        }
    }

    /// Words of a panel of values.
    #[inline(always)]
    fn value_words(&self) -> usize {
        self.heads.of.words(self.heads.of.keys) * PANEL
    }

    #[inline(always)]
    unsafe fn pack_values<S: Simd>(&self) {
        let Attention { keys, head_size, products, .. } = self.heads.of;
        for element in (0..head_size).step_by(S::LANES) {
            let (panel, column) = (element / PANEL, element % PANEL);
            let to = self.at(self.heads.layout.values + panel * self.value_words() + column);
            let n = S::LANES.min(head_size - element);
            // SAFETY: no more than a key's elements are read; there is room for each panel.
            unsafe {
                let load = |key: usize| match key < keys {
                    true => S::load_n(self.heads.value.as_ptr().add(self.index(keys, key) + element), n),
                    false => S::splat(0.0),
                };
                for step in 0..self.heads.of.words(keys) {
                    let v = match products {
                        Element::F32 => load(step),
                        Element::Bf16 => S::pair(load(2 * step), load(2 * step + 1)),
                    };
                    S::store(to.add(step * PANEL), v);
                }
            }
        }
    }

    /// Attends a block of queries to all their keys.
    #[inline(always)]
    unsafe fn attend<S: Simd>(&self, queries: Range<usize>) {
        let Attention { keys, is_causal, .. } = self.heads.of;
        let end = if is_causal { queries.end } else { keys };
        // SAFETY: the caller's promise.
        unsafe {
            self.pack_queries::<S>(queries.clone());
            for start in (0..end).step_by(self.heads.of.chunk()) {
                let chunk = start..end.min(start + self.heads.of.chunk());
                self.score::<S>(queries.len(), chunk.clone());
                self.mask(queries.clone(), chunk.clone());
                self.exponentiate::<S>(queries.len(), chunk.clone());
                self.sum::<S>(queries.len(), chunk);
            }
            self.write::<S>(queries);
        }
    }

    /// Queries as blocks, scaled so that scores are exponents of 2.
    #[inline(always)]
    unsafe fn pack_queries<S: Simd>(&self, queries: Range<usize>) {
        let Attention { queries: n, head_size, scale, products, .. } = self.heads.of;
        let k_block = ROW * products.per_word();
        let (n_rows, elements) = (queries.len(), self.heads.of.words(head_size) * products.per_word());
        for (i, query) in queries.enumerate() {
            let from = self.heads.query.as_ptr().wrapping_add(self.index(n, query));
            for element in (0..elements).step_by(S::LANES) {
                let to = self.at(self.heads.layout.queries + (element / k_block * n_rows + i) * ROW);
                // SAFETY: no more than the query's elements are read; a block's row holds what is stored.
                unsafe {
                    let n = head_size.saturating_sub(element).min(S::LANES);
                    let v = S::load_n(from.wrapping_add(element), n);
                    let scaled = S::mul(v, S::splat(scale * std::f32::consts::LOG2_E));
                    gemm::store::<S>(products, to, element % k_block, scaled);
                }
            }
        }
    }

    /// Scores of so many rows and a chunk of keys.
    #[inline(always)]
    unsafe fn score<S: Simd>(&self, rows: usize, chunk: Range<usize>) {
        let Attention { head_size, products, .. } = self.heads.of;
        let words = self.heads.of.words(head_size);
        let panels = chunk.start / PANEL..chunk.end.div_ceil(PANEL);
        for (i, panel) in panels.enumerate() {
            let b = self.at(self.heads.layout.keys + panel * self.key_words()).cast_const();
            let c = self.at(self.heads.layout.scores + i * rows * PANEL);
            for step in (0..words).step_by(ROW) {
                let a = self.at(self.heads.layout.queries + step * rows);
                let (b, steps) = (b.wrapping_add(step * PANEL), ROW.min(words - step));
                let columns = PANEL.min(chunk.end - panel * PANEL);
                let block = Block { a, b, skip: 0, steps, c, columns, add: step > 0 };
                // SAFETY: the caller's promise.
                unsafe {
                    gemm::multiply::<S>(products, rows, block, (b.wrapping_add(steps * PANEL), steps * PANEL))
                }
            }
        }
    }

    /// Takes keys away that a row does not meet: those behind the last one, and under causal attention those behind it.
    #[inline(always)]
    unsafe fn mask(&self, queries: Range<usize>, chunk: Range<usize>) {
        let (rows, end) = (queries.len(), chunk.len().next_multiple_of(PANEL));
        for (i, query) in queries.enumerate() {
            let met = match self.heads.of.is_causal {
                true => (query + 1).saturating_sub(chunk.start).min(chunk.len()),
                false => chunk.len(),
            };
            for key in met..end {
                let at = (key / PANEL * rows + i) * PANEL + key % PANEL;
                // SAFETY: the chunk's panels are 32 keys wide.
                unsafe { *self.at(self.heads.layout.scores + at) = f32::NEG_INFINITY }
            }
        }
    }

    /// Raises 2 to the scores, beside the largest that each row has met.
    #[inline(always)]
    unsafe fn exponentiate<S: Simd>(&self, rows: usize, chunk: Range<usize>) {
        let layout = &self.heads.layout;
        let scores = self.at(layout.scores).cast_const();
        let panels = chunk.len().div_ceil(PANEL);
        let is_first = chunk.start == 0;
        for first in (0..rows).step_by(S::LANES) {
            let n = S::LANES.min(rows - first);
            // SAFETY: the caller's promise; rows of the largest block are a multiple of every vector's.
            unsafe {
                self.shrink::<S>(first..first + n, rows, panels, is_first);
                for row in first..first + n {
                    let maximum = S::splat(*self.at(layout.maxima + row));
                    let to = self.at(layout.exponentials + row * ROW);
                    let weights = self.at(layout.weights + row * MAX_LANES);
                    let mut sum = match is_first {
                        true => S::splat(0.0),
                        false => S::mul(S::load(weights), S::splat(*self.at(layout.shrinking + row))),
                    };
                    for panel in 0..panels {
                        let from = scores.add((panel * rows + row) * PANEL);
                        for column in (0..PANEL).step_by(S::LANES) {
                            let exponent = S::sub(S::load(from.add(column)), maximum);
                            let v = match self.heads.of.products {
                                Element::F32 => exp2::<S>(exponent),
                                Element::Bf16 => exp2_for_bf16::<S>(exponent),
                            };
                            sum = S::add(sum, v);
                            gemm::store::<S>(self.heads.of.products, to, panel * PANEL + column, v);
                        }
                    }
                    S::store(weights, sum);
                }
            }
        }
    }

    /// Finds the maxima of a vector of rows, and the factors that sums of theirs shrink by.
    #[inline(always)]
    unsafe fn shrink<S: Simd>(&self, of: Range<usize>, rows: usize, panels: usize, is_first: bool) {
        let layout = &self.heads.layout;
        let scores = self.at(layout.scores).cast_const();
        // SAFETY: the caller's promise.
        unsafe {
            let mut square = [S::splat(f32::NEG_INFINITY); MAX_LANES];
            for (i, row) in of.clone().enumerate() {
                // As many as a panel has vectors, so that they do not wait for each other.
                let mut maxima = [S::splat(f32::NEG_INFINITY); PANEL / MIN_LANES];
                for panel in 0..panels {
                    let from = scores.add((panel * rows + row) * PANEL);
                    for (j, maximum) in maxima[..PANEL / S::LANES].iter_mut().enumerate() {
                        *maximum = S::max(*maximum, S::load(from.add(j * S::LANES)));
                    }
                }
                square[i] = maxima[0];
                for maximum in &maxima[1..PANEL / S::LANES] {
                    square[i] = S::max(square[i], *maximum);
                }
            }
            S::transpose(&mut square);
            let mut maxima = square[0];
            for v in &square[1..S::LANES] {
                maxima = S::max(maxima, *v);
            }
            if !is_first {
                let before = S::load(self.at(layout.maxima + of.start));
                maxima = S::max(before, maxima);
                S::store(self.at(layout.shrinking + of.start), exp2::<S>(S::sub(before, maxima)));
            }
            S::store(self.at(layout.maxima + of.start), maxima);
        }
    }

    /// Adds the chunk's values by their weights.
    #[inline(always)]
    unsafe fn sum<S: Simd>(&self, rows: usize, chunk: Range<usize>) {
        let Attention { head_size, products, .. } = self.heads.of;
        let layout = &self.heads.layout;
        let steps = self.heads.of.words(chunk.len());
        for panel in 0..head_size.div_ceil(PANEL) {
            let c = self.at(layout.sums + panel * rows * PANEL);
            let step = chunk.start / products.per_word();
            let b = self.at(layout.values + panel * self.value_words() + step * PANEL).cast_const();
            let columns = PANEL.min(head_size - panel * PANEL);
            // SAFETY: the caller's promise.
            unsafe {
                if chunk.start > 0 {
                    for row in 0..rows {
                        let factor = S::splat(*self.at(layout.shrinking + row));
                        for column in (0..columns).step_by(S::LANES) {
                            let at = c.add(row * PANEL + column);
                            S::store(at, S::mul(S::load(at), factor));
                        }
                    }
                }
                let a = self.at(layout.exponentials).cast_const();
                let block = Block { a, b, skip: 0, steps, c, columns, add: chunk.start > 0 };
                gemm::multiply::<S>(products, rows, block, (b.wrapping_add(steps * PANEL), steps * PANEL));
            }
        }
    }

    /// Writes the sums of queries, divided by their weights' sum.
    #[inline(always)]
    unsafe fn write<S: Simd>(&self, queries: Range<usize>) {
        let Attention { queries: n, head_size, .. } = self.heads.of;
        let layout = &self.heads.layout;
        let rows = queries.len();
        for (row, query) in queries.enumerate() {
            let weights = self.at(layout.weights + row * MAX_LANES);
            // SAFETY: the caller's promise; no element behind the head's last is written.
            unsafe {
                let weight: f32 = (0..S::LANES).map(|lane| *weights.add(lane)).sum();
                let factor = S::splat(1.0 / weight);
                for element in (0..head_size).step_by(S::LANES) {
                    let (panel, column) = (element / PANEL, element % PANEL);
                    let v = S::load(self.at(layout.sums + (panel * rows + row) * PANEL + column));
                    let to = self.heads.output.at(self.index(n, query) + element);
                    S::store_n(to, S::mul(v, factor), S::LANES.min(head_size - element));
                }
            }
        }
    }
}
