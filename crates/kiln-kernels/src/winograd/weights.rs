//! Weights: a panel's 3 x 3 kernels of a channel block, transformed to `[step / 8][element][step % 8][32]`.

use std::ops::Range;

use super::transform::{MAX_TILE, Transform};
use crate::memory::LINE;
use crate::packed::PANEL;
use crate::simd::{GROUP, Simd};
use crate::{Element, PackedWeights};

const TAPS: usize = 9;
/// Words from element to element of a group of steps. Groups, so that a channel's elements are on few pages.
pub(super) const STRIDE: usize = GROUP * PANEL + LINE;

/// The words of a panel from `channel` on; of the panel behind it, if that is one past its last.
#[inline(always)]
pub(super) fn words(weights: PackedWeights<'_>, panel: usize, channel: usize) -> *const f32 {
    weights.panel(panel).as_ptr().cast::<f32>().wrapping_add(n_words(weights, channel))
}

/// Words of `channels` channels of a panel.
#[inline(always)]
pub(super) fn n_words(weights: PackedWeights<'_>, channels: usize) -> usize {
    channels * TAPS / weights.element().per_word() * PANEL
}

type Square<V> = [[V; MAX_TILE]; MAX_TILE];

/// Transforms `channels` of panel `panel` for products of `products`.
///
/// # Safety
/// The processor has `S`; `to` has room for 128 steps of each element, written by nobody else.
#[inline(always)]
pub(super) unsafe fn transform<S: Simd, T: Transform>(
    weights: PackedWeights<'_>,
    panel: usize,
    channels: Range<usize>,
    products: Element,
    to: *mut f32,
) {
    let words = weights.panel(panel).as_ptr().cast::<f32>();
    for (step, channel) in channels.clone().step_by(products.per_word()).enumerate() {
        for column in (0..PANEL).step_by(S::LANES) {
            // SAFETY: the caller's promise; a panel has 9 weights for each channel.
            unsafe {
                let words = words.wrapping_add(column);
                let group = step / GROUP * T::TILE * T::TILE * STRIDE;
                let to = to.add(group + step % GROUP * PANEL + column);
                let first = square::<S, T>(words, weights.element(), channel);
                match products {
                    Element::F32 => store::<S, T>(to, &first),
                    Element::Bf16 if channel + 1 < channels.end => {
                        store_pairs::<S, T>(to, &first, &square::<S, T>(words, weights.element(), channel + 1));
                    }
                    Element::Bf16 => store_pairs::<S, T>(to, &first, &[[S::splat(0.0); MAX_TILE]; MAX_TILE]),
                }
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
unsafe fn square<S: Simd, T: Transform>(words: *const f32, element: Element, channel: usize) -> Square<S::V> {
    // SAFETY: the caller's promise.
    unsafe {
        let mut rows = [[S::splat(0.0); 3]; MAX_TILE];
        for x in 0..3 {
            let mut column = [S::splat(0.0); 3];
            for (y, v) in column.iter_mut().enumerate() {
                *v = load::<S>(words, element, channel * TAPS + y * 3 + x);
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

/// The weights of one `k` in f32.
#[inline(always)]
unsafe fn load<S: Simd>(words: *const f32, element: Element, k: usize) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        match element {
            Element::F32 => S::load(words.add(k * PANEL)),
            Element::Bf16 => {
                let pair = S::load(words.add(k / 2 * PANEL));
                if k.is_multiple_of(2) { S::low_half(pair) } else { S::high_half(pair) }
            }
        }
    }
}
