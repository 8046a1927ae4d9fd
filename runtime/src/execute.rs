//! From a job as described to one that runs: locks, recovery, workers, coordinator.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, RwLock};
use std::time::Instant;

use millstream_state::checkpoint::StartFrom;
use millstream_state::manifest::Manifest;
use millstream_state::rocks::StateDb;
use millstream_state::store::{CheckpointStore, DirLock};

use crate::bench::probe::{Probe, SinkSplits};
use crate::checkpoint::{Coordinator, OperatorInfo};
use crate::dataflow::{Physical, run_workers};
use crate::driver::{StatelessLogic, Task, guard};
use crate::error::{Error, Result};
use crate::graph::{Body, Graph, Port};
use crate::handle::JobHandle;
use crate::job::{Job, Settings};
use crate::recovery::{Shape, Start, choose};
use crate::schema::Schemas;
use crate::shared::{Shared, lock};
use crate::sink::Committer;
use crate::summary::{Outcome, Summary};

/// Starts a job that has been validated.
pub(crate) fn start(job: &Job) -> Result<JobHandle> {
    let started = Instant::now();
    // The graph stays as it is: a job that is measured is started several times.
    let graph = lock(&job.graph);
    let names = graph.names();
    let splits = splits(&graph, &names)?;
    let settings = job.settings.clone();
    let execution = execution_token();

    let holder = format!("job `{}`", job.name);
    let store = settings.checkpoint_dir.as_ref().map(CheckpointStore::new);
    let dir_lock = store.as_ref().map(|store| DirLock::take(store.dir(), &holder)).transpose()?;
    let mut shape = shape(&job.name, &graph, &names, &splits);
    if store.is_some() {
        shape.schemas = Schemas::of(&graph, &names, &job.migrations);
    }
    let start = match &store {
        Some(store) => choose(store, settings.start_from, &shape)?,
        None => Start::Fresh { set_aside: Vec::new() },
    };

    let committed = match (&store, &start) {
        (Some(store), Start::Restore { manifest, .. } | Start::Finished { manifest }) => {
            store.is_committed(manifest.epoch)?
        }
        _ => false,
    };
    let mut committers = HashMap::new();
    for (node, body) in graph.nodes.iter().map(|node| &node.body).enumerate() {
        if let Body::Sink(sink) = body
            && let Some(mut committer) = sink.committer(&job.name)
        {
            committer.lock().map_err(|error| error.in_operator(&names[node]))?;
            committers.insert(node, committer);
        }
    }
    // Output after the point of restart is withdrawn only if the user chose that point. To begin again because no checkpoint
    // was found is nobody's choice but that of `Fresh`.
    let withdraw = match (&start, settings.start_from) {
        (Start::Fresh { .. }, from) => from == StartFrom::Fresh,
        (_, from) => from != StartFrom::Newest,
    };
    let restored = match start {
        Start::Finished { manifest } => {
            recover_sinks(&mut committers, &names, Some(&manifest), committed, withdraw)?;
            // The run that finished may have been killed before it had cleared up.
            if let Some(store) = &store {
                clear_up(store, settings.retain)?;
            }
            return Ok(JobHandle::finished(already_finished(&job.name, &manifest)));
        }
        // Checkpoints go before output does: if we die between the two, the next start sees output that is too new and
        // says so; the other way round it would restore a checkpoint whose output is gone.
        Start::Fresh { set_aside } => {
            if let Some(store) = &store {
                store.set_aside(&set_aside, &execution)?;
            }
            None
        }
        Start::Restore { manifest, set_aside } => {
            let stuck =
                graph.nodes.iter().enumerate().find(|(node, described)| {
                    matches!(described.body, Body::Sink(_)) && !committers.contains_key(node)
                });
            if let (Some((node, described)), false) = (stuck, set_aside.is_empty()) {
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
            if let Some(store) = &store {
                store.set_aside(&set_aside, &execution)?;
            }
            Some(Arc::new(manifest))
        }
    };
    recover_sinks(&mut committers, &names, restored.as_deref(), committed, withdraw)?;

    let open = |store| open_db(store, settings.retain, restored.as_deref(), &execution);
    let db = store.as_ref().map(open).transpose()?;
    if let (Some(db), Some(manifest)) = (&db, &restored) {
        shape.schemas.migrate(&job.name, db, manifest)?;
    }
    let first_epoch = restored.as_ref().map_or(0, |manifest| manifest.epoch) + 1;
    let (sender, reports) = crossbeam_channel::unbounded();
    let splits = numbered(&graph, splits);
    let sinks = splits_of_sinks(&graph, &splits);
    let probe = Probe::new(job.load.as_ref(), splits.values().map(Vec::len).sum(), sinks);
    let shared = Arc::new(Shared::new(graph.nodes.len(), settings.workers, first_epoch, probe, sender));
    let operators = operator_infos(&graph, &names, restored.as_deref(), &shape.schemas);
    let expected = graph.nodes.iter().filter(|node| takes_part(&node.body)).count() * settings.workers;
    let sources = graph.nodes.iter().filter(|node| matches!(node.body, Body::Source(_))).count();
    warn_about_replay(&job.name, &graph, &names, store.is_some());

    let plan = Plan::new(&graph, &names, splits, &settings, &execution, &shared, db.clone(), restored.clone());
    drop(graph);
    let graph = Arc::clone(&job.graph);
    let workers = run_workers(&job.name, settings.workers, &shared, move |worker| {
        let parts = plan.parts(&lock(&graph), worker);
        let operators = parts.into_iter().map(|(task, make)| Ok((task, make()?))).collect::<Result<_>>()?;
        Ok(operators)
    })?;
    let coordinator = Coordinator {
        job: job.name.clone(),
        execution,
        settings,
        shared: Arc::clone(&shared),
        reports,
        store,
        db,
        restored: restored.map(|manifest| manifest.epoch),
        operators,
        committers,
        expected,
        sources,
        started,
        workers,
        _lock: dir_lock,
    };
    coordinator.spawn()
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

/// The splits of every source, numbered over the whole job.
fn numbered(graph: &Graph, mut splits: HashMap<usize, Vec<String>>) -> HashMap<usize, Vec<(u32, String)>> {
    let mut numbers = 0..;
    let own = |node| Some((node, numbers.by_ref().zip(splits.remove(&node)?).collect()));
    (0..graph.nodes.len()).filter_map(own).collect()
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
    let (operators, schemas) = (Vec::new(), Schemas::default());
    let mut shape = Shape { job: job.into(), operators, sources: Vec::new(), sinks: Vec::new(), schemas };
    for (node, body) in graph.nodes.iter().map(|node| &node.body).enumerate() {
        let name = names[node].clone();
        match body {
            Body::Source(_) => shape.sources.push((name, splits[&node].clone())),
            Body::Keyed(keyed) => {
                let (operator, state) = keyed.describe();
                shape.operators.push((name, operator, state));
            }
            Body::Sink(_) => shape.sinks.push(name),
            Body::Stateless(_) | Body::Union => {}
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
fn clear_up(store: &CheckpointStore, retain: usize) -> Result<()> {
    store.sweep()?;
    // Runs that were each killed between a checkpoint and the deletion of an older one must not pile them up.
    Ok(store.prune(retain)?)
}

fn open_db(
    store: &CheckpointStore,
    retain: usize,
    restored: Option<&Manifest>,
    execution: &str,
) -> Result<Arc<RwLock<StateDb>>> {
    clear_up(store, retain)?;
    let live = store.live_dir(execution);
    let db = match restored {
        Some(manifest) => StateDb::open_copy(&store.db_dir(manifest.epoch), &manifest.files, &live)?,
        None => StateDb::create(&live)?,
    };
    Ok(Arc::new(RwLock::new(db)))
}

fn already_finished(job: &str, manifest: &Manifest) -> Summary {
    Summary { epoch: Some(manifest.epoch), ..Summary::empty(job, Outcome::AlreadyFinished) }
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
            Body::Stateless(_) | Body::Union => (crate::checkpoint::Kind::Other, String::new(), String::new()),
        };
        let states = schemas.entries(&name);
        OperatorInfo { name, kind, detail, state, states }
    });
    infos.collect()
}

fn warn_about_replay(job: &str, graph: &Graph, names: &[String], checkpoints: bool) {
    for (node, name) in graph.nodes.iter().zip(names) {
        if let Body::Source(source) = &node.body
            && checkpoints
            && !source.replayable()
        {
            tracing::warn!(
                job,
                operator = %name,
                "{} cannot be read again: records read after the last checkpoint are lost in a crash",
                source.kind()
            );
        }
    }
}

/// A token that no other start of the job has.
fn execution_token() -> String {
    use std::hash::{BuildHasher, Hasher};
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    format!("{:08x}", (random >> 32) as u32 ^ random as u32)
}

/// How nodes become the operators of a worker.
struct Plan {
    task: Task,
    names: Vec<String>,
    splits: HashMap<usize, Vec<(u32, String)>>,
    chains: Vec<Vec<usize>>,
    connected: HashMap<Port, usize>,
}

impl Plan {
    #[allow(clippy::too_many_arguments)] // called once, with what `start` has at hand
    fn new(
        graph: &Graph,
        names: &[String],
        splits: HashMap<usize, Vec<(u32, String)>>,
        settings: &Settings,
        execution: &str,
        shared: &Arc<Shared>,
        db: Option<Arc<RwLock<StateDb>>>,
        restored: Option<Arc<Manifest>>,
    ) -> Self {
        let mut all: Vec<&(u32, String)> = splits.values().flatten().collect();
        all.sort_unstable();
        let all = all.into_iter().map(|(_, name)| name.clone()).collect();
        let task = Task {
            node: 0,
            name: String::new(),
            worker: 0,
            workers: settings.workers,
            execution: execution.to_string(),
            batch_size: settings.batch_size,
            in_flight: settings.in_flight,
            first_epoch: shared.announced.load(std::sync::atomic::Ordering::SeqCst),
            splits: Arc::new(all),
            own_splits: (0, 0),
            positions: graph.positions,
            connected: [true; 2],
            shared: Arc::clone(shared),
            db,
            restored,
        };
        Plan { task, names: names.to_vec(), splits, chains: graph.chains(), connected: graph.consumers() }
    }

    fn task(&self, node: usize, worker: usize) -> Task {
        let connected = |output| self.connected.contains_key(&Port { node, output });
        Task {
            node,
            name: self.names[node].clone(),
            worker,
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
