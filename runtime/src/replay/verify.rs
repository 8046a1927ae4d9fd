//! Compares what a sink wrote in a replay with what it wrote the first time.
//!
//! **What is compared**: digests by ranges of event time, of what the sink committed from checkpoint N to checkpoint M. Both sides
//! begin with the same state, and a checkpoint is a consistent cut: what it counts as written is what its state no longer has to
//! give. So the lower edge is exact, however timing had divided results between epochs.
//!
//! **The upper edge** is not, in checkpoints of older versions. A worker that has no record to wait for may see event time come to the end of a window before it
//! closes epoch M, and fire it, though the sources had not come so far when they were cut; the next run may fire it afterwards.
//! What is certain is the watermark W that the sources had at the cut (in the manifest, the least over the splits upstream of the
//! sink): every window that ends at or before W is fired before any worker closes M, in every run. Results of windows have the
//! window's last instant as their event time, so those that may be on either side have one at or after W. Therefore
//!
//! * ranges that end at or before W are compared,
//! * a range that ends later is compared only if its digests are equal (then it is), or if no window is upstream of the sink:
//!   what comes of a single record is in the epoch of that record, in every run;
//! * when all input was read before M, W is the end of time, and everything is compared.
//!
//! An operator of your own that fires results with event times before the watermark of the moment must not be compared.
//!
//! **The stored output** is compared with the digests as well: it may have been changed or taken away since.

use millstream_state::manifest::{DigestEntry, Manifest};

use super::ReplayedSink;
use super::report::{RangeCheck, SinkCheck, Standing, Stored};
use super::rows::{Side, compare, first_difference};
use crate::digest::{Digest, Digests, TimeRange};
use crate::error::Result;
use crate::graph::{Graph, Repeats};
use crate::time::EventTime;

/// The manifests at both ends of what is replayed, and the last one of the replay.
pub(super) struct Between<'a> {
    pub from: Option<&'a Manifest>,
    pub until: &'a Manifest,
    pub again: &'a Manifest,
}

impl Between<'_> {
    pub(super) fn check(&self, graph: &Graph, sink: &ReplayedSink) -> Result<SinkCheck> {
        let mut check = SinkCheck::new(&sink.name);
        let watermark = match graph.repeats(sink.node) {
            Repeats::Never(reason) => {
                check.excluded = Some(reason);
                return Ok(check);
            }
            Repeats::Always => EventTime::MAX,
            Repeats::ToWatermark => {
                let names = graph.names();
                let upstream: Vec<&str> =
                    graph.sources_of(sink.node).into_iter().map(|node| names[node].as_str()).collect();
                watermark(self.until, &upstream)
            }
        };
        if sink.silent {
            check.not_comparable = Some("its output was dropped".into());
            return Ok(check);
        }
        let (original, again) = match (self.written(self.until, &sink.name)?, self.written(self.again, &sink.name)?) {
            (Ok(original), Ok(again)) => (original, again),
            (Err(reason), _) | (_, Err(reason)) => {
                check.not_comparable = Some(reason);
                return Ok(check);
            }
        };
        let all = original.side_by_side(&again);
        check.ranges = ranges(&all, watermark);
        self.compare_rows(sink, &original.total(), &all, watermark, &mut check)?;
        Ok(check)
    }

    /// What a sink had written at `later`, less what it had at the begin; or why that is not known.
    fn written(&self, later: &Manifest, sink: &str) -> Result<Result<Digests, String>> {
        let of = |manifest: &Manifest| -> Option<DigestEntry> {
            manifest.sinks.iter().find(|entry| entry.name == sink)?.digests.clone()
        };
        Ok(match of(later) {
            None => Err(format!("checkpoint {} has no digests of it", later.epoch)),
            Some(entry) => match baseline(&entry, self.from.map(|from| (from.epoch, of(from)))) {
                Err(reason) => Err(reason),
                Ok(before) => {
                    let mut written = Digests::from_entry(&entry)?;
                    if let Some(before) = before {
                        written.minus(&Digests::from_entry(&before)?);
                    }
                    Ok(written)
                }
            },
        })
    }

    fn compare_rows(
        &self,
        sink: &ReplayedSink,
        total: &Digest,
        all: &[(TimeRange, Digest, Digest)],
        watermark: EventTime,
        check: &mut SinkCheck,
    ) -> Result<()> {
        let Some(original) = &sink.original else { return Ok(()) };
        let from = self.from.map_or(0, |from| from.epoch);
        let handles = |manifest: &Manifest| {
            let entry = manifest.sinks.iter().find(|entry| entry.name == sink.name);
            entry.map(|entry| entry.handles.clone()).unwrap_or_default()
        };
        let (theirs_prepared, ours_prepared) = (handles(self.until), handles(self.again));
        let theirs = Side { stored: &**original, epochs: from + 1..=self.until.epoch, prepared: &theirs_prepared };
        let (rows, hashes) = theirs.total()?;
        let as_written = (rows, hashes) == (total.rows, total.bytes);
        let differs = check.ranges.iter().any(|range| range.standing == Standing::Differs);
        check.stored =
            Some(if as_written { Stored::AsWritten } else { Stored::Missing(total.rows.saturating_sub(rows)) });
        if as_written && !differs {
            return Ok(());
        }
        let Some(again) = &sink.again else {
            // Fewer may have been taken away; as many or more cannot.
            if !as_written && rows >= total.rows {
                check.stored = Some(Stored::Changed);
            }
            return Ok(());
        };
        let ours = Side { stored: &**again, epochs: from + 1..=self.again.epoch, prepared: &ours_prepared };
        let (only_theirs, only_ours) = compare(&theirs, &ours, total.rows.max(rows))?;
        let open = |(range, ..): &&(TimeRange, Digest, Digest)| !is_closed(*range, watermark);
        if !as_written {
            // So many results of windows may have been out early, which the replay has not.
            let early: u64 = all.iter().filter(open).map(|(_, a, b)| a.rows.saturating_sub(b.rows)).sum();
            if rows >= total.rows || (!differs && only_theirs.count > early) {
                check.stored = Some(Stored::Changed);
            }
        }
        let differing: Vec<_> =
            all.iter().copied().filter(|(range, a, b)| a != b && is_closed(*range, watermark)).collect();
        if differs || check.stored == Some(Stored::Changed) {
            // Where event times are not known, rows are in the order of epochs: what may have been out early is the last.
            check.first = first_difference(&only_theirs, &only_ours, &differing);
        }
        Ok(())
    }
}

/// What must be taken out of `later` so that it counts from the checkpoint `from` on, or from the beginning; or why it cannot.
fn baseline(later: &DigestEntry, from: Option<(u64, Option<DigestEntry>)>) -> Result<Option<DigestEntry>, String> {
    match from {
        None if later.since == 0 => Ok(None),
        Some((epoch, _)) if later.since == epoch => Ok(None),
        Some((_, Some(before))) if before.since == later.since => Ok(Some(before)),
        _ => Err(format!("its digests count from checkpoint {} on, where a version began to keep them", later.since)),
    }
}

/// The least watermark that the splits of these sources had.
fn watermark(manifest: &Manifest, sources: &[&str]) -> EventTime {
    let of = manifest.sources.iter().filter(|source| sources.contains(&source.name.as_str()));
    let active = of.flat_map(|source| &source.splits).filter(|split| !split.ended);
    active.map(|split| EventTime::from_micros(split.watermark_us)).min().unwrap_or(EventTime::MAX)
}

/// Whether everything in the range is certain at this watermark.
fn is_closed(range: TimeRange, watermark: EventTime) -> bool {
    watermark == EventTime::MAX || range.to() <= watermark
}

fn ranges(all: &[(TimeRange, Digest, Digest)], watermark: EventTime) -> Vec<RangeCheck> {
    let check = |(range, original, again): &(TimeRange, Digest, Digest)| RangeCheck {
        from: range.from(),
        to: range.to(),
        original: original.rows,
        replay: again.rows,
        standing: match original == again {
            true => Standing::Equal,
            false if is_closed(*range, watermark) => Standing::Differs,
            false => Standing::Open,
        },
    };
    let some = |(_, original, again): &&(TimeRange, Digest, Digest)| {
        *original != Digest::default() || *again != Digest::default()
    };
    all.iter().filter(some).map(check).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(since: u64) -> DigestEntry {
        Digests::default().to_entry(since)
    }

    #[test]
    fn digests_are_compared_only_if_they_count_from_the_same_epoch() {
        assert_eq!(baseline(&entry(0), None), Ok(None));
        assert_eq!(baseline(&entry(0), Some((5, Some(entry(0))))), Ok(Some(entry(0))));
        assert_eq!(baseline(&entry(5), Some((5, None))), Ok(None));
        for (later, from) in [(5, None), (5, Some((4, None))), (5, Some((4, Some(entry(0))))), (0, Some((5, None)))] {
            let error = baseline(&entry(later), from).expect_err("it is not known");
            assert!(error.contains(&format!("from checkpoint {later}")), "{error}");
        }
    }

    #[test]
    fn ranges_beyond_the_watermark_are_open_unless_they_are_equal() {
        let digests = |rows: &[(i64, &str)]| {
            let mut digests = Digests::default();
            rows.iter().for_each(|(second, text)| digests.add(EventTime::from_secs(*second), text.as_bytes()));
            digests.settled()
        };
        let original = digests(&[(0, "a"), (1, "b"), (2, "c"), (3, "d")]);
        let all = original.side_by_side(&digests(&[(0, "a"), (1, "x"), (2, "y"), (3, "d")]));
        let standing = |seconds| -> Vec<Standing> {
            let watermark = EventTime::from_secs(seconds);
            ranges(&all, watermark).iter().map(|range| range.standing).collect()
        };
        use Standing::{Differs, Equal, Open};
        assert_eq!(standing(1), [Equal, Open, Open, Equal]);
        assert_eq!(standing(2), [Equal, Differs, Open, Equal]);
        assert_eq!(standing(9), [Equal, Differs, Differs, Equal]);
    }
}
