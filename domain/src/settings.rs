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

/// The first format that counts wraps and knows a [`KekPolicy`].
pub const KEK_POLICY_FORMAT: u16 = 3;

/// When the KEK is replaced without being asked to, and how fast blobs are moved to a new one.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct KekPolicy {
    /// How old the active epoch may become; nothing says that it may become as old as it likes.
    pub rotation_period: Span,
    /// How many blobs may be wrapped under one epoch. Their IVs are random: 2^32 is the limit of
    /// SP 800-38D, and the default leaves room below it.
    pub wraps_max: u64,
    /// Blobs re-wrapped in a second; 0 is as many as the slot can.
    pub rewrap_rate: u32,
}

impl KekPolicy {
    pub const WRAPS_MAX: u64 = 1 << 30;
}

impl Default for KekPolicy {
    fn default() -> Self {
        Self {
            rotation_period: Span::from_hours(24 * 90),
            wraps_max: Self::WRAPS_MAX,
            rewrap_rate: 1_000,
        }
    }
}

/// Only what is to change (RFC 7396).
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct KekPolicyPatch {
    pub rotation_period: Option<Span>,
    pub wraps_max: Option<u64>,
    pub rewrap_rate: Option<u32>,
}
