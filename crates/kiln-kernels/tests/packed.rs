use kiln_kernels::{AlignedBytes, Element, Error, PackedWeights, bf16, pack, packed_len};

#[track_caller]
fn refused(bytes: &[u8]) -> String {
    PackedWeights::from_bytes(bytes).expect_err("refused").to_string()
}

#[test]
fn the_layout_is_panels_of_32_outputs_behind_a_header_of_64_bytes() {
    let weights: Vec<f32> = (0..33 * 3).map(|i| i as f32).collect();
    let word = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));

    let bytes = pack(Element::F32, 33, 3, &weights).expect("packed weights");
    assert_eq!(bytes.len(), 64 + 2 * 3 * 32 * 4);
    assert_eq!((&bytes[..8], word(&bytes, 8), word(&bytes, 12)), (b"KILNPACK".as_slice(), 1, 1));
    assert_eq!((word(&bytes, 16), word(&bytes, 24)), (33, 3));
    // Panel 0, k 2, output 5; panel 1, k 1, output 32; and the zero beside it.
    assert_eq!(f32::from_bits(word(&bytes, 64 + (2 * 32 + 5) * 4)), weights[5 * 3 + 2]);
    assert_eq!(f32::from_bits(word(&bytes, 64 + ((3 + 1) * 32) * 4)), weights[32 * 3 + 1]);
    assert_eq!(word(&bytes, 64 + ((3 + 1) * 32 + 1) * 4), 0);

    let bytes = pack(Element::Bf16, 33, 3, &weights).expect("packed weights");
    assert_eq!(bytes.len(), 64 + 2 * 2 * 32 * 4);
    // Panel 0, step 0, output 7: k 0 and 1; step 1: k 2 and zero.
    let half = |k: usize| u32::from(bf16::from_f32(weights[7 * 3 + k]));
    assert_eq!(word(&bytes, 64 + 7 * 4), half(0) | half(1) << 16);
    assert_eq!(word(&bytes, 64 + (32 + 7) * 4), half(2));

    let view = PackedWeights::from_bytes(&bytes).expect("packed weights");
    assert_eq!((view.element(), view.n(), view.k()), (Element::Bf16, 33, 3));
}

#[test]
fn bytes_that_are_no_packed_weights_are_refused() {
    let good = pack(Element::F32, 2, 2, &[1.0; 4]).expect("packed weights");
    let with = |at: usize, byte: u8| {
        let mut bytes = AlignedBytes::zeroed(good.len()).expect("memory");
        bytes.copy_from_slice(&good);
        bytes[at] = byte;
        refused(&bytes)
    };
    assert_eq!(with(0, b'k'), "packed weights: no magic number");
    assert_eq!(with(8, 2), "packed weights: version 2, not 1");
    assert_eq!(with(12, 9), "packed weights: unknown element 9");
    assert_eq!(with(16, 0), "packed weights: 0 x 2 weights");
    assert_eq!(with(16, 33), "packed weights has the length 320, not 576");
    assert_eq!(with(31, 255), "the operator's size does not fit the address space");
    assert_eq!(refused(&good[..63]), "packed weights: no header");
    assert_eq!(refused(&good[..good.len() - 1]), "packed weights has the length 319, not 320");
    assert_eq!(refused(&good[4..]), "packed weights: not aligned to 64 bytes");
}

#[test]
fn weights_of_another_length_are_not_packed() {
    let error = pack(Element::F32, 2, 2, &[0.0; 3]).expect_err("refused");
    assert_eq!(error, Error::Length { what: "weights", expected: 4, found: 3 });
    assert_eq!(packed_len(Element::F32, usize::MAX, 2), Err(Error::TooLarge));
}

#[test]
fn bf16_is_the_nearest_with_ties_to_even() {
    let one = 0x3f80;
    for (bits, expected) in [
        (0x3f80_0000, one),
        (0x3f80_8000, one),
        (0x3f80_8001, one + 1),
        (0x3f81_8000, one + 2),
        (0x7f7f_ffff, 0x7f80),
        (0xff80_0000, 0xff80),
        (0x7f80_0001, 0x7fc0),
        (0x0000_ffff, 0),
        (0x8000_0001, 0x8000),
        (0x0080_0000, 0x0080),
    ] {
        assert_eq!(bf16::from_f32(f32::from_bits(bits)), expected, "{bits:#x}");
    }
    assert_eq!(bf16::to_f32(0xc040), -3.0);
}
