//! JSON files of checkpoints.

use std::path::Path;

use kiln_bundle::read;
use serde_json::Value;

use crate::CompileError;

/// Largest JSON file that is read.
const MAX_JSON: u64 = 8 << 20;

/// Reads a file, which must not be larger than any configuration.
pub(crate) fn read_json(path: &Path) -> Result<Value, CompileError> {
    read::json(path, MAX_JSON, "configuration").map_err(|e| CompileError::reading(path, e))
}
