//! Bytes of bodies: within room for all bodies together, and at a least rate.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};

use super::error::ApiError;

/// How long a body may take.
pub(super) const TIME: Duration = Duration::from_secs(120);

/// How often its rate is looked at; the first time is free.
const WINDOW: Duration = Duration::from_secs(10);

/// Fewest bytes that come in a window: 16 KiB a second.
const LEAST: usize = 160 << 10;

/// How long a body waits for room.
const PATIENCE: Duration = Duration::from_secs(10);

/// Room for all bodies that are being read, or wait to be: four of the largest, and no less than 256 MiB.
pub(crate) fn room(max_body: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(most(max_body)))
}

/// Bytes of an empty [`room`].
pub(crate) fn most(max_body: usize) -> usize {
    max_body.saturating_mul(4).clamp(256 << 20, Semaphore::MAX_PERMITS)
}

/// A body that is being read. Its bytes have their room until [`Intake::held`] is dropped.
pub(crate) struct Intake {
    room: Arc<Semaphore>,
    held: Option<OwnedSemaphorePermit>,
    end: Instant,
    window: Instant,
    in_window: usize,
}

/// Why a body is read no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unread {
    /// It broke off, or is not encoded as it says.
    Broken,
    /// It comes too slowly.
    Slow,
    /// Other bodies take all the room.
    Full,
}

impl Intake {
    /// Begins with a body.
    pub(crate) fn new(room: &Arc<Semaphore>) -> Intake {
        let now = Instant::now();
        Intake { room: room.clone(), held: None, end: now + TIME, window: now + WINDOW, in_window: LEAST }
    }

    /// The next bytes; none at the end.
    pub(crate) async fn next(&mut self, body: &mut Body) -> Result<Option<Bytes>, Unread> {
        loop {
            self.check_rate()?;
            match timeout_at(self.end.min(self.window), body.frame()).await {
                Err(_) => {}
                Ok(None) => return Ok(None),
                Ok(Some(Err(_))) => return Err(Unread::Broken),
                Ok(Some(Ok(frame))) => {
                    let Ok(data) = frame.into_data() else { continue };
                    self.take(data.len()).await?;
                    return Ok(Some(data));
                }
            }
        }
    }

    /// What holds the room of all that was read.
    pub(crate) fn held(self) -> Option<OwnedSemaphorePermit> {
        self.held
    }

    fn check_rate(&mut self) -> Result<(), Unread> {
        let now = Instant::now();
        if now >= self.end {
            return Err(Unread::Slow);
        }
        if now >= self.window {
            if self.in_window < LEAST {
                return Err(Unread::Slow);
            }
            (self.window, self.in_window) = (now + WINDOW, 0);
        }
        Ok(())
    }

    /// Takes room for so many bytes. Waiting for it is not the client's slowness.
    pub(crate) async fn take(&mut self, n: usize) -> Result<(), Unread> {
        let begun = Instant::now();
        let count = u32::try_from(n).map_err(|_| Unread::Full)?;
        let taken = timeout(PATIENCE, self.room.clone().acquire_many_owned(count)).await;
        let taken = taken.ok().and_then(Result::ok).ok_or(Unread::Full)?;
        match &mut self.held {
            Some(held) => held.merge(taken),
            None => self.held = Some(taken),
        }
        self.window += begun.elapsed();
        self.in_window += n;
        Ok(())
    }
}

impl From<Unread> for ApiError {
    fn from(unread: Unread) -> ApiError {
        let new = ApiError::new;
        match unread {
            Unread::Broken => {
                let message = "the body broke off, or is not encoded as Content-Encoding says";
                new(StatusCode::BAD_REQUEST, "bad_body", message)
            }
            Unread::Slow => new(StatusCode::REQUEST_TIMEOUT, "timeout", "the body came too slowly"),
            Unread::Full => ApiError {
                retry_after: Some(PATIENCE),
                ..new(
                    StatusCode::TOO_MANY_REQUESTS,
                    "bodies_full",
                    "other bodies take all the memory that they may; try again later",
                )
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::stream;
    use tokio::time::sleep;

    use super::*;

    /// A body of parts of so many bytes, each after a time.
    fn parts(n: usize, size: usize, pause: Duration) -> Body {
        Body::from_stream(stream::unfold(n, move |left| async move {
            let left = left.checked_sub(1)?;
            sleep(pause).await;
            Some((Ok::<_, Infallible>(Bytes::from(vec![0; size])), left))
        }))
    }

    async fn read(room: &Arc<Semaphore>, mut body: Body) -> Result<Option<OwnedSemaphorePermit>, Unread> {
        let mut intake = Intake::new(room);
        while intake.next(&mut body).await?.is_some() {}
        Ok(intake.held())
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_take_room_until_they_are_let_go() {
        let room = Arc::new(Semaphore::new(100));
        let held = read(&room, parts(2, 40, Duration::ZERO)).await.expect("a body");
        assert_eq!(room.available_permits(), 20);
        assert_eq!(read(&room, parts(1, 40, Duration::ZERO)).await.err(), Some(Unread::Full));
        let second = tokio::spawn({
            let room = room.clone();
            async move { read(&room, parts(1, 40, Duration::ZERO)).await.is_ok() }
        });
        sleep(Duration::from_secs(3)).await;
        drop(held);
        assert!(second.await.expect("a task"));
        assert_eq!(room.available_permits(), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_that_trickle_are_given_up() {
        let room = room(1 << 20);
        let second = Duration::from_secs(1);
        assert!(read(&room, parts(9, 1, second)).await.is_ok(), "the first ten seconds are free");
        assert!(read(&room, parts(100, 17 << 10, second)).await.is_ok());
        assert_eq!(read(&room, parts(100, 15 << 10, second)).await.err(), Some(Unread::Slow));
        assert_eq!(read(&room, parts(2, 40 << 20, 21 * second)).await.err(), Some(Unread::Slow));
        assert_eq!(read(&room, parts(200, 1 << 20, second)).await.err(), Some(Unread::Slow), "120 s are all");
        assert_eq!(room.available_permits(), 256 << 20);
    }
}
