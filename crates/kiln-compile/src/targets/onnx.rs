//! ONNX models with their weights beside them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::component;
use crate::TracedModel;
use crate::cache::Built;
use crate::trace::{Traced, write_all};
use crate::{CompileError, Progress};

pub(crate) fn build(
    traced: &[Traced<'_>],
    folder: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Built, CompileError> {
    let written = write_all(traced, folder, progress)?;
    let mut components = BTreeMap::new();
    let mut files = BTreeSet::new();
    for traced in traced {
        let models: Vec<&TracedModel> = written.iter().filter(|model| model.name == traced.name).collect();
        files.extend(models.iter().flat_map(|model| [model.file.clone(), model.weights.clone()]));
        components.insert(traced.name, component(traced, &models));
    }
    Ok(Built { components, files: files.into_iter().collect(), peak_bytes: None })
}
