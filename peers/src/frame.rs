//! Frames: `u32 length | u64 id | u8 kind | payload`, big-endian; the length counts what follows it.

use std::io;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

const HEAD: usize = 13;
const LENGTH: usize = 4;
const BUFFER: usize = 64 << 10;
/// Payloads up to here are copied next to their neighbours, to share a TLS record and a write.
const COPIED_MAX: usize = 8 << 10;

/// What a frame is. Numbers are the wire's: never change one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The server's first frame: the caller is admitted, under these limits.
    Welcome = 0,
    Request = 1,
    Answer = 2,
    Refusal = 3,
    /// The service panicked: nobody knows what was done.
    Failure = 4,
    Ping = 5,
    Pong = 6,
    /// The server reads no further; its id is the last request it took.
    Goodbye = 7,
    Header = 8,
    Chunk = 9,
    End = 10,
}

#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) id: u64,
    pub(crate) kind: Kind,
    pub(crate) payload: Bytes,
}

/// The payload of [`Kind::Welcome`].
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Welcome {
    pub(crate) frame_bytes_max: u32,
    pub(crate) calls_max: u32,
}

/// Reads frames. Payloads are slices of what was read, not copies.
#[derive(Debug)]
pub(crate) struct FrameReader<R> {
    stream: R,
    buffer: BytesMut,
    frame_bytes_max: usize,
    pub(crate) silence_max: Duration,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(crate) fn new(stream: R, frame_bytes_max: usize, silence_max: Duration) -> Self {
        Self { stream, buffer: BytesMut::with_capacity(BUFFER), frame_bytes_max, silence_max }
    }

    #[cfg(test)]
    pub(crate) fn stream(&self) -> &R {
        &self.stream
    }

    /// The next frame, or `None` when the peer closed properly between two. Safe to cancel.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Frame>> {
        loop {
            let missing = match self.parse()? {
                Ok(frame) => return Ok(Some(frame)),
                Err(missing) => missing,
            };
            // The claimed length is believed by and by, as its bytes arrive.
            self.buffer.reserve(missing.clamp(BUFFER / 4, 1 << 20));
            let read = timeout(self.silence_max, self.stream.read_buf(&mut self.buffer)).await;
            match read {
                Err(_) => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "the peer is silent"));
                }
                Ok(Err(error)) => return Err(error),
                Ok(Ok(0)) if self.buffer.is_empty() => return Ok(None),
                Ok(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(Ok(_)) => {}
            }
        }
    }

    /// A whole frame, or how many bytes it lacks.
    fn parse(&mut self) -> io::Result<Result<Frame, usize>> {
        let Some(mut head) = self.buffer.get(..HEAD) else {
            return Ok(Err(HEAD - self.buffer.len()));
        };
        let length = head.get_u32() as usize;
        let id = head.get_u64();
        let kind = Kind::parse(head.get_u8())?;
        let bytes =
            length.checked_sub(HEAD - LENGTH).ok_or_else(|| invalid("a frame too short"))?;
        if bytes > self.frame_bytes_max {
            return Err(invalid(&format!(
                "a frame of {bytes} bytes, the limit is {}",
                self.frame_bytes_max
            )));
        }
        if self.buffer.len() < HEAD + bytes {
            return Ok(Err(HEAD + bytes - self.buffer.len()));
        }
        self.buffer.advance(HEAD);
        let payload = self.buffer.split_to(bytes).freeze();
        Ok(Ok(Frame { id, kind, payload }))
    }
}

/// Writes frames, small ones together. Not safe to cancel: what is half written ends the stream.
#[derive(Debug)]
pub(crate) struct FrameWriter<W> {
    stream: W,
    buffer: BytesMut,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    pub(crate) fn new(stream: W) -> Self {
        Self { stream, buffer: BytesMut::with_capacity(BUFFER) }
    }

    /// Takes a frame; it may wait for [`Self::flush`].
    pub(crate) async fn put(&mut self, id: u64, kind: Kind, payload: &[u8]) -> io::Result<()> {
        let length = u32::try_from(payload.len() + HEAD - LENGTH)
            .map_err(|_| invalid("a frame beyond 32 bits"))?;
        self.buffer.put_u32(length);
        self.buffer.put_u64(id);
        self.buffer.put_u8(kind as u8);
        if payload.len() <= COPIED_MAX {
            self.buffer.put_slice(payload);
            if self.buffer.len() < BUFFER - COPIED_MAX {
                return Ok(());
            }
            return self.drain().await;
        }
        self.drain().await?;
        self.stream.write_all(payload).await
    }

    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        self.drain().await?;
        self.stream.flush().await
    }

    /// Flushes and tells the peer that nothing more follows.
    pub(crate) async fn finish(&mut self) -> io::Result<()> {
        self.flush().await?;
        self.stream.shutdown().await
    }

    async fn drain(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.buffer).await?;
        self.buffer.clear();
        Ok(())
    }
}

impl Kind {
    fn parse(byte: u8) -> io::Result<Self> {
        Ok(match byte {
            0 => Self::Welcome,
            1 => Self::Request,
            2 => Self::Answer,
            3 => Self::Refusal,
            4 => Self::Failure,
            5 => Self::Ping,
            6 => Self::Pong,
            7 => Self::Goodbye,
            8 => Self::Header,
            9 => Self::Chunk,
            10 => Self::End,
            _ => return Err(invalid(&format!("a frame of unknown kind {byte}"))),
        })
    }
}

pub(crate) fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn frames_survive_any_fragmentation() {
        let sent: Vec<(u64, Vec<u8>)> = [0, 1, 100, COPIED_MAX, COPIED_MAX + 1, BUFFER * 3]
            .map(|n| (n as u64, vec![7; n]))
            .into();
        let mut wire = FrameWriter::new(Vec::new());
        for (id, payload) in &sent {
            wire.put(*id, Kind::Request, payload).await.unwrap();
        }
        wire.flush().await.unwrap();
        for piece in [1, 13, 4096, usize::MAX] {
            let (mut near, far) = tokio::io::duplex(1 << 20);
            let mut reader = FrameReader::new(far, BUFFER * 3, LONG);
            for bytes in wire.stream.chunks(piece.min(wire.stream.len())) {
                near.write_all(bytes).await.unwrap();
            }
            drop(near);
            for (id, payload) in &sent {
                let frame = reader.next().await.unwrap().unwrap();
                assert_eq!((frame.id, frame.kind), (*id, Kind::Request), "pieces of {piece}");
                assert!(frame.payload == payload[..], "payload {id}, pieces of {piece}");
            }
            assert!(reader.next().await.unwrap().is_none());
        }
    }

    #[tokio::test]
    async fn what_is_no_frame_is_an_error() {
        let long = [0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1];
        let short = [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1, 1];
        let kind = [0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 1, 99];
        let cut = [0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 1, 1];
        for bytes in [long, short, kind, cut] {
            let error = FrameReader::new(&bytes[..], 100, LONG).next().await;
            assert!(error.is_err(), "{bytes:?} read as {error:?}");
        }
    }
}
