//! BMP files (Microsoft, "Bitmap Storage").

use super::{Stored, check_size};

/// Colours of 24 and 32 bits, and of 1, 4 and 8 in a palette, not compressed.
pub(super) fn stored(bytes: &[u8]) -> Result<Stored, String> {
    let header = Header::read(bytes).ok_or("is cut off")??;
    let Header { width, height, bits, .. } = header;
    check_size(width, height, 3)?;
    let n_bytes_each_row = (width as usize * bits as usize).div_ceil(32) * 4;
    let n_bytes = n_bytes_each_row * height as usize;
    let pixels = bytes.get(header.pixels..).and_then(|rest| rest.get(..n_bytes)).ok_or("is cut off")?;
    let mut data = Vec::with_capacity(width as usize * height as usize * 3);
    for y in 0..height as usize {
        let row = if header.is_top_down { y } else { height as usize - 1 - y };
        let row = &pixels[row * n_bytes_each_row..][..n_bytes_each_row];
        (0..width as usize).for_each(|x| data.extend(header.pixel(row, x)));
    }
    Ok(Stored { width, height, n_channels: 3, data, orientation: None })
}

struct Header<'a> {
    width: u32,
    height: u32,
    is_top_down: bool,
    bits: u16,
    /// Where pixels start in the file.
    pixels: usize,
    /// Blue, green, red and what follows them, of each colour.
    palette: &'a [u8],
    n_bytes_each_colour: usize,
}

impl Header<'_> {
    /// None where the file ends too soon.
    fn read(bytes: &[u8]) -> Option<Result<Header<'_>, String>> {
        let u16_at = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let u32_at = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let (pixels, n_header) = (u32_at(10)? as usize, u32_at(14)? as usize);
        let is_old = n_header == 12;
        let (width, height, bits) = match is_old {
            true => (u16_at(18)?.into(), i32::from(u16_at(20)?), u16_at(24)?),
            false => (u32_at(18)?, u32_at(22)? as i32, u16_at(28)?),
        };
        let compression = if n_header < 40 { 0 } else { u32_at(30)? };
        // Masks say where in 32 bits the colours are.
        let masks = [54, 58, 62].map(u32_at);
        let is_usual = compression == 3 && bits == 32 && masks == [0xff_0000, 0xff00, 0xff].map(Some);
        if !matches!(bits, 1 | 4 | 8 | 24 | 32) || compression != 0 && !is_usual {
            let reason = format!(
                "is a BMP file of {bits} bits a pixel, compression {compression}, which kiln does not read"
            );
            return Some(Err(reason));
        }
        let palette = bytes.get(14_usize.checked_add(n_header)?..pixels.min(bytes.len())).unwrap_or(&[]);
        Some(Ok(Header {
            width,
            height: height.unsigned_abs(),
            is_top_down: height < 0,
            bits,
            pixels,
            palette,
            n_bytes_each_colour: if is_old { 3 } else { 4 },
        }))
    }

    /// Red, green, blue; black for colours that the palette lacks.
    fn pixel(&self, row: &[u8], x: usize) -> [u8; 3] {
        let bits = usize::from(self.bits);
        let (colours, at) = match bits {
            24 | 32 => (row, x * bits / 8),
            _ => {
                let (first, mask) = (x * bits, (1_usize << bits) - 1);
                let index = usize::from(row[first / 8]) >> (8 - bits - first % 8) & mask;
                (self.palette, index * self.n_bytes_each_colour)
            }
        };
        match colours.get(at..at + 3) {
            Some(&[blue, green, red]) => [red, green, blue],
            _ => [0; 3],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of 3x2 pixels without its pixels.
    fn head(height: i32, bits: u16, compression: u32, palette: &[u8]) -> Vec<u8> {
        let pixels = 54 + palette.len() as u32;
        let mut file = [&b"BM\0\0\0\0\0\0\0\0"[..], &pixels.to_le_bytes()].concat();
        file.extend([40, 3, height as u32].map(u32::to_le_bytes).concat());
        file.extend([1, bits].map(u16::to_le_bytes).concat());
        file.extend([compression, 0, 0, 0, 0, 0].map(u32::to_le_bytes).concat());
        [&file, palette].concat()
    }

    #[track_caller]
    fn check(file: Vec<u8>, expected: [[u8; 3]; 6]) {
        assert_eq!(stored(&file).expect("a picture").data, expected.concat());
        let error = stored(&file[..file.len() - 1]).err().expect("refused");
        assert_eq!(error, "is cut off");
    }

    #[test]
    fn rows_lie_from_the_bottom_up_unless_the_height_is_negative() {
        let rows = [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 0, 0, 11, 12, 13, 14, 15, 16, 17, 18, 19, 0, 0, 0];
        let (one, two) = ([[3, 2, 1], [6, 5, 4], [9, 8, 7]], [[13, 12, 11], [16, 15, 14], [19, 18, 17]]);
        let both = |a: [[u8; 3]; 3], b: [[u8; 3]; 3]| [a[0], a[1], a[2], b[0], b[1], b[2]];
        check([&head(2, 24, 0, &[])[..], &rows].concat(), both(two, one));
        check([&head(-2, 24, 0, &[])[..], &rows].concat(), both(one, two));
    }

    #[test]
    fn colours_of_a_palette_are_found_by_bits_and_half_bytes() {
        let palette = [1, 2, 3, 0, 4, 5, 6, 0];
        let (a, b) = ([3, 2, 1], [6, 5, 4]);
        let half_bytes = [0x01, 0x00, 0, 0, 0x10, 0x20, 0, 0];
        check([&head(-2, 4, 0, &palette)[..], &half_bytes].concat(), [a, b, a, b, a, [0; 3]]);
        let bits = [0b0100_0000, 0, 0, 0, 0b1010_0000, 0, 0, 0];
        check([&head(-2, 1, 0, &palette)[..], &bits].concat(), [a, b, a, b, a, b]);
    }

    #[test]
    fn what_is_compressed_is_named() {
        let error = stored(&head(2, 8, 1, &[])).err().expect("refused");
        assert_eq!(error, "is a BMP file of 8 bits a pixel, compression 1, which kiln does not read");
    }
}
