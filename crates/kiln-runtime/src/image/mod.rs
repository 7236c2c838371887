//! Pictures: reading, writing, resizing, comparing.

mod compare;
mod decode;
mod resize;
mod text;

use std::io::{self, BufReader, BufWriter, Cursor, Write};
use std::path::{Path, PathBuf};

use kiln_bundle::fs::{PartialFile, follow};
use kiln_bundle::read;
use kiln_types::Size;
use ndarray::{Array3, ArrayView3, ArrayViewD, Axis, Ix4};

pub use compare::Comparison;
pub use text::png_texts;

/// Why a picture could not be made, read, written or compared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The autoencoder's output is not a batch of pictures.
    #[error("shape {0:?} is not a batch of pictures [B, 3, H, W]")]
    Shape(Vec<usize>),
    /// As many bytes as no picture of this size has.
    #[error("{found} bytes are not a picture of {width}x{height} pixels")]
    Bytes {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// Number of bytes.
        found: usize,
    },
    /// Pictures of different sizes, each width and height in pixels, cannot be compared.
    #[error("a picture of {}x{} pixels cannot be compared with one of {}x{}", .0[0], .0[1], .1[0], .1[1])]
    Sizes([u32; 2], [u32; 2]),
    /// Bytes are not a picture that can be read.
    #[error("{0}")]
    Decode(String),
    /// A file cannot be read.
    #[error("{path}: {reason}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A file cannot be written.
    #[error("{path}: {reason}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
}

/// What the operating system says, without its number.
fn of_system(error: &io::Error) -> String {
    error.to_string().split(" (os error").next().unwrap_or_default().to_lowercase()
}

/// A picture of eight bits per channel, row by row.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(try_from = "Raw"))]
pub struct RgbImage {
    width: u32,
    height: u32,
    data: Vec<u8>,
    #[cfg_attr(feature = "serde", serde(skip))]
    drops_alpha: bool,
}

/// Pictures are equal whose pixels are.
impl PartialEq for RgbImage {
    fn eq(&self, other: &RgbImage) -> bool {
        self.size() == other.size() && self.data == other.data
    }
}

impl Eq for RgbImage {}

/// The fields of a picture, before they are checked.
#[cfg(feature = "serde")]
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    width: u32,
    height: u32,
    data: Vec<u8>,
}

#[cfg(feature = "serde")]
impl TryFrom<Raw> for RgbImage {
    type Error = ImageError;

    fn try_from(Raw { width, height, data }: Raw) -> Result<RgbImage, ImageError> {
        RgbImage::from_raw(width, height, data)
    }
}

impl RgbImage {
    /// The pictures of a decoded batch `[B, 3, H, W]` in `[-1, 1]` (diffusers `image_processor.py`).
    pub fn from_decoded(batch: ArrayViewD<'_, f32>) -> Result<Vec<RgbImage>, ImageError> {
        let shape = batch.shape().to_vec();
        let batch = batch.into_dimensionality::<Ix4>().map_err(|_| ImageError::Shape(shape.clone()))?;
        if shape[1] != 3 {
            return Err(ImageError::Shape(shape));
        }
        Ok(batch.axis_iter(Axis(0)).map(RgbImage::from_sample).collect())
    }

    fn from_sample(sample: ArrayView3<'_, f32>) -> RgbImage {
        let (_, height, width) = sample.dim();
        let rows = sample.permuted_axes([1, 2, 0]);
        let data =
            rows.iter().map(|x| ((x / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8).collect();
        RgbImage { width: width as u32, height: height as u32, data, drops_alpha: false }
    }

    /// Channels, height, width in `[0, 1]`.
    pub fn to_planes(&self) -> Array3<f32> {
        let (height, width) = (self.height as usize, self.width as usize);
        Array3::from_shape_fn((3, height, width), |(c, y, x)| {
            f32::from(self.data[(y * width + x) * 3 + c]) / 255.0
        })
    }

    /// Brightness as PIL's mode "L" has it: one channel, height, width in `[0, 1]`.
    pub fn to_luma(&self) -> Array3<f32> {
        let (height, width) = (self.height as usize, self.width as usize);
        Array3::from_shape_fn((1, height, width), |(_, y, x)| {
            let [r, g, b] = [0, 1, 2].map(|c| u32::from(self.data[(y * width + x) * 3 + c]));
            ((r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16) as f32 / 255.0
        })
    }

    /// A picture of the given bytes: red, green, blue of each pixel, row by row.
    pub fn from_raw(width: u32, height: u32, data: Vec<u8>) -> Result<RgbImage, ImageError> {
        let expected = u64::from(width) * u64::from(height) * 3;
        match expected > 0 && data.len() as u64 == expected {
            true => Ok(RgbImage { width, height, data, drops_alpha: false }),
            false => Err(ImageError::Bytes { width, height, found: data.len() }),
        }
    }

    /// Reads a picture's file, which has to be a regular one; see [`RgbImage::from_bytes`].
    pub fn open(path: impl AsRef<Path>) -> Result<RgbImage, ImageError> {
        let path = path.as_ref();
        let refuse = |reason: String| ImageError::Read { path: path.into(), reason };
        let (file, _) = read::open(path).map_err(|e| e.map(|e| refuse(of_system(e)), refuse))?;
        decode::decode(&mut BufReader::new(file)).and_then(RgbImage::from_rgb).map_err(refuse)
    }

    /// Decodes a PNG, JPEG, WebP or BMP file, and with the feature `pictures` a TIFF file or the first frame of a GIF file:
    /// turned as its EXIF data says and without its alpha channel, as diffusers' `load_image` does.
    ///
    /// Values of JPEG files differ from Pillow's by up to 3, and those of 16 bits are scaled to eight. A picture of more than
    /// 2^26 pixels or a side over 32768 is refused before it is decoded.
    pub fn from_bytes(bytes: &[u8]) -> Result<RgbImage, ImageError> {
        decode::decode(&mut Cursor::new(bytes)).and_then(RgbImage::from_rgb).map_err(ImageError::Decode)
    }

    /// The alpha channel of a file that [`RgbImage::from_bytes`] reads, as a grey picture: white where the file's is opaque.
    /// None where the file has no alpha channel.
    pub fn alpha_from_bytes(bytes: &[u8]) -> Result<Option<RgbImage>, ImageError> {
        let alpha = decode::decode_alpha(&mut Cursor::new(bytes)).map_err(ImageError::Decode)?;
        alpha.map(RgbImage::from_rgb).transpose().map_err(ImageError::Decode)
    }

    fn from_rgb(rgb: decode::Rgb) -> Result<RgbImage, String> {
        let decode::Rgb { width, height, data, alpha_varies } = rgb;
        let image = RgbImage::from_raw(width, height, data).map_err(|e| e.to_string())?;
        Ok(RgbImage { drops_alpha: alpha_varies, ..image })
    }

    /// Whether the file that it was read from has an alpha channel that is not the same all over; it is no part of the picture.
    pub fn drops_alpha(&self) -> bool {
        self.drops_alpha
    }

    /// The picture at another size, by Lanczos' filter as Pillow applies it.
    pub fn resized(&self, size: Size) -> RgbImage {
        let Size { width, height } = size.map(|side| side.max(1));
        let from = [self.height as usize, self.width as usize];
        let data = resize::lanczos(&self.data, from, [height as usize, width as usize]);
        RgbImage { width, height, data, ..*self }
    }

    /// Its size.
    pub fn size(&self) -> Size {
        Size::new(self.width, self.height)
    }

    /// Width in pixels.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Differences between a picture's pixels up to which it counts as one of one colour, as black frames are.
    pub const FLAT: u8 = 2;

    /// Red, green, blue of each pixel, row by row.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// Whether every channel is the same all over, give or take `tolerance`, as in the output of a network that overflowed.
    pub fn is_flat(&self, tolerance: u8) -> bool {
        (0..3).all(|channel| {
            let values = || self.data.iter().skip(channel).step_by(3);
            values().max().zip(values().min()).is_none_or(|(max, min)| max - min <= tolerance)
        })
    }

    /// Writes a PNG with text chunks: tEXt where Latin-1 can hold the text, else iTXt.
    pub fn write_png(&self, out: impl Write, text: &[(&str, String)]) -> io::Result<()> {
        let mut encoder = png::Encoder::new(out, self.width, self.height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        for (keyword, value) in text {
            let is_latin_1 = value.chars().all(|c| (c as u32) < 256 && c != '\0');
            match is_latin_1 {
                true => encoder.add_text_chunk((*keyword).into(), value.clone())?,
                false => encoder.add_itxt_chunk((*keyword).into(), value.clone())?,
            }
        }
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&self.data)?;
        writer.finish()?;
        Ok(())
    }

    /// Writes a PNG file that appears whole or not at all; a link is followed.
    pub fn save_png(&self, path: impl AsRef<Path>, text: &[(&str, String)]) -> Result<(), ImageError> {
        let path = path.as_ref();
        let write = || {
            let target = follow(path)?;
            let mut file = PartialFile::beside(&target)?;
            let mut out = BufWriter::new(&mut file);
            self.write_png(&mut out, text)?;
            out.flush()?;
            drop(out);
            file.publish(&target)
        };
        write().map_err(|e| ImageError::Write { path: path.into(), reason: of_system(&e) })
    }
}
