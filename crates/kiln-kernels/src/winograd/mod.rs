//! Winograd's convolution of 3 x 3 kernels: tiles of the input and the weights are transformed, multiplied element by
//! element (a product of matrices for each of the `TILE`^2 elements, summed over channels), and transformed back.
//!
//! Tiles are numbered over (image, tile row, tile column). Three buffers, in words:
//!
//! | buffer | layout | size for F(4x4) and 96 tiles |
//! |---|---|---|
//! | transformed input | `[channel block][element][tile][128 words of channels]` | 1.7 MiB a channel block |
//! | transformed weights | `[16][element][8 words of channels][32]`, of one panel and channel block | 612 KiB |
//! | products | `[element][tile][32]`, of one panel | 432 KiB |
//!
//! The last two stay in L2 while the first passes by; weights on their way to be transformed, of some channels, are in
//! a fourth. A channel block is 128 f32 or 256 bf16 channels. Elements are a
//! cache line further apart than they are long, lest they fall into the same sets of the caches.
//!
//! Where there are many tiles, a lane takes blocks of them from the input to the output. Where there are few, all lanes
//! transform the input together, and then take panels.

mod input;
mod output;
mod transform;
mod weights;

use std::ops::Range;

use crate::error::{product, sum};
use crate::gemm::{self, Block, part};
use crate::memory::{LINE, Shared};
use crate::output::Output;
use crate::parallel::Pool;
use crate::simd::{self, GROUP, Kernel, ROW, Simd};
use crate::weights::PANEL;
use crate::{ConvShape, Element, Error, Isa, Weights};
pub(crate) use transform::{F2, F4, Transform};

/// Tiles of the largest block.
const BLOCK: usize = 96;
/// Blocks that each lane should have, to work alone on them.
const BLOCKS_PER_LANE: usize = 3;
/// Channels that are transformed as one item where lanes share the input.
const SHARED_CHANNELS: usize = 32;

/// Sizes of a run.
#[derive(Clone, Copy)]
pub(crate) struct Winograd {
    shape: ConvShape,
    products: Element,
    /// Rows and columns of the output.
    size: [usize; 2],
    /// Rows and columns of the input after upsampling.
    upsampled: [usize; 2],
    /// Rows and columns of tiles in an image.
    tiles: [usize; 2],
    n_tiles: usize,
    n_blocks: usize,
    /// Elements of a transformed tile.
    n_elements: usize,
    /// Words of a strip of the input, or of the outputs on their way out.
    strip: usize,
    /// Whether all lanes transform the input before they multiply.
    shared: bool,
}

impl Winograd {
    /// `shape` has been checked.
    pub(crate) fn new<T: Transform>(shape: ConvShape, products: Element, lanes: usize) -> Result<Self, Error> {
        let (size, upsampled) = (shape.output_size()?, shape.upsampled()?);
        let tiles = size.map(|len| len.div_ceil(T::M));
        let n_tiles = product(&[shape.batch, tiles[0], tiles[1]])?;
        let n_blocks = n_tiles.div_ceil(BLOCK);
        let shared = lanes > 1 && n_blocks < lanes.saturating_mul(BLOCKS_PER_LANE);
        // Blocks of the same number for each lane.
        let n_blocks = if shared { n_blocks } else { n_blocks.next_multiple_of(lanes).min(n_tiles) };
        let strip = input::strip_words::<T>();
        Ok(Self {
            shape,
            products,
            size,
            upsampled,
            tiles,
            n_tiles,
            n_blocks,
            n_elements: T::TILE * T::TILE,
            strip,
            shared,
        })
    }

    /// Channels of a channel block.
    fn channel_block(&self) -> usize {
        ROW * self.products.per_word()
    }

    /// Words from element to element of `n_tiles` transformed tiles.
    fn element_stride(n_tiles: usize) -> Result<usize, Error> {
        sum(&[product(&[n_tiles, ROW])?, LINE])
    }

    /// Words of `n_tiles` transformed tiles.
    fn input_words(&self, n_tiles: usize) -> Result<usize, Error> {
        let channel_blocks = self.shape.in_channels.div_ceil(self.channel_block());
        product(&[channel_blocks, self.n_elements, Self::element_stride(n_tiles)?])
    }

    /// Words of a lane: weights before and after their transform, products, a strip, and the input of a block unless it is
    /// shared.
    fn lane_words(&self) -> Result<usize, Error> {
        let block = self.n_tiles.div_ceil(self.n_blocks);
        let input = if self.shared { 0 } else { self.input_words(block)? };
        sum(&[input, self.weight_words(), self.product_words(block), self.strip, weights::KERNELS])
    }

    fn weight_words(&self) -> usize {
        self.n_elements * weights::STRIDE * ROW / GROUP
    }

    fn product_words(&self, n_tiles: usize) -> usize {
        self.n_elements * Self::product_stride(n_tiles)
    }

    /// Words from element to element of the products of `n_tiles`.
    fn product_stride(n_tiles: usize) -> usize {
        n_tiles * PANEL + LINE
    }

    /// Words that `lanes` need.
    pub(crate) fn scratch_len(&self, lanes: usize) -> Result<usize, Error> {
        let shared = if self.shared { self.input_words(self.n_tiles)? } else { 0 };
        sum(&[shared, product(&[lanes, self.lane_words()?])?, LINE])
    }

    /// Computes it; lengths have been checked for the pool's lanes.
    pub(crate) fn run<T: Transform>(
        &self,
        isa: Isa,
        pool: Pool<'_>,
        weights: Weights<'_>,
        (input, output, scratch): (&[f32], Output<'_>, &mut [f32]),
    ) -> Result<(), Error> {
        let scratch = Shared::aligned(scratch);
        let shared = if self.shared { self.input_words(self.n_tiles)? } else { 0 };
        let lane_words = self.lane_words()?;
        let run = Run { plan: *self, weights, input, output, scratch, shared, lane_words };
        if !self.shared {
            return simd::for_each(isa, pool, self.n_blocks, &Alone::<T>::of(&run));
        }
        let n_inputs = self.n_blocks * self.shape.in_channels.div_ceil(SHARED_CHANNELS);
        simd::for_each(isa, pool, n_inputs, &Inputs::<T>::of(&run))?;
        let n_products = self.n_blocks * self.shape.out_channels.div_ceil(PANEL);
        simd::for_each(isa, pool, n_products, &Panels::<T>::of(&run))
    }
}

/// A run, which lanes share.
struct Run<'a> {
    plan: Winograd,
    weights: Weights<'a>,
    input: &'a [f32],
    output: Output<'a>,
    scratch: Shared,
    /// Words of the shared input at the scratch's start.
    shared: usize,
    lane_words: usize,
}

/// Buffers of a lane.
#[derive(Clone, Copy)]
struct Buffers {
    kernels: *mut f32,
    weights: *mut f32,
    products: *mut f32,
    strip: *mut f32,
    /// Transformed tiles `first..first + n`.
    input: *mut f32,
    first: usize,
    n: usize,
}

impl Buffers {
    /// Words of tile `tile` in channel block and element 0.
    #[inline(always)]
    fn tile(&self, tile: usize) -> *mut f32 {
        self.input.wrapping_add((tile - self.first) * ROW)
    }

    /// Words from element to element of the input; as many were asked for with checks.
    #[inline(always)]
    fn element_stride(&self) -> usize {
        self.n * ROW + LINE
    }
}

impl Run<'_> {
    /// Tiles of a block.
    #[inline(always)]
    fn tiles(&self, block: usize) -> Range<usize> {
        part(self.plan.n_tiles, self.plan.n_blocks, block)
    }

    /// Buffers of `lane`, with the input of `tiles` if it is not shared.
    #[inline(always)]
    fn buffers(&self, lane: usize, tiles: &Range<usize>) -> Buffers {
        let weights = self.scratch.at(self.shared + lane * self.lane_words);
        let products = weights.wrapping_add(self.plan.weight_words());
        let block = self.plan.n_tiles.div_ceil(self.plan.n_blocks);
        let strip = products.wrapping_add(self.plan.product_words(block));
        let kernels = strip.wrapping_add(self.plan.strip);
        let (input, first, n) = match self.plan.shared {
            true => (self.scratch.at(0), 0, self.plan.n_tiles),
            false => (kernels.wrapping_add(weights::KERNELS), tiles.start, tiles.len()),
        };
        Buffers { kernels, weights, products, strip, input, first, n }
    }

    /// The products of `tiles` and a panel, summed over channels.
    ///
    /// # Safety
    /// The processor has `S`, the tiles are transformed, and the buffers are the lane's.
    #[inline(always)]
    unsafe fn multiply<S: Simd, T: Transform>(&self, buffers: Buffers, tiles: &Range<usize>, panel: usize) {
        let plan = &self.plan;
        let channel_block = plan.channel_block();
        for start in (0..plan.shape.in_channels).step_by(channel_block) {
            let channels = start..plan.shape.in_channels.min(start + channel_block);
            let steps = channels.len().div_ceil(plan.products.per_word());
            let input = start / channel_block * plan.n_elements * buffers.element_stride();
            let first = buffers.tile(tiles.start).wrapping_add(input);
            // Weights of the next channel block, or panel, an output for each element.
            let is_last = channels.end == plan.shape.in_channels;
            let next = if is_last { (panel + 1, 0) } else { (panel, channels.end) };
            // SAFETY: the caller's promise.
            unsafe {
                let to = (buffers.kernels, buffers.weights);
                weights::transform::<S, T>(self.weights, panel, channels.clone(), plan.products, to);
                let columns = PANEL.min(plan.shape.out_channels - panel * PANEL);
                for element in 0..plan.n_elements {
                    let a = first.add(element * buffers.element_stride());
                    let b = buffers.weights.add(element * weights::STRIDE);
                    let skip = (plan.n_elements - 1) * weights::STRIDE + LINE;
                    let c = buffers.products.add(element * Winograd::product_stride(tiles.len()));
                    let block = Block { a, b, skip, steps, c, columns, add: start > 0 };
                    let next = weights::ahead(self.weights, next, element % PANEL, channels.len());
                    gemm::multiply::<S>(plan.products, tiles.len(), block, next);
                }
            }
        }
    }

    /// Runs of neighbouring tiles in one tile row, of `most` at most.
    #[inline(always)]
    fn run_of(&self, tile: usize, end: usize, most: usize) -> Tiles {
        let [height, width] = self.plan.tiles;
        let (image, y, x) = (tile / (height * width), tile / width % height, tile % width);
        Tiles { tile, image, y, x, n: most.min(end - tile).min(width - x) }
    }
}

/// Neighbouring tiles of one row.
#[derive(Clone, Copy)]
struct Tiles {
    /// The first one's number, image, row and column.
    tile: usize,
    image: usize,
    y: usize,
    x: usize,
    n: usize,
}

/// The kernels, each over a run.
macro_rules! kernel {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        struct $name<'a, T> {
            run: &'a Run<'a>,
            transform: std::marker::PhantomData<fn() -> T>,
        }

        impl<'a, T> $name<'a, T> {
            fn of(run: &'a Run<'a>) -> Self {
                Self { run, transform: std::marker::PhantomData }
            }
        }
    };
}

kernel! {
    /// A block of tiles, from the input to the output.
    Alone
}
kernel! {
    /// A block of tiles and some channels, transformed.
    Inputs
}
kernel! {
    /// A block of tiles and a panel, multiplied and transformed back.
    Panels
}

impl<T: Transform> Kernel for Alone<'_, T> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, lane: usize, block: usize) {
        let run = self.run;
        let tiles = run.tiles(block);
        let buffers = run.buffers(lane, &tiles);
        // SAFETY: the lane's buffers and the block's tiles are this call's alone.
        unsafe {
            run.transform_input::<S, T>(buffers, &tiles, 0..run.plan.shape.in_channels);
            for panel in 0..run.plan.shape.out_channels.div_ceil(PANEL) {
                run.multiply::<S, T>(buffers, &tiles, panel);
                run.transform_output::<S, T>(buffers, &tiles, panel);
            }
        }
    }
}

impl<T: Transform> Kernel for Inputs<'_, T> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, lane: usize, item: usize) {
        let run = self.run;
        let tiles = run.tiles(item % run.plan.n_blocks);
        let start = item / run.plan.n_blocks * SHARED_CHANNELS;
        let channels = start..run.plan.shape.in_channels.min(start + SHARED_CHANNELS);
        // SAFETY: the lane's strip, and the item's tiles and channels, are this call's alone.
        unsafe { run.transform_input::<S, T>(run.buffers(lane, &tiles), &tiles, channels) }
    }
}

impl<T: Transform> Kernel for Panels<'_, T> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, lane: usize, item: usize) {
        let run = self.run;
        let (tiles, panel) = (run.tiles(item % run.plan.n_blocks), item / run.plan.n_blocks);
        let buffers = run.buffers(lane, &tiles);
        // SAFETY: all tiles are transformed; the lane's buffers, the tiles and the panel are this call's alone.
        unsafe {
            run.multiply::<S, T>(buffers, &tiles, panel);
            run.transform_output::<S, T>(buffers, &tiles, panel);
        }
    }
}
