//! The few settings of a cluster that are state, not configuration.

use serde::{Deserialize, Serialize};

use crate::Span;

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Settings {
    /// The shortest wait before a scheduled destruction, and the default one.
    pub min_destruction_after: Span,
    /// How long an `Idempotency-Key` is remembered.
    pub idempotency_window: Span,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            min_destruction_after: Span::from_hours(24),
            idempotency_window: Span::from_hours(24),
        }
    }
}

/// Only what is to change (RFC 7396).
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct SettingsPatch {
    pub min_destruction_after: Option<Span>,
    pub idempotency_window: Option<Span>,
}
