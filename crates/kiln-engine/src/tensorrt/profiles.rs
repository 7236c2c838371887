//! The sizes that an engine was built for.

use std::path::Path;

use kiln_trt::{Engine, TrtError};

use crate::error::EngineErrorKind::Input;
use crate::{EngineError, Port};

/// Least and most sizes of each input, per profile.
pub(super) struct Profiles {
    inputs: Vec<String>,
    ranges: Vec<Vec<Vec<[i64; 2]>>>,
}

impl Profiles {
    pub(super) fn new(engine: &Engine, n_profiles: usize, inputs: &[Port]) -> Result<Profiles, TrtError> {
        let range = |port: &Port, profile: usize| {
            let shape = engine.profile_shape(&port.name, profile)?;
            Ok(shape.min.into_iter().zip(shape.max).map(|(min, max)| [min, max]).collect())
        };
        let of_profile = |profile| inputs.iter().map(|port| range(port, profile)).collect();
        let ranges = (0..n_profiles).map(of_profile).collect::<Result<_, TrtError>>()?;
        Ok(Profiles { inputs: inputs.iter().map(|port| port.name.clone()).collect(), ranges })
    }

    /// The first profile that has these sizes of the inputs.
    pub(super) fn choose(&self, model: &Path, shapes: &[Vec<i64>]) -> Result<usize, EngineError> {
        let chosen = self
            .ranges
            .iter()
            .position(|profile| profile.iter().zip(shapes).all(|(ranges, shape)| fits(ranges, shape)));
        chosen.ok_or_else(|| {
            let unfit =
                |ranges: &Vec<Vec<[i64; 2]>>| (0..shapes.len()).find(|&i| !fits(&ranges[i], &shapes[i]));
            let input = self.ranges.iter().find_map(unfit).unwrap_or(0);
            let built: Vec<String> = self.ranges.iter().map(|ranges| show(&ranges[input])).collect();
            let reason = format!(
                "input '{}' got {:?}, and the engine was built for {}",
                self.inputs[input],
                shapes[input],
                built.join(" or ")
            );
            EngineError::new(Input, model, reason)
        })
    }
}

fn fits(ranges: &[[i64; 2]], shape: &[i64]) -> bool {
    ranges.len() == shape.len() && ranges.iter().zip(shape).all(|([min, max], n)| (min..=max).contains(&n))
}

fn show(ranges: &[[i64; 2]]) -> String {
    let side = |[min, max]: &[i64; 2]| if min == max { min.to_string() } else { format!("{min}..{max}") };
    format!("[{}]", ranges.iter().map(side).collect::<Vec<_>>().join(", "))
}
