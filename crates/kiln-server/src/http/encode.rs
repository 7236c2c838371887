//! Pictures as files.

use std::io;

use kiln_runtime::image::RgbImage;

/// A picture's file format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Format {
    #[default]
    Png,
    Jpeg,
    Webp,
}

impl Format {
    /// The format of this name.
    pub(crate) fn named(name: &str) -> Option<Format> {
        match name.to_ascii_lowercase().as_str() {
            "png" => Some(Format::Png),
            "jpeg" | "jpg" => Some(Format::Jpeg),
            "webp" => Some(Format::Webp),
            _ => None,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Format::Png => "png",
            Format::Jpeg => "jpeg",
            Format::Webp => "webp",
        }
    }

    pub(crate) fn media_type(self) -> &'static str {
        match self {
            Format::Png => "image/png",
            Format::Jpeg => "image/jpeg",
            Format::Webp => "image/webp",
        }
    }
}

/// The bytes of a file; `quality` from 0 to 100 is JPEG's, `text` is PNG's chunk `parameters`. WebP is without loss.
pub(crate) fn encode(image: &RgbImage, format: Format, quality: u8, text: &str) -> io::Result<Vec<u8>> {
    let mut file = Vec::new();
    match format {
        Format::Png => {
            let text: &[(&str, String)] = &[("parameters", text.to_owned())];
            let text = if text[0].1.is_empty() { &[] } else { text };
            image.write_png(&mut file, text)?;
        }
        Format::Jpeg => {
            let side = |side: u32| {
                u16::try_from(side).map_err(|_| io::Error::other("the picture is too large for JPEG"))
            };
            let (width, height) = (side(image.width())?, side(image.height())?);
            let encoder = jpeg_encoder::Encoder::new(&mut file, quality.max(1));
            let encoded = encoder.encode(image.data(), width, height, jpeg_encoder::ColorType::Rgb);
            encoded.map_err(io::Error::other)?;
        }
        Format::Webp => {
            let encoder = image_webp::WebPEncoder::new(&mut file);
            let encoded =
                encoder.encode(image.data(), image.width(), image.height(), image_webp::ColorType::Rgb8);
            encoded.map_err(io::Error::other)?;
        }
    }
    Ok(file)
}

/// A PNG file with its `parameters`.
pub fn png(image: &RgbImage, infotext: &str) -> io::Result<Vec<u8>> {
    encode(image, Format::Png, 0, infotext)
}

/// Encodes on a thread that may take its time.
pub(crate) async fn encode_elsewhere(
    image: RgbImage,
    format: Format,
    quality: u8,
    text: String,
) -> io::Result<Vec<u8>> {
    let encoded = tokio::task::spawn_blocking(move || encode(&image, format, quality, &text));
    encoded.await.map_err(io::Error::other)?
}
