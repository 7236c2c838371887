//! Weights: a panel's 3 x 3 kernels of a channel block, transformed to `[step / 8][element][step % 8][32]`.

use std::ops::Range;

use super::transform::{MAX_TILE, Transform};
use crate::memory::LINE;
use crate::simd::{GROUP, Simd};
use crate::weights::PANEL;
use crate::{Element, Weights};

const TAPS: usize = 9;
/// Words from element to element of a group of steps. Groups, so that a channel's elements are on few pages.
pub(super) const STRIDE: usize = GROUP * PANEL + LINE;

/// Channels that are brought into a panel's layout at a time, which stay in L1.
const CHANNELS: usize = 16;
/// Words of as many kernels of a panel's outputs.
pub(super) const KERNELS: usize = CHANNELS * TAPS * PANEL;

/// Where the weights of an output begin, of the next panel and channel to be multiplied, and how many words follow.
#[inline(always)]
pub(super) fn ahead(
    weights: Weights<'_>,
    (panel, channel): (usize, usize),
    output: usize,
    n_channels: usize,
) -> (*const f32, usize) {
    weights.ahead(panel * PANEL + output, channel * TAPS, n_channels * TAPS)
}

type Square<V> = [[V; MAX_TILE]; MAX_TILE];

/// Transforms `channels` of panel `panel` for products of `products`, by way of `kernels`.
///
/// # Safety
/// The processor has `S`; `kernels` has room for [`KERNELS`] words and `to` for 128 steps of each element, which nobody
/// else writes.
#[inline(always)]
pub(super) unsafe fn transform<S: Simd, T: Transform>(
    weights: Weights<'_>,
    panel: usize,
    channels: Range<usize>,
    products: Element,
    (kernels, to): (*mut f32, *mut f32),
) {
    for start in channels.clone().step_by(CHANNELS) {
        let some = start..channels.end.min(start + CHANNELS);
        let first_step = (start - channels.start) / products.per_word();
        // SAFETY: the caller's promise; a panel has 9 weights for each channel.
        unsafe {
            weights.pack::<S>(panel * PANEL, some.start * TAPS..some.end * TAPS, Element::F32, kernels);
            for (step, channel) in (0..some.len()).step_by(products.per_word()).enumerate() {
                let step = first_step + step;
                let group = step / GROUP * T::TILE * T::TILE * STRIDE;
                let to = to.wrapping_add(group + step % GROUP * PANEL);
                transform_step::<S, T>(kernels, channel..some.len(), products, to);
            }
        }
    }
}

/// Transforms the first of `channels`, or the first two of them for bf16.
#[inline(always)]
unsafe fn transform_step<S: Simd, T: Transform>(
    kernels: *const f32,
    channels: Range<usize>,
    products: Element,
    to: *mut f32,
) {
    for column in (0..PANEL).step_by(S::LANES) {
        let (kernels, to) = (kernels.wrapping_add(column), to.wrapping_add(column));
        // SAFETY: the caller's promise.
        unsafe {
            let first = square::<S, T>(kernels, channels.start);
            match products {
                Element::F32 => store::<S, T>(to, &first),
                Element::Bf16 if channels.len() > 1 => {
                    store_pairs::<S, T>(to, &first, &square::<S, T>(kernels, channels.start + 1));
                }
                Element::Bf16 => store_pairs::<S, T>(to, &first, &[[S::splat(0.0); MAX_TILE]; MAX_TILE]),
            }
        }
    }
}

#[inline(always)]
unsafe fn store<S: Simd, T: Transform>(to: *mut f32, square: &Square<S::V>) {
    for i in 0..T::TILE {
        for j in 0..T::TILE {
            // SAFETY: the caller's promise.
            unsafe { S::store(to.add((i * T::TILE + j) * STRIDE), square[i][j]) }
        }
    }
}

#[inline(always)]
unsafe fn store_pairs<S: Simd, T: Transform>(to: *mut f32, first: &Square<S::V>, second: &Square<S::V>) {
    for i in 0..T::TILE {
        for j in 0..T::TILE {
            // SAFETY: the caller's promise.
            unsafe { S::store(to.add((i * T::TILE + j) * STRIDE), S::pair(first[i][j], second[i][j])) }
        }
    }
}

/// The transformed kernels of one input channel and a vector of output channels.
#[inline(always)]
unsafe fn square<S: Simd, T: Transform>(kernels: *const f32, channel: usize) -> Square<S::V> {
    // SAFETY: the caller's promise.
    unsafe {
        let mut rows = [[S::splat(0.0); 3]; MAX_TILE];
        for x in 0..3 {
            let mut column = [S::splat(0.0); 3];
            for (y, v) in column.iter_mut().enumerate() {
                *v = S::load(kernels.add((channel * TAPS + y * 3 + x) * PANEL));
            }
            let column = T::weight::<S>(column);
            for i in 0..T::TILE {
                rows[i][x] = column[i];
            }
        }
        let mut square = [[S::splat(0.0); MAX_TILE]; MAX_TILE];
        for i in 0..T::TILE {
            square[i] = T::weight::<S>(rows[i]);
        }
        square
    }
}
