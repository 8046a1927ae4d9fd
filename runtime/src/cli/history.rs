//! `history`: prints the run journal.

use std::process::ExitCode;

use clap::Args;

use crate::error::{Error, Result};
use crate::job::Job;
use crate::journal::{Event, read};
use crate::terminal::print;
use crate::time::EventTime;

/// What of the journal is printed, and how.
#[derive(Args, Clone, Debug, Default)]
pub struct HistoryArgs {
    /// Only the last N events
    #[arg(long, value_name = "N")]
    pub last: Option<usize>,
    /// Only events of this kind, such as `checkpoint` or `failure`; may be given several times
    #[arg(long, value_name = "KIND")]
    pub kind: Vec<String>,
    /// As it is in the file: one JSON object a line
    #[arg(long)]
    pub json: bool,
}

pub(super) fn run(job: &Job, args: &HistoryArgs) -> Result<ExitCode> {
    let Some(dir) = &job.settings.checkpoint_dir else {
        return Err(Error::config("this job keeps no checkpoints, and so no journal")
            .hint("name a directory with `--checkpoint-dir DIR`"));
    };
    let events = chosen(read(dir, |_| true)?, args);
    if args.json {
        events.iter().try_for_each(|(text, _)| print(text))?;
        return Ok(ExitCode::SUCCESS);
    }
    if events.is_empty() {
        print(format_args!("no events in {}", dir.display()))?;
        return Ok(ExitCode::SUCCESS);
    }
    print(format_args!("{:<24}  {:<9}  {:<10}  what", "time", "execution", "kind"))?;
    events.iter().try_for_each(|(_, event)| print(line(event)))?;
    Ok(ExitCode::SUCCESS)
}

/// The events that are asked for, each with its text.
fn chosen(mut events: Vec<(String, Event)>, args: &HistoryArgs) -> Vec<(String, Event)> {
    events.retain(|(_, event)| args.kind.is_empty() || args.kind.iter().any(|kind| kind == event.what.kind()));
    let passed_over = args.last.map_or(0, |last| events.len().saturating_sub(last));
    events.split_off(passed_over)
}

fn line(event: &Event) -> String {
    let time = EventTime::from_millis(i64::try_from(event.time_ms).unwrap_or(i64::MAX)).to_string();
    let (execution, kind) = (event.execution.escape_debug(), event.what.kind().escape_debug());
    format!("{time:<24}  {:<9}  {:<10}  {}", execution.to_string(), kind.to_string(), event.what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::What;

    fn events() -> Vec<(String, Event)> {
        let whats = [
            What::Start { version: "1.2".into(), workers: 1, from: Some(7), restart: 2, fresh: false },
            What::GaveUp { reason: "used up".into() },
            What::Finish { epoch: Some(9) },
        ];
        let event = |what: What| (what.to_string(), Event { time_ms: 1_000, execution: "0a1b2c3d".into(), what });
        whats.into_iter().map(event).collect()
    }

    #[test]
    fn an_event_is_a_line() {
        let lines: Vec<_> = events().iter().map(|(_, event)| line(event)).collect();
        assert_eq!(
            lines[0],
            "1970-01-01T00:00:01Z      0a1b2c3d   start       from checkpoint 7, 1 worker, version 1.2, restart 2"
        );
        assert_eq!(lines[2], "1970-01-01T00:00:01Z      0a1b2c3d   finish      with checkpoint 9");
    }

    #[test]
    fn events_are_chosen_by_kind_and_number() {
        let kinds = |args: &HistoryArgs| -> Vec<String> {
            chosen(events(), args).iter().map(|(_, event)| event.what.kind().to_string()).collect()
        };
        let args = |last, kind: &[&str]| HistoryArgs {
            last,
            kind: kind.iter().map(ToString::to_string).collect(),
            json: false,
        };
        assert_eq!(kinds(&args(None, &[])), ["start", "gave_up", "finish"]);
        assert_eq!(kinds(&args(Some(2), &[])), ["gave_up", "finish"]);
        assert_eq!(kinds(&args(Some(9), &["start", "finish"])), ["start", "finish"]);
        assert_eq!(kinds(&args(Some(0), &[])), [""; 0]);
    }
}
