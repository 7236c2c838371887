//! Floats of eight bits (Micikevicius et al. 2022, "FP8 Formats for Deep Learning"); all of them are exact in `f32`.

use half::f16;

/// A float with 4 bits of exponent and 3 of mantissa, which has NaN and no infinity.
pub(crate) fn from_e4m3(bits: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(bits >> 3 & 15), f32::from(bits & 7));
    let size = match (exponent, bits & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa * 2f32.powi(-9),
        _ => (8.0 + mantissa) * 2f32.powi(exponent - 10),
    };
    if bits >> 7 == 1 { -size } else { size }
}

/// A float with 5 bits of exponent and 2 of mantissa: the upper half of one of 16 bits.
pub(crate) fn from_e5m2(bits: u8) -> f32 {
    f16::from_bits(u16::from(bits) << 8).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_mean_what_pytorch_says() {
        let e4m3 =
            [(0x00, 0.0), (0x01, 0.001953125), (0x08, 0.015625), (0x38, 1.0), (0x7e, 448.0), (0xc1, -2.25)];
        assert!(e4m3.iter().all(|&(bits, value)| from_e4m3(bits) == value));
        assert!(from_e4m3(0x7f).is_nan() && from_e4m3(0xff).is_nan());
        let e5m2 = [(0x01, 1.525_878_9e-5), (0x3c, 1.0), (0x7b, 57344.0), (0xc1, -2.5)];
        assert!(e5m2.iter().all(|&(bits, value)| from_e5m2(bits) == value));
        assert!(from_e5m2(0x7c).is_infinite() && from_e5m2(0x7d).is_nan());
    }
}
