//! Patterns against an oracle that knows nothing but the definition of what matches: on any number of workers, in batches of any size, with and
//! without checkpoints and memory, and through crashes and other numbers of workers. And the boundaries, by hand.
//!
//! `MILLSTREAM_CASES=10000 cargo test --test patterns` looks longer than the default of 200 cases.

#[allow(dead_code)] // shared with other tests
mod oracle;

use std::collections::BTreeMap;

use millstream::operators::pattern::{Matched, Steps};
use millstream::prelude::*;
use oracle::trial::*;
use oracle::{Item, Pace, Script, cases, judge, run};
use proptest::prelude::*;

// ---- random patterns -------------------------------------------------------------------------------------------------

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Next,
    Followed,
    NotNext,
    NotFollowed,
}

impl Place {
    fn is_not(self) -> bool {
        matches!(self, Place::NotNext | Place::NotFollowed)
    }

    fn is_directly(self) -> bool {
        matches!(self, Place::Next | Place::NotNext)
    }
}

/// What is asked of a record and those before it.
#[derive(Clone, Copy, Debug)]
enum Given {
    Nothing,
    /// Its value is above that of the last one.
    Higher,
    /// The sum of all values is no multiple of three.
    NotByThree,
    /// The first step has taken at most two.
    FewFirst,
}

#[derive(Clone, Debug)]
struct Ask {
    place: Place,
    /// The values, of which there are six, that fit.
    values: [bool; 6],
    given: Given,
    least: usize,
    most: usize,
    optional: bool,
    consecutive: bool,
}

#[derive(Clone, Debug)]
struct Spec {
    asks: Vec<Ask>,
    within: i64,
    overlapping: bool,
    timed_out: bool,
}

fn ask() -> impl Strategy<Value = Ask> {
    let place = prop_oneof![
        3 => Just(Place::Next),
        4 => Just(Place::Followed),
        1 => Just(Place::NotNext),
        2 => Just(Place::NotFollowed),
    ];
    let given = prop_oneof![
        5 => Just(Given::Nothing),
        1 => Just(Given::Higher),
        1 => Just(Given::NotByThree),
        1 => Just(Given::FewFirst),
    ];
    let times = prop_oneof![
        5 => Just((1, 1)),
        2 => Just((1, usize::MAX)),
        1 => Just((2, 2)),
        1 => Just((2, usize::MAX)),
        2 => (1usize..4, 0usize..3).prop_map(|(least, more)| (least, least + more)),
    ];
    let values = prop_oneof![
        3 => prop::array::uniform6(prop::bool::weighted(0.3)),
        2 => prop::array::uniform6(prop::bool::weighted(0.6)),
        1 => Just([true; 6]),
    ];
    (place, values, given, times, prop::bool::weighted(0.25), prop::bool::weighted(0.25)).prop_map(
        |(place, values, given, (least, most), optional, consecutive)| {
            if place.is_not() {
                return Ask { place, values, given, least: 1, most: 1, optional: false, consecutive: false };
            }
            Ask { place, values, given, least, most, optional, consecutive }
        },
    )
}

fn spec() -> impl Strategy<Value = Spec> {
    let within = prop_oneof![4 => 1i64..60, 2 => 100i64..100_000, 1 => Just(86_400_000_000), 1 => Just(i64::MAX)];
    (prop::collection::vec(ask(), 1..5), within, any::<bool>(), any::<bool>()).prop_map(
        |(mut asks, within, overlapping, timed_out)| {
            asks[0].place = Place::Followed;
            asks[0].optional = false;
            Spec { asks, within, overlapping, timed_out }
        },
    )
}

fn name(step: usize) -> String {
    format!("step {step}")
}

fn holds(ask: &Ask, item: &Item) -> bool {
    ask.values[usize::try_from(item.value.rem_euclid(6)).expect("one of six")]
}

/// What is asked of a record, with the last one, the sum, and how many the first step has taken.
fn asked(given: Given, item: &Item, last: Option<&Item>, sum: i64, first: usize) -> bool {
    match given {
        Given::Nothing => true,
        Given::Higher => last.is_none_or(|last| item.value > last.value),
        Given::NotByThree => (sum + item.value) % 3 != 0,
        Given::FewFirst => first <= 2,
    }
}

fn pattern(spec: &Spec) -> Pattern<Item> {
    let mut steps: Option<Steps<Item>> = None;
    for (number, ask) in spec.asks.iter().enumerate() {
        let own = ask.clone();
        let condition = move |item: &Item| holds(&own, item);
        let mut so_far = match (steps.take(), ask.place) {
            (None, _) => Pattern::first(name(number), condition),
            (Some(steps), Place::Next) => steps.next(name(number), condition),
            (Some(steps), Place::Followed) => steps.followed_by(name(number), condition),
            (Some(steps), Place::NotNext) => steps.not_next(name(number), condition),
            (Some(steps), Place::NotFollowed) => steps.not_followed_by(name(number), condition),
        };
        let given = ask.given;
        so_far = so_far.given(move |item, before: &Matched<'_, Item>| {
            assert_eq!(before.first(), before.records().next());
            assert_eq!(before.last(), before.records().next_back());
            let sum = before.records().map(|item| item.value).sum();
            asked(given, item, before.last(), sum, before.of("step 0").count())
        });
        so_far = match (ask.least, ask.most) {
            (1, 1) => so_far,
            (1, usize::MAX) => so_far.one_or_more(),
            (least, usize::MAX) => so_far.times(least..),
            (least, most) if least == most => so_far.times(least),
            (least, most) => so_far.times(least..=most),
        };
        so_far = if ask.optional { so_far.optional() } else { so_far };
        steps = Some(if ask.consecutive { so_far.consecutive() } else { so_far });
    }
    let pattern = steps.expect("at least one").within(EventSpan::micros(spec.within));
    let pattern = if spec.overlapping { pattern.overlapping() } else { pattern };
    if spec.timed_out { pattern.with_timed_out() } else { pattern }
}

// ---- the oracle ------------------------------------------------------------------------------------------------------

/// Which step has taken which record.
type Taken = Vec<(usize, usize)>;

/// The definition, as questions about the records of a key, in order. Nothing is carried on from one record to the next.
struct Definition<'a> {
    asks: &'a [Ask],
    within: i64,
    items: &'a [Item],
}

/// What comes of a first record.
#[derive(Clone, Debug, PartialEq)]
enum Outcome {
    Lost,
    /// The records, and after which one it is decided; nothing, if when the time is over.
    Match(Taken, Option<usize>),
    TimedOut(Taken),
}

impl Definition<'_> {
    fn end(&self, first: usize) -> i64 {
        self.items[first].at.saturating_add(self.within)
    }

    /// The records that may be in a match with this first one, and are not the first.
    fn others(&self, first: usize) -> std::ops::Range<usize> {
        let end = self.end(first);
        let within = self.items[first + 1..].iter().take_while(|item| item.at < end).count();
        first + 1..first + 1 + within
    }

    /// Whether a record fits a step, given those before.
    fn fits(&self, step: usize, record: usize, before: &[(usize, usize)]) -> bool {
        let item = &self.items[record];
        let values = || before.iter().map(|(_, record)| &self.items[*record]);
        let first = before.iter().filter(|(step, _)| *step == 0).count();
        let sum = values().map(|item| item.value).sum();
        holds(&self.asks[step], item) && asked(self.asks[step].given, item, values().last(), sum, first)
    }

    /// How many records a step has taken.
    fn count(&self, step: usize, taken: &[(usize, usize)]) -> usize {
        taken.iter().filter(|(own, _)| *own == step).count()
    }

    fn has_enough(&self, step: usize, taken: &[(usize, usize)]) -> bool {
        let count = self.count(step, taken);
        let ask = &self.asks[step];
        ask.place.is_not() || (count == 0 && ask.optional) || (ask.least..=ask.most).contains(&count)
    }

    /// Whether one of the records `seen`, behind all that were taken, is one that must not be there.
    fn is_broken(&self, step: usize, taken: &[(usize, usize)], seen: std::ops::Range<usize>) -> bool {
        let ask = &self.asks[step];
        let looked_at = if ask.place.is_directly() { seen.start..seen.end.min(seen.start + 1) } else { seen };
        ask.place.is_not() && looked_at.into_iter().any(|record| self.fits(step, record, taken))
    }

    /// Whether a step might take a record, behind those that were taken, if it fitted. All before it were seen.
    fn might_take(&self, step: usize, record: usize, taken: &[(usize, usize)], seen_last: usize) -> bool {
        let (current, last) = *taken.last().expect("begins with one");
        let ask = &self.asks[step];
        let is_next = record == last + 1;
        if ask.place.is_not() || step < current {
            return false;
        }
        if step == current {
            return self.count(step, taken) < ask.most && (!ask.consecutive || is_next);
        }
        self.has_enough(current, taken)
            && (current + 1..step).all(|between| self.has_enough(between, taken))
            && (ask.place != Place::Next || is_next)
            && (current + 1..step).all(|between| !self.is_broken(between, taken, last + 1..seen_last + 1))
    }

    /// The same for a record that is there.
    fn takes(&self, step: usize, record: usize, taken: &[(usize, usize)]) -> bool {
        self.might_take(step, record, taken, record) && self.fits(step, record, taken)
    }

    /// Whether it is a match, if nothing comes behind the record `seen_last`.
    fn is_complete(&self, taken: &[(usize, usize)], seen_last: usize) -> bool {
        let (current, last) = *taken.last().expect("begins with one");
        (current..self.asks.len()).all(|step| self.has_enough(step, taken))
            && (current + 1..self.asks.len()).all(|step| !self.is_broken(step, taken, last + 1..seen_last + 1))
    }

    /// What comes of a first record, which fits.
    fn outcome(&self, first: usize) -> Outcome {
        let mut taken = vec![(0, first)];
        for record in std::iter::once(first).chain(self.others(first)) {
            if record > first {
                let step = (0..self.asks.len()).find(|step| self.takes(*step, record, &taken));
                taken.extend(step.map(|step| (step, record)));
            }
            let (current, last) = taken[taken.len() - 1];
            let complete = self.is_complete(&taken, record);
            let more = (0..self.asks.len()).any(|step| self.might_take(step, record + 1, &taken, record));
            let breakable = (current + 1..self.asks.len()).any(|step| match self.asks[step].place {
                Place::NotFollowed => true,
                Place::NotNext => record == last,
                _ => false,
            });
            match (complete, more) {
                (false, false) => return Outcome::Lost,
                (true, false) if !breakable => return Outcome::Match(taken, Some(record)),
                _ => {}
            }
        }
        if self.is_complete(&taken, self.others(first).end - 1) {
            Outcome::Match(taken, None)
        } else {
            Outcome::TimedOut(taken)
        }
    }

    /// All that comes out for the key, with when it happened.
    fn results(&self, spec: &Spec) -> Vec<(i64, Match<Item>)> {
        let firsts = (0..self.items.len()).filter(|record| self.fits(0, *record, &[]));
        let mut outcomes: Vec<_> = firsts
            .filter_map(|first| {
                let (taken, decided) = match self.outcome(first) {
                    Outcome::Lost => return None,
                    Outcome::Match(taken, decided) => ((taken, true), decided),
                    Outcome::TimedOut(taken) => ((taken, false), None),
                };
                // When time is over, that is before the next record is looked at.
                let moment = decided.map_or((self.others(first).end, 0), |record| (record, 1));
                let at = decided.map_or(self.end(first), |record| self.items[record].at);
                Some((moment, first, at, taken))
            })
            .collect();
        outcomes.sort();
        let (mut results, mut past) = (Vec::new(), None);
        for (_, first, at, (taken, complete)) in outcomes {
            if !spec.overlapping && past.is_some_and(|past| first <= past) {
                continue;
            }
            if complete {
                past = Some(taken[taken.len() - 1].1);
            }
            if complete || spec.timed_out {
                let of_step = |step: usize| taken.iter().filter(move |(own, _)| *own == step);
                let records = |step| of_step(step).map(|(_, record)| self.items[*record]).collect();
                let time = |record: usize| self.items[record].time();
                let (since, until) = (time(first), time(taken[taken.len() - 1].1));
                let steps = (0..self.asks.len()).map(|step| (name(step), records(step))).collect();
                results.push((at, Match { complete, since, until, steps }));
            }
        }
        results
    }

    /// Whether it is a match, by everything that is said of one.
    fn is_match(&self, taken: &[(usize, usize)]) -> bool {
        let others = self.others(taken[0].1);
        let steps = 0..self.asks.len();
        // Where records are, and what must not be there.
        let follow = taken.windows(2).enumerate().all(|(before, pair)| {
            let ((one, last), (other, record)) = (pair[0], pair[1]);
            let strict = if one == other { self.asks[one].consecutive } else { self.asks[other].place == Place::Next };
            (!strict || record == last + 1) && self.fits(other, record, &taken[..=before])
        });
        let clean = |not: usize| {
            let before: Vec<_> = taken.iter().copied().filter(|(step, _)| *step < not).collect();
            let behind = taken.iter().find(|(step, _)| *step > not).map_or(others.end, |(_, record)| record + 1);
            !self.is_broken(not, &before, before[before.len() - 1].1 + 1..behind)
        };
        // Each record is with the first step that can have it.
        let greedy = others.clone().all(|record| {
            let before: Vec<_> = taken.iter().copied().filter(|(_, own)| *own < record).collect();
            let own = taken.iter().find(|(_, own)| *own == record).map_or(self.asks.len(), |(step, _)| *step);
            (0..own).all(|step| !self.takes(step, record, &before))
        });
        self.fits(0, taken[0].1, &[])
            && steps.clone().all(|step| self.has_enough(step, taken))
            && steps.clone().filter(|step| self.asks[*step].place.is_not()).all(clean)
            && follow
            && greedy
    }

    /// All matches with a first record, by looking at every way to give the records to the steps.
    fn all_matches(&self, first: usize) -> Vec<Taken> {
        let mut ways = vec![vec![(0, first)]];
        for record in self.others(first) {
            let longer = |way: &Taken| {
                let from = way[way.len() - 1].0;
                let way = way.clone();
                let steps = (from..self.asks.len()).filter(|step| !self.asks[*step].place.is_not());
                steps.map(move |step| [way.clone(), vec![(step, record)]].concat()).collect::<Vec<_>>()
            };
            let more: Vec<Taken> = ways.iter().flat_map(longer).collect();
            ways.extend(more);
        }
        ways.retain(|way| self.is_match(way));
        ways
    }
}

proptest! {
    #![proptest_config(config(cases(1_000)))]

    /// The oracle itself: by the definition there is one way at most to match with a first record, and the walk along the records finds it.
    #[test]
    fn there_is_at_most_one_match_for_a_first_record(
        spec in spec(),
        records in prop::collection::vec((0i64..4, 0i64..6), 1..7),
    ) {
        let mut at = 0;
        let item = |(number, &(wait, value)): (usize, &(i64, i64))| {
            at += wait;
            Item { split: 0, number: number as u64, at, key: 0, value }
        };
        let items: Vec<Item> = records.iter().enumerate().map(item).collect();
        let within = spec.within.min(8);
        let definition = Definition { asks: &spec.asks, within, items: &items };
        for first in (0..items.len()).filter(|first| definition.fits(0, *first, &[])) {
            let expected = match definition.outcome(first) {
                Outcome::Match(taken, _) => vec![taken],
                _ => vec![],
            };
            prop_assert_eq!(definition.all_matches(first), expected);
        }
    }
}

/// What comes out, with when it happened, and the late records.
fn naive(case: &Case, spec: &Spec) -> (Vec<(i64, Match<Item>)>, Vec<Item>) {
    let (mut keys, mut late) = (BTreeMap::<u64, Vec<Item>>::new(), Vec::new());
    for (item, watermark) in judge(&case.splits, case.delay) {
        if watermark.is_some_and(|watermark| i128::from(item.at) < watermark) {
            late.push(item);
        } else {
            keys.entry(item.key).or_default().push(item);
        }
    }
    let mut results = Vec::new();
    for items in keys.values_mut() {
        items.sort_by_key(|item| (item.at, item.split, item.number));
        results.extend(Definition { asks: &spec.asks, within: spec.within, items }.results(spec));
    }
    (results, late)
}

// ---- whole jobs ------------------------------------------------------------------------------------------------------

#[derive(Clone)]
struct Outlets {
    matches: Collected<Match<Item>>,
    late: Collected<Item>,
}

impl Outlets {
    fn new() -> Self {
        Outlets { matches: Collected::new(), late: Collected::new() }
    }

    fn attach(&self, keyed: KeyedStream<String, Item>, spec: &Spec) {
        let (matches, late) = keyed.matches_with_late(pattern(spec));
        matches.sink(self.matches.sink());
        late.sink(self.late.sink());
    }

    fn compare(&self, case: &Case, spec: &Spec) -> Result<(), TestCaseError> {
        let (expected, late) = naive(case, spec);
        let matches = self.matches.take().into_iter().map(|record| (record.at.micros(), record.value)).collect();
        prop_assert_eq!(sorted(matches), sorted(expected));
        prop_assert_eq!(sorted(values(self.late.take())), sorted(late));
        Ok(())
    }
}

/// A case, and a pattern whose span is on the scale of its times, or not.
fn case_and_spec() -> impl Strategy<Value = (Case, Spec)> {
    (any_case(4, 100), spec(), prop::bool::weighted(0.7)).prop_map(|(case, mut spec, scaled)| {
        if scaled {
            spec.within = spec.within.saturating_mul((case.shape.slide / 7).max(1));
        }
        (case, spec)
    })
}

proptest! {
    #![proptest_config(config(cases(100)))]

    #[test]
    fn matches_are_as_the_oracle_says((case, spec) in case_and_spec(), setups in setups()) {
        for setup in setups {
            let (dir, outlets) = (tempdir(), Outlets::new());
            let job = new_job(&setup, &dir);
            outlets.attach(keyed(&job, &case, setup.pace, &[]), &spec);
            run(job).expect("the job finishes");
            outlets.compare(&case, &spec)?;
        }
    }

    #[test]
    fn crashes_and_other_numbers_of_workers_change_nothing(
        (case, spec) in case_and_spec(),
        troubles in troubles(),
        workers in worker_counts(),
        setup in slow_setup(),
    ) {
        let outlets = Outlets::new();
        let splits: Vec<&[Item]> = case.splits.iter().map(Vec::as_slice).collect();
        run_through(&troubles, &splits, &workers, &setup, |job, faults| {
            outlets.attach(keyed(job, &case, setup.pace, faults), &spec);
        })?;
        outlets.compare(&case, &spec)?;
    }
}
