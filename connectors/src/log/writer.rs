//! The one thread that changes a log: it takes everything that waits, and writes appends that follow each other at once, with one sync.
//!
//! So sequence numbers are dense and appends of any number of threads share a sync; splits, retention and the commits of sinks
//! are in one order with the appends; and none of that runs on a worker of a job.
//!
//! **Errors**: after a write or a sync that failed nobody knows what is on disk, so the log takes nothing more. Readers never
//! see what was not written for certain.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rocksdb::WriteBatch;
use serde::{Deserialize, Serialize};

use super::core::{Core, Note, Reply, Request, Work};
use super::error::LogError;
use super::options::{Durability, LogOptions};
use super::record::{Entry, Receipt, pack, unpack};
use super::retention::expired;
use super::shard::{ShardId, Table, route};
use super::sink::Handle;
use super::store::{Stretch, commit_key, floor_key, put_json};

/// A write holds not much more than this.
const MOST_BYTES: usize = 4 << 20;
/// Of how many epochs a sink's output can be withdrawn. Tests come to the end of it.
const COMMITS: usize = if cfg!(test) { 20 } else { 1_000 };

/// Milliseconds since 1970.
pub(super) type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// See the module.
pub(super) struct Writer {
    core: Arc<Core>,
    options: LogOptions,
    clock: Clock,
    /// As it will be when everything is written that was taken on.
    table: Table,
    routes: Vec<(u64, ShardId)>,
    stretches: Vec<VecDeque<Stretch>>,
    /// When what was written must be synced.
    sync_at: Option<Instant>,
    /// When ages are looked at.
    tick_at: Option<Instant>,
    /// A stretch was closed since retention was looked at.
    grown: bool,
}

/// What becomes one write.
#[derive(Default)]
struct Group {
    batch: WriteBatch,
    appended: Vec<(Reply<Vec<Receipt>>, Vec<Receipt>)>,
    frame: Vec<u8>,
}

/// Where an epoch of a sink stands: shard, first sequence number, the one after the last.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Committed(Vec<(ShardId, u64, u64)>);

impl Writer {
    pub fn new(
        core: Arc<Core>,
        options: LogOptions,
        clock: Clock,
        table: Table,
        stretches: Vec<VecDeque<Stretch>>,
    ) -> Self {
        let routes = table.routes();
        let tick_at = options.tick().map(|_| Instant::now());
        Writer { core, options, clock, table, routes, stretches, sync_at: None, tick_at, grown: true }
    }

    /// Works until the log is closed or a write fails.
    pub fn run(mut self) {
        // Whoever waits for an answer must not wait for ever, not even if there is a bug here.
        let ended = Ended(Arc::clone(&self.core));
        if let Err(error) = self.serve() {
            self.core.fail(&error);
        }
        drop(ended);
    }

    fn serve(&mut self) -> Result<(), LogError> {
        loop {
            let due = self.sync_at.into_iter().chain(self.tick_at).min();
            match self.core.work(due) {
                Work::Requests(requests) => self.take(requests)?,
                Work::Due => {}
                Work::Close => return self.sync(),
            }
            let now = Instant::now();
            if self.sync_at.is_some_and(|at| at <= now) {
                self.sync()?;
            }
            if self.tick_at.is_some_and(|at| at <= now) {
                self.tick_at = self.options.tick().map(|tick| now + tick);
                self.retain()?;
            }
            if self.grown && self.options.keep_bytes.is_some() {
                self.retain()?;
            }
        }
    }

    fn take(&mut self, requests: Vec<Request>) -> Result<(), LogError> {
        let mut group = Group::default();
        for request in requests {
            match request {
                Request::Append { entries, note, reply } => {
                    let receipts = self.place(&mut group, &entries)?;
                    if let Some(Note { key, value }) = note {
                        group.batch.put(key, value);
                    }
                    group.appended.push((reply, receipts));
                    if group.batch.size_in_bytes() >= MOST_BYTES {
                        self.write(std::mem::take(&mut group), false)?;
                    }
                }
                other => {
                    self.write(std::mem::take(&mut group), false)?;
                    self.one(other)?;
                }
            }
        }
        self.write(group, false)
    }

    /// Requests that are written on their own.
    fn one(&mut self, request: Request) -> Result<(), LogError> {
        match request {
            Request::Append { .. } => Ok(()), // is written in groups
            Request::Stage { handle, chunk, entries, sync, reply } => self.answer(reply, |writer| {
                let mut batch = WriteBatch::default();
                writer.core.store.put_staged(&mut batch, &handle, chunk, &pack(&entries))?;
                writer.core.store.write(batch, sync)
            }),
            Request::Commit { handles, reply } => self.answer(reply, |writer| writer.commit(&handles)),
            Request::MayRecover { sink, restored, withdraw, reply } => {
                self.answer(reply, |writer| writer.to_withdraw(&sink, restored, withdraw).map(drop))
            }
            Request::Recover { sink, restored, handles, withdraw, reply } => {
                self.answer(reply, |writer| writer.recover(&sink, restored, &handles, withdraw))
            }
            Request::Split { shard, reply } => {
                self.answer(reply, |writer| writer.reshard(&[shard], |table| table.split(shard)))
            }
            Request::Merge { a, b, reply } => {
                self.answer(reply, |writer| writer.reshard(&[a, b], |table| table.merge(a, b)))
            }
            Request::Retain { reply } => self.answer(reply, Self::retain),
            Request::Sync { reply } => self.answer(reply, Self::sync),
        }
    }

    /// Answers with what `f` gives. A refusal is an answer; anything else is also the end of the log.
    fn answer<T>(&mut self, reply: Reply<T>, f: impl FnOnce(&mut Self) -> Result<T, LogError>) -> Result<(), LogError> {
        match f(self) {
            Ok(value) => reply.send(Ok(value)),
            Err(refused @ (LogError::Refused { .. } | LogError::Mismatch { .. })) => reply.send(Err(refused)),
            Err(error) => {
                // First that, so that who is answered finds the log as it is.
                self.core.fail(&error);
                reply.send(Err(error));
                self.core.check()?;
            }
        }
        Ok(())
    }

    /// Gives entries their places, and adds them to the group.
    fn place(&mut self, group: &mut Group, entries: &[Entry]) -> Result<Vec<Receipt>, LogError> {
        // The clock may be set back; append times never are.
        let ms = (self.clock)().max(self.table.last_ms);
        if !entries.is_empty() {
            self.table.last_ms = ms;
        }
        let mut receipts = Vec::with_capacity(entries.len());
        for entry in entries {
            let id = route(&self.routes, entry.hash());
            self.stretch(&mut group.batch, id, ms, entry.bytes())?;
            let shard = &mut self.table.shards[id as usize];
            let receipt = Receipt { shard: id, sequence: shard.next };
            entry.write(self.table.order, ms, &mut group.frame);
            self.core.store.put_record(&mut group.batch, (id, shard.next), &group.frame)?;
            shard.next += 1;
            shard.bytes += entry.bytes();
            self.table.order += 1;
            receipts.push(receipt);
        }
        Ok(receipts)
    }

    /// Counts a record into the last stretch of its shard, or into a new one when that is long enough.
    fn stretch(&mut self, batch: &mut WriteBatch, id: ShardId, ms: u64, bytes: u64) -> Result<(), LogError> {
        let next = self.table.shards[id as usize].next;
        let most = self.options.stretch_bytes(self.routes.len());
        let own = &mut self.stretches[id as usize];
        if let Some(last) = own.back_mut() {
            if last.bytes + bytes <= most && ms - last.first_ms < self.options.stretch_ms() {
                last.end += 1;
                last.last_ms = ms;
                last.bytes += bytes;
                return Ok(());
            }
            self.core.store.put_stretch(batch, id, last)?;
            self.grown = true;
        }
        own.push_back(Stretch { first: next, end: next + 1, first_ms: ms, last_ms: ms, bytes });
        Ok(())
    }

    /// Writes a group; when it is synced, readers see it. Everybody in it is answered.
    fn write(&mut self, group: Group, sync: bool) -> Result<(), LogError> {
        if group.batch.is_empty() {
            group.appended.into_iter().for_each(|(reply, receipts)| reply.send(Ok(receipts)));
            return Ok(());
        }
        let sync = sync || self.options.durability == Durability::Synced;
        if let Err(error) = self.core.store.write(group.batch, sync) {
            self.core.fail(&error);
            // The error that they find is that of the log.
            group.appended.into_iter().for_each(|(reply, _)| {
                if let Err(failed) = self.core.check() {
                    reply.send(Err(failed));
                }
            });
            return Err(error);
        }
        match self.options.durability {
            Durability::SyncedWithin(time) if !sync => {
                let within = time.min(Duration::from_secs(3600));
                self.sync_at.get_or_insert_with(|| Instant::now() + within);
            }
            _ => self.publish(),
        }
        group.appended.into_iter().for_each(|(reply, receipts)| reply.send(Ok(receipts)));
        Ok(())
    }

    /// Everything that was written is durable now.
    fn publish(&mut self) {
        self.sync_at = None;
        self.core.publish(&self.table);
    }

    fn sync(&mut self) -> Result<(), LogError> {
        if self.sync_at.is_some() {
            self.core.store.sync()?;
            self.publish();
        }
        Ok(())
    }

    /// Splits or merges. The parents' ends, their children and the last stretches are written together.
    fn reshard<T>(
        &mut self,
        parents: &[ShardId],
        change: impl FnOnce(&mut Table) -> Result<T, LogError>,
    ) -> Result<T, LogError> {
        let changed = change(&mut self.table)?;
        let mut group = Group::default();
        for parent in parents {
            if let Some(last) = self.stretches[*parent as usize].back() {
                self.core.store.put_stretch(&mut group.batch, *parent, last)?;
            }
        }
        self.core.store.put_table(&mut group.batch, &self.table)?;
        self.write(group, true)?;
        self.stretches.resize_with(self.table.shards.len(), VecDeque::new);
        self.routes = self.table.routes();
        Ok(changed)
    }

    /// Drops what is too old or too much.
    fn retain(&mut self) -> Result<(), LogError> {
        self.grown = false;
        let oldest_ms = self.options.keep_ms().and_then(|age| (self.clock)().checked_sub(age));
        let shards = self.stretches.iter().zip(&self.table.shards).map(|(own, shard)| (own, !shard.is_closed()));
        let gone = expired(&shards.collect::<Vec<_>>(), oldest_ms, self.options.keep_bytes);
        if gone.is_empty() {
            return Ok(());
        }
        // What is shown below is the whole table, and of that only what is on disk may be.
        self.sync()?;
        let mut group = Group::default();
        for drop in &gone {
            self.core.store.drop_records(&mut group.batch, drop.shard, drop.first, drop.end)?;
            let shard = &mut self.table.shards[drop.shard as usize];
            shard.trimmed = drop.end;
            shard.bytes -= drop.bytes;
            shard.withdrawn.retain(|range| range.end > drop.end);
            self.stretches[drop.shard as usize].retain(|stretch| stretch.first >= drop.end);
        }
        self.core.store.put_table(&mut group.batch, &self.table)?;
        // Readers learn of the new horizons before the records go: a record that is missing has expired.
        self.core.publish(&self.table);
        self.write(group, true)?;
        for drop in &gone {
            self.core.store.give_back(drop.shard, drop.first, drop.end)?;
            tracing::debug!(shard = drop.shard, first = drop.first, end = drop.end, "records have expired");
        }
        Ok(())
    }

    /// Appends what is staged under these handles, notes where it stands, and removes it from the stage: all in one write, so
    /// readers see all of it or nothing, and a commit that is repeated finds nothing to do.
    fn commit(&mut self, handles: &[Handle]) -> Result<(), LogError> {
        let mut group = Group::default();
        let mut committed: BTreeMap<(&str, u64), Committed> = BTreeMap::new();
        for handle in handles {
            let text = handle.to_string();
            let Some(staged) = self.staged(&text)? else {
                let floor = self.core.store.json::<u64>(&floor_key(&handle.sink))?.unwrap_or(0);
                let done = self.core.store.json::<Committed>(&commit_key(&handle.sink, handle.epoch))?;
                if done.is_some() || handle.epoch <= floor {
                    continue;
                }
                return Err(LogError::mismatch(format!("the prepared output `{text}` is not in the log")));
            };
            let starts: Vec<u64> = self.table.shards.iter().map(|shard| shard.next).collect();
            self.place(&mut group, &staged)?;
            let grown = starts.iter().zip(&self.table.shards).filter(|(start, shard)| **start < shard.next);
            let grown = grown.map(|(start, shard)| (shard.id, *start, shard.next));
            committed.entry((&handle.sink, handle.epoch)).or_default().0.extend(grown);
            self.core.store.drop_staged(&mut group.batch, &text)?;
        }
        for ((sink, epoch), ranges) in &committed {
            put_json(&mut group.batch, &commit_key(sink, *epoch), ranges)?;
        }
        self.write(group, true)?;
        handles.first().map_or(Ok(()), |handle| self.forget_commits(&handle.sink))
    }

    /// What is staged under a handle; `None` when nothing is.
    fn staged(&self, handle: &str) -> Result<Option<Vec<Entry>>, LogError> {
        let mut staged = None;
        self.core.store.staged(handle, |chunk| {
            let broken =
                || LogError::damaged(self.core.store.dir(), format!("the staged output `{handle}` has no form"));
            staged.get_or_insert_with(Vec::new).extend(unpack(chunk).ok_or_else(broken)?);
            Ok(())
        })?;
        Ok(staged)
    }

    /// The epochs of a sink that are noted as committed, oldest first.
    fn commits(&self, sink: &str) -> Result<Vec<(u64, Committed)>, LogError> {
        let mut commits = Vec::new();
        let (first, end) = (commit_key(sink, 0), commit_key(sink, u64::MAX));
        self.core.store.scan(&first, &end, |key, value| {
            let epoch = key.last_chunk::<8>().map(|bytes| u64::from_be_bytes(*bytes));
            let committed = serde_json::from_slice(value).ok();
            let broken = || LogError::damaged(self.core.store.dir(), format!("a commit of sink `{sink}` has no form"));
            commits.push(epoch.zip(committed).ok_or_else(broken)?);
            Ok(())
        })?;
        Ok(commits)
    }

    /// Keeps notes of the newest epochs only.
    fn forget_commits(&mut self, sink: &str) -> Result<(), LogError> {
        let commits = self.commits(sink)?;
        // Not one by one, so that it is seldom done.
        if commits.len() < COMMITS + COMMITS / 10 {
            return Ok(());
        }
        let mut batch = WriteBatch::default();
        let old = &commits[..commits.len() - COMMITS];
        old.iter().for_each(|(epoch, _)| batch.delete(commit_key(sink, *epoch)));
        if let Some((newest, _)) = old.last() {
            put_json(&mut batch, &floor_key(sink), newest)?;
        }
        self.core.store.write(batch, true)
    }

    /// The epochs of a sink that are later than the start, if they may and can be withdrawn. Changes nothing.
    fn to_withdraw(
        &self,
        sink: &str,
        restored: Option<u64>,
        withdraw: bool,
    ) -> Result<Vec<(u64, Committed)>, LogError> {
        let restored = restored.unwrap_or(0);
        let later: Vec<_> = self.commits(sink)?.into_iter().filter(|(epoch, _)| *epoch > restored).collect();
        let floor = self.core.store.json::<u64>(&floor_key(sink))?.unwrap_or(0);
        if let Some((newest, _)) = later.last() {
            let place = format!("sink `{sink}` of the log in {}", self.core.store.dir().display());
            if !withdraw {
                return Err(LogError::refused(
                    format!(
                        "{place} has output up to epoch {newest}, later than the start at {restored}: it would be doubled"
                    ),
                    "`--from EPOCH` and `--fresh` withdraw that output: readers pass over it; or choose another sink name",
                ));
            }
            if floor > restored {
                return Err(LogError::refused(
                    format!(
                        "{place}: where its output before epoch {floor} stands is forgotten, so it cannot be withdrawn"
                    ),
                    "go back less far, or choose another sink name",
                ));
            }
        }
        Ok(later)
    }

    fn recover(
        &mut self,
        sink: &str,
        restored: Option<u64>,
        handles: &[Handle],
        withdraw: bool,
    ) -> Result<(), LogError> {
        let later = self.to_withdraw(sink, restored, withdraw)?;
        self.commit(handles)?;
        let mut group = Group::default();
        for (epoch, Committed(ranges)) in &later {
            for (shard, first, end) in ranges {
                let shard = self.table.shards.get_mut(*shard as usize).filter(|shard| shard.trimmed < *end);
                if let Some(shard) = shard {
                    shard.withdraw(*first..*end);
                }
            }
            group.batch.delete(commit_key(sink, *epoch));
        }
        if !later.is_empty() {
            self.core.store.put_table(&mut group.batch, &self.table)?;
            tracing::warn!(sink, epochs = later.len(), "withdrew committed records that are later than the checkpoint");
        }
        self.core.store.drop_all_staged(&mut group.batch, &format!("{sink}."))?;
        self.write(group, true)
    }
}

/// The thread is over, in whatever way.
struct Ended(Arc<Core>);

impl Drop for Ended {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let error = LogError::damaged(self.0.store.dir(), "the thread that writes it has panicked, which is a bug");
            self.0.fail(&error);
        }
        self.0.abandon();
    }
}
