//! What the benchmarks share: events that anyone can make again, interleaved runs, one line per figure.

pub mod event;
pub mod memory;
pub mod race;
pub mod report;
pub mod threads;
pub mod windows;
pub mod zipf;

/// How thoroughly to measure.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How often everything is run.
    pub runs: usize,
    /// A hundredth of the events, to see only that everything works.
    pub quick: bool,
    /// Also what takes long, and is left out when everything is run.
    pub full: bool,
    /// Only races with so many keys.
    pub keys: Option<u64>,
    /// Only loads of so many events per second.
    pub rate: Option<u64>,
}

impl Plan {
    /// For what takes long: no more than three runs, unless it was asked for by name.
    pub fn brief(self) -> Self {
        Plan { runs: if self.full { self.runs } else { self.runs.min(3) }, ..self }
    }

    /// A number of events, or of events per millisecond: the same windows in any case, but with fewer events each.
    pub fn scaled(self, number: u64) -> u64 {
        if self.quick { number.div_ceil(100) } else { number }
    }
}
