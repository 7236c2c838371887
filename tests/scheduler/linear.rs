//! Runs as sums of what goes into them.

use kiln_runtime::generator::TorchCpuGenerator;
use ndarray::ArrayD;

use super::{Case, model, randn, trajectory};
use crate::support::References;

/// The final latents of a run as sums, with noise from `seed`.
fn summed(case: &mut Case, init: ArrayD<f32>, seed: u64) -> Option<ArrayD<f32>> {
    let run = case.sampler.linear_run(case.start).expect("a run")?;
    let mut generator = TorchCpuGenerator::new(seed);
    let timesteps = &case.sampler.timesteps()[case.start..];
    assert_eq!(run.inputs.len(), timesteps.len());
    let mut tensors = vec![init];
    for ((factors, &n_draws), &timestep) in run.inputs.iter().zip(&run.n_draws).zip(timesteps) {
        let input = sum(factors, &tensors);
        tensors.push(model(&input, timestep, false));
        for _ in 0..n_draws {
            tensors.push(generator.randn(&case.shape));
        }
    }
    Some(sum(&run.latents, &tensors))
}

#[track_caller]
fn sum(factors: &[f32], tensors: &[ArrayD<f32>]) -> ArrayD<f32> {
    assert_eq!(factors.len(), tensors.len());
    let mut sum = ArrayD::<f64>::zeros(tensors[0].shape());
    for (&factor, tensor) in factors.iter().zip(tensors) {
        sum.zip_mut_with(tensor, |sum, &x| *sum += f64::from(factor) * f64::from(x));
    }
    sum.mapv(|x| x as f32)
}

#[test]
fn sums_are_what_samplers_step_to() {
    let references = References::open("samplers.safetensors");
    let (mut n_linear, mut failures) = (0, Vec::new());
    for text in references.metadata("cases").as_array().expect("a list") {
        let mut case = Case::new(text);
        let init = randn(&case.shape, 0) * case.sampler.init_noise_sigma();
        let Some(found) = summed(&mut case, init.clone(), 1) else { continue };
        n_linear += 1;
        let expected = trajectory(&mut case.sampler, case.start, init, 1).pop().expect("a step");
        let scale = expected.iter().fold(1.0, |most: f32, x| most.max(x.abs()));
        let worst =
            found.iter().zip(&expected).fold(0.0, |worst: f32, (a, b)| worst.max((a - b).abs() / scale));
        if worst.is_nan() || worst > 1e-4 {
            failures.push(format!("{text}: {worst:e} off"));
        }
    }
    assert!(n_linear > 100, "only {n_linear} runs are sums");
    assert!(failures.is_empty(), "{} of {n_linear}:\n{}", failures.len(), failures.join("\n"));
}
