//! Latents to pictures.

use kiln_bundle::AxisSize;
use kiln_engine::{Tensor, TensorView};
use ndarray::{ArrayD, Axis};

use super::facts::Facts;
use super::progress::Progress;
use crate::image::RgbImage;
use crate::residency::Chain;
use crate::watch::Event;
use crate::{Error, VaeTiling};

/// Decodes latents `[B, C, H, W]`, and tells of it where somebody listens.
pub(super) fn decode(
    chain: &mut Chain<'_>,
    facts: &Facts,
    tiling: Option<VaeTiling>,
    latents: &ArrayD<f32>,
    mut progress: Option<&mut Progress<'_>>,
) -> Result<Vec<RgbImage>, Error> {
    let total = latents.shape()[0];
    let (scale, shift) = (facts.latents.scaling as f32, facts.latents.shift as f32);
    let tiles = facts.decoding_tiles(tiling, latents.shape())?;
    let at_once = match chain.inputs().first().and_then(|port| port.shape.first()) {
        Some(AxisSize::Fixed(n)) => usize::try_from(*n).unwrap_or(1).max(1),
        _ => 1,
    };
    let mut tell = |done: usize| match &mut progress {
        Some(progress) => progress.tell(Event::Decoding { done, total }),
        None => Ok(()),
    };
    let mut images = Vec::with_capacity(total);
    for part in latents.axis_chunks_iter(Axis(0), at_once) {
        tell(images.len())?;
        let part = part.mapv(|x| x / scale + shift);
        let mut decode = |tile: &ArrayD<f32>| {
            let outputs = chain.run(&[("latents", TensorView::F32(tile.view()))])?;
            outputs.into_iter().next().and_then(Tensor::into_f32).ok_or_else(|| chain.no_output())
        };
        let decoded = match &tiles {
            Some(tiles) => tiles.map(&part, |tile| Ok(vec![decode(tile)?]))?.swap_remove(0),
            None => decode(&part)?,
        };
        images.extend(RgbImage::from_decoded(decoded.view())?);
    }
    tell(total)?;
    Ok(images)
}
