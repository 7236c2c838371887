//! What `img2img` starts from, as the web UIs prepare it: resized, masked, cut out; and what its pictures are laid on.

use kiln_runtime::image::RgbImage;
use kiln_runtime::{Init, MaskFill, Size};
use serde_json::Value;

use super::blur::{Plane, fill};
use super::fields::{Fields, invalid};
use crate::ModelCard;
use crate::http::error::ApiError;
use crate::http::upload::{alpha, bytes, decode, picture, shrunk};

/// An initial picture with its mask and strength, and the picture alone in the size of the drawing.
pub(super) struct Ready(pub(super) Init, pub(super) RgbImage);

/// What to draw, and what to lay it upon.
pub(super) struct Task {
    pub(super) init: Ready,
    pub(super) paste: Option<Paste>,
}

/// How a picture is brought to other proportions (`resize_mode` 0 to 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// Stretched.
    Stretch,
    /// Cut at two sides.
    Crop,
    /// Its edges go on.
    Fill,
}

/// The original picture, of which what the mask leaves dark is kept.
pub(super) struct Paste {
    original: RgbImage,
    /// 1 where the drawing is seen.
    mask: Plane,
    /// Where the drawing lies.
    region: Region,
}

/// A part of a picture, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Region {
    x: u32,
    y: u32,
    size: Size,
}

/// Deviation of a mask's blur where a call says none, in pixels.
const MASK_BLUR: f64 = 4.0;

/// Reads what a call starts from.
///
/// With a mask the picture itself is kept: it waits in no more pixels than the model's limits allow.
pub(super) fn task(fields: &Fields, model: &ModelCard, size: Size, strength: f64) -> Result<Task, ApiError> {
    let first = fields.list("init_images").first().and_then(Value::as_str);
    let text = first.or(fields.text("init_images")).unwrap_or_default();
    let fit = match fields.whole("resize_mode") {
        Some(1) => Fit::Crop,
        Some(2) => Fit::Fill,
        _ => Fit::Stretch,
    };
    let strength = fields.number("denoising_strength").unwrap_or(strength);
    let image = picture("init_images", text)?;
    match fields.text("mask").filter(|mask| !mask.is_empty()) {
        None => {
            let image = fitted(&image, size, fit);
            let init = Init::new(image.clone()).strength(strength);
            Ok(Task { init: Ready(init, image), paste: None })
        }
        Some(mask) => {
            let image = shrunk(image, &model.limits);
            let mask = read_mask(fields, mask, image.size())?;
            masked(fields, image, mask, size, fit, strength)
        }
    }
}

/// The mask in the initial picture's size, blurred; 1 where to paint.
fn read_mask(fields: &Fields, text: &str, size: Size) -> Result<Plane, ApiError> {
    let file = bytes("mask", text)?;
    let alpha = alpha("mask", &file)?;
    let mask = match alpha.filter(|alpha| alpha.data().iter().any(|x| *x < 255)) {
        Some(alpha) => opaque(&alpha),
        None => decode("mask", &file)?,
    };
    let mut mask = plane(&mask.resized(size));
    if fields.flag("inpainting_mask_invert") == Some(true) {
        mask.data.iter_mut().for_each(|x| *x = 1.0 - *x);
    }
    let (both, x, y) = (fields.number("mask_blur"), fields.number("mask_blur_x"), fields.number("mask_blur_y"));
    let [x, y] = [x, y].map(|sigma| both.or(sigma).unwrap_or(MASK_BLUR) as f32);
    mask.blur(x, y);
    match mask.data.iter().any(|x| *x >= 0.5) {
        true => Ok(mask),
        false => Err(invalid("mask", "is dark all over: nothing would be painted")),
    }
}

/// White where a file is more opaque than not, which is how web UIs read masks with transparency.
fn opaque(alpha: &RgbImage) -> RgbImage {
    rgb(alpha.size(), alpha.data().iter().map(|x| if *x > 128 { 255 } else { 0 }).collect())
}

fn masked(
    fields: &Fields,
    image: RgbImage,
    mask: Plane,
    size: Size,
    fit: Fit,
    strength: f64,
) -> Result<Task, ApiError> {
    let (fills, latents) = match fields.whole("inpainting_fill").unwrap_or(0) {
        1 => (false, MaskFill::Picture),
        2 => (true, MaskFill::Noise),
        3 => (true, MaskFill::Zeros),
        _ => (true, MaskFill::Picture),
    };
    let padding = fields.number("inpaint_full_res_padding").unwrap_or(0.0) as i64;
    let paste = match fields.flag("inpaint_full_res").unwrap_or(true) {
        true => {
            let region = around(&mask, padding, size);
            Paste { original: image, mask, region }
        }
        false => {
            let mut mask = plane(&fitted(&grey(&mask), size, fit));
            mask.data.iter_mut().for_each(|x| *x = (2.0 * *x).min(1.0));
            let region = Region { x: 0, y: 0, size };
            Paste { original: fitted(&image, size, fit), mask, region }
        }
    };
    let part = cut(&paste.original, paste.region).resized(size);
    let hole = cut(&grey(&paste.mask), paste.region).resized(size);
    let part = match fills {
        true => rgb(size, fill(part.data(), &plane(&hole))),
        false => part,
    };
    let init = Init::new(part.clone()).strength(strength).mask(hole).fill(latents);
    Ok(Task { init: Ready(init, part), paste: Some(paste) })
}

impl Paste {
    /// Size of the whole.
    pub(super) fn size(&self) -> Size {
        self.original.size()
    }

    /// The original with a drawing laid upon it.
    pub(super) fn under(&self, drawn: &RgbImage) -> RgbImage {
        let Region { x, y, size } = self.region;
        let drawn = if drawn.size() == size { drawn.clone() } else { drawn.resized(size) };
        let (mut data, width) = (self.original.data().to_vec(), self.original.width() as usize);
        for (row, line) in drawn.data().chunks_exact(3 * size.width as usize).enumerate() {
            let first = (y as usize + row) * width + x as usize;
            for (i, value) in line.iter().enumerate() {
                let share = self.mask.data[first + i / 3];
                let kept = &mut data[3 * first + i];
                *kept = (f32::from(*value) * share + f32::from(*kept) * (1.0 - share)).round() as u8;
            }
        }
        rgb(self.original.size(), data)
    }
}

/// The smallest part with all of a mask and so many pixels around, in the proportions of `size` as far as the picture
/// goes (the web UIs' "only masked").
fn around(mask: &Plane, padding: i64, size: Size) -> Region {
    let (width, height) = (mask.width as i64, mask.height as i64);
    let (mut left, mut right, mut top, mut bottom) = (width, 0, height, 0);
    for (i, _) in mask.data.iter().enumerate().filter(|(_, x)| **x >= 1.0 / 255.0) {
        let (x, y) = (i as i64 % width, i as i64 / width);
        (left, right) = (left.min(x), right.max(x + 1));
        (top, bottom) = (top.min(y), bottom.max(y + 1));
    }
    let (left, right) = ((left - padding).max(0), (right + padding).min(width));
    let (top, bottom) = ((top - padding).max(0), (bottom + padding).min(height));
    let (found_width, found_height) = ((right - left).max(1), (bottom - top).max(1));
    let (to_width, to_height) = (i64::from(size.width), i64::from(size.height));
    let (x, part_width) = widened(left, found_width, found_height * to_width / to_height, width);
    let (y, part_height) = widened(top, found_height, found_width * to_height / to_width, height);
    let size = Size::new(part_width as u32, part_height as u32);
    Region { x: x as u32, y: y as u32, size }
}

/// A stretch of a line of `n` pixels, widened on both sides to what is wanted or all there is.
fn widened(start: i64, found: i64, wanted: i64, n: i64) -> (i64, i64) {
    let length = found.max(wanted).min(n);
    let start = start - (length - found) / 2;
    (start.clamp(0, n - length), length)
}

/// A picture in another size.
pub(super) fn fitted(image: &RgbImage, size: Size, fit: Fit) -> RgbImage {
    let (from, to) = (image.size(), size);
    let [from_width, from_height, width, height] =
        [from.width, from.height, to.width, to.height].map(u64::from);
    let is_wider = from_width * height > width * from_height;
    match fit {
        Fit::Stretch => image.resized(size),
        Fit::Crop => {
            let part = match is_wider {
                true => Size::new((from_height * width / height).max(1) as u32, from.height),
                false => Size::new(from.width, (from_width * height / width).max(1) as u32),
            };
            let (x, y) = ((from.width - part.width) / 2, (from.height - part.height) / 2);
            cut(image, Region { x, y, size: part }).resized(size)
        }
        Fit::Fill => {
            let inner = match is_wider {
                true => Size::new(to.width, (from_height * width / from_width).max(1) as u32),
                false => Size::new((from_width * height / from_height).max(1) as u32, to.height),
            };
            extended(&image.resized(inner), size)
        }
    }
}

/// A picture in the middle of a larger one, whose edges go on.
fn extended(image: &RgbImage, size: Size) -> RgbImage {
    let (x, y) = ((size.width - image.width()) / 2, (size.height - image.height()) / 2);
    let mut data = Vec::with_capacity(3 * size.area() as usize);
    for row in 0..size.height {
        let from = row.saturating_sub(y).min(image.height() - 1) as usize * image.width() as usize;
        for column in 0..size.width {
            let at = 3 * (from + column.saturating_sub(x).min(image.width() - 1) as usize);
            data.extend_from_slice(&image.data()[at..at + 3]);
        }
    }
    rgb(size, data)
}

fn cut(image: &RgbImage, region: Region) -> RgbImage {
    let Region { x, y, size } = region;
    let stride = 3 * image.width() as usize;
    let rows = image.data().chunks_exact(stride).skip(y as usize).take(size.height as usize);
    let data = rows.flat_map(|row| &row[3 * x as usize..3 * (x + size.width) as usize]).copied().collect();
    rgb(size, data)
}

fn plane(image: &RgbImage) -> Plane {
    let data = image.to_luma().iter().copied().collect();
    Plane { width: image.width() as usize, height: image.height() as usize, data }
}

fn grey(plane: &Plane) -> RgbImage {
    let data = plane.data.iter().flat_map(|x| [(x.clamp(0.0, 1.0) * 255.0).round() as u8; 3]).collect();
    rgb(Size::new(plane.width as u32, plane.height as u32), data)
}

fn rgb(size: Size, data: Vec<u8>) -> RgbImage {
    RgbImage::from_raw(size.width, size.height, data).expect("three bytes for each pixel")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(width: u32, height: u32) -> RgbImage {
        let data = (0..width * height).flat_map(|i| [(i % width) as u8, (i / width) as u8, 0]).collect();
        rgb(Size::new(width, height), data)
    }

    fn square(width: usize, height: usize, from: [usize; 2], to: [usize; 2]) -> Plane {
        let is_inside = |i: usize| {
            let (x, y) = (i % width, i / width);
            (from[0]..to[0]).contains(&x) && (from[1]..to[1]).contains(&y)
        };
        Plane { width, height, data: (0..width * height).map(|i| f32::from(u8::from(is_inside(i)))).collect() }
    }

    #[test]
    fn pictures_are_cut_or_extended_to_other_proportions() {
        let at = |image: &RgbImage, x: u32, y: u32| {
            image.data()[3 * (y * image.width() + x) as usize..][..2].to_vec()
        };
        let wide = ramp(40, 20);
        let cropped = fitted(&wide, Size::new(20, 20), Fit::Crop);
        assert_eq!((at(&cropped, 0, 0), at(&cropped, 19, 19)), (vec![10, 0], vec![29, 19]));
        let filled = fitted(&wide, Size::new(40, 40), Fit::Fill);
        assert_eq!(
            (at(&filled, 5, 0), at(&filled, 5, 12), at(&filled, 5, 39)),
            (vec![5, 0], vec![5, 2], vec![5, 19])
        );
        let size = Size::new(512, 512);
        assert_eq!(fitted(&ramp(30000, 1), size, Fit::Crop).size(), size);
        assert_eq!(fitted(&ramp(1, 30000), size, Fit::Fill).size(), size);
    }

    #[test]
    fn the_part_around_a_mask_has_the_drawings_proportions_and_stays_inside() {
        let part = |from, to, padding, size| around(&square(100, 60, from, to), padding, size);
        let square_size = Size::new(64, 64);
        let expected = |x, y, width, height| Region { x, y, size: Size::new(width, height) };
        assert_eq!(part([40, 20], [50, 30], 0, square_size), expected(40, 20, 10, 10));
        assert_eq!(part([40, 20], [60, 30], 0, square_size), expected(40, 15, 20, 20));
        assert_eq!(part([0, 0], [10, 4], 2, square_size), expected(0, 0, 12, 12));
        assert_eq!(part([0, 0], [100, 60], 8, square_size), expected(0, 0, 100, 60));
        assert_eq!(part([90, 50], [100, 60], 0, Size::new(128, 64)), expected(80, 50, 20, 10));
    }

    #[test]
    fn what_the_mask_leaves_dark_is_kept_to_the_bit() {
        let original = ramp(16, 8);
        let mask = square(16, 8, [4, 2], [8, 6]);
        let region = around(&mask, 0, Size::new(64, 64));
        let paste = Paste { original: original.clone(), mask, region };
        let drawn = rgb(Size::new(64, 64), vec![200; 3 * 64 * 64]);
        let pasted = paste.under(&drawn);
        for (i, (found, kept)) in pasted.data().chunks(3).zip(original.data().chunks(3)).enumerate() {
            let is_inside = (4..8).contains(&(i % 16)) && (2..6).contains(&(i / 16));
            assert_eq!(found, if is_inside { &[200; 3] } else { kept });
        }
    }
}
