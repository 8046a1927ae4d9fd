//! The names under which state is found, where a program no longer has those of the checkpoint: what was renamed, what is to be
//! dropped, what is new.
//!
//! One rule for checkpoints and savepoints: **what is new starts empty** (a source at its beginning), **what has another name** must be
//! said to have, and **what is gone** is refused until somebody says that it may go. New is only what the program gave a
//! name: derived names shift when an operator is added, and state would come to the wrong one.

use std::collections::BTreeSet;
use std::path::Path;

use millstream_state::manifest::{Manifest, NamesEntry};

use crate::error::{Error, Result};
use crate::recovery::Shape;

/// What became of operators, sources and sinks since a checkpoint was taken. What it says of names that the checkpoint does not have
/// counts for nothing, and neither does what the program that took the checkpoint had been told as well; so it may stay
/// when the job has gone on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Old and new names.
    pub renamed: Vec<(String, String)>,
    /// Names whose state is dropped: the job no longer has them.
    pub dropped: Vec<String>,
}

/// Operators, sources or sinks: each is found among its own.
type Of = (&'static str, fn(&Manifest) -> Vec<&String>, fn(&Shape) -> Vec<&String>);

const KINDS: [Of; 3] = [
    (
        "operator",
        |m| m.operators.iter().map(|entry| &entry.name).collect(),
        |s| s.operators.iter().map(|own| &own.0).collect(),
    ),
    (
        "source",
        |m| m.sources.iter().map(|entry| &entry.name).collect(),
        |s| s.sources.iter().map(|own| &own.0).collect(),
    ),
    ("sink", |m| m.sinks.iter().map(|entry| &entry.name).collect(), |s| s.sinks.iter().collect()),
];

impl Names {
    /// What is called `old` in a checkpoint, in this program.
    pub(crate) fn new_name<'a>(&'a self, old: &'a str) -> &'a str {
        self.renamed.iter().find(|(from, _)| from == old).map_or(old, |(_, to)| to)
    }

    /// As it stands in the manifests of a program that was told so.
    pub(crate) fn to_entry(&self) -> NamesEntry {
        NamesEntry { renamed: self.renamed.clone(), dropped: self.dropped.clone() }
    }

    /// What is still to be done with the names of a checkpoint.
    pub(crate) fn left_for(&self, manifest: &Manifest) -> Names {
        let done = &manifest.names;
        let renamed = self.renamed.iter().filter(|pair| !done.renamed.contains(pair)).cloned();
        let dropped = self.dropped.iter().filter(|name| !done.dropped.contains(name)).cloned();
        Names { renamed: renamed.collect(), dropped: dropped.collect() }
    }

    /// Checks what can be checked without a checkpoint; `own` are the names that the job has.
    pub(crate) fn check(&self, own: &[String]) -> Result<()> {
        let (mut from, mut to) = (BTreeSet::new(), BTreeSet::new());
        for (old, new) in &self.renamed {
            if !from.insert(old) || !to.insert(new) {
                return Err(Error::config(format!(
                    "`{old}` cannot be renamed to `{new}`: one of them is renamed twice"
                )));
            }
            if !own.contains(new) {
                return Err(Error::config(format!(
                    "`{old}` cannot be renamed to `{new}`: the job has nothing of that name"
                ))
                .hint(format!("it has: `{}`", own.join("`, `"))));
            }
        }
        for name in &self.dropped {
            if from.contains(name) {
                return Err(Error::config(format!("`{name}` is both renamed and dropped")));
            }
            if own.contains(name) && !to.contains(name) {
                return Err(Error::config(format!("the state of `{name}` cannot be dropped: the job still has it")).hint(
                    "drop what the job no longer has; an operator that is to start empty needs a name of its own, and the old \
                     one can be dropped",
                ));
            }
        }
        Ok(())
    }

    /// The manifest of a checkpoint in `dir` as if it had been taken with the names of this program, without what is dropped.
    /// `committed`: its output has been committed for certain.
    pub(crate) fn apply(&self, dir: &Path, mut manifest: Manifest, shape: &Shape, committed: bool) -> Result<Manifest> {
        let epoch = manifest.epoch;
        let differs = |what: String| Error::state(format!("checkpoint {epoch} in {} {what}", dir.display()));
        let left = self.left_for(&manifest);
        let dropped = |name: &String| left.dropped.contains(name);
        if let Some(sink) =
            manifest.sinks.iter().find(|sink| dropped(&sink.name) && !sink.handles.is_empty() && !committed)
        {
            let text = format!(
                "has output that sink `{}` has prepared and not yet committed; without it, it would be lost",
                sink.name
            );
            return Err(differs(text).hint("start the job once as it was, and stop it; then the sink can go"));
        }
        if let Some(name) = left.dropped.iter().find(|name| shape.derived.iter().any(|own| is_like(own, name))) {
            return Err(differs(format!("has `{name}`, a name that was derived, and the job has others of its kind"))
                .hint("derived names shift when one of them goes, so state would come to the wrong one: give the others names with \
                       `.name(\"…\")` and rename them with `--rename-state` first"));
        }
        let has = |name: &String| KINDS.iter().any(|(_, theirs, _)| theirs(&manifest).contains(&name));
        let unknown = left.renamed.iter().find(|(old, _)| !has(old));
        manifest.operators.retain(|entry| !dropped(&entry.name));
        manifest.sources.retain(|entry| !dropped(&entry.name));
        manifest.sinks.retain(|entry| !dropped(&entry.name));
        let names = manifest.operators.iter_mut().map(|entry| &mut entry.name);
        let names = names.chain(manifest.sources.iter_mut().map(|entry| &mut entry.name));
        let mut seen = BTreeSet::new();
        for name in names.chain(manifest.sinks.iter_mut().map(|entry| &mut entry.name)) {
            let new = left.new_name(name).to_string();
            if !seen.insert(new.clone()) {
                let text = format!("has a `{new}` already, so nothing else there can be renamed to that");
                return Err(differs(text).hint("choose another name, or drop one of the two with `--drop-state NAME`"));
            }
            *name = new;
        }
        for (kind, theirs, ours) in KINDS {
            let (theirs, ours) = (theirs(&manifest), ours(shape));
            let mut new = ours.iter().filter(|name| !theirs.contains(name));
            if let Some(gone) = theirs.iter().find(|name| !ours.contains(name)) {
                let now = new.next().map_or("NEW", |name| name.as_str());
                let error = differs(format!("has `{gone}`, which the job no longer has"));
                let error = match unknown {
                    Some((old, new)) => error.note(format!("it has no `{old}` that could be renamed to `{new}`")),
                    None => error,
                };
                return Err(error.hint(format!(
                    "if that {kind} has another name now: `--rename-state {gone}={now}` (`Job::renamed`); if it is gone for good: \
                     `--drop-state {gone}` (`Job::drop_state`); or undo the change, or begin again with `--fresh`"
                )));
            }
            for name in new {
                if shape.derived.contains(*name) {
                    return Err(differs(format!("knows no {kind} `{name}`")).hint(
                        "what is new must be given a name with `.name(\"…\")`: names that are derived may be those of others, \
                         which were there before",
                    ));
                }
                tracing::warn!(epoch, "{kind} `{name}` is new to the checkpoint: it begins empty");
            }
        }
        manifest.names = self.to_entry();
        Ok(manifest)
    }
}

/// Whether two names are derived of the same kind: they differ in their numbers only.
fn is_like(one: &str, other: &str) -> bool {
    let kind = |name: &str| {
        let (kind, number) = name.rsplit_once('-')?;
        number.parse::<u32>().ok().map(|_| kind.to_string())
    };
    kind(one).is_some() && kind(one) == kind(other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recovery::tests::{manifest, shape};
    use millstream_state::manifest::SinkEntry;

    fn renamed(pairs: &[(&str, &str)]) -> Names {
        Names { renamed: pairs.iter().map(|(old, new)| (old.to_string(), new.to_string())).collect(), dropped: vec![] }
    }

    fn dropped(names: &[&str]) -> Names {
        Names { renamed: vec![], dropped: names.iter().map(ToString::to_string).collect() }
    }

    #[test]
    fn what_was_done_is_not_done_again() {
        let names = renamed(&[("a", "b"), ("b", "a")]);
        let mut shape = shape();
        shape.operators.clear();
        shape.sources.clear();
        shape.sinks = vec!["a".into(), "b".into()];
        let mut manifest = manifest();
        (manifest.operators, manifest.sources) = (vec![], vec![]);
        let sink = manifest.sinks[0].clone();
        manifest.sinks =
            ["a", "b"].map(|name| SinkEntry { name: name.into(), kind: name.into(), ..sink.clone() }).into();
        let kinds = |manifest: &Manifest| {
            manifest.sinks.iter().map(|sink| (sink.name.clone(), sink.kind.clone())).collect::<Vec<_>>()
        };
        let once = names.apply(Path::new("dir"), manifest, &shape, true).unwrap();
        assert_eq!(kinds(&once), [("b".into(), "a".into()), ("a".into(), "b".into())]);
        let again = names.apply(Path::new("dir"), once.clone(), &shape, true).unwrap();
        assert_eq!(kinds(&again), kinds(&once), "the same program starts again");
        // A later program that says nothing, and one behind it that says so anew.
        let plain = Names::default().apply(Path::new("dir"), again, &shape, true).unwrap();
        assert_eq!(kinds(&plain), kinds(&once));
        let back = names.apply(Path::new("dir"), plain, &shape, true).unwrap();
        assert_eq!(kinds(&back), [("a".into(), "a".into()), ("b".into(), "b".into())]);
    }

    fn apply(names: &Names, shape: &Shape, committed: bool) -> std::result::Result<Manifest, String> {
        let mut manifest = manifest();
        manifest.sinks[0].handles = vec!["part".into()];
        names.apply(Path::new("dir"), manifest, shape, committed).map_err(|error| error.to_string())
    }

    #[test]
    fn what_has_another_name_is_found_when_that_is_said() {
        let mut now = shape();
        now.operators[0].0 = "cost".into();
        let error = apply(&Names::default(), &now, true).unwrap_err();
        assert!(error.contains("has `spend`, which the job no longer has"), "{error}");
        assert!(error.contains("--rename-state spend=cost") && error.contains("--drop-state spend"), "{error}");
        let mapped = apply(&renamed(&[("spend", "cost")]), &now, true).unwrap();
        assert_eq!(mapped.operators[0].name, "cost");
        // Once a checkpoint has the new name, what was said of the old one does not matter.
        assert_eq!(apply(&renamed(&[("before", "spend")]), &shape(), true).unwrap().operators, manifest().operators);
        let error = apply(&renamed(&[("spent", "cost")]), &now, true).unwrap_err();
        assert!(
            error.contains("has `spend`") && error.contains("no `spent` that could be renamed to `cost`"),
            "{error}"
        );
        let error = apply(&renamed(&[("spend", "orders")]), &shape(), true).unwrap_err();
        assert!(error.contains("has a `orders` already"), "{error}");
    }

    #[test]
    fn names_can_be_exchanged() {
        let mut now = shape();
        (now.sources[0].0, now.sinks[0]) = ("spend".into(), "orders".into());
        now.operators[0].0 = "out".into();
        let names = renamed(&[("spend", "out"), ("out", "orders"), ("orders", "spend")]);
        let mapped = apply(&names, &now, true).unwrap();
        assert_eq!(
            (&*mapped.operators[0].name, &*mapped.sources[0].name, &*mapped.sinks[0].name),
            ("out", "spend", "orders")
        );
    }

    #[test]
    fn what_is_gone_goes_only_when_that_is_said() {
        let mut now = shape();
        now.operators.clear();
        let error = apply(&Names::default(), &now, true).unwrap_err();
        assert!(error.contains("has `spend`") && error.contains("--rename-state spend=NEW"), "{error}");
        assert!(apply(&dropped(&["spend"]), &now, true).unwrap().operators.is_empty());
        now.sinks.clear();
        let error = apply(&dropped(&["spend", "out"]), &now, false).unwrap_err();
        assert!(error.contains("sink `out` has prepared"), "{error}");
        assert!(apply(&dropped(&["spend", "out"]), &now, true).unwrap().sinks.is_empty());
    }

    #[test]
    fn what_is_new_needs_a_name_of_its_own() {
        let mut now = shape();
        now.operators.push(("fold-2".into(), "a running value per key".into(), "i64".into()));
        assert_eq!(apply(&Names::default(), &now, true).unwrap().operators.len(), 1);
        now.derived.insert("fold-2".into());
        let error = apply(&Names::default(), &now, true).unwrap_err();
        assert!(error.contains("knows no operator `fold-2`") && error.contains(".name("), "{error}");
    }

    #[test]
    fn nonsense_is_refused() {
        let own = ["a".to_string(), "b".to_string()];
        for (names, text) in [
            (renamed(&[("x", "a"), ("x", "b")]), "renamed twice"),
            (renamed(&[("x", "a"), ("y", "a")]), "renamed twice"),
            (renamed(&[("x", "c")]), "the job has nothing of that name"),
            (dropped(&["a"]), "the job still has it"),
            (Names { dropped: vec!["x".into()], ..renamed(&[("x", "a")]) }, "both renamed and dropped"),
        ] {
            let error = names.check(&own).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
        renamed(&[("a", "b"), ("b", "a")]).check(&own).unwrap();
        dropped(&["x"]).check(&own).unwrap();
    }
}
