//! The denoising loop on a device, which latents do not leave.

use std::sync::Arc;

use kiln_cuda::{Device, DeviceMemory, Mark, Term};
use kiln_engine::{DeviceTensor, ElementType, Tensor, TensorView};
use ndarray::{ArrayD, arr1};

use super::Evaluation;
use crate::pipeline::drawing::{Drawing, Pass};
use crate::pipeline::progress::Progress;
use crate::scheduler::LinearRun;
use crate::watch::Event;
use crate::{Error, Guidance};

/// Steps that a device is given ahead of the one that it computes.
const AHEAD: usize = 1;

/// The tensors that a linear run has made so far.
struct History<'a> {
    device: &'a Arc<Device>,
    tensors: Vec<DeviceTensor>,
}

impl<'a> History<'a> {
    fn new(device: &'a Arc<Device>, latents: &ArrayD<f32>) -> Result<History<'a>, Error> {
        Ok(History { device, tensors: vec![DeviceTensor::upload(device, latents.view())?] })
    }

    fn push(&mut self, tensor: DeviceTensor) {
        self.tensors.push(tensor);
    }

    /// The sum of all tensors times their factors.
    fn sum(&self, factors: &[f32]) -> Result<DeviceTensor, Error> {
        let first = &self.tensors[0];
        let sum = DeviceTensor::new(self.device, ElementType::F32, first.shape())?;
        let terms = factors.iter().zip(&self.tensors).filter(|(factor, _)| **factor != 0.0);
        let terms: Vec<Term<'_>> =
            terms.map(|(&factor, tensor)| Term { factor: factor.into(), values: tensor.memory() }).collect();
        self.device.combine(sum.memory(), &terms, first.n_elements())?;
        Ok(sum)
    }
}

/// One flag per step: whether a prediction left the range of numbers.
struct Flags {
    flags: Vec<DeviceMemory>,
}

impl Evaluation<'_> {
    /// Whether a pass can be left to a device, and how: nothing has to be looked at between two steps.
    pub(in crate::pipeline) fn on_device(
        &self,
        drawing: &mut Drawing,
    ) -> Result<Option<(Arc<Device>, LinearRun)>, Error> {
        let pass = &mut drawing.pass;
        let is_plain = pass.inputs.controls.is_empty()
            && pass.inpainting.is_none()
            && (!drawing.guidance.is_guided() || drawing.approximations.guides([0.0, 1.0]))
            && pass.call == pass.begin
            && self.denoiser.packing().is_none();
        let Some(device) = self.chain.device().filter(|_| is_plain) else { return Ok(None) };
        Ok(pass.sampler.linear_run(pass.begin)?.map(|linear| (device, linear)))
    }

    /// Takes the latents through a pass. Progress is told when the device has done a step.
    pub(in crate::pipeline) fn run_on_device(
        &mut self,
        device: &Arc<Device>,
        linear: &LinearRun,
        drawing: &mut Drawing,
        progress: &mut Progress<'_>,
    ) -> Result<(), Error> {
        let guidance = drawing.guidance;
        let Pass { sampler, begin, latents, inputs, .. } = &drawing.pass;
        let timesteps = &sampler.timesteps()[*begin..];
        let conditions = inputs.conditions.iter();
        let conditions: Vec<(&str, DeviceTensor)> = conditions
            .map(|(name, value)| Ok((name.as_str(), DeviceTensor::upload(device, value.view())?)))
            .collect::<Result<_, Error>>()?;
        let mut history = History::new(device, latents)?;
        let mut flags = Flags { flags: Vec::new() };
        let mut marks: Vec<Mark> = Vec::new();
        let base = progress.step;
        for (i, &timestep) in timesteps.iter().enumerate() {
            if i + 1 == timesteps.len() {
                self.chain.prefetch_next(self.facts.image_decoder)?;
            }
            let sample = doubled(guidance, device, history.sum(&linear.inputs[i])?)?;
            let (name, rows) = (self.denoiser.timestep_input(), sample.shape()[0]);
            let timestep = super::timesteps(self.chain.inputs(), name, self.denoiser.timestep(timestep), rows);
            let timestep = DeviceTensor::upload(device, arr1(&timestep).into_dyn().view())?;
            let mut inputs = vec![
                (self.denoiser.latents_input(), TensorView::Device(&sample)),
                (self.denoiser.timestep_input(), TensorView::Device(&timestep)),
            ];
            inputs.extend(conditions.iter().map(|(name, value)| (*name, TensorView::Device(value))));
            let made = self.chain.run_where_it_is(&inputs)?.into_iter().next();
            let Some(Tensor::Device(made)) = made else {
                return Err(self.chain.no_output());
            };
            let prediction = guided(guidance, device, made, latents.shape())?;
            flags.check(device, &prediction)?;
            history.push(prediction);
            for _ in 0..linear.n_draws[i] {
                let noise = drawing.noise.randn(latents.shape());
                history.push(DeviceTensor::upload(device, noise.view())?);
            }
            marks.push(device.mark()?);
            if i >= AHEAD {
                tell(progress, base, &marks, timesteps, i - AHEAD)?;
            }
        }
        let latents = history.sum(&linear.latents)?;
        for i in timesteps.len().saturating_sub(AHEAD)..timesteps.len() {
            tell(progress, base, &marks, timesteps, i)?;
        }
        flags.refuse(device, base).map_err(|error| self.chain.blamed(error))?;
        let n_steps = timesteps.len();
        drawing.arrive(latents.download()?, base + n_steps);
        Ok(())
    }
}

/// The sample once, or twice where guidance needs both predictions.
fn doubled(guidance: Guidance, device: &Arc<Device>, sample: DeviceTensor) -> Result<DeviceTensor, Error> {
    if !guidance.is_guided() {
        return Ok(sample);
    }
    let mut shape = sample.shape().to_vec();
    shape[0] *= 2;
    let doubled = DeviceTensor::new(device, sample.element_type(), &shape)?;
    let n_bytes = sample.memory().n_bytes();
    for offset in [0, n_bytes] {
        device.copy((sample.memory(), 0), (doubled.memory(), offset), n_bytes)?;
    }
    Ok(doubled)
}

/// The guided prediction.
fn guided(
    guidance: Guidance,
    device: &Arc<Device>,
    prediction: DeviceTensor,
    shape: &[usize],
) -> Result<DeviceTensor, Error> {
    if !guidance.is_guided() {
        return Ok(prediction);
    }
    let guided = DeviceTensor::new(device, ElementType::F32, shape)?;
    let n = guided.n_elements();
    device.guide(guided.memory(), prediction.memory(), guidance.scale, n)?;
    if guidance.rescale > 0.0 {
        let rows = [shape[0], n / shape[0]];
        device.rescale_spread(guided.memory(), prediction.memory(), guidance.rescale, rows)?;
    }
    Ok(guided)
}

/// Waits until a step is done, and tells of it.
fn tell(
    progress: &mut Progress<'_>,
    base: usize,
    marks: &[Mark],
    timesteps: &[f32],
    i: usize,
) -> Result<(), Error> {
    marks[i].finish()?;
    progress.step = base + i + 1;
    let (step, steps) = (progress.step, progress.steps);
    progress.tell(Event::Step { step, steps, timestep: timesteps[i] })
}

impl Flags {
    fn check(&mut self, device: &Arc<Device>, prediction: &DeviceTensor) -> Result<(), Error> {
        let flag = device.upload(&0_u32.to_le_bytes())?;
        device.find_not_finite(prediction.memory(), &flag, prediction.n_elements())?;
        self.flags.push(flag);
        Ok(())
    }

    /// An error that names the first step whose flag is set.
    fn refuse(&self, device: &Arc<Device>, base: usize) -> Result<(), Error> {
        for (i, flag) in self.flags.iter().enumerate() {
            let mut found = [0; 4];
            device.read(flag, &mut found)?;
            if found != [0; 4] {
                return Err(Error::NotFinite { step: base + i + 1 });
            }
        }
        Ok(())
    }
}
