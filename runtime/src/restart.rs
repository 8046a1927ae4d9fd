//! Restart policies: whether a job that failed is tried again, and when. Decisions only; nothing here waits or runs.
//!
//! **Time**: spans since the job was started, by the wall clock.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::error::{Error, ErrorKind};
use crate::time::EventSpan;

/// Whether and when a job that failed goes on from its newest checkpoint, within the process.
///
/// Only failures that may be over the next time are tried again: those of user code and of the outside
/// ([`ErrorKind::User`], [`ErrorKind::External`]). The default is [`never`](Self::never). A start that fails before
/// anything ran is no failure of that kind: it is reported at once.
///
/// Policies have a text form, which the option `--restart` takes:
///
/// ```
/// use std::time::Duration;
/// use millstream_runtime::restart::RestartPolicy;
///
/// let policy: RestartPolicy = "exponential:1s:1m@20/h".parse()?;
/// assert_eq!(policy, RestartPolicy::exponential(Duration::from_secs(1), Duration::from_secs(60)).at_most_per_hour(20));
/// # Ok::<(), millstream_runtime::error::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RestartPolicy {
    delays: Delays,
    per_hour: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq)]
enum Delays {
    #[default]
    Never,
    Fixed {
        delay: Duration,
        times: u32,
    },
    Exponential {
        initial: Duration,
        factor: f64,
        cap: Duration,
        /// A job that ran for this long has recovered: the next delay is the initial one again.
        well_after: Duration,
    },
}

/// The text forms.
pub(crate) const FORMS: &str = "`never`, `fixed:DELAY:TIMES` (such as `fixed:5s:3`), `exponential`, or \
     `exponential:INITIAL:CAP` (such as `exponential:1s:1m`); with `@N/h` behind it, at most N times in an hour";

const HOUR: Duration = Duration::from_secs(3600);

impl RestartPolicy {
    /// A failure is the end.
    #[must_use]
    pub const fn never() -> Self {
        RestartPolicy { delays: Delays::Never, per_hour: None }
    }

    /// Waits for `delay` before each restart; after `times` of them, however far apart, the next failure is the end.
    #[must_use]
    pub const fn fixed(delay: Duration, times: u32) -> Self {
        RestartPolicy { delays: Delays::Fixed { delay, times }, per_hour: None }
    }

    /// Waits for `initial`, then twice as long each time up to `cap`, without end. A job that has run for ten times the cap
    /// begins with `initial` again. See [`factor`](Self::factor) and [`well_after`](Self::well_after).
    #[must_use]
    pub const fn exponential(initial: Duration, cap: Duration) -> Self {
        let delays = Delays::Exponential { initial, factor: 2.0, cap, well_after: cap.saturating_mul(10) };
        RestartPolicy { delays, per_hour: None }
    }

    /// By how much an exponential delay grows each time, at least 1.
    #[must_use]
    pub const fn factor(mut self, by: f64) -> Self {
        if let Delays::Exponential { factor, .. } = &mut self.delays {
            *factor = by;
        }
        self
    }

    /// After how long a job has run well, so that an exponential delay begins anew.
    #[must_use]
    pub const fn well_after(mut self, time: Duration) -> Self {
        if let Delays::Exponential { well_after, .. } = &mut self.delays {
            *well_after = time;
        }
        self
    }

    /// At most so many restarts in any hour; the next failure is then the end.
    #[must_use]
    pub const fn at_most_per_hour(mut self, restarts: u32) -> Self {
        self.per_hour = Some(restarts);
        self
    }

    /// Whether it ever restarts.
    pub fn is_never(&self) -> bool {
        self.delays == Delays::Never
    }

    /// What is wrong with its figures, if anything.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        match &self.delays {
            Delays::Exponential { factor, .. } if !(*factor >= 1.0 && factor.is_finite()) => {
                Err(Error::config(format!("a restart delay that grows by a factor of {factor}"))
                    .hint("choose a factor of at least 1; 2 is usual"))
            }
            Delays::Exponential { initial, cap, .. } if initial > cap => {
                Err(Error::config(format!("a restart delay that begins with {initial:?} and has a cap of {cap:?}"))
                    .hint("choose a cap that is not less than the first delay"))
            }
            _ => Ok(()),
        }
    }

    /// What to do after the failure with which `history` ends.
    pub fn next(&self, history: &History, error: &Error) -> Decision {
        let restarts = (history.forgotten + history.attempts.len()).saturating_sub(1);
        if self.is_never() {
            return Decision::GiveUp(GivenUp::NoPolicy);
        }
        if !matches!(error.kind(), ErrorKind::User | ErrorKind::External) {
            return Decision::GiveUp(GivenUp::WouldFailAgain);
        }
        let Some(last) = history.attempts.back() else { return Decision::GiveUp(GivenUp::NoPolicy) };
        if let Some(most) = self.per_hour {
            let begun = history
                .attempts
                .iter()
                .skip(usize::from(history.forgotten == 0))
                .filter(|one| one.started + HOUR > last.failed)
                .count();
            if begun >= most as usize {
                return Decision::GiveUp(GivenUp::Budget { per_hour: most });
            }
        }
        // What made it fail is out of the way.
        if last.cured {
            return Decision::Restart { after: Duration::ZERO };
        }
        let cured = history.forgotten_cured + history.attempts.iter().filter(|attempt| attempt.cured).count();
        match self.delays {
            Delays::Never => Decision::GiveUp(GivenUp::NoPolicy),
            Delays::Fixed { times, .. } if restarts - cured.min(restarts) >= times as usize => {
                Decision::GiveUp(GivenUp::Attempts { times })
            }
            Delays::Fixed { delay, .. } => Decision::Restart { after: delay },
            Delays::Exponential { initial, factor, cap, well_after } => {
                let poor = |attempt: &&Attempt| !attempt.cured && attempt.ran() < well_after;
                let in_a_row = history.attempts.iter().rev().take_while(poor).count();
                let power = i32::try_from(in_a_row.saturating_sub(1)).unwrap_or(i32::MAX);
                let after = initial.as_secs_f64() * factor.powi(power);
                Decision::Restart { after: Duration::try_from_secs_f64(after).unwrap_or(cap).min(cap) }
            }
        }
    }
}

/// What a policy says to a failure.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// Try again after this time.
    Restart {
        /// How long to wait.
        after: Duration,
    },
    /// The job has failed for good.
    GiveUp(GivenUp),
}

/// Why a failure is the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GivenUp {
    /// The job has no restart policy.
    NoPolicy,
    /// An error of this kind would come again.
    WouldFailAgain,
    /// All restarts of a fixed policy are used up.
    Attempts {
        /// How many there were.
        times: u32,
    },
    /// The hour's restarts are used up.
    Budget {
        /// How many an hour may have.
        per_hour: u32,
    },
}

impl fmt::Display for GivenUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GivenUp::NoPolicy => f.write_str("the job has no restart policy"),
            GivenUp::WouldFailAgain => f.write_str("an error of this kind would come again"),
            GivenUp::Attempts { times } => write!(f, "its policy's {times} restarts are used up"),
            GivenUp::Budget { per_hour } => write!(f, "its policy's {per_hour} restarts an hour are used up"),
        }
    }
}

/// All attempts of a job since it was started in this process, the one that failed last at the end.
#[derive(Clone, Debug, Default)]
pub struct History {
    attempts: VecDeque<Attempt>,
    /// How many are no longer among them, and how many of these were cured.
    forgotten: usize,
    forgotten_cured: usize,
}

/// How many attempts are remembered one by one.
const REMEMBERED: usize = 10_000;

/// One attempt that failed.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    started: Duration,
    failed: Duration,
    /// What made it fail has been put out of the way since.
    cured: bool,
}

impl Attempt {
    fn ran(&self) -> Duration {
        self.failed.saturating_sub(self.started)
    }
}

impl History {
    /// An attempt that began at `started` has failed at `failed`, both since the job was started. `cured`: the record that made
    /// it fail was set aside, so that it need not be waited for, and does not count among the restarts of a fixed policy.
    pub fn failed(&mut self, started: Duration, failed: Duration, cured: bool) {
        self.attempts.push_back(Attempt { started, failed, cured });
        if self.attempts.len() > REMEMBERED
            && let Some(first) = self.attempts.pop_front()
        {
            self.forgotten += 1;
            self.forgotten_cured += usize::from(first.cured);
        }
    }
}

impl FromStr for RestartPolicy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || Error::config(format!("`{text}` is no restart policy")).hint(format!("it can be {FORMS}"));
        let span = |part: &str| -> Result<Duration, Error> {
            let span: EventSpan = part.parse().map_err(|_| wrong())?;
            u64::try_from(span.as_micros()).map(Duration::from_micros).map_err(|_| wrong())
        };
        let (form, per_hour) = match text.split_once('@') {
            Some((form, budget)) => {
                let number = budget.strip_suffix("/h").ok_or_else(wrong)?;
                (form, Some(number.parse().map_err(|_| wrong())?))
            }
            None => (text, None),
        };
        let parts: Vec<&str> = form.split(':').collect();
        let policy = match parts[..] {
            ["never"] => RestartPolicy::never(),
            ["fixed", delay, times] => RestartPolicy::fixed(span(delay)?, times.parse().map_err(|_| wrong())?),
            ["exponential"] => RestartPolicy::exponential(Duration::from_secs(1), Duration::from_secs(60)),
            ["exponential", initial, cap] => RestartPolicy::exponential(span(initial)?, span(cap)?),
            _ => return Err(wrong()),
        };
        let policy = RestartPolicy { per_hour, ..policy };
        policy.validate()?;
        Ok(policy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    /// Attempts of these lengths, in seconds, each begun 1 s after the one before had failed.
    fn history(lengths: &[u32]) -> History {
        let (mut history, mut now) = (History::default(), Duration::ZERO);
        for length in lengths {
            history.failed(now, now + S * *length, false);
            now += S * (*length + 1);
        }
        history
    }

    fn failure() -> Error {
        Error::user("boom")
    }

    fn after(policy: &RestartPolicy, lengths: &[u32]) -> Option<Duration> {
        match policy.next(&history(lengths), &failure()) {
            Decision::Restart { after } => Some(after),
            Decision::GiveUp(_) => None,
        }
    }

    #[test]
    fn never_is_the_default_and_never() {
        assert_eq!(RestartPolicy::default(), RestartPolicy::never());
        let decision = RestartPolicy::never().next(&history(&[1000]), &failure());
        assert_eq!(decision, Decision::GiveUp(GivenUp::NoPolicy));
    }

    #[test]
    fn a_fixed_policy_has_so_many_restarts() {
        let policy = RestartPolicy::fixed(5 * S, 2);
        assert_eq!(after(&policy, &[0]), Some(5 * S));
        assert_eq!(after(&policy, &[0, 9]), Some(5 * S));
        let decision = policy.next(&history(&[0, 9, 100_000]), &failure());
        assert_eq!(decision, Decision::GiveUp(GivenUp::Attempts { times: 2 }));
    }

    #[test]
    fn an_exponential_delay_grows_to_its_cap_and_begins_anew_after_a_good_run() {
        let policy = RestartPolicy::exponential(S, 10 * S).well_after(50 * S);
        let delays: Vec<_> = (1..=6).map(|n| after(&policy, &vec![1; n])).collect();
        assert_eq!(delays, [1, 2, 4, 8, 10, 10].map(|n| Some(n * S)));
        assert_eq!(after(&policy, &[1, 1, 1, 50]), Some(S));
        assert_eq!(after(&policy, &[1, 1, 1, 50, 1]), Some(S), "the good run was cause for one delay already");
        assert_eq!(after(&policy, &[1, 1, 50, 1, 1]), Some(2 * S));
        assert_eq!(after(&policy.clone().factor(3.0), &[1, 1, 1]), Some(9 * S));
        assert_eq!(after(&policy, &vec![1; 20_000]), Some(10 * S), "no overflow");
        let fixed = RestartPolicy::fixed(S, 20_000);
        assert_eq!(after(&fixed, &vec![1; 20_000]), Some(S), "what is forgotten still counts");
        assert_eq!(after(&fixed, &vec![1; 20_001]), None);
    }

    #[test]
    fn an_hour_has_a_budget() {
        let policy = RestartPolicy::fixed(S, 100).at_most_per_hour(2);
        assert_eq!(after(&policy, &[1, 1]), Some(S));
        let decision = policy.next(&history(&[1, 1, 1]), &failure());
        assert_eq!(decision, Decision::GiveUp(GivenUp::Budget { per_hour: 2 }));
        assert_eq!(after(&policy, &[1, 1, 3_600]), Some(S), "the first restart is more than an hour ago");
        assert_eq!(after(&RestartPolicy::exponential(S, S).at_most_per_hour(0), &[1]), None);
    }

    #[test]
    fn what_would_come_again_is_not_tried_again() {
        let policy = RestartPolicy::fixed(S, 100);
        for kind in [ErrorKind::Config, ErrorKind::State, ErrorKind::Data, ErrorKind::Internal] {
            let decision = policy.next(&history(&[1]), &Error::new(kind, "no"));
            assert_eq!(decision, Decision::GiveUp(GivenUp::WouldFailAgain), "{kind:?}");
        }
        assert!(matches!(policy.next(&history(&[1]), &Error::external("disk")), Decision::Restart { .. }));
    }

    #[test]
    fn when_the_cause_was_put_out_of_the_way_then_at_once_and_at_no_cost() {
        let policy = RestartPolicy::fixed(5 * S, 1);
        let mut history = History::default();
        history.failed(Duration::ZERO, S, false);
        history.failed(S, 2 * S, true);
        assert_eq!(policy.next(&history, &failure()), Decision::Restart { after: Duration::ZERO });
        history.failed(2 * S, 3 * S, false);
        assert_eq!(policy.next(&history, &failure()), Decision::GiveUp(GivenUp::Attempts { times: 1 }));
        let budget = policy.at_most_per_hour(1);
        assert!(matches!(budget.next(&history, &failure()), Decision::GiveUp(GivenUp::Budget { .. })));
    }

    #[test]
    fn policies_are_written_as_text() {
        for (text, policy) in [
            ("never", RestartPolicy::never()),
            ("fixed:5s:3", RestartPolicy::fixed(5 * S, 3)),
            ("fixed:200ms:3@10/h", RestartPolicy::fixed(S / 5, 3).at_most_per_hour(10)),
            ("exponential", RestartPolicy::exponential(S, 60 * S)),
            ("exponential:2s:1h", RestartPolicy::exponential(2 * S, HOUR)),
        ] {
            assert_eq!(text.parse::<RestartPolicy>().unwrap(), policy, "{text}");
        }
        for text in [
            "",
            "fixed",
            "fixed:5s",
            "fixed:5:3",
            "fixed:5s:-1",
            "fixed:-5s:1",
            "exponential:1s",
            "exponential:9s:1s",
            "fixed:5s:3@",
            "fixed:5s:3@10",
            "fixed:5s:3@x/h",
            "always",
        ] {
            let error = text.parse::<RestartPolicy>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config, "{text}: {error}");
        }
        let shrinking = RestartPolicy::exponential(S, 2 * S).factor(0.5);
        assert!(shrinking.validate().is_err());
    }
}
