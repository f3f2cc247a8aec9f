//! The snapshot lane: one upload a connection, as fast as the receiver reads and no faster.
//!
//! An upload is whole only with its end mark; a sender that vanishes leaves none, so the receiver
//! can not take a torso for the whole.

use std::fmt;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::connection::outcome;
use crate::dial::{self, Dialed};
use crate::error::{CallError, Lost, NotSent, UploadCut};
use crate::frame::{Kind, invalid};
use crate::serve::{Guest, Reader, Writer, attempt};
use crate::{Caller, Pace, Service};

/// How long either side reads on after it failed to write, or has answered early: closing at once
/// would destroy what is still on its way.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Sends header, chunks and end, while listening: the receiver may refuse at any time.
pub(crate) async fn send(
    dialed: Dialed,
    header: Bytes,
    body: impl Stream<Item = io::Result<Bytes>> + Send,
    pace: Pace,
) -> Result<Bytes, CallError> {
    let Dialed { mut reader, mut writer, frame_bytes_max, .. } = dialed;
    if header.len() > frame_bytes_max {
        return Err(NotSent::TooLarge { bytes: header.len(), max: frame_bytes_max }.into());
    }
    reader.silence_max = pace.answer.max(pace.chunk);
    let mut answer = pin!(answer(&mut reader));
    let sent = tokio::select! {
        biased;
        answer = &mut answer => return answer,
        sent = write(&mut writer, header, body, frame_bytes_max, pace.chunk) => sent,
    };
    match sent {
        Ok(()) => timeout(pace.answer, answer).await.unwrap_or_else(|_| Err(Lost::Deadline.into())),
        Err(lost @ Lost::Connection(_)) => {
            timeout(LAST_WORDS, answer).await.unwrap_or_else(|_| Err(lost.into()))
        }
        Err(lost) => Err(lost.into()),
    }
}

async fn write(
    writer: &mut dial::Writer,
    header: Bytes,
    body: impl Stream<Item = io::Result<Bytes>> + Send,
    frame_bytes_max: usize,
    patience: Duration,
) -> Result<(), Lost> {
    let mut body = pin!(body);
    put(writer, Kind::Header, &header, patience).await?;
    loop {
        let chunk = timeout(patience, body.next()).await.map_err(|_| Lost::Deadline)?;
        let Some(chunk) = chunk else { break };
        let chunk = chunk.map_err(|error| Lost::Source(error.to_string()))?;
        for piece in chunk.chunks(frame_bytes_max) {
            put(writer, Kind::Chunk, piece, patience).await?;
        }
    }
    put(writer, Kind::End, &[], patience).await
}

async fn put(
    writer: &mut dial::Writer,
    kind: Kind,
    payload: &[u8],
    patience: Duration,
) -> Result<(), Lost> {
    let put = async {
        writer.put(0, kind, payload).await?;
        writer.flush().await
    };
    let put = timeout(patience, put).await.map_err(|_| Lost::Deadline)?;
    put.map_err(|error| Lost::Connection(error.to_string()))
}

async fn answer(reader: &mut dial::Reader) -> Result<Bytes, CallError> {
    let frame = match reader.next().await {
        Ok(Some(frame)) => outcome(frame.kind, frame.payload),
        Ok(None) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the peer closed it")),
        Err(error) => Err(error),
    };
    frame.unwrap_or_else(|error| Err(Lost::Connection(error.to_string()).into()))
}

/// An upload's chunks as they come.
pub struct Incoming {
    guest: Arc<Guest>,
    reader: Option<Reader>,
    /// Hands the reader back: the connection outlives the service's interest in it.
    back: Option<oneshot::Sender<Reader>>,
    ended: bool,
}

impl Incoming {
    /// The next chunk, or `None` when the sender has sent all of it. After an error
    /// there is no more.
    pub async fn next(&mut self) -> Result<Option<Bytes>, UploadCut> {
        if self.ended {
            return Ok(None);
        }
        let Some(reader) = &mut self.reader else {
            return Err(UploadCut::Vanished("the upload broke off before".into()));
        };
        let next = tokio::select! {
            biased;
            () = self.guest.cut.cancelled() => Err(UploadCut::Removed),
            () = self.guest.stop.cancelled() => Err(UploadCut::Stopping),
            frame = reader.next() => match frame {
                _ if !matches!(self.guest.caller(), Some(Caller::Member(_))) => {
                    Err(UploadCut::Removed)
                }
                Ok(Some(frame)) if frame.kind == Kind::Chunk => Ok(Some(frame.payload)),
                Ok(Some(frame)) if frame.kind == Kind::End => Ok(None),
                Ok(Some(frame)) => {
                    Err(UploadCut::Vanished(format!("it sent a {:?}", frame.kind)))
                }
                Ok(None) => Err(UploadCut::Vanished("it closed before the end".into())),
                Err(error) => Err(UploadCut::Vanished(error.to_string())),
            },
        };
        match &next {
            Ok(Some(_)) => {}
            Ok(None) => self.ended = true,
            Err(_) => self.reader = None,
        }
        next
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming").field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let (Some(reader), Some(back)) = (self.reader.take(), self.back.take()) {
            // Nobody waits for it when the connection is gone.
            let _ = back.send(reader);
        }
    }
}

/// Takes one upload and answers it.
pub(crate) async fn receive(
    service: &Arc<dyn Service>,
    guest: Arc<Guest>,
    mut reader: Reader,
    mut writer: Writer,
) -> io::Result<()> {
    let first = tokio::select! {
        first = reader.next() => first?,
        () = guest.cut.cancelled() => None,
        () = guest.stop.cancelled() => None,
    };
    let Some(first) = first else { return Ok(()) };
    let Some(Caller::Member(node)) = guest.caller() else { return Ok(()) };
    if first.kind != Kind::Header {
        return Err(invalid(&format!("a {:?} in place of the header", first.kind)));
    }
    let (back, rest) = oneshot::channel();
    let body = Incoming {
        guest: Arc::clone(&guest),
        reader: Some(reader),
        back: Some(back),
        ended: false,
    };
    let (kind, payload) = attempt(async { service.receive(node, first.payload, body).await }).await;
    if guest.cut.is_cancelled() || guest.caller().is_none() {
        return Ok(());
    }
    writer.put(0, kind, &payload).await?;
    writer.finish().await?;
    if let Ok(mut reader) = rest.await {
        let last_words = async { while let Ok(Some(_)) = reader.next().await {} };
        let _ = timeout(LAST_WORDS, last_words).await;
    }
    Ok(())
}
