//! The names of part files, and what a restart does with those it finds. Decisions only; nothing here touches the disk.
//!
//! | Name | Meaning |
//! |---|---|
//! | `part-e0000000007-w003-0000.csv.pending-0a1b2c3d` | written in epoch 7 by worker 3 in execution `0a1b2c3d`; not yet to be seen |
//! | `part-e0000000007-w003-0000.csv` | committed |
//!
//! Names come from checkpoints and directory listings, so they are checked character by character: a name that parses
//! has no directory in it.

use millstream_runtime::error::{Error, Result};
use millstream_runtime::moment::Epoch;

/// What stands between a committed name and the execution.
const PENDING: &str = ".pending-";

/// All endings that a sink of any format gives its files.
const ENDINGS: [&str; 4] = ["csv", "csv.gz", "jsonl", "jsonl.gz"];

/// A name of a part file, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PartName {
    /// The epoch to which all its records belong.
    pub(super) epoch: Epoch,
    /// The name without the execution.
    pub(super) committed: String,
    /// Whether it is that of a pending file.
    pub(super) pending: bool,
}

/// The name of a pending file.
pub(super) fn pending_name(epoch: Epoch, worker: usize, number: u32, ending: &str, execution: &str) -> String {
    format!("part-e{epoch:010}-w{worker:03}-{number:04}.{ending}{PENDING}{execution}")
}

/// The name of the file that says when the rows of a part happened: 8 bytes for each, in their order.
pub(super) fn times_name(committed: &str) -> String {
    format!(".{committed}.times")
}

impl PartName {
    /// Takes `name` apart, or `None` when no sink would name a file so.
    pub(super) fn parse(name: &str) -> Option<PartName> {
        let (committed, execution) = match name.split_once(PENDING) {
            Some((committed, execution)) => (committed, Some(execution)),
            None => (name, None),
        };
        let hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        if execution.is_some_and(|token| token.len() != 8 || !token.bytes().all(hex)) {
            return None;
        }
        let (numbers, ending) = committed.strip_prefix("part-e")?.split_once('.')?;
        let (epoch, rest) = numbers.split_once("-w")?;
        let (worker, number) = rest.split_once('-')?;
        let digits = |text: &str, least: usize| text.len() >= least && text.bytes().all(|b| b.is_ascii_digit());
        if !(digits(epoch, 10) && digits(worker, 3) && digits(number, 4) && ENDINGS.contains(&ending)) {
            return None;
        }
        Some(PartName { epoch: epoch.parse().ok()?, committed: committed.to_string(), pending: execution.is_some() })
    }

    /// Takes a handle from a checkpoint apart.
    pub(super) fn from_handle(handle: &str) -> Result<PartName> {
        PartName::parse(handle).filter(|part| part.pending).ok_or_else(|| {
            Error::state(format!("the checkpoint names {handle:?} as prepared output, which is no part file"))
                .hint("the checkpoint is damaged or of another sink: choose another one")
        })
    }
}

/// What a restart does with the files it finds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Pending files that belong to no checkpoint.
    pub(super) abandoned: Vec<String>,
    /// Committed files that are later than the checkpoint, by name.
    pub(super) later: Vec<String>,
}

impl Plan {
    /// Decides over `names`, the files of a directory, when the checkpoint of epoch `restored` with the prepared output
    /// `handles` is restored; `None` is a fresh start, for which every committed file is too late.
    pub(super) fn new(names: impl IntoIterator<Item = String>, restored: Option<Epoch>, handles: &[String]) -> Plan {
        let mut plan = Plan::default();
        for name in names {
            let Some(part) = PartName::parse(&name) else { continue };
            if part.pending {
                if !handles.contains(&name) {
                    plan.abandoned.push(name);
                }
            } else if restored.is_none_or(|restored| part.epoch > restored) {
                plan.later.push(name);
            }
        }
        plan.abandoned.sort_unstable();
        plan.later.sort_unstable();
        plan
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart_as_they_are_made() {
        for ending in ENDINGS {
            let name = pending_name(7, 3, 12, ending, "0a1b2c3d");
            let part = PartName::parse(&name).unwrap();
            let committed = format!("part-e0000000007-w003-0012.{ending}");
            assert_eq!(part, PartName { epoch: 7, committed: committed.clone(), pending: true });
            assert_eq!(PartName::parse(&committed), Some(PartName { epoch: 7, committed, pending: false }));
        }
        let large = pending_name(u64::MAX, 12_345, 123_456, "csv", "00000000");
        assert_eq!(PartName::parse(&large).map(|part| part.epoch), Some(u64::MAX));
    }

    #[test]
    fn other_names_are_refused() {
        for name in [
            "",
            ".",
            "../x",
            "/etc/passwd",
            "part-e0000000007-w003-0000.csv",
            "part-e0000000007-w003-0000.csv.pending-",
            "part-e0000000007-w003-0000.csv.pending-0a1b2c3D",
            "part-e0000000007-w003-0000.csv.pending-../../ab",
            "part-e0000000007-w003-0000.csv/../../x.pending-0a1b2c3d",
            "part-e000000000/-w003-0000.csv.pending-0a1b2c3d",
            "part-e7-w003-0000.csv.pending-0a1b2c3d",
            "part-e99999999999999999999-w003-0000.csv.pending-0a1b2c3d",
            "../part-e0000000007-w003-0000.csv.pending-0a1b2c3d",
            "part-e0000000007-w003-0000.exe.pending-0a1b2c3d",
        ] {
            assert!(PartName::from_handle(name).is_err(), "{name}");
        }
    }

    #[test]
    fn a_restart_keeps_what_its_checkpoint_holds() {
        let pending = |epoch| pending_name(epoch, 0, 0, "csv", "0a1b2c3d");
        let committed = |epoch| PartName::parse(&pending(epoch)).unwrap().committed;
        let names =
            || [pending(4), pending(5), pending(6), committed(3), committed(4), committed(5), "x.csv".to_string()];
        let plan = Plan::new(names(), Some(4), &[pending(4)]);
        assert_eq!(plan, Plan { abandoned: vec![pending(5), pending(6)], later: vec![committed(5)] });
        let fresh = Plan::new(names(), None, &[]);
        assert_eq!((fresh.abandoned.len(), fresh.later.len()), (3, 3));
    }
}
