//! bf16: the upper half of an f32.

/// `x` rounded to the nearest bf16, ties to even, as AVX-512's `vcvtneps2bf16` does: denormals become zeros of their
/// sign, and NaNs quiet.
pub fn from_f32(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    if bits & 0x7f80_0000 == 0 {
        return (bits >> 16) as u16 & 0x8000;
    }
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// The f32 of the same value.
pub fn to_f32(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}

/// Two values of neighbouring `k`, the first in the lower half: what one `vdpbf16ps` multiplies.
pub(crate) fn pair(first: f32, second: f32) -> u32 {
    u32::from(from_f32(first)) | u32::from(from_f32(second)) << 16
}
