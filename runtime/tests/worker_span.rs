//! A worker's thread that dies before it does anything. Its own program, because it installs a collector of spans for all of it.
//!
//! The span of a worker was once made outside of what catches panics: when the program's collector panicked there, the other
//! workers and whoever waited for the job did so for ever.

use std::time::{Duration, Instant};

use millstream_runtime::error::Result;
use millstream_runtime::job::Job;
use millstream_runtime::record::Record;
use millstream_runtime::sink::{Committer, Sink, SinkTask, SinkWriter};
use millstream_runtime::source::{Output, Read, Source, SplitReader, Waker};
use millstream_runtime::time::EventTime;
use millstream_runtime::watermark::Watermarks;

/// Panics for the second worker.
struct Broken;

impl tracing::Subscriber for Broken {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, span: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        let second = std::thread::current().name().is_some_and(|name| name.ends_with("-1"));
        let broken = span.metadata().name() == "worker" && second;
        assert!(!broken, "no room for spans");
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

/// Never has anything.
struct Silence;

impl Source for Silence {
    type Item = u64;
    type Position = ();
    type Reader = Silence;

    fn kind(&self) -> &'static str {
        "silence"
    }
    fn splits(&self) -> Result<Vec<String>> {
        Ok(vec!["silence".into()])
    }
    fn open(&self, _: &str, _: Option<()>, _: Waker) -> Result<Silence> {
        Ok(Silence)
    }
}

impl SplitReader for Silence {
    type Item = u64;
    type Position = ();

    fn read(&mut self, _: usize, _: &mut impl Output<u64>) -> Result<Read> {
        Ok(Read::Empty)
    }
    fn position(&self) {}
}

#[derive(Clone)]
struct Nowhere;

impl Sink<u64> for Nowhere {
    type Writer = Nowhere;

    fn kind(&self) -> &'static str {
        "nowhere"
    }
    fn writer(&self, _: &SinkTask) -> Result<Nowhere> {
        Ok(Nowhere)
    }
    fn committer(&self, _: &str) -> Option<Box<dyn Committer>> {
        None
    }
}

impl SinkWriter<u64> for Nowhere {
    fn write(&mut self, _: u64, records: &mut Vec<Record<u64>>) -> Result<()> {
        records.clear();
        Ok(())
    }
    fn prepare(&mut self, _: u64) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
}

#[test]
fn a_worker_that_dies_at_once_fails_the_job() {
    tracing::subscriber::set_global_default(Broken).expect("the first one");
    let job = Job::new("broken").workers(3);
    job.source(Silence, Watermarks::monotonous(|n: &u64| EventTime::from_secs(*n as i64))).sink(Nowhere);
    let handle = job.start().expect("starts");
    let started = Instant::now();
    while !handle.is_finished() {
        assert!(started.elapsed() < Duration::from_secs(10), "it hangs");
        #[allow(clippy::disallowed_methods)] // a test that waits for a job
        std::thread::sleep(Duration::from_millis(1));
    }
    let error = handle.wait().expect_err("it failed").to_string();
    assert!(error.contains("panicked: no room for spans"), "{error}");
}
