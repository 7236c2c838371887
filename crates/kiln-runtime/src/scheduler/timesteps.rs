//! Which timesteps a run visits.

use super::{SamplerOptions, SchedulerConfig, SchedulerError};

/// Which timesteps are visited (Lin et al. 2023, table 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimestepSpacing {
    /// Evenly, both ends included.
    Linspace,
    /// Multiples of a step, from the first.
    Leading,
    /// Multiples of a step, from the last.
    Trailing,
}

/// Refuses numbers of steps that the schedule does not have.
pub(super) fn check_steps(config: &SchedulerConfig, steps: usize, min: usize) -> Result<(), SchedulerError> {
    let max = config.num_train_timesteps;
    match (min..=max).contains(&steps) {
        true => Ok(()),
        false => Err(SchedulerError::Steps { steps, min, max }),
    }
}

/// How many steps of distillation a run chooses from (LCM, TCD), after refusing options that the schedule does not have.
pub(super) fn distilled_steps(
    config: &SchedulerConfig,
    n_steps: usize,
    options: &SamplerOptions,
) -> Result<usize, SchedulerError> {
    let strength = options.strength;
    if !(0.0..=1.0).contains(&strength) {
        return Err(SchedulerError::Option { key: "strength", value: strength, range: "from 0 to 1" });
    }
    check_steps(config, n_steps, 1)?;
    let original = options.original_inference_steps.unwrap_or(config.original_inference_steps);
    if original == 0 || original > config.num_train_timesteps {
        let (key, value) = ("original_inference_steps", original as f64);
        return Err(SchedulerError::Option { key, value, range: "from 1 to that of training steps" });
    }
    Ok(original)
}

/// Timesteps evenly chosen among the first `n` of those `stride` apart, from the noisiest; at most `max` of them.
pub(super) fn among(n: usize, stride: usize, n_steps: usize, max: usize) -> Result<Vec<i64>, SchedulerError> {
    if n_steps > max {
        return Err(SchedulerError::Steps { steps: n_steps, min: 1, max });
    }
    let spacing = n as f64 / n_steps as f64;
    Ok((0..n_steps).map(|i| ((n - (i as f64 * spacing) as usize) * stride) as i64 - 1).collect())
}

/// Whole timesteps, noisiest first (DDIM, DDPM, PNDM).
pub(super) fn whole(config: &SchedulerConfig, n_steps: usize) -> Result<Vec<f64>, SchedulerError> {
    let rounded = spaced(config, n_steps)?.into_iter().map(f64::round_ties_even).collect();
    in_range(config, n_steps, rounded)
}

/// Timesteps in single precision, between whole ones under even spacing (Euler, Heun, LMS, KDPM2).
pub(super) fn fractional(config: &SchedulerConfig, n_steps: usize) -> Result<Vec<f64>, SchedulerError> {
    let single = spaced(config, n_steps)?.into_iter().map(|t| f64::from(t as f32)).collect();
    in_range(config, n_steps, single)
}

fn spaced(config: &SchedulerConfig, n_steps: usize) -> Result<Vec<f64>, SchedulerError> {
    check_steps(config, n_steps, 1)?;
    let trained = config.num_train_timesteps;
    Ok(match config.timestep_spacing {
        TimestepSpacing::Linspace => {
            let mut timesteps = linspace(0.0, (trained - 1) as f64, n_steps);
            timesteps.reverse();
            timesteps
        }
        TimestepSpacing::Leading => leading(n_steps, trained / n_steps, config.steps_offset).collect(),
        TimestepSpacing::Trailing => trailing(trained, trained, n_steps),
    })
}

/// Whole timesteps below `end`, which leave the last step to the end of the run (DPM-Solver, UniPC).
pub(super) fn before(config: &SchedulerConfig, n_steps: usize, end: usize) -> Result<Vec<f64>, SchedulerError> {
    check_steps(config, n_steps, 1)?;
    let timesteps = match config.timestep_spacing {
        TimestepSpacing::Linspace => {
            let mut timesteps = linspace(0.0, end as f64 - 1.0, n_steps + 1).split_off(1);
            timesteps.reverse();
            timesteps.into_iter().map(f64::round_ties_even).collect()
        }
        TimestepSpacing::Leading => {
            leading(n_steps + 1, end / (n_steps + 1), config.steps_offset).take(n_steps).collect()
        }
        TimestepSpacing::Trailing => trailing(end, config.num_train_timesteps, n_steps),
    };
    in_range(config, n_steps, timesteps)
}

/// Whole timesteps below `end` from the least noise on, which leave out the last of even spacings (DPM-Solver's
/// inverse).
pub(super) fn upward(config: &SchedulerConfig, n_steps: usize, end: usize) -> Result<Vec<f64>, SchedulerError> {
    check_steps(config, n_steps, 1)?;
    let timesteps = match config.timestep_spacing {
        TimestepSpacing::Linspace => {
            let spaced = linspace(0.0, end as f64 - 1.0, n_steps + 1).into_iter();
            spaced.take(n_steps).map(f64::round_ties_even).collect()
        }
        TimestepSpacing::Leading => {
            let timesteps = leading(n_steps, end / (n_steps + 1), config.steps_offset);
            timesteps.collect::<Vec<_>>().into_iter().rev().collect()
        }
        TimestepSpacing::Trailing => {
            trailing(end, config.num_train_timesteps, n_steps).into_iter().rev().collect()
        }
    };
    in_range(config, n_steps, timesteps)
}

fn leading(n: usize, ratio: usize, offset: i64) -> impl Iterator<Item = f64> {
    (0..n).rev().map(move |i| (i * ratio) as f64 + offset as f64)
}

/// `numpy.arange(end, 0, -trained / n_steps).round() - 1`, which counts with a rounded difference that decides ties.
fn trailing(end: usize, trained: usize, n_steps: usize) -> Vec<f64> {
    let timesteps = (0..n_steps).map(|i| trailing_at(end, trained, n_steps, i));
    timesteps.take_while(|&t| t >= 0.0).collect()
}

fn trailing_at(end: usize, trained: usize, n_steps: usize, i: usize) -> f64 {
    let ratio = trained as f64 / n_steps as f64;
    let (end, step) = (end as f64, (end as f64 - ratio) - end as f64);
    (end + i as f64 * step).round_ties_even() - 1.0
}

/// Whether `numpy.arange` counts one timestep more, which is -1: its length is rounded up.
pub(super) fn has_one_more(config: &SchedulerConfig, n_steps: usize) -> bool {
    let trained = config.num_train_timesteps as f64;
    config.timestep_spacing == TimestepSpacing::Trailing
        && (trained / (trained / n_steps as f64)).ceil() > n_steps as f64
}

/// `numpy.linspace`.
pub(super) fn linspace(start: f64, end: f64, n: usize) -> Vec<f64> {
    let step = (end - start) / (n.max(2) - 1) as f64;
    let at = |i: usize| if i > 0 && i + 1 == n { end } else { i as f64 * step + start };
    (0..n).map(at).collect()
}

fn in_range(config: &SchedulerConfig, steps: usize, timesteps: Vec<f64>) -> Result<Vec<f64>, SchedulerError> {
    let trained = config.num_train_timesteps;
    match timesteps.iter().find(|&&t| t < 0.0 || t > (trained - 1) as f64) {
        Some(&t) => {
            let (offset, timestep) = (config.steps_offset, t as i64);
            Err(SchedulerError::Timestep { steps, offset, timestep, trained })
        }
        None => Ok(timesteps),
    }
}
