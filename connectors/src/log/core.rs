//! What everybody who works with a log shares: what readers may see, requests on their way to the writer, and who waits.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender};
use millstream_runtime::moment::Epoch;
use millstream_runtime::source::Waker;

use super::error::LogError;
use super::record::{Entry, Receipt};
use super::shard::{ShardId, Table};
use super::sink::Handle;
use super::store::Store;

/// Appends wait when requests with so many bytes are waiting already.
const MOST_WAITING: u64 = 64 << 20;

/// See the module.
pub(super) struct Core {
    pub store: Store,
    pub id: String,
    pub lanes: u32,
    view: RwLock<Arc<Table>>,
    queue: Mutex<Queue>,
    /// The writer has something to do.
    work: Condvar,
    /// The queue has room.
    room: Condvar,
    failed: Mutex<Option<String>>,
    watchers: Mutex<Vec<(u64, Waker)>>,
    watches: AtomicU64,
    held: Mutex<HashSet<String>>,
}

#[derive(Default)]
struct Queue {
    requests: Vec<Request>,
    bytes: u64,
    closing: bool,
}

/// What only the writer may do.
pub(super) enum Request {
    Append { entries: Vec<Entry>, note: Option<Note>, reply: Reply<Vec<Receipt>> },
    Stage { handle: String, chunk: u32, entries: Vec<Entry>, sync: bool, reply: Reply<()> },
    Commit { handles: Vec<Handle>, reply: Reply<()> },
    MayRecover { sink: String, restored: Option<Epoch>, withdraw: bool, reply: Reply<()> },
    Recover { sink: String, restored: Option<Epoch>, handles: Vec<Handle>, withdraw: bool, reply: Reply<()> },
    Split { shard: ShardId, reply: Reply<[ShardId; 2]> },
    Merge { a: ShardId, b: ShardId, reply: Reply<ShardId> },
    Retain { reply: Reply<()> },
    Sync { reply: Reply<()> },
}

/// What is to be written together with records: a key, and a value as JSON.
pub(super) struct Note {
    pub key: Vec<u8>,
    pub value: Vec<u8>,
}

impl Request {
    fn bytes(&self) -> u64 {
        match self {
            Request::Append { entries, .. } | Request::Stage { entries, .. } => entries.iter().map(Entry::bytes).sum(),
            _ => 0,
        }
    }
}

/// Where the answer to a request goes. Dropped without an answer, it says that there will be none.
pub(super) struct Reply<T> {
    sender: Sender<Result<T, LogError>>,
    waker: Option<Waker>,
}

impl<T> Reply<T> {
    pub fn new(waker: Option<Waker>) -> (Self, Receiver<Result<T, LogError>>) {
        let (sender, receiver) = crossbeam_channel::bounded(1);
        (Reply { sender, waker }, receiver)
    }

    pub fn send(self, answer: Result<T, LogError>) {
        // Who asked may have lost interest.
        let _ = self.sender.send(answer);
        if let Some(waker) = &self.waker {
            waker.wake();
        }
    }
}

/// What the writer is to do next.
pub(super) enum Work {
    Requests(Vec<Request>),
    /// It is time to sync, or to look at ages.
    Due,
    /// Nobody has the log any more.
    Close,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Core {
    pub fn new(store: Store, id: String, lanes: u32, table: Table) -> Self {
        Core {
            store,
            id,
            lanes,
            view: RwLock::new(Arc::new(table)),
            queue: Mutex::default(),
            work: Condvar::new(),
            room: Condvar::new(),
            failed: Mutex::default(),
            watchers: Mutex::default(),
            watches: AtomicU64::new(0),
            held: Mutex::default(),
        }
    }

    /// What readers may see: everything in it is durable.
    pub fn view(&self) -> Arc<Table> {
        Arc::clone(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Lets readers see more, and wakes them.
    pub fn publish(&self, table: &Table) {
        // A copy of all of it is only made while somebody reads.
        Arc::make_mut(&mut self.view.write().unwrap_or_else(PoisonError::into_inner)).follow(table);
        self.wake();
    }

    fn wake(&self) {
        lock(&self.watchers).iter().for_each(|(_, waker)| waker.wake());
    }

    /// From now on nothing is taken any more.
    pub fn fail(&self, error: &LogError) {
        lock(&self.failed).get_or_insert_with(|| {
            tracing::error!("the log in {} takes no more records: {error}", self.store.dir().display());
            error.to_string()
        });
        self.room.notify_all();
        self.wake();
    }

    /// An error if a write has failed.
    pub fn check(&self) -> Result<(), LogError> {
        match &*lock(&self.failed) {
            None => Ok(()),
            Some(message) => Err(LogError::Failed { dir: self.store.dir().to_path_buf(), message: message.clone() }),
        }
    }

    /// Hands a request to the writer. With `wait`, only when there is room for it.
    pub fn request(&self, request: Request, wait: bool) -> Result<(), LogError> {
        let bytes = request.bytes();
        let mut queue = lock(&self.queue);
        loop {
            self.check()?;
            if !wait || queue.bytes == 0 || queue.bytes + bytes <= MOST_WAITING {
                break;
            }
            queue = self.room.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        queue.bytes += bytes;
        queue.requests.push(request);
        drop(queue);
        self.work.notify_one();
        Ok(())
    }

    /// Asks, and waits for the answer.
    pub fn ask<T>(&self, make: impl FnOnce(Reply<T>) -> Request) -> Result<T, LogError> {
        let (reply, answer) = Reply::new(None);
        self.request(make(reply), true)?;
        self.answer(answer.recv())
    }

    /// What came back from the writer; when nothing did, why.
    pub fn answer<T, E>(&self, received: Result<Result<T, LogError>, E>) -> Result<T, LogError> {
        received.unwrap_or_else(|_| {
            self.check()?;
            let message = "the thread that writes it has ended".to_string();
            Err(LogError::Failed { dir: self.store.dir().to_path_buf(), message })
        })
    }

    /// For the writer: waits for work until `due`.
    pub fn work(&self, due: Option<Instant>) -> Work {
        let mut queue = lock(&self.queue);
        loop {
            if !queue.requests.is_empty() {
                queue.bytes = 0;
                let requests = std::mem::take(&mut queue.requests);
                self.room.notify_all();
                return Work::Requests(requests);
            }
            if queue.closing {
                return Work::Close;
            }
            queue = match due {
                None => self.work.wait(queue).unwrap_or_else(PoisonError::into_inner),
                Some(due) => match due.checked_duration_since(Instant::now()) {
                    None => return Work::Due,
                    Some(rest) => self.work.wait_timeout(queue, rest).unwrap_or_else(PoisonError::into_inner).0,
                },
            };
        }
    }

    /// The writer is to end when it has done what it was asked for.
    pub fn close(&self) {
        lock(&self.queue).closing = true;
        self.work.notify_one();
    }

    /// For the writer's end: whoever still waits learns that there will be no answer.
    pub fn abandon(&self) {
        let requests = std::mem::take(&mut lock(&self.queue).requests);
        drop(requests);
        self.room.notify_all();
        self.wake();
    }
}

/// Wakes a reader whenever there is more to read, as long as it lives.
pub(super) struct Watch {
    core: Arc<Core>,
    number: u64,
}

impl Watch {
    pub fn new(core: &Arc<Core>, waker: Waker) -> Self {
        let number = core.watches.fetch_add(1, Ordering::Relaxed);
        lock(&core.watchers).push((number, waker));
        Watch { core: Arc::clone(core), number }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        lock(&self.core.watchers).retain(|(number, _)| *number != self.number);
    }
}

/// A name in the log that only one may work under at a time, such as that of a sink.
pub(super) struct Hold {
    core: Arc<Core>,
    name: String,
}

impl Hold {
    pub fn take(core: &Arc<Core>, name: String) -> Result<Hold, LogError> {
        if !lock(&core.held).insert(name.clone()) {
            return Err(LogError::refused(
                format!("the {name} of the log in {} is in use", core.store.dir().display()),
                "give each sink and each recorded source of a log a name of its own, by `named`",
            ));
        }
        Ok(Hold { core: Arc::clone(core), name })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        lock(&self.core.held).remove(&self.name);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use crossbeam_channel::RecvTimeoutError;

    use super::super::options::{LogOptions, MAX_VALUE_BYTES};
    use super::*;

    /// A core for which nobody works.
    pub fn core() -> (tempfile::TempDir, Arc<Core>) {
        let dir = tempfile::tempdir().unwrap();
        let (store, found) = Store::open(dir.path(), &LogOptions::new(), "test").unwrap();
        (dir, Arc::new(Core::new(store, found.id, found.lanes, found.table)))
    }

    type Answer = Receiver<Result<Vec<Receipt>, LogError>>;

    /// An append of values of so many bytes.
    fn append(bytes: &[usize]) -> (Request, Answer) {
        let entries = bytes.iter().map(|bytes| Entry::new("k", vec![0; *bytes]).unwrap()).collect();
        let (reply, answer) = Reply::new(None);
        (Request::Append { entries, note: None, reply }, answer)
    }

    /// Hands a request over on another thread; what it was told comes from there.
    fn handed_over(core: &Arc<Core>, request: Request) -> Receiver<Result<(), LogError>> {
        let (sender, told) = crossbeam_channel::bounded(1);
        let core = Arc::clone(core);
        let hand = move || sender.send(core.request(request, true));
        std::thread::Builder::new().name("asks".to_string()).spawn(hand).unwrap();
        told
    }

    const SOON: Duration = Duration::from_secs(30);
    /// Long enough to show that something goes on that should not.
    const MOMENT: Duration = Duration::from_millis(50);

    #[test]
    fn who_appends_waits_while_there_is_no_room() {
        let (_dir, core) = core();
        let taken = |core: &Core| match core.work(None) {
            Work::Requests(requests) => requests.len(),
            _ => panic!("there are requests"),
        };
        let large = || append(&[MAX_VALUE_BYTES]).0;
        for request in [append(&[20_000]).0, append(&[20_000]).0, large(), large(), large()] {
            handed_over(&core, request).recv_timeout(SOON).unwrap().unwrap();
        }
        let waits = handed_over(&core, large());
        assert!(waits.recv_timeout(MOMENT).is_err(), "64 MiB are waiting");
        // Workers of jobs never wait.
        core.request(append(&[MAX_VALUE_BYTES]).0, false).unwrap();
        assert_eq!(taken(&core), 6);
        waits.recv_timeout(SOON).unwrap().unwrap();
        assert_eq!(taken(&core), 1);

        let huge = handed_over(&core, append(&[MAX_VALUE_BYTES; 5]).0);
        huge.recv_timeout(SOON)
            .unwrap()
            .expect("what would never have room is taken when nothing else waits");
        let waits = handed_over(&core, append(&[0]).0);
        assert!(waits.recv_timeout(MOMENT).is_err());
        core.fail(&LogError::mismatch("a test"));
        let error = waits.recv_timeout(SOON).unwrap().unwrap_err();
        assert!(error.to_string().ends_with("since a write failed: a test"), "{error}");
    }

    #[test]
    fn when_the_writer_ends_then_whoever_asked_learns_it() {
        let (_dir, core) = core();
        let (request, answer) = append(&[1]);
        core.request(request, true).unwrap();
        core.abandon();
        let received = answer.recv_timeout(SOON);
        assert_eq!(received.as_ref().err(), Some(&RecvTimeoutError::Disconnected));
        let error = core.answer(received).unwrap_err();
        assert!(error.to_string().ends_with("the thread that writes it has ended"), "{error}");
        core.fail(&LogError::mismatch("first"));
        core.fail(&LogError::mismatch("second"));
        let error = core.answer::<(), _>(Err(RecvTimeoutError::Disconnected)).unwrap_err();
        assert!(error.to_string().ends_with("since a write failed: first"), "{error}");
    }

    #[test]
    fn a_reader_is_woken_until_it_has_gone() {
        let (_dir, core) = core();
        let woken = [Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0))];
        let wakers = woken.each_ref().map(|woken| {
            let woken = Arc::clone(woken);
            Waker::new(move || {
                woken.fetch_add(1, Ordering::SeqCst);
            })
        });
        let mut watches = Vec::from(wakers.each_ref().map(|waker| Watch::new(&core, waker.clone())));
        let table = core.view();
        let publish = || {
            wakers.iter().for_each(Waker::will_sleep);
            core.publish(&table);
            woken.each_ref().map(|woken| woken.load(Ordering::SeqCst))
        };
        assert_eq!(publish(), [1, 1]);
        watches.remove(0);
        assert_eq!(publish(), [1, 2]);
        watches.clear();
        assert_eq!(publish(), [1, 2]);
    }
}
