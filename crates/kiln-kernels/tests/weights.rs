use kiln_kernels::{Error, Values, Weights, bf16};

#[test]
fn as_many_weights_as_rows_and_columns_say_are_taken() {
    assert!(Weights::new(Values::F32(&[0.0; 6]), 2, 3).is_ok());
    assert!(Weights::new(Values::Bf16(&[0; 6]), 3, 2).is_ok());
    let refused = |n, k| Weights::new(Values::F32(&[0.0; 3]), n, k).expect_err("refused");
    assert_eq!(refused(2, 2), Error::Length { what: "the weights", expected: 4, found: 3 });
    assert_eq!(refused(usize::MAX, 2), Error::TooLarge);
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
