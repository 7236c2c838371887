//! Pictures that clients send, and the places at which they are decoded.

use std::cell::Cell;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use kiln_runtime::Size;
use kiln_runtime::image::RgbImage;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::spawn_blocking;

use super::error::{ApiError, internal};
use crate::config::Limits;

/// Requests with pictures that are read at the same time: a file of few bytes may be a picture of 2^26 pixels.
static PLACES: Semaphore = Semaphore::const_new(2);

/// Largest body, in bytes, that is read without a place: whatever it holds but pictures takes little memory.
const SMALL: usize = 64 << 10;

thread_local! {
    static READING: Cell<Reading> = const { Cell::new(Reading::Placed) };
}

/// How the thread reads a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    Placed,
    Unplaced,
    /// Without a place, and it has come to a picture.
    Wanting,
}

/// How a request is read: where it is large at a place, else without one until it turns out to hold pictures.
pub(crate) struct Turn(Option<SemaphorePermit<'static>>);

impl Turn {
    /// Of a body, or a message, of so many bytes. Waits for a place where it is large.
    pub(crate) async fn of(n_bytes: usize) -> Result<Turn, ApiError> {
        match n_bytes <= SMALL {
            true => Ok(Turn(None)),
            false => Turn::at_place().await,
        }
    }

    /// Waits for a place.
    pub(crate) async fn at_place() -> Result<Turn, ApiError> {
        PLACES.acquire().await.map(|permit| Turn(Some(permit))).map_err(|_| internal())
    }

    /// Whether it has a place.
    pub(crate) fn has_place(&self) -> bool {
        self.0.is_some()
    }

    /// Reads a request, off the threads that answer; once more from the start at a place where it holds pictures and has
    /// none. The place is taken until that has ended, even where the client has left.
    pub(crate) async fn read<I, T>(
        self,
        input: I,
        read: impl Fn(I) -> Result<T, ApiError> + Copy + Send + 'static,
    ) -> Result<T, ApiError>
    where
        I: Clone + Send + 'static,
        T: Send + 'static,
    {
        if self.has_place() {
            return self.try_read(input, read).await?.1;
        }
        match self.try_read(input.clone(), read).await? {
            (Reading::Wanting, _) => Turn::at_place().await?.try_read(input, read).await?.1,
            (_, answer) => answer,
        }
    }

    async fn try_read<I: Send + 'static, T: Send + 'static>(
        self,
        input: I,
        read: impl Fn(I) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<(Reading, Result<T, ApiError>), ApiError> {
        let work = move || {
            READING.set(if self.has_place() { Reading::Placed } else { Reading::Unplaced });
            let answer = read(input);
            drop(self);
            (READING.replace(Reading::Placed), answer)
        };
        spawn_blocking(work).await.map_err(|_| internal())
    }
}

/// Refuses to decode a picture where that needs a place, which [`Turn::read`] then takes.
pub(crate) fn check_place() -> Result<(), ApiError> {
    match READING.get() {
        Reading::Placed => Ok(()),
        _ => {
            READING.set(Reading::Wanting);
            Err(internal())
        }
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

/// A picture of any of the formats that are read, told by its bytes. Called by what a [`Turn`] reads.
pub(crate) fn decode(param: &str, bytes: &[u8]) -> Result<RgbImage, ApiError> {
    check_place()?;
    RgbImage::from_bytes(bytes).map_err(|e| ApiError::invalid(param, format!("{param}: {e}")))
}

/// The alpha channel of a picture, if it has one. Called by what a [`Turn`] reads.
pub(crate) fn alpha(param: &str, bytes: &[u8]) -> Result<Option<RgbImage>, ApiError> {
    check_place()?;
    RgbImage::alpha_from_bytes(bytes).map_err(|e| ApiError::invalid(param, format!("{param}: {e}")))
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

    #[tokio::test]
    async fn pictures_alone_wait_for_a_place() {
        let places = [Turn::at_place().await, Turn::at_place().await].map(|turn| turn.expect("a place"));
        let text = |()| Ok("read");
        assert_eq!(Turn::of(SMALL).await.expect("a turn").read((), text).await, Ok("read"));
        // Whatever the reader makes of the refusal.
        let picture = |()| Ok(decode("image", b"no picture").map_err(|error| error.code).err());
        let reading = tokio::spawn(async move { Turn::of(1).await?.read((), picture).await });
        let large = tokio::spawn(async move { Turn::of(SMALL + 1).await?.read((), text).await });
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        assert!(!reading.is_finished() && !large.is_finished());
        drop(places);
        assert_eq!(reading.await.expect("a task"), Ok(Some("invalid_value")));
        assert_eq!(large.await.expect("a task"), Ok("read"));
        assert_eq!(PLACES.available_permits(), 2);
    }

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
