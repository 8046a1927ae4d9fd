//! From a job as described to one that runs: locks, recovery, workers, coordinator.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, RwLock};
use std::time::Instant;

use millstream_state::checkpoint::StartFrom;
use millstream_state::manifest::{Manifest, find_source, find_split};
use millstream_state::rocks::StateDb;
use millstream_state::savepoint;
use millstream_state::store::CheckpointStore;

use crate::bench::probe::{Probe, SinkSplits};
use crate::checkpoint::{Coordinator, OperatorInfo, wall_clock_ms};
use crate::clock::Clock;
use crate::dataflow::{Physical, run_workers};
use crate::digest::Digests;
use crate::driver::{CallsAttempt, StatelessLogic, Task, guard};
use crate::error::{Error, Result};
use crate::graph::{Body, Graph, Node, Port};
use crate::job::Settings;
use crate::journal::What;
use crate::poison::{LeftOut, SplitName};
use crate::recovery::{Shape, Start, choose};
use crate::replay::Replayed;
use crate::rest::Rest;
use crate::savepoint::Savepoints;
use crate::schema::Schemas;
use crate::shared::{Shared, lock};
use crate::sink::Committer;
use crate::summary::{Outcome, Summary};
use crate::supervisor::{Blueprint, Held};
use crate::time::EventTime;

/// What one attempt to run a job came to at its beginning.
pub(crate) enum Begun {
    /// It runs.
    Running(Box<Coordinator>),
    /// An earlier run had finished; there is nothing to do.
    Finished(Box<Summary>),
}

/// Begins an attempt, the `restart`-th after the first one, of a job that has been validated.
pub(crate) fn begin(job: &Blueprint, held: &mut Held, restart: u32) -> Result<Begun> {
    let started = Instant::now();
    // The graph stays as it is: a job that is measured, or restarted, is started several times.
    let graph = lock(&job.graph);
    let names = graph.names();
    let splits = splits(&graph, &names)?;
    let settings = job.settings.clone();
    let execution = execution_token();
    // What was asked for is done by the first attempt: a fresh start that fails must not begin again.
    let start_from = if restart == 0 { settings.start_from.clone() } else { StartFrom::Newest };

    let mut shape = shape(&job.name, &graph, &names, &splits);
    if held.store.is_some() {
        shape.schemas = Schemas::of(&graph, &names, &job.migrations);
        let twins = if restart == 0 { shape.twins() } else { Vec::new() };
        for (one, other) in twins {
            tracing::warn!(
                "operators `{one}` and `{other}` have no names of their own: if they change places in the program, each goes on with the \
                 state of the other; give them names with `.name(\"…\")`"
            );
        }
    }
    let start = match (&job.replayed, &held.store) {
        (Some(replayed), _) => replayed.start(&shape, &settings.names)?,
        (None, Some(store)) => choose(store, &start_from, &shape, &settings.names)?,
        (None, None) => Start::Fresh { set_aside: Vec::new() },
    };
    held.look_back(start_from == StartFrom::Fresh, job.replayed.as_deref())?;

    hold_sinks(&graph, &names, &job.name, &mut held.committers)?;
    // Output after the point of restart is withdrawn only if the user chose that point. To begin again because no checkpoint
    // was found is nobody's choice but that of `Fresh`.
    let withdraw = match &start {
        Start::Fresh { .. } => start_from == StartFrom::Fresh,
        _ => !matches!(start_from, StartFrom::Newest | StartFrom::Savepoint(_)),
    };
    for (node, committer) in &mut held.committers {
        guard(&names[*node], || committer.may_recover(start.epoch(), withdraw))?;
    }
    let (mut committed, mut import) = (false, None);
    let restored = match start {
        Start::Finished { manifest, committed } => {
            recover_sinks(&mut held.committers, &names, Some(&manifest), committed, withdraw)?;
            // The run that finished may have been killed before it had cleared up.
            if let Some(store) = &held.store {
                clear_up(store, &settings)?;
            }
            return Ok(Begun::Finished(Box::new(already_finished(&job.name, &manifest))));
        }
        // Checkpoints go before output does: if we die between the two, the next start sees output that is too new and
        // says so; the other way round it would restore a checkpoint whose output is gone.
        Start::Fresh { set_aside } => {
            if let Some(store) = &held.store {
                store.set_aside(&set_aside, &execution)?;
                if start_from == StartFrom::Fresh {
                    store.set_file_aside(crate::poison::FILE, &execution)?;
                }
            }
            None
        }
        Start::Restore { manifest, set_aside, committed: is_committed, import: to_import } => {
            (committed, import) = (is_committed, to_import);
            // To begin again is a wish that was made with open eyes.
            let again = matches!(start_from, StartFrom::FreshFromSavepoint(_));
            let stuck = graph.nodes.iter().enumerate().find(|(node, described)| {
                matches!(described.body, Body::Sink(_)) && !held.committers.contains_key(node)
            });
            if let (Some((node, described)), false) = (stuck, set_aside.is_empty() || again) {
                let text = format!(
                    "checkpoint {} is not the newest, and what was written to {} after it cannot be withdrawn: it would be \
                     doubled",
                    manifest.epoch, described.detail
                );
                return Err(Error::state(text).in_operator(&names[node]).hint(
                    "start from the newest checkpoint, or begin again with `--fresh` (`StartFrom::Fresh`), or write to a sink \
                     that commits, such as files",
                ));
            }
            if let Some(store) = &held.store {
                store.set_aside(&set_aside, &execution)?;
            }
            Some(Arc::new(*manifest))
        }
    };
    recover_sinks(&mut held.committers, &names, restored.as_deref(), committed, withdraw)?;
    // From here on the savepoint is the newest checkpoint, whatever happens.
    if let (Some(savepoint), Some(store), Some(manifest)) = (import, &held.store, &restored) {
        savepoint::import(&savepoint, manifest, store)?;
    }

    let original = job.replayed.as_ref().map(|replayed| &replayed.original);
    let open = |store| open_db(store, original.unwrap_or(store), &settings, restored.as_deref(), &execution);
    let db = held.store.as_ref().map(open).transpose()?;
    if let (Some(db), Some(manifest)) = (&db, &restored) {
        shape.schemas.migrate(&job.name, db, manifest)?;
    }
    let first_epoch = restored.as_ref().map_or(0, |manifest| manifest.epoch) + 1;
    let (sender, reports) = crossbeam_channel::unbounded();
    let splits = numbered(&graph, splits);
    let sinks = splits_of_sinks(&graph, &splits);
    let probe = Probe::new(job.load.as_ref(), splits.values().map(Vec::len).sum(), sinks);
    let rest = job.watched.then(|| rest(&graph, &settings.clock));
    let split_names = split_names(&graph, &names, &splits, restored.as_deref());
    let split_numbers = split_names.iter().map(|split| split.place.saturating_add(1)).max();
    let split_numbers = split_numbers.max(restored.as_ref().map(|restored| restored.split_numbers)).unwrap_or(0);
    let shared =
        Arc::new(Shared::new(graph.nodes.len(), settings.workers, first_epoch, probe, rest, split_names, sender));
    let operators = operator_infos(&graph, &names, restored.as_deref(), &shape.schemas);
    let expected = graph.nodes.iter().filter(|node| takes_part(&node.body)).count() * settings.workers;
    shared.wait_for_sources(graph.sources());
    let sources = graph.sources().count();
    warn_about_replay(&job.name, &graph, &names, restored.as_deref(), held.store.is_some());

    let epoch = restored.as_ref().map(|manifest| manifest.epoch);
    held.journal.execution.clone_from(&execution);
    let version = env!("CARGO_PKG_VERSION").to_string();
    let fresh = start_from == StartFrom::Fresh;
    held.journal.note(What::Start { version, workers: settings.workers, from: epoch, restart, fresh })?;

    let ids = operators.iter().map(|operator| operator.kind.id()).collect();
    let aside = held.aside.left_out();
    let digests = digests_so_far(&names, restored.as_deref())?;
    let mut plan = Plan::new(&graph, &names, splits, ids, &settings, &execution, &shared, db.clone(), restored, aside);
    plan.task.until = job.replayed.as_ref().and_then(|replayed| replayed.until.clone());
    drop(graph);
    let graph = Arc::clone(&job.graph);
    let workers = run_workers(&job.name, settings.workers, &shared, move |worker| {
        let parts = plan.parts(&lock(&graph), worker);
        let operators = parts.into_iter().map(|(task, make)| Ok((task, make()?))).collect::<Result<_>>()?;
        Ok(operators)
    })?;
    let savepoints = Savepoints::new(held.store.clone(), &execution, Arc::clone(&held.signalled));
    Ok(Begun::Running(Box::new(Coordinator {
        job: job.name.clone(),
        execution,
        settings,
        shared,
        reports,
        db,
        restored: epoch,
        operators,
        savepoints,
        expected,
        sources,
        split_numbers,
        digests,
        ends_early: job.replayed.as_deref().is_some_and(Replayed::ends_early),
        started,
        workers,
    })))
}

/// Takes hold of the places of all sinks that commit, once for all attempts.
fn hold_sinks(
    graph: &Graph,
    names: &[String],
    job: &str,
    committers: &mut HashMap<usize, Box<dyn Committer>>,
) -> Result<()> {
    for (node, body) in graph.nodes.iter().map(|node| &node.body).enumerate() {
        if let Body::Sink(sink) = body
            && !committers.contains_key(&node)
            && let Some(mut committer) = sink.committer(job)
        {
            committer.lock().map_err(|error| error.in_operator(&names[node]))?;
            committers.insert(node, committer);
        }
    }
    Ok(())
}

/// Whether a node contributes to every checkpoint.
fn takes_part(body: &Body) -> bool {
    matches!(body, Body::Source(_) | Body::Keyed(_) | Body::Sink(_))
}

/// The splits of every source, checked for doubles.
fn splits(graph: &Graph, names: &[String]) -> Result<HashMap<usize, Vec<String>>> {
    let mut all = HashMap::new();
    for (node, body) in graph.nodes.iter().map(|node| &node.body).enumerate() {
        let Body::Source(source) = body else { continue };
        let splits = source.splits().map_err(|error| error.in_operator(&names[node]))?;
        let mut seen = std::collections::HashSet::new();
        if let Some(twice) = splits.iter().find(|split| !seen.insert(*split)) {
            return Err(Error::config(format!("split `{twice}` is there twice")).in_operator(&names[node]));
        }
        all.insert(node, splits);
    }
    Ok(all)
}

/// What keeps track of whether all is processed.
fn rest(graph: &Graph, clock: &Clock) -> Rest {
    let stands_behind = |node: &usize| matches!(graph.nodes[*node].body, Body::Keyed(_) | Body::Sink(_));
    let nodes = 0..graph.nodes.len();
    let upstream = nodes.clone().filter(stands_behind).map(|node| (node, graph.sources_of(node)));
    let asks = |node: &usize| match &graph.nodes[*node].body {
        Body::Source(source) => source.may_idle(),
        Body::Keyed(keyed) => keyed.uses_clock(),
        _ => false,
    };
    Rest::new(graph.sources().collect(), upstream.collect(), nodes.filter(asks).collect(), clock)
}

/// The splits of every source, numbered over the whole job.
fn numbered(graph: &Graph, mut splits: HashMap<usize, Vec<String>>) -> HashMap<usize, Vec<(u32, String)>> {
    let mut numbers = 0..;
    let own = |node| {
        let splits = splits.remove(&node)?.into_iter().zip(numbers.by_ref());
        Some((node, splits.map(|(split, number)| (number, split)).collect()))
    };
    (0..graph.nodes.len()).filter_map(own).collect()
}

/// How far event time had come for a node in the checkpoint that is restored: for each source upstream of it that the checkpoint knows, the
/// least watermark of its splits.
fn restored_marks(graph: &Graph, names: &[String], node: usize, restored: Option<&Manifest>) -> Vec<Option<EventTime>> {
    let of = |source: usize| {
        let entry = find_source(&restored?.sources, &names[source])?;
        let least = entry.splits.iter().filter(|split| !split.ended).map(|split| split.watermark_us).min();
        Some(least.map_or(EventTime::MAX, EventTime::from_micros))
    };
    graph.sources_of(node).into_iter().map(of).collect()
}

/// The names of all splits, by their numbers. In state they have those that they had in the checkpoint; those that are new come behind.
fn split_names(
    graph: &Graph,
    names: &[String],
    splits: &HashMap<usize, Vec<(u32, String)>>,
    restored: Option<&Manifest>,
) -> Vec<SplitName> {
    let named = |(node, own): (&usize, &Vec<(u32, String)>)| {
        let source = names[*node].clone();
        let replayable = matches!(&graph.nodes[*node].body, Body::Source(source) if source.replayable());
        let name = move |(number, split): &(u32, String)| {
            let (source, split) = (source.clone(), split.clone());
            (*number, SplitName { source, split, place: *number, replayable })
        };
        own.iter().map(name).collect::<Vec<_>>()
    };
    let mut all: Vec<(u32, SplitName)> = splits.iter().flat_map(named).collect();
    all.sort_unstable_by_key(|(number, _)| *number);
    let mut all: Vec<SplitName> = all.into_iter().map(|(_, name)| name).collect();
    let known = |name: &SplitName| find_split(&restored?.sources, &name.source, &name.split)?.number;
    let places: Vec<Option<u32>> = all.iter().map(known).collect();
    if let Some(last) = places.iter().flatten().max() {
        // Those of splits that are gone are not given again: state may still have them.
        let mut new = restored.map_or(0, |restored| restored.split_numbers).max(last.saturating_add(1))..;
        for (name, place) in all.iter_mut().zip(places) {
            name.place = place.or_else(|| new.next()).unwrap_or(name.place);
        }
    }
    all
}

/// Every sink with the splits upstream of it: only on these its results hang.
fn splits_of_sinks(graph: &Graph, splits: &HashMap<usize, Vec<(u32, String)>>) -> Vec<SinkSplits> {
    let sinks = (0..graph.nodes.len()).filter(|node| matches!(graph.nodes[*node].body, Body::Sink(_)));
    let upstream = |node| {
        let of = graph.sources_of(node).into_iter().flat_map(|source| &splits[&source]);
        SinkSplits { node, splits: of.map(|(number, _)| *number).collect() }
    };
    sinks.map(upstream).collect()
}

fn shape(job: &str, graph: &Graph, names: &[String], splits: &HashMap<usize, Vec<String>>) -> Shape {
    let derived = names.iter().zip(&graph.nodes).filter(|(_, node)| !node.is_named()).map(|(name, _)| name.clone());
    let (operators, sources, sinks) = (Vec::new(), Vec::new(), Vec::new());
    let (derived, schemas) = (derived.collect(), Schemas::default());
    let mut shape = Shape { job: job.into(), operators, sources, sinks, derived, schemas };
    for (node, body) in graph.nodes.iter().map(|node| &node.body).enumerate() {
        let name = names[node].clone();
        match body {
            Body::Source(_) => shape.sources.push((name, splits[&node].clone())),
            Body::Keyed(keyed) => {
                let (operator, state) = keyed.describe();
                shape.operators.push((name, operator, state));
            }
            Body::Sink(_) => shape.sinks.push(name),
            Body::Stateless(_) | Body::Union | Body::Calls(_) | Body::Region(_) => {}
        }
    }
    shape
}

fn recover_sinks(
    committers: &mut HashMap<usize, Box<dyn Committer>>,
    names: &[String],
    restored: Option<&Manifest>,
    committed: bool,
    withdraw: bool,
) -> Result<()> {
    for (node, committer) in committers {
        let name = &names[*node];
        let entry = restored.and_then(|manifest| manifest.sinks.iter().find(|sink| sink.name == *name));
        let handles = entry.filter(|_| !committed).map_or(&[][..], |entry| &entry.handles);
        guard(name, || committer.recover(restored.map(|manifest| manifest.epoch), handles, withdraw))?;
    }
    Ok(())
}

/// Deletes what earlier runs have left. Only when the lock is held and the start is decided may it go.
fn clear_up(store: &CheckpointStore, settings: &Settings) -> Result<()> {
    store.sweep()?;
    // Runs that were each killed between a checkpoint and the deletion of an older one must not pile them up.
    Ok(store.prune(&settings.retention(), wall_clock_ms())?)
}

/// Opens a database with the state of `restored`, a checkpoint in `original`.
fn open_db(
    store: &CheckpointStore,
    original: &CheckpointStore,
    settings: &Settings,
    restored: Option<&Manifest>,
    execution: &str,
) -> Result<Arc<RwLock<StateDb>>> {
    clear_up(store, settings)?;
    let (live, cache) = (store.live_dir(execution), settings.cache_bytes());
    let db = match restored {
        Some(manifest) => {
            let mut db = StateDb::open_copy(&original.db_dir(manifest.epoch), &manifest.files, &live, cache)?;
            let known: Vec<u32> = manifest.operators.iter().map(|entry| entry.id).collect();
            // What was dropped must not come back under a number that is given to another.
            if db.forget_others(&known)? > 0 {
                tracing::info!(epoch = manifest.epoch, "state of operators that are gone was dropped");
            }
            db
        }
        None => StateDb::create(&live, cache)?,
    };
    Ok(Arc::new(RwLock::new(db)))
}

fn already_finished(job: &str, manifest: &Manifest) -> Summary {
    Summary { epoch: Some(manifest.epoch), ..Summary::empty(job, Outcome::AlreadyFinished) }
}

/// What every sink had committed in the checkpoint, of those that keep digests.
fn digests_so_far(names: &[String], restored: Option<&Manifest>) -> Result<HashMap<usize, (u64, Digests)>> {
    let mut digests = HashMap::new();
    for sink in restored.iter().flat_map(|manifest| &manifest.sinks) {
        if let (Some(entry), Some(node)) = (&sink.digests, names.iter().position(|name| *name == sink.name)) {
            let read = Digests::from_entry(entry).map_err(|error| error.in_operator(&sink.name))?;
            digests.insert(node, (entry.since, read));
        }
    }
    Ok(digests)
}

/// Operators with state keep the number that a checkpoint gave them.
fn operator_infos(
    graph: &Graph,
    names: &[String],
    restored: Option<&Manifest>,
    schemas: &Schemas,
) -> Vec<OperatorInfo> {
    let known = |name: &String| {
        restored.and_then(|manifest| Some(manifest.operators.iter().find(|entry| entry.name == *name)?.id))
    };
    let mut next = restored.iter().flat_map(|manifest| &manifest.operators).map(|entry| entry.id).max().unwrap_or(0);
    let infos = graph.nodes.iter().enumerate().map(|(node, described)| {
        let name = names[node].clone();
        let (kind, detail, state) = match &described.body {
            Body::Source(source) => (crate::checkpoint::Kind::Source, source.kind().to_string(), String::new()),
            Body::Sink(sink) => (crate::checkpoint::Kind::Sink, sink.kind().to_string(), String::new()),
            Body::Keyed(keyed) => {
                let (operator, state) = keyed.describe();
                let id = known(&name).unwrap_or_else(|| {
                    next += 1;
                    next
                });
                (crate::checkpoint::Kind::Keyed { id }, operator, state)
            }
            Body::Stateless(_) | Body::Union | Body::Calls(_) | Body::Region(_) => {
                (crate::checkpoint::Kind::Other, String::new(), String::new())
            }
        };
        let states = schemas.entries(&name);
        OperatorInfo { name, kind, detail, state, states }
    });
    infos.collect()
}

fn warn_about_replay(job: &str, graph: &Graph, names: &[String], restored: Option<&Manifest>, checkpoints: bool) {
    for (node, name) in names.iter().enumerate() {
        let Body::Source(source) = &graph.nodes[node].body else { continue };
        if !checkpoints || source.replayable() {
            continue;
        }
        tracing::warn!(
            job,
            operator = %name,
            "{} cannot be read again: records read after the last checkpoint are lost in a crash",
            source.kind()
        );
        let before = restored.and_then(|restored| find_source(&restored.sources, name));
        let had_ended = before.is_some_and(|entry| entry.splits.iter().all(|split| split.ended));
        let keyed = |other: &usize| matches!(graph.nodes[*other].body, Body::Keyed(_));
        let mut behind = (0..names.len()).filter(keyed).filter(|other| graph.sources_of(*other).contains(&node));
        if let (true, Some(other)) = (had_ended, behind.next()) {
            tracing::warn!(
                job,
                operator = %name,
                "{} had ended before this start, and event time with it: what comes now is late for operators behind it that go by event time, \
                 such as `{}` may be. To go on later, stop a job (`JobHandle::stop`, Ctrl-C) instead of ending its input",
                source.kind(),
                names[other]
            );
        }
    }
}

/// A token that no other start of the job has.
pub(crate) fn execution_token() -> String {
    use std::hash::{BuildHasher, Hasher};
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    format!("{:08x}", (random >> 32) as u32 ^ random as u32)
}

/// How nodes become the operators of a worker.
struct Plan {
    task: Task,
    names: Vec<String>,
    splits: HashMap<usize, Vec<(u32, String)>>,
    /// Per node: the number under which its state is stored.
    ids: Vec<Option<u32>>,
    /// Per node: results of operators with state reach it.
    behind_state: Vec<bool>,
    /// Per node: see [`restored_marks`].
    marks: Vec<Vec<Option<EventTime>>>,
    /// Per node: the sources upstream of it.
    sources: Vec<Arc<[usize]>>,
    chains: Vec<Vec<usize>>,
    connected: HashMap<Port, usize>,
    /// By node: what all workers share of calls to the outside.
    calls: HashMap<usize, Box<dyn CallsAttempt>>,
}

impl Plan {
    #[allow(clippy::too_many_arguments)] // called once, with what `start` has at hand
    fn new(
        graph: &Graph,
        names: &[String],
        splits: HashMap<usize, Vec<(u32, String)>>,
        ids: Vec<Option<u32>>,
        settings: &Settings,
        execution: &str,
        shared: &Arc<Shared>,
        db: Option<Arc<RwLock<StateDb>>>,
        restored: Option<Arc<Manifest>>,
        aside: &LeftOut,
    ) -> Self {
        let task = Task {
            node: 0,
            name: String::new(),
            worker: 0,
            workers: settings.workers,
            execution: execution.to_string(),
            batch_size: settings.batch_size,
            in_flight: settings.in_flight,
            first_epoch: shared.announced.load(std::sync::atomic::Ordering::SeqCst),
            splits: Arc::new(shared.splits.iter().map(|(name, _)| name.clone()).collect()),
            own_splits: (0, 0),
            // With them an operator with state can say which record it failed on.
            positions: graph.positions || settings.set_aside_after.is_some(),
            behind_state: false,
            resumes_at: EventTime::MIN,
            came_to: EventTime::MIN,
            sources: Arc::default(),
            aside: Arc::new(aside.clone()),
            connected: [true; 2],
            shared: Arc::clone(shared),
            state_id: 0,
            state_bytes: settings.memory.map(|bytes| {
                let instances = settings.workers * ids.iter().flatten().count().max(1);
                bytes as usize / 2 / instances
            }),
            db,
            restored,
            until: None,
            clock: settings.clock.clone(),
        };
        let marks = (0..graph.nodes.len()).map(|node| restored_marks(graph, names, node, task.restored.as_deref()));
        let marks = marks.collect();
        let sources = (0..graph.nodes.len()).map(|node| graph.sources_of(node).into_iter().collect()).collect();
        let behind_state = (0..graph.nodes.len()).map(|node| graph.is_behind_state(node)).collect();
        let mut plan = Plan {
            task,
            names: names.to_vec(),
            splits,
            ids,
            behind_state,
            marks,
            sources,
            chains: graph.chains(),
            connected: graph.consumers(),
            calls: HashMap::new(),
        };
        let begin = |(node, described): (usize, &Node)| match &described.body {
            Body::Calls(calls) => Some((node, calls.begin(plan.task(node, 0)))),
            _ => None,
        };
        plan.calls = graph.nodes.iter().enumerate().filter_map(begin).collect();
        plan
    }

    fn task(&self, node: usize, worker: usize) -> Task {
        let connected = |output| self.connected.contains_key(&Port { node, output });
        let marks = &self.marks[node];
        let known = marks.iter().flatten().copied();
        Task {
            node,
            name: self.names[node].clone(),
            worker,
            state_id: self.ids[node].unwrap_or_default(),
            behind_state: self.behind_state[node],
            resumes_at: marks.iter().map(|mark| mark.unwrap_or(EventTime::MIN)).min().unwrap_or(EventTime::MIN),
            came_to: known.filter(|mark| *mark < EventTime::MAX).min().unwrap_or(EventTime::MIN),
            sources: Arc::clone(&self.sources[node]),
            connected: [connected(0), connected(1)],
            own_splits: self
                .splits
                .get(&node)
                .map_or((0, 0), |own| (own.first().map_or(0, |first| first.0), own.len() as u32)),
            ..self.task.clone()
        }
    }

    /// The operators of one worker, each still to be made: that may take long, for state that is restored, and all
    /// workers should do it at the same time.
    fn parts(&self, graph: &Graph, worker: usize) -> Vec<(Task, MakePhysical)> {
        let mut parts: Vec<(Task, MakePhysical)> = Vec::new();
        for (node, described) in graph.nodes.iter().enumerate() {
            let task = self.task(node, worker);
            let inputs = described.inputs.clone();
            let make: MakePhysical = match &described.body {
                Body::Source(source) => {
                    let waker = Arc::new(OnceLock::new());
                    let all = self.splits.get(&node).into_iter().flatten().enumerate();
                    let own = all.filter(|(place, _)| place % task.workers == worker);
                    let own = own.map(|(_, split)| split.clone()).collect();
                    let logic = source.build(task.clone(), own, Arc::clone(&waker));
                    Box::new(move || Ok(Physical::Source { logic: logic?, waker }))
                }
                Body::Stateless(_) => {
                    // A chain is made where it ends.
                    let Some(chain) = self.chains.iter().find(|chain| chain.last() == Some(&node)) else { continue };
                    let links = chain.iter().filter_map(|link| match &graph.nodes[*link].body {
                        Body::Stateless(factory) => {
                            let task = self.task(*link, worker);
                            let link = factory.build(&task);
                            Some((task, link))
                        }
                        _ => None,
                    });
                    let logic = StatelessLogic::new(links.collect());
                    let input = graph.nodes[chain[0]].inputs[0];
                    let outputs = described.outputs.len();
                    Box::new(move || Ok(Physical::Stateless { logic, input, outputs }))
                }
                Body::Union => Box::new(move || Ok(Physical::Union { inputs })),
                Body::Calls(_) => {
                    let waker = Arc::new(OnceLock::new());
                    let logic = self.calls[&node].build(task.clone(), Arc::clone(&waker));
                    let (input, outputs) = (inputs[0], described.outputs.len());
                    Box::new(move || Ok(Physical::Calls { logic, waker, input, outputs }))
                }
                Body::Region(factory) => {
                    let region = factory.region();
                    Box::new(move || Ok(Physical::Region { region, inputs }))
                }
                Body::Keyed(keyed) => {
                    let logic = keyed.build(task.clone());
                    // On one worker nothing travels.
                    let combiner = keyed.combiner(&task).filter(|_| task.workers > 1);
                    Box::new(move || Ok(Physical::Keyed { logic: logic()?, combiner, input: inputs[0] }))
                }
                Body::Sink(sink) => {
                    let logic = sink.build(task.clone());
                    Box::new(move || Ok(Physical::Sink { logic: logic?, input: inputs[0] }))
                }
            };
            parts.push((task, make));
        }
        parts
    }
}

type MakePhysical = Box<dyn FnOnce() -> Result<Physical>>;
