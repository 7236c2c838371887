use std::collections::VecDeque;

use ndarray::ArrayD;

use super::dpm::{Factors, Level, Solver, SolverType, difference, schedule};
use super::method::{Method, Noise, Planned, Schedule};
use super::prediction::combine;
use super::{SchedulerConfig, SchedulerError};

/// UniPC (Zhao et al. 2023; diffusers `schedulers/scheduling_unipc_multistep.py`): a predictor, and a corrector that uses the
/// next step's output for the step before.
struct UniPc {
    solver: Solver,
    calls: usize,
    order: usize,
    lower_order_final: bool,
    disable_corrector: Vec<usize>,
    /// Converted outputs, newest first.
    history: VecDeque<ArrayD<f32>>,
    /// Latents that the last step started from, and its order.
    last: Option<(ArrayD<f32>, usize)>,
}

pub(super) fn plan(config: &SchedulerConfig, n_steps: usize) -> Result<Planned, SchedulerError> {
    let (sigmas, timesteps) = schedule(config, n_steps)?;
    let unipc = UniPc {
        solver: Solver::new(config, sigmas),
        calls: timesteps.len(),
        order: config.solver_order,
        lower_order_final: config.lower_order_final,
        disable_corrector: config.disable_corrector.clone(),
        history: VecDeque::new(),
        last: None,
    };
    Ok((Schedule::plain(timesteps), Box::new(unipc)))
}

/// The coefficients of one update, in the notation of the paper.
struct System {
    /// Where earlier outputs lie, in units of the step, and 1.
    r: Vec<f32>,
    b: Vec<f32>,
    factors: Factors,
    /// Of the sum of differences.
    residual: f32,
}

impl UniPc {
    /// The system of `order` for the step from `call` to the next.
    fn system(&self, call: usize, order: usize) -> System {
        let (from, to) = (self.solver.level(call), self.solver.level(call + 1));
        let h = to.lambda - from.lambda;
        let earlier = (1..order).map(|back| (self.solver.level(call - back).lambda - from.lambda) / h);
        let r = earlier.chain([1.0]).collect();

        let is_noise = self.solver.algorithm.predicts_noise();
        let hh = if is_noise { h } else { -h };
        let phi_1 = hh.exp_m1();
        let b_h = if self.solver.solver_type == SolverType::Bh1 { hh } else { phi_1 };
        let (mut phi, mut factorial) = (phi_1 / hh - 1.0, 1.0f64);
        let b = (1..=order)
            .map(|i| {
                let b = phi * factorial as f32 / b_h;
                factorial *= (i + 1) as f64;
                phi = phi / hh - (1.0 / factorial) as f32;
                b
            })
            .collect();

        let scale = if is_noise { to.sigma } else { to.alpha };
        let factors = Factors { zeroth: -(scale * phi_1), ..Factors::new(self.solver.algorithm, from, to) };
        System { r, b, factors, residual: -(scale * b_h) }
    }

    /// Differences of the last `r.len()` outputs from the newest, over their distances.
    fn differences(&self, r: &[f32]) -> Vec<ArrayD<f32>> {
        let newest = &self.history[0];
        let earlier = self.history.iter().skip(1).zip(&r[..r.len() - 1]);
        earlier.map(|(output, &r)| combine(output, newest, |output, newest| (output - newest) / r)).collect()
    }

    /// The step from `call` to the next.
    fn predict(&self, call: usize, order: usize, latents: &ArrayD<f32>) -> ArrayD<f32> {
        let System { r, b, factors, residual } = self.system(call, order);
        let weights = match order {
            1 => Vec::new(),
            2 => vec![0.5],
            _ => solve(&r[..order - 1], &b[..order - 1]),
        };
        let mut sum = ArrayD::zeros(latents.shape());
        for (weight, difference) in weights.into_iter().zip(self.differences(&r)) {
            sum.zip_mut_with(&difference, |sum, difference| *sum += weight * difference);
        }
        self.solver.update(latents, &factors, &[(factors.zeroth, &self.history[0]), (residual, &sum)], None)
    }

    /// The step from `call` to the next taken again, with the model's output there.
    fn correct(&self, call: usize, order: usize, latents: &ArrayD<f32>, output: &ArrayD<f32>) -> ArrayD<f32> {
        let System { r, b, factors, residual } = self.system(call, order);
        let weights = if order == 1 { vec![0.5] } else { solve(&r, &b) };
        let mut differences = self.differences(&r);
        differences.push(difference(1.0, output, &self.history[0]));
        let mut sum = ArrayD::zeros(latents.shape());
        for (weight, difference) in weights.into_iter().zip(&differences) {
            sum.zip_mut_with(difference, |sum, difference| *sum += weight * difference);
        }
        self.solver.update(latents, &factors, &[(factors.zeroth, &self.history[0]), (residual, &sum)], None)
    }
}

/// Solves the Vandermonde system `sum_j r[j]^i x[j] = b[i]` by elimination with row pivoting, in single precision.
fn solve(r: &[f32], b: &[f32]) -> Vec<f32> {
    let n = r.len();
    let mut rows: Vec<Vec<f32>> =
        (0..n).map(|i| r.iter().map(|r| r.powi(i as i32)).chain([b[i]]).collect()).collect();
    for i in 0..n {
        let pivot = (i..n).max_by(|&a, &b| rows[a][i].abs().total_cmp(&rows[b][i].abs())).unwrap_or(i);
        rows.swap(i, pivot);
        let (done, rest) = rows.split_at_mut(i + 1);
        for row in rest {
            let factor = row[i] / done[i][i];
            row.iter_mut().zip(&done[i]).skip(i).for_each(|(x, pivot)| *x -= factor * pivot);
        }
    }
    let mut x = vec![0.0; n];
    for i in (0..n).rev() {
        let known: f32 = (i + 1..n).map(|j| rows[i][j] * x[j]).sum();
        x[i] = (rows[i][n] - known) / rows[i][i];
    }
    x
}

impl Method for UniPc {
    fn reset(&mut self) {
        self.history.clear();
        self.last = None;
    }

    fn step(
        &mut self,
        call: usize,
        output: &ArrayD<f32>,
        latents: &mut ArrayD<f32>,
        _noise: &mut Noise<'_>,
    ) -> Result<(), SchedulerError> {
        let converted = self.solver.convert(call, output, latents)?;
        if let Some((last, order)) = self.last.take().filter(|_| !self.disable_corrector.contains(&(call - 1)))
        {
            *latents = self.correct(call - 1, order, &last, &converted);
        }
        self.history.push_front(converted);
        self.history.truncate(self.order);
        let most = if self.lower_order_final { self.calls - call } else { self.order };
        let order = self.order.min(most).min(self.history.len());
        let next = self.predict(call, order, latents);
        self.last = Some((std::mem::replace(latents, next), order));
        Ok(())
    }

    fn level(&self, call: usize) -> Result<(f32, f32), SchedulerError> {
        let Level { alpha, sigma, .. } = self.solver.level(call);
        Ok((alpha, sigma))
    }
}
