use std::collections::VecDeque;

use ndarray::ArrayD;

use super::alphas::Alphas;
use super::dpm::{Level, Solver, schedule};
use super::method::{Method, Noise, Planned, Schedule};
use super::{SchedulerConfig, SchedulerError};

/// SA-Solver (Xue et al. 2023; diffusers `schedulers/scheduling_sasolver.py`): a stochastic Adams-Bashforth predictor,
/// and an Adams-Moulton corrector that takes the step before again with the next step's output.
struct SaSolver {
    solver: Solver,
    alphas: Alphas,
    timesteps: Vec<i64>,
    predictor_order: usize,
    corrector_order: usize,
    lower_order_final: bool,
    /// Converted outputs, newest first.
    history: VecDeque<ArrayD<f32>>,
    last: Option<LastStep>,
}

/// What a step started from, and the order in which it is taken again.
struct LastStep {
    latents: ArrayD<f32>,
    noise: ArrayD<f32>,
    order: usize,
}

pub(super) fn plan(config: &SchedulerConfig, n_steps: usize) -> Result<Planned, SchedulerError> {
    let (sigmas, timesteps) = schedule(config, n_steps)?;
    let sa_solver = SaSolver {
        solver: Solver::new(config, sigmas),
        alphas: Alphas::new(config),
        timesteps: timesteps.iter().map(|&t| t as i64).collect(),
        predictor_order: config.predictor_order,
        corrector_order: config.corrector_order,
        lower_order_final: config.lower_order_final,
        history: VecDeque::new(),
        last: None,
    };
    Ok((Schedule::plain(timesteps), Box::new(sa_solver)))
}

impl SaSolver {
    /// Orders of the predictor at a call, and of the corrector of its step.
    fn orders(&self, call: usize) -> (usize, usize) {
        let left = if self.lower_order_final { self.timesteps.len() - call } else { usize::MAX - 1 };
        let known = self.history.len();
        (self.predictor_order.min(left).min(known), self.corrector_order.min(left + 1).min(known + 1))
    }

    /// The step from `call` to the next, through `outputs` at `newest` and the calls before it.
    fn advance(
        &self,
        call: usize,
        newest: usize,
        outputs: &[&ArrayD<f32>],
        latents: &ArrayD<f32>,
        noise: &ArrayD<f32>,
    ) -> ArrayD<f32> {
        let (from, to) = (self.solver.level(call), self.solver.level(call + 1));
        let interval = Interval {
            from,
            to,
            tau: f32::from((200..=800).contains(&self.timesteps[call])),
            predicts_noise: self.solver.algorithm.predicts_noise(),
        };
        let lambdas: Vec<f32> = (0..outputs.len()).map(|i| self.solver.level(newest - i).lambda).collect();
        let factors = interval.factors(&lambdas, newest > call);
        let mut next = latents * interval.kept();
        for (factor, output) in factors.into_iter().zip(outputs) {
            next.zip_mut_with(*output, |next, output| *next += factor * output);
        }
        let added = interval.added();
        next.zip_mut_with(noise, |next, noise| *next += added * noise);
        next
    }
}

/// A step between two noise levels.
struct Interval {
    from: Level,
    to: Level,
    /// How much noise is added: 1 for as much as DDPM adds, 0 for none.
    tau: f32,
    predicts_noise: bool,
}

impl Interval {
    fn h(&self) -> f32 {
        self.to.lambda - self.from.lambda
    }

    /// `1 + tau^2`.
    fn speed(&self) -> f32 {
        1.0 + self.tau * self.tau
    }

    /// Factor of the latents.
    fn kept(&self) -> f32 {
        match self.predicts_noise {
            true => self.to.alpha / self.from.alpha,
            false => (-self.tau * self.tau * self.h()).exp() * (self.to.sigma / self.from.sigma),
        }
    }

    /// Factor of the noise.
    fn added(&self) -> f32 {
        match self.predicts_noise {
            true => self.tau * self.to.sigma * ((2.0 * self.h()).exp() - 1.0).sqrt(),
            false => self.to.sigma * (1.0 - (-2.0 * self.tau * self.tau * self.h()).exp()).sqrt(),
        }
    }

    /// Factors of the outputs at `lambdas`: integrals of their Lagrange polynomials.
    fn factors(&self, lambdas: &[f32], corrects: bool) -> Vec<f32> {
        let order = lambdas.len();
        let mut integrals: Vec<f32> = (0..order)
            .map(|i| {
                let terms = lagrange(lambdas, i).into_iter().enumerate();
                terms.map(|(j, c)| c * self.moment(order - 1 - j)).fold(0.0, |sum, term| sum + term)
            })
            .collect();
        if order == 2 && !self.predicts_noise {
            let shift = self.second_order_shift(lambdas, corrects);
            integrals[0] += shift;
            integrals[1] -= shift;
        }
        let scale = match self.predicts_noise {
            true => -self.speed() * self.to.alpha,
            false => self.speed() * self.to.sigma * (-self.tau * self.tau * self.to.lambda).exp(),
        };
        integrals.into_iter().map(|integral| scale * integral).collect()
    }

    /// The integral over the step of a power of lambda, times the exponential of the exact solution.
    fn moment(&self, power: usize) -> f32 {
        let (start, end) = (self.from.lambda, self.to.lambda);
        if self.predicts_noise {
            let polynomial = |x: f32| match power {
                0 => 1.0,
                1 => x + 1.0,
                2 => x * x + 2.0 * x + 2.0,
                _ => x.powi(3) + 3.0 * (x * x) + 6.0 * x + 6.0,
            };
            return (-end).exp() * (polynomial(start) * (end - start).exp() - polynomial(end));
        }
        let speed = self.speed();
        let (start, end) = (speed * start, speed * end);
        let polynomial = |x: f32| match power {
            0 => 1.0,
            1 => x - 1.0,
            2 => x * x - 2.0 * x + 2.0,
            _ => x.powi(3) - 3.0 * (x * x) + 6.0 * x - 6.0,
        };
        end.exp() * (polynomial(end) - polynomial(start) * (-(end - start)).exp())
            / speed.powi(power as i32 + 1)
    }

    /// What the second order's form of the paper (appendix of the predictor and corrector) adds to one integral and
    /// takes from the other.
    fn second_order_shift(&self, lambdas: &[f32], corrects: bool) -> f32 {
        let (h, speed) = (self.h(), self.speed());
        let grown = (speed * self.to.lambda).exp();
        let rest = h * speed - 1.0 + (speed * -h).exp();
        match corrects {
            true => grown * (h / 2.0 - rest / (speed * speed * h)),
            false => grown * (h * h / 2.0 - rest / (speed * speed)) / (lambdas[0] - lambdas[1]),
        }
    }
}

/// Coefficients, highest power first, of the polynomial that is 1 at `lambdas[i]` and 0 at the others; up to four of
/// them.
fn lagrange(lambdas: &[f32], i: usize) -> Vec<f32> {
    let others: Vec<f32> = (0..lambdas.len()).filter(|&k| k != i).map(|k| lambdas[k]).collect();
    let denominator = others.iter().map(|other| lambdas[i] - other).product::<f32>();
    let numerators = match *others {
        [] => vec![1.0],
        [a] => vec![1.0, -a],
        [a, b] => vec![1.0, -a - b, a * b],
        [a, b, c, ..] => vec![1.0, -a - b - c, a * b + a * c + b * c, -a * b * c],
    };
    numerators.into_iter().map(|numerator| numerator / denominator).collect()
}

impl Method for SaSolver {
    fn reset(&mut self) {
        self.history.clear();
        self.last = None;
    }

    fn step(
        &mut self,
        call: usize,
        output: &ArrayD<f32>,
        latents: &mut ArrayD<f32>,
        noise: &mut Noise<'_>,
    ) -> Result<(), SchedulerError> {
        let converted = self.solver.convert(call, output, latents)?;
        if let Some(last) = self.last.take() {
            let outputs: Vec<_> = std::iter::once(&converted).chain(&self.history).take(last.order).collect();
            *latents = self.advance(call - 1, call, &outputs, &last.latents, &last.noise);
        }
        self.history.push_front(converted);
        self.history.truncate(self.predictor_order.max(self.corrector_order - 1));

        let noise = noise(latents.shape());
        let (predictor, order) = self.orders(call);
        let outputs: Vec<_> = self.history.iter().take(predictor).collect();
        let next = self.advance(call, call, &outputs, latents, &noise);
        self.last = Some(LastStep { latents: std::mem::replace(latents, next), noise, order });
        Ok(())
    }

    fn level(&self, call: usize) -> Result<(f32, f32), SchedulerError> {
        self.alphas.level(self.timesteps[call])
    }
}
