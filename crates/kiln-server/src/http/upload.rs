//! Pictures that clients send, and the places at which they are decoded.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use kiln_runtime::Size;
use kiln_runtime::image::RgbImage;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::spawn_blocking;

use super::error::{ApiError, internal};
use crate::config::Limits;

/// Requests that are read at the same time: a file of few bytes may be a picture of 2^26 pixels.
static PLACES: Semaphore = Semaphore::const_new(2);

/// A place at which a request is read and its pictures are decoded.
pub(crate) struct Place(#[expect(dead_code, reason = "held")] SemaphorePermit<'static>);

/// Waits for a place.
pub(crate) async fn place() -> Result<Place, ApiError> {
    PLACES.acquire().await.map(Place).map_err(|_| internal())
}

impl Place {
    /// Reads a request, off the threads that answer. The place is taken until that has ended, even where the client has left.
    pub(crate) async fn read<T: Send + 'static>(
        self,
        read: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let at_place = move || {
            let _place = self;
            read()
        };
        spawn_blocking(at_place).await.map_err(|_| internal())?
    }
}

/// A picture in base64, with or without `data:` before it.
pub(crate) fn picture(param: &str, text: &str) -> Result<RgbImage, ApiError> {
    decode(param, &bytes(param, text)?)
}

/// The bytes of a file in base64, with or without `data:` before it.
pub(crate) fn bytes(param: &str, text: &str) -> Result<Vec<u8>, ApiError> {
    let text =
        text.strip_prefix("data:").and_then(|rest| rest.split_once(";base64,")).map_or(text, |(_, rest)| rest);
    let bytes = BASE64_STANDARD.decode(text.trim());
    bytes.map_err(|_| ApiError::invalid(param, format!("{param}: is not base64")))
}

/// A picture of any of the formats that are read, told by its bytes. Called at a [`Place`].
pub(crate) fn decode(param: &str, bytes: &[u8]) -> Result<RgbImage, ApiError> {
    RgbImage::from_bytes(bytes).map_err(|e| ApiError::invalid(param, format!("{param}: {e}")))
}

/// A picture in its own proportions that is no larger than a model's limits.
pub(crate) fn shrunk(image: RgbImage, limits: &Limits) -> RgbImage {
    let size = image.size();
    let by_side = f64::from(limits.side) / f64::from(size.longest());
    let by_area = (limits.pixels as f64 / size.area() as f64).sqrt();
    match by_side.min(by_area) {
        factor if factor < 1.0 => image.resized(size.map(|side| (f64::from(side) * factor) as u32)),
        _ => image,
    }
}

/// Resizes a picture where that leaves fewer pixels.
pub(crate) fn no_larger(image: &mut RgbImage, size: Size) {
    if size.area() < image.size().area() {
        *image = image.resized(size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_pictures_shrink_to_the_limits_and_small_ones_stay() {
        let limits = Limits { side: 64, pixels: 1024, ..Limits::default() };
        let shrunk_size = |width, height| {
            let data = vec![7; (3 * width * height) as usize];
            shrunk(RgbImage::from_raw(width, height, data).expect("a picture"), &limits).size()
        };
        assert_eq!(shrunk_size(32, 32), Size::new(32, 32));
        assert_eq!(shrunk_size(128, 128), Size::new(32, 32));
        assert_eq!(shrunk_size(256, 2), Size::new(64, 1));
        assert_eq!(shrunk_size(2, 256), Size::new(1, 64));
    }
}
