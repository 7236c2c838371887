//! Protobuf's wire format: fields of a message one after the other, each copied or replaced.

use std::str;

/// A field of a message.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Field<'a> {
    pub(super) number: u32,
    pub(super) value: Value<'a>,
    /// All of its bytes.
    pub(super) raw: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// Four or eight bytes.
    Fixed(&'a [u8]),
}

impl<'a> Field<'a> {
    /// The bytes of a message, a text or bytes.
    pub(super) fn bytes(&self) -> Option<&'a [u8]> {
        match self.value {
            Value::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    pub(super) fn text(&self) -> Option<&'a str> {
        str::from_utf8(self.bytes()?).ok()
    }

    pub(super) fn number(&self) -> Option<i64> {
        match self.value {
            Value::Number(number) => Some(number as i64),
            _ => None,
        }
    }
}

/// The fields of a message, in order; none where the bytes are no message.
pub(super) fn fields(message: &[u8]) -> Option<Vec<Field<'_>>> {
    let (mut rest, mut found) = (message, Vec::new());
    while !rest.is_empty() {
        let start = rest;
        let key = take_number(&mut rest)?;
        let value = match key & 7 {
            0 => Value::Number(take_number(&mut rest)?),
            1 => Value::Fixed(take(&mut rest, 8)?),
            2 => {
                let length = usize::try_from(take_number(&mut rest)?).ok()?;
                Value::Bytes(take(&mut rest, length)?)
            }
            5 => Value::Fixed(take(&mut rest, 4)?),
            _ => return None,
        };
        let (number, raw) = (u32::try_from(key >> 3).ok()?, &start[..start.len() - rest.len()]);
        found.push(Field { number, value, raw });
    }
    Some(found)
}

/// Appends a field of bytes.
pub(super) fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_number(out, u64::from(number) << 3 | 2);
    put_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends a field with a number.
pub(super) fn put(out: &mut Vec<u8>, number: u32, value: u64) {
    put_number(out, u64::from(number) << 3);
    put_number(out, value);
}

fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn take_number(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(rest, 1)?[0];
        number |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

fn take<'a>(rest: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(n)?;
    *rest = left;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut message = Vec::new();
        put(&mut message, 1, 300);
        put_bytes(&mut message, 900, b"text");
        message.extend([0x1d, 1, 2, 3, 4]);
        let fields = fields(&message).expect("a message");
        assert_eq!((fields[0].number, fields[0].number()), (1, Some(300)));
        assert_eq!((fields[1].number, fields[1].text()), (900, Some("text")));
        assert_eq!((fields[2].number, fields[2].value), (3, Value::Fixed(&[1, 2, 3, 4])));
        assert_eq!(fields.iter().flat_map(|field| field.raw).copied().collect::<Vec<_>>(), message);
    }

    proptest! {
        #[test]
        fn bytes_are_a_message_of_the_same_bytes_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Some(fields) = fields(&bytes) {
                prop_assert_eq!(fields.iter().flat_map(|field| field.raw).copied().collect::<Vec<_>>(), bytes);
            }
        }
    }
}
