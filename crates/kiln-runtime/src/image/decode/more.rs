//! TIFF files, and the first frame of GIF files.

use std::io::Cursor;
use std::num::NonZeroU64;

use kiln_types::limits::{MAX_INPUT_BYTES, MAX_INPUT_METADATA};
use tiff::ColorType;
use tiff::decoder::{Decoder, DecodingResult, Limits};
use tiff::tags::Tag;

use super::header::Format;
use super::{Stored, check_size, eight_bits};

pub(super) fn stored(format: Format, bytes: &[u8]) -> Result<Stored, String> {
    match format {
        Format::Gif => gif(bytes),
        _ => tiff(bytes),
    }
}

/// What the first frame leaves bare has its transparent colour, or the first of its palette, as Pillow has it.
fn gif(bytes: &[u8]) -> Result<Stored, String> {
    let refuse = |e: gif::DecodingError| e.to_string();
    let mut options = gif::DecodeOptions::new();
    options.set_color_output(gif::ColorOutput::Indexed);
    options.set_memory_limit(
        NonZeroU64::new(MAX_INPUT_BYTES).map_or(gif::MemoryLimit::Unlimited, gif::MemoryLimit::Bytes),
    );
    let mut decoder = options.read_info(bytes).map_err(refuse)?;
    let canvas = [decoder.width(), decoder.height()];
    let frame = decoder.next_frame_info().map_err(refuse)?.ok_or("has no picture")?;
    let width = u32::from(canvas[0]).max(u32::from(frame.left) + u32::from(frame.width));
    let height = u32::from(canvas[1]).max(u32::from(frame.top) + u32::from(frame.height));
    check_size(width, height, 3)?;
    let frame = frame.clone();
    let mut indices = vec![0; decoder.buffer_size()];
    decoder.read_into_buffer(&mut indices).map_err(refuse)?;
    let palette = frame.palette.as_deref().or(decoder.global_palette()).ok_or("has no palette")?;
    let colour = |index: u8| {
        let at = usize::from(index) * 3;
        palette.get(at..at + 3).unwrap_or(&[0; 3])
    };
    let mut data = colour(frame.transparent.unwrap_or(0)).repeat(width as usize * height as usize);
    for (y, row) in indices.chunks_exact(usize::from(frame.width).max(1)).enumerate() {
        let at = ((usize::from(frame.top) + y) * width as usize + usize::from(frame.left)) * 3;
        let pixels = data[at..].chunks_exact_mut(3);
        pixels.zip(row).for_each(|(pixel, &index)| pixel.copy_from_slice(colour(index)));
    }
    Ok(Stored { width, height, n_channels: 3, data, orientation: None })
}

/// Grey and red, green, blue of eight or 16 bits, with or without alpha, and black and white.
fn tiff(bytes: &[u8]) -> Result<Stored, String> {
    let refuse = |e: tiff::TiffError| e.to_string();
    let mut limits = Limits::default();
    limits.decoding_buffer_size = MAX_INPUT_BYTES as usize;
    limits.intermediate_buffer_size = MAX_INPUT_BYTES as usize;
    limits.ifd_value_size = MAX_INPUT_METADATA as usize;
    let mut decoder = Decoder::new(Cursor::new(bytes)).map_err(refuse)?.with_limits(limits);
    let (width, height) = decoder.dimensions().map_err(refuse)?;
    let color = decoder.colortype().map_err(refuse)?;
    let (n_channels, depth) = match color {
        ColorType::Gray(depth) => (1, depth),
        ColorType::GrayA(depth) => (2, depth),
        ColorType::RGB(depth) => (3, depth),
        ColorType::RGBA(depth) => (4, depth),
        _ => (0, 0),
    };
    let is_planar = decoder.find_tag_unsigned::<u16>(Tag::PlanarConfiguration).map_err(refuse)? == Some(2);
    let is_read = matches!(depth, 8 | 16) || (n_channels, depth) == (1, 1);
    if !is_read || is_planar && n_channels > 1 {
        let planes = if is_planar { ", each channel by itself" } else { "" };
        return Err(format!("is a TIFF file of pixels as {color:?}{planes}, which kiln does not read"));
    }
    check_size(width, height, n_channels * usize::from(depth.div_ceil(8)))?;
    for parts in [Tag::StripByteCounts, Tag::TileByteCounts] {
        let sizes = decoder.find_tag_unsigned_vec::<u64>(parts).map_err(refuse)?.unwrap_or_default();
        let n_bytes = sizes.iter().fold(0, |sum: u64, size| sum.saturating_add(*size));
        if n_bytes > bytes.len() as u64 {
            return Err(format!("says that its pixels take {n_bytes} bytes; the file has {}", bytes.len()));
        }
    }
    let orientation = decoder.find_tag_unsigned::<u16>(Tag::Orientation).map_err(refuse)?;
    let data = match decoder.read_image().map_err(refuse)? {
        DecodingResult::U8(data) if depth == 1 => bits(&data, width as usize),
        DecodingResult::U8(data) => data,
        DecodingResult::U16(data) => data.into_iter().map(eight_bits).collect(),
        _ => return Err("is a TIFF file of numbers other than unsigned ones, which kiln does not read".into()),
    };
    let orientation = orientation.filter(|turn| (1..=8).contains(turn));
    Ok(Stored { width, height, n_channels, data, orientation })
}

/// Black and white as bytes, of rows of bits that start with a byte each.
fn bits(rows: &[u8], width: usize) -> Vec<u8> {
    let bit = |row: &[u8], x: usize| (row[x / 8] >> (7 - x % 8) & 1) * 255;
    rows.chunks_exact(width.div_ceil(8).max(1)).flat_map(|row| (0..width).map(move |x| bit(row, x))).collect()
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use tiff::encoder::{TiffEncoder, colortype};

    use super::*;

    #[test]
    fn a_gif_is_its_first_frame_over_its_transparent_colour() {
        let mut file = Vec::new();
        let palette = [1, 2, 3, 4, 5, 6, 7, 8, 9];
        let mut encoder = gif::Encoder::new(&mut file, 3, 2, &palette).expect("an encoder");
        for (left, index) in [(1, 1), (0, 0)] {
            let mut frame = gif::Frame { left, top: 1, width: 2, height: 1, ..gif::Frame::default() };
            (frame.buffer, frame.transparent) = (Cow::from(vec![index; 2]), Some(2));
            encoder.write_frame(&frame).expect("a frame");
        }
        drop(encoder);
        let found = stored(Format::Gif, &file).expect("a picture");
        let (bare, painted) = ([7, 8, 9], [4, 5, 6]);
        assert_eq!((found.width, found.height, found.n_channels), (3, 2, 3));
        assert_eq!(found.data, [bare, bare, bare, bare, painted, painted].concat());
    }

    #[test]
    fn tiff_files_are_read_in_eight_and_16_bits_and_others_named() {
        let mut file = Cursor::new(Vec::new());
        let encoder = TiffEncoder::new(&mut file)
            .and_then(|mut encoder| encoder.write_image::<colortype::RGBA8>(2, 1, &[1, 2, 3, 4, 5, 6, 7, 8]));
        encoder.expect("a file");
        let found = stored(Format::Tiff, file.get_ref()).expect("a picture");
        assert_eq!((found.n_channels, &found.data[..]), (4, &[1, 2, 3, 4, 5, 6, 7, 8][..]));

        let mut file = Cursor::new(Vec::new());
        let encoder = TiffEncoder::new(&mut file)
            .and_then(|mut encoder| encoder.write_image::<colortype::Gray16>(2, 1, &[128, 129]));
        encoder.expect("a file");
        assert_eq!(stored(Format::Tiff, file.get_ref()).expect("a picture").data, [0, 1]);

        let count = |n: u32| [&[0x17, 1, 4, 0, 1, 0, 0, 0], &n.to_le_bytes()[..]].concat();
        let at = file.get_ref().windows(12).position(|tag| tag == count(4)).expect("the size of a strip");
        file.get_mut()[at..at + 12].copy_from_slice(&count(4000));
        let error = stored(Format::Tiff, file.get_ref()).err().expect("refused");
        assert!(error.starts_with("says that its pixels take 4000 bytes; the file has "), "{error}");

        let mut file = Cursor::new(Vec::new());
        let encoder = TiffEncoder::new(&mut file)
            .and_then(|mut encoder| encoder.write_image::<colortype::Gray32Float>(2, 1, &[0.0, 1.0]));
        encoder.expect("a file");
        let error = stored(Format::Tiff, file.get_ref()).err().expect("refused");
        assert_eq!(error, "is a TIFF file of pixels as Gray(32), which kiln does not read");
    }

    #[test]
    fn rows_of_bits_start_with_a_byte_each() {
        let mut expected = [0; 18];
        (expected[0], expected[17]) = (255, 255);
        assert_eq!(bits(&[0b1000_0000, 0b0100_0000, 0, 0b1000_0000], 9), expected);
    }
}
