//! Time travel: the state in a checkpoint or savepoint, read by the job's own types, while the job runs or when it does not.
//!
//! [`Job::checkpoint`] gives a [`CheckpointView`]; that lists operators and their states, and gives typed ones as [`StateView`]. The
//! command `state` of every job shows the same as JSON lines or tables.
//!
//! **Time**: what a view shows is cut at the end of the checkpoint's epoch. Windows are shown as ranges of event time, from the first
//! instant to the first that no longer belongs to it. **Order**: entries come by key group, state, time and the bytes of
//! their keys, whatever wrote them. **Cost**: to find a key reads one key group; anything else reads all the groups of one
//! operator, one after the other, after it has compared all files with their checksums, once.
//!
//! **Errors**: `State` when a checkpoint is damaged, of another job, or its state of other types than the program's.

mod typed;

use std::ops::Range;

use millstream_state::checkpoint::{Refusal, StartFrom};
use millstream_state::held::{Held, Readable};
use millstream_state::key_group::{KEY_GROUPS, KeyGroup};
use millstream_state::manifest::{Manifest, OperatorEntry};
use millstream_state::reader::{Form, Reader, Row, Wanted};
use millstream_state::snapshot::{Key, Value};
use millstream_state::store::CheckpointStore;

pub(crate) use typed::differences;
pub use typed::{Difference, Entry, StateView};

use crate::driver::guard;
use crate::error::{Error, Result};
use crate::graph::Body;
use crate::job::Job;
use crate::recovery::{check_job, refuse};
use crate::schema::Schemas;
use crate::shared::lock;
use crate::time::EventTime;

/// What a job's operator tells of its state, so that it can be shown.
pub(crate) struct Shown {
    pub readers: Vec<Reader>,
    pub names: Vec<String>,
    pub times: Box<dyn Fn(usize, i64) -> Option<Range<EventTime>> + Send>,
}

/// The state of a job in one of its checkpoints or savepoints. Open, it stays readable even if the job deletes the checkpoint.
pub struct CheckpointView {
    from: Readable,
    operators: Vec<OperatorView>,
}

impl std::fmt::Debug for CheckpointView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CheckpointView").field("from", &self.from.held().dir()).finish_non_exhaustive()
    }
}

/// An operator in a checkpoint.
pub struct OperatorView {
    /// Its name.
    pub name: String,
    /// What it does.
    pub operator: String,
    /// How many entries it keeps.
    pub entries: u64,
    /// Its states; none, if it cannot be read.
    pub states: Vec<StateInfo>,
    /// Why the program cannot read it, if it cannot.
    pub unreadable: Option<String>,
    id: u32,
    shown: Option<Shown>,
}

impl std::fmt::Debug for OperatorView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OperatorView")
            .field("name", &self.name)
            .field("states", &self.states)
            .finish_non_exhaustive()
    }
}

/// One of the states of an operator.
#[derive(Clone, Debug)]
pub struct StateInfo {
    /// Its name within the operator.
    pub name: String,
    /// How its entries are told apart.
    pub form: Form,
    /// The types of its keys and values, where it has such.
    pub types: Option<(&'static str, &'static str)>,
}

impl StateInfo {
    /// Whether it has keys, and is not only a number per key group.
    pub fn is_keyed(&self) -> bool {
        matches!(self.form, Form::Keyed | Form::Sliced)
    }
}

/// How much an operator keeps in one key group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupSize {
    /// The state, by its place among those of the operator.
    pub state: usize,
    /// The key group.
    pub group: KeyGroup,
    /// How many entries; not known, where the program cannot read the state.
    pub entries: Option<u64>,
    /// Bytes of keys and values as they are stored, before RocksDB compresses them.
    pub bytes: u64,
}

impl Job {
    /// Opens a checkpoint of this job to look at its state: [`StartFrom::Newest`], [`StartFrom::Epoch`], or a savepoint. The job may be
    /// running meanwhile, in this process or another. Nothing is written.
    ///
    /// # Errors
    /// When there is no such checkpoint, or it is damaged, or another job's.
    pub fn checkpoint(&self, at: StartFrom) -> Result<CheckpointView> {
        self.validate()?;
        let from = self.readable(&at)?;
        let operators = self.operator_views(from.held().manifest());
        Ok(CheckpointView { from, operators })
    }

    fn readable(&self, at: &StartFrom) -> Result<Readable> {
        let open = |held: Held| {
            check_job(held.dir(), held.manifest(), &self.name)?;
            Ok(held.into_readable()?)
        };
        let store = match at {
            StartFrom::Savepoint(dir) | StartFrom::FreshFromSavepoint(dir) => return open(Held::open(dir)?),
            StartFrom::Fresh => {
                return Err(
                    Error::config("a fresh start has no state to look at").hint("name a checkpoint or a savepoint")
                );
            }
            _ => self.store()?,
        };
        let mut tries = 0;
        loop {
            let present = store.epochs()?;
            let is_intact = |epoch: &&u64| store.verify(**epoch).is_ok();
            let newest = present.last();
            let chosen = match at {
                StartFrom::Epoch(epoch) if present.contains(epoch) => Some(epoch),
                StartFrom::Epoch(epoch) => {
                    return Err(refuse(store.dir(), Refusal::Missing { epoch: *epoch, present }));
                }
                StartFrom::NewestIntact => present.iter().rev().find(is_intact).or(newest),
                _ => newest,
            };
            let Some(epoch) = chosen else {
                let text = format!("there are no checkpoints in {}", store.dir().display());
                return Err(
                    Error::config(text).hint("run the job first, or name its directory with `--checkpoint-dir DIR`")
                );
            };
            let opened = store.held(*epoch).map_err(Error::from).and_then(open);
            tries += 1;
            match opened {
                // A job that runs may have deleted the one that was the newest a moment ago.
                Err(_) if tries < 20 && !matches!(at, StartFrom::Epoch(_)) && !store.epochs()?.contains(epoch) => {}
                opened => return opened.map_err(|error| error.at_place(format!("checkpoint {epoch}"))),
            }
        }
    }

    /// The checkpoints of this job.
    pub(crate) fn store(&self) -> Result<CheckpointStore> {
        let dir = self.settings.checkpoint_dir.as_ref();
        dir.map(CheckpointStore::new).ok_or_else(|| {
            Error::config("this job keeps no checkpoints").hint("name a directory with `--checkpoint-dir DIR`")
        })
    }

    fn operator_views(&self, manifest: &Manifest) -> Vec<OperatorView> {
        let graph = lock(&self.graph);
        let names = graph.names();
        let schemas = Schemas::of(&graph, &names, &self.migrations);
        let left = self.settings.names.left_for(manifest);
        let view =
            |entry: &OperatorEntry| {
                let name = left.new_name(&entry.name);
                let keyed = names.iter().zip(&graph.nodes).find_map(|(own, node)| match &node.body {
                    Body::Keyed(keyed) if own == name => Some(keyed),
                    _ => None,
                });
                let unreadable = match keyed.map(|keyed| keyed.describe()) {
                    None => Some("this program has no operator of that name".into()),
                    Some((operator, _)) if operator != entry.operator => {
                        Some(format!("it was {} there, and is {operator} in this program", entry.operator))
                    }
                    Some((_, state)) => schemas.unreadable(entry, name, &state),
                };
                let shown = keyed.filter(|_| unreadable.is_none()).map(|keyed| keyed.shown());
                let states =
                    shown.iter().flat_map(|shown| shown.readers.iter().zip(&shown.names)).map(|(reader, name)| {
                        StateInfo { name: name.clone(), form: reader.form(), types: reader.type_names() }
                    });
                OperatorView {
                    name: name.to_string(),
                    operator: entry.operator.clone(),
                    entries: entry.entries,
                    states: states.collect(),
                    unreadable,
                    id: entry.id,
                    shown,
                }
            };
        let mut views: Vec<_> = manifest.operators.iter().map(view).collect();
        views.sort_by(|a, b| a.name.cmp(&b.name));
        views
    }
}

impl CheckpointView {
    /// The epoch at whose end it was cut.
    pub fn epoch(&self) -> u64 {
        self.manifest().epoch
    }

    /// Everything else that is known of it.
    pub fn manifest(&self) -> &Manifest {
        self.from.held().manifest()
    }

    /// Every operator that keeps state, by name.
    pub fn operators(&self) -> &[OperatorView] {
        &self.operators
    }

    /// A state, of keys and values of these types: by the name of its operator, whose first state is meant, or as `operator/state`. Of a process
    /// function the values are its own state, of keys that have such.
    ///
    /// ```no_run
    /// # use millstream_runtime::{error::Result, job::Job};
    /// # fn example(job: Job) -> Result<()> {
    /// use millstream_state::checkpoint::StartFrom;
    ///
    /// let then = job.checkpoint(StartFrom::Epoch(12))?;
    /// let balances = then.state::<String, u64>("balances")?;
    /// println!("{:?} of {}", balances.get("Ann")?, balances.count()?);
    /// for entry in balances.iter() {
    ///     let entry = entry?;
    ///     println!("{} has {}", entry.key, entry.value);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When there is no such state, or it is of other types.
    pub fn state<K: Key, V: Value>(&self, name: &str) -> Result<StateView<'_, K, V>> {
        let (operator, state) = self.find(name)?;
        let (view, reader) = (&self.operators[operator], self.reader(operator, state)?);
        let part = reader.part_of::<K, V>();
        if !reader.is_of::<K, V>() && part.is_none() {
            let is = match reader.type_names() {
                Some((key, value)) => format!("has keys `{key}` and values `{value}`"),
                None => "has no keys".to_string(),
            };
            let (key, value) = (std::any::type_name::<K>(), std::any::type_name::<V>());
            let text = format!("state `{}` {is}, and was asked for as `{key}` and `{value}`", view.states[state].name);
            return Err(Error::config(text).in_operator(&view.name));
        }
        Ok(StateView::new(self, operator, state, part))
    }

    /// How many entries a state has, whatever their types: by the name of its operator, whose first state is meant, or as `operator/state`.
    ///
    /// # Errors
    /// When there is no such state, or the checkpoint is damaged.
    pub fn entries(&self, name: &str) -> Result<u64> {
        let (operator, state) = self.find(name)?;
        self.entries_of(operator, state)
    }

    /// The same by places.
    fn entries_of(&self, operator: usize, state: usize) -> Result<u64> {
        let sizes = self.sizes(&self.operators[operator].name)?;
        Ok(sizes.iter().filter(|size| size.state == state).filter_map(|size| size.entries).sum())
    }

    /// How much an operator keeps, by state and key group; groups without entries are left out.
    ///
    /// # Errors
    /// When there is no such operator, or the checkpoint is damaged.
    pub fn sizes(&self, operator: &str) -> Result<Vec<GroupSize>> {
        self.verify()?;
        let operator = self.operator(operator)?;
        let mut sizes: Vec<GroupSize> = Vec::new();
        for group in 0..KEY_GROUPS as KeyGroup {
            self.from.scan_group(self.operators[operator].id, group, |entry| {
                let readers = self.operators[operator].shown.as_ref().map(|shown| &shown.readers);
                let state = usize::from(entry.state);
                let reader = readers.and_then(|readers| readers.get(state));
                let entries = reader.map(|reader| reader.count(entry)).transpose()?;
                let bytes = (entry.key.len() + entry.value.len()) as u64;
                match sizes.last_mut() {
                    Some(last) if (last.state, last.group) == (state, group) => {
                        last.entries = last.entries.zip(entries).map(|(before, more)| before + more);
                        last.bytes += bytes;
                    }
                    _ => sizes.push(GroupSize { state, group, entries, bytes }),
                }
                Ok(())
            })?;
        }
        sizes.sort_by_key(|size| (size.state, size.group));
        Ok(sizes)
    }

    /// Compares all files with their checksums, if that was not done yet.
    pub(crate) fn verify(&self) -> Result<()> {
        let named = |error| Error::from(error).at_place(format!("checkpoint {}", self.epoch()));
        self.from.held().verify().map_err(named)
    }

    /// The place of an operator.
    pub(crate) fn operator(&self, name: &str) -> Result<usize> {
        self.operators.iter().position(|operator| operator.name == name).ok_or_else(|| {
            let names: Vec<_> = self.operators.iter().map(|operator| format!("`{}`", operator.name)).collect();
            Error::config(format!("checkpoint {} has no operator `{name}` that keeps state", self.epoch()))
                .hint(format!("there are: {}", if names.is_empty() { "none".into() } else { names.join(", ") }))
        })
    }

    /// The places of an operator and of its state.
    pub(crate) fn find(&self, name: &str) -> Result<(usize, usize)> {
        let (operator, state) = name.split_once('/').map_or((name, None), |(operator, state)| (operator, Some(state)));
        let place = self.operator(operator)?;
        self.readable(place)?;
        let view = &self.operators[place];
        let Some(state) = state else { return Ok((place, 0)) };
        let found = view.states.iter().position(|own| own.name == state);
        let found = found.ok_or_else(|| {
            let names: Vec<_> = view.states.iter().map(|state| format!("`{}`", state.name)).collect();
            Error::config(format!("it has no state `{state}`"))
                .in_operator(&view.name)
                .hint(format!("there are: {}", names.join(", ")))
        });
        Ok((place, found?))
    }

    /// Refuses an operator that the program cannot read.
    pub(crate) fn readable(&self, operator: usize) -> Result<&Shown> {
        let view = &self.operators[operator];
        view.shown.as_ref().ok_or_else(|| {
            let why = view.unreadable.as_deref().unwrap_or("it is not known");
            Error::state(format!("its state in checkpoint {} cannot be read: {why}", self.epoch()))
                .in_operator(&view.name)
                .hint("read it with the program that the checkpoint was taken by, or one of the same types")
        })
    }

    fn reader(&self, operator: usize, state: usize) -> Result<Reader> {
        let reader = self.readable(operator)?.readers.get(state).copied();
        reader.ok_or_else(|| Error::internal("an operator without states").in_operator(&self.operators[operator].name))
    }

    /// The rows of an operator in one key group, in order; only those of some states, or of one key.
    pub(crate) fn rows(
        &self,
        operator: usize,
        group: KeyGroup,
        states: impl Fn(usize) -> bool,
        wanted: Option<&[u8]>,
    ) -> Result<Vec<Row>> {
        let readers = &self.readable(operator)?.readers;
        let mut rows = Vec::new();
        let scanned = self.from.scan_group(self.operators[operator].id, group, |entry| {
            match readers.get(usize::from(entry.state)) {
                Some(reader) if states(usize::from(entry.state)) => reader.rows(entry, wanted, &mut rows),
                _ => Ok(()),
            }
        });
        scanned.map_err(|error| Error::from(error).in_operator(&self.operators[operator].name))?;
        rows.sort();
        Ok(rows)
    }

    /// A row in words.
    pub(crate) fn show(&self, operator: usize, row: &Row) -> Result<ShownRow> {
        let (view, state) = (&self.operators[operator], usize::from(row.state));
        let (shown, reader) = (self.readable(operator)?, self.reader(operator, state)?);
        // To decode and to show is the user's code.
        guard(&view.name, || {
            let times = row.slice.and_then(|slice| (shown.times)(state, slice));
            let mark =
                || Ok::<_, Error>((shown.times)(state, reader.mark(row)?).map(|times| format!("\"{}\"", times.end)));
            let value = if reader.form() == Form::Marks { mark()? } else { None };
            Ok(ShownRow {
                state: view.states[state].name.clone(),
                group: row.group,
                slice: row.slice,
                times,
                key: reader.key_json(row)?,
                value: value.map_or_else(|| reader.value_json(row), Ok)?,
            })
        })
    }

    /// The key that a person means.
    pub(crate) fn find_key(&self, operator: usize, state: usize, text: &str) -> Result<Wanted> {
        let reader = self.reader(operator, state)?;
        guard(&self.operators[operator].name, || {
            reader.find(text).map_err(|error| {
                Error::config(error.to_string())
                    .hint("give the key as JSON, as `state scan` shows it: '\"a word\"', 7, '[\"EWR\",7]'")
            })
        })
    }
}

/// A row in words; key and value as JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ShownRow {
    pub state: String,
    pub group: KeyGroup,
    pub slice: Option<i64>,
    pub times: Option<Range<EventTime>>,
    pub key: Option<String>,
    pub value: String,
}
