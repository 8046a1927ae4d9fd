//! Which machine needs somebody? Alerts from a stream of sensor readings, by pattern and by timer.
//!
//! Every machine is watched on its own, in order of event time:
//!
//! * `too-hot`: three readings in a row were over the limit of temperature;
//! * `escalated`: vibration was over its limit as well, within a minute of that;
//! * `silent`: nothing was heard for five minutes;
//! * `all-clear`: after any of these, the first reading that is within both limits;
//! * `wearing-out`: vibration was over its limit twice within ten minutes, and it was warmer the second time.
//!
//! The first four are what a process function with timers says; none is repeated while it lasts. The last is a pattern. Event time goes on with the readings of all machines, so it takes one that is heard to
//! find one that is silent; when the input ends, all of them fall silent.
//!
//! Alerts go to `OUTPUT/alerts/*.csv`, exactly once. For people, a line per machine and day is printed; after a crash some
//! lines come again. Readings that come too late are left out, and counted in the job's summary.
//!
//! Without `--input` it reads readings that are made up, always the same.
//!
//! ```text
//! cargo run --release --example machine_alerts -- --output alerts
//! cargo run --release --example machine_alerts -- --output slow --rate 10000        # kill -9, and the same again
//! cargo run --release --example machine_alerts -- --output slow state get press-3   # what is known of a machine
//! ```

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use millstream::prelude::*;
use serde::{Deserialize, Serialize};

/// Alerts from the readings of machines.
#[derive(Parser)]
struct Options {
    /// Files of readings (.csv, .csv.gz or .csv.zst), each a split of its own [default: made-up readings]
    #[arg(long, value_name = "FILE", num_args = 1.., global = true)]
    input: Vec<PathBuf>,
    /// How many hours of readings are made up; must not change between two starts
    #[arg(long, value_name = "N", default_value_t = 36, global = true)]
    hours: u32,
    /// Where `alerts/*.csv` go
    #[arg(long, value_name = "DIR", default_value = "machine_alerts.out", global = true)]
    output: PathBuf,
    /// The highest temperature that is normal, in degrees Celsius
    #[arg(long, value_name = "DEGREES", default_value_t = 90.0, global = true)]
    max_temperature: f64,
    /// The strongest vibration that is normal, in millimetres per second
    #[arg(long, value_name = "MM_PER_SECOND", default_value_t = 7.0, global = true)]
    max_vibration: f64,
    /// How far the watermark stays behind the highest event time seen
    #[arg(long, value_name = "SPAN", default_value = "20s", global = true)]
    out_of_orderness: EventSpan,
    /// Readings per second at most; 0: as fast as it goes
    #[arg(long, value_name = "READINGS_PER_SECOND", default_value_t = 0.0, global = true)]
    rate: f64,
    #[command(flatten)]
    job: JobArgs,
}

/// What a machine's sensors say.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Reading {
    #[serde(with = "iso8601")]
    at: EventTime,
    machine: String,
    temperature: f64,
    vibration: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum What {
    TooHot,
    Escalated,
    Silent,
    AllClear,
    WearingOut,
}

/// Something to be told, with the machine's last reading.
#[derive(Clone, Debug, Serialize)]
struct Alert {
    #[serde(with = "iso8601")]
    at: EventTime,
    machine: String,
    what: What,
    temperature: f64,
    vibration: f64,
    #[serde(with = "iso8601")]
    read_at: EventTime,
}

impl Alert {
    fn new(at: EventTime, what: What, last: &Reading) -> Self {
        let Reading { at: read_at, machine, temperature, vibration } = last.clone();
        Alert { at, machine, what, temperature, vibration, read_at }
    }
}

/// So many hot readings in a row are no accident.
const HOT_IN_A_ROW: u32 = 3;
/// Vibration within this time after a machine became too hot makes it urgent.
const ESCALATION: EventSpan = EventSpan::mins(1);
/// A machine that says nothing for this long is silent.
const SILENCE: EventSpan = EventSpan::mins(5);
/// Two strong vibrations within this time may belong together.
const WEAR: EventSpan = EventSpan::mins(10);

fn main() -> ExitCode {
    let options = Options::parse();
    let job = machine_alerts(&options, stdout());
    options.job.main(job)
}

fn machine_alerts(options: &Options, reports: impl Sink<String>) -> Job {
    let job = Job::new("machine-alerts")
        .checkpoint_dir(options.output.join("checkpoints"))
        .checkpoint_every(Duration::from_millis(200));
    let watermarks = Watermarks::bounded_out_of_orderness(options.out_of_orderness, |reading: &Reading| reading.at);
    let readings = if options.input.is_empty() {
        job.source(from_vec(made_up(options.hours)).splits(2).rate(options.rate), watermarks)
    } else {
        job.source(CsvFiles::new(&options.input).rate(options.rate), watermarks)
    };

    let machines = readings.name("readings").key_by(|reading| reading.machine.clone());
    let alerts = machines
        .clone()
        .process_in_order(Watch { max_temperature: options.max_temperature, max_vibration: options.max_vibration })
        .name("watch");
    let worn = machines
        .matches(wearing_out(options.max_vibration))
        .name("wear")
        .map(|found| Alert::new(found.until, What::WearingOut, found.one("warmer")));
    let alerts = alerts.union([worn]);
    alerts.clone().sink(FileSink::csv(options.output.join("alerts"))).name("alerts");

    let times = |what| Sum::of(move |alert: &Alert| u64::from(alert.what == what));
    alerts
        .key_by(|alert| alert.machine.clone())
        .window(Tumbling::of(EventSpan::days(1)))
        .aggregate((times(What::TooHot), times(What::Escalated), times(What::Silent), times(What::WearingOut)))
        .name("days")
        .map(|(machine, day, (too_hot, escalated, silent, worn))| {
            let day = day.start;
            format!(
                "{machine}, day of {day}: too hot {too_hot}, escalated {escalated}, silent {silent}, wearing out {worn}"
            )
        })
        .sink(reports)
        .name("reports");
    job
}

/// Two strong vibrations, the second while it was warmer.
fn wearing_out(max_vibration: f64) -> Pattern<Reading> {
    Pattern::first("shaken", move |reading: &Reading| reading.vibration > max_vibration)
        .followed_by("warmer", move |reading| reading.vibration > max_vibration)
        .given(|reading, before| before.first().is_some_and(|shaken| reading.temperature > shaken.temperature))
        .within(WEAR)
}

/// Watches one machine.
#[derive(Clone)]
struct Watch {
    max_temperature: f64,
    max_vibration: f64,
}

/// What is known of a machine.
#[derive(Clone, Serialize, Deserialize)]
struct Machine {
    last: Reading,
    hot_in_a_row: u32,
    told: Told,
}

/// What somebody was told of, since all was clear.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
struct Told {
    too_hot: Option<EventTime>,
    escalated: bool,
    silent: bool,
}

type Context<'a> = ProcessContext<'a, String, Machine, Alert>;

impl Process<String, Reading> for Watch {
    type State = Machine;
    type Out = Alert;

    fn on_record(&mut self, cx: &mut Context<'_>, reading: &Reading) -> Result<(), Error> {
        let now = cx.now();
        let (mut hot_in_a_row, mut told) = match cx.state().take() {
            Some(before) => {
                cx.replace_timer(before.last.at + SILENCE, now + SILENCE);
                (before.hot_in_a_row, before.told)
            }
            None => {
                cx.set_timer(now + SILENCE);
                (0, Told::default())
            }
        };

        let is_hot = reading.temperature > self.max_temperature;
        let is_shaking = reading.vibration > self.max_vibration;
        hot_in_a_row = if is_hot { hot_in_a_row + 1 } else { 0 };
        if hot_in_a_row >= HOT_IN_A_ROW && told.too_hot.is_none() {
            told.too_hot = Some(now);
            cx.emit(Alert::new(now, What::TooHot, reading));
        }
        if is_shaking && !told.escalated && told.too_hot.is_some_and(|since| now <= since + ESCALATION) {
            told.escalated = true;
            cx.emit(Alert::new(now, What::Escalated, reading));
        }
        if !is_hot && !is_shaking && told != Told::default() {
            told = Told::default();
            cx.emit(Alert::new(now, What::AllClear, reading));
        }
        *cx.state() = Some(Machine { last: reading.clone(), hot_in_a_row, told });
        Ok(())
    }

    fn on_timer(&mut self, cx: &mut Context<'_>, at: EventTime) -> Result<(), Error> {
        // Only readings set timers, so a silence is told of once.
        if let Some(machine) = cx.state() {
            machine.told.silent = true;
            let alert = Alert::new(at, What::Silent, &machine.last);
            cx.emit(alert);
        }
        Ok(())
    }
}

/// Readings of eight machines in the order in which they come in, the same every time.
fn made_up(hours: u32) -> Vec<Reading> {
    let mut random = Random(20_240_506);
    let begin = 1_714_975_200_000; // 2024-05-06, six in the morning, in milliseconds
    let end = begin + i64::from(hours) * 3_600_000;
    let mut arrivals = Vec::new();
    for number in 1..=8 {
        let (mut at, mut hot_for) = (begin + number * 1_000, 0);
        while at < end {
            match random.below(300) {
                0 => hot_for = 1 + random.below(30),
                1 => at += random.below(900_000) as i64, // out of reach, or switched off
                _ => hot_for = hot_for.saturating_sub(1),
            }
            // What is hot shakes more often.
            let is_shaking = random.below(if hot_for > 0 { 15 } else { 200 }) == 0;
            let tenths = |normal: u64, more: bool, by: u64| (normal + if more { by } else { 0 }) as f64 / 10.0;
            let reading = Reading {
                at: EventTime::from_millis(at),
                machine: format!("press-{number}"),
                temperature: tenths(600 + random.below(200), hot_for > 0, 350),
                vibration: tenths(20 + random.below(30), is_shaking, 60),
            };
            // Seconds to get here; sometimes a gateway holds it back for longer.
            let delay_ms = if random.below(200) == 0 { random.below(60_000) } else { random.below(5_000) };
            arrivals.push((at + delay_ms as i64, reading));
            at += 10_000 + random.below(10_000) as i64;
        }
    }
    arrivals.sort_by_key(|(arrival, reading)| (*arrival, reading.at));
    arrivals.into_iter().map(|(_, reading)| reading).collect()
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

    const HOURS: u32 = 6;

    /// Rows of `alerts/*.csv` and printed lines, each sorted.
    #[derive(Debug, PartialEq)]
    struct Outputs {
        alerts: Vec<String>,
        reports: Vec<String>,
    }

    /// What the job should give, from all readings and by looking back at what was told before; and how many readings are late.
    fn expected(splits: &[Vec<Reading>], options: &Options) -> (Outputs, u64) {
        let (mut in_time, mut late) = (Vec::new(), 0);
        for split in splits {
            let mut highest = EventTime::MIN;
            for reading in split {
                if reading.at < highest - options.out_of_orderness {
                    late += 1;
                } else {
                    in_time.push(reading);
                }
                highest = highest.max(reading.at);
            }
        }
        in_time.sort_by_key(|reading| reading.at);

        let mut alerts = Vec::new();
        for machine in in_time.iter().map(|reading| &reading.machine).collect::<BTreeSet<_>>() {
            let readings: Vec<&Reading> = in_time.iter().copied().filter(|r| r.machine == *machine).collect();
            alerts.extend(alerts_of(&readings, options));
            alerts.extend(wear_of(&readings, options));
        }
        for what in [What::TooHot, What::Escalated, What::Silent, What::AllClear, What::WearingOut] {
            assert!(alerts.iter().filter(|alert| alert.what == what).count() > 8, "few are {what:?}");
        }

        let mut days = BTreeMap::<(&str, i64), [u64; 4]>::new();
        for alert in &alerts {
            let day = days.entry((&alert.machine, alert.at.micros().div_euclid(86_400_000_000))).or_default();
            match alert.what {
                What::TooHot => day[0] += 1,
                What::Escalated => day[1] += 1,
                What::Silent => day[2] += 1,
                What::WearingOut => day[3] += 1,
                What::AllClear => {}
            }
        }
        let report = |((machine, day), [hot, escalated, silent, worn]): ((&str, i64), [u64; 4])| {
            let day = EventTime::from_secs(day * 86_400);
            format!(
                "{machine}, day of {day}: too hot {hot}, escalated {escalated}, silent {silent}, wearing out {worn}"
            )
        };
        let mut reports: Vec<String> = days.into_iter().map(report).collect();
        reports.sort();

        let mut csv = csv::WriterBuilder::new().has_headers(false).from_writer(Vec::new());
        alerts.iter().for_each(|alert| csv.serialize(alert).expect("is CSV"));
        let text = String::from_utf8(csv.into_inner().expect("writes")).expect("is UTF-8");
        let mut alerts: Vec<String> = text.lines().map(str::to_string).collect();
        alerts.sort();
        (Outputs { alerts, reports }, late)
    }

    /// The alerts of one machine, of which these are all readings in order.
    fn alerts_of(readings: &[&Reading], options: &Options) -> Vec<Alert> {
        let is_hot = |reading: &Reading| reading.temperature > options.max_temperature;
        let is_shaking = |reading: &Reading| reading.vibration > options.max_vibration;
        let mut alerts: Vec<Alert> = Vec::new();
        for (number, reading) in readings.iter().enumerate() {
            let now = reading.at;
            let told = |alerts: &[Alert], what: What, within: EventSpan| {
                let since_clear = alerts.iter().rev().take_while(|alert| alert.what != What::AllClear);
                since_clear.filter(|alert| alert.what == what).any(|alert| now <= alert.at + within)
            };
            let ever = EventSpan::days(1_000);
            let hot_for_three = number >= 2 && readings[number - 2..=number].iter().all(|reading| is_hot(reading));
            if hot_for_three && !told(&alerts, What::TooHot, ever) {
                alerts.push(Alert::new(now, What::TooHot, reading));
            }
            let urgent = told(&alerts, What::TooHot, EventSpan::secs(60)) && !told(&alerts, What::Escalated, ever);
            if urgent && is_shaking(reading) {
                alerts.push(Alert::new(now, What::Escalated, reading));
            }
            let was_clear = alerts.last().is_none_or(|alert| alert.what == What::AllClear);
            if !was_clear && !is_hot(reading) && !is_shaking(reading) {
                alerts.push(Alert::new(now, What::AllClear, reading));
            }
            let silent_at = now + EventSpan::secs(300);
            if readings.get(number + 1).is_none_or(|next| next.at >= silent_at) {
                alerts.push(Alert::new(silent_at, What::Silent, reading));
            }
        }
        alerts
    }

    /// Looks back from every reading, as far as the alert before.
    fn wear_of(readings: &[&Reading], options: &Options) -> Vec<Alert> {
        let (mut alerts, mut from) = (Vec::new(), 0);
        for (number, reading) in readings.iter().enumerate() {
            let begins = |before: &&Reading| {
                let is_shaken = before.vibration > options.max_vibration;
                is_shaken && before.temperature < reading.temperature && reading.at < before.at + EventSpan::secs(600)
            };
            if reading.vibration > options.max_vibration && readings[from..number].iter().copied().any(|r| begins(&r)) {
                alerts.push(Alert::new(reading.at, What::WearingOut, reading));
                from = number + 1;
            }
        }
        alerts
    }

    fn written(output: &Path) -> Vec<String> {
        let parts = fs::read_dir(output.join("alerts")).expect("the directory of the sink");
        let parts = parts.map(|part| part.expect("a part").path());
        let committed = parts.filter(|path| path.extension().is_some_and(|extension| extension == "csv"));
        let texts: Vec<String> = committed.map(|path| fs::read_to_string(path).expect("reads")).collect();
        let mut rows: Vec<String> = texts.iter().flat_map(|text| text.lines().skip(1)).map(str::to_string).collect();
        rows.sort();
        rows
    }

    fn outputs(output: &Path, reports: &Collected<String>) -> Outputs {
        let mut reports = reports.values();
        reports.sort();
        Outputs { alerts: written(output), reports }
    }

    fn options(output: &Path, more: &[&str]) -> Options {
        let hours = HOURS.to_string();
        let output = output.to_str().expect("a path in UTF-8");
        Options::parse_from(["machine_alerts", "--hours", &hours, "--output", output].iter().chain(more))
    }

    /// The readings as the two splits have them.
    fn splits() -> Vec<Vec<Reading>> {
        let readings = made_up(HOURS);
        (0..2).map(|split| readings.iter().skip(split).step_by(2).cloned().collect()).collect()
    }

    #[test]
    fn alerts_are_those_of_plain_loops_with_any_number_of_workers() {
        for workers in [1, 3] {
            let (dir, reports) = (tempfile::tempdir().expect("a directory"), Collected::new());
            let options = options(dir.path(), &[]);
            let summary = machine_alerts(&options, reports.sink()).workers(workers).run().expect("finishes");
            let (expected, late) = expected(&splits(), &options);
            assert!(late > 0);
            // For the process function, and for the pattern.
            assert_eq!(summary.late, 2 * late);
            assert_eq!(outputs(dir.path(), &reports), expected, "{workers} workers");
        }
    }

    #[test]
    fn files_give_the_same_as_the_readings_that_are_in_them() {
        let (dir, reports) = (tempfile::tempdir().expect("a directory"), Collected::new());
        let files = ["a", "b"].map(|name| dir.path().join(name).with_extension("csv"));
        for (file, split) in files.iter().zip(splits()) {
            let mut csv = csv::Writer::from_path(file).expect("a file");
            split.iter().for_each(|reading| csv.serialize(reading).expect("is CSV"));
        }
        let [a, b] = files.each_ref().map(|file| file.to_str().expect("a path in UTF-8"));
        let limits = ["--max-temperature", "75", "--max-vibration", "4.5", "--out-of-orderness", "5s"];
        let options = options(dir.path(), &[&["--input", a, b], limits.as_slice()].concat());
        machine_alerts(&options, reports.sink()).workers(2).run().expect("finishes");
        assert_eq!(outputs(dir.path(), &reports), expected(&splits(), &options).0);
    }

    #[test]
    fn a_stop_and_another_number_of_workers_change_nothing() {
        for (before, after) in [(3, 1), (1, 3)] {
            let (dir, reports) = (tempfile::tempdir().expect("a directory"), Collected::new());
            let slow = options(dir.path(), &["--rate", "6000"]);
            let handle = machine_alerts(&slow, reports.sink()).workers(before).start().expect("starts");
            while handle.status().records_in < 4_000 {
                assert!(!handle.is_finished(), "{:?}", handle.status());
                std::thread::park_timeout(Duration::from_millis(1));
            }
            handle.stop(StopMode::WithCheckpoint);
            assert_eq!(handle.wait().expect("stops").outcome, Outcome::Stopped);
            let (half, options) = (written(dir.path()), options(dir.path(), &[]));
            let (expected, _) = expected(&splits(), &options);
            assert!(!half.is_empty() && half.len() < expected.alerts.len());

            let summary = machine_alerts(&options, reports.sink()).workers(after).run().expect("finishes");
            assert!(summary.restored.is_some() && summary.outcome == Outcome::Finished);
            assert_eq!(outputs(dir.path(), &reports), expected, "{before} workers, then {after}");
        }
    }

    /// What is told, and in which second after 1970, of readings `(second, is it hot, does it shake)` of one machine.
    fn told(readings: &[(i64, bool, bool)]) -> Vec<(i64, What)> {
        let reading = |&(second, is_hot, is_shaking): &(i64, bool, bool)| Reading {
            at: EventTime::from_secs(second),
            machine: "press".to_string(),
            temperature: if is_hot { 90.1 } else { 90.0 },
            vibration: if is_shaking { 7.1 } else { 7.0 },
        };
        let readings: Vec<Reading> = readings.iter().map(reading).collect();
        let (job, alerts) = (Job::new("told"), Collected::new());
        job.source(from_vec(readings), Watermarks::monotonous(|reading: &Reading| reading.at))
            .key_by(|reading| reading.machine.clone())
            .process_in_order(Watch { max_temperature: 90.0, max_vibration: 7.0 })
            .sink(alerts.sink());
        job.run().expect("finishes");
        let seconds = |alert: Alert| (alert.at.micros() / 1_000_000, alert.what);
        alerts.values().into_iter().map(seconds).collect()
    }

    #[test]
    fn three_hot_readings_in_a_row_are_told_of_once_until_all_is_clear() {
        let (hot, fine) = (|s| (s, true, false), |s| (s, false, false));
        let alone = [hot(0), hot(10), fine(20), hot(30), hot(40), fine(50)];
        assert_eq!(told(&alone), [(350, What::Silent)]);
        let twice = [hot(0), hot(10), hot(20), hot(30), fine(40), fine(50), hot(60), hot(70), hot(80)];
        assert_eq!(told(&twice), [(20, What::TooHot), (40, What::AllClear), (80, What::TooHot), (380, What::Silent),]);
    }

    #[test]
    fn vibration_counts_for_a_minute_after_it_became_too_hot() {
        let (hot, both, fine) = (|s| (s, true, false), |s| (s, true, true), |s| (s, false, false));
        let just = [both(0), hot(10), hot(20), both(80), both(90), fine(100)];
        assert_eq!(
            told(&just),
            [(20, What::TooHot), (80, What::Escalated), (100, What::AllClear), (400, What::Silent),]
        );
        let again = [hot(0), hot(10), both(20), both(30), hot(40), both(50), fine(60)];
        assert_eq!(told(&again)[..3], [(20, What::TooHot), (20, What::Escalated), (60, What::AllClear)]);
        let too_late = [hot(0), hot(10), hot(20), both(81), (90, false, true), fine(100)];
        assert_eq!(told(&too_late), [(20, What::TooHot), (100, What::AllClear), (400, What::Silent)]);
    }

    #[test]
    fn each_silence_is_told_of_once() {
        let (hot, fine) = (|s| (s, true, false), |s| (s, false, false));
        let readings = [fine(0), fine(299), fine(599), hot(1_000), hot(1_300), fine(1_310)];
        assert_eq!(
            told(&readings),
            [
                (599, What::Silent),
                (599, What::AllClear),
                (899, What::Silent),
                (1_300, What::Silent),
                (1_310, What::AllClear),
                (1_610, What::Silent),
            ]
        );
    }
}
