//! Jobs whose types have changed since their checkpoint was taken: brought to the new types, or refused, and never anything else.

mod patience;

use std::fs;
use std::path::Path;
use std::process::Command;

use millstream::error::Result;
use millstream::evolve::{EvolveError, First};
use millstream::prelude::*;
use millstream::state::manifest::Manifest;
use millstream::state::store::CheckpointStore;
use patience::{Random, SOON, effort, ms, sleep, temp, tree_but_locks, until, within};
use serde::{Deserialize, Serialize};

// ---------------------------------------------------------------------------------------------------------------------
// One job over any types of key and value

const EVENTS: u64 = 6_000;

/// By what events are grouped.
trait Id: millstream::prelude::Key + Sync {
    fn of(user: u32) -> Self;
    fn show(&self) -> String;
}

/// What is kept: a sum of money, and how many there were.
trait Money: Clone + Send + Sync + Serialize + serde::de::DeserializeOwned + 'static {
    fn none() -> Self;
    fn add(&mut self, euros: i64, count: u32);
    /// In cents.
    fn show(&self) -> (i128, u32);
}

/// Running values, tumbling and sliding windows; what it gives out is the same for all types.
fn job<K: Id, S: Money>(dir: &Path, workers: usize, rate: f64) -> Job {
    let job = Job::new("money").workers(workers).batch_size(32).retain(100);
    let job = job.checkpoint_dir(dir.join("checkpoints")).checkpoint_every(ms(20));
    let source = Generator::new(EVENTS, |i| i).rate(rate);
    let at = |i: &u64| EventTime::from_millis(10 * *i as i64);
    let events = job.source(source, Watermarks::bounded_out_of_orderness(EventSpan::ZERO, at)).name("events");
    let by_user = || events.clone().key_by(|i| K::of((i * 7 % 50) as u32));
    let total = || {
        let merge = |into: &mut S, from: &S| {
            let (cents, count) = from.show();
            into.add((cents / 100) as i64, count);
        };
        (Fold::new(S::none(), |total: &mut S, i: &u64| total.add(*i as i64, 1), merge), Max::of(|i: &u64| *i))
    };
    let running = by_user()
        .fold((S::none(), 0u8), |total, i| total.0.add(*i as i64, 1))
        .name("running")
        .map(|(user, total)| format!("running {} {:?}", user.show(), total.0.show()));
    let tumbling = by_user().window(Tumbling::of(EventSpan::secs(4))).aggregate(total()).name("tumbling");
    let sliding = Sliding::of(EventSpan::secs(6), EventSpan::secs(2));
    let sliding = by_user().window(sliding).aggregate(total()).name("sliding");
    let shown = |what: &'static str| {
        move |(user, window, (total, max)): (K, Window, (S, u64))| {
            format!("{what} {} {window} {:?} {max}", user.show(), total.show())
        }
    };
    let all = running.union([tumbling.map(shown("tumbling")), sliding.map(shown("sliding"))]);
    all.sink(FileSink::json_lines(dir.join("out")));
    job
}

/// The rows that were given out, in order.
fn rows(dir: &Path) -> Vec<String> {
    let mut rows = Vec::new();
    for entry in fs::read_dir(dir.join("out")).expect("lists") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "jsonl") {
            rows.extend(fs::read_to_string(path).expect("reads").lines().map(str::to_string));
        }
    }
    rows.sort();
    rows
}

/// What it gives out when nothing happens.
fn expected() -> &'static [String] {
    static EXPECTED: std::sync::OnceLock<Vec<String>> = std::sync::OnceLock::new();
    EXPECTED.get_or_init(|| {
        let dir = temp();
        within(job::<u32, i128>(dir.path(), 1, 0.0).start().expect("starts"), SOON).expect("finishes");
        let rows = rows(dir.path());
        assert!(rows.len() > EVENTS as usize + 500, "{}", rows.len());
        rows
    })
}

#[track_caller]
fn assert_expected(dir: &Path) {
    let (found, expected) = (rows(dir), expected());
    let first = found.iter().zip(expected).position(|(found, expected)| found != expected);
    let at = first.unwrap_or(found.len().min(expected.len()));
    assert!(
        found == expected,
        "{} rows instead of {}; row {at} is {:?} and should be {:?}",
        found.len(),
        expected.len(),
        found.get(at),
        expected.get(at)
    );
}

/// Runs the job for about a quarter of its events, and stops it. It is slow, because this thread may come late to stop it.
fn begin<K: Id, S: Money>(dir: &Path, workers: usize, with: impl Fn(Job) -> Job) {
    let handle = with(job::<K, S>(dir, workers, 5_000.0)).start().expect("starts");
    until("a quarter is read", || handle.status().records_in > EVENTS / 4 || handle.is_finished());
    handle.stop(StopMode::WithCheckpoint);
    assert_eq!(within(handle, SOON).expect("stops").outcome, Outcome::Stopped);
}

fn end<K: Id, S: Money>(dir: &Path, workers: usize, with: impl Fn(Job) -> Job) -> Result<Summary> {
    within(with(job::<K, S>(dir, workers, 0.0)).start()?, SOON)
}

fn newest(dir: &Path) -> Manifest {
    let store = CheckpointStore::new(dir.join("checkpoints"));
    let epoch = *store.epochs().expect("lists").last().expect("a checkpoint");
    store.manifest(epoch).expect("reads")
}

impl Id for u32 {
    fn of(user: u32) -> Self {
        user
    }
    fn show(&self) -> String {
        format!("u{self}")
    }
}

impl Money for i128 {
    fn none() -> Self {
        0
    }
    // The count is kept in the lowest bits.
    fn add(&mut self, euros: i64, count: u32) {
        *self += (i128::from(euros) << 32) + i128::from(count);
    }
    fn show(&self) -> (i128, u32) {
        ((self >> 32) * 100, *self as u32)
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The same types in several forms

/// Implements the two traits for types with these fields.
macro_rules! money {
    ($type:ty { $($other:ident: $default:expr),* }, $cents:ident * $unit:expr, $count:ident) => {
        impl Money for $type {
            fn none() -> Self {
                Self { $cents: 0, $count: 0, $($other: $default),* }
            }
            fn add(&mut self, euros: i64, count: u32) {
                self.$cents += euros * (100 / $unit);
                self.$count += count;
            }
            fn show(&self) -> (i128, u32) {
                (i128::from(self.$cents) * i128::from($unit), self.$count)
            }
        }
    };
}

#[derive(Clone, Serialize, Deserialize, Evolve)]
struct TotalV1 {
    euros: i64,
    count: u32,
}

#[derive(Clone, Serialize, Deserialize)]
struct TotalV2 {
    count: u32,
    cents: i64,
}

impl Evolve for TotalV2 {
    type Previous = TotalV1;
    const VERSION: u32 = 2;
    fn evolve(old: TotalV1) -> std::result::Result<Self, EvolveError> {
        Ok(TotalV2 { count: old.count, cents: old.euros.checked_mul(100).ok_or("too much")? })
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Evolve)]
#[evolve(from = TotalV2, version = 3)]
struct Total {
    #[evolve(default = vec!["new".to_string()])]
    notes: Vec<String>,
    cents: i64,
    #[evolve(renamed = count)]
    orders: u32,
}

money!(TotalV1 {}, euros * 100i64, count);
money!(TotalV2 {}, cents * 1i64, count);
money!(Total { notes: vec!["new".into()] }, cents * 1i64, orders);

mod elsewhere {
    use super::*;

    /// `TotalV1` under another name, in another place.
    #[derive(Clone, Serialize, Deserialize)]
    pub struct Sum {
        pub euros: i64,
        pub count: u32,
    }
    money!(Sum {}, euros * 100i64, count);

    /// A `Total` without a past.
    #[derive(Clone, Serialize, Deserialize, Evolve)]
    #[evolve(version = 3)]
    pub struct Total {
        pub notes: Vec<String>,
        pub cents: i64,
        pub orders: u32,
    }
    money!(Total { notes: vec![] }, cents * 1i64, orders);

    #[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
    pub struct Who(u32);
    impl Id for Who {
        fn of(user: u32) -> Self {
            Who(user)
        }
        fn show(&self) -> String {
            self.0.show()
        }
    }
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Evolve)]
struct UserV1(u32);

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Evolve)]
#[evolve(from = UserV1)]
struct User {
    #[evolve(renamed = 0, with = name_of)]
    name: String,
    #[evolve(default = true)]
    known: bool,
}

fn name_of(user: u32) -> String {
    format!("u{user}")
}

impl Id for User {
    fn of(user: u32) -> Self {
        User { name: name_of(user), known: true }
    }
    fn show(&self) -> String {
        self.name.clone()
    }
}

fn plain(job: Job) -> Job {
    job
}

fn migrating(job: Job) -> Job {
    job.migrate::<Total>().migrate::<User>()
}

// ---------------------------------------------------------------------------------------------------------------------
// Without a migration

#[test]
fn types_may_move_and_be_renamed() {
    let dir = temp();
    begin::<u32, TotalV1>(dir.path(), 2, plain);
    begin::<elsewhere::Who, elsewhere::Sum>(dir.path(), 1, plain);
    let summary = end::<u32, TotalV1>(dir.path(), 3, plain).expect("finishes");
    assert!(summary.restored.is_some() && summary.records_in < EVENTS / 2);
    assert_expected(dir.path());
}

#[test]
fn changed_types_are_refused_before_anything_runs() {
    let dir = temp();
    begin::<u32, TotalV1>(dir.path(), 2, plain);
    let before = tree_but_locks(dir.path());
    let error = end::<u32, TotalV2>(dir.path(), 2, plain).expect_err("another value").to_string();
    for text in [
        "operator `running`, state `values`: field `euros` of `TotalV2` (i64) is gone",
        "field `cents` of `TotalV2` (i64) is new, says checkpoint",
        "#[evolve(from = TotalV2V1)]",
        ".migrate::<TotalV2>()",
    ] {
        assert!(error.contains(text), "{error}");
    }
    let error = end::<User, TotalV1>(dir.path(), 2, plain).expect_err("another key").to_string();
    assert!(error.contains("the key was u32 and is now struct User"), "{error}");
    assert_eq!(tree_but_locks(dir.path()), before, "nothing was touched");
    // With the migration of something else it is none the better.
    let error = end::<u32, Total>(dir.path(), 2, |job| job.migrate::<User>()).expect_err("no migration").to_string();
    assert!(error.contains("field `cents` of `Total` (i64) is new"), "{error}");
    end::<u32, TotalV1>(dir.path(), 2, plain).expect("the old program goes on");
    assert_expected(dir.path());
}

// ---------------------------------------------------------------------------------------------------------------------
// With migrations

#[test]
fn values_are_migrated_on_any_number_of_workers() {
    for (before, between, after) in [(1, 3, 2), (3, 1, 4)] {
        let dir = temp();
        begin::<u32, TotalV1>(dir.path(), before, plain);
        begin::<u32, Total>(dir.path(), between, migrating);
        let newest = newest(dir.path());
        let manifest = serde_json::to_string(&newest).expect("prints");
        assert!(manifest.contains("version(schema::Total,3,struct(") && !manifest.contains("euros"), "{manifest}");
        // All of it is in the new form: who knows no older one can read it.
        let without_past = |job: Job| job.migrate::<elsewhere::Total>();
        let summary = end::<u32, elsewhere::Total>(dir.path(), after, without_past).expect("finishes");
        assert!(summary.restored == Some(newest.epoch));
        assert_expected(dir.path());
    }
}

#[test]
fn every_form_on_the_way_is_migrated() {
    let dir = temp();
    begin::<u32, TotalV2>(dir.path(), 2, |job| job.migrate::<TotalV2>());
    begin::<u32, TotalV2>(dir.path(), 1, plain_v2);
    end::<u32, Total>(dir.path(), 2, migrating).expect("finishes");
    assert_expected(dir.path());
    fn plain_v2(job: Job) -> Job {
        job.migrate::<TotalV2>()
    }
}

/// Names are other keys than numbers: nearly all move to another key group, many to another worker.
#[test]
fn keys_are_migrated_together_with_values() {
    for (before, after) in [(1, 1), (3, 2), (4, 1), (2, 3)] {
        let dir = temp();
        // Stopped as by Ctrl-C: sources hold, so all workers come equally far.
        begin::<u32, TotalV1>(dir.path(), before, plain);
        begin::<User, Total>(dir.path(), after, migrating);
        end::<User, Total>(dir.path(), 3, migrating).expect("finishes");
        assert_expected(dir.path());
    }
}

#[test]
fn there_is_no_way_back_to_an_older_program() {
    let dir = temp();
    begin::<u32, Total>(dir.path(), 1, migrating);
    let before = tree_but_locks(dir.path());
    let error = end::<u32, TotalV2>(dir.path(), 1, |job| job.migrate::<TotalV2>()).expect_err("older").to_string();
    assert!(error.contains("written by version 3 of `TotalV2`, and this program knows version 2"), "{error}");
    assert!(error.contains("start the program that wrote it, or a newer one"), "{error}");
    let error = end::<u32, Total>(dir.path(), 1, plain).expect_err("not registered").to_string();
    assert!(error.contains("written by version 3 of `Total`, and this program knows no version of it"), "{error}");
    assert_eq!(tree_but_locks(dir.path()), before, "nothing was touched");
}

/// Going back to where the old program was, and migrating again from there.
#[test]
fn an_older_checkpoint_of_an_older_form_is_migrated_as_well() {
    let dir = temp();
    begin::<u32, TotalV1>(dir.path(), 2, plain);
    let old = newest(dir.path()).epoch;
    begin::<u32, Total>(dir.path(), 2, migrating);
    assert!(newest(dir.path()).epoch > old);
    let back = |job: Job| migrating(job).start_from(StartFrom::Epoch(old));
    assert_eq!(end::<u32, Total>(dir.path(), 1, back).expect("finishes").restored, Some(old));
    assert_expected(dir.path());
}

/// The value of one key has no new form.
#[derive(Clone, Serialize, Deserialize, Evolve)]
#[evolve(from = TotalV1)]
struct Small {
    #[evolve(try_from)]
    euros: u8,
    count: u32,
}

impl Money for Small {
    fn none() -> Self {
        Small { euros: 0, count: 0 }
    }
    fn add(&mut self, _: i64, count: u32) {
        self.count += count;
    }
    fn show(&self) -> (i128, u32) {
        (i128::from(self.euros), self.count)
    }
}

#[test]
fn a_migration_that_fails_names_the_key_and_leaves_the_checkpoint() {
    let dir = temp();
    begin::<u32, TotalV1>(dir.path(), 2, plain);
    let error = end::<u32, Small>(dir.path(), 2, |job| job.migrate::<Small>()).map(drop).expect_err("too large");
    let error = error.to_string();
    for text in [
        "operator `running`: ",
        "cannot migrate",
        "the value of key ",
        "`Small`",
        "field `euros`: out of range",
        "go on with the old",
    ] {
        assert!(error.contains(text), "{text} in {error}");
    }
    let wrong = |job: Job| job.migrate::<Skips>();
    let error = end::<u32, TotalV1>(dir.path(), 2, wrong).expect_err("a gap").to_string();
    assert!(error.contains("versions must follow each other"), "{error}");
    end::<u32, TotalV1>(dir.path(), 2, plain).expect("the old program goes on");
    assert_expected(dir.path());
}

#[derive(Clone, Serialize, Deserialize)]
struct Skips(u8);

impl Evolve for Skips {
    type Previous = TotalV1;
    const VERSION: u32 = 5;
    fn evolve(_: TotalV1) -> std::result::Result<Self, EvolveError> {
        Ok(Skips(0))
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Killed in the midst of it

const CHILD: &str = "MILLSTREAM_SCHEMA_CHILD";

/// The process that is killed. It does nothing in a usual run of the tests.
#[test]
fn child() {
    let Ok(dir) = std::env::var(CHILD) else { return };
    let handle = migrating(job::<User, Total>(Path::new(&dir), 2, 20_000.0)).start().expect("starts");
    within(handle, SOON).expect("finishes");
}

/// Real processes, killed soon after their first start with the new types: before, in, and after the first new checkpoint.
#[test]
fn who_is_killed_in_a_migration_migrates_again() {
    let mut random = Random(7 * effort());
    for round in 0..4 * effort() {
        let dir = temp();
        begin::<u32, TotalV1>(dir.path(), 1, plain);
        let mut kills = Vec::new();
        for _ in 0..4 {
            let program = std::env::current_exe().expect("this program");
            let mut child = Command::new(program)
                .args(["--exact", "child", "--nocapture"])
                .env(CHILD, dir.path())
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .spawn()
                .expect("starts");
            let after = random.below(60);
            kills.push(after);
            sleep(ms(after));
            child.kill().expect("may be killed");
            child.wait().expect("ends");
        }
        end::<User, Total>(dir.path(), 3, migrating).unwrap_or_else(|error| panic!("{round}, {kills:?}: {error}"));
        assert_expected(dir.path());
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// What the derive macro writes

#[derive(Debug, PartialEq, Serialize, Deserialize, Evolve)]
#[evolve(version = 4)]
enum PaymentV4<T> {
    None,
    Cash(T, u8),
    Card { number: String, cents: i64 },
    Old,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, Evolve)]
#[evolve(from = "PaymentV4<T>", version = 5)]
enum Payment<T> {
    #[evolve(added)]
    Unknown,
    None,
    Cash(T, #[evolve(default)] u64, #[evolve(renamed = 1)] u16),
    #[evolve(renamed = Card)]
    Plastic {
        #[evolve(with = String::into_bytes)]
        number: Vec<u8>,
        #[evolve(try_from, renamed = cents)]
        amount: u32,
    },
    Old,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, Evolve)]
#[evolve(from = "UserV1")]
struct Unit;

#[test]
fn derived_migrations_of_enums_tuples_and_generic_types() {
    type Old = PaymentV4<char>;
    let new = |old: Old| Payment::<char>::evolve(old).map_err(|error| error.to_string());
    assert_eq!((Old::VERSION, Payment::<char>::VERSION, Unit::VERSION), (4, 5, 2));
    assert_eq!(new(Old::None), Ok(Payment::None));
    assert_eq!(new(Old::Old), Ok(Payment::Old));
    assert_eq!(new(Old::Cash('a', 7)), Ok(Payment::Cash('a', 0, 7)));
    let card = |cents| Old::Card { number: "12".into(), cents };
    assert_eq!(new(card(9)), Ok(Payment::Plastic { number: b"12".to_vec(), amount: 9 }));
    assert_eq!(new(card(-9)), Err("field `amount`: out of range integral type conversion attempted".into()));
    assert_eq!(Unit::evolve(UserV1(7)).expect("evolves"), Unit);
    fn first<T: Evolve<Previous = First>>() {}
    first::<PaymentV4<u8>>();
}
