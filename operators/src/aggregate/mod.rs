//! Aggregates: what a window computes from the records of one key.
//!
//! An [`Aggregate`] folds records into an accumulator, merges accumulators, and turns one into a result. The built-in
//! ones live one to a file and combine as tuples: `(Count, Sum::of(..), Max::of(..))` is an aggregate too, with one
//! accumulator and one pass over the records.
//!
//! **State**: one accumulator per key and slice, kept by the operator that uses the aggregate and snapshotted with it.
//! Accumulators grow with the records only where their own docs say so ([`DistinctCount`], [`List`], [`Newest::within`]).
//!
//! **Time**: aggregates see the event time of a record through its [`Origin`]; [`First`], [`Last`], [`List`], [`Top`] and [`Newest`] look at it.
//!
//! **Errors**: an aggregate has no error path. One that cannot go on (an integer sum that overflows) panics with a
//! message for the user; the runtime fails the job and names the operator and the key.
//!
//! **Source**: the contract is that of Flink's `AggregateFunction` (create, add, merge, result), made stricter: the
//! result may not depend on the order of records, so that a job gives the same results on any number of workers and
//! in a replay.

mod big;
mod count;
mod distinct;
mod exact;
mod first_last;
mod fold;
mod list;
mod mean;
mod min_max;
mod newest;
mod number;
mod sum;
mod top;
mod tuple;
mod variance;

#[cfg(test)]
mod oracle;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use millstream_runtime::time::EventTime;

pub use count::Count;
pub use distinct::DistinctCount;
pub use exact::{ExactSquares, ExactSum};
pub use first_last::{First, Held, Last};
pub use fold::Fold;
pub use list::List;
pub use mean::{Mean, MeanAcc};
pub use min_max::{Bare, Comparable, Max, Min, Slot};
pub use newest::Newest;
pub use number::{ExactTotal, Number, Wide, Wider};
pub use sum::{FastSum, Sum, Summable, WideSum};
pub use top::Top;
pub use variance::{StdDev, Variance, VarianceAcc};

/// When and where a record comes from.
///
/// `at` is always the record's event time. `(split, record)` is its position in the input and is known only where the
/// job carries positions (see [`Aggregate::NEEDS_POSITION`]) and the record came from a source as it is; both are 0
/// for results of windows and other records that have no position of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The record's event time.
    pub at: EventTime,
    /// The split of the source that the record was read from.
    pub split: u32,
    /// The record's number within its split.
    pub record: u64,
}

/// A function of many records, computed piece by piece.
///
/// Records of one key and slice are added to an accumulator; accumulators of several slices or workers are merged;
/// the result is taken from what comes out. An operator may finish an accumulator, keep it and go on adding to it.
///
/// # Promises
///
/// The runtime adds and merges in whatever order records meet, so an implementation promises:
///
/// * **Order does not matter**: adding the same records in another order gives the same result.
/// * **Merge is commutative and associative**, and a fresh accumulator merges without effect.
/// * **Pieces do not matter**: adding records to several fresh accumulators and merging these gives the same result
///   as adding all of them to one.
/// * **Subtracting undoes merging**, bit by bit, where an aggregate says that it can.
/// * **State survives serde**: an accumulator written with bincode and read back behaves as before.
///
/// "The same" means the same bits. Nothing checks this while a job runs; an aggregate that breaks a promise gives
/// results that change with the number of workers. All built-in aggregates keep them, except [`FastSum`], which says
/// so, and [`Fold`], which keeps them if its closures do.
///
/// # Example
///
/// ```no_run
/// use millstream_operators::aggregate::{Aggregate, Origin};
///
/// /// The bitwise or of all flags.
/// #[derive(Clone)]
/// struct AnyFlag;
///
/// impl Aggregate<u32> for AnyFlag {
///     type Acc = u32;
///     type Out = u32;
///     fn create(&self) -> u32 {
///         0
///     }
///     fn add(&self, acc: &mut u32, value: &u32, _: &Origin) {
///         *acc |= value;
///     }
///     fn merge(&self, into: &mut u32, from: &u32) {
///         *into |= from;
///     }
///     fn finish(&self, acc: &u32) -> u32 {
///         *acc
///     }
/// }
/// ```
pub trait Aggregate<V>: Clone + Send + 'static {
    /// What is kept per key and slice.
    type Acc: Clone + Send + Serialize + DeserializeOwned + 'static;
    /// The result.
    type Out: Clone + Send + 'static;

    /// Whether the result depends on [`Origin::split`] or [`Origin::record`]; jobs carry positions only if it does.
    const NEEDS_POSITION: bool = false;

    /// Whether it breaks the first promise and says so: results of two runs may differ, and a replay does not compare them.
    const DEPENDS_ON_ORDER: bool = false;

    /// What it computes, in a word: a checkpoint of an operator whose aggregate was called otherwise is refused, because the
    /// same accumulator may mean something else. The type's own name, unless implemented.
    fn describe(&self) -> String {
        let path = std::any::type_name::<Self>().split('<').next().unwrap_or_default();
        path.rsplit("::").next().unwrap_or_default().to_string()
    }

    /// The accumulator of no records.
    fn create(&self) -> Self::Acc;

    /// Takes one record into `acc`. A window may take a record into more than one accumulator.
    fn add(&self, acc: &mut Self::Acc, value: &V, origin: &Origin);

    /// Takes all records of `from` into `into`.
    fn merge(&self, into: &mut Self::Acc, from: &Self::Acc);

    /// Whether [`subtract`](Self::subtract) is there. Overlapping windows are much faster with it.
    const INVERTIBLE: bool = false;

    /// Takes all records of `part`, which are in `from`, out of it again: the result is that of the records that are left.
    /// Called only where [`INVERTIBLE`](Self::INVERTIBLE) says so.
    fn subtract(&self, from: &mut Self::Acc, part: &Self::Acc) {
        let _ = (from, part);
        unimplemented!("an aggregate that says it is invertible has to implement `subtract`");
    }

    /// The result for the records taken so far. Operators ask only when there was at least one.
    fn finish(&self, acc: &Self::Acc) -> Self::Out;
}

/// The bytes of a value as they would be stored: a total order over values that have no other difference.
fn bytes_of<T: Serialize>(value: &T) -> Vec<u8> {
    match millstream_state::codec::encode(value) {
        Ok(bytes) => bytes,
        Err(error) => panic!("a value that is kept as state cannot be written: {error}"),
    }
}

/// The way back from [`bytes_of`], for tests.
#[cfg(test)]
fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> T {
    millstream_state::codec::decode(bytes).expect("reads what `bytes_of` wrote")
}
