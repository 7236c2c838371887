//! Engines that compute on the host.

use std::path::Path;

use ndarray::ArrayViewD;

use crate::bind::bind;
use crate::error::EngineErrorKind;
use crate::{EngineError, Port, TensorView};

/// A view of a tensor in memory of the host.
#[derive(Debug)]
pub(crate) enum HostView<'a> {
    F32(ArrayViewD<'a, f32>),
    I64(ArrayViewD<'a, i64>),
}

impl<'a> HostView<'a> {
    fn new(view: &'a TensorView<'_>) -> Option<HostView<'a>> {
        match view {
            TensorView::F32(array) => Some(HostView::F32(array.view())),
            TensorView::I64(array) => Some(HostView::I64(array.view())),
            #[cfg(feature = "cuda")]
            TensorView::Device(_) => None,
        }
    }
}

/// Like [`bind`], for an engine that computes on the host.
pub(crate) fn bind_on_host<'a>(
    model: &Path,
    ports: &[Port],
    inputs: &'a [(&str, TensorView<'_>)],
) -> Result<Vec<HostView<'a>>, EngineError> {
    let bound = bind(model, ports, inputs)?.into_iter();
    let on_host: Option<_> = bound.map(HostView::new).collect();
    on_host.ok_or_else(|| EngineError::new(EngineErrorKind::Input, model, "an input is on a device"))
}
