//! How another process asks a running job for a savepoint: files in its checkpoint directory, and locks on them that end with the
//! process that holds them.
//!
//! ```text
//! DIR/.millstream-requests/0a1b2c3d.request     who asks writes it and keeps it locked; the job removes it when it takes it on
//!                          0a1b2c3d.accepted    locked by the job until it has answered
//!                          0a1b2c3d.answer      the savepoint, or why there is none
//! ```
//! So neither waits for one that is dead: the job ignores a request that nobody holds, and who asked sees that the job is gone when
//! nobody holds what it accepted. Nobody ever tries the lock of the directory itself, which would be in the way of a job that starts.

use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Request, Savepoint};
use crate::error::{Error, Result};
use crate::execute::execution_token;

const REQUESTS: &str = ".millstream-requests";

/// No request or answer is longer.
const MOST: u64 = 64 << 10;

/// What was left behind is deleted after this time.
const OLD: Duration = Duration::from_secs(3600);

/// How long a job gets to notice a request. It looks four times a second.
const NOTICE: Duration = Duration::from_secs(10);

#[derive(Serialize, Deserialize)]
struct Asked {
    dir: PathBuf,
}

#[derive(Serialize, Deserialize)]
enum Answered {
    #[serde(rename = "savepoint")]
    Taken(Savepoint),
    #[serde(rename = "error")]
    Refused(String),
}

/// The job's side.
pub(crate) struct Mailbox {
    dir: PathBuf,
}

impl Mailbox {
    /// That of the job that has the lock of the directory `checkpoints`.
    pub(crate) fn of_job(checkpoints: &Path) -> Mailbox {
        let mailbox = Mailbox { dir: checkpoints.join(REQUESTS) };
        for path in mailbox.files().filter(|path| ending(path) != Some("request")) {
            let modified = fs::metadata(&path).and_then(|found| found.modified());
            if modified.is_ok_and(|modified| modified.elapsed().is_ok_and(|age| age > OLD)) {
                let _ = fs::remove_file(path);
            }
        }
        mailbox
    }

    fn files(&self) -> impl Iterator<Item = PathBuf> + use<> {
        // There is no such directory until somebody asks for the first time.
        fs::read_dir(&self.dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()))
    }

    /// Takes on what is asked for, by processes that still live.
    pub(crate) fn take(&mut self) -> Vec<Request> {
        let requests = self.files().filter(|path| ending(path) == Some("request"));
        requests.filter_map(|path| self.accept(&path)).collect()
    }

    fn accept(&self, path: &Path) -> Option<Request> {
        let token = path.file_stem()?.to_str().filter(|token| is_token(token))?.to_string();
        let request = File::options().read(true).write(true).open(path).ok()?;
        if !is_held(&request) {
            let _ = fs::remove_file(path);
            return None;
        }
        let asked = read::<Asked>(path);
        let accepted = File::create(self.dir.join(format!("{token}.accepted"))).ok()?;
        accepted.try_lock().ok()?;
        // Who asked takes it away when it has waited long enough. Only one of the two can.
        if fs::remove_file(path).is_err() {
            let _ = fs::remove_file(self.dir.join(format!("{token}.accepted")));
            return None;
        }
        let dir = self.dir.clone();
        let answer = move |taken: Result<Savepoint>| {
            let answered = match taken {
                Ok(taken) => Answered::Taken(taken),
                Err(error) => Answered::Refused(error.to_string()),
            };
            if let Err(error) = write(&dir, &format!("{token}.answer"), &answered) {
                tracing::warn!("who asked for a savepoint cannot be answered: {error}");
            }
            drop(accepted);
        };
        match asked {
            Ok(Asked { dir }) => Some(Request { dir: Some(dir), answer: Box::new(answer) }),
            Err(error) => {
                answer(Err(error));
                None
            }
        }
    }
}

/// Asks the job that works in the directory `checkpoints` for a savepoint in `dir`, and waits for it.
pub(crate) fn ask(checkpoints: &Path, dir: &Path, timeout: Duration) -> Result<Savepoint> {
    let failed = |error: std::io::Error| {
        Error::external(format!("the job in {} cannot be asked for a savepoint", checkpoints.display())).because(error)
    };
    if !checkpoints.is_dir() {
        return Err(nobody(checkpoints));
    }
    let requests = checkpoints.join(REQUESTS);
    fs::create_dir_all(&requests).map_err(failed)?;
    let token = execution_token();
    let path = |ending: &str| requests.join(format!("{token}.{ending}"));
    // Locked before anybody sees it.
    let draft = File::create_new(path("draft")).map_err(failed)?;
    draft.lock().map_err(failed)?;
    let asked = serde_json::to_vec(&Asked { dir: dir.to_path_buf() });
    let asked = asked.map_err(|error| Error::config("the path of the savepoint is not text").because(error))?;
    (&draft).write_all(&asked).map_err(failed)?;
    fs::rename(path("draft"), path("request")).map_err(failed)?;
    let begin = Instant::now();
    let answer = loop {
        if path("answer").try_exists().map_err(failed)? {
            break read::<Answered>(&path("answer"));
        }
        if path("request").try_exists().map_err(failed)? {
            if begin.elapsed() > NOTICE.min(timeout) && fs::remove_file(path("request")).is_ok() {
                return Err(nobody(checkpoints));
            }
        } else if !File::open(path("accepted")).is_ok_and(|accepted| is_held(&accepted))
            && !path("answer").try_exists().map_err(failed)?
        {
            break Err(Error::external("the job ended before it had taken the savepoint")
                .hint("what there is of it has no `manifest`, and is no savepoint: delete it and ask again"));
        }
        if begin.elapsed() > timeout {
            return Err(Error::external(format!(
                "the job has not completed the savepoint after {} s",
                timeout.as_secs()
            ))
            .hint("it may still do; a savepoint is complete when its `manifest` is there. `--timeout` waits longer"));
        }
        std::thread::park_timeout(Duration::from_millis(20));
    };
    for left in ["accepted", "answer"] {
        let _ = fs::remove_file(path(left));
    }
    match answer? {
        Answered::Taken(taken) => Ok(taken),
        Answered::Refused(why) => Err(Error::external(format!("the job has not taken the savepoint: {why}"))),
    }
}

fn nobody(checkpoints: &Path) -> Error {
    Error::external(format!("no job answers in {}: none runs with this checkpoint directory", checkpoints.display()))
        .hint("start the job first; a job that does not run can be looked at by `state`, and its checkpoint directory copied")
}

fn ending(path: &Path) -> Option<&str> {
    path.extension()?.to_str()
}

fn is_token(token: &str) -> bool {
    token.len() == 8 && token.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether somebody holds the lock of a file.
fn is_held(file: &File) -> bool {
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T> {
    let failed = |why: String| Error::external(format!("{} cannot be read: {why}", path.display()));
    let size = fs::metadata(path).map_err(|error| failed(error.to_string()))?.len();
    if size > MOST {
        return Err(failed(format!("it has {size} bytes")));
    }
    let bytes = fs::read(path).map_err(|error| failed(error.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|error| failed(error.to_string()))
}

/// Writes a file that is whole as soon as it is there.
fn write(dir: &Path, name: &str, value: &impl Serialize) -> std::io::Result<()> {
    let draft = dir.join(format!("{name}.draft"));
    fs::write(&draft, serde_json::to_vec(value)?)?;
    match fs::rename(&draft, dir.join(name)) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()), // the whole directory was taken away
        renamed => renamed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn savepoint(dir: PathBuf) -> Savepoint {
        Savepoint { epoch: 7, dir, bytes: 12 }
    }

    /// Lets `job` answer requests in a directory while another thread asks for a savepoint.
    fn asked(timeout: Duration, job: impl Fn(Request) + Sync) -> Result<Savepoint> {
        let dir = tempfile::tempdir().unwrap();
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut mailbox = Mailbox::of_job(dir.path());
                while !done.load(std::sync::atomic::Ordering::SeqCst) {
                    mailbox.take().into_iter().for_each(&job);
                    std::thread::park_timeout(Duration::from_millis(1));
                }
            });
            let answer = ask(dir.path(), Path::new("/somewhere/new"), timeout);
            done.store(true, std::sync::atomic::Ordering::SeqCst);
            let left = fs::read_dir(dir.path().join(REQUESTS)).unwrap().count();
            assert_eq!(left, 0, "something is left behind");
            answer
        })
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn what_is_asked_is_answered() {
        let answer = asked(LONG, |request| (request.answer)(Ok(savepoint(request.dir.unwrap()))));
        assert_eq!(answer.unwrap(), savepoint("/somewhere/new".into()));
        let answer = asked(LONG, |request| {
            // Longer than who asked waits between two looks.
            std::thread::park_timeout(Duration::from_millis(200));
            (request.answer)(Ok(savepoint(request.dir.unwrap())));
        });
        assert_eq!(answer.unwrap(), savepoint("/somewhere/new".into()));
        let answer = asked(LONG, |request| (request.answer)(Err(Error::config("the disk is full").hint("free some"))));
        let error = answer.unwrap_err().to_string();
        assert!(error.contains("the disk is full\n  free some"), "{error}");
    }

    #[test]
    fn when_the_job_dies_then_nobody_waits_for_it() {
        // What was accepted is dropped unanswered, as by a process that was killed.
        let error = asked(LONG, drop).unwrap_err().to_string();
        assert!(error.contains("the job ended before"), "{error}");
    }

    #[test]
    fn when_no_job_runs_then_that_is_said() {
        let dir = tempfile::tempdir().unwrap();
        for place in [dir.path().to_path_buf(), dir.path().join("nowhere")] {
            let error = ask(&place, Path::new("/new"), Duration::from_millis(50)).unwrap_err().to_string();
            assert!(error.contains("no job answers"), "{error}");
        }
        // The request was withdrawn: a job that starts now does not find it.
        assert!(Mailbox::of_job(dir.path()).take().is_empty());
        assert_eq!(fs::read_dir(dir.path().join(REQUESTS)).unwrap().count(), 0);
    }

    #[test]
    fn requests_of_the_dead_and_of_strangers_are_not_taken_on() {
        let dir = tempfile::tempdir().unwrap();
        let requests = dir.path().join(REQUESTS);
        fs::create_dir(&requests).unwrap();
        let dead = requests.join("0a1b2c3d.request");
        fs::write(&dead, "{\"dir\":\"/x\"}").unwrap();
        let strange = requests.join("not-a-token.request");
        fs::write(&strange, "{\"dir\":\"/x\"}").unwrap();
        let large = requests.join("00000000.request");
        fs::write(&large, vec![b' '; MOST as usize + 1]).unwrap();
        let held = File::open(&large).unwrap();
        held.lock().unwrap();
        assert!(Mailbox::of_job(dir.path()).take().is_empty());
        assert!(!dead.exists() && strange.exists() && !large.exists());
        let answer = fs::read_to_string(requests.join("00000000.answer")).unwrap();
        assert!(answer.contains("65537 bytes"), "{answer}");
    }
}
