//! Pictures: reading, writing, resizing, comparing.

use std::fs;

use kiln_runtime::Size;
use kiln_runtime::image::{ImageError, RgbImage};
use ndarray::ArrayD;

use crate::support::{References, assert_close, references};

#[track_caller]
fn picture(values: Vec<f32>) -> RgbImage {
    let batch = ArrayD::from_shape_vec(vec![1, 3, 1, values.len() / 3], values).expect("three channels");
    RgbImage::from_decoded(batch.view()).expect("a picture").remove(0)
}

#[test]
fn numbers_are_clamped_and_rounded_half_to_even() {
    // -0.49411765 and 0 become 64.5 and 127.5 exactly.
    let image = picture(vec![-2.0, -0.494_117_65, 0.0, 9.0, -0.494_117_65, 0.0, f32::NAN, 1.0, -1.0]);
    assert_eq!((image.width(), image.height()), (3, 1));
    assert_eq!(image.data(), [0, 255, 0, 64, 64, 255, 128, 128, 0]);
}

#[test]
fn pictures_saved_at_once_to_one_path_are_whole_and_leave_nothing_else() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("picture.png");
    let image = picture(vec![0.25; 3 * 64]);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..20).for_each(|_| image.save_png(&path, &[]).expect("a file")));
        }
    });
    let mut expected = Vec::new();
    image.write_png(&mut expected, &[]).expect("a PNG");
    assert_eq!(fs::read(&path).expect("a file"), expected);
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1);
}

#[test]
fn text_chunks_follow_the_text() {
    let mut png = Vec::new();
    let text = [("prompt", "caf\u{e9}".to_string()), ("negative", "\u{6771}\u{4eac}".to_string())];
    picture(vec![0.0; 3]).write_png(&mut png, &text).expect("a PNG");
    let has = |part: &[u8]| png.windows(part.len()).any(|window| window == part);
    assert!(has(b"tEXtprompt\0caf\xe9"));
    assert!(has(b"iTXtnegative\0") && has("\u{6771}\u{4eac}".as_bytes()));
}

#[track_caller]
fn stored(references: &References, key: &str) -> RgbImage {
    let (data, shape) = references.u8(key);
    RgbImage::from_raw(shape[1] as u32, shape[0] as u32, data).expect("a picture")
}

#[test]
fn resizing_is_pillows_to_the_bit() {
    let references = References::open("images.safetensors");
    let image = stored(&references, "image");
    let keys: Vec<String> =
        references.names().into_iter().filter(|name| name.starts_with("lanczos.")).collect();
    assert_eq!(keys.len(), 6);
    for key in keys {
        let expected = stored(&references, &key);
        assert_eq!(image.resized(expected.size()), expected, "{key}");
    }
}

#[test]
fn brightness_is_pillows() {
    let references = References::open("images.safetensors");
    let luma = stored(&references, "image").resized(Size::new(30, 20)).to_luma();
    let mask = luma.mapv(|x| if x < 0.5 { 0.0 } else { 1.0 });
    assert_close("mask", mask.view().into_dyn(), references.f32("mask").view(), 0.0);
}

#[test]
fn differences_are_measured_as_scikit_image_measures_them() {
    let references = References::open("images.safetensors");
    let (image, other) = (stored(&references, "image"), stored(&references, "other"));
    let found = image.compare(&other).expect("two pictures");
    let figures = references.metadata("figures");
    let close = |found: Option<f64>, key: &str| {
        let (found, expected) = (found.expect(key), figures[key].as_f64().expect("a number"));
        assert!((found - expected).abs() < 1e-9, "{key}: {found} for {expected}");
    };
    close(found.psnr, "psnr");
    close(found.ssim, "ssim");
    assert_eq!(found.max_difference, 9);
    let (difference, gain) = image.difference(&other).expect("two pictures");
    assert_eq!(gain, 28);
    assert_eq!(difference.data()[0], 28 * image.data()[0].abs_diff(other.data()[0]));

    let same = image.compare(&image).expect("two pictures");
    assert_eq!((same.max_difference, same.psnr), (0, None));
    assert!((same.ssim.expect("a similarity") - 1.0).abs() < 1e-12);
    assert!(matches!(image.compare(&image.resized(Size::square(5))), Err(ImageError::Sizes(..))));
}

#[test]
fn pictures_are_read_upright_and_without_alpha() {
    let turned = RgbImage::open(references().join("turned.jpg")).expect("a JPEG");
    assert_eq!((turned.width(), turned.height()), (16, 32));
    let near = |pixel: &[u8], colour: [u8; 3]| pixel.iter().zip(colour).all(|(a, b)| a.abs_diff(b) < 8);
    assert!(near(&turned.data()[..3], [200, 40, 40]), "{:?}", &turned.data()[..3]);
    assert!(near(&turned.data()[turned.data().len() - 3..], [30, 60, 200]));

    let alpha = RgbImage::open(references().join("alpha.webp")).expect("a WebP");
    assert_eq!(alpha.data()[..3], [200, 40, 40]);
}

#[test]
fn a_file_that_is_no_picture_is_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("p.png");
    let mut png = Vec::new();
    picture(vec![0.0; 3 * 64]).write_png(&mut png, &[]).expect("a PNG");
    png[16..20].copy_from_slice(&u32::MAX.to_be_bytes());
    for bytes in [&b"not a picture"[..], &png, &png[..20], &[]] {
        fs::write(&path, bytes).expect("a file");
        let error = RgbImage::open(&path).expect_err("refused").to_string();
        assert!(error.contains("p.png: "), "{error}");
    }
    let avif = [&b"\0\0\0\x20ftypavif"[..], &[0; 64]].concat();
    let error = RgbImage::from_bytes(&avif).expect_err("refused").to_string();
    assert_eq!(error, "is an AVIF file, which kiln does not read; save it as PNG, JPEG or WebP");
    let missing = RgbImage::open(folder.path().join("none.png")).expect_err("refused").to_string();
    assert!(missing.ends_with("none.png: no such file or directory"), "{missing}");
}

/// The start of a file that states a size, in every format.
fn headers(width: u16, height: u16) -> Vec<(&'static str, Vec<u8>)> {
    let [w, h] = [width, height].map(u32::from);
    let wide = |order: fn(u32) -> [u8; 4]| [order(w), order(h)].concat();
    let jpeg = [&[0xff, 0xd8, 0xff, 0xe0, 0, 4, 0, 0, 0xff, 0xc0, 0, 17, 8][..], &height.to_be_bytes()];
    let tag =
        |tag: u16, value: u32| [&tag.to_le_bytes()[..], &[4, 0, 1, 0, 0, 0], &value.to_le_bytes()].concat();
    let webp = [
        [&b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0"[..], &(w - 1).to_le_bytes()[..3]].concat(),
        (h - 1).to_le_bytes().into(),
    ];
    vec![
        ("png", [&b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR"[..], &wide(u32::to_be_bytes), &[8, 6, 0, 0, 0]].concat()),
        ("jpeg", [&jpeg.concat()[..], &width.to_be_bytes(), &[3]].concat()),
        ("webp", webp.concat()),
        (
            "bmp",
            [&b"BM\0\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0"[..], &wide(u32::to_le_bytes), &[1, 0, 24, 0]].concat(),
        ),
        ("gif", [&b"GIF89a"[..], &width.to_le_bytes(), &height.to_le_bytes(), &[0; 3]].concat()),
        ("tiff", [&b"II*\0\x08\0\0\0\x02\0"[..], &tag(256, w), &tag(257, h)].concat()),
    ]
}

/// Sparse files of 20 GB, of which the size alone is read.
#[test]
fn a_picture_of_too_many_pixels_is_refused_by_its_header() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let open = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).expect("a file");
        fs::File::options().write(true).open(&path).and_then(|file| file.set_len(20 << 30)).expect("a file");
        RgbImage::open(&path).expect_err("refused").to_string()
    };
    for (name, header) in headers(9000, 9000) {
        let error = open(name, &header);
        assert!(error.ends_with(&format!("{name}: 9000x9000 pixels are too many to be read")), "{error}");
    }
    for (name, header) in headers(8, 8) {
        let error = open(name, &header);
        let too_long = error.contains("has more than the 67109888 bytes that a picture of its size may have");
        assert!(too_long || name == "gif", "{error}");
    }
    let error = open("jpeg", b"\xff\xd8\xff\xe0\0\x10JFIF\0");
    assert!(error.ends_with("jpeg: is malformed: its header states no size"), "{error}");
}

#[test]
fn a_jpeg_has_a_bit_for_each_block_at_least() {
    let mut jpeg = fs::read(references().join("turned.jpg")).expect("a JPEG");
    let frame = jpeg.windows(2).position(|marker| marker == [0xff, 0xc0]).expect("a frame");
    let mut open = |side: u16| {
        jpeg[frame + 5..frame + 9].copy_from_slice(&[side.to_be_bytes(), side.to_be_bytes()].concat());
        RgbImage::from_bytes(&jpeg)
    };
    open(500).expect("a picture");
    let error = open(8000).expect_err("refused").to_string();
    assert!(error.ends_with("is cut off"), "{error}");
}

#[test]
fn colour_profiles_and_text_are_not_kept_and_exif_data_is_bounded() {
    let profile = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    let profile = {
        let mut out = profile;
        std::io::Write::write_all(&mut out, &vec![0; 64 << 20]).and_then(|()| out.finish()).expect("bytes")
    };
    let mut png = Vec::new();
    picture(vec![0.0; 3]).write_png(&mut png, &[]).expect("a PNG");
    let with = |kind: &[u8; 4], data: &[u8]| {
        let checked = [&kind[..], data].concat();
        let length = (data.len() as u32).to_be_bytes();
        let chunk = [&length[..], &checked, &crc32fast::hash(&checked).to_be_bytes()].concat();
        RgbImage::from_bytes(&[&png[..33], &chunk, &png[33..]].concat())
    };
    with(b"iCCP", &[&b"p\0\0"[..], &profile].concat()).expect("a picture");
    with(b"zTXt", &[&b"t\0\0"[..], &profile].concat()).expect("a picture");
    with(b"eXIf", &vec![0; 17 << 20]).expect_err("refused");
}

#[cfg(unix)]
#[test]
fn only_regular_files_are_opened() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pipe = folder.path().join("pipe.png");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
    for path in [&pipe, folder.path(), "/dev/zero".as_ref()] {
        let error = RgbImage::open(path).expect_err("refused").to_string();
        assert_eq!(error, format!("{}: is not a regular file", path.display()));
    }
}
