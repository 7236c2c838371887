//! The binary form of tensors: numbers little-endian, texts each behind its length in four bytes.

use axum::body::Bytes;

use super::tensor::{Datatype, Values, widened};

/// Bytes of the length that stands before a text.
const PREFIX: usize = 4;

/// Reads `n` elements, which must be all of the data.
pub(crate) fn read(datatype: Datatype, n: usize, data: Bytes) -> Result<Values, String> {
    Ok(match datatype {
        Datatype::Uint8 => {
            check_length(n, 1, &data)?;
            Values::Octets(data)
        }
        Datatype::Uint32 => Values::Integers(numbers(n, &data, |x| u32::from_le_bytes(x).into())?),
        Datatype::Uint64 => Values::Integers(numbers(n, &data, |x| u64::from_le_bytes(x).into())?),
        Datatype::Int32 => Values::Integers(numbers(n, &data, |x| i32::from_le_bytes(x).into())?),
        Datatype::Int64 => Values::Integers(numbers(n, &data, |x| i64::from_le_bytes(x).into())?),
        Datatype::Fp32 => Values::Floats(numbers(n, &data, |x| widened(f32::from_le_bytes(x)))?),
        Datatype::Fp64 => Values::Floats(numbers(n, &data, f64::from_le_bytes)?),
        Datatype::Bytes => Values::Texts(texts(n, data)?),
    })
}

/// Texts, each behind its length.
pub(crate) fn write_texts<T: AsRef<[u8]>>(texts: &[T]) -> Vec<u8> {
    let mut data = Vec::with_capacity(texts.iter().map(|text| PREFIX + text.as_ref().len()).sum());
    for text in texts.iter().map(AsRef::as_ref) {
        // A picture's file or its description has no four gibibytes.
        data.extend((text.len() as u32).to_le_bytes());
        data.extend(text);
    }
    data
}

fn check_length(n: usize, size: usize, data: &[u8]) -> Result<(), String> {
    match n.checked_mul(size) == Some(data.len()) {
        true => Ok(()),
        false => Err(format!("{} bytes, {n} elements of {size} bytes are another number", data.len())),
    }
}

fn numbers<const N: usize, T>(n: usize, data: &[u8], number: impl Fn([u8; N]) -> T) -> Result<Vec<T>, String> {
    check_length(n, N, data)?;
    Ok(data.as_chunks::<N>().0.iter().map(|bytes| number(*bytes)).collect())
}

fn texts(n: usize, mut data: Bytes) -> Result<Vec<Bytes>, String> {
    let total = data.len();
    let mut texts = Vec::with_capacity(n.min(total / PREFIX));
    for i in 0..n {
        let Some(prefix) = data.first_chunk::<PREFIX>() else {
            return Err(format!("its {total} bytes end before element {i}"));
        };
        let length = u32::from_le_bytes(*prefix) as usize;
        let _ = data.split_to(PREFIX);
        if length > data.len() {
            return Err(format!("element {i} claims {length} bytes, {} are left", data.len()));
        }
        texts.push(data.split_to(length));
    }
    match data.len() {
        0 => Ok(texts),
        left => Err(format!("{left} bytes behind its last element")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Datatype; 8] = [
        Datatype::Uint8,
        Datatype::Uint32,
        Datatype::Uint64,
        Datatype::Int32,
        Datatype::Int64,
        Datatype::Fp32,
        Datatype::Fp64,
        Datatype::Bytes,
    ];

    #[test]
    fn lying_lengths_are_refused() {
        for data in [&b"\x05\0\0\0four"[..], b"\xff\xff\xff\xff", b"\x01\0\0", b"\x01\0\0\0ab", b""] {
            assert!(read(Datatype::Bytes, 1, Bytes::copy_from_slice(data)).is_err(), "{data:?}");
        }
        assert!(read(Datatype::Bytes, usize::MAX, Bytes::from_static(b"\0\0\0\0")).is_err());
        assert!(read(Datatype::Fp64, usize::MAX, Bytes::from_static(b"12345678")).is_err());
    }

    #[test]
    fn floats_of_32_bits_are_the_decimal_numbers_that_they_mean() {
        let data = Bytes::copy_from_slice(&[0.7f32.to_le_bytes(), 7.5f32.to_le_bytes()].concat());
        assert_eq!(read(Datatype::Fp32, 2, data), Ok(Values::Floats(vec![0.7, 7.5])));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(
            which in 0..ALL.len(),
            n in prop_oneof![0..6usize, any::<usize>()],
            data in prop::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..64),
        ) {
            let read = read(ALL[which], n, data.clone().into());
            match (ALL[which], read) {
                (Datatype::Bytes, Ok(Values::Texts(texts))) => {
                    prop_assert_eq!(texts.len(), n);
                    prop_assert_eq!(write_texts(&texts), data);
                }
                (Datatype::Bytes, Ok(values)) => prop_assert!(false, "{values:?}"),
                (_, Ok(Values::Octets(octets))) => prop_assert_eq!(octets.len(), n),
                (_, Ok(Values::Integers(integers))) => prop_assert_eq!(integers.len(), n),
                (_, Ok(Values::Floats(floats))) => prop_assert_eq!(floats.len(), n),
                (_, Ok(values)) => prop_assert!(false, "{values:?}"),
                (_, Err(reason)) => prop_assert!(!reason.contains('\n')),
            }
        }

        #[test]
        fn texts_come_back(texts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..8)) {
            let read = read(Datatype::Bytes, texts.len(), write_texts(&texts).into());
            let texts: Vec<Bytes> = texts.into_iter().map(Bytes::from).collect();
            prop_assert_eq!(read, Ok(Values::Texts(texts)));
        }

        #[test]
        fn a_cut_or_longer_tensor_is_refused(
            texts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..8),
            at in any::<prop::sample::Index>(),
        ) {
            let data = write_texts(&texts);
            let cut = Bytes::copy_from_slice(&data[..at.index(data.len())]);
            prop_assert!(read(Datatype::Bytes, texts.len(), cut).is_err());
            let longer = Bytes::from([&data[..], b"x"].concat());
            prop_assert!(read(Datatype::Bytes, texts.len(), longer).is_err());
        }
    }
}
