//! Time as the log tells it.

use serde::{Deserialize, Serialize};

/// Milliseconds since the Unix epoch.
#[derive(
    Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize,
)]
pub struct Time(pub u64);

/// A length of time in milliseconds.
#[derive(
    Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize,
)]
pub struct Span(pub u64);

/// How far one clock may carry the log's time ahead. More than that needs a majority's readings.
pub const MAX_JUMP: Span = Span(60_000);

impl Time {
    #[must_use]
    pub fn plus(self, span: Span) -> Self {
        Self(self.0.saturating_add(span.0))
    }
}

impl Span {
    pub const fn from_hours(hours: u64) -> Self {
        Self(hours * 3_600_000)
    }
}
