use std::path::Path;

use crate::error::EngineErrorKind;
use crate::{EngineError, Port, TensorView};

/// The inputs in the order of the ports, after names, types and shapes were checked.
pub(crate) fn bind<'a, 'v>(
    model: &Path,
    ports: &[Port],
    inputs: &'a [(&str, TensorView<'v>)],
) -> Result<Vec<&'a TensorView<'v>>, EngineError> {
    let refuse = |reason| EngineError::new(EngineErrorKind::Input, model, reason);
    if let Some((name, _)) = inputs.iter().find(|(name, _)| !ports.iter().any(|port| port.name == *name)) {
        let names: Vec<&str> = ports.iter().map(|port| port.name.as_str()).collect();
        return Err(refuse(format!("has no input '{name}'; it has {}", names.join(", "))));
    }
    ports
        .iter()
        .map(|port| match inputs.iter().find(|(name, _)| *name == port.name) {
            Some((_, value)) if port.accepts(value) => Ok(value),
            Some((_, value)) => {
                Err(refuse(format!("input {port} got {} {:?}", value.element_type(), value.shape())))
            }
            None => Err(refuse(format!("input {port} is missing"))),
        })
        .collect()
}
