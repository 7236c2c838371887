//! Picture files as red, green and blue of eight bits.

mod bmp;
mod exif;
mod header;
#[cfg(feature = "pictures")]
mod more;

use std::io::{BufRead, Cursor, Read, Seek};

use kiln_types::limits::{MAX_INPUT_BYTES, MAX_INPUT_METADATA, MAX_INPUT_PIXELS, MAX_INPUT_SIDE};
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use header::Format;

/// Red, green, blue of each pixel, row by row.
pub(super) struct Rgb {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) data: Vec<u8>,
    /// Whether the file has an alpha channel that is not the same all over.
    pub(super) alpha_varies: bool,
}

/// Channels of each pixel, row by row, as a file has them.
struct Stored {
    width: u32,
    height: u32,
    n_channels: usize,
    data: Vec<u8>,
    /// How the picture is turned, from 1 to 8 (EXIF 2.3, tag 0x0112).
    orientation: Option<u16>,
}

/// Decodes a file, turned as its EXIF data says and without its alpha channel.
///
/// The size that its header states is checked first, and bounds what is read.
pub(super) fn decode(file: &mut (impl BufRead + Seek)) -> Result<Rgb, String> {
    Ok(upright(read(file)?))
}

/// The alpha channel of a file, as grey and turned as its EXIF data says; none where it has none.
pub(super) fn decode_alpha(file: &mut (impl BufRead + Seek)) -> Result<Option<Rgb>, String> {
    let stored = read(file)?;
    let n_channels = stored.n_channels;
    let data = stored.data.chunks_exact(n_channels).flat_map(|pixel| [pixel[n_channels - 1]; 3]).collect();
    Ok(matches!(n_channels, 2 | 4).then(|| upright(Stored { data, n_channels: 3, ..stored })))
}

fn read(file: &mut (impl BufRead + Seek)) -> Result<Stored, String> {
    let mut start = header::Start::default();
    read_into(file, &mut start)?;
    let format = Format::of(&start)?;
    let size = format.size(&start, file).map_err(|e| super::of_system(&e))?;
    let [width, height] = size.ok_or("is malformed: its header states no size")?;
    check_size(width, height, 1)?;
    let most = 4 * MAX_INPUT_METADATA + 16 * u64::from(width) * u64::from(height);
    let bytes = read_at_most(file, most, format)?;
    stored(format, &bytes)
}

fn stored(format: Format, bytes: &[u8]) -> Result<Stored, String> {
    match format {
        Format::Png => png(bytes),
        Format::Jpeg => jpeg(bytes),
        Format::WebP => webp(bytes),
        Format::Bmp => bmp::stored(bytes),
        #[cfg(feature = "pictures")]
        format => more::stored(format, bytes),
        #[cfg(not(feature = "pictures"))]
        format => {
            let name = format!("{format:?}").to_uppercase();
            Err(format!(
                "is a {name} file, which this program, built without the feature 'pictures' of kiln-runtime, does not read"
            ))
        }
    }
}

fn read_into(file: &mut impl Read, start: &mut [u8]) -> Result<(), String> {
    let n = start.len() as u64;
    let mut found = Vec::new();
    file.take(n).read_to_end(&mut found).map_err(|e| super::of_system(&e))?;
    start[..found.len()].copy_from_slice(&found);
    Ok(())
}

/// All bytes of a file; of a GIF, whose first frame alone is read, as many as may be.
fn read_at_most(file: &mut (impl BufRead + Seek), most: u64, format: Format) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    file.rewind()
        .and_then(|()| file.take(most + 1).read_to_end(&mut bytes))
        .map_err(|e| super::of_system(&e))?;
    match bytes.len() as u64 > most && format != Format::Gif {
        true => Err(format!("has more than the {most} bytes that a picture of its size may have")),
        false => Ok(bytes),
    }
}

fn upright(stored: Stored) -> Rgb {
    let Stored { width, height, n_channels, data, orientation } = stored;
    let alpha_varies = alpha_varies(&data, n_channels);
    let rgb = Rgb { width, height, data: without_alpha(data, n_channels), alpha_varies };
    match orientation {
        None | Some(1) => rgb,
        Some(turn) => rgb.turned(turn),
    }
}

fn check_size(width: u32, height: u32, n_bytes_each: usize) -> Result<(), String> {
    let n_pixels = u64::from(width) * u64::from(height);
    let is_within = width.max(height) <= MAX_INPUT_SIDE
        && n_pixels <= MAX_INPUT_PIXELS
        && n_pixels * n_bytes_each as u64 <= MAX_INPUT_BYTES;
    match is_within {
        true => Ok(()),
        false => Err(format!("{width}x{height} pixels are too many to be read")),
    }
}

fn png(bytes: &[u8]) -> Result<Stored, String> {
    let refuse = |e: png::DecodingError| e.to_string();
    let limits = png::Limits { bytes: MAX_INPUT_METADATA as usize };
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), limits);
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
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
        let n = data.len() / 2;
        (0..n).for_each(|i| data[i] = eight_bits(u16::from_be_bytes([data[2 * i], data[2 * i + 1]])));
        data.truncate(n);
    }
    let orientation = reader.info().exif_metadata.as_deref().and_then(exif::orientation);
    Ok(Stored { width, height, n_channels: color.samples(), data, orientation })
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
    if (bytes.len() as u64) < u64::from(width) * u64::from(height) / PIXELS_OF_A_BYTE {
        return Err("is cut off".into());
    }
    let orientation = header.exif().and_then(|exif| exif::orientation(exif));
    let data = open(options.jpeg_set_out_colorspace(color)).decode().map_err(|e| e.to_string())?;
    Ok(Stored { width, height, n_channels, data, orientation })
}

/// Most pixels of a JPEG that a byte stands for: each block of 8x8 has at least a bit of its own (ITU T.81, F.1.2 and G.1.2).
const PIXELS_OF_A_BYTE: u64 = 8 * 64;

/// Whether a JPEG's data ends with the marker that says so; decoders make up what is missing.
fn is_whole_jpeg(bytes: &[u8]) -> bool {
    let last = |marker: [u8; 2]| bytes.windows(2).rposition(|pair| pair == marker);
    let (start_of_scan, end_of_image) = (last([0xff, 0xda]), last([0xff, 0xd9]));
    end_of_image.is_some() && end_of_image > start_of_scan
}

fn webp(bytes: &[u8]) -> Result<Stored, String> {
    let refuse = |e: image_webp::DecodingError| e.to_string();
    let mut decoder = image_webp::WebPDecoder::new(Cursor::new(bytes)).map_err(refuse)?;
    let (width, height) = decoder.dimensions();
    let n_channels = if decoder.has_alpha() { 4 } else { 3 };
    check_size(width, height, n_channels)?;
    decoder.set_memory_limit(MAX_INPUT_METADATA as usize);
    let exif = decoder.exif_metadata().map_err(refuse)?;
    decoder.set_memory_limit(MAX_INPUT_BYTES as usize);
    let mut data = vec![0; decoder.output_buffer_size().ok_or("has too many pixels")?];
    decoder.read_image(&mut data).map_err(refuse)?;
    let orientation = exif.as_deref().and_then(exif::orientation);
    Ok(Stored { width, height, n_channels, data, orientation })
}

/// 16 bits as eight: `round(value * 255 / 65535)`.
fn eight_bits(value: u16) -> u8 {
    ((u32::from(value) + 128) / 257) as u8
}

/// Whether pixels of two or four channels, the last of which is alpha, differ in it.
fn alpha_varies(data: &[u8], n_channels: usize) -> bool {
    let has_alpha = matches!(n_channels, 2 | 4);
    let mut alpha = data.chunks_exact(n_channels).map(|pixel| pixel[n_channels - 1]);
    has_alpha && alpha.next().is_some_and(|first| alpha.any(|other| other != first))
}

/// Red, green and blue of pixels of one to four channels, of which two and four end with alpha.
fn without_alpha(mut data: Vec<u8>, n_channels: usize) -> Vec<u8> {
    match n_channels {
        3 => data,
        4 => {
            let n = data.len() / 4;
            (0..n).for_each(|i| data.copy_within(4 * i..4 * i + 3, 3 * i));
            data.truncate(3 * n);
            data
        }
        n => data.chunks_exact(n).flat_map(|pixel| [pixel[0]; 3]).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let found = decode(&mut Cursor::new(file)).expect("a picture");
        assert_eq!((found.width, found.height, &found.data[..]), (2, 1, expected));
    }

    #[test]
    fn alpha_is_read_where_there_is_some() {
        let file = |color, stored: &[u8]| {
            let mut file = Vec::new();
            let mut encoder = png::Encoder::new(&mut file, 2, 1);
            encoder.set_color(color);
            let mut writer = encoder.write_header().expect("a header");
            writer.write_image_data(stored).expect("pixels");
            writer.finish().expect("a file");
            decode_alpha(&mut Cursor::new(file)).expect("a picture").map(|alpha| alpha.data)
        };
        assert_eq!(file(png::ColorType::Rgba, &[1, 2, 3, 0, 4, 5, 6, 9]), Some(vec![0, 0, 0, 9, 9, 9]));
        assert_eq!(file(png::ColorType::GrayscaleAlpha, &[7, 255, 8, 1]), Some(vec![255, 255, 255, 1, 1, 1]));
        assert_eq!(file(png::ColorType::Rgb, &[1, 2, 3, 4, 5, 6]), None);
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
}
