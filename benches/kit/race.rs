//! Contestants that run in turn and must give the same results.

use std::time::Instant;

use millstream::summary::thousands;
use serde_json::{Map, Value, json};

use super::Plan;
use super::event::Keys;
use super::report::{Report, Spread};

/// What one run came to.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Over all results; every contestant must come to the same. `None`: it cannot, because it computes something else.
    pub checksum: Option<u64>,
    /// What else there is to tell, by name.
    pub counts: Vec<(&'static str, u64)>,
}

impl From<u64> for Outcome {
    fn from(checksum: u64) -> Self {
        Outcome { checksum: Some(checksum), counts: Vec::new() }
    }
}

/// The name of a contestant in its race: what others name as their reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(usize);

struct Contestant<'a> {
    name: String,
    workers: usize,
    references: Vec<Place>,
    run: Box<dyn FnMut(usize) -> Outcome + 'a>,
    seconds: Vec<f64>,
    counts: Vec<Vec<(&'static str, u64)>>,
}

/// Several ways to do one thing.
pub struct Race<'a> {
    workload: &'static str,
    variant: &'static str,
    keys: Option<Keys>,
    events: u64,
    contestants: Vec<Contestant<'a>>,
}

const TITLE: &str =
    "Throughput: medians of runs in turn; the ratio is that of speeds, run by run, so above 1 is faster";
const HEADER: [&str; 11] = [
    "workload",
    "keys",
    "distribution",
    "contestant",
    "workers",
    "M events/s",
    "ns/event",
    "spread",
    "reference",
    "ratio",
    "also",
];

impl<'a> Race<'a> {
    /// `variant` tells races of one workload apart that have the same keys; it may be empty.
    pub fn new(workload: &'static str, variant: &'static str, keys: Option<Keys>, events: u64) -> Self {
        Race { workload, variant, keys, events, contestants: Vec::new() }
    }

    /// A contestant, and whom to compare it with. Its run is given the number of workers, and returns a checksum of its results or
    /// an [`Outcome`].
    pub fn add<R: Into<Outcome>>(
        &mut self,
        name: impl Into<String>,
        workers: usize,
        references: &[Place],
        mut run: impl FnMut(usize) -> R + 'a,
    ) -> Place {
        self.contestants.push(Contestant {
            name: name.into(),
            workers,
            references: references.to_vec(),
            run: Box::new(move |workers| run(workers).into()),
            seconds: Vec::new(),
            counts: Vec::new(),
        });
        Place(self.contestants.len() - 1)
    }

    /// Runs all in turn, as often as planned.
    ///
    /// # Panics
    /// When their results differ: a wrong fast run is no result.
    pub fn run(mut self, plan: Plan, report: &mut Report) {
        if plan.keys.is_some_and(|keys| self.keys.map(Keys::count) != Some(keys)) {
            return;
        }
        let mut expected = None;
        for run in 1..=plan.runs {
            eprintln!("{}: run {run} of {}", self.title(), plan.runs);
            for contestant in &mut self.contestants {
                let start = Instant::now();
                let outcome = (contestant.run)(contestant.workers);
                contestant.seconds.push(start.elapsed().as_secs_f64());
                contestant.counts.push(outcome.counts);
                let Contestant { name, workers, .. } = contestant;
                if let Some(checksum) = outcome.checksum {
                    let expected = *expected.get_or_insert(checksum);
                    assert_eq!(expected, checksum, "{name} with {workers} workers has other results");
                }
            }
        }
        for contestant in &self.contestants {
            if contestant.references.is_empty() {
                self.figure(contestant, None, report);
            }
            for reference in &contestant.references {
                self.figure(contestant, Some(&self.contestants[reference.0]), report);
            }
        }
    }

    fn title(&self) -> String {
        let mut title = format!("{} {}", self.workload, self.variant).trim_end().to_string();
        if let Some(keys) = self.keys {
            title.push_str(&format!(", {} keys, {}", thousands(keys.count()), keys.distribution()));
        }
        title
    }

    /// One line of the table and one object: a contestant beside one of its references.
    fn figure(&self, contestant: &Contestant<'_>, reference: Option<&Contestant<'_>>, report: &mut Report) {
        let time = Spread::of(contestant.seconds.iter().copied());
        let rate = |seconds: f64| self.events as f64 / seconds;
        let ratio = reference.map(|reference| {
            Spread::of(reference.seconds.iter().zip(&contestant.seconds).map(|(theirs, own)| theirs / own))
        });
        let counts = median_counts(&contestant.counts);
        report.row(
            TITLE,
            &HEADER,
            vec![
                format!("{} {}", self.workload, self.variant).trim_end().to_string(),
                self.keys.map_or(String::new(), |keys| thousands(keys.count())),
                self.keys.map_or("", Keys::distribution).to_string(),
                contestant.name.clone(),
                contestant.workers.to_string(),
                format!("{:.2}", rate(time.median) / 1e6),
                format!("{:.1}", time.median * 1e9 / self.events as f64),
                format!("{:.1}..{:.1}", rate(time.max) / 1e6, rate(time.min) / 1e6),
                reference.map_or(String::new(), |reference| format!("{}, {}", reference.name, reference.workers)),
                ratio.map_or(String::new(), |ratio| format!("{:.2}", ratio.median)),
                counts
                    .iter()
                    .map(|(name, count)| format!("{} {}", thousands(*count), name.replace('_', " ")))
                    .collect::<Vec<_>>()
                    .join(", "),
            ],
        );
        let mut figure = Map::new();
        let mut put = |name: &str, value: Value| figure.insert(name.to_string(), value);
        put("workload", json!(self.workload));
        if !self.variant.is_empty() {
            put("variant", json!(self.variant));
        }
        if let Some(keys) = self.keys {
            put("keys", json!(keys.count()));
            put("distribution", json!(keys.distribution()));
        }
        put("contestant", json!(contestant.name));
        put("workers", json!(contestant.workers));
        put("events", json!(self.events));
        put("events_per_s", json!(rate(time.median).round()));
        put("events_per_s_min", json!(rate(time.max).round()));
        put("events_per_s_max", json!(rate(time.min).round()));
        put("reference", json!(reference.map(|reference| &reference.name)));
        put("reference_workers", json!(reference.map(|reference| reference.workers)));
        put("ratio", json!(ratio.map(|ratio| ratio.median)));
        put("ratio_min", json!(ratio.map(|ratio| ratio.min)));
        put("ratio_max", json!(ratio.map(|ratio| ratio.max)));
        put("runs", json!(contestant.seconds.len()));
        for (name, count) in counts {
            put(name, json!(count));
        }
        report.json(&Value::Object(figure));
    }
}

/// The median of each count over the runs.
fn median_counts(runs: &[Vec<(&'static str, u64)>]) -> Vec<(&'static str, u64)> {
    let median = |at: usize| Spread::of(runs.iter().map(|counts| counts[at].1 as f64)).median as u64;
    runs[0].iter().enumerate().map(|(at, (name, _))| (*name, median(at))).collect()
}
