//! ControlNets (Zhang et al. 2023, diffusers `pipelines/controlnet`).

use std::sync::Arc;

use kiln_bundle::{AxisSize, Bundle, Component, ComponentName, PortInfo, Stage};
use kiln_engine::{Tensor, TensorView};
use kiln_types::Size;
use ndarray::{Array4, ArrayBase, ArrayD, Axis, arr1, concatenate};

use super::facts::Facts;
use crate::residency::{Residency, Reuse, Sources};
use crate::{Control, Error};

/// A ControlNet of a pipeline.
pub(super) struct ControlNet {
    component: ComponentName,
    pub(super) engines: Residency,
}

impl ControlNet {
    /// Checks that a ControlNet fits a pipeline, of which `denoiser` adds its residuals.
    pub(super) fn fit(
        facts: &Facts,
        denoiser: &Component,
        bundle: Bundle,
        of_pipeline: &Residency,
    ) -> Result<ControlNet, Error> {
        let net = bundle.controlnet()?;
        let refuse = |reason: String| Err(Error::ControlNet { path: bundle.root().into(), reason });
        let (width, latents) = (facts.text_width, facts.latents);
        if u64::from(net.cross_attention_dim) != width {
            let found = net.cross_attention_dim;
            return refuse(format!("attends to text states of width {found}; this model's have {width}"));
        }
        if net.latent_channels != latents.channels {
            let (found, expected) = (net.latent_channels, latents.channels);
            return refuse(format!("reads latents of {found} channels; this model's have {expected}"));
        }
        if net.scale_factor != latents.scale_factor {
            let (found, expected) = (net.scale_factor, latents.scale_factor);
            return refuse(format!("expects {found} pixels per latent; this model has {expected}"));
        }
        let components = &bundle.manifest().components;
        let Some((name, component)) = components.iter().find(|(_, c)| c.stage == Stage::Control) else {
            return refuse("has no component that makes residuals".into());
        };
        let residuals: Vec<_> =
            denoiser.inputs.iter().filter(|port| port.name.contains("_block_residual")).collect();
        if component.outputs.iter().collect::<Vec<_>>() != residuals {
            return refuse("makes residuals of other shapes than this model's UNet adds".into());
        }
        let component = *name;
        Ok(ControlNet { component, engines: of_pipeline.sibling(Arc::new(bundle)) })
    }
}

/// Residuals by the name of the input that reads them.
pub(super) type Residuals = Vec<(String, Tensor)>;

/// What a ControlNet does in a pass.
pub(super) struct ActiveControl {
    /// One row per picture that is drawn.
    picture: ArrayD<f32>,
    scale: f32,
    /// Shares of the steps between which it acts.
    start: f64,
    end: f64,
}

impl ActiveControl {
    /// Prepares a control picture for so many pictures.
    pub(super) fn new(
        control: &Control,
        scale: f32,
        size: Size,
        n_pictures: usize,
    ) -> Result<ActiveControl, Error> {
        let picture = repeated(control.image.planes("control image", size)?, n_pictures)?;
        Ok(ActiveControl { picture, scale, start: control.start, end: control.end })
    }

    /// Whether it acts in the step from one share of the way to another.
    pub(super) fn acts(&self, share: [f64; 2]) -> bool {
        self.scale(share) != 0.0
    }

    /// Factor on the residuals of the step from one share of the way to another.
    fn scale(&self, [from, to]: [f64; 2]) -> f32 {
        if from < self.start || to > self.end { 0.0 } else { self.scale }
    }
}

/// The call that is due.
pub(super) struct ControlPass {
    pub(super) timestep: f32,
    /// Shares of the steps between which it lies.
    pub(super) share: [f64; 2],
    /// Which sample each row of the batch has.
    pub(super) sources: Sources,
}

/// What the UNet adds to its skip connections, by the name of its inputs: the sum over the ControlNets.
pub(super) fn residuals(
    nets: &mut [ControlNet],
    controls: &[ActiveControl],
    sample: &ArrayD<f32>,
    conditions: &[(String, ArrayD<f32>)],
    due: &ControlPass,
) -> Result<Residuals, Error> {
    let ControlPass { timestep, share, sources } = due;
    let any_acts = controls.iter().any(|control| control.acts(*share));
    let mut sum: Residuals = Vec::new();
    for (net, control) in nets.iter_mut().zip(controls) {
        let scale = control.scale(*share);
        // A ControlNet that does nothing still runs where the others do not say the residuals' shapes.
        if scale == 0.0 && (any_acts || !sum.is_empty()) {
            continue;
        }
        let scale = arr1(&[scale]).into_dyn();
        let mut chain = net.engines.chain(net.component)?;
        let timestep = arr1(&timesteps(chain.inputs(), "timestep", *timestep, sample.shape()[0])).into_dyn();
        let shared = [
            ("sample", TensorView::F32(sample.view())),
            ("timestep", TensorView::F32(timestep.view())),
            ("controlnet_cond", TensorView::F32(control.picture.view())),
            ("conditioning_scale", TensorView::F32(scale.view())),
        ];
        let own = conditions.iter().filter(|(name, _)| chain.inputs().iter().any(|port| port.name == *name));
        let own = own.map(|(name, value)| (name.as_str(), TensorView::F32(value.view())));
        let outputs = chain.run_sharing(&shared, &own.collect::<Vec<_>>(), sources, Reuse::Nothing)?;
        match sum.is_empty() {
            true => sum = chain.outputs().iter().map(|port| port.name.clone()).zip(outputs).collect(),
            false => add(&mut sum, outputs),
        }
    }
    Ok(sum)
}

/// A timestep as an engine reads it: once, or once per row.
pub(super) fn timesteps(ports: &[PortInfo], name: &str, timestep: f32, rows: usize) -> Vec<f32> {
    match is_shared(ports, name) {
        true => vec![timestep],
        false => vec![timestep; rows],
    }
}

/// Whether an input has one value for all rows.
pub(super) fn is_shared(ports: &[PortInfo], name: &str) -> bool {
    let port = ports.iter().find(|port| port.name == name);
    port.is_some_and(|port| port.shape.first() == Some(&AxisSize::Fixed(1)))
}

fn add(sum: &mut Residuals, outputs: Vec<Tensor>) {
    for ((_, sum), output) in sum.iter_mut().zip(outputs) {
        if let (Some(a), Some(b)) = (sum.f32(), output.f32()) {
            *sum = Tensor::F32(&a + &b);
        }
    }
}

/// A single picture or mask `[1, C, H, W]` for every row of a batch.
pub(super) fn repeated(picture: Array4<f32>, rows: usize) -> Result<ArrayD<f32>, Error> {
    let views = vec![picture.view(); rows];
    let batch = concatenate(Axis(0), &views);
    batch.map(ArrayBase::into_dyn).map_err(|e| Error::Shapes(e.to_string()))
}
