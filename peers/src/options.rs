//! Limits and times. The defaults suit members a few milliseconds apart.

use std::time::Duration;

use crate::error::SetupError;

#[derive(Clone, Debug)]
pub struct Options {
    /// The largest request, answer or chunk. The smaller of both sides' limits holds.
    pub frame_bytes_max: usize,
    /// Calls at a time on one connection. Further ones wait for their turn or their deadline.
    pub calls_max: usize,
    pub connect_timeout: Duration,
    /// From the TCP connection to the peer's welcome; two signatures in slots lie in it.
    pub handshake_timeout: Duration,
    /// How often a quiet connection shows that it lives.
    pub ping_interval: Duration,
    /// A connection that is silent for so long is given up, its calls with it.
    pub silence_max: Duration,
    /// The same for the receiver of an upload, whose sender may wait for its disk.
    pub upload_silence_max: Duration,
    /// How long a stop waits for calls that run.
    pub drain_timeout: Duration,
    /// After a failed attempt to connect, calls fail at once for so long.
    pub backoff: Duration,
    /// Inbound handshakes at a time: each costs a signature in the slot.
    pub handshakes_max: usize,
    /// Connections of strangers at a time.
    pub strangers_max: usize,
}

/// How long an upload may stand still.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// For each chunk: to be had from the source and taken by the receiver.
    pub chunk: Duration,
    /// From the last chunk to the answer.
    pub answer: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            frame_bytes_max: 16 << 20,
            calls_max: 256,
            connect_timeout: Duration::from_secs(1),
            handshake_timeout: Duration::from_secs(3),
            ping_interval: Duration::from_secs(1),
            silence_max: Duration::from_secs(4),
            upload_silence_max: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(2),
            backoff: Duration::from_millis(20),
            handshakes_max: 128,
            strangers_max: 16,
        }
    }
}

impl Options {
    pub(crate) fn check(&self) -> Result<(), SetupError> {
        // Frames carry their length in 32 bits, with nine bytes of their own in it.
        if !(64..=1 << 30).contains(&self.frame_bytes_max) {
            return Err(SetupError::Options("frame_bytes_max must be 64 bytes to 1 GiB"));
        }
        if !(1..=1 << 20).contains(&self.calls_max) {
            return Err(SetupError::Options("calls_max must be 1 to 1,048,576"));
        }
        if self.handshakes_max == 0 || self.ping_interval.is_zero() {
            return Err(SetupError::Options("handshakes_max and ping_interval must not be zero"));
        }
        if self.silence_max <= self.ping_interval {
            return Err(SetupError::Options("silence_max must be longer than ping_interval"));
        }
        Ok(())
    }
}
