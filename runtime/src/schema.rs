//! Whether what a checkpoint holds is of the types that the job has now, and how it becomes so.
//!
//! Compared before anything runs, from the schemas in the manifest; done in the database that the run works in, before its
//! workers restore from it. What is decided and done with bytes is in [`millstream_state::migrate`].

use std::collections::HashMap;
use std::path::Path;
use std::sync::{PoisonError, RwLock};
use std::time::Instant;

use millstream_state::evolve::Migrations;
use millstream_state::manifest::{Manifest, OperatorEntry, StateEntry};
use millstream_state::migrate::{Differences, OperatorPlan, StateForm, migrate, plan};
use millstream_state::rocks::StateDb;

use crate::driver::guard;
use crate::error::{Error, Result};
use crate::graph::{Body, Graph};

/// The schemas of what the job's operators keep.
#[derive(Default)]
pub(crate) struct Schemas {
    /// By operator.
    forms: HashMap<String, Vec<StateForm>>,
    /// Their forms by the names of types.
    names: HashMap<String, String>,
    migrations: Migrations,
}

impl Schemas {
    /// Traces all types, which takes a while: once in a start.
    pub(crate) fn of(graph: &Graph, names: &[String], migrations: &Migrations) -> Self {
        let mut schemas = Schemas { migrations: migrations.clone(), ..Schemas::default() };
        for (node, name) in graph.nodes.iter().zip(names) {
            let Body::Keyed(keyed) = &node.body else { continue };
            let forms = keyed.forms(migrations);
            for (type_name, why) in forms.iter().flat_map(StateForm::opaque) {
                tracing::debug!(operator = %name, "`{type_name}` is known by its name alone: {why}");
            }
            schemas.forms.insert(name.clone(), forms);
            schemas.names.insert(name.clone(), keyed.describe().1);
        }
        schemas
    }

    /// What a manifest says of an operator's states.
    pub(crate) fn entries(&self, operator: &str) -> Vec<StateEntry> {
        self.forms.get(operator).into_iter().flatten().map(StateForm::to_entry).collect()
    }

    /// Refuses a checkpoint whose state, for operator `name`, is neither of the job's types nor can be brought to them. `state`
    /// is the job's form by the names of types, which is all there is for checkpoints from before there were schemas.
    pub(crate) fn check(&self, dir: &Path, epoch: u64, theirs: &OperatorEntry, name: &str, state: &str) -> Result<()> {
        let place = format!("checkpoint {epoch} in {}", dir.display());
        if theirs.states.is_empty() {
            let versions = self.forms.get(name).into_iter().flatten().map(StateForm::newest_version).max();
            let text = match versions {
                _ if theirs.state != state => {
                    format!("its state was {} and is now {state}, says {place}", theirs.state)
                }
                // The name of a type is that of its newest form, whatever the form was then.
                Some(2..) => format!("{place} does not say which version of {state} it has"),
                _ => return Ok(()),
            };
            return Err(Error::state(text).in_operator(name).hint(
                "it is from before checkpoints had schemas, so types are known by their names alone: undo that change, stop the \
                 program after its next checkpoint, then make the change again; or begin again with `--fresh`",
            ));
        }
        self.plan(theirs, name, theirs.state == state)
            .map(drop)
            .map_err(|differences| refuse(&differences, name, &place))
    }

    /// Why what a checkpoint holds for operator `name` is not of the job's types as it stands, if it is not.
    pub(crate) fn unreadable(&self, theirs: &OperatorEntry, name: &str, state: &str) -> Option<String> {
        if theirs.states.is_empty() {
            let differs = || format!("its state is {} there, and {state} in this program", theirs.state);
            return (theirs.state != state).then(differs);
        }
        match self.plan(theirs, name, theirs.state == state) {
            Ok(plan) if plan.is_empty() => None,
            Ok(_) => Some("its types have a newer version in this program: start the job, which migrates them".into()),
            Err(differences) => Some(differences.found.join("; ")),
        }
    }

    fn plan(&self, theirs: &OperatorEntry, name: &str, same_names: bool) -> Result<OperatorPlan, Differences> {
        let forms = self.forms.get(name).map(Vec::as_slice).unwrap_or_default();
        plan(&theirs.states, forms, same_names, &self.migrations)
    }

    /// Brings the state of every operator to the job's types, in the database that the run works in.
    pub(crate) fn migrate(&self, job: &str, db: &RwLock<StateDb>, manifest: &Manifest) -> Result<()> {
        let mut db = db.write().unwrap_or_else(PoisonError::into_inner);
        for theirs in manifest.operators.iter().filter(|operator| !operator.states.is_empty()) {
            let name = &theirs.name;
            let Some(forms) = self.forms.get(name) else { continue };
            let same_names = self.names.get(name) == Some(&theirs.state);
            let place = format!("checkpoint {}", manifest.epoch);
            let plan = self.plan(theirs, name, same_names);
            let plan = plan.map_err(|differences| refuse(&differences, name, &place))?;
            if plan.is_empty() {
                continue;
            }
            let began = Instant::now();
            let entries = guard(name, || {
                migrate(&mut db, theirs.id, &plan, &theirs.states, forms, &self.migrations).map_err(|error| {
                    let text = format!("cannot migrate the state of checkpoint {}", manifest.epoch);
                    Error::state(text).because(error).hint(
                        "the checkpoint is as it was: change the migration and start again, or go on with the old program",
                    )
                })
            })?;
            tracing::info!(job, operator = %name, entries, ms = began.elapsed().as_millis() as u64, "state migrated");
        }
        Ok(())
    }
}

fn refuse(differences: &Differences, operator: &str, checkpoint: &str) -> Error {
    let Differences { state, found, changed, other_kinds } = differences;
    let error = Error::state(format!("{}, says {checkpoint}", found.join("; ")))
        .in_operator(operator)
        .at_place(format!("state `{state}`"));
    let newer = found.iter().any(|text| text.contains("and this program knows"));
    let undo = "or undo the change, or begin again with `--fresh`";
    error.hint(match changed {
        _ if *other_kinds => format!(
            "it is asked for something else now, as windows that were given early results or allowed lateness, or no longer have them: give it \
             another name, with which it begins empty, and drop what the old one had with `--drop-state {operator}`; {undo}"
        ),
        _ if newer => "start the program that wrote it, or a newer one; or go back to an older checkpoint with `--from EPOCH`; \
                       types with versions are registered by `job.migrate::<T>()`"
            .to_string(),
        Some(changed) => format!(
            "keep the form that it had as `{changed}V1`, with `#[derive(Evolve)]`; put `#[derive(Evolve)] \
             #[evolve(from = {changed}V1)]` on `{changed}`, and `.migrate::<{changed}>()` on the job; {undo}"
        ),
        None => format!(
            "to migrate it, give it a type of its own (`struct Id(u64)` is stored like the `u64` in it) and that one versions: see \
             `Evolve`; {undo}"
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::moment::Moment;
    use crate::time::{EventSpan, EventTime, iso8601};
    use millstream_state::evolve::{Evolve, EvolveError, First};
    use millstream_state::keyed::KeyedState;
    use millstream_state::snapshot::State;

    #[derive(Clone, serde::Serialize, serde::Deserialize)]
    struct Order<T> {
        cents: T,
    }

    fn forms<T: millstream_state::snapshot::Value>() -> Vec<StateForm> {
        KeyedState::<u64, T>::default().forms(&Migrations::default())
    }

    fn entry<T: millstream_state::snapshot::Value>(state: &str) -> OperatorEntry {
        OperatorEntry {
            name: "spend".into(),
            id: 1,
            operator: String::new(),
            state: state.into(),
            states: forms::<T>().iter().map(StateForm::to_entry).collect(),
            entries: 0,
        }
    }

    #[test]
    fn what_differs_is_named_with_what_to_write() {
        let schemas = Schemas { forms: [("spend".into(), forms::<Order<u64>>())].into(), ..Schemas::default() };
        let check = |entry: &OperatorEntry| schemas.check(Path::new("dir"), 7, entry, "spend", "now");
        check(&entry::<Order<u64>>("another name")).expect("names do not count");
        let error = check(&entry::<Order<i64>>("was")).expect_err("another type").to_string();
        let text = "operator `spend`, state `values`: field `cents` of `Order` was i64 and is now u64, says checkpoint 7 in dir\n";
        assert!(error.starts_with(text), "{error}");
        assert!(error.contains("#[evolve(from = OrderV1)]") && error.contains(".migrate::<Order>()"), "{error}");
        let error = check(&entry::<String>("was")).expect_err("another type").to_string();
        assert!(error.contains("the value was string and is now struct Order"), "{error}");
    }

    #[test]
    fn other_kinds_of_state_are_no_matter_of_types() {
        let two = [forms::<u64>(), forms::<u64>()].concat();
        let schemas = Schemas { forms: [("spend".into(), two)].into(), ..Schemas::default() };
        let error = schemas.check(Path::new("dir"), 7, &entry::<u64>("was"), "spend", "now").expect_err("other state");
        let error = error.to_string();
        assert!(error.contains("it kept values, and now keeps values, values, says checkpoint 7 in dir"), "{error}");
        assert!(error.contains("allowed lateness") && error.contains("--drop-state spend"), "{error}");
        assert!(!error.contains("Evolve"), "{error}");
    }

    #[test]
    fn without_schemas_names_count() {
        let schemas = Schemas::default();
        let mut old = entry::<u64>("u64 by u64");
        old.states.clear();
        schemas.check(Path::new("dir"), 7, &old, "spend", "u64 by u64").expect("fits");
        let error = schemas.check(Path::new("dir"), 7, &old, "spend", "i64 by u64").expect_err("differs").to_string();
        assert!(error.contains("its state was u64 by u64 and is now i64 by u64, says checkpoint 7 in dir"), "{error}");
    }

    #[derive(Clone, serde::Serialize, serde::Deserialize)]
    struct Timed {
        at: EventTime,
        #[serde(with = "iso8601")]
        shown: EventTime,
        span: Option<EventSpan>,
        moment: Moment,
    }

    #[test]
    fn times_are_seen_as_they_are_stored() {
        let text = serde_json::to_string(&forms::<Timed>()[0].to_entry()).expect("prints");
        let expected =
            "struct(Timed,at=i64,shown=string,span=option(i64),moment=struct(Moment,epoch=u64,watermark=i64))";
        assert!(text.contains(expected), "{text}");
    }

    #[derive(Clone, serde::Serialize, serde::Deserialize)]
    struct Second(u8);

    impl Evolve for Second {
        type Previous = First;
        const VERSION: u32 = 2;
        fn evolve(none: First) -> Result<Self, EvolveError> {
            match none {}
        }
    }

    #[test]
    fn without_schemas_nobody_knows_the_version() {
        let mut migrations = Migrations::default();
        migrations.add::<Second>();
        let forms = KeyedState::<u64, Second>::default().forms(&migrations);
        let schemas = Schemas { forms: [("spend".into(), forms)].into(), migrations, ..Schemas::default() };
        let mut old = entry::<u64>("Second by u64");
        old.states.clear();
        let error =
            schemas.check(Path::new("dir"), 7, &old, "spend", "Second by u64").expect_err("unknown").to_string();
        assert!(error.contains("checkpoint 7 in dir does not say which version"), "{error}");
    }
}
