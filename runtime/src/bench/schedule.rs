//! When events are due: a schedule as arithmetic in both directions.
//!
//! A schedule answers two questions that are exact inverses of each other: when event `n` is due, and how many events are due
//! by an instant. So a source can read what is due, and a sink can tell from an event's number when it was due, and both
//! always agree. Event 0 is due at once (where the rate begins with 0: as soon as it is more), event `n` when as much load
//! as `n` events has passed.
//!
//! All arithmetic is in whole numbers: time in nanoseconds, load in a unit of which every piece's rate is a whole number per
//! nanosecond. So nothing drifts, however long the run is. A schedule is a list of pieces of constant rate, which may
//! repeat; a sine is 1,024 pieces, each with the mean rate of the sine over its stretch.
//!
//! **Units**: nanoseconds from the start; events counted from 0 over all splits of a source.
//! **Time**: the wall clock; nothing here reads it.

use std::time::Duration;

use super::rate::Rate;

/// The instant of an event that is never due.
pub const NEVER: u64 = u64::MAX;

/// Millionths of an event per second, times nanoseconds: so many make one event.
const UNITS_PER_EVENT: u64 = 1_000_000_000_000_000;

/// Into how many pieces of constant rate one wave of a sine is cut: even, so that the halves are mirror images.
const WAVE_PIECES: u64 = 1_024;

/// When events are due. Made from a [`Load`](super::Load).
///
/// ```
/// use millstream_runtime::bench::Load;
///
/// let load: Load = "steps:10k@5s,20k".parse()?;
/// let schedule = load.schedule().expect("only a recorded load has none");
/// assert_eq!(schedule.due_ns(50_000), 5_000_000_000);
/// assert_eq!(schedule.due_ns(50_001), 5_000_050_000);
/// assert_eq!(schedule.due_by(5_000_049_999), 50_001);
/// # Ok::<(), millstream_runtime::bench::load::ParseLoadError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Schedule {
    /// How many units make one event.
    event: u64,
    /// In order; the first begins at 0, the last one stays or ends with the round.
    pieces: Box<[Piece]>,
    /// After how many nanoseconds and units the pieces begin again.
    round: Option<(u64, u128)>,
}

#[derive(Clone, Copy, Debug)]
struct Piece {
    /// When it begins, in nanoseconds.
    from_ns: u64,
    /// The load before it, in units.
    from: u128,
    /// Units per nanosecond.
    rate: u64,
}

impl Schedule {
    /// Evenly.
    pub fn constant(rate: Rate) -> Schedule {
        Schedule::new([(rate.millionths(), NEVER)], false)
    }

    /// One rate after another; the last one stays.
    pub fn steps(steps: &[(Rate, Duration)], last: Rate) -> Schedule {
        let ended = steps.iter().map(|(rate, span)| (rate.millionths(), nanos(*span)));
        Schedule::new(ended.chain([(last.millionths(), NEVER)]), false)
    }

    /// A rate with bursts, each at the end of its period.
    pub fn bursts(base: Rate, burst: Rate, length: Duration, period: Duration) -> Schedule {
        let quiet = nanos(period.saturating_sub(length));
        Schedule::new([(base.millionths(), quiet), (burst.millionths(), nanos(length))], true)
    }

    /// Up and down as a sine, beginning at `mean` and going up. An amplitude above the mean counts as the mean.
    pub fn sine(mean: Rate, amplitude: Rate, period: Duration) -> Schedule {
        let (mean, amplitude) = (mean.millionths(), amplitude.min(mean).millionths());
        let period = u128::from(nanos(period));
        let start = |i: u64| (u128::from(i) * period / u128::from(WAVE_PIECES)) as u64;
        let angle = |i: u64| i as f64 / WAVE_PIECES as f64 * std::f64::consts::TAU;
        let pieces = (0..WAVE_PIECES).map(|i| {
            // The mean of the sine over this stretch. The second half takes back exactly what the first one adds, so that
            // rounding leaves no trace in the mean rate.
            let half = WAVE_PIECES / 2;
            let (from, to) = (angle(i % half), angle(i % half + 1));
            let sine = (from.cos() - to.cos()) / (to - from);
            let swing = (amplitude as f64 * sine).round() as u64;
            let rate = if i < half { mean + swing } else { mean - swing.min(mean) };
            (rate, start(i + 1) - start(i))
        });
        Schedule::new(pieces, true)
    }

    /// From rates in millionths of an event per second and how long each stays, in nanoseconds.
    fn new(pieces: impl IntoIterator<Item = (u64, u64)>, repeat: bool) -> Schedule {
        let given: Vec<(u64, u64)> = pieces.into_iter().filter(|(_, span)| *span > 0).collect();
        // With the largest possible unit, most numbers fit into 64 bits, where division is quick.
        let unit = given.iter().fold(UNITS_PER_EVENT, |unit, (rate, _)| gcd(unit, *rate));
        let (mut from_ns, mut from) = (0_u64, 0_u128);
        let mut pieces = Vec::with_capacity(given.len());
        for (rate, span) in given {
            let rate = rate / unit;
            pieces.push(Piece { from_ns, from, rate });
            from_ns = from_ns.saturating_add(span);
            from += u128::from(rate) * u128::from(span);
        }
        // A round without load would be divided by.
        let round = (repeat && from > 0).then_some((from_ns, from));
        Schedule { event: UNITS_PER_EVENT / unit, pieces: pieces.into(), round }
    }

    /// When event `n` is due, in nanoseconds from the start; [`NEVER`] when it never is. Never decreases with `n`, and is
    /// the first instant at which [`due_by`](Self::due_by) is more than `n`.
    pub fn due_ns(&self, n: u64) -> u64 {
        let target = u128::from(n) * u128::from(self.event);
        let (start_ns, rest) = match self.round {
            Some((ns, units)) => {
                let rounds = div(target, units);
                (rounds.saturating_mul(u128::from(ns)), target - rounds * units)
            }
            None => (0, target),
        };
        // The last piece that begins with no more load: where the rate is 0, the event waits for its end.
        let Some(piece) = self.last_piece(|piece| piece.from <= rest).filter(|piece| piece.rate > 0) else {
            return NEVER;
        };
        let within = div(rest - piece.from + u128::from(piece.rate - 1), u128::from(piece.rate));
        let at = start_ns.saturating_add(u128::from(piece.from_ns)).saturating_add(within);
        u64::try_from(at).unwrap_or(NEVER)
    }

    /// How many events are due by `ns` from the start, those due at that very instant among them. Never decreases.
    pub fn due_by(&self, ns: u64) -> u64 {
        let (before, rest_ns) = match self.round {
            Some((round_ns, units)) => (u128::from(ns / round_ns) * units, ns % round_ns),
            None => (0, ns),
        };
        let Some(piece) = self.last_piece(|piece| piece.from_ns <= rest_ns) else { return 0 };
        let units = before + piece.from + u128::from(rest_ns - piece.from_ns) * u128::from(piece.rate);
        let event = u128::from(self.event);
        // Where load passes, an event at this very instant is due; where none does, it waits until some does.
        let due = if piece.rate > 0 { div(units, event) + 1 } else { div(units + event - 1, event) };
        u64::try_from(due).unwrap_or(u64::MAX)
    }

    fn last_piece(&self, begun: impl Fn(&Piece) -> bool) -> Option<&Piece> {
        match &*self.pieces {
            [only] => Some(only),
            pieces => pieces[..pieces.partition_point(begun)].last(),
        }
    }
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// `a / b`, in 64 bits where both fit.
fn div(a: u128, b: u128) -> u128 {
    match (u64::try_from(a), u64::try_from(b)) {
        (Ok(a), Ok(b)) => u128::from(a / b),
        _ => a / b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: u64 = 1_000_000_000;

    fn rate(events: f64) -> Rate {
        Rate::per_second(events)
    }

    fn load(text: &str) -> Schedule {
        text.parse::<super::super::Load>().unwrap().schedule().unwrap()
    }

    #[test]
    fn event_n_is_due_at_n_divided_by_the_rate() {
        let schedule = Schedule::constant(rate(100_000.0));
        assert_eq!([0, 1, 2, 100_000].map(|n| schedule.due_ns(n)), [0, 10_000, 20_000, S]);
        assert_eq!([0, 9_999, 10_000, S].map(|ns| schedule.due_by(ns)), [1, 1, 2, 100_001]);
        // A third of a second is no whole number of nanoseconds: due at the first one that is not too early.
        assert_eq!([1, 2, 3].map(|n| Schedule::constant(rate(3.0)).due_ns(n)), [333_333_334, 666_666_667, S]);
    }

    #[test]
    fn the_last_step_stays_and_silence_delays() {
        let schedule = load("steps:0@1s,10@1s,0@1s,20");
        // Nothing is due in silence: the first event waits for it to end, and so does the eleventh.
        assert_eq!([0, 1, 9].map(|n| schedule.due_ns(n)), [S, S + S / 10, S + S / 10 * 9]);
        assert_eq!([10, 11, 30].map(|n| schedule.due_ns(n)), [3 * S, 3 * S + S / 20, 4 * S]);
        assert_eq!([0, S - 1, S, 2 * S, 3 * S - 1, 3 * S].map(|ns| schedule.due_by(ns)), [0, 0, 1, 10, 10, 11]);
        let ends = load("steps:10@1s,0");
        assert_eq!((ends.due_ns(9), ends.due_ns(10), ends.due_by(NEVER)), (S / 10 * 9, NEVER, 10));
    }

    #[test]
    fn a_burst_ends_its_period() {
        let schedule = load("bursts:50k,200k@100ms/1s");
        let per_round = 45_000 + 20_000;
        assert_eq!(schedule.due_ns(45_000), S / 10 * 9);
        assert_eq!(schedule.due_ns(per_round), S);
        assert_eq!(schedule.due_by(10 * S) - schedule.due_by(9 * S), per_round);
        assert_eq!(schedule.due_by(S) - schedule.due_by(S / 10 * 9), 20_000);
    }

    #[test]
    fn a_sine_goes_up_first_and_keeps_its_mean() {
        let schedule = load("sine:100k±50k/10s");
        let events = |from: u64, to: u64| (schedule.due_by(to) - schedule.due_by(from)) as f64;
        assert_eq!(events(0, 10 * S), 1_000_000.0);
        // Over half a wave the sine's mean is 2/pi of its amplitude.
        let swing = 5.0 * 50_000.0 * std::f64::consts::FRAC_2_PI;
        assert!((events(0, 5 * S) - 500_000.0 - swing).abs() <= 1.0);
        let near_peak = events(2_450_000_000, 2_550_000_000) * 10.0;
        assert!((near_peak - 150_000.0).abs() < 50.0, "{near_peak}");
        let all_the_way = load("sine:1±1/1ms");
        assert_eq!(all_the_way.due_ns(1_000), 1_000 * S);
    }

    #[test]
    fn nothing_drifts_in_a_year() {
        let year = 365 * 86_400;
        for text in ["100k", "12345.678901", "bursts:50k,200k@100ms/1s", "sine:65k±33.333333k/10s"] {
            let schedule = load(text);
            let per_day = schedule.due_by(86_400 * S) - schedule.due_by(0);
            let in_a_year = schedule.due_by(year * S) - schedule.due_by(0);
            assert!(in_a_year.abs_diff(per_day * 365) <= 365, "{text}: {in_a_year}, {per_day} a day");
            assert_eq!(schedule.due_by(schedule.due_ns(in_a_year)).saturating_sub(in_a_year), 1, "{text}");
        }
        assert_eq!(load("12345.678901").due_by(year * S), 12_345_678_901 * year / 1_000_000 + 1);
    }

    #[test]
    fn the_ends_of_the_range_are_no_surprise() {
        for text in ["1000G", "0.000001", "bursts:0,1000G@1ms/2ms", "sine:1000G±1000G/1h", "steps:1@1s,0"] {
            let schedule = load(text);
            assert!(schedule.due_by(NEVER) >= 1 && schedule.due_ns(0) <= S, "{text}");
            assert!(schedule.due_ns(u64::MAX) >= schedule.due_ns(u64::MAX / 2), "{text}");
        }
    }

    /// A small load with its rates and spans, repeated or not.
    fn small() -> impl Strategy<Value = (Vec<(u64, u64)>, bool)> {
        // Up to nine events per nanosecond, more than a `Rate` can be; spans of some nanoseconds.
        let rate =
            prop_oneof![Just(0), 1..5_000_000_000_000_000_u64, (1..36_u64).prop_map(|n| n * 250_000_000_000_000)];
        (prop::collection::vec((rate, 1..300_u64), 1..6), any::<bool>())
    }

    /// When events are due by the first `ns` nanoseconds, one by one: load is credit, and an event is due when there is
    /// enough of it, but not while none comes in.
    fn brute_force(pieces: &[(u64, u64)], repeat: bool, ns: u64) -> Vec<u64> {
        let one = UNITS_PER_EVENT;
        let round: u64 = pieces.iter().map(|(_, span)| span).sum();
        let (mut credit, mut due) = (one, Vec::new());
        for now in 0..ns {
            let mut at = if repeat { now % round } else { now };
            let piece = pieces.iter().find(|(_, span)| {
                at < *span || {
                    at -= span;
                    false
                }
            });
            let rate = piece.or(pieces.last()).map_or(0, |(rate, _)| *rate);
            while rate > 0 && credit >= one {
                due.push(now);
                credit -= one;
            }
            credit += rate;
            while credit > one {
                due.push(now + 1);
                credit -= one;
            }
        }
        due.retain(|at| *at < ns);
        due
    }

    proptest! {
        #[test]
        fn agrees_with_brute_force((pieces, repeat) in small()) {
            let schedule = Schedule::new(pieces.clone(), repeat);
            // What is beyond the last piece of a load that does not repeat is the last piece.
            let due = brute_force(&pieces, repeat, 2_000);
            for (n, at) in due.iter().enumerate() {
                prop_assert_eq!(schedule.due_ns(n as u64), *at, "event {}", n);
            }
            prop_assert!(schedule.due_ns(due.len() as u64) >= 2_000);
            for ns in 0..2_000 {
                prop_assert_eq!(schedule.due_by(ns), due.partition_point(|at| *at <= ns) as u64, "by {}", ns);
            }
        }

        #[test]
        fn are_exact_inverses(
            text in prop::sample::select(vec![
                "100k", "3", "0.7", "123456.789", "1.000001M", "steps:10k@5s,0@3s,20k", "steps:0@1s,7@1s,0",
                "bursts:50k,200k@100ms/1s", "bursts:0,1@1ms/3s", "sine:100k±50k/10s", "sine:1.000001±1.000001/1s500ms",
            ]),
            n in prop_oneof![0..100_u64, 0..u64::MAX / 4],
            ns in prop_oneof![0..20 * S, 0..1_000 * 86_400 * S],
        ) {
            let schedule = load(text);
            let at = schedule.due_ns(n);
            if at < NEVER {
                prop_assert!(schedule.due_by(at) > n);
                prop_assert!(at == 0 || schedule.due_by(at - 1) <= n);
            }
            prop_assert!(schedule.due_ns(schedule.due_by(ns)) > ns);
            prop_assert!(schedule.due_ns(n + 1) >= at);
        }
    }
}
