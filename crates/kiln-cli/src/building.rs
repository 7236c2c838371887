//! What engines are built with.

use std::sync::Arc;

use kiln_bundle::Target;
use kiln_compile::{BuildOptions, Checkpoint, ComputeCapability, TargetSpec, Toolkit};
use kiln_runtime::{Place, library};

use crate::backends::libraries;
use crate::build::OtherProcess;
use crate::failure::Failure;

/// What builds engines of a target, fetched if need be.
pub(crate) fn toolkit(target: Target) -> Result<Toolkit, Failure> {
    match library(target) {
        Some(library) => Ok(Toolkit::open(libraries().find(library)?, Arc::new(OtherProcess))?),
        None => Err(Failure::usage(format!("no library builds engines for {target}"))),
    }
}

/// What engines are built with that run in a place, as a specification for its target says.
pub(crate) fn options_for(
    place: &Place,
    checkpoint: &Checkpoint,
    mut spec: TargetSpec,
) -> Result<BuildOptions, Failure> {
    if let Some(devices) = spec.compute_capabilities_mut() {
        *devices = place.compute_capability().map(ComputeCapability).into_iter().collect();
    }
    spec.build_options(checkpoint, Vec::new(), toolkit)
}
