//! Layers of one's own: plugins that TensorRT builds into engines and runs, `IPluginV3` of `NvInferPluginBase.h`.
//!
//! A [`PluginCreator`] is registered with [`Library::register_plugin`](crate::Library::register_plugin). From then on the
//! ONNX parser makes a [`Plugin`] for each node whose operator has the creator's name (with attributes `plugin_version`
//! and `plugin_namespace` where they are not `1` and empty), and engines that hold such plugins can be loaded.

mod build;
mod creator;
mod desc;
mod expr;
mod field;
mod object;

use std::error::Error;
use std::ffi::c_void;
use std::num::NonZeroI32;

pub use creator::PluginRegistration;
pub use desc::{DynamicTensorDesc, TensorDesc, TensorFormat};
pub use expr::{DimensionOperation, ExprBuilder, ShapeExpr};
pub use field::{Field, FieldKind, FieldSpec, FieldValue};

use crate::{CudaStream, DataType};

/// What a plugin answers; an error fails the build or run, whose reason it becomes.
pub type PluginResult<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// What a plugin is made for, `TensorRTPhase` of `NvInferPluginBase.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PluginPhase {
    /// A network that an engine is built from; fields are those that [`PluginCreator::fields`] asks for.
    Build,
    /// An engine that is loaded; fields are those of [`Plugin::fields`].
    Runtime,
}

/// Makes plugins, `IPluginCreatorV3One` of `NvInferRuntime.h`; TensorRT calls from several threads.
pub trait PluginCreator: Send + Sync {
    /// Name, which is the operator in the ONNX model; at most 1023 bytes, as version and namespace.
    fn name(&self) -> &str;

    /// Version.
    fn version(&self) -> &str {
        "1"
    }

    /// Namespace.
    fn namespace(&self) -> &str {
        ""
    }

    /// Attributes of the node that a plugin is made from.
    fn fields(&self) -> Vec<FieldSpec>;

    /// Makes the plugin of a layer; a field that the model lacks is not among the fields.
    fn create(&self, layer: &str, fields: &[Field], phase: PluginPhase) -> PluginResult<Box<dyn Plugin>>;
}

/// A layer of one's own: `IPluginV3OneCore`, `IPluginV3OneBuild` and `IPluginV3OneRuntime` of `NvInferRuntime.h`.
///
/// TensorRT calls from several threads, and clones the plugin for each execution context. A panic fails the build or run.
pub trait Plugin: Send + Sync {
    /// The same plugin, ready to be used.
    fn clone_plugin(&self) -> Box<dyn Plugin>;

    /// Number of outputs, at least 1.
    fn n_outputs(&self) -> usize;

    /// Element types of outputs; neither [`DataType::Bool`] nor [`DataType::U8`].
    fn output_types(&self, inputs: &[DataType]) -> PluginResult<Vec<DataType>>;

    /// Sizes of outputs, from those of inputs and from the values of inputs that are shapes.
    fn output_shapes<'e>(
        &self,
        inputs: &[Vec<ShapeExpr<'e>>],
        shape_inputs: &[Vec<ShapeExpr<'e>>],
        exprs: &ExprBuilder<'e>,
    ) -> PluginResult<Vec<Vec<ShapeExpr<'e>>>>;

    /// Whether the last of `tensors` may have its type and format, given those before it. They are inputs and then
    /// outputs, as far as TensorRT has come.
    fn supports_format(&self, tensors: &[DynamicTensorDesc], n_inputs: usize) -> bool;

    /// Tells types, formats and bounds of sizes that TensorRT is about to time or has chosen.
    fn configure(&self, _inputs: &[DynamicTensorDesc], _outputs: &[DynamicTensorDesc]) -> PluginResult<()> {
        Ok(())
    }

    /// Bytes of device memory that a run needs at the most sizes.
    fn workspace_size(&self, _inputs: &[DynamicTensorDesc], _outputs: &[DynamicTensorDesc]) -> usize {
        0
    }

    /// Tactics for what was last configured, for TensorRT to time; with none it runs tactic 0.
    fn tactics(&self) -> Vec<NonZeroI32> {
        Vec::new()
    }

    /// What tells plugins of this name apart in the timing cache, from their fields alone; none keeps them out of it.
    fn timing_cache_id(&self) -> Option<String> {
        None
    }

    /// The tactic that later runs take.
    fn set_tactic(&self, _tactic: i32) -> PluginResult<()> {
        Ok(())
    }

    /// Sizes that later runs have.
    fn on_shape_change(&self, _inputs: &[TensorDesc], _outputs: &[TensorDesc]) -> PluginResult<()> {
        Ok(())
    }

    /// Puts the layer's work onto the stream.
    ///
    /// # Safety
    ///
    /// The addresses are of device memory for the tensors that they belong to, and live until the stream is done.
    unsafe fn enqueue(&self, run: &PluginRun<'_>) -> PluginResult<()>;

    /// What the plugin is made from when an engine is loaded.
    fn fields(&self) -> Vec<Field>;
}

/// What a plugin works on.
#[derive(Clone, Copy, Debug)]
pub struct PluginRun<'a> {
    /// The inputs.
    pub inputs: &'a [TensorDesc],
    /// The outputs.
    pub outputs: &'a [TensorDesc],
    /// Where inputs are, on the device.
    pub input_addresses: &'a [*const c_void],
    /// Where outputs go, on the device.
    pub output_addresses: &'a [*mut c_void],
    /// Device memory of as many bytes as [`Plugin::workspace_size`] has asked for.
    pub workspace: *mut c_void,
    /// The stream.
    pub stream: CudaStream,
}
