//! What is to be drawn.

use std::ffi::c_char;

use kiln_runtime::image::RgbImage;
use kiln_runtime::{Control, Init, MaskFill, Request};

use crate::boundary::{Versioned, read, slice, text};
use crate::error::{KILN_INPUT, kiln_error};

/// Before noise is added, the picture's latents lie under the mask.
pub const KILN_FILL_PICTURE: u32 = 0;
/// Before noise is added, the seed's noise lies under the mask.
pub const KILN_FILL_NOISE: u32 = 1;
/// Before noise is added, zeros lie under the mask.
pub const KILN_FILL_ZEROS: u32 = 2;

/// A picture of three bytes a pixel, red first, row by row without gaps. This struct does not grow.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kiln_picture {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// `3 * width * height` bytes.
    pub rgb: *const u8,
}

/// One ControlNet's share of a request. All zeros but the picture are the defaults. This struct does not grow.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kiln_control {
    /// What it reads; resized to the request's size.
    pub picture: *const kiln_picture,
    /// Factor on its residuals; 0 for the default.
    pub scale: f32,
    /// 0.
    pub reserved: u32,
    /// Share of the steps after which it starts.
    pub start: f64,
    /// Share of the steps after which it ends; 0 for all of them.
    pub end: f64,
}

/// What is to be drawn. All zeros but the size and the prompts are the defaults: those of diffusers' pipeline of the task.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kiln_request {
    /// `sizeof(kiln_request)`.
    pub size: usize,
    /// One prompt per picture, in UTF-8.
    pub prompts: *const *const c_char,
    /// How many there are.
    pub n_prompts: usize,
    /// What to steer away from: none, one for all pictures, or one per prompt.
    pub negative_prompts: *const *const c_char,
    /// How many there are.
    pub n_negative_prompts: usize,
    /// One seed, from which the random numbers of the whole batch are drawn, or one per prompt; none for seed 0.
    pub seeds: *const u64,
    /// How many there are.
    pub n_seeds: usize,
    /// Denoising steps; 0 for the default.
    pub steps: u32,
    /// Width in pixels; 0 for the model's own, or that of the picture to start from or that steers.
    pub width: u32,
    /// Height in pixels, like the width.
    pub height: u32,
    /// Weight of the prompt; guidance is off up to 1. 0 for the default.
    pub guidance_scale: f32,
    /// A scheduler, by a name that `kiln generate --scheduler` takes; `NULL` for the model's own.
    pub scheduler: *const c_char,
    /// The picture to start from; `NULL` for none.
    pub init: *const kiln_picture,
    /// Where to paint: what is lighter than half is painted anew; `NULL` for everywhere.
    pub mask: *const kiln_picture,
    /// How much to change the picture, up to 1 for completely; 0 for the default.
    pub strength: f64,
    /// What lies under the mask: `KILN_FILL_*`.
    pub fill: u32,
    /// 0.
    pub reserved: u32,
    /// Pictures that steer the denoiser, one per ControlNet of the pipeline.
    pub controls: *const kiln_control,
    /// How many there are.
    pub n_controls: usize,
    /// Everything else, as a JSON object with the fields of `kiln_runtime::Request`, such as
    /// `{"clip_skip": 1, "approximations": {"deep_every": 2}}`; `NULL` for nothing. What a field above says comes first.
    pub more: *const c_char,
}

// SAFETY: it is `repr(C)`, begins with its size, and holds numbers and pointers.
unsafe impl Versioned for kiln_request {
    const NAME: &'static str = "kiln_request";
}

/// # Safety
/// The pointer is `NULL` or a picture with as many bytes as it says.
unsafe fn picture(picture: *const kiln_picture, name: &str) -> Result<Option<RgbImage>, kiln_error> {
    // SAFETY: the caller's promise.
    let Some(&kiln_picture { width, height, rgb }) = (unsafe { picture.as_ref() }) else { return Ok(None) };
    let n_bytes = (width as usize).checked_mul(height as usize).and_then(|pixels| pixels.checked_mul(3));
    let n_bytes = n_bytes
        .filter(|n| *n > 0 && *n <= isize::MAX as usize)
        .ok_or_else(|| kiln_error::request(format!("{name}: {width} x {height} pixels are no picture")))?;
    // SAFETY: the caller's promise.
    let data = unsafe { slice(rgb, n_bytes, &format!("{name}: rgb"))? };
    let image = RgbImage::from_raw(width, height, data.to_vec());
    image.map(Some).map_err(|error| kiln_error::new(KILN_INPUT, format!("{name}: {error}")))
}

/// # Safety
/// There are as many texts.
unsafe fn texts(from: *const *const c_char, n: usize, name: &str) -> Result<Vec<String>, kiln_error> {
    // SAFETY: the caller's promise.
    let texts = unsafe { slice(from, n, name)? };
    let owned = |(i, &one): (usize, &*const c_char)| {
        let name = format!("{name}[{i}]");
        // SAFETY: the caller's promise.
        let text = unsafe { text(one, &name)? };
        text.map(str::to_owned).ok_or_else(|| kiln_error::request(format!("{name} is NULL")))
    };
    texts.iter().enumerate().map(owned).collect()
}

/// The library's request.
///
/// # Safety
/// The pointer is a struct as its size says, whose pointers are `NULL` or what their fields say.
pub(crate) unsafe fn request_of(request: *const kiln_request) -> Result<Request, kiln_error> {
    // SAFETY: the caller's promise.
    let (of, more, prompts, negative, seeds, scheduler, init, controls) = unsafe {
        let of = read(request)?.ok_or_else(|| kiln_error::request("the request is NULL"))?;
        (
            of,
            text(of.more, "more")?,
            texts(of.prompts, of.n_prompts, "prompts")?,
            texts(of.negative_prompts, of.n_negative_prompts, "negative_prompts")?,
            slice(of.seeds, of.n_seeds, "seeds")?,
            text(of.scheduler, "scheduler")?,
            init_of(&of)?,
            controls_of(&of)?,
        )
    };
    let wrong = |error| kiln_error::request(format!("more: {error}"));
    let mut request = match more {
        Some(more) => serde_json::from_str::<Request>(more).map_err(wrong)?,
        None => Request::default(),
    };
    if !prompts.is_empty() {
        request.prompts = prompts;
    }
    if !negative.is_empty() {
        request.negative_prompts = negative;
    }
    if !seeds.is_empty() {
        request.seeds = seeds.to_vec();
    }
    if !controls.is_empty() {
        request.controls = controls;
    }
    let given = |n: u32| Some(n).filter(|n| *n > 0);
    request.steps = given(of.steps).map(|steps| steps as usize).or(request.steps);
    request.width = given(of.width).or(request.width);
    request.height = given(of.height).or(request.height);
    request.guidance_scale = Some(of.guidance_scale).filter(|scale| *scale != 0.0).or(request.guidance_scale);
    request.scheduler = scheduler.map(str::to_owned).or(request.scheduler);
    request.init = init.or(request.init);
    Ok(request)
}

/// # Safety
/// As [`request_of`].
unsafe fn init_of(of: &kiln_request) -> Result<Option<Init>, kiln_error> {
    // SAFETY: the caller's promise.
    let (image, mask) = unsafe { (picture(of.init, "init")?, picture(of.mask, "mask")?) };
    let fill = match of.fill {
        KILN_FILL_PICTURE => MaskFill::Picture,
        KILN_FILL_NOISE => MaskFill::Noise,
        KILN_FILL_ZEROS => MaskFill::Zeros,
        other => return Err(kiln_error::request(format!("fill: {other} is not KILN_FILL_*"))),
    };
    let Some(image) = image else {
        let unread = [(mask.is_some(), "mask"), (of.strength != 0.0, "strength"), (of.fill != 0, "fill")];
        return match unread.iter().find(|(is_given, _)| *is_given) {
            Some((_, name)) => Err(kiln_error::request(format!("{name}: there is no init picture"))),
            None => Ok(None),
        };
    };
    let mut init = Init::new(image).strength(Some(of.strength).filter(|strength| *strength != 0.0)).fill(fill);
    if let Some(mask) = mask {
        init = init.mask(mask);
    }
    Ok(Some(init))
}

/// # Safety
/// As [`request_of`].
unsafe fn controls_of(of: &kiln_request) -> Result<Vec<Control>, kiln_error> {
    // SAFETY: the caller's promise.
    let controls = unsafe { slice(of.controls, of.n_controls, "controls")? };
    let control = |(i, of): (usize, &kiln_control)| {
        let name = format!("controls[{i}]: picture");
        // SAFETY: the caller's promise.
        let image = unsafe { picture(of.picture, &name)? };
        let image = image.ok_or_else(|| kiln_error::request(format!("{name} is NULL")))?;
        let scale = Some(of.scale).filter(|scale| *scale != 0.0);
        let end = if of.end == 0.0 { 1.0 } else { of.end };
        Ok(Control::new(image).scale(scale).between(of.start, end))
    };
    controls.iter().enumerate().map(control).collect()
}
