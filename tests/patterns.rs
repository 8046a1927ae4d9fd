//! Patterns against an oracle that knows nothing but the definition of what matches: on any number of workers, in batches of any size, with and
//! without checkpoints and memory, and through crashes and other numbers of workers. And the boundaries, by hand.
//!
//! `MILLSTREAM_CASES=10000 cargo test --test patterns` looks longer than the default of 200 cases.

#[allow(dead_code)] // shared with other tests
mod oracle;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

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
        2 => Just(Place::NotNext),
        3 => Just(Place::NotFollowed),
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
        holds(&self.asks[step], item) && asked(self.asks[step].given, item, values().next_back(), sum, first)
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
    #![proptest_config(config(cases(200)))]

    #[test]
    fn matches_are_as_the_oracle_says((case, spec) in case_and_spec(), setups in setups()) {
        let outlets = Outlets::new();
        run_in(
            &setups,
            |job, pace| outlets.attach(keyed(job, &case, pace, &[]), &spec),
            |_| outlets.compare(&case, &spec),
        )?;
    }

    #[test]
    fn crashes_and_other_numbers_of_workers_change_nothing(
        (case, spec) in case_and_spec(),
        troubles in troubles(),
        workers in worker_counts(),
        setup in slow_setup(),
    ) {
        let outlets = Outlets::new();
        run_through(&troubles, &case.splits, &workers, &setup, |job, faults| {
            outlets.attach(keyed(job, &case, setup.pace, faults), &spec);
        })?;
        outlets.compare(&case, &spec)?;
    }
}

// ---- by hand ---------------------------------------------------------------------------------------------------------

/// A letter and the second at which it comes.
type Letter = (i64, char);

/// One letter a second; nothing at a space.
fn letters(text: &str) -> Vec<Letter> {
    (0..).zip(text.chars()).filter(|(_, letter)| *letter != ' ').collect()
}

/// Each match by the letters of its steps, and when it came out: `a0|b2 b3 @4`.
fn found(pattern: &Pattern<Letter>, letters: &[Letter]) -> Vec<String> {
    let (job, matches) = (Job::new("found"), Collected::new());
    job.source(from_vec(letters.to_vec()), Watermarks::monotonous(|(at, _): &Letter| EventTime::from_secs(*at)))
        .key_by(|_| ())
        .matches(pattern.clone())
        .sink(matches.sink());
    run(job).expect("finishes");
    let shown = |record: Record<Match<Letter>>| {
        let records = |records: &Vec<Letter>| {
            let each: Vec<String> = records.iter().map(|(at, letter)| format!("{letter}{at}")).collect();
            each.join(" ")
        };
        let steps: Vec<String> = record.value.steps.iter().map(|(_, taken)| records(taken)).collect();
        let open = if record.value.complete { "" } else { " and no more" };
        format!("{}{open} @{}", steps.join("|"), record.at.micros() / 1_000_000)
    };
    matches.take().into_iter().map(shown).collect()
}

fn is(letter: char) -> impl Fn(&Letter) -> bool + Send + Sync + 'static {
    move |(_, own)| *own == letter
}

fn a() -> Steps<Letter> {
    Pattern::first("a", is('a'))
}

fn secs(span: i64) -> EventSpan {
    EventSpan::secs(span)
}

#[track_caller]
fn expect<const N: usize>(pattern: &Pattern<Letter>, text: &str, expected: [&str; N]) {
    assert_eq!(found(pattern, &letters(text)), expected, "in {text:?}");
}

#[test]
fn next_skips_nothing_and_followed_by_does() {
    let next = a().next("b", is('b')).within(secs(10));
    expect(&next, "ab", ["a0|b1 @1"]);
    expect(&next, "axb", []);
    expect(&next, "aab", ["a1|b2 @2"]);
    // Nothing but records is between records.
    expect(&next, "a   b", ["a0|b4 @4"]);
    let followed = a().followed_by("b", is('b')).within(secs(10));
    expect(&followed, "axb", ["a0|b2 @2"]);
    expect(&followed, "abb", ["a0|b1 @1"]);
    expect(&Pattern::first("a", is('a')).within(secs(1)), "aba", ["a0 @0", "a2 @2"]);
}

#[test]
fn the_span_is_open_at_its_end() {
    let followed = a().followed_by("b", is('b')).within(secs(3));
    expect(&followed, "axxb", []);
    expect(&followed, "axb", ["a0|b2 @2"]);
    // The first is too old, the second is not.
    expect(&followed, "axab", ["a2|b3 @3"]);
    let last_moment = |us| {
        let items = one_split(&[(0, 0), (us, 1)]);
        let pattern = Pattern::first("0", |item: &Item| item.value == 0).next("1", |item| item.value == 1);
        let (job, matches) = (Job::new("moment"), Collected::new());
        let matching = job.source(Script::new(vec![items]), watermarks(0)).key_by(|item| item.key);
        matching.matches(pattern.within(secs(3))).sink(matches.sink());
        run(job).expect("finishes");
        matches.take().len()
    };
    assert_eq!((last_moment(2_999_999), last_moment(3_000_000)), (1, 0));
}

#[test]
fn records_of_one_instant_follow_one_another() {
    let pattern = a().next("b", is('b')).next("c", is('c')).within(EventSpan::micros(1));
    assert_eq!(found(&pattern, &[(7, 'a'), (7, 'b'), (7, 'c')]), ["a7|b7|c7 @7"]);
    assert_eq!(found(&pattern, &[(7, 'a'), (7, 'c'), (7, 'b')]), [""; 0]);
}

#[test]
fn a_step_takes_as_many_as_it_can() {
    let some = a().followed_by("b", is('b')).times(1..=2).followed_by("c", is('c')).within(secs(10));
    expect(&some, "abc", ["a0|b1|c2 @2"]);
    expect(&some, "abxbxc", ["a0|b1 b3|c5 @5"]);
    expect(&some, "abbbc", ["a0|b1 b2|c4 @4"]);
    expect(&some, "ac", []);
    // What fits both goes to the first of the two, and is not given back.
    let both = a().followed_by("b", |(_, own)| *own != 'a').one_or_more().next("c", is('c')).within(secs(10));
    expect(&both, "abc", []);
    let two = a().followed_by("b", |(_, own)| *own != 'a').times(2).next("c", is('c')).within(secs(10));
    expect(&two, "abcc", ["a0|b1 c2|c3 @3"]);
    // Repeated from the first step on: the first `a` takes the others.
    let many = a().times(2..).next("b", is('b')).within(secs(10));
    expect(&many, "aaxab", ["a0 a1 a3|b4 @4"]);
    expect(&many, "ab", []);
}

#[test]
fn consecutive_records_have_nothing_between_them() {
    let run = a().followed_by("b", is('b')).times(2).consecutive().within(secs(10));
    expect(&run, "axbb", ["a0|b2 b3 @3"]);
    expect(&run, "abxb", []);
    // `next` is where the first of them is.
    let loose = a().next("b", is('b')).times(2).within(secs(10));
    expect(&loose, "abxb", ["a0|b1 b3 @3"]);
    expect(&loose, "axbb", []);
}

#[test]
fn what_might_take_more_is_decided_when_it_cannot() {
    let all = a().followed_by("b", is('b')).one_or_more().within(secs(5));
    expect(&all, "abxb bb", ["a0|b1 b3 @5"]);
    let run = a().next("b", is('b')).one_or_more().consecutive().within(secs(5));
    expect(&run, "abbx", ["a0|b1 b2 @3"]);
    expect(&run, "abb", ["a0|b1 b2 @5"]);
    let at_most = a().next("b", is('b')).times(1..=2).within(secs(5));
    expect(&at_most, "abbb", ["a0|b1 b2 @2"]);
    let optional = a().next("b", is('b')).optional().within(secs(5));
    expect(&optional, "abaxa", ["a0|b1 @1", "a2| @3", "a4| @9"]);
}

#[test]
fn optional_steps_take_what_they_need_or_nothing() {
    let pattern = a().followed_by("b", is('b')).times(2).optional().followed_by("c", is('c')).within(secs(10));
    expect(&pattern, "axc", ["a0||c2 @2"]);
    expect(&pattern, "abbc", ["a0|b1 b2|c3 @3"]);
    // It has begun, and needs another.
    expect(&pattern, "abc", []);
    expect(&pattern, "abcbc", ["a0|b1 b3|c4 @4"]);
    let strict = a().next("b", is('b')).optional().next("c", is('c')).within(secs(10));
    expect(&strict, "acabc", ["a0||c1 @1", "a2|b3|c4 @4"]);
    expect(&strict, "axc", []);
}

#[test]
fn not_next_looks_at_one_record() {
    let pattern = a().not_next("x", is('x')).followed_by("b", is('b')).within(secs(10));
    expect(&pattern, "axb", []);
    expect(&pattern, "ayxb", ["a0||b3 @3"]);
    expect(&pattern, "ab", ["a0||b1 @1"]);
    let last = a().not_next("x", is('x')).within(secs(3));
    expect(&last, "ax", []);
    expect(&last, "ay", ["a0| @1"]);
    // There is none at all.
    expect(&last, "a", ["a0| @3"]);
}

#[test]
fn not_followed_by_looks_at_all_up_to_the_next_step() {
    let pattern = a().not_followed_by("x", is('x')).followed_by("b", is('b')).within(secs(10));
    expect(&pattern, "ayxb", []);
    expect(&pattern, "ayb", ["a0||b2 @2"]);
    expect(&pattern, "axab", ["a2||b3 @3"]);
    // The first record of the step behind it must not be one either.
    let same = a().not_followed_by("x", is('b')).followed_by("b", |(_, own)| "bc".contains(*own)).within(secs(10));
    expect(&same, "abc", []);
    expect(&same, "ac", ["a0||c1 @1"]);
    // A step before it that may take more begins anew.
    let more = a()
        .times(1..=2)
        .not_followed_by("x", is('x'))
        .followed_by("b", is('b'))
        .within(secs(10))
        .overlapping();
    expect(&more, "axab", ["a0 a2||b3 @3", "a2||b3 @3"]);
    expect(&more, "aaxb", []);
}

#[test]
fn what_must_not_follow_is_decided_when_the_time_is_over() {
    let pattern = a().not_followed_by("b", is('b')).within(secs(3));
    expect(&pattern, "a", ["a0| @3"]);
    expect(&pattern, "axxb", ["a0| @3"]);
    expect(&pattern, "axb", []);
    expect(&pattern, "ax  x", ["a0| @3"]);
    let every = pattern.overlapping();
    expect(&every, "aa", ["a0| @3", "a1| @4"]);
}

#[test]
fn after_a_match_the_search_goes_on_behind_it() {
    let twice = a().next("again", is('a')).within(secs(10));
    expect(&twice, "aaaaa", ["a0|a1 @1", "a2|a3 @3"]);
    expect(&twice.overlapping(), "aaaa", ["a0|a1 @1", "a1|a2 @2", "a2|a3 @3"]);
    // What is decided first counts, though another began before: the first attempt waits for a second `b`.
    let some = Pattern::first("a", |(_, own): &Letter| "ab".contains(*own)).followed_by("b", is('b')).times(2);
    let some = some.within(secs(10));
    expect(&some, "aabb", ["a0|b2 b3 @3"]);
    expect(&some.overlapping(), "aabb", ["a0|b2 b3 @3", "a1|b2 b3 @3"]);
    // Two that are decided at once: the second begins with the last record of the first.
    let run = a().one_or_more().consecutive().within(secs(10));
    expect(&run, "aaxa", ["a0 a1 @2", "a3 @13"]);
    expect(&run.overlapping(), "aax", ["a0 a1 @2", "a1 @2"]);
    // What began behind the last record of a match goes on, though the match was decided later.
    let quiet = a().not_followed_by("x", is('x')).within(secs(3));
    expect(&quiet, "aa", ["a0| @3", "a1| @4"]);
}

#[test]
fn conditions_may_see_what_was_matched() {
    let rising = Pattern::first("first", |_: &Letter| true)
        .next("higher", |_| true)
        .given(|(_, own), before| before.last().is_some_and(|(_, last)| own > last))
        .one_or_more()
        .consecutive()
        .next("below", |_| true)
        .given(|(_, own), before| before.first().is_some_and(|(_, first)| own < first))
        .within(secs(10));
    expect(&rising, "dfgc", ["d0|f1 g2|c3 @3"]);
    expect(&rising, "dgf", []);
    let back = Pattern::first("one", |_: &Letter| true)
        .followed_by("same", |_| true)
        .given(|(_, own), before| before.of("one").any(|(_, one)| own == one))
        .within(secs(10));
    expect(&back, "xyzy", ["y1|y3 @3"]);
}

#[test]
fn what_has_timed_out_comes_where_it_is_asked_for() {
    let pattern = a().followed_by("b", is('b')).followed_by("c", is('c')).within(secs(3)).with_timed_out();
    expect(&pattern, "abx", ["a0|b1| and no more @3"]);
    expect(&pattern, "abc", ["a0|b1|c2 @2"]);
    expect(&pattern, "aabc", ["a0|b2| and no more @3", "a1|b2|c3 @3"]);
    let twice = a().times(2).within(secs(3)).with_timed_out();
    // Given up after the match, so it does not time out.
    expect(&twice, "aaxxx", ["a0 a1 @1"]);
    expect(&twice.overlapping(), "aaxxx", ["a0 a1 @1", "a1 and no more @4"]);
}

/// What is said of a match is so.
#[test]
fn a_match_has_its_records_by_name_and_number() {
    let (job, matches) = (Job::new("found"), Collected::new());
    let pattern = a().followed_by("b", is('b')).times(2).not_next("c", is('c')).within(secs(9));
    job.source(from_vec(letters("abxb")), Watermarks::monotonous(|(at, _): &Letter| EventTime::from_secs(*at)))
        .key_by(|_| ())
        .matches(pattern)
        .sink(matches.sink());
    run(job).expect("finishes");
    let found = matches.take().pop().expect("one").value;
    assert_eq!((found.one("a"), found.of("b"), found.of("c")), (&(0, 'a'), &[(1, 'b'), (3, 'b')][..], &[][..]));
    assert_eq!((found.step(0), found.step(2)), (&[(0, 'a')][..], &[][..]));
    assert_eq!(found.records().map(|(_, letter)| letter).collect::<String>(), "abb");
    assert_eq!((found.complete, found.since, found.until), (true, EventTime::EPOCH, EventTime::from_secs(3)));
}

// ---- what makes no sense, and what is too much -----------------------------------------------------------------------

macro_rules! refused {
    ($($name:ident: $pattern:expr, $message:literal;)*) => {
        $(#[test]
        #[should_panic(expected = $message)]
        fn $name() {
            let _ = $pattern;
        })*
    };
}

refused! {
    no_times_are_refused: a().next("b", is('b')).times(0), "step `b` is to come 0 times";
    times_from_0_are_refused: a().times(0..), "step `a` is to come 0 times";
    no_range_of_times_is_refused: a().times(RangeInclusive::new(3, 2)), "at least 3 times and at most 2 times";
    times_are_said_once: a().times(3).one_or_more(), "how often step `a` comes is said twice";
    the_first_step_is_not_optional: a().optional(), "the first step of a pattern is where it begins";
    what_must_not_be_there_is_not_repeated: a().not_next("b", is('b')).one_or_more(), "step `b` must not be there";
    what_must_not_be_there_is_not_optional: a().not_next("b", is('b')).optional(), "step `b` must not be there";
    names_are_different: a().next("a", is('b')), "two steps of a pattern are called `a`";
    one_condition_on_the_others: a().given(|_, _| true).given(|_, _| true), "two conditions on what was matched";
    no_time_is_refused: a().within(EventSpan::ZERO), "must be within some time";
    a_limit_of_nothing_is_refused: a().within(secs(1)).limit(0), "a limit of 0";
}

#[test]
fn a_key_with_too_many_attempts_fails_the_job() {
    let run_with = |limit: usize| {
        let job = Job::new("many");
        let pattern = a().followed_by("b", is('b')).within(secs(100)).limit(limit);
        job.source(from_vec(letters("aaaaa")), Watermarks::monotonous(|(at, _): &Letter| EventTime::from_secs(*at)))
            .key_by(|_| "the key".to_string())
            .matches(pattern)
            .sink(for_each(|_| ()));
        run(job)
    };
    assert!(run_with(5).is_ok());
    let error = run_with(4).expect_err("too many");
    assert_eq!(error.kind(), ErrorKind::User);
    let error = error.to_string();
    assert!(error.contains("more than 4 attempts") && error.contains("the key") && error.contains("limit"), "{error}");
}

// ---- what is kept ----------------------------------------------------------------------------------------------------

/// Two records per key, 1 ms apart: of the keys some never begin, some cannot match any more after the second, and some may.
fn pairs_of_records() -> Vec<Item> {
    let value = |n: u64| match (n / 2 % 3, n % 2) {
        (0, _) => 9,
        (_, 0) => 0,
        (1, _) => 1,
        _ => 9,
    };
    (0..12_000)
        .map(|n| Item { split: 0, number: n, at: n as i64 * 1_000, key: n / 2, value: value(n) })
        .collect()
}

fn not_one_but_two() -> Steps<Item> {
    Pattern::first("0", |item: &Item| item.value == 0)
        .not_next("1", |item| item.value == 1)
        .followed_by("2", |item| item.value == 2)
}

fn entries(dir: &tempfile::TempDir) -> u64 {
    let store = millstream::state::store::CheckpointStore::new(dir.path());
    let newest = store.epochs().expect("lists").pop().expect("a checkpoint");
    store.manifest(newest).expect("reads").operators[0].entries
}

#[test]
fn keys_that_can_never_match_again_are_not_kept() {
    let dir = tempdir();
    let describe = |pattern: Pattern<Item>, pace| {
        let job = Job::new("kept").workers(2).checkpoint_dir(dir.path());
        let (matches, late) = job
            .source(Script::new(vec![pairs_of_records()]).pace(pace), watermarks(0))
            .key_by(|item| item.key)
            .matches_with_late(pattern);
        matches.name("pairs").sink(for_each(|_| panic!("there is no `2`")));
        late.sink(for_each(|_| panic!("none is late")));
        job
    };
    let pattern = || not_one_but_two().within(EventSpan::millis(300));
    let handle = describe(pattern(), Pace::Slow(10)).start().expect("starts");
    while handle.status().watermark() < EventTime::from_millis(6_000) {
        std::thread::park_timeout(std::time::Duration::from_micros(100));
    }
    handle.stop(StopMode::WithCheckpoint);
    oracle::finish(handle).expect("stops");
    // Of 150 keys within 300 ms every third may still match; each has a timer, or shares one bucket of them.
    let kept = entries(&dir);
    assert!((80..150).contains(&kept), "{kept} entries");

    // Another pattern does not go on from there.
    for other in [
        not_one_but_two().within(EventSpan::millis(200)),
        pattern().overlapping(),
        not_one_but_two().next("3", |_| true).within(EventSpan::millis(300)),
    ] {
        let error = run(describe(other, Pace::Full)).expect_err("is refused").to_string();
        assert!(error.contains("pairs") && error.contains("followed by `2`"), "{error}");
    }
    run(describe(pattern().limit(7), Pace::Full)).expect("goes on");
    let left = entries(&dir);
    assert!(left < 10, "{left} entries");
}

/// One key, whose attempts come and go: what they have taken goes with them.
#[test]
fn records_go_with_the_last_attempt_that_has_taken_them() {
    let items = (0..20_000).map(|n| Item { split: 0, number: n, at: n as i64 * 1_000, key: 0, value: n as i64 % 4 });
    let case = Case { splits: vec![items.collect()], shape: oracle::Shape { size: 1, slide: 1, offset: 0 }, delay: 0 };
    let dir = tempdir();
    let describe = |pace| {
        let job = Job::new("goes").workers(1).checkpoint_dir(dir.path());
        let pattern = Pattern::first("0", |item: &Item| item.value == 0)
            .followed_by("1", |item| item.value == 1)
            .one_or_more()
            .followed_by("7", |item| item.value == 7)
            .within(EventSpan::millis(100));
        keyed(&job, &case, pace, &[])
            .matches(pattern)
            .name("goes")
            .sink(for_each(|_| panic!("there is no `7`")));
        job
    };
    let handle = describe(Pace::Slow(10)).start().expect("starts");
    while handle.status().watermark() < EventTime::from_millis(5_000) {
        std::thread::park_timeout(std::time::Duration::from_micros(100));
    }
    handle.stop(StopMode::WithCheckpoint);
    oracle::finish(handle).expect("stops");
    let job = describe(Pace::Full);
    let checkpoint = job.checkpoint(StartFrom::Newest).expect("opens");
    let bytes: u64 = checkpoint.sizes("goes").expect("sizes").iter().map(|group| group.bytes).sum();
    drop(checkpoint);
    // 25 attempts with about 100 bytes each, and 50 records with 70, of thousands that there were.
    assert!((2_000..7_500).contains(&bytes), "{bytes} bytes");
    run(job).expect("finishes");
}
