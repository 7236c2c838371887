//! Whether two pipelines of one model compute the same.

use kiln_bundle::ComponentName;
use kiln_bundle::stable_diffusion::UNET_CONTROLLED;
use kiln_engine::{Tensor, TensorView};
use ndarray::ArrayD;

use super::Pipeline;
use super::measure::{random, tensors};
use crate::Error;

impl Pipeline {
    /// How far the components that another pipeline of the same model has too are from its, for the same random inputs at
    /// the model's default size: the root mean square of the difference of their outputs over that of the other's, the
    /// largest of each component's.
    pub fn compare_components(&mut self, other: &mut Pipeline) -> Result<Vec<(ComponentName, f64)>, Error> {
        let roles = self.bundle.manifest().components.keys().copied();
        let shared = roles.filter(|role| other.bundle.component(*role).is_ok());
        let roles: Vec<ComponentName> = shared.filter(|role| *role != UNET_CONTROLLED).collect();
        roles
            .into_iter()
            .map(|role| {
                let inputs = self.default_inputs(role)?;
                let (found, expected) = (self.outputs(role, &inputs)?, other.outputs(role, &inputs)?);
                if found.len() != expected.len() {
                    let reason = format!("has {} outputs, the other {}", found.len(), expected.len());
                    return Err(Error::Component { component: role, reason });
                }
                let pairs = found.iter().zip(&expected);
                Ok((role, pairs.map(|(found, expected)| drift(found, expected)).fold(0.0, f64::max)))
            })
            .collect()
    }

    fn outputs(&mut self, role: ComponentName, inputs: &[(String, Tensor)]) -> Result<Vec<ArrayD<f32>>, Error> {
        let views: Vec<(&str, TensorView<'_>)> =
            inputs.iter().map(|(name, tensor)| (name.as_str(), tensor.view())).collect();
        let made = self.engines.network(&self.bundle, role)?.run(&views)?;
        self.rest();
        Ok(made.into_iter().filter_map(Tensor::into_f32).collect())
    }

    fn default_inputs(&self, role: ComponentName) -> Result<Vec<(String, Tensor)>, Error> {
        let extent = self.default_extent()?;
        Ok(random(&tensors(&self.bundle.component(role)?.inputs, extent)))
    }
}

fn drift(found: &ArrayD<f32>, expected: &ArrayD<f32>) -> f64 {
    if found.shape() != expected.shape() {
        return f64::INFINITY;
    }
    let square = |x: f64| x * x;
    let difference: f64 = found.iter().zip(expected).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let norm: f64 = expected.iter().map(|x| square(f64::from(*x))).sum();
    let drift = (difference / norm.max(f64::MIN_POSITIVE)).sqrt();
    if drift.is_nan() { f64::INFINITY } else { drift }
}
