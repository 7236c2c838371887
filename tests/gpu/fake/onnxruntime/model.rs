//! Models for the CUDA provider as models for the processor.

/// Operators that the processor does not have as functions of those it has, by other names; `functions.py` makes them.
const FUNCTIONS: &[u8] = include_bytes!("functions.bin");

/// The names of the operators, and those of the functions.
const NAMES: [(&str, &str); 2] = [("GroupNorm", "GroupNrmX"), ("NhwcConv", "NhwcCnvX")];

/// A model that the processor runs.
pub(crate) fn for_processor(mut model: Vec<u8>) -> Vec<u8> {
    for (operator, function) in NAMES {
        let field = op_type(operator);
        let places: Vec<usize> = places(&model, &field).collect();
        for at in places {
            model[at + field.len() - function.len()..at + field.len()].copy_from_slice(function.as_bytes());
        }
    }
    model.extend_from_slice(FUNCTIONS);
    model
}

/// Whether all its operators run on the device: the CUDA provider finds no largest integer.
pub(crate) fn is_for_device_alone(model: &[u8]) -> bool {
    places(model, &op_type("ArgMax")).next().is_none()
}

/// A node's field with the name of its operator.
fn op_type(name: &str) -> Vec<u8> {
    [&[0x22, name.len() as u8], name.as_bytes()].concat()
}

fn places(model: &[u8], field: &[u8]) -> impl Iterator<Item = usize> {
    let windows = model.windows(field.len()).enumerate();
    windows.filter(move |(_, window)| *window == field).map(|(at, _)| at)
}
