//! The autoencoder in overlapping tiles (diffusers `models/autoencoders/autoencoder_kl.py`, `tiled_decode` and
//! `tiled_encode`).

use std::ops::Range;

use ndarray::{ArrayD, ArrayView1, Axis, Slice};

use super::facts::Facts;
use crate::VaeTiling;
use crate::error::{Error, refuse};

/// How a plane is read and written in tiles: sides in the units of what is read and of what is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tiles {
    /// Side of a tile of what is read.
    tile: usize,
    /// From the beginning of a tile to that of the next one, in what is read.
    stride: usize,
    /// The same, in what is made.
    made_stride: usize,
    /// Rows and columns over which neighbours are blended, in what is made.
    blend: usize,
}

impl Facts {
    /// Tiles of latents `[_, _, height, width]` to decode; none where they fit into one tile.
    pub(super) fn decoding_tiles(
        &self,
        tiling: Option<VaeTiling>,
        latents: &[usize],
    ) -> Result<Option<Tiles>, Error> {
        let factor = self.latents.scale_factor as usize;
        self.tiles(tiling, latents, |pixels| pixels / factor, |read| read * factor)
    }

    /// Tiles of a picture `[_, _, height, width]` to encode; none where it fits into one tile.
    pub(super) fn encoding_tiles(
        &self,
        tiling: Option<VaeTiling>,
        picture: &[usize],
    ) -> Result<Option<Tiles>, Error> {
        let factor = self.latents.scale_factor as usize;
        self.tiles(tiling, picture, |pixels| pixels, |read| read / factor)
    }

    fn tiles(
        &self,
        tiling: Option<VaeTiling>,
        shape: &[usize],
        read: impl Fn(usize) -> usize,
        made: impl Fn(usize) -> usize,
    ) -> Result<Option<Tiles>, Error> {
        let Some(VaeTiling { tile, overlap }) = tiling else { return Ok(None) };
        let (pixels, factor) = (tile.unwrap_or(self.size.longest()), self.latents.scale_factor);
        if !pixels.is_multiple_of(factor) {
            return refuse("VAE tile", format!("{pixels} is not a multiple of {factor}"));
        }
        let tile = read(pixels as usize);
        let part = |side: usize, share: f64| (side as f64 * share) as usize;
        let blend = part(made(tile), overlap);
        let tiles = Tiles { tile, stride: part(tile, 1.0 - overlap), made_stride: made(tile) - blend, blend };
        if tiles.stride == 0 || made(tiles.stride) != tiles.made_stride {
            return refuse(
                "VAE tile",
                format!("{pixels} with an overlap of {overlap} does not lie on whole latents"),
            );
        }
        Ok((shape[2] > tile || shape[3] > tile).then_some(tiles))
    }
}

impl Tiles {
    /// Area of the largest tile of what is read, `[_, _, height, width]`.
    pub(super) fn largest_area(&self, read: &[usize]) -> f64 {
        (self.tile.min(read[2]) * self.tile.min(read[3])) as f64
    }

    /// Area of all tiles.
    pub(super) fn total_area(&self, read: &[usize]) -> f64 {
        (self.total_length(read[2]) * self.total_length(read[3])) as f64
    }

    /// Area of the tiles that wait for those which they are blended with: a row of them, and the next one.
    pub(super) fn waiting_area(&self, read: &[usize]) -> f64 {
        (2 * self.tile.min(read[2]) * self.total_length(read[3])) as f64
    }

    fn total_length(&self, side: usize) -> usize {
        (0..side).step_by(self.stride).map(|start| self.tile.min(side - start)).sum()
    }

    /// Runs `work` on every tile of `read` `[B, C, H, W]` and joins what it makes, each `[B, C', h, w]`, blending the seams.
    pub(super) fn map(
        &self,
        read: &ArrayD<f32>,
        mut work: impl FnMut(&ArrayD<f32>) -> Result<Vec<ArrayD<f32>>, Error>,
    ) -> Result<Vec<ArrayD<f32>>, Error> {
        let [height, width] = [read.shape()[2], read.shape()[3]];
        let mut joined: Vec<ArrayD<f32>> = Vec::new();
        let mut above: Vec<Vec<ArrayD<f32>>> = Vec::new();
        for (row, top) in (0..height).step_by(self.stride).enumerate() {
            let mut current: Vec<Vec<ArrayD<f32>>> = Vec::new();
            for (column, left) in (0..width).step_by(self.stride).enumerate() {
                let rows = read.slice_axis(Axis(2), Slice::from(top..(top + self.tile).min(height)));
                let tile =
                    rows.slice_axis(Axis(3), Slice::from(left..(left + self.tile).min(width))).to_owned();
                let mut made = work(&tile)?;
                for (i, made) in made.iter_mut().enumerate() {
                    if let Some(above) = above.get(column) {
                        blend(&above[i], made, Axis(2), self.blend);
                    }
                    if let Some(left) = current.last() {
                        blend(&left[i], made, Axis(3), self.blend);
                    }
                }
                if joined.is_empty() {
                    joined = made.iter().map(|made| self.whole(made, &tile, read)).collect();
                }
                for (joined, made) in joined.iter_mut().zip(&made) {
                    self.place(joined, made, [row, column]);
                }
                current.push(made);
            }
            above = current;
        }
        Ok(joined)
    }

    /// Room for what the tiles of `read` make, where a tile makes `made`.
    fn whole(&self, made: &ArrayD<f32>, tile: &ArrayD<f32>, read: &ArrayD<f32>) -> ArrayD<f32> {
        let side = |axis: usize| read.shape()[axis] * made.shape()[axis] / tile.shape()[axis];
        ArrayD::zeros(vec![made.shape()[0], made.shape()[1], side(2), side(3)])
    }

    /// Puts the part of a tile that no later one overlaps into its place.
    fn place(&self, joined: &mut ArrayD<f32>, made: &ArrayD<f32>, [row, column]: [usize; 2]) {
        let span = |axis: usize, index: usize, joined: &ArrayD<f32>| -> Range<usize> {
            let start = (index * self.made_stride).min(joined.shape()[axis]);
            start..(start + made.shape()[axis].min(self.made_stride)).min(joined.shape()[axis])
        };
        let (rows, columns) = (span(2, row, joined), span(3, column, joined));
        let part = made.slice_axis(Axis(2), Slice::from(..rows.len()));
        let part = part.slice_axis(Axis(3), Slice::from(..columns.len()));
        let mut place = joined.slice_axis_mut(Axis(2), Slice::from(rows));
        place.slice_axis_mut(Axis(3), Slice::from(columns)).assign(&part);
    }
}

/// Fades from the end of one tile into the beginning of the next one.
fn blend(before: &ArrayD<f32>, after: &mut ArrayD<f32>, axis: Axis, extent: usize) {
    let extent = extent.min(before.len_of(axis)).min(after.len_of(axis));
    let start = before.len_of(axis) - extent;
    let shares: Vec<f32> = (0..extent).map(|i| i as f32 / extent as f32).collect();
    for (i, share) in ArrayView1::from(&shares).iter().enumerate() {
        let old = before.index_axis(axis, start + i);
        after.index_axis_mut(axis, i).zip_mut_with(&old, |new, old| *new = old * (1.0 - share) + *new * share);
    }
}
