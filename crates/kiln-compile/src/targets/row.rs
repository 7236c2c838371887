//! What compiling needs to know of each target, in one table.

use kiln_bundle::Target;
use kiln_graph::{Flavor, Precision};

use crate::SEGMENT_BYTES;

/// A target, as it is built where nothing else is asked for.
pub(crate) struct TargetRow {
    target: Target,
    /// Type that networks compute in.
    pub(crate) compute: Precision,
    /// Whether norms are computed in the same type, because their kernels sum in f32 whatever they read.
    pub(crate) norms_as_computed: bool,
    /// Dialect of ONNX.
    pub(crate) flavor: Flavor,
    /// Most bytes of weights in a segment; whole models without it.
    pub(crate) segments: Option<u64>,
    /// Whether there is a second UNet, for ControlNets.
    pub(crate) controlled: bool,
    /// Whether engines can stream their weights to the device; others are unloaded and loaded instead.
    pub(crate) streams_weights: bool,
}

const GPU: TargetRow = TargetRow {
    target: Target::Cuda,
    compute: Precision::F16,
    norms_as_computed: false,
    flavor: Flavor::Standard,
    segments: None,
    controlled: false,
    streams_weights: false,
};

static ROWS: [TargetRow; 5] = [
    TargetRow {
        target: Target::Cpu,
        compute: Precision::F32,
        flavor: Flavor::OnnxRuntime,
        segments: Some(SEGMENT_BYTES),
        controlled: true,
        ..GPU
    },
    TargetRow { target: Target::Cuda, norms_as_computed: true, flavor: Flavor::OnnxRuntimeCuda, ..GPU },
    TargetRow { target: Target::TensorrtRtx, ..GPU },
    TargetRow { target: Target::Tensorrt, streams_weights: true, ..GPU },
    TargetRow { target: Target::Onnx, ..GPU },
];

impl TargetRow {
    pub(crate) fn of(target: Target) -> &'static TargetRow {
        ROWS.iter().find(|row| row.target == target).expect("every target has a row")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_one_row() {
        for target in Target::ALL {
            assert_eq!(TargetRow::of(target).target, target);
        }
        assert_eq!(ROWS.len(), Target::ALL.len());
    }
}
