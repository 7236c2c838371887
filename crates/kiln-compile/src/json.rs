//! JSON files of checkpoints.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::CompileError;

/// Largest JSON file that is read.
const MAX_JSON: u64 = 64 << 20;

/// Reads a file, which must not be larger than any configuration.
pub(crate) fn read_json(path: &Path) -> Result<Value, CompileError> {
    let size = fs::metadata(path).map_err(|e| CompileError::io(path, &e))?.len();
    if size > MAX_JSON {
        return Err(CompileError::checkpoint(path, format!("has {size} bytes, more than any configuration")));
    }
    let text = fs::read(path).map_err(|e| CompileError::io(path, &e))?;
    serde_json::from_slice(&text).map_err(|e| CompileError::checkpoint(path, e.to_string()))
}
