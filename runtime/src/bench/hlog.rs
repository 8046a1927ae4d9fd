//! Latencies as an HdrHistogram log, for the tools that read one: plotters, mergers, comparers.
//!
//! One interval for each second and each kind of latency, marked by the kind's name as its tag, so a tool can tell them
//! apart. Written by the library that the histograms come from, compressed, as the Java tools want it.
//!
//! **Units**: nanoseconds in the histograms; seconds from the start for the intervals; the greatest value of an interval, which
//! is there for people, in milliseconds. **Source**: the interval log, version 1.3, of HdrHistogram.

use std::time::{Duration, UNIX_EPOCH};

use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};

use super::measurement::Measurement;
use crate::error::{Error, Result};

/// What Java's reader looks for in front of the intervals.
const LEGEND: &[u8] = b"\"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\"Interval_Compressed_Histogram\"\n";

/// The greatest value of an interval is written in milliseconds.
const NS_PER_MS: f64 = 1e6;

/// The log of all latencies of a measurement.
///
/// # Errors
/// None that a user can cause; a count that cannot be written is a fault of ours.
pub fn hlog(measurement: &Measurement) -> Result<Vec<u8>> {
    let mut serializer = V2DeflateSerializer::new();
    let mut log = Vec::new();
    let started = UNIX_EPOCH + Duration::from_millis(measurement.started_unix_ms);
    IntervalLogWriterBuilder::new()
        .add_comment("[Histogram log format version 1.3]")
        .add_comment(&format!("[job {} under {}; values in ns]", measurement.job, measurement.load))
        .with_start_time(started)
        .with_base_time(started)
        .begin_log_with(&mut log, &mut serializer)
        .map_err(failed)?;
    log.extend_from_slice(LEGEND);
    let mut intervals: Vec<_> =
        measurement.latencies.iter().flat_map(|(kind, all)| all.seconds().map(|of| (of, *kind))).collect();
    // By time, as tools expect it.
    intervals.sort_by_key(|((second, _), kind)| (*second, *kind));
    let mut writer = IntervalLogWriterBuilder::new();
    let mut writer =
        writer.with_max_value_divisor(NS_PER_MS).begin_log_with(&mut log, &mut serializer).map_err(failed)?;
    for ((second, distribution), kind) in intervals {
        let (from, length) = (Duration::from_secs(second), Duration::from_secs(1));
        let tag = Tag::new(kind.name());
        writer.write_histogram(distribution.histogram(), from, length, tag).map_err(failed)?;
    }
    Ok(log)
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::internal("cannot write a log of histograms").because(error)
}

#[cfg(test)]
mod tests {
    use hdrhistogram::Histogram;
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    use super::super::example;
    use super::super::measurement::LatencyKind;
    use super::*;

    /// Each interval: its tag, its second, its histogram.
    fn read(log: &[u8]) -> Vec<(String, u64, Histogram<u64>)> {
        let mut intervals = Vec::new();
        for entry in IntervalLogIterator::new(log) {
            if let LogEntry::Interval(interval) = entry.unwrap() {
                let packed = base64(interval.encoded_histogram());
                let histogram = Deserializer::new().deserialize(&mut &*packed).unwrap();
                let tag = interval.tag().unwrap().as_str().to_string();
                intervals.push((tag, interval.start_timestamp().as_secs(), histogram));
            }
        }
        intervals
    }

    fn base64(text: &str) -> Vec<u8> {
        let digit = |c: u8| match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            _ => 63,
        };
        let digits: Vec<u32> = text.bytes().filter(|c| *c != b'=').map(|c| u32::from(digit(c))).collect();
        let group = |four: &[u32]| {
            let bits = four.iter().fold(0, |bits, digit| bits << 6 | digit) << (6 * (4 - four.len()));
            (0..four.len() - 1).map(move |byte| (bits >> (16 - 8 * byte)) as u8).collect::<Vec<_>>()
        };
        digits.chunks(4).flat_map(group).collect()
    }

    #[test]
    fn tools_read_back_what_was_recorded() {
        let measurement = example::measurement(12);
        let log = hlog(&measurement).unwrap();
        let intervals = read(&log);
        assert_eq!(intervals.len(), 24);
        for (kind, latencies) in &measurement.latencies {
            let mine = intervals.iter().filter(|(tag, ..)| tag == kind.name());
            for ((_, second, histogram), (at, expected)) in mine.zip(latencies.seconds()) {
                assert_eq!((*second, histogram), (at, expected.histogram()));
            }
        }
        assert!(intervals.iter().any(|(tag, ..)| tag == LatencyKind::WindowResult.name()));
    }

    #[test]
    fn it_begins_as_the_format_says() {
        let mut measurement = example::measurement(1);
        measurement.job = "two\nlines".to_string();
        let log = String::from_utf8(hlog(&measurement).unwrap()).unwrap();
        let mut lines = log.lines();
        assert_eq!(lines.next(), Some("#[Histogram log format version 1.3]"));
        let header: Vec<_> = lines.by_ref().take_while(|line| !line.starts_with('"')).collect();
        assert!(header.iter().all(|line| line.starts_with('#')), "{header:?}");
        assert!(header.contains(&"#[StartTime: 1795000000.000 (seconds since epoch)]"), "{header:?}");
    }
}
