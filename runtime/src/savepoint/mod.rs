//! Savepoints of a running job: who asks for one, and how the coordinator answers.
//!
//! Three ask: a [`JobHandle`](crate::handle::JobHandle) in this process, another process by way of files in the checkpoint directory
//! (`mailbox.rs`), and a signal. The coordinator closes an epoch for them, which any epoch does that is closed anyway, and when its
//! checkpoint is published and its output committed, the files are opened and copied by a thread of their own. So checkpoints go on
//! meanwhile, and may be deleted meanwhile.
//!
//! **Errors** are for who asked. The job goes on as if nothing had been asked for.

pub(crate) mod mailbox;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use millstream_state::StateError;
use millstream_state::held::Held;
use millstream_state::savepoint::export;
use millstream_state::store::CheckpointStore;

use crate::error::{Error, Result};
use crate::moment::Epoch;
use crate::terminal::tell;
use mailbox::Mailbox;

/// A savepoint that was taken.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Savepoint {
    /// The epoch at whose end it was cut.
    pub epoch: Epoch,
    /// Its directory, which belongs to the user.
    pub dir: PathBuf,
    /// How many bytes of state were copied into it.
    pub bytes: u64,
}

/// Called once, with what came of a request.
pub(crate) type Answer = Box<dyn FnOnce(Result<Savepoint>) + Send>;

/// Somebody wants a savepoint.
pub(crate) struct Request {
    /// Where; `None`: in the checkpoint directory, named by the epoch.
    pub dir: Option<PathBuf>,
    pub answer: Answer,
}

/// The directory of savepoints that nobody gave a place.
const OWN: &str = "savepoints";

/// The coordinator's account of who asked for a savepoint. Made when the job begins to run.
pub(crate) struct Savepoints {
    store: Option<CheckpointStore>,
    execution: String,
    mailbox: Option<Mailbox>,
    /// Set by a signal.
    signalled: Arc<AtomicBool>,
    /// Who waits for an epoch to be closed, and for the one that is being closed.
    waiting: Vec<Request>,
    closing: Vec<Request>,
    copying: Vec<JoinHandle<()>>,
    cancelled: Arc<AtomicBool>,
}

impl Savepoints {
    pub(crate) fn new(store: Option<CheckpointStore>, execution: &str, signalled: Arc<AtomicBool>) -> Self {
        let mailbox = store.as_ref().map(|store| Mailbox::of_job(store.dir()));
        Savepoints {
            store,
            execution: execution.to_string(),
            mailbox,
            signalled,
            waiting: Vec::new(),
            closing: Vec::new(),
            copying: Vec::new(),
            cancelled: Arc::default(),
        }
    }

    /// Looks whether somebody outside asks for one.
    pub(crate) fn poll(&mut self) {
        let mut asked: Vec<Request> = self.mailbox.iter_mut().flat_map(Mailbox::take).collect();
        if self.signalled.swap(false, Ordering::SeqCst) {
            // Nobody waits for an answer, so it goes where the person at the terminal sees it.
            let answer = |taken: Result<Savepoint>| match taken {
                Ok(taken) => tell(format_args!("savepoint of epoch {} in {}", taken.epoch, taken.dir.display())),
                Err(error) => tell(format_args!("no savepoint: {error}")),
            };
            asked.push(Request { dir: None, answer: Box::new(answer) });
        }
        asked.into_iter().for_each(|request| self.request(request));
        self.copying.retain(|copying| !copying.is_finished());
    }

    /// Somebody asks; what cannot be is answered at once.
    pub(crate) fn request(&mut self, request: Request) {
        let fine = match &self.store {
            None => Err(Error::config("a job that keeps no checkpoints cannot take a savepoint")
                .hint("name a directory with `--checkpoint-dir DIR` (`Job::checkpoint_dir`)")),
            Some(store) => request.dir.as_deref().map_or(Ok(()), |dir| check_place(store.dir(), dir)),
        };
        match fine {
            Ok(()) => self.waiting.push(request),
            Err(error) => (request.answer)(Err(error)),
        }
    }

    /// Whether somebody waits for an epoch to be closed.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// An epoch is being closed: it will do for all who asked so far.
    pub(crate) fn closing(&mut self) {
        self.closing.append(&mut self.waiting);
    }

    /// The checkpoint of `epoch` is published and its output committed: copies it for all who asked. Returns to where.
    pub(crate) fn take(&mut self, epoch: Epoch) -> Vec<PathBuf> {
        let mut places = Vec::new();
        let Some(store) = &self.store else { return places };
        for Request { dir, answer } in std::mem::take(&mut self.closing) {
            let dir =
                dir.unwrap_or_else(|| store.dir().join(OWN).join(format!("epoch-{epoch:010}-{}", self.execution)));
            let held = match Held::open(&store.epoch_dir(epoch)) {
                Ok(held) => held,
                Err(error) => {
                    answer(Err(error.into()));
                    continue;
                }
            };
            places.push(dir.clone());
            let cancelled = Arc::clone(&self.cancelled);
            let copy = move || answer(copy(epoch, &held, dir, &cancelled));
            match std::thread::Builder::new().name("millstream-savepoint".into()).spawn(copy) {
                Ok(thread) => self.copying.push(thread),
                // Who asked learns it from the answer that was dropped.
                Err(error) => tracing::warn!(epoch, "no savepoint: its thread cannot be started: {error}"),
            }
        }
        places
    }

    /// The job has ended. What is being copied is completed, or, if the job has `failed`, given up.
    pub(crate) fn end(&mut self, failed: bool) {
        self.cancelled.store(failed, Ordering::SeqCst);
        self.poll();
        for request in self.waiting.drain(..).chain(self.closing.drain(..)) {
            (request.answer)(Err(Error::external("the job ended before it could take the savepoint")));
        }
        for copying in self.copying.drain(..) {
            let _ = copying.join();
        }
    }
}

fn copy(epoch: Epoch, held: &Held, dir: PathBuf, cancelled: &AtomicBool) -> Result<Savepoint> {
    match export(held, &dir, cancelled) {
        Ok(bytes) => Ok(Savepoint { epoch, dir, bytes }),
        Err(error @ StateError::Exists { .. }) => {
            Err(Error::from(error)
                .hint("a savepoint is never written over anything: name a directory that does not exist"))
        }
        Err(error) => Err(error.into()),
    }
}

/// Checks where a savepoint is to be: somewhere that exists in no form, and outside of what the job itself cleans up.
fn check_place(checkpoints: &Path, dir: &Path) -> Result<()> {
    let place = |what: &str| Error::config(format!("a savepoint cannot be in {}: {what}", dir.display()));
    if !dir.is_absolute() || dir.file_name().is_none() {
        return Err(place("that is not the whole path of a directory"));
    }
    match dir.symlink_metadata() {
        Ok(_) => {
            let hint = "a savepoint is never written over anything: name a directory that does not exist";
            return Err(Error::from(StateError::Exists { path: dir.to_path_buf() }).hint(hint));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(place("it cannot be looked up").because(error)),
    }
    let there = dir.ancestors().find_map(|above| above.canonicalize().ok());
    if let (Some(there), Ok(checkpoints)) = (there, checkpoints.canonicalize())
        && there.starts_with(&checkpoints)
        && !there.starts_with(checkpoints.join(OWN))
        && dir.parent().is_none_or(|parent| !parent.ends_with(OWN))
    {
        return Err(place("that is in the checkpoint directory, where the job deletes what it no longer needs")
            .hint("choose a place elsewhere, best on another disk"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_savepoint_is_made_where_nothing_is_and_nobody_deletes() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = dir.path().join("checkpoints");
        std::fs::create_dir_all(checkpoints.join("epoch-0000000001")).unwrap();
        let check = |path: &Path| check_place(&checkpoints, path).map_err(|error| error.to_string());
        check(&dir.path().join("new")).unwrap();
        check(&dir.path().join("not/yet/there")).unwrap();
        check(&checkpoints.join("savepoints/mine")).unwrap();
        for (path, text) in [
            (dir.path().to_path_buf(), "exists already"),
            (checkpoints.join("mine"), "in the checkpoint directory"),
            (checkpoints.join("epoch-0000000002"), "in the checkpoint directory"),
            (checkpoints.join("epoch-0000000001/x"), "in the checkpoint directory"),
            (dir.path().join("checkpoints/../checkpoints/live-0a1b2c3d/x"), "in the checkpoint directory"),
            (PathBuf::from("relative"), "not the whole path"),
            (PathBuf::from("/"), "not the whole path"),
            (dir.path().join("new/.."), "not the whole path"),
        ] {
            let error = check(&path).unwrap_err();
            assert!(error.contains(text), "{}: {error}", path.display());
        }
    }
}
