use std::collections::VecDeque;

use ndarray::ArrayD;

use super::dpm::{Factors, Solver, SolverType, difference, inverse_schedule, schedule};
use super::edm;
use super::method::{Method, Noise, Planned, Schedule};
use super::prediction::combine;
use super::{SchedulerConfig, SchedulerError};

/// Runs of fewer steps end with lower orders.
const FEW_STEPS: usize = 15;

/// DPM-Solver and DPM-Solver++ with history (Lu et al. 2022; diffusers `schedulers/scheduling_dpmsolver_multistep.py`,
/// `scheduling_dpmsolver_multistep_inverse.py` and `scheduling_edm_dpmsolver_multistep.py`).
struct DpmMultistep {
    solver: Solver,
    calls: usize,
    order: usize,
    lower_order_final: bool,
    /// Whether the last step is of first order in any case.
    euler_at_final: bool,
    /// Converted outputs, newest first.
    history: VecDeque<ArrayD<f32>>,
}

pub(super) fn plan(config: &SchedulerConfig, n_steps: usize) -> Result<Planned, SchedulerError> {
    let (sigmas, timesteps) = schedule(config, n_steps)?;
    let multistep = DpmMultistep::new(config, sigmas, timesteps.len());
    Ok((Schedule::plain(timesteps), Box::new(multistep)))
}

/// From latents to noise.
pub(super) fn plan_inverse(config: &SchedulerConfig, n_steps: usize) -> Result<Planned, SchedulerError> {
    let (sigmas, timesteps) = inverse_schedule(config, n_steps)?;
    let multistep = DpmMultistep::new(config, sigmas, timesteps.len());
    Ok((Schedule::plain(timesteps), Box::new(multistep)))
}

/// With EDM's preconditioning.
pub(super) fn plan_edm(config: &SchedulerConfig, n_steps: usize) -> Result<Planned, SchedulerError> {
    let mut sigmas = edm::sigmas(config, n_steps)?;
    let schedule = edm::schedule(config, &sigmas);
    sigmas.push(if config.ends_at_sigma_min { edm::sigma_min(config) as f32 } else { 0.0 });
    Ok((schedule, Box::new(DpmMultistep::new(config, sigmas, n_steps))))
}

impl DpmMultistep {
    fn new(config: &SchedulerConfig, sigmas: Vec<f32>, calls: usize) -> DpmMultistep {
        DpmMultistep {
            solver: Solver::new(config, sigmas),
            calls,
            order: config.solver_order,
            lower_order_final: config.lower_order_final && calls < FEW_STEPS,
            euler_at_final: config.euler_at_final || !config.ends_at_sigma_min,
            history: VecDeque::new(),
        }
    }

    fn order_at(&self, call: usize) -> usize {
        let left = self.calls - call;
        let most = match left {
            1 if self.euler_at_final || self.lower_order_final => 1,
            2 if self.lower_order_final => 2,
            _ => 3,
        };
        self.order.min(self.history.len()).min(most)
    }
}

impl Method for DpmMultistep {
    fn reset(&mut self) {
        self.history.clear();
    }

    fn input_divisor(&self, call: usize) -> Option<f32> {
        self.solver.input_divisor(call)
    }

    fn takes_variance(&self) -> bool {
        self.solver.has_variance
    }

    fn step(
        &mut self,
        call: usize,
        output: &ArrayD<f32>,
        latents: &mut ArrayD<f32>,
        noise: &mut Noise<'_>,
    ) -> Result<(), SchedulerError> {
        self.history.push_front(self.solver.convert(call, output, latents)?);
        self.history.truncate(self.order);
        let noise = self.solver.algorithm.is_stochastic().then(|| noise(latents.shape()));

        let (from, to) = (self.solver.level(call), self.solver.level(call + 1));
        let factors = Factors::new(self.solver.algorithm, from, to);
        let lambda = |back: usize| self.solver.level(call - back).lambda;
        let (h, history) = (to.lambda - from.lambda, &self.history);
        let update = |derivatives: &[_]| self.solver.update(latents, &factors, derivatives, noise.as_ref());
        *latents = match self.order_at(call) {
            1 => update(&[(factors.zeroth, &history[0])]),
            2 => {
                let r0 = (lambda(0) - lambda(1)) / h;
                let first = match self.solver.solver_type {
                    SolverType::Heun => factors.first,
                    _ => factors.midpoint,
                };
                let d1 = difference(1.0 / r0, &history[0], &history[1]);
                update(&[(factors.zeroth, &history[0]), (first, &d1)])
            }
            _ => {
                let r0 = (lambda(0) - lambda(1)) / h;
                let r1 = (lambda(1) - lambda(2)) / h;
                let newer = difference(1.0 / r0, &history[0], &history[1]);
                let older = difference(1.0 / r1, &history[1], &history[2]);
                let d1 = combine(&newer, &older, |newer, older| newer + r0 / (r0 + r1) * (newer - older));
                let d2 = difference(1.0 / (r0 + r1), &newer, &older);
                update(&[(factors.zeroth, &history[0]), (factors.first, &d1), (factors.second, &d2)])
            }
        };
        Ok(())
    }

    fn level(&self, call: usize) -> Result<(f32, f32), SchedulerError> {
        let level = self.solver.level(call);
        Ok((level.alpha, level.sigma))
    }
}
