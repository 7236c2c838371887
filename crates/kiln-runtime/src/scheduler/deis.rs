use std::collections::VecDeque;

use ndarray::ArrayD;

use super::dpm::{Factors, Solver, schedule};
use super::method::{Method, Noise, Planned, Schedule};
use super::{SchedulerConfig, SchedulerError};

/// Runs of fewer steps end with lower orders.
const FEW_STEPS: usize = 15;

/// DEIS in log-rho form (Zhang, Chen 2022; diffusers `schedulers/scheduling_deis_multistep.py`).
struct Deis {
    solver: Solver,
    calls: usize,
    order: usize,
    lower_order_final: bool,
    /// Predicted noise, newest first.
    history: VecDeque<ArrayD<f32>>,
}

pub(super) fn plan(config: &SchedulerConfig, n_steps: usize) -> Result<Planned, SchedulerError> {
    let (sigmas, timesteps) = schedule(config, n_steps)?;
    let deis = Deis {
        solver: Solver::new(config, sigmas),
        calls: timesteps.len(),
        order: config.solver_order,
        lower_order_final: config.lower_order_final && timesteps.len() < FEW_STEPS,
        history: VecDeque::new(),
    };
    Ok((Schedule::plain(timesteps), Box::new(deis)))
}

impl Deis {
    fn order_at(&self, call: usize) -> usize {
        let most = if self.lower_order_final { self.calls - call } else { self.order };
        self.order.min(self.history.len()).min(most)
    }

    /// Noise over signal at a call.
    fn rho(&self, call: usize) -> f32 {
        let level = self.solver.level(call);
        level.sigma / level.alpha
    }

    /// Factors of the last outputs, newest first: integrals of Lagrange polynomials in the logarithm of rho.
    fn coefficients(&self, call: usize, order: usize) -> Vec<f32> {
        let (to, from) = (self.rho(call + 1), self.rho(call));
        let rho = |i: usize| self.rho(call - i % order);
        let over = |integral: &dyn Fn(f32) -> f32| integral(to) - integral(from);
        match order {
            2 => (0..2).map(|i| over(&|t| second_order(t, rho(i), rho(i + 1)))).collect(),
            _ => (0..3).map(|i| over(&|t| third_order(t, rho(i), rho(i + 1), rho(i + 2)))).collect(),
        }
    }
}

/// The integral to `t` of `ln(t / c) / ln(b / c)`.
fn second_order(t: f32, b: f32, c: f32) -> f32 {
    t * (-c.ln() + t.ln() - 1.0) / (b.ln() - c.ln())
}

/// The integral to `t` of `ln(t / c) ln(t / d) / (ln(b / c) ln(b / d))`.
fn third_order(t: f32, b: f32, c: f32, d: f32) -> f32 {
    let (log, b, c, d) = (t.ln(), b.ln(), c.ln(), d.ln());
    t * (c * (d - log + 1.0) - d * log + d + log * log - 2.0 * log + 2.0) / ((b - c) * (b - d))
}

impl Method for Deis {
    fn reset(&mut self) {
        self.history.clear();
    }

    fn step(
        &mut self,
        call: usize,
        output: &ArrayD<f32>,
        latents: &mut ArrayD<f32>,
        _noise: &mut Noise<'_>,
    ) -> Result<(), SchedulerError> {
        self.history.push_front(self.solver.convert(call, output, latents)?);
        self.history.truncate(self.order);
        let (from, to) = (self.solver.level(call), self.solver.level(call + 1));
        let order = self.order_at(call);
        if order == 1 {
            let factors = Factors::new(self.solver.algorithm, from, to);
            *latents = self.solver.update(latents, &factors, &[(factors.zeroth, &self.history[0])], None);
            return Ok(());
        }
        let mut sum = &*latents / from.alpha;
        for (factor, epsilon) in self.coefficients(call, order).into_iter().zip(&self.history) {
            sum.zip_mut_with(epsilon, |sum, epsilon| *sum += factor * epsilon);
        }
        *latents = sum * to.alpha;
        Ok(())
    }

    fn level(&self, call: usize) -> Result<(f32, f32), SchedulerError> {
        let level = self.solver.level(call);
        Ok((level.alpha, level.sigma))
    }
}
