use std::collections::VecDeque;

use ndarray::ArrayD;

use super::dpm::{Factors, Solver, SolverType, difference, schedule};
use super::method::{Method, Noise, Planned, Schedule};
use super::prediction::combine;
use super::{SchedulerConfig, SchedulerError};

/// DPM-Solver and DPM-Solver++ of several calls per step (Lu et al. 2022; diffusers
/// `schedulers/scheduling_dpmsolver_singlestep.py`).
struct DpmSinglestep {
    solver: Solver,
    /// The order of each call: 1 starts a step.
    orders: Vec<usize>,
    /// Converted outputs, newest first.
    history: VecDeque<ArrayD<f32>>,
    /// Latents at the start of a step.
    start: Option<ArrayD<f32>>,
}

pub(super) fn plan(config: &SchedulerConfig, n_steps: usize) -> Result<Planned, SchedulerError> {
    let (sigmas, timesteps) = schedule(config, n_steps)?;
    let singlestep = DpmSinglestep {
        solver: Solver::new(config, sigmas),
        orders: orders(config, timesteps.len()),
        history: VecDeque::new(),
        start: None,
    };
    Ok((Schedule::plain(timesteps), Box::new(singlestep)))
}

/// Orders rise from 1 to the solver's in each step; the last steps are of lower order where their number does not fit
/// (`get_order_list`), or where the run ends at zero noise.
fn orders(config: &SchedulerConfig, n: usize) -> Vec<usize> {
    let order = config.solver_order;
    let is_lower = config.lower_order_final || !n.is_multiple_of(order) || !config.ends_at_sigma_min;
    let mut orders: Vec<usize> = (0..n).map(|i| i % order + 1).collect();
    let last = n - 1;
    if is_lower && order > 1 && n.is_multiple_of(order) {
        orders[last] = 1;
    }
    if !config.ends_at_sigma_min {
        orders[last] = 1;
    }
    orders
}

impl Method for DpmSinglestep {
    fn reset(&mut self) {
        self.history.clear();
        self.start = None;
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
        self.history.truncate(3);
        let noise = self.solver.algorithm.is_stochastic().then(|| noise(latents.shape()));

        // A run that starts in the middle of a step has no outputs for its order yet.
        let order = self.orders[call].min(self.history.len());
        if order == 1 {
            self.start = Some(latents.clone());
        }
        let start = self.start.as_ref().unwrap_or(latents);
        let (from, to) = (self.solver.level(call + 1 - order), self.solver.level(call + 1));
        let factors = Factors::new(self.solver.algorithm, from, to);
        let lambda = |back: usize| self.solver.level(call - back).lambda;
        let (h, history) = (to.lambda - from.lambda, &self.history);
        let is_heun = self.solver.solver_type == SolverType::Heun;
        let update = |derivatives: &[_]| self.solver.update(start, &factors, derivatives, noise.as_ref());
        *latents = match order {
            1 => update(&[(factors.zeroth, &history[0])]),
            2 => {
                let r0 = (lambda(0) - from.lambda) / h;
                let d1 = difference(1.0 / r0, &history[0], &history[1]);
                let first = if is_heun { factors.first } else { factors.midpoint };
                update(&[(factors.zeroth, &history[1]), (first, &d1)])
            }
            _ => {
                let r0 = (lambda(0) - from.lambda) / h;
                let r1 = (lambda(1) - from.lambda) / h;
                let near = difference(1.0 / r1, &history[1], &history[2]);
                let far = difference(1.0 / r0, &history[0], &history[2]);
                match is_heun {
                    false => update(&[(factors.zeroth, &history[2]), (factors.first, &far)]),
                    true => {
                        let d1 = combine(&near, &far, |near, far| (r0 * near - r1 * far) / (r0 - r1));
                        let d2 = combine(&near, &far, |near, far| 2.0 * (far - near) / (r0 - r1));
                        update(&[(factors.zeroth, &history[2]), (factors.first, &d1), (factors.second, &d2)])
                    }
                }
            }
        };
        Ok(())
    }

    fn level(&self, call: usize) -> Result<(f32, f32), SchedulerError> {
        let level = self.solver.level(call);
        Ok((level.alpha, level.sigma))
    }
}
