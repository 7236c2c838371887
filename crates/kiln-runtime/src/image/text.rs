//! The texts that PNG files carry.

use std::io::Cursor;

use super::ImageError;

/// Most bytes that a file's texts may take.
const MAX_BYTES: usize = 1 << 20;

/// Keywords and texts of a PNG file, those before its pixels: none for files of other formats.
pub fn png_texts(bytes: &[u8]) -> Result<Vec<(String, String)>, ImageError> {
    if !bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
        return Ok(Vec::new());
    }
    let refuse = |e: png::DecodingError| ImageError::Decode(e.to_string());
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), png::Limits { bytes: MAX_BYTES });
    decoder.set_ignore_iccp_chunk(true);
    let reader = decoder.read_info().map_err(refuse)?;
    let info = reader.info();
    let latin = info.uncompressed_latin1_text.iter().map(|chunk| (chunk.keyword.clone(), chunk.text.clone()));
    let mut texts: Vec<(String, String)> = latin.collect();
    for chunk in &info.compressed_latin1_text {
        texts.push((chunk.keyword.clone(), chunk.get_text().map_err(refuse)?));
    }
    for chunk in &info.utf8_text {
        texts.push((chunk.keyword.clone(), chunk.get_text().map_err(refuse)?));
    }
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::RgbImage;

    #[test]
    fn texts_are_read_as_they_were_written() {
        let image = RgbImage::from_raw(1, 1, vec![1, 2, 3]).expect("a picture");
        let texts = [("parameters", "ü\nb".to_owned()), ("kiln", "東".to_owned())];
        let mut file = Vec::new();
        image.write_png(&mut file, &texts).expect("a file");
        let expected: Vec<(String, String)> = texts.map(|(key, text)| (key.to_owned(), text)).to_vec();
        assert_eq!(png_texts(&file).expect("texts"), expected);
        assert_eq!(png_texts(b"GIF89a").expect("no texts"), []);
        assert!(png_texts(&file[..20]).is_err());
    }
}
