//! `state`: the state in the job's checkpoints and savepoints, as JSON lines or tables. Nothing is written, so it works while the
//! job runs.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use millstream_state::checkpoint::StartFrom;
use millstream_state::key_group::{KEY_GROUPS, KeyGroup};
use millstream_state::reader::Row;
use serde_json::{Value, json};

use super::printer::{Cell, Format, Printer};
use crate::error::{Error, Result};
use crate::inspect::{CheckpointView, ShownRow, differences};
use crate::job::Job;
use crate::stream::short_type_name;
use crate::terminal::tell;

/// What to see of the state, and how.
#[derive(Args, Clone, Debug)]
pub struct StateArgs {
    #[command(subcommand)]
    action: Option<StateAction>,
    /// In which checkpoint: its epoch, or the directory of a savepoint [default: the newest]
    #[arg(long, value_name = "EPOCH|DIR", global = true)]
    at: Option<String>,
    /// Only this operator
    #[arg(long, value_name = "NAME", global = true)]
    operator: Option<String>,
    /// Only this one of the operator's states [default: all that have keys]
    #[arg(long, value_name = "NAME", requires = "operator", global = true)]
    state: Option<String>,
    /// How it is printed
    #[arg(long, value_enum, default_value_t, global = true)]
    format: Format,
}

/// What to see of the state.
#[derive(Subcommand, Clone, Debug)]
enum StateAction {
    /// Operators, their states and the types of these (the default)
    List,
    /// Everything of one key
    Get {
        /// As JSON, as `scan` shows it; a word is a string
        key: String,
    },
    /// All entries
    Scan {
        /// Stop after so many
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
        /// Only keys that begin so: strings as they are, others as JSON
        #[arg(long, value_name = "TEXT")]
        key_prefix: Option<String>,
    },
    /// How many entries there are
    Count,
    /// Bytes of keys and values, before compression, and the largest key group
    Size {
        /// Show every key group
        #[arg(long)]
        groups: bool,
    },
    /// What was added, removed and changed from one checkpoint to another
    Diff {
        /// The first: an epoch, or the directory of a savepoint
        old: String,
        /// The second
        new: String,
        /// Stop after so many
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
    },
}

/// A number is an epoch, anything else a path; `./7` is a path too.
pub(super) fn start_from(text: &str) -> StartFrom {
    text.parse().map_or_else(|_| StartFrom::Savepoint(PathBuf::from(text)), StartFrom::Epoch)
}

pub(super) fn run(job: &Job, args: &StateArgs) -> Result<ExitCode> {
    let mut out = Printer::new(args.format);
    let code = show(job, args, &mut out)?;
    out.end()?;
    Ok(code)
}

fn show(job: &Job, args: &StateArgs, out: &mut Printer) -> Result<ExitCode> {
    if let Some(StateAction::Diff { old, new, limit }) = &args.action {
        if args.at.is_some() {
            return Err(Error::config("`diff` names its two checkpoints, and takes no `--at`"));
        }
        let (old, new) = (job.checkpoint(start_from(old))?, job.checkpoint(start_from(new))?);
        diff(args, &old, &new, limit.unwrap_or(usize::MAX), out)?;
        return Ok(ExitCode::SUCCESS);
    }
    let at = args.at.as_deref().map_or(StartFrom::Newest, start_from);
    let view = job.checkpoint(at)?;
    match args.action.as_ref().unwrap_or(&StateAction::List) {
        StateAction::List => list(args, &view, out)?,
        StateAction::Get { key } => return get(args, &view, key, out),
        StateAction::Scan { limit, key_prefix } => {
            scan(args, &view, limit.unwrap_or(usize::MAX), key_prefix.as_deref(), out)?;
        }
        StateAction::Count => count(args, &view, out)?,
        StateAction::Size { groups } => size(args, &view, *groups, out)?,
        StateAction::Diff { .. } => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// The operators that are meant: the one that was named, which must be readable, or all that are.
fn operators(args: &StateArgs, view: &CheckpointView) -> Result<Vec<usize>> {
    if let Some(name) = &args.operator {
        let operator = view.operator(name)?;
        view.readable(operator)?;
        return Ok(vec![operator]);
    }
    let mut readable = Vec::new();
    for (place, operator) in view.operators().iter().enumerate() {
        match &operator.unreadable {
            None => readable.push(place),
            Some(why) => tell(format_args!("operator `{}` is left out: {why}", operator.name)),
        }
    }
    Ok(readable)
}

/// The states of an operator that are meant, by place.
fn states(args: &StateArgs, view: &CheckpointView, operator: usize) -> Result<Vec<usize>> {
    let view_of = &view.operators()[operator];
    if let Some(name) = &args.state {
        return Ok(vec![view.find(&format!("{}/{name}", view_of.name))?.1]);
    }
    let keyed = view_of.states.iter().enumerate().filter(|(_, state)| state.is_keyed());
    Ok(keyed.map(|(place, _)| place).collect())
}

fn list(args: &StateArgs, view: &CheckpointView, out: &mut Printer) -> Result<()> {
    out.columns(&["operator", "state", "entries", "keys", "values", "description"]);
    for operator in view.operators().iter().filter(|own| args.operator.as_ref().is_none_or(|name| *name == own.name)) {
        let name = || json!(operator.name);
        if operator.states.is_empty() {
            let why = operator.unreadable.as_deref().unwrap_or_default();
            let what = json!(format!("{}; {why}", operator.operator));
            out.row(&[name(), Value::Null, json!(operator.entries), Value::Null, Value::Null, what]);
            continue;
        }
        for (place, state) in operator.states.iter().enumerate() {
            let (key, value) = state.types.map(|(key, value)| (short_type_name(key), short_type_name(value))).unzip();
            let entries = if place == 0 { json!(operator.entries) } else { Value::Null };
            out.row(&[name(), json!(state.name), entries, json!(key), json!(value), json!(operator.operator)]);
        }
    }
    if let Some(name) = &args.operator {
        view.operator(name)?;
    }
    Ok(())
}

const ENTRY: [&str; 7] = ["operator", "state", "group", "start", "end", "key", "value"];

/// The columns that an entry begins with.
fn place_of(view: &CheckpointView, operator: usize, row: &ShownRow) -> [Value; 5] {
    let (start, end) = match (&row.times, row.slice) {
        (Some(times), _) => (json!(times.start.to_string()), json!(times.end.to_string())),
        (None, Some(slice)) => (json!(slice), Value::Null),
        (None, None) => (Value::Null, Value::Null),
    };
    [json!(view.operators()[operator].name), json!(row.state), json!(row.group), start, end]
}

fn print(view: &CheckpointView, operator: usize, row: &ShownRow, out: &mut Printer) {
    let [name, state, group, start, end] = place_of(view, operator, row);
    let key = row.key.as_ref().map_or(Cell::Value(&Value::Null), |key| Cell::Json(key));
    let cells = [
        Cell::Value(&name),
        Cell::Value(&state),
        Cell::Value(&group),
        Cell::Value(&start),
        Cell::Value(&end),
        key,
        Cell::Json(&row.value),
    ];
    out.cells(&cells);
}

fn get(args: &StateArgs, view: &CheckpointView, key: &str, out: &mut Printer) -> Result<ExitCode> {
    out.columns(&ENTRY);
    let (mut found, mut misfit, mut fits) = (false, None, false);
    for operator in operators(args, view)? {
        let states = states(args, view, operator)?;
        let Some(first) = states.first() else { continue };
        let wanted = match view.find_key(operator, *first, key) {
            Ok(wanted) => wanted,
            // With several operators, a key need not be one of all of them.
            Err(error) if args.operator.is_none() => {
                misfit = Some(error);
                continue;
            }
            Err(error) => return Err(error),
        };
        fits = true;
        for row in view.rows(operator, wanted.group, |state| states.contains(&state), Some(&wanted.key))? {
            found = true;
            print(view, operator, &view.show(operator, &row)?, out);
        }
    }
    match misfit.filter(|_| !fits) {
        Some(error) => Err(error),
        None if found => Ok(ExitCode::SUCCESS),
        None => {
            tell(format_args!("checkpoint {} has nothing for this key", view.epoch()));
            Ok(ExitCode::FAILURE)
        }
    }
}

fn scan(args: &StateArgs, view: &CheckpointView, limit: usize, prefix: Option<&str>, out: &mut Printer) -> Result<()> {
    out.columns(&ENTRY);
    view.verify()?;
    let mut left = limit;
    for operator in operators(args, view)? {
        let states = states(args, view, operator)?;
        for group in 0..KEY_GROUPS as KeyGroup {
            for row in view.rows(operator, group, |state| states.contains(&state), None)? {
                if left == 0 || out.is_closed() {
                    return Ok(());
                }
                let row = view.show(operator, &row)?;
                if prefix.is_none_or(|prefix| begins(row.key.as_deref(), prefix)) {
                    left -= 1;
                    print(view, operator, &row, out);
                }
            }
        }
    }
    Ok(())
}

/// Whether a key, in JSON, begins with what a person has typed.
fn begins(key: Option<&str>, prefix: &str) -> bool {
    let Some(key) = key else { return false };
    match serde_json::from_str(key) {
        Ok(Value::String(word)) => word.starts_with(prefix),
        _ => key.starts_with(prefix),
    }
}

fn count(args: &StateArgs, view: &CheckpointView, out: &mut Printer) -> Result<()> {
    out.columns(&["operator", "state", "entries"]);
    for operator in operators(args, view)? {
        let info = &view.operators()[operator];
        let sizes = view.sizes(&info.name)?;
        for state in states(args, view, operator)? {
            let entries: u64 = sizes.iter().filter(|size| size.state == state).filter_map(|size| size.entries).sum();
            out.row(&[json!(info.name), json!(info.states[state].name), json!(entries)]);
        }
    }
    Ok(())
}

fn size(args: &StateArgs, view: &CheckpointView, groups: bool, out: &mut Printer) -> Result<()> {
    match groups {
        true => out.columns(&["operator", "state", "group", "entries", "bytes"]),
        false => out.columns(&["operator", "state", "groups", "entries", "bytes", "largest_group", "largest_bytes"]),
    }
    for info in view.operators().iter().filter(|own| args.operator.as_ref().is_none_or(|name| *name == own.name)) {
        let sizes = view.sizes(&info.name)?;
        let mut states: Vec<usize> = sizes.iter().map(|size| size.state).collect();
        states.dedup();
        for state in states {
            let name = info.states.get(state).map_or_else(|| format!("state-{state}"), |state| state.name.clone());
            if args.state.as_ref().is_some_and(|wanted| *wanted != name) {
                continue;
            }
            let own: Vec<_> = sizes.iter().filter(|size| size.state == state).collect();
            if groups {
                for size in own {
                    out.row(&[
                        json!(info.name),
                        json!(name),
                        json!(size.group),
                        json!(size.entries),
                        json!(size.bytes),
                    ]);
                }
                continue;
            }
            let entries: Option<u64> = own.iter().map(|size| size.entries).sum();
            let bytes: u64 = own.iter().map(|size| size.bytes).sum();
            // The first of several that are alike.
            let largest = own.iter().rev().max_by_key(|size| size.bytes);
            let (group, most) = largest.map(|size| (size.group, size.bytes)).unzip();
            out.row(&[
                json!(info.name),
                json!(name),
                json!(own.len()),
                json!(entries),
                json!(bytes),
                json!(group),
                json!(most),
            ]);
        }
    }
    if let Some(name) = &args.operator {
        view.operator(name)?;
    }
    Ok(())
}

fn diff(args: &StateArgs, old: &CheckpointView, new: &CheckpointView, limit: usize, out: &mut Printer) -> Result<()> {
    out.columns(&["change", "operator", "state", "group", "start", "end", "key", "old", "new"]);
    old.verify()?;
    new.verify()?;
    let mut left = limit;
    for before in operators(args, old)? {
        let name = &old.operators()[before].name;
        let Some(after) = new.operators().iter().position(|operator| operator.name == *name) else {
            tell(format_args!("operator `{name}` is left out: checkpoint {} does not have it", new.epoch()));
            continue;
        };
        let states = states(args, old, before)?;
        for group in 0..KEY_GROUPS as KeyGroup {
            if left == 0 || out.is_closed() {
                return Ok(());
            }
            let meant = |state: usize| states.contains(&state);
            let rows = (old.rows(before, group, meant, None)?, new.rows(after, group, meant, None)?);
            for (was, is) in differences(rows.0, rows.1) {
                let show =
                    |view: &CheckpointView, place, row: Option<Row>| row.map(|row| view.show(place, &row)).transpose();
                let (was, is) = (show(old, before, was)?, show(new, after, is)?);
                let value = |row: &Option<ShownRow>| row.as_ref().map(|row| row.value.clone());
                let (from, to) = (value(&was), value(&is));
                // A hash map may be stored in another order, and be the same.
                if left == 0 || from == to {
                    continue;
                }
                left -= 1;
                let Some(row) = was.as_ref().or(is.as_ref()) else { continue };
                let change = match (&was, &is) {
                    (None, _) => "added",
                    (_, None) => "removed",
                    _ => "changed",
                };
                let [name, state, group, start, end] = place_of(old, before, row);
                let (null, change) = (Value::Null, json!(change));
                let text = |json: &'_ Option<String>| json.clone();
                let (key, from, to) = (text(&row.key), text(&from), text(&to));
                fn cell<'a>(text: &'a Option<String>, null: &'a Value) -> Cell<'a> {
                    text.as_ref().map_or(Cell::Value(null), |text| Cell::Json(text))
                }
                let values = [&change, &name, &state, &group, &start, &end].map(Cell::Value);
                let cells: Vec<_> =
                    values.into_iter().chain([&key, &from, &to].map(|text| cell(text, &null))).collect();
                out.cells(&cells);
            }
        }
    }
    for operator in new.operators().iter().filter(|own| args.operator.as_ref().is_none_or(|name| *name == own.name)) {
        if !old.operators().iter().any(|own| own.name == operator.name) {
            tell(format_args!("operator `{}` is left out: checkpoint {} does not have it", operator.name, old.epoch()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_those_of_words_or_of_json() {
        assert!(begins(Some("\"EWR\""), "EW") && !begins(Some("\"EWR\""), "\"EW"));
        assert!(begins(Some("[\"EWR\",7]"), "[\"E") && !begins(Some("12"), "2") && begins(Some("12"), "1"));
        assert!(!begins(None, ""));
    }

    #[test]
    fn numbers_are_epochs_and_the_rest_are_paths() {
        assert_eq!(start_from("12"), StartFrom::Epoch(12));
        assert_eq!(start_from("./12"), StartFrom::Savepoint("./12".into()));
    }
}
