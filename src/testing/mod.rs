//! Tests of jobs and operators: input and expectations as data, run by the real runtime, in every way in which a job may come to run.
//!
//! This module is there with the feature `testing`:
//!
//! ```toml
//! [dev-dependencies]
//! millstream = { path = "../millstream", features = ["testing"] } # or `git = …`, as among the dependencies
//! ```
//!
//! A [`Kit`] knows how the job under test is described. A *script* is a list of [`Step`]s: what inputs give (records, watermarks, ends), what
//! happens to the job (checkpoints, crashes, restarts on any number of workers), and what is expected. [`Kit::in_all_modes`] runs a
//! script in every [`Mode`], and fails where one differs from what is expected, or from the others:
//!
//! ```
//! use millstream::prelude::*;
//! use millstream::testing::*;
//!
//! let (kit, orders, output) = Kit::of(|orders: Stream<(&'static str, i64)>| {
//!     let (spent, late) = orders
//!         .key_by(|(who, _)| who.to_string())
//!         .window(Tumbling::of(EventSpan::secs(10)))
//!         .aggregate_with_late(Sum::of(|(_, cents): &(&str, i64)| *cents));
//!     (spent, late)
//! });
//! let (spent, late) = output;
//!
//! kit.in_all_modes([
//!     orders.at(3, ("ann", 5)),
//!     orders.at(12, ("ann", 7)),
//!     orders.at(4, ("ann", 1)),
//!     spent.expect([]),
//!     orders.watermark(13),
//!     spent.expect([("ann".to_string(), window(0, 10), 6)]),
//!     orders.at(5, ("bob", 9)),
//!     late.expect([("bob", 9)]),
//!     orders.end(),
//!     spent.expect([("ann".to_string(), window(10, 20), 7)]),
//! ]);
//! ```
//!
//! For a closer look there is the interactive form, a [`Trial`]: one step at a time, and any question in between. For a first look there is
//! [`check`]: records in, values out.
//!
//! **Time** is event time, and a script alone moves it: the watermark of a split is what the script says, and nothing else. Wherever a time is
//! wanted ([`When`]), a bare number means seconds since 1970; [`EventTime`]s and texts such as `"2013-01-01T09:20:00Z"` do as well.
//!
//! **Every step is processed before the next one begins**, through all operators, down to the outputs. The kit waits for the runtime to say
//! so; it never sleeps. That costs microseconds; a restart costs tens of milliseconds, so a script of twenty steps takes about a
//! second in all modes.
//!
//! **Nothing is simulated.** Workers are threads, records of a key travel to the worker that owns it, checkpoints are written to a temporary
//! directory and restored from there: in `/dev/shm`, where there is one with a GiB to spare, because starts are two to three times as fast there as on a
//! disk, and wherever `TMPDIR` says if it is set. A crash ends the job without a word, and input after the last checkpoint is read again.
//!
//! **What may rightly differ**: what depends on the order in which records of several splits or inputs meet (a `fold` over two
//! splits), or on what was there before a timer was called (`process`, other than `process_in_order`), depends on how much is read at
//! once; and so does how many early and late results there are of a window. Leave [`Mode::Batch`] and [`Mode::Workers`] out for those, by [`Kit::except`].

mod input;
mod modes;
mod output;
mod scratch;
mod step;
mod trial;

use std::sync::Arc;
use std::time::Duration;

use millstream_operators::window::Window;
use millstream_runtime::error::Result;
use millstream_runtime::job::Job;
use millstream_runtime::record::Data;
use millstream_runtime::stream::Stream;
use millstream_runtime::time::EventTime;

pub use input::Input;
pub use modes::{Failure, Mode};
pub use output::Output;
pub use step::{
    Step, checkpoint, clock, crash, expect_entries, expect_no_state, expect_state, expect_watermark, rescale, restart,
};
pub use trial::{Bench, Trial};

use trial::{Adjust, Build, Setup};

/// How a job under test is described, and run.
#[derive(Clone)]
pub struct Kit<'a> {
    build: Build<'a>,
    adjust: Option<Adjust<'a>>,
    patience: Option<Duration>,
    except: Vec<Mode>,
}

impl std::fmt::Debug for Kit<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kit").field("except", &self.except).finish_non_exhaustive()
    }
}

impl<'a> Kit<'a> {
    /// A job of any shape: `build` connects inputs and outputs on a [`Bench`]. It is called for every start of the job, and must
    /// describe the same one each time.
    ///
    /// ```
    /// use millstream::prelude::*;
    /// use millstream::testing::*;
    ///
    /// let (words, numbers, lengths) = (Input::new("words"), Input::new("numbers"), Output::new("lengths"));
    /// let kit = Kit::new(|bench| {
    ///     let of_words = bench.input(&words).map(|word: &str| word.len() as u64);
    ///     bench.output(&lengths, of_words.union([bench.input(&numbers)]));
    /// });
    /// kit.in_all_modes([words.at(1, "four"), numbers.at(2, 7), lengths.expect([4, 7])]);
    /// ```
    pub fn new(build: impl Fn(&Bench<'_>) + Send + Sync + 'a) -> Self {
        Kit { build: Arc::new(build), adjust: None, patience: None, except: Vec::new() }
    }

    /// A job made of streams: `build` turns an input stream (or two or three, as a tuple) into an output stream (or two or
    /// three, as a tuple). Returns the kit with its inputs and outputs.
    ///
    /// ```
    /// use millstream::prelude::*;
    /// use millstream::testing::*;
    ///
    /// let (kit, (orders, payments), paid) = Kit::of(|(orders, payments): (Stream<u32>, Stream<u32>)| {
    ///     orders.key_by(|order| *order).interval_join(payments.key_by(|order| *order), EventSpan::ZERO, EventSpan::mins(1))
    /// });
    /// kit.in_all_modes([
    ///     orders.at(0, 1),
    ///     payments.at(30, 1),
    ///     orders.watermark(100),
    ///     paid.expect([]),
    ///     payments.watermark(100),
    ///     paid.expect_at([(30, (1, 1))]),
    /// ]);
    /// ```
    pub fn of<I: Inputs, O: Outputs>(build: impl Fn(I) -> O + Send + Sync + 'a) -> (Self, I::Handles, O::Handles) {
        let (inputs, outputs) = (I::handles(), O::handles());
        let (read, written) = (inputs.clone(), outputs.clone());
        (Kit::new(move |bench| build(I::read(bench, &read)).write(bench, &written)), inputs, outputs)
    }

    /// Leaves modes out, for a job whose results may rightly differ in them. [`Mode::Steps`] always runs.
    #[must_use]
    pub fn except(mut self, modes: impl IntoIterator<Item = Mode>) -> Self {
        self.except.extend(modes);
        self
    }

    /// Changes settings of the job, in every mode: `kit.settings(|job| job.batch_size(1))`. Workers, the directory of checkpoints
    /// and restarts after failures are the kit's own.
    #[must_use]
    pub fn settings(mut self, adjust: impl Fn(Job) -> Job + Send + Sync + 'a) -> Self {
        self.adjust = Some(Arc::new(adjust));
        self
    }

    /// How long a step may take before it counts as hanging; a minute, unless it is set.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = Some(patience);
        self
    }

    /// Starts the job, on one worker, to take steps one by one.
    ///
    /// # Errors
    /// When the job is not as it must be.
    pub fn start(&self) -> Result<Trial<'a>> {
        self.start_in(Mode::Steps)
    }

    fn start_in(&self, mode: Mode) -> Result<Trial<'a>> {
        Trial::start(Setup {
            build: Arc::clone(&self.build),
            adjust: self.adjust.clone(),
            patience: self.patience,
            workers: mode.workers(),
            memory: mode.memory(),
            pressed: mode.is_pressed(),
        })
    }

    /// Runs a script in all modes. In [`Mode::Steps`] all that is expected must come true, and an output of which something is expected must
    /// give nothing more. In every other mode the same must come out, at the same event times, step by step where the mode takes steps. After
    /// the last step the input ends, and what comes out then must be the same as well.
    ///
    /// # Panics
    /// With mode, step and difference, when something is not as it should be. [`try_in_all_modes`](Self::try_in_all_modes) does not.
    #[track_caller]
    pub fn in_all_modes(&self, script: impl IntoIterator<Item = Step>) {
        if let Err(failure) = self.try_in_all_modes(script) {
            panic!("{failure}");
        }
    }

    /// As [`in_all_modes`](Self::in_all_modes), without a panic.
    ///
    /// # Errors
    /// The first thing that is not as it should be.
    pub fn try_in_all_modes(&self, script: impl IntoIterator<Item = Step>) -> Result<(), Failure> {
        let steps: Vec<Step> = script.into_iter().collect();
        let reference = modes::run_reference(self.start(), &steps)?;
        let others = Mode::ALL.into_iter().filter(|mode| *mode != Mode::Steps && !self.except.contains(mode));
        others.into_iter().try_for_each(|mode| modes::run(mode, self.start_in(mode), &steps, &reference))
    }
}

/// Records in, values out, in all modes: for a first look. After every record the watermark is the greatest event time so far; after the
/// last the input ends. `expected` is all that comes out, in any order.
///
/// ```
/// use millstream::prelude::*;
/// use millstream::testing::check;
///
/// check(
///     |words: Stream<&str>| words.flat_map(|line| line.split(' ').map(str::to_string).collect::<Vec<_>>()),
///     [(1, "to be or"), (2, "not")],
///     ["to", "be", "or", "not"].map(str::to_string),
/// );
/// ```
///
/// # Panics
/// As [`Kit::in_all_modes`].
#[track_caller]
pub fn check<T, O, W>(
    build: impl Fn(Stream<T>) -> Stream<O> + Send + Sync,
    records: impl IntoIterator<Item = (W, T)>,
    expected: impl IntoIterator<Item = O>,
) where
    T: Data + std::fmt::Debug,
    O: Data + PartialEq + std::fmt::Debug,
    W: When,
{
    let (kit, input, output) = Kit::of(build);
    let mut steps = Vec::new();
    let mut greatest = EventTime::MIN;
    for (when, value) in records {
        let at = when.time();
        greatest = greatest.max(at);
        steps.extend([input.at(at, value), input.watermark(greatest)]);
    }
    kit.in_all_modes(steps.into_iter().chain([input.end(), output.expect(expected)]));
}

/// An event time, in a script: an [`EventTime`], a number of seconds since 1970, or a text such as `2013-01-01T09:20:00Z`.
pub trait When {
    /// The event time that is meant.
    ///
    /// # Panics
    /// When a text is none.
    fn time(self) -> EventTime;
}

impl When for EventTime {
    fn time(self) -> EventTime {
        self
    }
}

impl When for i64 {
    fn time(self) -> EventTime {
        EventTime::from_secs(self)
    }
}

impl When for &str {
    #[track_caller]
    fn time(self) -> EventTime {
        match self.parse() {
            Ok(time) => time,
            Err(error) => panic!("{error}"),
        }
    }
}

/// The window `[start, end)`, as results of windows have it.
pub fn window(start: impl When, end: impl When) -> Window {
    Window { start: start.time(), end: end.time() }
}

/// What [`Kit::of`] may begin with: a stream, or a tuple of two or three.
pub trait Inputs: Sized + 'static {
    /// The input of every stream.
    type Handles: Clone + Send + Sync + 'static;
    /// New inputs.
    fn handles() -> Self::Handles;
    /// Their streams.
    fn read(bench: &Bench<'_>, inputs: &Self::Handles) -> Self;
}

/// What [`Kit::of`] may end with: a stream, or a tuple of two or three.
pub trait Outputs: Sized + 'static {
    /// The output of every stream.
    type Handles: Clone + Send + Sync + 'static;
    /// New outputs.
    fn handles() -> Self::Handles;
    /// Collects the streams.
    fn write(self, bench: &Bench<'_>, outputs: &Self::Handles);
}

impl<T: Data + std::fmt::Debug> Inputs for Stream<T> {
    type Handles = Input<T>;

    fn handles() -> Input<T> {
        Input::new("input")
    }

    fn read(bench: &Bench<'_>, input: &Input<T>) -> Self {
        bench.input(input)
    }
}

impl<T: Data + PartialEq + std::fmt::Debug> Outputs for Stream<T> {
    type Handles = Output<T>;

    fn handles() -> Output<T> {
        Output::new("output")
    }

    fn write(self, bench: &Bench<'_>, output: &Output<T>) {
        bench.output(output, self);
    }
}

macro_rules! several {
    ($($type:ident $place:tt $name:literal),+) => {
        impl<$($type: Data + std::fmt::Debug),+> Inputs for ($(Stream<$type>,)+) {
            type Handles = ($(Input<$type>,)+);

            fn handles() -> Self::Handles {
                ($(Input::<$type>::new(concat!("input ", $name)),)+)
            }

            fn read(bench: &Bench<'_>, inputs: &Self::Handles) -> Self {
                ($(bench.input(&inputs.$place),)+)
            }
        }

        impl<$($type: Data + PartialEq + std::fmt::Debug),+> Outputs for ($(Stream<$type>,)+) {
            type Handles = ($(Output<$type>,)+);

            fn handles() -> Self::Handles {
                ($(Output::<$type>::new(concat!("output ", $name)),)+)
            }

            fn write(self, bench: &Bench<'_>, outputs: &Self::Handles) {
                $(bench.output(&outputs.$place, self.$place);)+
            }
        }
    };
}

several!(A 0 "1", B 1 "2");
several!(A 0 "1", B 1 "2", C 2 "3");
