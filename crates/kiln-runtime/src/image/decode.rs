//! PNG, JPEG and WebP files as red, green and blue of eight bits.

use std::io::Cursor;

use kiln_types::limits::{MAX_INPUT_BYTES, MAX_INPUT_SIDE};
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

/// Red, green, blue of each pixel, row by row.
pub(super) struct Rgb {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) data: Vec<u8>,
}

/// Channels of each pixel, row by row, as a file has them.
struct Stored {
    width: u32,
    height: u32,
    n_channels: usize,
    data: Vec<u8>,
    exif: Option<Vec<u8>>,
}

/// Decodes a file, turned as its EXIF data says and without its alpha channel.
pub(super) fn decode(bytes: &[u8]) -> Result<Rgb, String> {
    let stored = match bytes {
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => png(bytes)?,
        [0xff, 0xd8, 0xff, ..] => jpeg(bytes)?,
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => webp(bytes)?,
        _ => return Err("is not a PNG, JPEG or WebP file".into()),
    };
    let turn = stored.exif.as_deref().and_then(orientation).unwrap_or(1);
    let Stored { width, height, n_channels, data, .. } = stored;
    let rgb = Rgb { width, height, data: without_alpha(data, n_channels) };
    Ok(if turn == 1 { rgb } else { rgb.turned(turn) })
}

fn check_size(width: u32, height: u32, n_channels: usize) -> Result<(), String> {
    let n_bytes = u64::from(width) * u64::from(height) * n_channels as u64;
    match width.max(height) <= MAX_INPUT_SIDE && n_bytes <= MAX_INPUT_BYTES {
        true => Ok(()),
        false => Err(format!("{width}x{height} pixels are too many to be read")),
    }
}

/// Scales 16 bits to eight as `round(value * 255 / 65535)`.
fn png(bytes: &[u8]) -> Result<Stored, String> {
    let refuse = |e: png::DecodingError| e.to_string();
    let limits = png::Limits { bytes: MAX_INPUT_BYTES as usize };
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), limits);
    decoder.set_transformations(png::Transformations::EXPAND);
    let info = decoder.read_header_info().map_err(refuse)?;
    let (width, height) = (info.width, info.height);
    check_size(width, height, 1)?;
    let mut reader = decoder.read_info().map_err(refuse)?;
    let (color, depth) = reader.output_color_type();
    let n_bytes_each = if depth == png::BitDepth::Sixteen { 2 } else { 1 };
    check_size(width, height, color.samples() * n_bytes_each)?;
    let mut data = vec![0; reader.output_buffer_size().ok_or("has too many pixels")?];
    reader.next_frame(&mut data).map_err(refuse)?;
    if n_bytes_each == 2 {
        let (wide, _) = data.as_chunks::<2>();
        data = wide.iter().map(|&c| ((u32::from(u16::from_be_bytes(c)) + 128) / 257) as u8).collect();
    }
    let exif = reader.info().exif_metadata.as_ref().map(|exif| exif.to_vec());
    Ok(Stored { width, height, n_channels: color.samples(), data, exif })
}

fn jpeg(bytes: &[u8]) -> Result<Stored, String> {
    if !is_whole_jpeg(bytes) {
        return Err("is cut off".into());
    }
    let options = DecoderOptions::default()
        .set_strict_mode(false)
        .set_max_width(MAX_INPUT_SIDE as usize)
        .set_max_height(MAX_INPUT_SIDE as usize);
    let open = |options| zune_jpeg::JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    let mut header = open(options);
    header.decode_headers().map_err(|e| e.to_string())?;
    let (color, n_channels) = match header.input_colorspace() {
        Some(ColorSpace::Luma) => (ColorSpace::Luma, 1),
        _ => (ColorSpace::RGB, 3),
    };
    let (width, height) = header.dimensions().ok_or("has no size")?;
    let (width, height) = (width as u32, height as u32);
    check_size(width, height, n_channels)?;
    let exif = header.exif().cloned();
    let data = open(options.jpeg_set_out_colorspace(color)).decode().map_err(|e| e.to_string())?;
    Ok(Stored { width, height, n_channels, data, exif })
}

/// Whether a JPEG's data ends with the marker that says so; decoders make up what is missing.
fn is_whole_jpeg(bytes: &[u8]) -> bool {
    let last = |marker: [u8; 2]| bytes.windows(2).rposition(|pair| pair == marker);
    let (start_of_scan, end_of_image) = (last([0xff, 0xda]), last([0xff, 0xd9]));
    end_of_image.is_some() && end_of_image > start_of_scan
}

fn webp(bytes: &[u8]) -> Result<Stored, String> {
    let refuse = |e: image_webp::DecodingError| e.to_string();
    let mut decoder = image_webp::WebPDecoder::new(Cursor::new(bytes)).map_err(refuse)?;
    decoder.set_memory_limit(MAX_INPUT_BYTES as usize);
    let (width, height) = decoder.dimensions();
    let n_channels = if decoder.has_alpha() { 4 } else { 3 };
    check_size(width, height, n_channels)?;
    let exif = decoder.exif_metadata().map_err(refuse)?;
    let mut data = vec![0; decoder.output_buffer_size().ok_or("has too many pixels")?];
    decoder.read_image(&mut data).map_err(refuse)?;
    Ok(Stored { width, height, n_channels, data, exif })
}

/// Red, green and blue of pixels of one to four channels, of which two and four end with alpha.
fn without_alpha(data: Vec<u8>, n_channels: usize) -> Vec<u8> {
    match n_channels {
        3 => data,
        4 => data.as_chunks::<4>().0.iter().flat_map(|&[r, g, b, _]| [r, g, b]).collect(),
        n => data.chunks_exact(n).flat_map(|pixel| [pixel[0]; 3]).collect(),
    }
}

/// How a picture is turned by its EXIF data, from 1 to 8 (EXIF 2.3, tag 0x0112).
fn orientation(exif: &[u8]) -> Option<u16> {
    let is_little = match exif.get(..4)? {
        [b'I', b'I', 42, 0] => true,
        [b'M', b'M', 0, 42] => false,
        _ => return None,
    };
    let u16_at = |at: usize| {
        let bytes: [u8; 2] = exif.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if is_little { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) })
    };
    let u32_at = |at: usize| {
        let [a, b] = [u16_at(at)?, u16_at(at.checked_add(2)?)?].map(u32::from);
        Some(if is_little { b << 16 | a } else { a << 16 | b })
    };
    let folder = usize::try_from(u32_at(4)?).ok()?;
    let entries = (0..usize::from(u16_at(folder)?)).map(|i| folder.checked_add(2 + 12 * i));
    for entry in entries {
        let entry = entry?;
        if (u16_at(entry)?, u16_at(entry + 2)?, u32_at(entry + 4)?) == (0x0112, 3, 1) {
            return u16_at(entry + 8).filter(|turn| (1..=8).contains(turn));
        }
    }
    None
}

impl Rgb {
    /// The picture upright, for an orientation of EXIF.
    fn turned(&self, orientation: u16) -> Rgb {
        let is_transposed = orientation >= 5;
        let (mirrors_x, mirrors_y) =
            (matches!(orientation, 2 | 3 | 7 | 8), matches!(orientation, 3 | 4 | 6 | 7));
        let (width, height) = if is_transposed { (self.height, self.width) } else { (self.width, self.height) };
        let mut data = Vec::with_capacity(self.data.len());
        for y in 0..height {
            for x in 0..width {
                let (x, y) = if is_transposed { (y, x) } else { (x, y) };
                let x = if mirrors_x { self.width - 1 - x } else { x };
                let y = if mirrors_y { self.height - 1 - y } else { y };
                let at = (y as usize * self.width as usize + x as usize) * 3;
                data.extend_from_slice(&self.data[at..at + 3]);
            }
        }
        Rgb { width, height, data }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Red, green, blue and white, from the upper left to the lower right.
    fn corners() -> Rgb {
        let pixels = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]];
        Rgb { width: 2, height: 2, data: pixels.concat() }
    }

    #[track_caller]
    fn check_turn(orientation: u16, expected: [usize; 4]) {
        let (before, after) = (corners().data, corners().turned(orientation).data);
        let pixels = before.chunks(3).collect::<Vec<_>>();
        assert_eq!(after, expected.map(|i| pixels[i]).concat(), "{orientation}");
    }

    #[test]
    fn pictures_are_turned_as_exif_says() {
        check_turn(1, [0, 1, 2, 3]);
        check_turn(2, [1, 0, 3, 2]);
        check_turn(3, [3, 2, 1, 0]);
        check_turn(4, [2, 3, 0, 1]);
        check_turn(5, [0, 2, 1, 3]);
        check_turn(6, [2, 0, 3, 1]);
        check_turn(7, [3, 1, 2, 0]);
        check_turn(8, [1, 3, 0, 2]);
    }

    #[track_caller]
    fn check_png(color: png::ColorType, depth: png::BitDepth, stored: &[u8], expected: &[u8]) {
        let mut file = Vec::new();
        let mut encoder = png::Encoder::new(&mut file, 2, 1);
        encoder.set_color(color);
        encoder.set_depth(depth);
        if color == png::ColorType::Indexed {
            encoder.set_palette(vec![1, 2, 3, 4, 5, 6]);
        }
        let mut writer = encoder.write_header().expect("a header");
        writer.write_image_data(stored).expect("pixels");
        writer.finish().expect("a file");
        let found = decode(&file).expect("a picture");
        assert_eq!((found.width, found.height, &found.data[..]), (2, 1, expected));
    }

    #[test]
    fn every_kind_of_png_becomes_rgb_of_eight_bits() {
        use png::{BitDepth, ColorType};
        check_png(ColorType::Rgb, BitDepth::Eight, &[1, 2, 3, 4, 5, 6], &[1, 2, 3, 4, 5, 6]);
        check_png(ColorType::Rgba, BitDepth::Eight, &[1, 2, 3, 0, 4, 5, 6, 9], &[1, 2, 3, 4, 5, 6]);
        check_png(ColorType::Grayscale, BitDepth::Eight, &[7, 8], &[7, 7, 7, 8, 8, 8]);
        check_png(ColorType::GrayscaleAlpha, BitDepth::Eight, &[7, 0, 8, 9], &[7, 7, 7, 8, 8, 8]);
        check_png(ColorType::Grayscale, BitDepth::One, &[0b0100_0000], &[0, 0, 0, 255, 255, 255]);
        check_png(ColorType::Indexed, BitDepth::One, &[0b1000_0000], &[4, 5, 6, 1, 2, 3]);
        check_png(ColorType::Grayscale, BitDepth::Sixteen, &[0, 128, 0, 129], &[0, 0, 0, 1, 1, 1]);
        check_png(
            ColorType::Grayscale,
            BitDepth::Sixteen,
            &[255, 255, 128, 0],
            &[255, 255, 255, 128, 128, 128],
        );
    }

    #[test]
    fn malformed_exif_data_turns_nothing() {
        let sized = |n: u16| [&b"II*\0\x08\0\0\0"[..], &n.to_le_bytes()].concat();
        for exif in [&b""[..], b"II*\0", b"II*\0\xff\xff\xff\xff", &sized(u16::MAX), &sized(0)] {
            assert_eq!(orientation(exif), None);
        }
        let entry = [&sized(1)[..], &[0x12, 1, 3, 0, 1, 0, 0, 0, 6, 0, 0, 0]].concat();
        assert_eq!(orientation(&entry), Some(6));
    }
}
