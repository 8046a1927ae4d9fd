//! What do visitors of a shop do? Visits from a stream of clicks, and what each campaign sold per hour.
//!
//! Clicks come out of order: a phone keeps them while it has no network, and a tracker that got no answer sends its click once
//! more. So a click counts once, whatever its way, and a visit ends when its user has not clicked for half an hour of event
//! time. Writes JSON Lines:
//!
//! * `OUTPUT/visits`: where each visit began and ended, how long it took, and whether something was bought;
//! * `OUTPUT/campaigns`: visits and purchases per campaign, for every hour in which visits ended;
//! * `OUTPUT/late`: clicks that came too late to be counted, as they were read.
//!
//! Without `--input` it reads a day of clicks that are made up, always the same. Kill it and start it again: it goes on where
//! it was.
//!
//! ```text
//! cargo run --release --example click_sessions -- --output clicks
//! cargo run --release --example click_sessions -- --output slow --rate 5000   # Ctrl-C, and the same again
//! cargo run --release --example click_sessions -- --output slow state scan --operator sessions   # who is visiting
//! cargo run --release --example click_sessions -- --output mine --input monday.jsonl tuesday.jsonl.gz
//! ```

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use millstream::prelude::*;
use serde::{Deserialize, Serialize};

/// Visits and conversions from a stream of clicks.
#[derive(Parser)]
struct Options {
    /// Files of clicks (.jsonl, .jsonl.gz or .jsonl.zst), each a split of its own [default: made-up clicks]
    #[arg(long, value_name = "FILE", num_args = 1.., global = true)]
    input: Vec<PathBuf>,
    /// How many users the made-up clicks are of; must not change between two starts
    #[arg(long, value_name = "N", default_value_t = 2_000, global = true)]
    users: u64,
    /// Where `visits`, `campaigns` and `late` go
    #[arg(long, value_name = "DIR", default_value = "click_sessions.out", global = true)]
    output: PathBuf,
    /// A visit ends when its user has not clicked for this long
    #[arg(long, value_name = "SPAN", default_value = "30m", global = true)]
    gap: EventSpan,
    /// How far the watermark stays behind the highest event time seen
    #[arg(long, value_name = "SPAN", default_value = "2m", global = true)]
    out_of_orderness: EventSpan,
    /// Clicks per second at most; 0: as fast as it goes
    #[arg(long, value_name = "CLICKS_PER_SECOND", default_value_t = 0.0, global = true)]
    rate: f64,
    #[command(flatten)]
    job: JobArgs,
}

/// A click, as the tracker sends it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Click {
    /// The same when it is sent once more.
    id: u64,
    #[serde(with = "iso8601")]
    at: EventTime,
    user: String,
    page: String,
    /// Whose link was followed; only clicks that came from another site have one.
    campaign: Option<String>,
}

/// What a user did without a longer break.
#[derive(Clone, Debug, Serialize)]
struct Visit {
    user: String,
    #[serde(with = "iso8601")]
    began: EventTime,
    seconds: i64,
    clicks: u64,
    entry: String,
    exit: String,
    campaign: String,
    converted: bool,
}

/// What came of a campaign in an hour.
#[derive(Clone, Debug, Serialize)]
struct CampaignHour {
    campaign: String,
    #[serde(with = "iso8601")]
    hour: EventTime,
    visits: u64,
    conversions: u64,
}

/// The page that only a buyer sees.
const THANKS: &str = "/thanks";

/// For how long a click is remembered. It carries its own time, so when it is sent once more it happened at the same instant.
const RETRIES: EventSpan = EventSpan::mins(1);

fn main() -> ExitCode {
    let options = Options::parse();
    if options.gap == EventSpan::ZERO {
        eprintln!("error: --gap must be more than nothing");
        return ExitCode::FAILURE;
    }
    let job = click_sessions(&options);
    options.job.main(job)
}

fn click_sessions(options: &Options) -> Job {
    let job = Job::new("click-sessions")
        .checkpoint_dir(options.output.join("checkpoints"))
        .checkpoint_every(Duration::from_millis(200));
    let watermarks = Watermarks::bounded_out_of_orderness(options.out_of_orderness, |click: &Click| click.at);
    let clicks = if options.input.is_empty() {
        job.source(from_vec(made_up(options.users)).splits(2).rate(options.rate), watermarks)
    } else {
        job.source(JsonLines::new(&options.input).rate(options.rate), watermarks)
    };

    let (clicks, late) = clicks.name("clicks").key_by(|click| click.id).deduplicate_with_late(RETRIES);
    late.sink(FileSink::json_lines(options.output.join("late"))).name("late");

    let visits = clicks
        .name("once")
        .key_by(|click| click.user.clone())
        .window(Session::with_gap(options.gap))
        .aggregate((
            Count,
            First::of(Click::clone),
            Last::of(Click::clone),
            Max::of(|click: &Click| click.page == THANKS), // whether any click did
        ))
        .name("sessions")
        .map(|(user, _, (clicks, first, last, converted))| Visit {
            user,
            began: first.at,
            seconds: last.at.since(first.at).as_secs(),
            clicks,
            entry: first.page,
            exit: last.page,
            campaign: first.campaign.unwrap_or_else(|| "none".to_string()),
            converted,
        });
    visits.clone().sink(FileSink::json_lines(options.output.join("visits"))).name("visits");

    // A visit happened when its session was over: that is the hour in which it counts, so none of them can be late.
    visits
        .key_by(|visit| visit.campaign.clone())
        .window(Tumbling::of(EventSpan::hours(1)))
        .aggregate((Count, Sum::of(|visit: &Visit| u64::from(visit.converted))))
        .name("conversions")
        .map(|(campaign, window, (visits, conversions))| CampaignHour {
            campaign,
            hour: window.start,
            visits,
            conversions,
        })
        .sink(FileSink::json_lines(options.output.join("campaigns")))
        .name("campaigns");
    job
}

/// A day of clicks in the order in which they come in, the same every time.
fn made_up(users: u64) -> Vec<Click> {
    let mut random = Random(20_240_501);
    let midnight = 1_714_521_600_000; // 2024-05-01, in milliseconds
    let mut arrivals = Vec::new();
    for user in 0..users {
        let mobile = random.below(3) == 0;
        for _ in 0..=random.below(3) {
            let mut at = midnight + random.below(86_400_000) as i64;
            let mut campaign = [None, Some("newsletter"), Some("search"), Some("video")][random.below(4) as usize];
            let mut page = ["/", "/sale", "/product/1"][random.below(3) as usize].to_string();
            loop {
                let click = Click {
                    id: arrivals.len() as u64,
                    at: EventTime::from_millis(at),
                    user: format!("u{user:04}"),
                    page: page.clone(),
                    campaign: campaign.take().map(str::to_string),
                };
                // Seconds on a phone; minutes while it is in a tunnel.
                let delay_ms = match (mobile, random.below(20)) {
                    (false, _) => random.below(500),
                    (true, 0) => random.below(1_200_000),
                    (true, _) => random.below(30_000),
                };
                let arrival = at + delay_ms as i64;
                if random.below(50) == 0 {
                    // No answer in time: the tracker sends it once more.
                    arrivals.push((arrival + 1_000 + random.below(30_000) as i64, click.clone()));
                }
                arrivals.push((arrival, click));

                page = match (page.as_str(), random.below(10)) {
                    (THANKS, _) | (_, 0) => break,
                    ("/cart", 1..=4) => THANKS.to_string(),
                    (product, 1) if product.starts_with("/product") => "/cart".to_string(),
                    (_, 1..=7) => format!("/product/{}", random.below(100)),
                    _ => "/".to_string(),
                };
                // Most think for a minute at most; some go and make tea.
                let thinking_s = if random.below(20) == 0 { 600 + random.below(1_500) } else { 2 + random.below(60) };
                at += thinking_s as i64 * 1_000;
            }
        }
    }
    arrivals.sort_by_key(|(arrival, click)| (*arrival, click.id));
    arrivals.into_iter().map(|(_, click)| click).collect()
}

/// Numbers that look random and are the same every time (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::fs;
    use std::path::Path;

    use super::*;

    const USERS: u64 = 200;

    /// All three outputs, as sorted lines.
    #[derive(Debug, PartialEq)]
    struct Outputs {
        visits: Vec<String>,
        campaigns: Vec<String>,
        late: Vec<String>,
    }

    /// What the job should give, by plain loops over everything that there is.
    fn expected(splits: &[Vec<Click>], options: &Options) -> Outputs {
        let (mut in_time, mut late) = (Vec::new(), Vec::new());
        for split in splits {
            let mut highest = EventTime::MIN;
            for click in split {
                let is_late = click.at < highest - options.out_of_orderness;
                if is_late { &mut late } else { &mut in_time }.push(click.clone());
                highest = highest.max(click.at);
            }
        }
        in_time.sort_by_key(|click| click.at);
        let mut once = Vec::<Click>::new();
        for click in &in_time {
            if !once.iter().any(|other| other.id == click.id && click.at < other.at + RETRIES) {
                once.push(click.clone());
            }
        }
        assert!(!late.is_empty() && once.len() < in_time.len(), "some are late, and some come twice");

        let (mut visits, mut hours) = (Vec::new(), BTreeMap::<(String, i64), (u64, u64)>::new());
        for user in once.iter().map(|click| &click.user).collect::<BTreeSet<_>>() {
            let clicks: Vec<&Click> = once.iter().filter(|click| click.user == *user).collect();
            for visit in clicks.chunk_by(|one, next| next.at < one.at + options.gap) {
                let (first, last) = (visit[0], visit[visit.len() - 1]);
                let converted = visit.iter().any(|click| click.page == THANKS);
                let campaign = first.campaign.clone().unwrap_or_else(|| "none".to_string());
                let hour = (last.at + options.gap - EventSpan::micros(1)).micros().div_euclid(3_600_000_000);
                let counts = hours.entry((campaign.clone(), hour)).or_default();
                *counts = (counts.0 + 1, counts.1 + u64::from(converted));
                visits.push(Visit {
                    user: user.clone(),
                    began: first.at,
                    seconds: (last.at.micros() - first.at.micros()) / 1_000_000,
                    clicks: visit.len() as u64,
                    entry: first.page.clone(),
                    exit: last.page.clone(),
                    campaign,
                    converted,
                });
            }
        }
        let campaigns = hours.into_iter().map(|((campaign, hour), (visits, conversions))| CampaignHour {
            campaign,
            hour: EventTime::from_secs(hour * 3_600),
            visits,
            conversions,
        });
        Outputs { visits: lines(visits), campaigns: lines(campaigns), late: lines(late) }
    }

    fn lines(values: impl IntoIterator<Item = impl Serialize>) -> Vec<String> {
        let mut lines: Vec<String> =
            values.into_iter().map(|value| serde_json::to_string(&value).expect("is JSON")).collect();
        lines.sort();
        lines
    }

    fn written(output: &Path) -> Outputs {
        let lines = |name: &str| {
            let parts = fs::read_dir(output.join(name)).expect("the directory of a sink");
            let parts = parts.map(|part| part.expect("a part").path());
            let committed = parts.filter(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
            let text: String = committed.map(|path| fs::read_to_string(path).expect("reads")).collect();
            let mut lines: Vec<String> = text.lines().map(str::to_string).collect();
            lines.sort();
            lines
        };
        Outputs { visits: lines("visits"), campaigns: lines("campaigns"), late: lines("late") }
    }

    fn options(output: &Path, more: &[&str]) -> Options {
        let users = USERS.to_string();
        let output = output.to_str().expect("a path in UTF-8");
        let given = ["click_sessions", "--users", &users, "--output", output];
        Options::parse_from(given.iter().chain(more))
    }

    /// The clicks as the two splits have them.
    fn splits() -> Vec<Vec<Click>> {
        let clicks = made_up(USERS);
        (0..2).map(|split| clicks.iter().skip(split).step_by(2).cloned().collect()).collect()
    }

    #[test]
    fn results_are_those_of_plain_loops_with_any_number_of_workers() {
        for workers in [1, 3] {
            let dir = tempfile::tempdir().expect("a directory");
            let options = options(dir.path(), &[]);
            let summary = click_sessions(&options).workers(workers).run().expect("finishes");
            let expected = expected(&splits(), &options);
            assert_eq!(summary.late, expected.late.len() as u64);
            assert_eq!(written(dir.path()), expected, "{workers} workers");
            assert!(expected.visits.iter().any(|visit| visit.contains(r#""converted":true"#)));
        }
    }

    #[test]
    fn files_give_the_same_as_the_clicks_that_are_in_them() {
        let dir = tempfile::tempdir().expect("a directory");
        let files = ["a", "b"].map(|name| dir.path().join(name).with_extension("jsonl"));
        for (file, split) in files.iter().zip(splits()) {
            let lines = split.iter().map(|click| serde_json::to_string(click).expect("is JSON") + "\n");
            fs::write(file, lines.collect::<String>()).expect("writes");
        }
        let [a, b] = files.each_ref().map(|file| file.to_str().expect("a path in UTF-8"));
        let options = options(dir.path(), &["--input", a, b, "--gap", "10m", "--out-of-orderness", "20s"]);
        click_sessions(&options).workers(2).run().expect("finishes");
        assert_eq!(written(dir.path()), expected(&splits(), &options));
    }

    #[test]
    fn a_stop_and_another_number_of_workers_change_nothing() {
        for (before, after) in [(3, 1), (1, 3)] {
            let dir = tempfile::tempdir().expect("a directory");
            let slow = options(dir.path(), &["--rate", "1500"]);
            let handle = click_sessions(&slow).workers(before).start().expect("starts");
            while handle.status().records_in < 1_000 {
                assert!(!handle.is_finished(), "{:?}", handle.status());
                std::thread::park_timeout(Duration::from_millis(1));
            }
            handle.stop(StopMode::WithCheckpoint);
            assert_eq!(handle.wait().expect("stops").outcome, Outcome::Stopped);
            let (half, options) = (written(dir.path()), options(dir.path(), &[]));
            let expected = expected(&splits(), &options);
            assert!(!half.visits.is_empty() && half.visits.len() < expected.visits.len());

            let summary = click_sessions(&options).workers(after).run().expect("finishes");
            assert!(summary.restored.is_some() && summary.outcome == Outcome::Finished);
            assert_eq!(written(dir.path()), expected, "{before} workers, then {after}");
        }
    }
}
