//! A sink of part files, each of which belongs to one epoch and appears when that epoch's checkpoint is published.
//!
//! A writer opens a part with the epoch's first record, under a pending name, and closes it when it is full or the epoch
//! is over. `finish` then syncs the parts and the directory's entries for them, away from the worker; see `commit` for
//! the second step. An epoch without records makes no file.
//!
//! **Errors**: `User` for a value that the format cannot express, `External` when the disk fails.

use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::time::Duration;

use millstream_runtime::digest::Digests;
use millstream_runtime::error::{Error, Result, full_disk_hint};
use millstream_runtime::moment::Epoch;
use millstream_runtime::record::{Data, Record};
use millstream_runtime::sink::{Committer, Finish, Redirect, Sink, SinkTask, SinkWriter, Stored};
use serde::Serialize;

use super::commit::FileCommitter;
use super::output::{Encoding, Format, Part, WriteError};
use super::part::{PartName, pending_name, times_name};
use super::stored::StoredFiles;
use millstream_state::store::sync_dir;

/// Writes values into part files in a directory, exactly once.
///
/// Parts appear as `part-e{epoch}-w{worker}-{number}.csv` (or `.jsonl`) when the checkpoint of their epoch is complete.
/// Until then they are there under names that end in `.pending-` and eight more characters; whoever reads the output
/// takes `*.csv` only. The event times are not written, unless they are part of the value.
///
/// A directory serves one sink of one job at a time; a lock sees to that. Output that a user withdrew by going back to an older
/// checkpoint, or by a fresh start, is moved to `withdrawn-1/`, `withdrawn-2/` … in the directory; delete it when you like.
///
/// ```
/// use millstream_connectors::FileSink;
///
/// #[derive(Clone, serde::Serialize)]
/// struct Total {
///     customer: String,
///     cents: i64,
/// }
///
/// let totals = FileSink::<Total>::csv("totals").roll_at_bytes(64 << 20);
/// ```
#[derive(Clone, Debug)]
pub struct FileSink<T> {
    settings: Settings,
    of: PhantomData<fn(T)>,
}

#[derive(Clone, Debug)]
struct Settings {
    dir: PathBuf,
    /// Nothing is written, to no directory.
    nowhere: bool,
    /// It is noted when each row happened.
    times: bool,
    encoding: Encoding,
    roll_at_bytes: u64,
    roll_after: Duration,
}

impl<T: Serialize + Data> FileSink<T> {
    /// CSV. `T` must be a struct of plain fields, whose names become the header of each part.
    pub fn csv(dir: impl Into<PathBuf>) -> Self {
        Self::new(dir.into(), Format::Csv)
    }

    /// One JSON value a line.
    pub fn json_lines(dir: impl Into<PathBuf>) -> Self {
        Self::new(dir.into(), Format::JsonLines)
    }

    fn new(dir: PathBuf, format: Format) -> Self {
        let encoding = Encoding { format, gzip: false };
        let settings = Settings {
            dir,
            nowhere: false,
            times: false,
            encoding,
            roll_at_bytes: u64::MAX,
            roll_after: Duration::MAX,
        };
        FileSink { settings, of: PhantomData }
    }

    /// Starts another part when one has this many bytes (before compression), even within an epoch.
    #[must_use]
    pub fn roll_at_bytes(mut self, bytes: u64) -> Self {
        self.settings.roll_at_bytes = bytes;
        self
    }

    /// Starts another part when one has been open for this long at the arrival of records, even within an epoch.
    #[must_use]
    pub fn roll_after(mut self, age: Duration) -> Self {
        self.settings.roll_after = age;
        self
    }

    /// Compresses parts, and adds `.gz` to their names.
    #[must_use]
    pub fn gzip(mut self) -> Self {
        self.settings.encoding.gzip = true;
        self
    }
}

impl<T: Serialize + Data> Sink<T> for FileSink<T> {
    type Writer = FileSinkWriter<T>;

    fn kind(&self) -> &'static str {
        match self.settings.encoding.format {
            Format::Csv => "csv files",
            Format::JsonLines => "json lines",
        }
    }

    fn writer(&self, task: &SinkTask) -> Result<FileSinkWriter<T>> {
        let (settings, task) = (self.settings.clone(), task.clone());
        Ok(FileSinkWriter {
            settings,
            task,
            last: None,
            part: None,
            closed: Vec::new(),
            unsynced: Vec::new(),
            failed_at: None,
            digests: Vec::new(),
            prepared: Digests::default(),
            of: PhantomData,
        })
    }

    fn committer(&self, job: &str) -> Option<Box<dyn Committer>> {
        if self.settings.nowhere {
            return None;
        }
        Some(Box::new(FileCommitter::new(self.settings.dir.clone(), job)))
    }

    fn redirected(&self, to: &Redirect) -> Option<Self> {
        let mut redirected = self.clone();
        match to {
            Redirect::Into { dir, times } => {
                redirected.settings.dir.clone_from(dir);
                redirected.settings.times = *times;
            }
            Redirect::Discard => redirected.settings.nowhere = true,
        }
        Some(redirected)
    }

    fn stored(&self) -> Option<Box<dyn Stored>> {
        if self.settings.nowhere {
            return None;
        }
        Some(Box::new(StoredFiles::new(self.settings.dir.clone(), self.settings.encoding.format)))
    }
}

/// How many closed parts may stay open until they are synced away from the worker; an epoch with more waits for the disk.
const OPEN_FILES: usize = 64;

/// Writes the parts of one worker of a [`FileSink`].
pub struct FileSinkWriter<T> {
    settings: Settings,
    task: SinkTask,
    /// Epoch and number of the last part that was opened.
    last: Option<(Epoch, u32)>,
    /// The open part, with its epoch and name.
    part: Option<(Epoch, String, Part)>,
    /// Closed parts that are not yet named to the checkpoint, with those files that are not yet synced.
    closed: Vec<(Epoch, String, Option<File>)>,
    /// Named parts that are not yet synced.
    unsynced: Vec<Option<File>>,
    /// The row of a batch whose value did not go into the format.
    failed_at: Option<usize>,
    /// What was written in epochs that are not yet prepared, in order.
    digests: Vec<(Epoch, Digests)>,
    /// What was prepared last.
    prepared: Digests,
    of: PhantomData<fn(T)>,
}

impl<T: Serialize + Data> SinkWriter<T> for FileSinkWriter<T> {
    fn write(&mut self, epoch: Epoch, records: &mut Vec<Record<T>>) -> Result<()> {
        let over = |(of, _, part): &(Epoch, String, Part)| *of != epoch || part.age() >= self.settings.roll_after;
        if self.part.as_ref().is_some_and(over) {
            self.close()?;
        }
        self.failed_at = None;
        if self.digests.last().is_none_or(|(of, _)| *of != epoch) {
            self.digests.push((epoch, Digests::default()));
        }
        for (row, record) in records.drain(..).enumerate() {
            if self.part.is_none() {
                self.part = Some(self.open(epoch)?);
            }
            let (Some((_, _, part)), Some((_, digests))) = (&mut self.part, self.digests.last_mut()) else { continue };
            // A value that panics as it is written is named as well; a disk that fails is no value's fault.
            self.failed_at = Some(row);
            if let Err(error) = part.write(record.at, &record.value, digests) {
                self.failed_at = self.failed_at.filter(|_| matches!(error, WriteError::Value(_)));
                return Err(failed(&self.settings.dir, error));
            }
            self.failed_at = None;
            if part.bytes() >= self.settings.roll_at_bytes {
                self.close()?;
            }
        }
        Ok(())
    }

    fn row(&self) -> Option<usize> {
        self.failed_at
    }

    fn prepare(&mut self, epoch: Epoch) -> Result<Vec<String>> {
        if self.part.as_ref().is_some_and(|(of, ..)| *of <= epoch) {
            self.close()?;
        }
        let (ready, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.closed).into_iter().partition(|(of, ..)| *of <= epoch);
        self.closed = later;
        self.prepared = Digests::default();
        for (_, digests) in self.digests.extract_if(.., |(of, _)| *of <= epoch) {
            self.prepared.plus(&digests.settled());
        }
        if self.settings.nowhere {
            return Ok(Vec::new());
        }
        let (names, files): (Vec<_>, Vec<_>) = ready.into_iter().map(|(_, name, file)| (name, file)).unzip();
        self.unsynced = files;
        Ok(names)
    }

    fn finish(&mut self) -> Option<Finish> {
        let files = std::mem::take(&mut self.unsynced);
        let dir = self.settings.dir.clone();
        (!files.is_empty()).then(|| {
            Box::new(move || {
                files.iter().flatten().try_for_each(File::sync_all).map_err(|e| failed(&dir, e.into()))?;
                Ok(sync_dir(&dir)?)
            }) as Finish
        })
    }

    fn digests(&mut self) -> Option<Digests> {
        Some(std::mem::take(&mut self.prepared))
    }
}

impl<T> FileSinkWriter<T> {
    fn open(&mut self, epoch: Epoch) -> Result<(Epoch, String, Part)> {
        let number = match self.last {
            Some((of, number)) if of == epoch => number + 1,
            _ => 0,
        };
        let Settings { dir, nowhere, times, encoding, .. } = &self.settings;
        let name = pending_name(epoch, self.task.worker, number, encoding.ending(), &self.task.execution);
        let path = (!nowhere).then(|| dir.join(&name));
        let committed = || PartName::from_handle(&name).map(|part| dir.join(times_name(&part.committed)));
        let times = (*times && !nowhere).then(committed).transpose()?;
        let part = Part::create(path.as_deref(), times.as_deref(), *encoding).map_err(|e| failed(dir, e.into()))?;
        self.last = Some((epoch, number));
        Ok((epoch, name, part))
    }

    fn close(&mut self) -> Result<()> {
        if let Some((epoch, name, part)) = self.part.take() {
            let file = part.close().map_err(|e| failed(&self.settings.dir, e.into()))?;
            let file = match file {
                Some(file) if self.closed.len() >= OPEN_FILES => {
                    file.sync_all().map_err(|e| failed(&self.settings.dir, e.into()))?;
                    None
                }
                file => file,
            };
            self.closed.push((epoch, name, file));
        }
        Ok(())
    }
}

fn failed(dir: &Path, e: WriteError) -> Error {
    match e {
        WriteError::Io(e) => {
            let full = e.kind() == io::ErrorKind::StorageFull;
            let error = Error::external(format!("output cannot be written to `{}`", dir.display())).because(e);
            if full { error.hint(full_disk_hint(dir)) } else { error }
        }
        WriteError::Value(e) => Error::user("a value cannot be written in this format")
            .because(e)
            .hint("CSV takes structs of plain fields; JSON lines take nested ones as well"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_runtime::error::ErrorKind;
    use millstream_runtime::time::EventTime;

    #[derive(Clone, Debug, PartialEq, Serialize)]
    struct Row {
        name: &'static str,
        n: u64,
    }

    fn records(numbers: std::ops::Range<u64>) -> Vec<Record<Row>> {
        numbers
            .map(|n| Record { at: EventTime::from_secs(n as i64), value: Row { name: "a, \"b\"\n", n } })
            .collect()
    }

    fn writer(sink: &FileSink<Row>, execution: &str) -> FileSinkWriter<Row> {
        sink.writer(&SinkTask { worker: 2, execution: execution.to_string() }).unwrap()
    }

    fn parts(dir: &Path) -> Vec<String> {
        let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| name.starts_with("part-")).collect();
        names.sort();
        names
    }

    #[test]
    fn an_epoch_appears_when_it_is_committed() {
        let dir = tempfile::tempdir().unwrap();
        let sink = FileSink::csv(dir.path());
        let mut committer = sink.committer("job").unwrap();
        committer.recover(None, &[], false).unwrap();
        let mut writer = writer(&sink, "00000001");
        assert!(writer.prepare(1).unwrap().is_empty());
        let mut records = records(0..2);
        writer.write(2, &mut records).unwrap();
        assert!(records.is_empty());
        let handles = writer.prepare(2).unwrap();
        assert_eq!(handles, ["part-e0000000002-w002-0000.csv.pending-00000001"]);
        assert_eq!(parts(dir.path()), handles);
        for _ in 0..2 {
            committer.commit(&handles).unwrap();
            assert_eq!(parts(dir.path()), ["part-e0000000002-w002-0000.csv"]);
        }
        let text = std::fs::read_to_string(dir.path().join("part-e0000000002-w002-0000.csv")).unwrap();
        assert_eq!(text, "name,n\n\"a, \"\"b\"\"\n\",0\n\"a, \"\"b\"\"\n\",1\n");
        assert!(writer.prepare(3).unwrap().is_empty());
    }

    #[test]
    fn when_a_run_dies_between_the_two_steps_then_the_next_one_goes_on_without_loss_or_doubles() {
        let dir = tempfile::tempdir().unwrap();
        let sink = FileSink::json_lines(dir.path());
        let mut committer = sink.committer("job").unwrap();
        committer.recover(None, &[], false).unwrap();
        let mut first = writer(&sink, "00000001");
        first.write(1, &mut records(0..2)).unwrap();
        let in_checkpoint = first.prepare(1).unwrap();
        first.write(2, &mut records(2..4)).unwrap();
        first.prepare(2).unwrap();
        first.write(3, &mut records(4..6)).unwrap();
        drop((first, committer));

        // Checkpoint 1 was published and its commit was not; nothing of epoch 2 or 3 counts.
        let mut committer = sink.committer("job").unwrap();
        committer.recover(Some(1), &in_checkpoint, false).unwrap();
        assert_eq!(parts(dir.path()), ["part-e0000000001-w002-0000.jsonl"]);
        let mut second = writer(&sink, "00000002");
        second.write(2, &mut records(2..6)).unwrap();
        let handles = second.prepare(2).unwrap();
        committer.commit(&handles).unwrap();
        let text: String = parts(dir.path())
            .iter()
            .map(|name| std::fs::read_to_string(dir.path().join(name)).unwrap())
            .collect();
        assert_eq!(text.lines().count(), 6);
    }

    #[test]
    fn parts_roll_and_never_span_epochs() {
        let dir = tempfile::tempdir().unwrap();
        let mut sink = FileSink::csv(dir.path()).roll_at_bytes(30);
        let mut by_size = writer(&sink, "00000001");
        by_size.write(1, &mut records(0..3)).unwrap();
        by_size.write(2, &mut records(3..4)).unwrap();
        let first = by_size.prepare(1).unwrap();
        let expected = [0, 1].map(|n| format!("part-e0000000001-w002-000{n}.csv.pending-00000001"));
        assert_eq!(first, expected);
        assert_eq!(by_size.prepare(2).unwrap(), ["part-e0000000002-w002-0000.csv.pending-00000001"]);
        for name in &first {
            assert!(std::fs::read_to_string(dir.path().join(name)).unwrap().starts_with("name,n\n"));
        }

        sink = FileSink::json_lines(dir.path()).roll_after(Duration::ZERO);
        let mut by_age = writer(&sink, "00000002");
        by_age.write(1, &mut records(0..2)).unwrap();
        by_age.write(1, &mut records(2..3)).unwrap();
        assert_eq!(by_age.prepare(1).unwrap().len(), 2);
    }

    #[test]
    fn every_format_reads_back() {
        #[derive(Clone, Debug, PartialEq, serde::Deserialize)]
        struct Back {
            name: String,
            n: u64,
        }
        fn read<F: crate::FileFormat<Item = Back>>(path: PathBuf) -> Vec<Back> {
            use millstream_runtime::source::{Batch, Source, SplitReader, Waker};
            let source = crate::FileSource::<F>::new([path]);
            let mut reader = source.open(&source.splits().unwrap()[0], None, Waker::new(|| {})).unwrap();
            let mut batch = Batch::default();
            reader.read(100, &mut batch).unwrap();
            batch.records
        }
        let dir = tempfile::tempdir().unwrap();
        let expected: Vec<_> = (0..5).map(|n| Back { name: "a, \"b\"\n".to_string(), n }).collect();
        let (csv, json) = (FileSink::csv(dir.path()), FileSink::json_lines(dir.path()));
        for (at, sink) in [csv.clone(), csv.gzip(), json.clone(), json.gzip()].iter().enumerate() {
            let mut committer = sink.committer("job").unwrap();
            committer.recover(Some(10), &[], false).unwrap();
            let mut writer = writer(sink, "00000001");
            writer.write(at as u64, &mut records(0..5)).unwrap();
            let handles = writer.prepare(at as u64).unwrap();
            committer.commit(&handles).unwrap();
            let path = dir.path().join(handles[0].split_once(".pending").unwrap().0);
            let back = if at < 2 { read::<crate::Csv<Back>>(path) } else { read::<crate::Json<Back>>(path) };
            assert_eq!(back, expected);
        }
    }

    #[test]
    fn what_is_read_back_has_the_digests_that_were_kept() {
        let dir = tempfile::tempdir().unwrap();
        let texts = ["", "a", "a,b", "\"", "two\nlines", "two\r\nlines", "\r", " x ", "é", "\u{feff}", "1\t2", "'"];
        #[derive(Clone, Debug, PartialEq, Serialize)]
        struct Text {
            text: String,
            more: Option<u8>,
        }
        let rows: Vec<Record<Text>> = (0..500i64)
            .map(|n| Record {
                at: EventTime::from_millis(n * 997 % 30_000),
                value: Text {
                    text: texts[n as usize % 12].repeat(n as usize % 3),
                    more: (n % 5 == 0).then_some(n as u8),
                },
            })
            .collect();
        let (csv, json) = (FileSink::<Text>::csv(dir.path()), FileSink::json_lines(dir.path()));
        let sinks = [csv.clone(), csv.clone().gzip(), json.clone(), json.gzip(), csv.roll_at_bytes(100)];
        for (at, sink) in sinks.iter().enumerate() {
            let dir = dir.path().join(at.to_string());
            std::fs::create_dir(&dir).unwrap();
            let sink = sink.redirected(&Redirect::Into { dir: dir.clone(), times: true }).unwrap();
            let mut writer = sink.writer(&SinkTask { worker: 0, execution: "00000001".to_string() }).unwrap();
            for (epoch, rows) in rows.chunks(120).enumerate() {
                writer.write(epoch as u64, &mut rows.to_vec()).unwrap();
            }
            let read = |prepared: &[String]| {
                let (mut digests, mut rows) = (Digests::default(), 0);
                let mut each = |row: millstream_runtime::sink::StoredRow<'_>| {
                    digests.add(row.at.unwrap(), row.bytes);
                    rows += 1;
                    Ok(())
                };
                sink.stored().unwrap().rows(1..=3, prepared, &mut each).unwrap();
                (digests.settled().to_entry(0), rows)
            };
            writer.prepare(0).unwrap();
            writer.digests().unwrap();
            let mut prepared = writer.prepare(2).unwrap();
            let mut kept = writer.digests().unwrap();
            prepared.extend(writer.prepare(3).unwrap());
            kept.plus(&writer.digests().unwrap());
            assert_eq!(read(&[]).1, 0, "nothing is committed yet");
            assert_eq!(read(&prepared), (kept.to_entry(0), 360), "{at}");
            let mut committer = sink.committer("job").unwrap();
            committer.commit(&prepared).unwrap();
            assert_eq!(read(&prepared), (kept.to_entry(0), 360), "{at}");
            // The same digests without any file.
            let nowhere = sink.redirected(&Redirect::Discard).unwrap();
            assert!(nowhere.committer("job").is_none() && nowhere.stored().is_none());
            let mut writer = nowhere.writer(&SinkTask { worker: 0, execution: "00000002".to_string() }).unwrap();
            writer.write(1, &mut rows[120..480].to_vec()).unwrap();
            assert!(writer.prepare(1).unwrap().is_empty());
            assert_eq!(writer.digests().unwrap().to_entry(0), kept.to_entry(0));
        }
    }

    #[test]
    fn rows_are_shown_by_the_names_of_their_fields() {
        let dir = tempfile::tempdir().unwrap();
        let fields =
            |sink: FileSink<Row>, head: &str, row: &str| sink.stored().unwrap().fields(head.as_bytes(), row.as_bytes());
        let pairs = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
        };
        let csv = || FileSink::csv(dir.path());
        assert_eq!(
            fields(csv(), "a,\"b,c\"", "1,\"x \"\"y\"\"\",3"),
            pairs(&[("a", "1"), ("b,c", "x \"y\""), ("field 3", "3")])
        );
        let json = || FileSink::json_lines(dir.path());
        assert_eq!(fields(json(), "", "{\"k\":\"x\",\"n\":[1,2]}"), pairs(&[("k", "\"x\""), ("n", "[1,2]")]));
        assert_eq!(fields(json(), "", "[1,2]"), pairs(&[("value", "[1,2]")]));
        assert_eq!(fields(json(), "", "{\"k"), pairs(&[("value", "{\"k")]));
    }

    #[test]
    fn when_a_value_does_not_fit_then_the_user_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let sink = FileSink::<(Vec<u64>, Vec<Row>)>::csv(dir.path());
        let mut writer = sink.writer(&SinkTask { worker: 0, execution: "00000001".to_string() }).unwrap();
        let nested = Record { at: EventTime::EPOCH, value: (vec![1], vec![Row { name: "x", n: 1 }]) };
        let error = writer.write(1, &mut vec![nested]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::User, "{error}");
    }

    #[test]
    fn when_csv_would_have_no_header_then_it_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let sink = FileSink::<(u64, u64)>::csv(dir.path());
        let task = SinkTask { worker: 0, execution: "00000001".to_string() };
        let mut writer = sink.writer(&task).unwrap();
        let error = writer.write(1, &mut vec![Record { at: EventTime::EPOCH, value: (1, 2) }]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::User);
        assert!(error.to_string().contains("header"), "{error}");
    }
}
