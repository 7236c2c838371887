//! What TensorRT asks a plugin while it builds, `IPluginV3OneBuild` of `NvInferRuntime.h`.

use std::ffi::{c_char, c_void};
use std::ptr::null;

use super::desc::DynamicTensorDesc;
use super::expr::{DimsExprs, ExprBuilder};
use super::object::{Function, Part, slice};
use crate::DataType;
use crate::callback::InterfaceInfo;

pub(super) static METHODS: [Function; 12] = [
    Function("getInterfaceInfo", info as *const c_void),
    Function("configurePlugin", configure as *const c_void),
    Function("getOutputDataTypes", output_types as *const c_void),
    Function("getOutputShapes", output_shapes as *const c_void),
    Function("supportsFormatCombination", supports_format as *const c_void),
    Function("getNbOutputs", n_outputs as *const c_void),
    Function("getWorkspaceSize", workspace_size as *const c_void),
    Function("getValidTactics", tactics as *const c_void),
    Function("getNbTactics", n_tactics as *const c_void),
    Function("getTimingCacheID", timing_cache_id as *const c_void),
    Function("getFormatCombinationLimit", format_combination_limit as *const c_void),
    Function("getMetadataString", metadata as *const c_void),
];

extern "C" fn info(_this: *const Part) -> InterfaceInfo {
    InterfaceInfo::first(c"PLUGIN_V3ONE_BUILD")
}

extern "C" fn configure(
    this: *const Part,
    inputs: *const DynamicTensorDesc,
    n_inputs: i32,
    outputs: *const DynamicTensorDesc,
    n_outputs: i32,
) -> i32 {
    // SAFETY: TensorRT calls a plugin that it has not deleted, with as many tensors as it says.
    let (object, inputs, outputs) =
        unsafe { (Part::owner(this), slice(inputs, n_inputs), slice(outputs, n_outputs)) };
    object.status("cannot be configured", |plugin| plugin.configure(inputs, outputs))
}

extern "C" fn output_types(
    this: *const Part,
    outputs: *mut i32,
    n_outputs: i32,
    inputs: *const i32,
    n_inputs: i32,
) -> i32 {
    // SAFETY: TensorRT calls a plugin that it has not deleted, with as many types as it says.
    let (object, inputs) = unsafe { (Part::owner(this), slice(inputs, n_inputs)) };
    object.status("cannot tell its outputs' types", |plugin| {
        let inputs: Vec<_> = inputs.iter().map(|number| DataType::from_number(*number)).collect();
        let types = plugin.output_types(&inputs)?;
        let numbers: Vec<_> = types.into_iter().map(DataType::to_number).collect();
        // SAFETY: TensorRT has room for as many types as it says.
        unsafe { fill(outputs, n_outputs, numbers) }
    })
}

extern "C" fn output_shapes(
    this: *const Part,
    inputs: *const DimsExprs,
    n_inputs: i32,
    shape_inputs: *const DimsExprs,
    n_shape_inputs: i32,
    outputs: *mut DimsExprs,
    n_outputs: i32,
    builder: *mut c_void,
) -> i32 {
    // SAFETY: TensorRT calls a plugin that it has not deleted, with as many shapes as it says.
    let (object, inputs, shape_inputs) =
        unsafe { (Part::owner(this), slice(inputs, n_inputs), slice(shape_inputs, n_shape_inputs)) };
    object.status("cannot tell its outputs' sizes", |plugin| {
        let exprs = ExprBuilder::new(builder, object.tables());
        let read =
            |shapes: &[DimsExprs]| shapes.iter().map(|shape| exprs.read(shape)).collect::<Result<Vec<_>, _>>();
        let shapes = plugin.output_shapes(&read(inputs)?, &read(shape_inputs)?, &exprs)?;
        let shapes: Option<Vec<_>> = shapes.iter().map(|shape| DimsExprs::new(shape)).collect();
        // SAFETY: TensorRT has room for as many shapes as it says.
        unsafe { fill(outputs, n_outputs, shapes.ok_or("an output has too many sizes")?) }
    })
}

/// Writes answers to where TensorRT has room for `n`.
///
/// # Safety
///
/// There is room for `n` values at `to`.
unsafe fn fill<T>(to: *mut T, n: i32, answers: Vec<T>) -> super::PluginResult<()> {
    if usize::try_from(n) != Ok(answers.len()) {
        return Err(format!("it answers for {} where TensorRT asks for {n}", answers.len()).into());
    }
    for (index, answer) in answers.into_iter().enumerate() {
        // SAFETY: `index` is less than `n`.
        unsafe { to.add(index).write(answer) }
    }
    Ok(())
}

extern "C" fn supports_format(
    this: *const Part,
    position: i32,
    tensors: *const DynamicTensorDesc,
    n_inputs: i32,
    n_outputs: i32,
) -> bool {
    if !(0..n_inputs.saturating_add(n_outputs)).contains(&position) {
        return false;
    }
    // SAFETY: TensorRT calls a plugin that it has not deleted; tensors up to the position are set.
    let (object, tensors) = unsafe { (Part::owner(this), slice(tensors, position + 1)) };
    let n_inputs = usize::try_from(n_inputs).unwrap_or(0);
    object.answer("cannot tell its formats", false, |plugin| Ok(plugin.supports_format(tensors, n_inputs)))
}

extern "C" fn n_outputs(this: *const Part) -> i32 {
    // SAFETY: TensorRT calls a plugin that it has not deleted.
    let object = unsafe { Part::owner(this) };
    object.answer("cannot tell its outputs", -1, |plugin| Ok(i32::try_from(plugin.n_outputs())?))
}

extern "C" fn workspace_size(
    this: *const Part,
    inputs: *const DynamicTensorDesc,
    n_inputs: i32,
    outputs: *const DynamicTensorDesc,
    n_outputs: i32,
) -> usize {
    // SAFETY: TensorRT calls a plugin that it has not deleted, with as many tensors as it says.
    let (object, inputs, outputs) =
        unsafe { (Part::owner(this), slice(inputs, n_inputs), slice(outputs, n_outputs)) };
    // More than any device has: TensorRT then refuses the plugin.
    const REFUSED: usize = isize::MAX as usize;
    object.answer("cannot tell its workspace", REFUSED, |plugin| Ok(plugin.workspace_size(inputs, outputs)))
}

extern "C" fn n_tactics(this: *const Part) -> i32 {
    // SAFETY: TensorRT calls a plugin that it has not deleted.
    let object = unsafe { Part::owner(this) };
    object.answer("cannot tell its tactics", 0, |plugin| Ok(i32::try_from(plugin.tactics().len())?))
}

extern "C" fn tactics(this: *const Part, tactics: *mut i32, n_tactics: i32) -> i32 {
    // SAFETY: TensorRT calls a plugin that it has not deleted.
    let object = unsafe { Part::owner(this) };
    object.status("cannot tell its tactics", |plugin| {
        let answers = plugin.tactics().into_iter().map(i32::from).collect();
        // SAFETY: TensorRT has room for as many tactics as it says.
        unsafe { fill(tactics, n_tactics, answers) }
    })
}

extern "C" fn timing_cache_id(this: *const Part) -> *const c_char {
    // SAFETY: TensorRT calls a plugin that it has not deleted.
    unsafe { Part::owner(this) }.timing_cache_id()
}

extern "C" fn format_combination_limit(_this: *const Part) -> i32 {
    const DEFAULT: i32 = 100;
    DEFAULT
}

extern "C" fn metadata(_this: *const Part) -> *const c_char {
    null()
}
