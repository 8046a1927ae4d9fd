//! Worker threads: each builds the whole dataflow for itself and steps it until all is done or something failed.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use timely::WorkerConfig;
use timely::communication::{Config, WorkerGuards};
use timely::dataflow::Scope;
use timely::dataflow::operators::Concatenate;
use timely::worker::Worker;

use super::changes::Region;
use super::{Stream, calls, combine, source, stateful, stateless};
use crate::driver::{CallsLogic, CombineLogic, EpochLogic, LateWaker, SourceLogic, StatelessLogic, Task, panic_text};
use crate::error::{Error, Result};
use crate::graph::Port;
use crate::moment::Moment;
use crate::shared::{Report, Shared};

/// One operator of one worker, ready to be put into its dataflow.
pub(crate) enum Physical {
    Source { logic: Box<dyn SourceLogic>, waker: LateWaker },
    Stateless { logic: StatelessLogic, input: Port, outputs: usize },
    Union { inputs: Vec<Port> },
    Calls { logic: Box<dyn CallsLogic>, waker: LateWaker, input: Port, outputs: usize },
    Region { region: Box<dyn Region>, inputs: Vec<Port> },
    Keyed { logic: Box<dyn EpochLogic>, combiner: Option<Box<dyn CombineLogic>>, input: Port },
    Sink { logic: Box<dyn EpochLogic>, input: Port },
}

/// What one worker is to run. Made on its own thread, because logics stay there.
pub(crate) type WorkerPlan = Vec<(Task, Physical)>;

/// How long a worker sleeps at most before it looks at the flags again. Whoever sets one wakes it; this is a safety net.
const NAP: Duration = Duration::from_secs(1);

/// Starts the worker threads. `plan` is called on each with the worker's number.
pub(crate) fn run_workers(
    job: &str,
    workers: usize,
    shared: &Arc<Shared>,
    plan: impl Fn(usize) -> Result<WorkerPlan> + Send + Sync + 'static,
) -> Result<WorkerThreads> {
    keep_freed_memory();
    let plan = Arc::new(plan);
    let (shared, job) = (Arc::clone(shared), job.to_string());
    let of_workers = Arc::clone(&shared);
    let guards = timely::communication::initialize(Config::Process(workers), move |allocator| {
        let number = allocator.index();
        // Everything is inside, for whatever panics outside would leave the others waiting for ever: a span, for one, calls
        // what the program has installed to collect spans.
        let run = || {
            shared.add_thread(std::thread::current());
            let _span = tracing::info_span!("worker", job, number).entered();
            let mut worker = Worker::new(WorkerConfig::default(), allocator, Some(Instant::now()));
            match plan(number) {
                Ok(plan) => work(&mut worker, plan, &shared),
                Err(error) => shared.fail(error),
            }
        };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
            shared.fail(Error::internal(format!("worker {number} panicked: {}", panic_text(&*panic))));
        }
        shared.report(Report::Left);
    });
    Ok(WorkerThreads { guards: Some(guards.map_err(Error::external)?), shared: of_workers })
}

/// Batches are allocated and freed all the time. glibc's allocator gives memory at the end of its heap back to the system at
/// every 128 KiB, and has the system clear it again for the next batch; once it has seen a large block freed, it waits
/// for twice as much. For other allocators this does nothing.
fn keep_freed_memory() {
    drop(std::hint::black_box(Vec::<u8>::with_capacity(16 << 20)));
}

/// The threads of all workers. When it is dropped they are told to leave, and waited for.
pub(crate) struct WorkerThreads {
    guards: Option<WorkerGuards<()>>,
    shared: Arc<Shared>,
}

impl Drop for WorkerThreads {
    fn drop(&mut self) {
        self.shared.teardown.store(true, Ordering::SeqCst);
        self.shared.wake_workers();
    }
}

impl WorkerThreads {
    /// Whether all have left.
    pub(crate) fn are_finished(&self) -> bool {
        self.guards.iter().flat_map(WorkerGuards::guards).all(JoinHandle::is_finished)
    }

    /// Leaves threads behind that hang in user code; to wait for them would be to hang as well.
    pub(crate) fn abandon(&mut self) {
        std::mem::forget(self.guards.take());
    }
}

fn work(worker: &mut Worker, plan: WorkerPlan, shared: &Shared) {
    worker.dataflow(|scope| assemble(scope, plan));
    while !shared.has_failed() && !shared.teardown.load(Ordering::SeqCst) {
        worker.step_or_park(Some(NAP));
        if let Some(rest) = &shared.rest {
            rest.turned();
        }
    }
    for dataflow in worker.installed_dataflows() {
        worker.drop_dataflow(dataflow);
    }
}

fn assemble(scope: Scope<'_, Moment>, plan: WorkerPlan) {
    let mut streams: HashMap<Port, Stream<'_>> = HashMap::new();
    for (task, operator) in plan {
        let input = |port: &Port| streams[port].clone();
        let outputs = match operator {
            Physical::Source { logic, waker } => source::build(scope, &task, logic, &waker),
            Physical::Stateless { logic, input: port, outputs } => {
                stateless::build(scope, &task, logic, outputs, input(&port))
            }
            Physical::Union { inputs } => vec![scope.concatenate(inputs.iter().map(input).collect::<Vec<_>>())],
            Physical::Calls { logic, waker, input: port, outputs } => {
                calls::build(scope, &task, logic, &waker, outputs, input(&port))
            }
            Physical::Region { region, inputs } => {
                vec![region.build(scope, &task, inputs.iter().map(input).collect())]
            }
            Physical::Keyed { logic, combiner, input: port } => {
                let input = match combiner {
                    Some(combiner) => combine::build(scope, &task, combiner, input(&port)),
                    None => input(&port),
                };
                stateful::build(scope, &task, logic, 2, input, true)
            }
            Physical::Sink { logic, input: port } => stateful::build(scope, &task, logic, 0, input(&port), false),
        };
        for (output, stream) in outputs.into_iter().enumerate() {
            streams.insert(Port { node: task.node, output }, stream);
        }
    }
}
