//! Elements of tensors as JSON: flat, or nested as their shape is.

use std::fmt;

use axum::body::Bytes;
use serde::de::{DeserializeSeed, Deserializer, Error, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::tensor::{Datatype, Values};

/// Reads at most `n` elements.
pub(crate) fn read(datatype: Datatype, n: usize, data: &RawValue) -> Result<Values, String> {
    let mut values = match datatype {
        Datatype::Uint8 => Growing::Octets(Vec::new()),
        Datatype::Fp32 | Datatype::Fp64 => Growing::Floats(Vec::new()),
        Datatype::Bytes => Growing::Texts(Vec::new()),
        _ => Growing::Integers(Vec::new()),
    };
    let mut reader = serde_json::Deserializer::from_str(data.get());
    let flat = Flat { datatype, limit: n, values: &mut values };
    flat.deserialize(&mut reader).map_err(|e| plain(&e.to_string()))?;
    Ok(match values {
        Growing::Octets(octets) => Values::Octets(octets.into()),
        Growing::Integers(integers) => Values::Integers(integers),
        Growing::Floats(floats) => Values::Floats(floats),
        Growing::Texts(texts) => Values::Texts(texts),
    })
}

/// A message without the place, which is not one of the body.
fn plain(message: &str) -> String {
    let end = message.rfind(" at line ").unwrap_or(message.len());
    message[..end].chars().take(200).collect()
}

enum Growing {
    Octets(Vec<u8>),
    Integers(Vec<i128>),
    Floats(Vec<f64>),
    Texts(Vec<Bytes>),
}

impl Growing {
    fn len(&self) -> usize {
        match self {
            Growing::Octets(octets) => octets.len(),
            Growing::Integers(integers) => integers.len(),
            Growing::Floats(floats) => floats.len(),
            Growing::Texts(texts) => texts.len(),
        }
    }
}

/// Gathers the elements below one value.
struct Flat<'a> {
    datatype: Datatype,
    limit: usize,
    values: &'a mut Growing,
}

impl Flat<'_> {
    fn integer<E: Error>(self, x: i128) -> Result<(), E> {
        self.check()?;
        let (min, max) = self.datatype.bounds().unwrap_or((i128::MIN, i128::MAX));
        if x < min || x > max {
            return Err(E::custom(format!("{x} is no {}", self.datatype.name())));
        }
        match self.values {
            Growing::Octets(octets) => octets.push(x as u8),
            Growing::Integers(integers) => integers.push(x),
            Growing::Floats(floats) => floats.push(x as f64),
            Growing::Texts(_) => return Err(self.wrong("a number")),
        }
        Ok(())
    }

    fn check<E: Error>(&self) -> Result<(), E> {
        match self.values.len() < self.limit {
            true => Ok(()),
            false => Err(E::custom(format!("more elements than its shape has, {}", self.limit))),
        }
    }

    fn wrong<E: Error>(&self, what: &str) -> E {
        E::custom(format!("{what} is no {}", self.datatype.name()))
    }
}

impl<'de> DeserializeSeed<'de> for Flat<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Flat<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "elements of {}", self.datatype.name())
    }

    fn visit_u64<E: Error>(self, x: u64) -> Result<(), E> {
        self.integer(x.into())
    }

    fn visit_i64<E: Error>(self, x: i64) -> Result<(), E> {
        self.integer(x.into())
    }

    fn visit_f64<E: Error>(self, x: f64) -> Result<(), E> {
        self.check()?;
        match self.values {
            Growing::Floats(floats) => floats.push(x),
            _ => return Err(self.wrong(&x.to_string())),
        }
        Ok(())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.check()?;
        match self.values {
            Growing::Texts(texts) => texts.push(Bytes::copy_from_slice(text.as_bytes())),
            _ => return Err(self.wrong("a text")),
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let Flat { datatype, limit, values } = self;
        while items.next_element_seed(Flat { datatype, limit, values })?.is_some() {}
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(datatype: Datatype, n: usize, json: &str) -> Result<Values, String> {
        super::read(datatype, n, &RawValue::from_string(json.into()).unwrap())
    }

    #[test]
    fn nested_elements_are_read_as_flat_ones() {
        let expected = Ok(Values::Octets(Bytes::from_static(&[1, 2, 3, 255])));
        assert_eq!(read(Datatype::Uint8, 4, "[[1, 2], [3, 255]]"), expected);
        assert_eq!(read(Datatype::Uint8, 4, "[1, 2, 3, 255]"), expected);
    }

    #[test]
    fn what_is_no_element_is_refused() {
        for (datatype, json, message) in [
            (Datatype::Uint8, "[256]", "256 is no UINT8"),
            (Datatype::Uint8, "[-1]", "-1 is no UINT8"),
            (Datatype::Int32, "[4294967296]", "4294967296 is no INT32"),
            (Datatype::Int64, "[18446744073709551615]", "18446744073709551615 is no INT64"),
            (Datatype::Int64, "[1.5]", "1.5 is no INT64"),
            (Datatype::Fp32, "[1e400]", "number out of range"),
            (Datatype::Fp32, "[\"1\"]", "a text is no FP32"),
            (Datatype::Bytes, "[1]", "a number is no BYTES"),
            (Datatype::Bytes, "[\"a\", \"b\"]", "more elements than its shape has, 1"),
            (Datatype::Bytes, "[null]", "invalid type: null, expected elements of BYTES"),
            (Datatype::Bytes, "{}", "invalid type: map, expected elements of BYTES"),
        ] {
            assert_eq!(read(datatype, 1, json), Err(message.into()), "{json}");
        }
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(read(Datatype::Bytes, 1, &deep).is_err());
    }
}
