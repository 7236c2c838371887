//! How many fields a message has, which is looked at before it is read: an empty message of two bytes is large once it is.

use prost::bytes::{Buf, Bytes};
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

/// Most fields of a message that is read.
const MAX_FIELDS: usize = 4096;

/// Where messages lie that hold many fields: inputs, and their contents.
const CROWDED: [u32; 2] = [5, 5];

/// Refuses a message of too many fields.
pub(super) fn check(message: &Bytes) -> Result<(), String> {
    match n_fields(message.clone(), &CROWDED) {
        0..=MAX_FIELDS => Ok(()),
        _ => Err(format!("the message has more than {MAX_FIELDS} fields")),
    }
}

/// Number of fields, those of the messages at `path` with them; no more are counted than are allowed, nor behind what is no
/// field.
fn n_fields(mut data: Bytes, path: &[u32]) -> usize {
    let mut n = 0;
    while data.has_remaining() && n <= MAX_FIELDS {
        let Ok((tag, wire)) = decode_key(&mut data) else { break };
        n += 1;
        if wire != WireType::LengthDelimited {
            match skip_field(wire, tag, &mut data, DecodeContext::default()) {
                Ok(()) => continue,
                Err(_) => break,
            }
        }
        let length = decode_varint(&mut data).ok().and_then(|length| usize::try_from(length).ok());
        let Some(length) = length.filter(|length| *length <= data.remaining()) else { break };
        let field = data.split_to(length);
        if let Some((first, rest)) = path.split_first()
            && tag == *first
        {
            n += n_fields(field, rest);
        }
    }
    n
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::grpc::messages::{InferInputTensor, InferTensorContents, ModelInferRequest};

    #[test]
    fn fields_are_counted_at_each_depth() {
        let contents = InferTensorContents { bytes_contents: vec![Bytes::new(); 7], ..Default::default() };
        let input = InferInputTensor { contents: Some(contents), shape: vec![1, 2], ..Default::default() };
        let request = ModelInferRequest { inputs: vec![input; 2], ..Default::default() };
        // Two inputs, each with a packed shape, contents, and seven texts.
        assert_eq!(n_fields(request.encode_to_vec().into(), &CROWDED), 2 * (1 + 2 + 7));
    }

    #[test]
    fn many_empty_messages_are_counted_no_further_than_allowed() {
        let data: Bytes = [0x2a, 0].repeat(1 << 20).into();
        assert_eq!(n_fields(data, &CROWDED), MAX_FIELDS + 1);
        assert_eq!(n_fields(Bytes::from_static(&[0xff; 64]), &CROWDED), 0);
        assert_eq!(n_fields(Bytes::from_static(&[0x2a, 0xff, 0xff, 0x7f]), &CROWDED), 1);
    }
}
