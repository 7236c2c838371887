//! Messages in bodies: each behind a byte that says whether it is compressed and four bytes of length.
//!
//! Source: <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>

use std::convert::Infallible;
use std::io::Read;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use flate2::read::{GzDecoder, ZlibDecoder};
use futures_util::{Stream, StreamExt, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use prost::Message;
use prost::bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::fields;
use super::status::{CONTENT_TYPE, Code, Status};
use crate::http::{Intake, Unread};

/// What holds the room of a message.
pub(super) type Room = Option<OwnedSemaphorePermit>;

/// Bytes before a message.
const PREFIX: usize = 5;

/// How messages are compressed that say they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Identity,
    Gzip,
    Deflate,
}

/// The messages of a body.
pub(super) struct Messages {
    body: Body,
    read: BytesMut,
    encoding: Encoding,
    /// Most bytes of a message.
    limit: usize,
    /// Where the messages of a stream take room; a body that was read has its own.
    room: Option<Arc<Semaphore>>,
}

impl Messages {
    /// Of a request.
    pub(super) fn new(
        headers: &HeaderMap,
        body: Body,
        limit: usize,
        room: Option<Arc<Semaphore>>,
    ) -> Result<Messages, Status> {
        let encoding = match headers.get("grpc-encoding").map(|name| name.as_bytes()) {
            None | Some(b"identity") => Encoding::Identity,
            Some(b"gzip") => Encoding::Gzip,
            Some(b"deflate") => Encoding::Deflate,
            Some(_) => {
                let message = "grpc-encoding: is not identity, gzip or deflate";
                return Err(Status::new(Code::Unimplemented, message));
            }
        };
        Ok(Messages { body, read: BytesMut::new(), encoding, limit, room })
    }

    /// The only message.
    pub(super) async fn only<Q: Message + Default>(mut self) -> Result<Q, Status> {
        let Some((message, _)) = self.next().await? else { return Err(invalid("there is no message")) };
        match self.fill(1, None).await? {
            true => Err(invalid("there is more than one message")),
            false => Ok(message),
        }
    }

    /// The next message, if there is one, and what holds its room.
    pub(super) async fn next<Q: Message + Default>(&mut self) -> Result<Option<(Q, Room)>, Status> {
        if !self.fill(PREFIX, None).await? {
            return match self.read.is_empty() {
                true => Ok(None),
                false => Err(invalid("the message broke off")),
            };
        }
        let is_compressed = match self.read.get_u8() {
            0 => false,
            1 => true,
            flag => return Err(invalid(format!("a message begins with {flag}, which is neither 0 nor 1"))),
        };
        let length = self.read.get_u32() as usize;
        if length > self.limit {
            return Err(self.too_large());
        }
        let mut intake = self.room.as_ref().map(Intake::new);
        if !self.fill(length, intake.as_mut()).await? {
            return Err(invalid(format!("a message claims {length} bytes, the body has {}", self.read.len())));
        }
        let message = self.read.split_to(length).freeze();
        let message = if is_compressed { self.decompressed(&message)? } else { message };
        if let Some(intake) = intake.as_mut().filter(|_| is_compressed) {
            intake.take(message.len()).await.map_err(unread)?;
        }
        fields::check(&message).map_err(invalid)?;
        let message = Q::decode(message);
        let message = message.map(|message| Some((message, intake.and_then(Intake::held))));
        message.map_err(|e| invalid(format!("the message cannot be read: {e}")))
    }

    /// Reads until there are so many bytes; false where the body ends before.
    async fn fill(&mut self, length: usize, mut intake: Option<&mut Intake>) -> Result<bool, Status> {
        while self.read.len() < length {
            let data = match &mut intake {
                Some(intake) => intake.next(&mut self.body).await.map_err(unread)?,
                None => self.data().await?,
            };
            match data {
                Some(data) => self.read.extend_from_slice(&data),
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// The next bytes, whenever they come.
    async fn data(&mut self) -> Result<Option<Bytes>, Status> {
        while let Some(frame) = self.body.frame().await {
            let frame = frame.map_err(|_| unread(Unread::Broken))?;
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }

    fn decompressed(&self, message: &[u8]) -> Result<Bytes, Status> {
        let mut out = Vec::new();
        let limit = self.limit as u64 + 1;
        let read = match self.encoding {
            Encoding::Identity => {
                return Err(invalid("a message is compressed, and grpc-encoding says not how"));
            }
            Encoding::Gzip => GzDecoder::new(message).take(limit).read_to_end(&mut out),
            Encoding::Deflate => ZlibDecoder::new(message).take(limit).read_to_end(&mut out),
        };
        match read {
            Ok(n) if n > self.limit => Err(self.too_large()),
            Ok(_) => Ok(out.into()),
            Err(_) => Err(invalid("a message is not compressed as grpc-encoding says")),
        }
    }

    fn too_large(&self) -> Status {
        let message = format!("a message has more than {} bytes, the limit", self.limit);
        Status::new(Code::ResourceExhausted, message)
    }
}

/// An answer of messages; the first that could not be made is the last.
pub(super) fn answer<A: Message + 'static>(
    answers: impl Stream<Item = Result<A, Status>> + Send + 'static,
) -> Response {
    let frames = stream::unfold(Some(Box::pin(answers)), async |answers| {
        let mut answers = answers?;
        Some(match answers.next().await {
            Some(Ok(answer)) => (Frame::data(written(&answer)), Some(answers)),
            Some(Err(status)) => (Frame::trailers(status.trailers()), None),
            None => (Frame::trailers(Status::ok().trailers()), None),
        })
    });
    let body = StreamBody::new(frames.map(Ok::<_, Infallible>));
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], Body::new(body)).into_response()
}

/// A message behind its length.
fn written(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut data = BytesMut::with_capacity(PREFIX + length);
    data.put_u8(0);
    // The limits of pictures keep an answer below four gibibytes.
    data.put_u32(length as u32);
    data.put(message.encode_to_vec().as_slice());
    data.freeze()
}

fn unread(unread: Unread) -> Status {
    match unread {
        Unread::Broken => Status::new(Code::Cancelled, "the body broke off"),
        Unread::Slow | Unread::Full => Status::from(&unread.into()),
    }
}

fn invalid(message: impl Into<String>) -> Status {
    Status::new(Code::InvalidArgument, message)
}
