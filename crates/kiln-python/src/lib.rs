//! kiln for Python: what `python/kiln` is built on. Requests and options are JSON, pictures width, height and bytes.

mod engine;
mod failure;

use pyo3::prelude::*;

/// The native part of kiln.
#[pymodule]
mod _kiln {
    #[pymodule_export]
    use super::compile;
    #[pymodule_export]
    use super::engine::Engine;
    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}

/// Makes a bundle of a checkpoint in the engine cache, or finds it there, and gives its folder.
#[pyfunction]
#[pyo3(signature = (checkpoint, target="cpu", precision=None, engine_cache=None))]
fn compile(
    py: Python<'_>,
    checkpoint: &str,
    target: &str,
    precision: Option<&str>,
    engine_cache: Option<&str>,
) -> PyResult<String> {
    failure::detached(py, || engine::compile(checkpoint, target, precision, engine_cache))
}
