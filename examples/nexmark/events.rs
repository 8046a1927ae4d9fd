//! The events of Nexmark as a source: event `i` is what the crate `nexmark` generates as its `i`th.
//!
//! The generator makes every event from its number alone, seeding a random number generator with it, so the source can be
//! replayed from any event and divided at will.
//!
//! **Shape**: `p` splits, of which split `k` yields the events `k`, `k + p`, `k + 2p` and so on, so that all splits move
//! through event time at the same pace. **Units**: the position is the number of the split's next event. **Time**: an
//! event's `date_time`, in whole milliseconds; within a split it never goes back, unless a configuration asks for that.

use millstream::error::{Error, Result};
use millstream::prelude::*;
use millstream::source::{Output, Read, Source, SplitReader, Waker};
use nexmark::EventGenerator;
use nexmark::config::NexmarkConfig;
use nexmark::event::Event;

/// How far events may be out of order: as far as the table of the original benchmark allows for. The default generator
/// keeps them in order, so this makes no result different; but windows stay open for as long as elsewhere, with as much
/// state, and a configuration that shuffles events (`out_of_order_group_size`) loses none up to 40,000.
pub const OUT_OF_ORDERNESS: EventSpan = EventSpan::secs(4);

/// The generator's default settings, but with time from 2015-07-15T00:00:00Z on instead of from now, so that runs repeat.
pub fn config() -> NexmarkConfig {
    NexmarkConfig { base_time: 1_436_918_400_000, ..NexmarkConfig::default() }
}

/// The event time of an event.
pub fn time(event: &Event) -> EventTime {
    EventTime::from_millis(event.timestamp() as i64)
}

/// The first events of a generator.
#[derive(Debug)]
pub struct Events {
    config: NexmarkConfig,
    count: u64,
    splits: u64,
}

impl Events {
    /// The first `count` events, in one split.
    pub fn new(config: NexmarkConfig, count: u64) -> Self {
        Events { config, count, splits: 1 }
    }

    /// Divides the events among `splits` splits (at least 1).
    #[must_use]
    pub fn splits(self, splits: u64) -> Self {
        Events { splits: splits.max(1), ..self }
    }
}

impl Source for Events {
    type Item = Event;
    type Position = u64;
    type Reader = EventsReader;

    fn kind(&self) -> &'static str {
        "nexmark"
    }

    fn splits(&self) -> Result<Vec<String>> {
        Ok((0..self.splits).map(|k| format!("events {k} of {}", self.splits)).collect())
    }

    fn open(&self, split: &str, from: Option<u64>, _waker: Waker) -> Result<EventsReader> {
        let k = Source::splits(self)?.iter().position(|name| name == split);
        let k = k.ok_or_else(|| Error::internal(format!("there is no split `{split}`")))? as u64;
        let next = from.unwrap_or(k);
        if next % self.splits != k {
            return Err(Error::state(format!("event {next} is not in split `{split}`")).hint("start fresh"));
        }
        let generator = EventGenerator::new(self.config.clone()).with_offset(next).with_step(self.splits);
        Ok(EventsReader { generator, step: self.splits, end: self.count })
    }
}

/// Reads one split of [`Events`].
#[derive(Debug)]
pub struct EventsReader {
    generator: EventGenerator,
    step: u64,
    end: u64,
}

impl SplitReader for EventsReader {
    type Item = Event;
    type Position = u64;

    fn read(&mut self, max: usize, out: &mut impl Output<Event>) -> Result<Read> {
        let left = self.end.saturating_sub(self.generator.offset()).div_ceil(self.step);
        let now = left.min(max as u64);
        out.records(self.generator.by_ref().take(now as usize));
        Ok(if now == left { Read::Ended } else { Read::More })
    }

    fn position(&self) -> u64 {
        self.generator.offset()
    }
}
