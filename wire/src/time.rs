//! Points in time and lengths of time, exact to the millisecond.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::de::{Deserialize, Deserializer, Error};
use serde::{Serialize, Serializer};

/// Milliseconds since 1970-01-01T00:00:00Z; RFC 3339 in UTC with milliseconds in JSON.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
pub struct Time(pub u64);

/// A length of time in milliseconds; `"24h"`, `"90d"` in JSON.
///
/// Units are `ms`, `s`, `m`, `h`, `d` and `w`, and may be chained (`"1h30m"`). It prints in the
/// largest unit that is exact, days only from two on, so that `"24h"` and `"90d"` print as written.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(value_type = String))]
pub struct Span(pub u64);

/// Why a text is no time.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not an RFC 3339 time in UTC such as \"2030-01-31T12:00:00Z\"")]
pub struct TimeError;

/// Why a text is no length of time.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a duration such as \"30s\", \"24h\" or \"90d\"")]
pub struct SpanError;

const UNITS: [(&str, u64); 6] =
    [("w", 7 * DAY), ("d", DAY), ("h", HOUR), ("ms", 1), ("m", MINUTE), ("s", SECOND)];
const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

impl Time {
    /// The last millisecond of the year 9999, beyond which RFC 3339 has no form.
    pub const MAX: Self = Self(253_402_300_799_999);

    pub fn now() -> Self {
        SystemTime::now().into()
    }
}

impl From<SystemTime> for Time {
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}

impl fmt::Display for Time {
    /// A time beyond [`Time::MAX`] prints as that, rather than failing in the middle of an answer.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = UNIX_EPOCH + Duration::from_millis(self.0.min(Self::MAX.0));
        humantime::format_rfc3339_millis(time).fmt(f)
    }
}

impl FromStr for Time {
    type Err = TimeError;

    fn from_str(text: &str) -> Result<Self, TimeError> {
        let time = humantime::parse_rfc3339(text).map_err(|_| TimeError)?;
        let since = time.duration_since(UNIX_EPOCH).map_err(|_| TimeError)?;
        u64::try_from(since.as_millis()).map(Self).map_err(|_| TimeError)
    }
}

impl Span {
    pub const fn from_hours(hours: u64) -> Self {
        Self(hours * HOUR)
    }

    pub const fn from_days(days: u64) -> Self {
        Self(days * DAY)
    }

    pub const fn from_millis(milliseconds: u64) -> Self {
        Self(milliseconds)
    }

    pub const fn as_millis(self) -> u64 {
        self.0
    }
}

impl From<Span> for Duration {
    fn from(span: Span) -> Self {
        Self::from_millis(span.0)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = |unit: u64| self.0 > 0 && self.0.is_multiple_of(unit);
        match self.0 {
            0 => f.write_str("0s"),
            ms if exact(DAY) && ms >= 2 * DAY => write!(f, "{}d", ms / DAY),
            ms if exact(HOUR) => write!(f, "{}h", ms / HOUR),
            ms if exact(MINUTE) => write!(f, "{}m", ms / MINUTE),
            ms if exact(SECOND) => write!(f, "{}s", ms / SECOND),
            ms => write!(f, "{ms}ms"),
        }
    }
}

impl FromStr for Span {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Self, SpanError> {
        if text.is_empty() {
            return Err(SpanError);
        }
        let (mut rest, mut total) = (text, 0_u64);
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or(SpanError)?;
            let number: u64 = rest[..digits].parse().map_err(|_| SpanError)?;
            rest = &rest[digits..];
            let letters = rest.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(rest.len());
            let (_, unit) =
                UNITS.iter().find(|(name, _)| *name == &rest[..letters]).ok_or(SpanError)?;
            rest = &rest[letters..];
            let part = number.checked_mul(*unit).ok_or(SpanError)?;
            total = total.checked_add(part).ok_or(SpanError)?;
        }
        Ok(Self(total))
    }
}

macro_rules! as_text {
    ($($name:ident)*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(D::Error::custom)
            }
        }
    )*};
}
as_text! { Span Time }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_parse_and_print_canonically() {
        let table = [
            ("24h", 86_400_000, "24h"),
            ("1d", 86_400_000, "24h"),
            ("90d", 90 * 86_400_000, "90d"),
            ("2w", 14 * 86_400_000, "14d"),
            ("1h30m", 5_400_000, "90m"),
            ("1500ms", 1_500, "1500ms"),
            ("60s", 60_000, "1m"),
            ("0s", 0, "0s"),
        ];
        for (text, ms, canonical) in table {
            let span: Span = text.parse().unwrap();
            assert_eq!(span, Span(ms), "{text}");
            assert_eq!(span.to_string(), canonical);
            assert_eq!(canonical.parse::<Span>().unwrap(), span);
        }
        for wrong in ["", "h", "24", "24 h", "-1h", "1y", "1H", "99999999999999999999d", "1.5h"] {
            assert_eq!(wrong.parse::<Span>(), Err(SpanError), "{wrong}");
        }
    }

    #[test]
    fn times_round_trip_with_milliseconds() {
        let time: Time = serde_json::from_str("\"2026-07-01T02:03:04.567Z\"").unwrap();
        assert_eq!(serde_json::to_string(&time).unwrap(), "\"2026-07-01T02:03:04.567Z\"");
        assert_eq!(Time(u64::MAX).to_string(), "9999-12-31T23:59:59.999Z");
        assert_eq!(Time(0).to_string().parse(), Ok(Time(0)));
        for wrong in ["2026-07-01", "2026-07-01T02:03:04+02:00", "now", ""] {
            assert_eq!(wrong.parse::<Time>(), Err(TimeError), "{wrong}");
        }
    }
}
