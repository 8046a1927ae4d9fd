//! Steps: what happens to a job under test, and what is expected of it, as values.

use std::panic::Location;
use std::time::Duration;

use millstream_runtime::error::Result;
use millstream_runtime::inspect::CheckpointView;
use millstream_runtime::time::EventTime;
use millstream_state::snapshot::{Key, Value};

use super::When;
use super::input::AnyFeed;
use super::output::AnyRecords;

/// One step of a script: something that happens to a job, or that is expected of it. Made by [`Input`](super::Input),
/// [`Output`](super::Output), [`checkpoint`], [`clock`], [`crash`], [`restart`], [`rescale`], [`expect_watermark`], [`expect_state`],
/// [`expect_no_state`] and [`expect_entries`]; taken by [`Trial::step`](super::Trial::step) and [`Kit::in_all_modes`](super::Kit::in_all_modes).
pub struct Step {
    pub(super) text: String,
    /// Where it was made.
    pub(super) place: &'static Location<'static>,
    pub(super) action: Action,
}

impl std::fmt::Debug for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

pub(super) enum Action {
    /// An input, of which only one split is meant or all, is given something.
    Give {
        input: usize,
        split: Option<usize>,
        given: Given,
    },
    Checkpoint,
    Clock(Duration),
    Crash,
    Restart,
    Rescale(usize),
    /// An output is compared.
    Output {
        output: usize,
        check: OutputCheck,
    },
    Watermark(EventTime),
    State(StateCheck),
}

/// Gives records to a split.
pub(super) type Give = Box<dyn Fn(&dyn AnyFeed, usize) -> Result<()>>;
/// Compares what came out; returns in lines what is wrong.
pub(super) type OutputCheck = Box<dyn Fn(&dyn AnyRecords) -> Option<Vec<String>>>;
/// Compares what is in a checkpoint; returns in lines what is wrong.
pub(super) type StateCheck = Box<dyn Fn(&CheckpointView) -> Result<Option<Vec<String>>>>;

/// What a split is given.
pub(super) enum Given {
    Records(Give),
    Watermark(EventTime),
    End,
}

impl Step {
    #[track_caller]
    fn new(text: String, action: Action) -> Self {
        Step { text, place: Location::caller(), action }
    }

    #[track_caller]
    pub(super) fn give(text: String, input: usize, split: Option<usize>, given: Given) -> Self {
        Self::new(text, Action::Give { input, split, given })
    }

    #[track_caller]
    pub(super) fn output(text: String, output: usize, check: OutputCheck) -> Self {
        Self::new(text, Action::Output { output, check })
    }
}

/// The job takes a checkpoint.
#[track_caller]
pub fn checkpoint() -> Step {
    Step::new("checkpoint()".into(), Action::Checkpoint)
}

/// The clock that the job asks moves on: timers by the clock are called, and splits that have had nothing for long enough are idle. It stands at
/// 1970-01-01T00:00:00Z when a job is started first, and does not go back in a crash: what came by the clock before would come later, or with other
/// records. So in a script the job takes a checkpoint after this step, and what came is kept.
#[track_caller]
pub fn clock(span: Duration) -> Step {
    Step::new(format!("clock({span:?})"), Action::Clock(span))
}

/// The job ends without a word and is started again from its last checkpoint, or from the beginning if there is none. Input after it is
/// read again, step by step; what came out after it is undone, and must come again.
#[track_caller]
pub fn crash() -> Step {
    Step::new("crash()".into(), Action::Crash)
}

/// The job is stopped with a checkpoint and started again.
#[track_caller]
pub fn restart() -> Step {
    Step::new("restart()".into(), Action::Restart)
}

/// The job is stopped with a checkpoint and started again on so many workers.
#[track_caller]
pub fn rescale(workers: usize) -> Step {
    Step::new(format!("rescale({workers})"), Action::Rescale(workers))
}

/// The least watermark of all sources is this one.
#[track_caller]
pub fn expect_watermark(when: impl When) -> Step {
    let at = when.time();
    Step::new(format!("expect_watermark({at})"), Action::Watermark(at))
}

/// A state has this value for a key: by the name of its operator, whose first state is meant, or as `operator/state`. The job takes a
/// checkpoint, in which that is looked up. For states with one value per key; see [`Trial::look`](super::Trial::look) for others.
#[track_caller]
pub fn expect_state<K, V>(name: impl Into<String>, key: K, value: V) -> Step
where
    K: Key + std::fmt::Debug,
    V: Value + PartialEq + std::fmt::Debug,
{
    let name = name.into();
    let text = format!("expect_state({name:?}, {key:?}, {value:?})");
    let check = move |view: &CheckpointView| {
        let got = view.state::<K, V>(&name)?.get(&key)?;
        Ok((got.as_ref() != Some(&value)).then(|| match got {
            Some(got) => vec![format!("it is {got:?}")],
            None => vec!["nothing is kept for that key".to_string()],
        }))
    };
    Step::new(text, Action::State(Box::new(check)))
}

/// A state, of keys and values of these types, keeps nothing for a key. As [`expect_state`] otherwise.
#[track_caller]
pub fn expect_no_state<K, V>(name: impl Into<String>, key: K) -> Step
where
    K: Key + std::fmt::Debug,
    V: Value + std::fmt::Debug,
{
    let name = name.into();
    let text = format!("expect_no_state({name:?}, {key:?})");
    let check = move |view: &CheckpointView| {
        let got = view.state::<K, V>(&name)?.get(&key)?;
        Ok(got.map(|got| vec![format!("it is {got:?}")]))
    };
    Step::new(text, Action::State(Box::new(check)))
}

/// A state has so many entries, whatever their types: to see that windows, timers and keys go when their time is over. By name as
/// [`expect_state`].
#[track_caller]
pub fn expect_entries(name: impl Into<String>, entries: u64) -> Step {
    let name = name.into();
    let text = format!("expect_entries({name:?}, {entries})");
    let check = move |view: &CheckpointView| {
        let got = view.entries(&name)?;
        Ok((got != entries).then(|| vec![format!("it has {got}")]))
    };
    Step::new(text, Action::State(Box::new(check)))
}
