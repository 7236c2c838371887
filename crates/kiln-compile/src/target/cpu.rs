//! ONNX models with their weights beside them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::component;
use crate::cache::Built;
use crate::trace::{Traced, write_all};
use crate::{CompileError, Progress};

pub(crate) fn build(
    traced: &[Traced<'_>],
    folder: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Built, CompileError> {
    let mut components = BTreeMap::new();
    let mut files = BTreeSet::new();
    for model in write_all(traced, folder, progress)? {
        files.extend([model.file.clone(), model.weights.clone()]);
        let traced = traced.iter().find(|traced| traced.role == model.role);
        let precision = traced.map_or(kiln_graph::DType::F32, |traced| traced.precision);
        let component = component(&model.model, model.file, Some(model.weights), precision);
        components.insert(model.role, component);
    }
    Ok(Built { components, files: files.into_iter().collect(), peak_bytes: None })
}
