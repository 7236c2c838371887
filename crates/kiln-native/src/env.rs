//! Environment variables.

/// Folder for everything that kiln downloads; the platform's cache folder by default.
pub const KILN_CACHE_DIR: &str = "KILN_CACHE_DIR";

/// ONNX Runtime's shared library, or the folder that holds it.
pub const KILN_ONNXRUNTIME: &str = "KILN_ONNXRUNTIME";
