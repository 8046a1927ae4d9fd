//! Random scripts in every mode of the test kit: input in any order from several splits, late records, checkpoints, crashes and other
//! numbers of workers between them. Whatever an operator is, what comes out at every step is the same in all modes; and where a few lines can
//! say what that is, it is what they say.
//!
//! The suites named after operators look at each against its oracle with longer input and any number of workers; here jobs are short, start again
//! after every step, and are compared step by step.
//!
//! Each case starts some forty jobs, so there are a quarter as many as elsewhere: `MILLSTREAM_CASES=10000 cargo test --features testing --test
//! modes` has 2,500 instead of 50.

#[allow(dead_code)] // shared with other tests
mod oracle;

use std::collections::BTreeMap;
use std::time::Duration;

use millstream::testing::*;
use millstream::{prelude::*, window};
use oracle::cases;
use oracle::trial::config;
use proptest::prelude::*;

/// A key and a value.
type Event = (u64, i64);

/// Of every input, where it does not matter which of them is read first.
const SPLITS: usize = 2;

fn secs(seconds: i64) -> EventSpan {
    EventSpan::secs(seconds)
}

fn key(event: &Event) -> u64 {
    event.0
}

fn value(event: &Event) -> i64 {
    event.1
}

// ---- random scripts --------------------------------------------------------------------------------------------------

/// What happens to a job.
#[derive(Clone, Debug)]
enum Act {
    Records { input: usize, split: usize, records: Vec<(i64, Event)> },
    Watermark { input: usize, split: Option<usize>, at: i64 },
    End { input: usize, split: usize },
    Checkpoint,
    Crash,
    Restart,
    Rescale(usize),
    Clock(u64),
}

/// A few acts of so many inputs with so many splits. Event time goes on, with records on both sides of it.
fn scripts(inputs: usize, splits: usize) -> impl Strategy<Value = Vec<Act>> {
    let place = (0..inputs, 0..splits);
    let act = prop_oneof![
        8 => records(&place),
        3 => (0..inputs, -4i64..4).prop_map(|(input, at)| Act::Watermark { input, split: None, at }),
        2 => watermark(&place),
        1 => end(&place),
        1 => Just(Act::Checkpoint),
        1 => Just(Act::Crash),
        1 => Just(Act::Restart),
        1 => (1usize..4).prop_map(Act::Rescale),
        1 => (1u64..8).prop_map(Act::Clock),
    ];
    let acts = prop::collection::vec((0i64..9, act), 1..10);
    acts.prop_map(move |acts| in_time(acts, inputs, splits))
}

/// As [`scripts`], longer and without crashes; splits go on one by one, or do not while the clock does.
fn scripts_with_pauses(inputs: usize, splits: usize) -> impl Strategy<Value = Vec<Act>> {
    let place = (0..inputs, 0..splits);
    let act = prop_oneof![
        8 => records(&place),
        10 => watermark(&place),
        6 => (1u64..4).prop_map(Act::Clock),
        1 => end(&place),
        1 => Just(Act::Checkpoint),
        1 => Just(Act::Restart),
        1 => (1usize..5).prop_map(Act::Rescale),
    ];
    let acts = prop::collection::vec((0i64..3, act), 5..30);
    acts.prop_map(move |acts| {
        // A split gives something right before its end.
        let acts = acts.into_iter().flat_map(|(on, act)| match act {
            Act::End { input, split } => vec![(on, Act::Watermark { input, split: Some(split), at: 4 }), (0, act)],
            act => vec![(on, act)],
        });
        in_time(acts.collect(), inputs, splits)
    })
}

/// Of an input and a split.
type Places = (std::ops::Range<usize>, std::ops::Range<usize>);

fn records(place: &Places) -> impl Strategy<Value = Act> + use<> {
    let record = (-8i64..8, (0u64..3, -3i64..9));
    (place.clone(), prop::collection::vec(record, 1..4)).prop_map(|((input, split), records)| Act::Records {
        input,
        split,
        records,
    })
}

fn watermark(place: &Places) -> impl Strategy<Value = Act> + use<> {
    (place.clone(), -4i64..4).prop_map(|((input, split), at)| Act::Watermark { input, split: Some(split), at })
}

fn end(place: &Places) -> impl Strategy<Value = Act> + use<> {
    place.clone().prop_map(|(input, split)| Act::End { input, split })
}

/// Acts, of which each says how far event time has gone on before it.
fn in_time(acts: Vec<(i64, Act)>, inputs: usize, splits: usize) -> Vec<Act> {
    let mut clock = 0;
    let mut ended = vec![vec![false; splits]; inputs];
    let timed = acts.into_iter().filter_map(|(on, mut act)| {
        clock += on;
        // A split that has ended gives nothing more.
        match &mut act {
            Act::Records { input, split, .. } | Act::Watermark { input, split: Some(split), .. }
                if ended[*input][*split] =>
            {
                return None;
            }
            Act::Records { records, .. } => records.iter_mut().for_each(|(at, _)| *at += clock),
            Act::Watermark { at, .. } => *at += clock,
            Act::End { input, split } if std::mem::replace(&mut ended[*input][*split], true) => return None,
            Act::End { .. } | Act::Checkpoint | Act::Crash | Act::Restart | Act::Rescale(_) | Act::Clock(_) => {}
        }
        Some(act)
    });
    timed.collect()
}

fn step(act: &Act, inputs: &[&Input<Event>]) -> Step {
    match act {
        Act::Records { input, split, records } => inputs[*input].split(*split).all(records.iter().copied()),
        Act::Watermark { input, split: None, at } => inputs[*input].watermark(*at),
        Act::Watermark { input, split: Some(split), at } => inputs[*input].split(*split).watermark(*at),
        Act::End { input, split } => inputs[*input].split(*split).end(),
        Act::Checkpoint => checkpoint(),
        Act::Crash => crash(),
        Act::Restart => restart(),
        Act::Rescale(workers) => rescale(*workers),
        Act::Clock(seconds) => clock(Duration::from_secs(*seconds)),
    }
}

/// Takes the acts in all modes, ends the input, and then expects what is expected.
fn in_all_modes(
    kit: &Kit<'_>,
    acts: &[Act],
    inputs: &[&Input<Event>],
    expected: impl IntoIterator<Item = Step>,
) -> Result<(), TestCaseError> {
    let steps = acts.iter().map(|act| step(act, inputs));
    let ends = inputs.iter().map(|input| input.end());
    passes(kit, steps.chain(ends).chain(expected))
}

fn passes(kit: &Kit<'_>, steps: impl IntoIterator<Item = Step>) -> Result<(), TestCaseError> {
    kit.try_in_all_modes(steps).map_err(|failure| TestCaseError::fail(failure.to_string()))
}

/// A record, and the watermark of its split when it is given.
#[derive(Clone, Copy)]
struct Judged {
    split: usize,
    at: i64,
    event: Event,
    watermark: i64,
}

impl Judged {
    fn all(split: usize, records: &[(i64, Event)], watermark: i64) -> impl Iterator<Item = Judged> {
        records.iter().map(move |(at, event)| Judged { split, at: *at, event: *event, watermark })
    }

    fn is_behind(&self) -> bool {
        self.at < self.watermark
    }
}

/// The records of an input in the order in which they are given.
fn judged(acts: &[Act], of: usize) -> Vec<Judged> {
    let mut watermarks = [i64::MIN; SPLITS];
    let mut judged = Vec::new();
    for act in acts {
        match act {
            Act::Records { input, split, records } if *input == of => {
                judged.extend(Judged::all(*split, records, watermarks[*split]));
            }
            Act::Watermark { input, split, at } if *input == of => {
                let splits = split.map_or(0..SPLITS, |split| split..split + 1);
                splits.for_each(|split| watermarks[split] = watermarks[split].max(*at));
            }
            _ => {}
        }
    }
    judged
}

/// A stream among others: its values as text, behind a name.
fn told<T: Data + std::fmt::Debug>(name: &'static str, stream: Stream<T>) -> Stream<String> {
    stream.map(move |value| format!("{name}: {value:?}"))
}

fn all(streams: impl IntoIterator<Item = Stream<String>>) -> Stream<String> {
    let mut streams = streams.into_iter();
    let first = streams.next().expect("there is one");
    first.union(streams)
}

// ---- windows ---------------------------------------------------------------------------------------------------------

type Sums = Vec<(u64, window::Window, i64)>;
/// A sum and a maximum.
type Both = (u64, window::Window, (i64, i64));

/// The sums of windows of `size` that begin every `slide`, and the records that are late for all of theirs.
fn naive_sums(judged: Vec<Judged>, size: i64, slide: i64) -> (Sums, Vec<Event>) {
    let (mut sums, mut late) = (BTreeMap::new(), Vec::new());
    for Judged { at, event, watermark, .. } in judged {
        let starts = (at - size + 1..=at).filter(|start| start.rem_euclid(slide) == 0);
        let open: Vec<i64> = starts.filter(|start| start + size > watermark).collect();
        open.iter().for_each(|start| *sums.entry((event.0, *start)).or_insert(0) += event.1);
        late.extend(open.is_empty().then_some(event));
    }
    let sums = sums.into_iter().map(|((key, start), sum)| (key, window(start, start + size), sum));
    (sums.collect(), late)
}

// ---- splits that are idle --------------------------------------------------------------------------------------------

/// What is known of a split of any input.
#[derive(Clone)]
struct Known {
    watermark: i64,
    /// Since when it has had nothing, by the clock.
    quiet: u64,
    idle: bool,
    ended: bool,
}

/// What splits do to event time that are idle after some seconds: `idle_after` is one for each input.
struct Idling {
    idle_after: Vec<Option<u64>>,
    splits: Vec<Vec<Known>>,
    clock: u64,
    /// How far event time has come, in each input.
    reached: Vec<i64>,
    judged: Vec<Judged>,
}

impl Idling {
    fn new(splits: usize, idle_after: Vec<Option<u64>>) -> Self {
        let known = Known { watermark: i64::MIN, quiet: 0, idle: false, ended: false };
        let splits = vec![vec![known; splits]; idle_after.len()];
        let reached = vec![i64::MIN; idle_after.len()];
        Idling { idle_after, splits, clock: 0, reached, judged: Vec::new() }
    }

    /// A split gives something.
    fn wakes(&mut self, input: usize, split: usize) -> &mut Known {
        let known = &mut self.splits[input][split];
        if std::mem::take(&mut known.idle) {
            known.watermark = known.watermark.max(self.reached[input]);
        }
        known.quiet = self.clock;
        known
    }

    fn take(&mut self, act: &Act) {
        match act {
            Act::Records { input, split, records } => {
                let watermark = self.wakes(*input, *split).watermark;
                self.judged.extend(Judged::all(*split, records, watermark));
            }
            Act::Watermark { input, split, at } => {
                for split in split.map_or(0..self.splits[*input].len(), |split| split..split + 1) {
                    if !self.splits[*input][split].ended {
                        let known = self.wakes(*input, split);
                        known.watermark = known.watermark.max(*at);
                    }
                }
            }
            Act::End { input, split } => {
                let known = self.wakes(*input, *split);
                known.ended = true;
            }
            Act::Clock(seconds) => {
                self.clock += seconds;
                for (splits, idle_after) in self.splits.iter_mut().zip(&self.idle_after) {
                    let Some(span) = idle_after else { continue };
                    let open = splits.iter_mut().filter(|known| !known.ended);
                    open.for_each(|known| known.idle |= known.quiet + span <= self.clock);
                }
            }
            // As if what is idle had something then.
            Act::Restart | Act::Rescale(_) => {
                for input in 0..self.splits.len() {
                    for split in 0..self.splits[input].len() {
                        self.wakes(input, split);
                    }
                }
            }
            Act::Checkpoint | Act::Crash => {}
        }
        let there = |input: usize| self.splits[input].iter().filter(|known| !known.ended);
        let active = |input| there(input).filter(|known| !known.idle).map(|known| known.watermark).min();
        let inputs = 0..self.splits.len();
        let furthest = |input: usize| self.splits[input].iter().map(|known| known.watermark).max();
        // An input that is idle goes as far as any of its splits has come, and as the others.
        let least = inputs.clone().filter_map(active).min();
        let others = least.or_else(|| inputs.clone().filter_map(furthest).max());
        let reached = inputs.map(|input| match there(input).next() {
            Some(_) => active(input).or_else(|| furthest(input).max(others)).unwrap_or(i64::MAX),
            None => i64::MAX,
        });
        let reached = reached.zip(&self.reached).map(|(now, before)| now.max(*before)).collect();
        self.reached = reached;
    }

    fn watermark(&self) -> EventTime {
        match self.reached.iter().copied().min().unwrap_or(i64::MAX) {
            i64::MIN => EventTime::MIN,
            i64::MAX => EventTime::MAX,
            seconds => EventTime::from_micros(seconds * 1_000_000),
        }
    }
}

// ---- keyed state and timers ------------------------------------------------------------------------------------------

/// Tells how much came of a key within five seconds, and of every third record; forgets a key after 20 seconds.
#[derive(Clone)]
struct Bursts;

impl Process<u64, Event> for Bursts {
    type State = (i64, u32);
    type Out = (u64, i64, u32);

    fn rank(&self, event: &Event) -> u8 {
        u8::from(event.1 < 0)
    }

    fn keep_for(&self) -> Option<EventSpan> {
        Some(secs(20))
    }

    fn on_record(
        &mut self,
        cx: &mut ProcessContext<'_, u64, (i64, u32), (u64, i64, u32)>,
        event: &Event,
    ) -> Result<(), Error> {
        let (sum, count) = cx.state().unwrap_or_default();
        *cx.state() = Some((sum + event.1, count + 1));
        if let Some(timer) = cx.next_timer() {
            if event.1 == 0 {
                cx.replace_timer(timer, cx.now() + secs(5));
            }
        } else {
            cx.set_timer(cx.now() + secs(5));
        }
        if count % 3 == 2 {
            cx.emit((*cx.key(), sum + event.1, count + 1));
        }
        Ok(())
    }

    fn on_timer(
        &mut self,
        cx: &mut ProcessContext<'_, u64, (i64, u32), (u64, i64, u32)>,
        _: EventTime,
    ) -> Result<(), Error> {
        let (sum, count) = cx.state().unwrap_or_default();
        *cx.state() = Some((0, count));
        cx.emit((*cx.key(), sum, count));
        Ok(())
    }
}

/// Tells what came of a key within five seconds by the clock; a record of 0 has them begin again.
#[derive(Clone)]
struct Flush;

impl Process<u64, Event> for Flush {
    type State = i64;
    type Out = (u64, i64);

    const USES_CLOCK: bool = true;

    fn on_record(&mut self, cx: &mut ProcessContext<'_, u64, i64, (u64, i64)>, event: &Event) -> Result<(), Error> {
        let at = cx.processing_time() + Duration::from_secs(5);
        match cx.next_processing_timer() {
            None => cx.set_processing_timer(at),
            Some(timer) if event.1 == 0 => drop(cx.replace_processing_timer(timer, at)),
            Some(_) => {}
        }
        *cx.state().get_or_insert(0) += event.1;
        Ok(())
    }

    fn on_processing_timer(
        &mut self,
        cx: &mut ProcessContext<'_, u64, i64, (u64, i64)>,
        _: ProcessingTime,
    ) -> Result<(), Error> {
        if let Some(sum) = cx.state().take() {
            cx.emit((*cx.key(), sum));
        }
        Ok(())
    }
}

/// How often a value was broadcast, and how many records of a key were below the last.
#[derive(Clone)]
struct Below;

impl BroadcastProcess<u64, Event, Event> for Below {
    type Shared = (usize, i64);
    type State = usize;
    type Out = (Event, usize, usize);

    fn on_broadcast(&mut self, shared: &mut (usize, i64), new: &Event, _: EventTime) -> Result<(), Error> {
        *shared = (shared.0 + 1, new.1);
        Ok(())
    }

    fn on_record(
        &mut self,
        cx: &mut ProcessContext<'_, u64, usize, (Event, usize, usize)>,
        shared: &(usize, i64),
        event: &Event,
    ) -> Result<(), Error> {
        let below = cx.state().unwrap_or(0) + usize::from(event.1 < shared.1);
        *cx.state() = (below > 0).then_some(below);
        cx.emit((*event, shared.0, below));
        Ok(())
    }
}

/// The value of the record of the first stream, plus the last of the second before it.
#[derive(Clone)]
struct Plus;

impl Process<u64, Either<Event, Event>> for Plus {
    type State = i64;
    type Out = (u64, i64);

    fn on_record(
        &mut self,
        cx: &mut ProcessContext<'_, u64, i64, (u64, i64)>,
        event: &Either<Event, Event>,
    ) -> Result<(), Error> {
        match event {
            Either::First(event) => {
                let sum = cx.state().unwrap_or(0) + event.1;
                cx.emit((event.0, sum));
            }
            Either::Second(event) => *cx.state() = Some(event.1),
        }
        Ok(())
    }
}

// ---- tables ----------------------------------------------------------------------------------------------------------

/// The change that a record is: rows come, two at once, and go.
fn row(event: Event) -> Delta<u64, i64> {
    (event.0, event.1.rem_euclid(4), if event.1 < 0 { -1 } else { 2 })
}

/// The row that a key has from a record on, if any.
fn home(event: &Event) -> Option<i64> {
    (event.1 > 0).then_some(event.1 % 3)
}

/// What the changes of a table come to in the end.
fn come_to(table: Table<u64, i64>) -> Stream<Delta<u64, i64>> {
    let changes = table.changes().key_by(|(key, row, _)| (*key, *row)).window(Global);
    let sums = changes.aggregate(Sum::of(|(.., by): &Delta<u64, i64>| *by));
    sums.filter(|(.., by)| *by != 0).map(|((key, row), _, by)| (key, row, by))
}

// ---- the properties --------------------------------------------------------------------------------------------------

proptest! {
    #![proptest_config(config(cases(50)))]

    #[test]
    fn windows(acts in scripts(1, SPLITS)) {
        let (kit, input, (tumbling, late, _)) = Kit::of(|input: Stream<Event>| {
            let keyed = input.key_by(key);
            let (tumbling, late) =
                keyed.clone().window(Tumbling::of(secs(10))).aggregate_with_late(Sum::of(value));
            let sliding = keyed.clone().window(Sliding::of(secs(9), secs(3)));
            let (sliding, late_for_sliding) = sliding.aggregate_with_late((Sum::of(value), Max::of(value)));
            let several = Several::of([Tumbling::of(secs(4)), Tumbling::of(secs(6))]).and([Sliding::of(secs(8), secs(2))]);
            let (several, late_for_several) = keyed.clone().window(several).aggregate_with_late(Max::of(value));
            let sessions = keyed.clone().window(Session::with_gap(secs(4)));
            let (sessions, late_for_sessions) = sessions.aggregate_with_late((Count, First::of(value)));
            let own_gap = Session::with_gap_of(|event: &Event| secs(event.1 + 4));
            let own_gap = keyed.clone().window(own_gap).aggregate(Sum::of(value));
            let counted = keyed.clone().sliding_count_window(3, 2).aggregate(List::of(value));
            let highest = keyed.window(Tumbling::of(secs(7))).aggregate(Top::of(2, value));
            let of_sums = sliding.clone().key_by(|(_, window, _)| window.start);
            let of_sums = of_sums.window(Tumbling::of(secs(3))).aggregate(Mean::of(|(_, _, (sum, _)): &Both| *sum));
            let others = all([
                told("sliding", sliding),
                told("late for sliding", late_for_sliding),
                told("several", several),
                told("late for several", late_for_several),
                told("sessions", sessions),
                told("late for sessions", late_for_sessions),
                told("sessions with gaps of records", own_gap),
                told("counted", counted),
                told("highest", highest),
                told("means of sums", of_sums),
            ]);
            (tumbling, late, others)
        });
        let input = input.with_splits(SPLITS);
        let (sums, too_late) = naive_sums(judged(&acts, 0), 10, 10);
        in_all_modes(&kit, &acts, &[&input], [tumbling.expect(sums), late.expect(too_late)])?;
    }

    /// On any number of workers a split that is idle holds nobody back, one that comes back takes over how far all have come, and so does one that
    /// was idle when the job stopped. There are no crashes: until a split is idle again after one, event time may stand where it was before.
    #[test]
    fn splits_that_are_idle(
        acts in scripts_with_pauses(2, 4),
        idle_after in prop::collection::vec(prop::option::weighted(0.9, 1u64..4), 2),
        workers in 1usize..5,
    ) {
        let (kit, inputs, (sums, late)) = Kit::of(|(one, other): (Stream<Event>, Stream<Event>)| {
            one.union([other]).key_by(key).window(Tumbling::of(secs(3))).aggregate_with_late(Sum::of(value))
        });
        let inputs: [Input<Event>; 2] = inputs.into();
        let inputs: Vec<_> = inputs.into_iter().zip(&idle_after).map(|(input, idle_after)| {
            let input = input.with_splits(4);
            match idle_after {
                Some(span) => input.idle_after(Duration::from_secs(*span)),
                None => input,
            }
        }).collect();
        let mut idling = Idling::new(4, idle_after);
        let mut steps = vec![rescale(workers)];
        for (place, act) in acts.iter().enumerate() {
            idling.take(act);
            steps.push(step(act, &[&inputs[0], &inputs[1]]));
            // What a split gives last may come together with its end.
            let ends = matches!((act, acts.get(place + 1)), (
                Act::Watermark { input, split: Some(split), .. } | Act::Records { input, split, .. },
                Some(Act::End { input: of, split: ended }),
            ) if (input, split) == (of, ended));
            if !ends {
                steps.push(expect_watermark(idling.watermark()));
            }
        }
        let (expected, too_late) = naive_sums(idling.judged, 3, 3);
        steps.extend(inputs.iter().map(Input::end));
        steps.extend([sums.expect(expected), late.expect(too_late)]);
        // After a start a split is not idle until it has been quiet for as long again.
        let restarted = [Mode::Restarted, Mode::Rescaled, Mode::Crashed, Mode::LittleMemory];
        passes(&kit.except(restarted), steps)?;
    }

    /// How many results there are of a window depends on what is read together: so there is one split, and no batch.
    #[test]
    fn windows_with_several_results(acts in scripts(1, 1)) {
        let (kit, input, _) = Kit::of(|input: Stream<Event>| {
            let keyed = input.key_by(key);
            let windows = keyed.clone().window(Tumbling::of(secs(10))).early(window::Early::count(2));
            let windows = windows.allowed_lateness(secs(5)).retracting();
            let (updates, late) = windows.aggregate_with_late(Sum::of(value));
            let sliding = keyed.clone().window(Sliding::of(secs(9), secs(3))).early(window::Early::every(secs(2)));
            let sliding = sliding.discarding().aggregate(Max::of(value));
            let sessions = keyed.clone().window(Session::with_gap(secs(4))).allowed_lateness(secs(6));
            let sessions = sessions.retracting().aggregate(Count);
            all([
                told("updates", updates),
                told("late", late),
                told("sliding", sliding),
                told("sessions", sessions),
                told("bursts as they come", keyed.process(Bursts)),
            ])
        });
        in_all_modes(&kit.except([Mode::Batch, Mode::Workers]), &acts, &[&input], [])?;
    }

    #[test]
    fn timers_by_the_clock(acts in scripts(1, 1)) {
        let (kit, input, _) = Kit::of(|input: Stream<Event>| {
            let keyed = input.key_by(key);
            let windows = keyed.clone().window(Tumbling::of(secs(10))).early(window::Early::after(Duration::from_secs(5)));
            let sessions = keyed.clone().window(Session::with_gap(secs(4)));
            let sessions = sessions.early(window::Early::after(Duration::from_secs(3))).discarding();
            all([
                told("windows", windows.retracting().aggregate(Sum::of(value))),
                told("sessions", sessions.aggregate(Count)),
                told("flushed", keyed.process(Flush)),
            ])
        });
        in_all_modes(&kit, &acts, &[&input], [])?;
    }

    #[test]
    fn state_and_timers(acts in scripts(2, SPLITS)) {
        let (kit, (input, rules), _) = Kit::of(|(input, rules): (Stream<Event>, Stream<Event>)| {
            let keyed = input.key_by(key);
            let (bursts, late) = keyed.clone().process_in_order_with_late(Bursts);
            let (once, late_for_once) = keyed.clone().deduplicate_with_late(secs(6));
            let (top, late_for_top) = keyed.clone().top_with_late(2, value);
            let (recent, _) = keyed.clone().top_within(secs(7), 1, value);
            let up_and_down = Pattern::first("up", |event: &Event| event.1 > 3)
                .times(1..=2)
                .followed_by("down", |event| event.1 < 2)
                .not_next("zero", |event| event.1 == 0)
                .within(secs(12))
                .with_timed_out();
            let (matches, late_for_matches) = keyed.clone().matches_with_late(up_and_down);
            let matches = matches.map(|found| (found.complete, found.records().copied().collect::<Vec<_>>()));
            let both = keyed.with_broadcast(rules.broadcast());
            let (below, late_for_below) = both.process_in_order_with_late(Below);
            all([
                told("bursts", bursts),
                told("late", late),
                told("once", once),
                told("late for once", late_for_once),
                told("top", top),
                told("late for top", late_for_top),
                told("recent", recent),
                told("matches", matches),
                told("late for matches", late_for_matches),
                told("below", below),
                told("late for below", late_for_below),
            ])
        });
        let (input, rules) = (input.with_splits(SPLITS), rules.with_splits(SPLITS));
        in_all_modes(&kit, &acts, &[&input, &rules], [])?;
    }

    #[test]
    fn joins(acts in scripts(2, SPLITS)) {
        let (kit, (ones, twos), (pairs, late, _)) = Kit::of(|(ones, twos): (Stream<Event>, Stream<Event>)| {
            let ask = |keys: &[u64]| Ok::<_, Error>(keys.iter().map(|key| (key % 2 == 0).then_some(key * 10)).collect());
            let lookup = Lookup::by(key, ask).threads(1).cache(2, Duration::from_secs(3));
            let called = Calls::to(|(found, tens): &(Event, Option<u64>)| Ok::<_, Error>((tens.unwrap_or(0), found.1)));
            let looked_up = ones.clone().look_up(lookup).left().call(called.threads(2).ordered());
            let (ones, twos) = (ones.key_by(key), twos.key_by(key));
            let (pairs, late) = ones.clone().interval_join_with_late(twos.clone(), secs(3), secs(5));
            let versions = ones.clone().temporal_join(twos.clone()).valid_for(secs(15)).left();
            let windows = ones.clone().connect(twos.clone()).window(Tumbling::of(secs(10))).cogroup().full_join();
            let sessions = ones.clone().connect(twos.clone()).window(Session::with_gap(secs(3))).cogroup().left_join();
            let behind_calls = looked_up.clone().key_by(|(tens, _)| *tens).window(Tumbling::of(secs(5)));
            let others = all([
                told("looked up", looked_up),
                told("behind calls", behind_calls.aggregate(Count)),
                told("versions", versions),
                told("windows", windows),
                told("sessions", sessions),
                told("sums", ones.connect(twos).process_in_order(Plus)),
            ]);
            (pairs, late, others)
        });
        let (ones, twos) = (ones.with_splits(SPLITS), twos.with_splits(SPLITS));
        let of = |input| judged(&acts, input).into_iter().partition::<Vec<_>, _>(Judged::is_behind);
        let ((late_first, first), (late_second, second)) = (of(0), of(1));
        let mut expected = Vec::new();
        for one in &first {
            let near = (one.at - 3)..=(one.at + 5);
            let meets = second.iter().filter(|two| two.event.0 == one.event.0 && near.contains(&two.at));
            expected.extend(meets.map(|two| (one.event, two.event)));
        }
        let late_first = late_first.into_iter().map(|one| Either::First(one.event));
        let late_second = late_second.into_iter().map(|two| Either::Second(two.event));
        let all_late: Vec<_> = late_first.chain(late_second).collect();
        in_all_modes(&kit, &acts, &[&ones, &twos], [pairs.expect(expected), late.expect(all_late)])?;
    }

    /// What a table tells at which step depends on what is read together; what it comes to does not.
    #[test]
    fn tables(acts in scripts(2, SPLITS)) {
        let (kit, (rows, homes), (sums, late, _)) = Kit::of(|(rows, homes): (Stream<Event>, Stream<Event>)| {
            let rows = rows.changes_into_table(row);
            let homes = homes.key_by(key).upserts_into_table_with_late(home);
            let joined = rows.clone().join(homes.0.clone());
            let sums = joined.map(|_, (value, home)| (home as u64, value)).sum(|value| *value);
            let others = all([
                told("counts", come_to(rows.clone().count())),
                told("distinct", come_to(rows.distinct())),
                told("homes", come_to(homes.0)),
            ]);
            (come_to(sums), homes.1, others)
        });
        let (rows, homes) = (rows.with_splits(SPLITS), homes.with_splits(SPLITS));
        let (too_late, mut upserts) =
            judged(&acts, 1).into_iter().partition::<Vec<_>, _>(Judged::is_behind);
        upserts.sort_by_key(|upsert| (upsert.at, upsert.split));
        let newest: BTreeMap<u64, Option<i64>> =
            upserts.iter().map(|upsert| (upsert.event.0, home(&upsert.event))).collect();
        // Of each home and value.
        let mut values = BTreeMap::new();
        for (key, value, by) in judged(&acts, 0).iter().map(|change| row(change.event)) {
            if let Some(Some(home)) = newest.get(&key) {
                *values.entry((*home, value)).or_insert(0) += by;
            }
        }
        let mut expected = BTreeMap::new();
        for ((home, value), count) in values.into_iter().filter(|(_, count)| *count != 0) {
            *expected.entry(home).or_insert(0) += value * count;
        }
        let expected = expected.into_iter().map(|(home, sum)| (home as u64, sum, 1));
        let too_late = too_late.into_iter().map(|upsert| upsert.event);
        in_all_modes(&kit, &acts, &[&rows, &homes], [sums.expect(expected), late.expect(too_late)])?;
    }
}
