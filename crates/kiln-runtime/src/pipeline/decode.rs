//! Latents to pictures.

use kiln_bundle::Role;
use kiln_engine::TensorView;
use ndarray::{ArrayD, Axis, concatenate};

use super::{Event, Pipeline, Run, only_output};
use crate::Error;
use crate::image::RgbImage;

impl Pipeline {
    pub(super) fn decode(
        &mut self,
        latents: &ArrayD<f32>,
        run: &mut Run<'_, '_>,
    ) -> Result<Vec<RgbImage>, Error> {
        Ok(RgbImage::from_decoded(self.decode_planes(latents, run)?.view())?)
    }

    /// Decodes one latent at a time, or as many as the engine was built for: `[B, 3, H, W]` in about `[-1, 1]`.
    pub(super) fn decode_planes(
        &mut self,
        latents: &ArrayD<f32>,
        run: &mut Run<'_, '_>,
    ) -> Result<ArrayD<f32>, Error> {
        let total = latents.shape()[0];
        let scale = self.bundle.pipeline()?.scaling_factor as f32;
        let role = self.load(Role::VaeDecoder, run)?;
        let latents = latents.mapv(|x| x / scale);
        let engine = self.engines.engine(&self.bundle, role)?;
        let at_once =
            engine.inputs().first().and_then(|port| port.shape.first().copied().flatten()).unwrap_or(1);
        let mut planes = Vec::new();
        let mut done = 0;
        for part in latents.axis_chunks_iter(Axis(0), at_once.max(1)) {
            run.tell(Event::Decoding { done, total })?;
            done += part.shape()[0];
            let decoded = only_output(role, engine.run(&[("latents", TensorView::F32(part))])?)?;
            if !decoded.iter().all(|x| x.is_finite()) {
                return Err(Error::PictureNotFinite);
            }
            planes.push(decoded);
        }
        run.tell(Event::Decoding { done: total, total })?;
        let views: Vec<_> = planes.iter().map(|array| array.view()).collect();
        concatenate(Axis(0), &views).map_err(|e| Error::Component { component: role, reason: e.to_string() })
    }
}
