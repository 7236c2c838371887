//! One evaluation of the denoiser, for the rows of one drawing or of several.

#[cfg(feature = "cuda")]
mod device;

use std::borrow::Cow;

use kiln_bundle::ComponentName;
use kiln_engine::{Tensor, TensorView};
use ndarray::{ArrayD, Axis, Slice, arr1};

#[cfg(feature = "cuda")]
use super::controlnet::timesteps;
use super::controlnet::{ControlNet, ControlPass, Residuals, is_shared, residuals};
use super::drawing::{Depth, Drawing, Kept};
use super::facts::Facts;
use super::state::joined;
use crate::Error;
use crate::architecture::Denoiser;
use crate::residency::{Chain, Deep, Reuse, Sources};

/// What evaluates the denoiser.
pub(super) struct Evaluation<'a> {
    pub(super) facts: &'a Facts,
    pub(super) denoiser: &'a dyn Denoiser,
    pub(super) chain: Chain<'a>,
    pub(super) controlnets: &'a mut [ControlNet],
}

/// What one drawing adds to an evaluation: a sample for each picture, which both halves of a guided batch have.
struct Rows<'a> {
    is_guided: bool,
    /// `[B, C, H, W]`, with the channels of the masked picture where the denoiser reads it.
    sample: ArrayD<f32>,
    /// As the network reads it.
    timestep: f32,
    /// For each row of the batch, as the residuals are.
    conditions: Cow<'a, [(String, ArrayD<f32>)]>,
    residuals: Residuals,
}

impl Rows<'_> {
    /// Rows of the batch.
    fn n(&self) -> usize {
        self.sample.shape()[0] * if self.is_guided { 2 } else { 1 }
    }
}

/// What drawings must have in common to be evaluated at once.
#[derive(PartialEq)]
pub(super) struct Kind {
    component: ComponentName,
    latents: Vec<usize>,
    conditions: Vec<(String, Vec<usize>)>,
    /// The timestep, where the engine reads one for all rows.
    timestep: Option<u32>,
    depth: Depth,
}

impl Evaluation<'_> {
    /// Whether the engine reads one timestep for all rows.
    fn shares_timestep(&self) -> bool {
        is_shared(self.chain.inputs(), self.denoiser.timestep_input())
    }

    /// What a drawing has in common with those that can be evaluated with it.
    pub(super) fn kind(&self, drawing: &Drawing) -> Kind {
        let pass = &drawing.pass;
        let conditions = pass.inputs.conditions.iter();
        Kind {
            component: drawing.component,
            latents: pass.latents.shape()[1..].to_vec(),
            conditions: conditions.map(|(name, value)| (name.clone(), value.shape()[1..].to_vec())).collect(),
            timestep: self.shares_timestep().then(|| pass.timestep().to_bits()),
            depth: drawing.depth(),
        }
    }

    /// The guided predictions `[B, C, H, W]` of drawings of one kind, each at the call that is due.
    pub(super) fn predict(&mut self, drawings: &mut [&mut Drawing]) -> Result<Vec<ArrayD<f32>>, Error> {
        if drawings.iter().any(|drawing| drawing.pass.is_at_last_call()) {
            self.chain.prefetch_next(self.facts.image_decoder)?;
        }
        let rows: Vec<Rows<'_>> =
            drawings.iter().map(|drawing| self.rows(drawing)).collect::<Result<_, Error>>()?;
        let depth = drawings.first().map_or(Depth::Plain, |drawing| drawing.depth());
        let mut deep = Deep::default();
        let made = match depth {
            Depth::Plain => self.run(&rows, Reuse::Nothing)?,
            Depth::Recorded => self.run(&rows, Reuse::Record(&mut deep))?,
            Depth::Replayed => {
                let kept = drawings.iter().filter_map(|drawing| Some(&drawing.pass.kept.as_ref()?.deep));
                match kept.collect::<Vec<_>>()[..] {
                    [one] => self.run(&rows, Reuse::Replay(one))?,
                    ref several => self.run(&rows, Reuse::Replay(&Deep::joined(several)?))?,
                }
            }
        };
        let rows: Vec<(usize, bool)> = rows.iter().map(|rows| (rows.n(), rows.is_guided)).collect();
        let mut first = 0;
        let mut predictions = Vec::new();
        for ((n, is_guided), drawing) in rows.into_iter().zip(drawings) {
            let own = first..first + n;
            if depth == Depth::Recorded {
                let (deep, acting) = (deep.rows(own.clone()), drawing.pass.acting());
                drawing.pass.kept = Some(Kept { deep, acting });
            }
            let prediction = made.slice_axis(Axis(0), Slice::from(own)).to_owned();
            predictions.push(if is_guided { drawing.guidance.combine(&prediction) } else { prediction });
            first += n;
        }
        Ok(predictions)
    }

    fn rows<'d>(&mut self, drawing: &'d Drawing) -> Result<Rows<'d>, Error> {
        let pass = &drawing.pass;
        let sample = pass.sampler.scale_model_input(pass.call, &pass.latents);
        let timestep = self.denoiser.timestep(pass.timestep());
        let (inputs, is_guided) = (&pass.inputs, drawing.is_guided());
        let conditions = match drawing.guidance.is_guided() && !is_guided {
            true => of_prompt(&inputs.conditions),
            false => Cow::Borrowed(inputs.conditions.as_slice()),
        };
        let residuals = match inputs.controls.as_slice() {
            [] => Vec::new(),
            controls => {
                let mut sources = Sources::default();
                sources.add(sample.shape()[0], is_guided);
                let due = ControlPass { timestep, share: pass.share(), sources };
                residuals(self.controlnets, controls, &sample, &conditions, &due)?
            }
        };
        let channels = pass.inpainting.as_ref().and_then(|inpainting| inpainting.channels.as_ref());
        let sample = match channels {
            Some(channels) => joined(Axis(1), &[&sample, channels])?,
            None => sample.into_owned(),
        };
        Ok(Rows { is_guided, sample, timestep, conditions, residuals })
    }

    /// What the denoiser makes of all rows.
    fn run(&mut self, parts: &[Rows<'_>], reuse: Reuse<'_>) -> Result<ArrayD<f32>, Error> {
        let mut sources = Sources::default();
        parts.iter().for_each(|rows| sources.add(rows.sample.shape()[0], rows.is_guided));
        let samples: Vec<&ArrayD<f32>> = parts.iter().map(|rows| &rows.sample).collect();
        let sample = together(&samples)?;
        let timestep: Vec<f32> = match self.shares_timestep() {
            true => vec![parts[0].timestep],
            false => parts.iter().flat_map(|rows| vec![rows.timestep; rows.sample.shape()[0]]).collect(),
        };
        let timestep = arr1(&timestep).into_dyn();
        let conditions = (0..parts[0].conditions.len()).map(|i| {
            let values: Vec<&ArrayD<f32>> = parts.iter().map(|rows| &rows.conditions[i].1).collect();
            Ok((parts[0].conditions[i].0.as_str(), together(&values)?))
        });
        let conditions = conditions.collect::<Result<Vec<_>, Error>>()?;
        let residuals = (0..parts[0].residuals.len()).map(|i| {
            let values = parts.iter().filter_map(|rows| rows.residuals[i].1.f32());
            let values: Vec<ArrayD<f32>> = values.map(|value| value.to_owned()).collect();
            let joined = joined(Axis(0), &values.iter().collect::<Vec<_>>())?;
            Ok((parts[0].residuals[i].0.as_str(), joined))
        });
        let residuals = residuals.collect::<Result<Vec<_>, Error>>()?;
        let packing = self.denoiser.packing();
        let packed = match packing {
            Some(packing) => packing.pack(&sample)?,
            None => Cow::Borrowed(&*sample),
        };
        let shared = [
            (self.denoiser.latents_input(), TensorView::F32(packed.view())),
            (self.denoiser.timestep_input(), TensorView::F32(timestep.view())),
        ];
        let own = conditions.iter().map(|(name, value)| (*name, TensorView::F32(value.view())));
        let own = own.chain(residuals.iter().map(|(name, value)| (*name, TensorView::F32(value.view()))));
        let made = self.chain.run_sharing(&shared, &own.collect::<Vec<_>>(), &sources, reuse)?;
        let made = made.into_iter().next().and_then(Tensor::into_f32);
        let made = made.ok_or_else(|| self.chain.no_output())?;
        match packing {
            Some(packing) => {
                let shape = [&[made.shape()[0]], &sample.shape()[1..]].concat();
                packing.unpack(made, &shape)
            }
            None => Ok(made),
        }
    }
}

/// The half of a guided batch's conditions that is of the prompt, the second.
fn of_prompt(conditions: &[(String, ArrayD<f32>)]) -> Cow<'static, [(String, ArrayD<f32>)]> {
    let half =
        |values: &ArrayD<f32>| values.slice_axis(Axis(0), Slice::from(values.shape()[0] / 2..)).to_owned();
    Cow::Owned(conditions.iter().map(|(name, values)| (name.clone(), half(values))).collect())
}

/// Rows of several drawings as one batch.
fn together<'a>(parts: &[&'a ArrayD<f32>]) -> Result<Cow<'a, ArrayD<f32>>, Error> {
    match parts {
        [one] => Ok(Cow::Borrowed(*one)),
        several => Ok(Cow::Owned(joined(Axis(0), several)?)),
    }
}
