//! What a file is and how large its picture is, from as few bytes as can say it.

use std::io::{self, BufRead, ErrorKind, Read, Seek, SeekFrom};

use kiln_bundle::read::stands_for;
use kiln_types::limits::MAX_INPUT_METADATA;

/// A format of pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Png,
    Jpeg,
    WebP,
    Gif,
    Bmp,
    Tiff,
}

/// First bytes that tell a format, and the size of a picture in all but two of them.
pub(super) type Start = [u8; 32];

impl Format {
    /// The format that a file starts as, or what is wrong with it.
    pub(super) fn of(start: &Start) -> Result<Format, String> {
        Ok(match start {
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Format::Png,
            [0xff, 0xd8, 0xff, ..] => Format::Jpeg,
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Format::WebP,
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Format::Gif,
            [b'B', b'M', _, _, _, _, 0, 0, 0, 0, ..] => Format::Bmp,
            [b'I', b'I', 42, 0, ..] | [b'M', b'M', 0, 42, ..] => Format::Tiff,
            [_, _, _, _, b'f', b't', b'y', b'p', b'a', b'v', b'i', ..] => return other("an AVIF file"),
            [_, _, _, _, b'f', b't', b'y', b'p', b'h', b'e', b'i' | b'v', ..] => return other("a HEIC file"),
            [0xff, 0x0a, ..] | [0, 0, 0, 12, b'J', b'X', b'L', b' ', ..] => return other("a JPEG XL file"),
            [_, _, _, _, b'f', b't', b'y', b'p', b'm', b'i' | b's', b'f', b'1', ..] => {
                return other("a HEIF file");
            }
            [b'8', b'B', b'P', b'S', ..] => return other("a Photoshop file"),
            [b'<', b's', b'v', b'g', ..] => return other("an SVG file"),
            _ => {
                let other = stands_for(start).unwrap_or("is not a PNG, JPEG, WebP, BMP, GIF or TIFF file");
                return Err(other.into());
            }
        })
    }

    /// Width and height as a file says, none where it is malformed.
    pub(super) fn size(self, start: &Start, file: &mut (impl BufRead + Seek)) -> io::Result<Option<[u32; 2]>> {
        let u16_at = |at: usize| u32::from(u16::from_le_bytes([start[at], start[at + 1]]));
        let u32_at = |at: usize| u16_at(at) | u16_at(at + 2) << 16;
        Ok(match self {
            Format::Png => Some([16, 20].map(|at| u32_at(at).swap_bytes())),
            Format::WebP => match &start[12..16] {
                b"VP8X" => Some([24, 27].map(|at| 1 + (u32_at(at) & 0xff_ffff))),
                b"VP8L" => Some([u32_at(21), u32_at(21) >> 14].map(|side| 1 + (side & 0x3fff))),
                b"VP8 " => Some([26, 28].map(|at| u16_at(at) & 0x3fff)),
                _ => None,
            },
            Format::Gif => Some([6, 8].map(u16_at)),
            Format::Bmp if u32_at(14) == 12 => Some([18, 20].map(u16_at)),
            Format::Bmp => Some([u32_at(18), (u32_at(22) as i32).unsigned_abs()]),
            Format::Jpeg => absent(jpeg(file))?,
            Format::Tiff => absent(tiff(start[0] == b'I', file))?,
        })
    }
}

fn other<T>(what: &str) -> Result<T, String> {
    Err(format!("is {what}, which kiln does not read; save it as PNG, JPEG or WebP"))
}

/// A file that ends too soon has no size.
fn absent(size: io::Result<Option<[u32; 2]>>) -> io::Result<Option<[u32; 2]>> {
    match size {
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => Ok(None),
        size => size,
    }
}

fn bytes<const N: usize>(file: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    file.read_exact(&mut bytes).map(|()| bytes)
}

/// The size in a frame header, before which as many bytes lie as metadata may have (ITU T.81, B.2.2).
fn jpeg(file: &mut (impl BufRead + Seek)) -> io::Result<Option<[u32; 2]>> {
    file.seek(SeekFrom::Start(2))?;
    let (mut n_before, mut n_between) = (0, 0);
    loop {
        let (mut is_marked, mut marker) = (false, bytes::<1>(file)?[0]);
        while marker == 0xff || !is_marked {
            is_marked |= marker == 0xff;
            marker = bytes::<1>(file)?[0];
            n_between += 1;
            if n_between > 1 << 16 {
                return Ok(None);
            }
        }
        match marker {
            0x00 | 0x01 | 0xd0..=0xd8 => continue,
            0xc4 | 0xc8 | 0xcc => {}
            0xc0..=0xcf => {
                let [_, _, _, y1, y0, x1, x0] = bytes(file)?;
                return Ok(Some([[x1, x0], [y1, y0]].map(|side| u16::from_be_bytes(side).into())));
            }
            0xd9 | 0xda => return Ok(None),
            _ => {}
        }
        let length = u16::from_be_bytes(bytes(file)?);
        n_before += u64::from(length);
        if length < 2 || n_before > MAX_INPUT_METADATA {
            return Ok(None);
        }
        file.seek_relative(i64::from(length) - 2)?;
    }
}

/// The size in the first directory (TIFF 6.0, tags 256 and 257).
fn tiff(is_little: bool, file: &mut (impl BufRead + Seek)) -> io::Result<Option<[u32; 2]>> {
    let u16_of = |bytes| if is_little { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) };
    let u32_of = |bytes| if is_little { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) };
    file.seek(SeekFrom::Start(4))?;
    let directory = u32_of(bytes(file)?);
    file.seek(SeekFrom::Start(directory.into()))?;
    let [mut width, mut height] = [None; 2];
    for _ in 0..u16_of(bytes(file)?) {
        let [t0, t1, k0, k1, _, _, _, _, v0, v1, v2, v3] = bytes(file)?;
        let value = match u16_of([k0, k1]) {
            3 => u16_of([v0, v1]).into(),
            _ => u32_of([v0, v1, v2, v3]),
        };
        match u16_of([t0, t1]) {
            256 => width = Some(value),
            257 => height = Some(value),
            _ => {}
        }
    }
    Ok(width.zip(height).map(|(width, height)| [width, height]))
}
