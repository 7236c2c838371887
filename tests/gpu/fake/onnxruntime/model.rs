//! Models for the CUDA provider as models for the processor.

/// `GroupNorm` as a function of the processor's operators, by another name; `group_norm.py` makes it.
const FUNCTION: &[u8] = include_bytes!("group_norm.bin");

/// What comes before an operator's name of nine letters in a model.
const OP_TYPE: [u8; 2] = [0x22, 9];

/// A model that the processor runs: `GroupNorm`, which it does not have, becomes a function.
pub(crate) fn for_processor(mut model: Vec<u8>) -> Vec<u8> {
    let (name, function) = (b"GroupNorm", b"GroupNrmX");
    let places: Vec<usize> = model
        .windows(OP_TYPE.len() + name.len())
        .enumerate()
        .filter(|(_, window)| window.starts_with(&OP_TYPE) && window.ends_with(name))
        .map(|(at, _)| at + OP_TYPE.len())
        .collect();
    for at in places {
        model[at..at + name.len()].copy_from_slice(function);
    }
    model.extend_from_slice(FUNCTION);
    model
}

/// Whether all its operators run on the device: the CUDA provider finds no largest integer.
pub(crate) fn is_for_device_alone(model: &[u8]) -> bool {
    let op = [&[0x22, 6][..], b"ArgMax"].concat();
    !model.windows(op.len()).any(|window| window == op)
}
