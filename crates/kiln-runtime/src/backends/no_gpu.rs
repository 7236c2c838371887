//! What takes the place of GPUs in a program without them.

use std::convert::Infallible;
use std::sync::Arc;

use kiln_bundle::Target;
use kiln_engine::Backend;

use super::Libraries;
use crate::Error;

/// A GPU that is in use: never, without the feature `cuda` and a library that runs engines there.
#[derive(Clone, Debug)]
pub struct Gpu(Infallible);

impl Gpu {
    pub(super) fn open(_ordinal: usize, _target: Target) -> Result<Gpu, Error> {
        Err(Error::Feature { what: "support for GPUs", feature: "cuda" })
    }

    pub(super) fn is_present() -> bool {
        false
    }

    pub(super) fn check(ordinal: usize, target: Target) -> Result<(), Error> {
        Gpu::open(ordinal, target).map(drop)
    }

    /// Its number, from 0.
    pub fn ordinal(&self) -> usize {
        match self.0 {}
    }

    /// Its name.
    pub fn name(&self) -> &str {
        match self.0 {}
    }

    /// Major and minor compute capability.
    pub fn compute_capability(&self) -> [u32; 2] {
        match self.0 {}
    }

    /// Bytes of its memory that are taken, by whomever.
    pub fn taken_bytes(&self) -> Option<u64> {
        match self.0 {}
    }

    pub(super) fn open_backend(
        &self,
        _target: Target,
        _libraries: &Libraries,
        _records: bool,
    ) -> Result<Arc<dyn Backend>, Error> {
        match self.0 {}
    }
}
