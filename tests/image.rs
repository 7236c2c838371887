//! Pictures and PNG files.

use std::fs;

use kiln_runtime::image::RgbImage;
use ndarray::ArrayD;

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
