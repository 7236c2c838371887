//! Latents to pictures.

use kiln_bundle::AxisSize;
use kiln_bundle::stable_diffusion::VAE_DECODER;
use kiln_engine::TensorView;
use ndarray::{ArrayD, Axis};

use super::{Event, Pipeline, Run, only_output};
use crate::Error;
use crate::image::RgbImage;

impl Pipeline {
    /// Decodes one latent at a time (diffusers' `enable_vae_slicing`), or as many as the engine was built for.
    pub(super) fn decode(
        &mut self,
        latents: &ArrayD<f32>,
        run: &mut Run<'_, '_>,
    ) -> Result<Vec<RgbImage>, Error> {
        let total = latents.shape()[0];
        let scale = self.bundle.pipeline()?.latents.scaling as f32;
        let role = self.load(VAE_DECODER, run)?;
        let tiles = self.decoding_tiles(self.memory().vae_tiling, latents.shape())?;
        let mut network = self.engines.network(&self.bundle, role)?;
        let at_once = match network.inputs().first().and_then(|port| port.shape.first()) {
            Some(AxisSize::Fixed(n)) => usize::try_from(*n).unwrap_or(1).max(1),
            _ => 1,
        };
        let mut images = Vec::with_capacity(total);
        for part in latents.axis_chunks_iter(Axis(0), at_once) {
            run.tell(Event::Decoding { done: images.len(), total })?;
            let part = part.mapv(|x| x / scale);
            let mut decode = |tile: &ArrayD<f32>| {
                only_output(role, network.run(&[("latents", TensorView::F32(tile.view()))])?)
            };
            let decoded = match &tiles {
                Some(tiles) => tiles.map(&part, |tile| Ok(vec![decode(tile)?]))?.swap_remove(0),
                None => decode(&part)?,
            };
            if !decoded.iter().all(|x| x.is_finite()) {
                return Err(Error::PictureNotFinite);
            }
            images.extend(RgbImage::from_decoded(decoded.view())?);
        }
        run.tell(Event::Decoding { done: total, total })?;
        Ok(images)
    }
}
