//! The load that a job is put under, as a person types it.
//!
//! | text | events are due |
//! |---|---|
//! | `100k`, `constant:100k` | evenly, 100,000 a second |
//! | `steps:10k@5s,20k@5s,30k` | 10,000 a second for 5 s, then 20,000, then 30,000 |
//! | `bursts:50k,200k@100ms/1s` | 50,000 a second, but 200,000 in the last 100 ms of every second |
//! | `sine:100k+-50k/10s` | 50,000 to 150,000 a second, up and down every 10 s; `±` does as well |
//! | `recorded`, `recorded:10x` | as their event times lie apart; or ten times as fast |
//!
//! The **last step stays** for the rest of the run, so its span may be left out; `0` there is silence. A burst comes at the
//! end of its period, so that a run does not begin with one; its rate replaces the base rate.
//!
//! **Units**: events per second over all splits of a source together, see [`Rate`]; spans as in `1h`, `90s`, `200ms`, `1h30m`.
//! **Errors**: the message quotes what is wrong and shows an example of the right form.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::rate::Rate;
use super::schedule::Schedule;
use crate::time::EventSpan;

/// The least period of bursts and waves: below it, a schedule of whole nanoseconds says little about the shape.
const LEAST_PERIOD: Duration = Duration::from_millis(1);

/// When the events of every source are due. Parses and displays as in the table of the [module](self).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Load {
    /// Evenly.
    Constant(Rate),
    /// One rate after another.
    Steps {
        /// The steps that end.
        steps: Vec<(Rate, Duration)>,
        /// The rate from then on.
        last: Rate,
    },
    /// A rate with bursts, each at the end of its period.
    Bursts {
        /// The rate between bursts.
        base: Rate,
        /// The rate in a burst.
        burst: Rate,
        /// How long a burst is.
        length: Duration,
        /// From the start of one burst to the start of the next.
        period: Duration,
    },
    /// A rate that goes up and down as a sine, beginning at the mean and going up.
    Sine {
        /// The mean rate.
        mean: Rate,
        /// How far the rate goes above and below.
        amplitude: Rate,
        /// From one peak to the next.
        period: Duration,
    },
    /// As recorded: an event is due when as much time has passed as its event time is after the first one's.
    Recorded {
        /// By how much faster than recorded.
        speed: f64,
    },
}

impl Load {
    /// The arithmetic of it; `None` for a recorded load, whose instants are in the data.
    pub fn schedule(&self) -> Option<Schedule> {
        match self {
            Load::Constant(rate) => Some(Schedule::constant(*rate)),
            Load::Steps { steps, last } => Some(Schedule::steps(steps, *last)),
            Load::Bursts { base, burst, length, period } => Some(Schedule::bursts(*base, *burst, *length, *period)),
            Load::Sine { mean, amplitude, period } => Some(Schedule::sine(*mean, *amplitude, *period)),
            Load::Recorded { .. } => None,
        }
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Load::Constant(rate) => write!(f, "constant:{rate}"),
            Load::Steps { steps, last } => {
                f.write_str("steps:")?;
                steps.iter().try_for_each(|(rate, span)| write!(f, "{rate}@{},", Span(*span)))?;
                write!(f, "{last}")
            }
            Load::Bursts { base, burst, length, period } => {
                write!(f, "bursts:{base},{burst}@{}/{}", Span(*length), Span(*period))
            }
            Load::Sine { mean, amplitude, period } => write!(f, "sine:{mean}±{amplitude}/{}", Span(*period)),
            Load::Recorded { speed } if *speed == 1.0 => f.write_str("recorded"),
            Load::Recorded { speed } => write!(f, "recorded:{speed}x"),
        }
    }
}

/// A duration in the words of an [`EventSpan`].
struct Span(Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        EventSpan::micros(i64::try_from(self.0.as_micros()).unwrap_or(i64::MAX)).fmt(f)
    }
}

/// A text that is not a load; the message quotes it and shows the right form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseLoadError(String);

impl fmt::Display for ParseLoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ParseLoadError {}

/// Each kind of load with an example of it, for messages.
const EXAMPLES: [(&str, &str); 5] = [
    ("constant", "constant:100k"),
    ("steps", "steps:10k@5s,20k@5s,30k"),
    ("bursts", "bursts:50k,200k@100ms/1s"),
    ("sine", "sine:100k+-50k/10s"),
    ("recorded", "recorded:10x"),
];

impl FromStr for Load {
    type Err = ParseLoadError;

    fn from_str(text: &str) -> Result<Load, ParseLoadError> {
        let text = text.trim();
        let (kind, rest) = match text.split_once(':') {
            Some((kind, rest)) => (kind.trim(), rest.trim()),
            None if text.starts_with(|c: char| c.is_ascii_digit()) => ("constant", text),
            None => (text, ""),
        };
        let Some((_, example)) = EXAMPLES.iter().find(|(name, _)| *name == kind) else {
            let examples = EXAMPLES.map(|(_, example)| example).join("  ");
            return Err(ParseLoadError(format!("`{text}` is not a load; give one like  100k  {examples}")));
        };
        let parsed = match kind {
            "constant" => rest.parse().map(Load::Constant),
            "steps" => steps(rest),
            "bursts" => bursts(rest),
            "sine" => sine(rest),
            _ => recorded(rest),
        };
        let load = parsed.and_then(Load::check);
        load.map_err(|reason| ParseLoadError(format!("{reason} (an example of this load: {example})")))
    }
}

fn span(text: &str) -> Result<Duration, String> {
    let span: EventSpan = text.trim().parse().map_err(|error: crate::time::ParseTimeError| error.to_string())?;
    Ok(Duration::from_micros(span.as_micros() as u64))
}

/// The two sides of the first `separator`, or a message that `what` is missing behind it.
fn cut<'a>(text: &'a str, separator: &str, what: &str) -> Result<(&'a str, &'a str), String> {
    text.split_once(separator).ok_or_else(|| format!("`{text}` lacks `{separator}` and {what}"))
}

fn steps(text: &str) -> Result<Load, String> {
    let mut steps = Vec::new();
    let (first, last) = text.rsplit_once(',').map_or((None, text), |(first, last)| (Some(first), last));
    for step in first.iter().flat_map(|first| first.split(',')) {
        let (rate, time) = cut(step, "@", "how long this step takes")?;
        steps.push((rate.parse()?, span(time)?));
    }
    // It stays, so its span says nothing; but a person may well type it.
    let last = match last.split_once('@') {
        Some((rate, time)) => span(time).map(|_| rate)?,
        None => last,
    };
    Ok(Load::Steps { steps, last: last.parse()? })
}

fn bursts(text: &str) -> Result<Load, String> {
    let (base, rest) = cut(text, ",", "the rate of a burst")?;
    let (burst, rest) = cut(rest, "@", "the length of a burst")?;
    let (length, period) = cut(rest, "/", "how often a burst comes")?;
    Ok(Load::Bursts { base: base.parse()?, burst: burst.parse()?, length: span(length)?, period: span(period)? })
}

fn sine(text: &str) -> Result<Load, String> {
    let text = text.replace("+-", "±");
    let (mean, rest) = cut(&text, "±", "how far the rate goes up and down (`+-` does as well)")?;
    let (amplitude, period) = cut(rest, "/", "how long one wave is")?;
    Ok(Load::Sine { mean: mean.parse()?, amplitude: amplitude.parse()?, period: span(period)? })
}

fn recorded(text: &str) -> Result<Load, String> {
    let number = text.strip_suffix('x').unwrap_or(if text.is_empty() { "1" } else { text });
    let speed = number.trim().parse().map_err(|_| format!("`{text}` is not a speed"))?;
    Ok(Load::Recorded { speed })
}

impl Load {
    /// Whether there is such a load.
    fn check(self) -> Result<Load, String> {
        let (some, wrong) = match &self {
            Load::Constant(rate) => (!rate.is_zero(), None),
            Load::Steps { steps, last } => {
                let empty = steps.iter().any(|(_, span)| span.is_zero());
                let some = !last.is_zero() || steps.iter().any(|(rate, _)| !rate.is_zero());
                (some, empty.then(|| "a step takes no time".to_string()))
            }
            Load::Bursts { base, burst, length, period } => {
                let fits = *period >= LEAST_PERIOD && !length.is_zero() && length < period;
                let wrong = || format!("bursts of {} every {}", Span(*length), Span(*period));
                let wrong = (!fits).then(|| wrong() + ": a period is at least 1ms, and longer than its burst");
                (!(base.is_zero() && burst.is_zero()), wrong)
            }
            Load::Sine { mean, amplitude, period } => {
                let wrong = match () {
                    () if *period < LEAST_PERIOD => Some(format!("a wave of {} is shorter than 1ms", Span(*period))),
                    () if amplitude > mean => Some(format!("{mean}±{amplitude} goes below 0")),
                    () => None,
                };
                (!mean.is_zero(), wrong)
            }
            Load::Recorded { speed } => {
                (true, (!(*speed > 0.0 && speed.is_finite())).then(|| format!("{speed} is not a speed above 0")))
            }
        };
        match wrong {
            Some(wrong) => Err(wrong),
            None if !some => Err("at this load there are no events at all".to_string()),
            None => Ok(self),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(events: u64) -> Rate {
        Rate::per_second(events as f64)
    }

    #[test]
    fn loads_print_and_parse() {
        let s = Duration::from_secs;
        let ms = Duration::from_millis;
        for (text, load) in [
            ("constant:100k", Load::Constant(rate(100_000))),
            (
                "steps:10k@5s,0@1m30s,30k",
                Load::Steps { steps: vec![(rate(10_000), s(5)), (rate(0), s(90))], last: rate(30_000) },
            ),
            ("steps:7", Load::Steps { steps: vec![], last: rate(7) }),
            (
                "bursts:50k,200k@100ms/1s",
                Load::Bursts { base: rate(50_000), burst: rate(200_000), length: ms(100), period: s(1) },
            ),
            ("sine:100k±50k/10s", Load::Sine { mean: rate(100_000), amplitude: rate(50_000), period: s(10) }),
            ("recorded", Load::Recorded { speed: 1.0 }),
            ("recorded:0.5x", Load::Recorded { speed: 0.5 }),
        ] {
            assert_eq!(text.parse(), Ok(load.clone()), "{text}");
            assert_eq!(load.to_string(), text);
        }
    }

    #[test]
    fn people_may_type_it_otherwise() {
        for (typed, text) in [
            ("100000", "constant:100k"),
            (" 100_000 ", "constant:100k"),
            ("steps: 10k@5s, 20k@5s", "steps:10k@5s,20k"),
            ("sine:100k+-50k/10s", "sine:100k±50k/10s"),
            ("recorded:10", "recorded:10x"),
        ] {
            assert_eq!(typed.parse::<Load>().map(|load| load.to_string()), Ok(text.to_string()), "{typed}");
        }
    }

    #[test]
    fn errors_say_what_is_wrong_and_show_an_example() {
        for (text, reason, example) in [
            ("", "`` is not a load", "constant:100k"),
            ("often", "`often` is not a load", "bursts:"),
            ("constant:", "`` is not a rate", "constant:100k"),
            ("100q", "`100q` is not a rate", "constant:100k"),
            ("0", "no events at all", "constant:100k"),
            ("steps:0@5s,0", "no events at all", "steps:10k@5s"),
            ("steps:10k,20k@5s", "`10k` lacks `@`", "steps:10k@5s"),
            ("steps:10k@5,20k", "`5` is not a span", "steps:10k@5s"),
            ("steps:10k@0s,20k", "takes no time", "steps:10k@5s"),
            ("bursts:50k", "`50k` lacks `,`", "bursts:50k,200k@100ms/1s"),
            ("bursts:50k,200k@2s/1s", "bursts of 2s every 1s", "bursts:50k,200k@100ms/1s"),
            ("sine:10k±20k/1s", "10k±20k goes below 0", "sine:100k+-50k/10s"),
            ("sine:10k/1s", "`10k/1s` lacks `±`", "sine:100k+-50k/10s"),
            ("sine:10k±1k/1us", "shorter than 1ms", "sine:100k+-50k/10s"),
            ("recorded:-1x", "not a speed", "recorded:10x"),
            ("recorded:nanx", "not a speed", "recorded:10x"),
        ] {
            let error = text.parse::<Load>().expect_err(text).to_string();
            assert!(error.contains(reason) && error.contains(example), "{text}: {error}");
        }
    }
}
