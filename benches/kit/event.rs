//! The generated stream, as defined in `benches/README.md`: anyone can make the same events again.

use std::hint::black_box;
use std::sync::Arc;

use millstream::prelude::EventTime;
use serde::{Deserialize, Serialize};

use super::zipf::Zipf;

/// How far events are out of order at most, in milliseconds: the bound of every watermark here.
pub const JITTER_MS: u64 = 50;

/// One event: 24 bytes.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Event {
    pub key: u64,
    pub value: i64,
    pub at: EventTime,
}

/// How keys are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    Uniform(u64),
    Zipf(u64),
}

impl Keys {
    pub fn count(self) -> u64 {
        match self {
            Keys::Uniform(count) | Keys::Zipf(count) => count,
        }
    }

    pub fn distribution(self) -> &'static str {
        match self {
            Keys::Uniform(_) => "uniform",
            Keys::Zipf(_) => "zipf",
        }
    }
}

/// A stream of events, in which each is a function of its number.
#[derive(Clone, Debug)]
pub struct Stream {
    seed: u64,
    keys: u64,
    zipf: Option<Arc<Zipf>>,
    rate_per_ms: u64,
    jitter_ms: u64,
}

impl Stream {
    /// With `rate_per_ms` events in each millisecond of event time.
    pub fn new(keys: Keys, rate_per_ms: u64) -> Self {
        let zipf = matches!(keys, Keys::Zipf(_)).then(|| Arc::new(Zipf::new(keys.count())));
        // The compiler must not know the numbers in one contestant's code and not in another's.
        Stream {
            seed: 42,
            keys: black_box(keys.count()),
            zipf,
            rate_per_ms: black_box(rate_per_ms),
            jitter_ms: black_box(JITTER_MS),
        }
    }

    #[inline(always)] // for everybody: not a call in one contestant's loop that another's has not
    pub fn event(&self, i: u64) -> Event {
        let s = self.seed ^ i;
        let at_ms = 600_000 + i / self.rate_per_ms - mix(s ^ 0xC3C3_3C3C_C3C3_3C3C) % self.jitter_ms;
        Event {
            key: match &self.zipf {
                None => mix(s) % self.keys,
                Some(zipf) => zipf.key(mix(s)),
            },
            value: (mix(s ^ 0xA5A5_A5A5_5A5A_5A5A) % 1000) as i64,
            at: EventTime::from_millis(at_ms as i64),
        }
    }
}

/// The events of one split of several, for those who read them by hand.
#[derive(Debug)]
pub struct Split<'a> {
    stream: &'a Stream,
    next: u64,
    end: u64,
    step: u64,
}

impl<'a> Split<'a> {
    /// Split `p` of `splits` of the first `events` events.
    pub fn new(stream: &'a Stream, events: u64, p: usize, splits: usize) -> Self {
        Split { stream, next: p as u64, end: events, step: splits as u64 }
    }

    /// The next event.
    #[inline]
    pub fn event(&mut self) -> Option<Event> {
        (self.next < self.end).then(|| {
            self.next += self.step;
            self.stream.event(self.next - self.step)
        })
    }

    /// Adds the next `max` events to the batch, or what is left.
    #[inline]
    pub fn batch(&mut self, max: u64, batch: &mut Vec<Event>) {
        let count = self.end.saturating_sub(self.next).div_ceil(self.step).min(max);
        let (next, step) = (self.next, self.step);
        batch.extend((0..count).map(|i| self.stream.event(next + i * step)));
        self.next += count * step;
    }
}

/// Splitmix64 (Steele, Lea, Flood 2014).
#[inline]
pub fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Makes one number of the parts of a result. Results are summed, so their order does not matter.
#[inline]
pub fn digest(parts: [u64; 5]) -> u64 {
    parts.into_iter().fold(0, |hash, part| mix(hash ^ part))
}
