//! Whether two pipelines of one model compute the same.

use kiln_bundle::ComponentName;
use kiln_engine::{Tensor, TensorView};
use ndarray::ArrayD;

use super::Pipeline;
use super::measure::{Extent, random, tensors};
use crate::Error;

impl Pipeline {
    /// How far the components that another pipeline of the same model has too are from its, for the same random inputs at
    /// the model's default size: the root mean square of the difference of their outputs over that of the other's, the
    /// largest of each component's.
    pub fn compare_components(&mut self, other: &mut Pipeline) -> Result<Vec<(ComponentName, f64)>, Error> {
        let own = self.bundle.manifest().components.iter();
        let names = own.filter(|(_, component)| component.shares_weights_with.is_none()).map(|(name, _)| *name);
        let shared: Vec<ComponentName> = names.filter(|name| other.engines.component(*name).is_ok()).collect();
        shared
            .into_iter()
            .map(|name| {
                let inputs = self.default_inputs(name)?;
                let (found, expected) = (self.outputs(name, &inputs)?, other.outputs(name, &inputs)?);
                if found.len() != expected.len() {
                    let reason = format!("has {} outputs, the other {}", found.len(), expected.len());
                    return Err(Error::Component { component: name, reason });
                }
                let pairs = found.iter().zip(&expected);
                Ok((name, pairs.map(|(found, expected)| drift(found, expected)).fold(0.0, f64::max)))
            })
            .collect()
    }

    fn outputs(&mut self, name: ComponentName, inputs: &[(String, Tensor)]) -> Result<Vec<ArrayD<f32>>, Error> {
        let views: Vec<(&str, TensorView<'_>)> =
            inputs.iter().map(|(name, tensor)| (name.as_str(), tensor.view())).collect();
        let made = self.engines.chain(name)?.run(&views)?;
        self.rest();
        Ok(made.into_iter().filter_map(Tensor::into_f32).collect())
    }

    fn default_inputs(&self, name: ComponentName) -> Result<Vec<(String, Tensor)>, Error> {
        let extent = Extent::default_of(&self.facts);
        Ok(random(&tensors(&self.engines.component(name)?.inputs, extent)))
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
