//! ControlNets (Zhang et al. 2023, diffusers `pipelines/controlnet`).

use kiln_bundle::Bundle;
use kiln_bundle::stable_diffusion::CONTROLNET;
use kiln_engine::{Tensor, TensorView};
use ndarray::{Array4, ArrayD, Axis, arr1, concatenate};

use super::denoise::Named;
use crate::residency::Residency;
use crate::{Control, Error};

/// A ControlNet of a pipeline.
pub(super) struct ControlNet {
    pub(super) bundle: Bundle,
    pub(super) engines: Residency,
}

/// The ControlNets of a run.
pub(super) struct Steering<'a>(Vec<Steerer<'a>>);

struct Steerer<'a> {
    net: &'a mut ControlNet,
    control: &'a Control,
    picture: ArrayD<f32>,
    scale: f32,
}

impl Steerer<'_> {
    /// Factor on the residuals of the step from one share of the way to another.
    fn scale(&self, [from, to]: [f64; 2]) -> f32 {
        if from < self.control.start || to > self.control.end { 0.0 } else { self.scale }
    }
}

impl<'a> Steering<'a> {
    /// Prepares the control pictures, one row per row of the UNet's batch.
    pub(super) fn new(
        nets: impl Iterator<Item = &'a mut ControlNet>,
        controls: &'a [Control],
        scales: Vec<f32>,
        size: [u32; 2],
        rows: usize,
    ) -> Result<Steering<'a>, Error> {
        let mut steerers = Vec::new();
        for ((net, control), scale) in nets.zip(controls).zip(scales) {
            let picture = repeated(control.image.planes("control image", size)?, rows)?;
            steerers.push(Steerer { net, control, picture, scale });
        }
        Ok(Steering(steerers))
    }

    /// What the UNet adds to its skip connections, by the name of its inputs: the sum over the ControlNets.
    pub(super) fn residuals(
        &mut self,
        sample: &ArrayD<f32>,
        timestep: &ArrayD<f32>,
        conditions: &[(&'static str, ArrayD<f32>)],
        share: [f64; 2],
    ) -> Result<Named, Error> {
        let any_acts = self.0.iter().any(|steerer| steerer.scale(share) != 0.0);
        let mut sum: Named = Vec::new();
        for steerer in &mut self.0 {
            let scale = steerer.scale(share);
            // A ControlNet that does nothing still runs where the others do not say the residuals' shapes.
            if scale == 0.0 && (any_acts || !sum.is_empty()) {
                continue;
            }
            let scale = arr1(&[scale]).into_dyn();
            let Steerer { net, picture, .. } = steerer;
            let mut network = net.engines.network(&net.bundle, CONTROLNET)?;
            let mut inputs = vec![
                ("sample", TensorView::F32(sample.view())),
                ("timestep", TensorView::F32(timestep.view())),
                ("controlnet_cond", TensorView::F32(picture.view())),
                ("conditioning_scale", TensorView::F32(scale.view())),
            ];
            let shared =
                conditions.iter().filter(|(name, _)| network.inputs().iter().any(|port| port.name == *name));
            inputs.extend(shared.map(|(name, value)| (*name, TensorView::F32(value.view()))));
            let outputs = network.run(&inputs)?;
            match sum.is_empty() {
                true => sum = network.outputs().iter().map(|port| port.name.clone()).zip(outputs).collect(),
                false => add(&mut sum, outputs),
            }
        }
        Ok(sum)
    }
}

fn add(sum: &mut Named, outputs: Vec<Tensor>) {
    for ((_, sum), output) in sum.iter_mut().zip(outputs) {
        if let (Some(a), Some(b)) = (sum.f32(), output.f32()) {
            *sum = Tensor::F32(&a + &b);
        }
    }
}

/// A single picture or mask `[1, C, H, W]` for every row of a batch.
pub(super) fn repeated(picture: Array4<f32>, rows: usize) -> Result<ArrayD<f32>, Error> {
    let views = vec![picture.view(); rows];
    let batch = concatenate(Axis(0), &views)
        .map_err(|e| Error::Component { component: CONTROLNET, reason: e.to_string() })?;
    Ok(batch.into_dyn())
}
