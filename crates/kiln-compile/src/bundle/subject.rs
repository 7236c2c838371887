//! What a bundle is made from: a pipeline's checkpoint, or a ControlNet's.

use std::path::Path;

use kiln_bundle::{Content, ControlNetInfo};
use kiln_nets::Sizes;

use super::content::pipeline_info;
use crate::checkpoint::{ControlNetCheckpoint, Source};
use crate::trace::{Traced, trace_pipeline, trace_steering};
use crate::{Checkpoint, CompileError, Progress, TraceOptions};

/// What a bundle is made from.
pub(crate) enum Subject<'a> {
    Pipeline(&'a Checkpoint),
    ControlNet(&'a ControlNetCheckpoint),
}

impl<'a> Subject<'a> {
    pub(super) fn root(&self) -> &'a Path {
        match self {
            Subject::Pipeline(checkpoint) => checkpoint.root(),
            Subject::ControlNet(checkpoint) => checkpoint.root(),
        }
    }

    pub(super) fn name(&self) -> String {
        match self {
            Subject::Pipeline(checkpoint) => checkpoint.name(),
            Subject::ControlNet(checkpoint) => checkpoint.name(),
        }
    }

    pub(super) fn trace(
        &self,
        options: &TraceOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<Traced<'a>>, CompileError> {
        match self {
            Subject::Pipeline(checkpoint) => trace_pipeline(checkpoint, options, progress),
            Subject::ControlNet(checkpoint) => trace_steering(checkpoint, options, progress),
        }
    }

    pub(super) fn content(&self, sizes: Sizes, traced: &[Traced<'_>]) -> Content {
        match self {
            Subject::Pipeline(checkpoint) => Content::Pipeline(pipeline_info(checkpoint, sizes, traced)),
            Subject::ControlNet(checkpoint) => Content::Controlnet(ControlNetInfo {
                scale_factor: checkpoint.part.config.scale_factor() as u32,
                latent_channels: checkpoint.part.config.in_channels() as u32,
                cross_attention_dim: checkpoint.part.config.cross_attention_dim() as u32,
            }),
        }
    }

    /// Small files that the bundle takes over.
    pub(super) fn companions(&self) -> Result<Vec<(String, Source)>, CompileError> {
        match self {
            Subject::Pipeline(checkpoint) => checkpoint.companions(),
            Subject::ControlNet(_) => Ok(Vec::new()),
        }
    }

    /// Bundles inside the bundle, by folder.
    pub(super) fn nested(&self) -> Vec<(String, Subject<'a>)> {
        match self {
            Subject::Pipeline(checkpoint) => {
                let nets = checkpoint.controlnets.iter();
                nets.map(|net| (net.part.name.clone(), Subject::ControlNet(net))).collect()
            }
            Subject::ControlNet(_) => Vec::new(),
        }
    }
}
