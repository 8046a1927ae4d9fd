//! One script in all modes: what comes out must be the same, however it is run.

use std::fmt;
use std::ops::Range;

use millstream_runtime::error::{Error, Result};

use super::output::AnyRecords;
use super::step::{Action, Step};
use super::trial::Trial;

/// A way to run a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mode {
    /// Step by step on one worker: what all others are compared with.
    Steps,
    /// What a script gives between two of its checkpoints, restarts or looks at state is read at once, on one worker.
    Batch,
    /// As [`Batch`](Self::Batch), on three workers.
    Workers,
    /// Stopped with a checkpoint and started again after every step.
    Restarted,
    /// As [`Restarted`](Self::Restarted), on another number of workers each time: 1, 3, 2, 5, and so on.
    Rescaled,
    /// Crashed after every step, on two workers, with a checkpoint before every second one: so one or two steps are done again each time.
    Crashed,
    /// As [`Restarted`](Self::Restarted), with no memory to speak of for state: what can leave memory does, and is read back when it is needed.
    LittleMemory,
}

impl Mode {
    /// All of them, [`Steps`](Self::Steps) first.
    pub const ALL: [Mode; 7] =
        [Mode::Steps, Mode::Batch, Mode::Workers, Mode::Restarted, Mode::Rescaled, Mode::Crashed, Mode::LittleMemory];

    fn in_batches(self) -> bool {
        matches!(self, Mode::Batch | Mode::Workers)
    }

    /// On how many workers a script begins.
    pub(super) fn workers(self) -> usize {
        match self {
            Mode::Workers => 3,
            Mode::Crashed => 2,
            _ => 1,
        }
    }

    pub(super) fn memory(self) -> Option<u64> {
        (self == Mode::LittleMemory).then_some(LITTLE_MEMORY)
    }

    /// Whether operators work as under a load.
    pub(super) fn is_pressed(self) -> bool {
        self.in_batches()
    }

    /// What happens before the `number`-th step that gives something, counted from 0.
    fn before(self, number: usize, trial: &mut Trial<'_>) -> Result<()> {
        if self == Mode::Crashed && number % 2 == 1 { trial.checkpoint() } else { Ok(()) }
    }

    /// What happens after it.
    fn after(self, number: usize, trial: &mut Trial<'_>) -> Result<()> {
        const WORKERS: [usize; 4] = [3, 2, 5, 1];
        match self {
            Mode::Steps | Mode::Batch | Mode::Workers => Ok(()),
            Mode::Restarted | Mode::LittleMemory => trial.restart(),
            Mode::Rescaled => trial.rescale(WORKERS[number % WORKERS.len()]),
            Mode::Crashed => trial.crash(),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Steps => "step by step",
            Mode::Batch => "in one batch",
            Mode::Workers => "in one batch on 3 workers",
            Mode::Restarted => "restarted after every step",
            Mode::Rescaled => "on another number of workers after every step",
            Mode::Crashed => "crashed after every step",
            Mode::LittleMemory => "with little memory",
        })
    }
}

/// In bytes: less than the state of one key.
const LITTLE_MEMORY: u64 = 16;

/// What a script found to be wrong: in which mode, at which step, and what.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Failure {
    /// How the script was run.
    pub mode: Mode,
    /// At which step, counted from 1; 0 is the start of the job, and one more than there are the end of the input, which follows every script.
    pub step: usize,
    /// The step, and where it stands in the program, as far as there is one.
    pub at: String,
    /// What is wrong, in lines.
    pub found: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.mode, self.at)?;
        self.found.iter().try_for_each(|line| write!(f, "\n  {line}"))
    }
}

impl std::error::Error for Failure {}

/// What came out of every output: its id and name, and the records.
pub(super) type Taken = Vec<(usize, String, Box<dyn AnyRecords>)>;

/// What came out at every step, and at the end of the input.
pub(super) type Trace = Vec<Taken>;

/// Runs a script step by step, and meets its expectations.
pub(super) fn run_reference(start: Result<Trial<'_>>, steps: &[Step]) -> Result<Trace, Failure> {
    let run = Run { mode: Mode::Steps, steps };
    let mut trial = start.map_err(|error| run.fail(0..0, lines_of(&error)))?;
    let mut trace = Trace::new();
    // What came out since it was last expected.
    let mut since = trial.take_all();
    for (place, step) in steps.iter().enumerate() {
        let at = place..place + 1;
        if let Action::Output { output, check } = &step.action {
            let Some((.., records)) = since.iter_mut().find(|(id, ..)| id == output) else {
                return Err(
                    run.fail(at, vec!["the job does not have that output: connect it with `Bench::output`".into()])
                );
            };
            if let Some(lines) = check(&**records) {
                return Err(run.fail(at, lines));
            }
            records.clear();
        } else {
            run.take(place, &mut trial)?;
        }
        let taken = trial.take_all();
        for ((.., since), (.., taken)) in since.iter_mut().zip(&taken) {
            since.extend(&**taken);
        }
        trace.push(taken);
    }
    let is_expected = |output: usize| {
        steps
            .iter()
            .rposition(|step| matches!(step.action, Action::Output { output: of, .. } if of == output))
    };
    for (id, name, since) in since {
        if let (Some(last), Some(more)) = (is_expected(id), since.all_too_much()) {
            let mut lines = vec![format!("more came out of `{name}` after that")];
            lines.extend(more);
            return Err(run.fail(last..last + 1, lines));
        }
    }
    run.end(&mut trial)?;
    trace.push(trial.take_all());
    Ok(trace)
}

/// Runs a script in one mode, and compares what comes out with what came step by step.
pub(super) fn run(mode: Mode, start: Result<Trial<'_>>, steps: &[Step], reference: &Trace) -> Result<(), Failure> {
    let run = Run { mode, steps };
    let mut trial = start.map_err(|error| run.fail(0..0, lines_of(&error)))?;
    // The first step whose results have not been compared.
    let mut first = 0;
    for (place, step) in steps.iter().enumerate() {
        match &step.action {
            Action::Give { .. } if mode.in_batches() => {
                trial.lay(step).map_err(|error| run.fail(place..place + 1, lines_of(&error)))?;
                continue;
            }
            Action::Output { .. } if mode.in_batches() => continue,
            // What comes out is compared with what came step by step, of which this was true.
            Action::Output { .. } => {}
            Action::Give { .. } => run.take_with_trouble(place, &mut trial)?,
            _ => {
                if mode.in_batches() {
                    run.open(first..place, &mut trial, reference)?;
                    first = place;
                }
                run.take(place, &mut trial)?;
            }
        }
        run.compare(first..place + 1, &trial, reference)?;
        first = place + 1;
    }
    if mode.in_batches() {
        run.open(first..steps.len(), &mut trial, reference)?;
    }
    run.end(&mut trial)?;
    run.compare(steps.len()..steps.len() + 1, &trial, reference)
}

fn lines_of(error: &Error) -> Vec<String> {
    error.to_string().lines().map(ToString::to_string).collect()
}

/// A run of a script in one mode.
struct Run<'a> {
    mode: Mode,
    steps: &'a [Step],
}

impl Run<'_> {
    /// Takes a step as it is.
    fn take(&self, place: usize, trial: &mut Trial<'_>) -> Result<(), Failure> {
        let (at, step) = (place..place + 1, &self.steps[place]);
        let failed = |error: Error| self.fail(at.clone(), lines_of(&error));
        if let Some(lines) = trial.perform(step).map_err(failed)? {
            return Err(self.fail(at, lines));
        }
        // It would not go back in a crash.
        if matches!(step.action, Action::Clock(_)) { trial.checkpoint().map_err(failed) } else { Ok(()) }
    }

    /// Takes a step that gives something, with what the mode does before and after it.
    fn take_with_trouble(&self, place: usize, trial: &mut Trial<'_>) -> Result<(), Failure> {
        let gives = |step: &&Step| matches!(step.action, Action::Give { .. });
        let number = self.steps[..place].iter().filter(gives).count();
        let failed = |error: Error| self.fail(place..place + 1, lines_of(&error));
        self.mode.before(number, trial).map_err(failed)?;
        self.take(place, trial)?;
        self.mode.after(number, trial).map_err(failed)
    }

    /// Lets all be read that these steps have laid down.
    fn open(&self, steps: Range<usize>, trial: &mut Trial<'_>, reference: &Trace) -> Result<(), Failure> {
        if steps.is_empty() {
            return Ok(());
        }
        trial.open().map_err(|error| self.fail(steps.clone(), lines_of(&error)))?;
        self.compare(steps, trial, reference)
    }

    /// Ends the input.
    fn end(&self, trial: &mut Trial<'_>) -> Result<(), Failure> {
        let ended = trial.lay_ends().and_then(|()| trial.open());
        ended.map_err(|error| self.fail(self.steps.len()..self.steps.len() + 1, lines_of(&error)))
    }

    /// Compares what came out with what came of the same steps, taken one by one.
    fn compare(&self, steps: Range<usize>, trial: &Trial<'_>, reference: &Trace) -> Result<(), Failure> {
        for (place, (_, name, got)) in trial.take_all().into_iter().enumerate() {
            let mut expected = got.none();
            reference[steps.clone()].iter().for_each(|taken| expected.extend(&*taken[place].2));
            if let Some(differences) = expected.differs(&*got) {
                let mut lines = vec![format!("`{name}` has not got what it got {}", Mode::Steps)];
                lines.extend(differences);
                return Err(self.fail(steps, lines));
            }
        }
        Ok(())
    }

    fn fail(&self, steps: Range<usize>, found: Vec<String>) -> Failure {
        let (first, last, of) = (steps.start + 1, steps.end, self.steps.len());
        let at = match last.checked_sub(1).map(|place| self.steps.get(place)) {
            None => "when the job was to start".to_string(),
            Some(None) => "at the end of the input, which follows every script".to_string(),
            Some(Some(step)) if first == last => format!("step {last} of {of}, at {}: {}", step.place, step.text),
            Some(Some(step)) => format!("steps {first} to {last} of {of}, up to {}", step.place),
        };
        Failure { mode: self.mode, step: last, at, found }
    }
}
