//! Event time: instants and spans on the records' own clock.
//!
//! **Units**: microseconds. **Time**: event time only; nothing here reads a clock. Instants count from 1970-01-01T00:00:00Z
//! and may be negative. All arithmetic saturates at [`EventTime::MIN`] and [`EventTime::MAX`], so extreme input cannot
//! wrap around into another window.

use std::fmt;
use std::ops::{Add, Sub};
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

/// When something happened, by the record's own account: microseconds since 1970-01-01T00:00:00Z.
///
/// Displays and parses as RFC 3339 (`2013-01-01T09:20:00Z`); instants outside the years -9999 to 9999 display as
/// a number with the suffix `us`. Serialises as the bare number; see [`iso8601`] for text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct EventTime(i64);

impl EventTime {
    /// Before everything: the watermark of a stream that has promised nothing yet.
    pub const MIN: EventTime = EventTime(i64::MIN);
    /// After everything: the watermark of a stream that has ended.
    pub const MAX: EventTime = EventTime(i64::MAX);
    /// 1970-01-01T00:00:00Z.
    pub const EPOCH: EventTime = EventTime(0);

    /// The instant `us` microseconds after 1970.
    pub const fn from_micros(us: i64) -> Self {
        EventTime(us)
    }

    /// The instant `ms` milliseconds after 1970, saturating.
    pub const fn from_millis(ms: i64) -> Self {
        EventTime(ms.saturating_mul(1_000))
    }

    /// The instant `s` seconds after 1970, saturating.
    pub const fn from_secs(s: i64) -> Self {
        EventTime(s.saturating_mul(1_000_000))
    }

    /// Microseconds since 1970.
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// How long after `earlier` it is; no time, if it is not.
    pub const fn since(self, earlier: EventTime) -> EventSpan {
        let us = self.0.saturating_sub(earlier.0);
        EventSpan(if us < 0 { 0 } else { us })
    }
}

impl Add<EventSpan> for EventTime {
    type Output = EventTime;
    fn add(self, span: EventSpan) -> EventTime {
        // A span is never negative, so there is one way to overflow; to know that is faster than to saturate.
        EventTime(self.0.checked_add(span.0).unwrap_or(i64::MAX))
    }
}

impl Sub<EventSpan> for EventTime {
    type Output = EventTime;
    fn sub(self, span: EventSpan) -> EventTime {
        EventTime(self.0.checked_sub(span.0).unwrap_or(i64::MIN))
    }
}

impl fmt::Display for EventTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_microsecond(self.0) {
            Ok(timestamp) => timestamp.fmt(f),
            Err(_) => write!(f, "{}us", self.0),
        }
    }
}

impl fmt::Debug for EventTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for EventTime {
    type Err = ParseTimeError;

    fn from_str(text: &str) -> Result<Self, ParseTimeError> {
        if let Some(us) = text.strip_suffix("us").and_then(|n| n.parse().ok()) {
            return Ok(EventTime(us));
        }
        text.parse::<jiff::Timestamp>()
            .map(|timestamp| EventTime(timestamp.as_microsecond()))
            .map_err(|_| ParseTimeError(format!("`{text}` is not a time like 2013-01-01T09:20:00Z")))
    }
}

/// A length of event time in microseconds, never negative.
///
/// Displays and parses as `1h`, `90s`, `200ms`, `1h30m`; units are `d`, `h`, `m`, `s`, `ms`, `us`. Whatever takes a span *before* something takes
/// a positive one: Flink's `between(-5 minutes, +5 minutes)` is `EventSpan::mins(5)` twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Default)]
#[serde(transparent)]
pub struct EventSpan(i64);

impl<'de> Deserialize<'de> for EventSpan {
    /// A negative number, which no span writes, is refused: sums with instants rely on it.
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let us = i64::deserialize(from)?;
        if us < 0 {
            return Err(D::Error::custom(format_args!("a span of {us} us: no span is negative")));
        }
        Ok(EventSpan(us))
    }
}

/// The units of an [`EventSpan`] from large to small, in microseconds.
const UNITS: [(&str, i64); 6] =
    [("d", 86_400_000_000), ("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000), ("ms", 1_000), ("us", 1)];

impl EventSpan {
    /// No time at all.
    pub const ZERO: EventSpan = EventSpan(0);

    /// `us` microseconds.
    ///
    /// # Panics
    /// When it is negative.
    #[track_caller]
    pub const fn micros(us: i64) -> Self {
        assert!(us >= 0, "no span of event time is negative");
        EventSpan(us)
    }

    /// `ms` milliseconds, saturating.
    ///
    /// # Panics
    /// When it is negative.
    #[track_caller]
    pub const fn millis(ms: i64) -> Self {
        Self::micros(ms.saturating_mul(1_000))
    }

    /// `s` seconds, saturating.
    ///
    /// # Panics
    /// When it is negative.
    #[track_caller]
    pub const fn secs(s: i64) -> Self {
        Self::micros(s.saturating_mul(1_000_000))
    }

    /// `m` minutes, saturating.
    ///
    /// # Panics
    /// When it is negative.
    #[track_caller]
    pub const fn mins(m: i64) -> Self {
        Self::micros(m.saturating_mul(60_000_000))
    }

    /// `h` hours, saturating.
    ///
    /// # Panics
    /// When it is negative.
    #[track_caller]
    pub const fn hours(h: i64) -> Self {
        Self::micros(h.saturating_mul(3_600_000_000))
    }

    /// `d` days of 24 hours, saturating.
    ///
    /// # Panics
    /// When it is negative.
    #[track_caller]
    pub const fn days(d: i64) -> Self {
        Self::micros(d.saturating_mul(86_400_000_000))
    }

    /// The length in microseconds.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// The whole seconds in it.
    pub const fn as_secs(self) -> i64 {
        self.0 / 1_000_000
    }
}

impl Add for EventSpan {
    type Output = EventSpan;
    /// Saturates.
    fn add(self, other: EventSpan) -> EventSpan {
        EventSpan(self.0.saturating_add(other.0))
    }
}

impl fmt::Display for EventSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("0s");
        }
        let mut rest = self.0;
        for (unit, us) in UNITS {
            if rest >= us {
                write!(f, "{}{unit}", rest / us)?;
                rest %= us;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for EventSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for EventSpan {
    type Err = ParseTimeError;

    fn from_str(text: &str) -> Result<Self, ParseTimeError> {
        let wrong = || ParseTimeError(format!("`{text}` is not a span like 1h, 90s, 200ms or 1h30m"));
        let mut total: i64 = 0;
        let mut rest = text.trim();
        if rest.is_empty() {
            return Err(wrong());
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
            let number: i64 = rest[..digits].parse().map_err(|_| wrong())?;
            rest = &rest[digits..];
            let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
            let (_, us) = UNITS.iter().find(|(unit, _)| *unit == &rest[..letters]).ok_or_else(wrong)?;
            rest = &rest[letters..];
            total = number.checked_mul(*us).and_then(|us| total.checked_add(us)).ok_or_else(wrong)?;
        }
        Ok(EventSpan(total))
    }
}

/// A text that is not a time or a span; the message quotes it and shows the right form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseTimeError(String);

impl fmt::Display for ParseTimeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ParseTimeError {}

/// Reads and writes an [`EventTime`] field as text: `#[serde(with = "millstream::time::iso8601")]`.
pub mod iso8601 {
    use super::EventTime;
    use serde::de::{Deserializer, Error, Visitor};
    use serde::ser::Serializer;

    /// Writes `2013-01-01T09:20:00Z`.
    pub fn serialize<S: Serializer>(at: &EventTime, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(at)
    }

    /// Reads `2013-01-01T09:20:00Z`, with any offset.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<EventTime, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = EventTime;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a time like 2013-01-01T09:20:00Z")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<EventTime, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_print_and_parse_as_rfc_3339() {
        let at: EventTime = "2013-01-01T09:20:00Z".parse().expect("parses");
        assert_eq!(at.micros(), 1_357_032_000_000_000);
        assert_eq!(at.to_string(), "2013-01-01T09:20:00Z");
        assert_eq!("2013-01-01T10:20:00+01:00".parse(), Ok(at));
        assert_eq!(EventTime::MAX.to_string().parse(), Ok(EventTime::MAX));
        assert!("yesterday".parse::<EventTime>().is_err());
    }

    #[test]
    fn spans_print_and_parse_with_units() {
        for (text, span) in [
            ("1h", EventSpan::hours(1)),
            ("1h30m", EventSpan::mins(90)),
            ("200ms", EventSpan::millis(200)),
            ("2d", EventSpan::days(2)),
            ("0s", EventSpan::ZERO),
        ] {
            assert_eq!(text.parse(), Ok(span));
            assert_eq!(span.to_string(), text);
        }
        for wrong in ["", "1", "h", "1 h", "-1h", "99999999999d", "1x"] {
            assert!(wrong.parse::<EventSpan>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn arithmetic_saturates() {
        assert_eq!(EventTime::MAX + EventSpan::hours(1), EventTime::MAX);
        assert_eq!(EventTime::MIN - EventSpan::hours(1), EventTime::MIN);
        assert_eq!(EventTime::MAX - EventSpan::micros(i64::MAX), EventTime::EPOCH);
        assert_eq!(EventTime::from_micros(-1) - EventSpan::micros(i64::MAX), EventTime::MIN);
        assert_eq!(EventTime::from_micros(-2) - EventSpan::micros(i64::MAX), EventTime::MIN);
    }

    #[test]
    fn a_span_that_was_written_is_read_and_none_is_negative() {
        let read = |text: &str| serde_json::from_str::<EventSpan>(text).expect("reads");
        assert_eq!(read(&serde_json::to_string(&EventSpan::hours(1)).expect("writes")), EventSpan::hours(1));
        assert!(serde_json::from_str::<EventSpan>("-1").is_err());
        let (early, late) = (EventTime::from_secs(1), EventTime::from_secs(3));
        assert_eq!((late.since(early), early.since(late)), (EventSpan::secs(2), EventSpan::ZERO));
    }

    #[test]
    #[should_panic(expected = "no span of event time is negative")]
    fn five_minutes_before_are_not_minus_five_minutes() {
        let _ = EventSpan::mins(-5);
    }
}
