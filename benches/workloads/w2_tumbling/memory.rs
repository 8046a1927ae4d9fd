//! W2, how much memory: the greatest resident size of a run less that before it, per key of a full window.
//!
//! Five events per key and window, so that nearly every key is there; the run ends 0.2 s into the second window. What that
//! window holds while the first is fired is counted too, but not its keys.

use serde_json::json;

use super::looped::Take;
use super::{job, looped, on_timely};
use crate::kit::event::{Keys, Stream};
use crate::kit::report::Report;
use crate::kit::{Plan, memory};
use millstream::summary::thousands;

const TITLE: &str = "Memory: bytes per key and window";
const HEADER: [&str; 7] = ["workload", "keys", "contestant", "workers", "bytes", "reference", "ratio"];

pub fn run(plan: Plan, report: &mut Report) {
    for keys in [1_000_000, 10_000_000] {
        let skip = keys > 1_000_000 && (plan.quick || !plan.full);
        if skip || plan.keys.is_some_and(|wanted| wanted != keys) {
            continue;
        }
        let keys = plan.scaled(keys);
        for workers in [1, 2] {
            let mut reference = None;
            for contestant in ["loop", "timely", "millstream"] {
                let arguments = ["--memory-of", contestant, &workers.to_string(), &keys.to_string()];
                let Some(bytes) = memory::of_child(&arguments.map(str::to_string)) else { return };
                let per_key = bytes as f64 / keys as f64;
                let ratio = reference.map(|reference: f64| per_key / reference);
                let name = reference.map(|_| "loop");
                reference.get_or_insert(per_key);
                report.row(
                    TITLE,
                    &HEADER,
                    vec![
                        "w2".to_string(),
                        thousands(keys),
                        contestant.to_string(),
                        workers.to_string(),
                        format!("{per_key:.0}"),
                        name.map_or(String::new(), |name| format!("{name}, {workers}")),
                        ratio.map_or(String::new(), |ratio| format!("{ratio:.2}")),
                    ],
                );
                report.json(&json!({
                    "workload": "w2", "variant": "memory", "keys": keys, "distribution": "uniform",
                    "contestant": contestant, "workers": workers, "bytes_per_key_and_window": per_key,
                    "reference": name, "reference_workers": name.map(|_| workers), "ratio": ratio, "runs": 1,
                }));
            }
        }
    }
}

/// In the child: one run of the contestant that the arguments name.
///
/// # Panics
/// When they name none.
pub fn child(arguments: &[String]) {
    let [contestant, workers, keys] = arguments else { panic!("a contestant, workers, keys") };
    let (workers, keys) = (workers.parse().expect("workers"), keys.parse::<u64>().expect("keys"));
    let stream = Stream::new(Keys::Uniform(keys), keys * 5 / 1000);
    let events = keys * 6;
    let run = || match contestant.as_str() {
        "loop" => looped::run(&stream, events, workers, Take::Batches),
        "timely" => on_timely::run(&stream, events, workers),
        "millstream" => job(&stream, events, workers, None).checksum.unwrap_or_default(),
        other => panic!("no contestant is called {other}"),
    };
    if let Some(bytes) = memory::growth(run) {
        println!("{bytes}");
    }
}
