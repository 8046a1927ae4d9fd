//! Keys that wait for event time, or for the clock: what is kept for each, and when it is to be looked at.

use std::ops::Range;

use millstream_runtime::clock::ProcessingTime;
use millstream_runtime::error::{Error, Result};
use millstream_runtime::operator::{Context, Fired};
use millstream_runtime::record::Data;
use millstream_runtime::time::EventTime;
use millstream_state::groups::GroupMarks;
use millstream_state::key_group::group_of;
use millstream_state::keyed::KeyedState;
use millstream_state::snapshot::{Key, Value};
use millstream_state::timers::Timers;
use serde::{Deserialize, Serialize};

/// What is kept for a key that waits.
pub(crate) trait Waits: Value {
    /// When the key will be woken, at the latest. Kept with the rest, for the functions of this module alone.
    fn alarms(&mut self) -> &mut Alarms;
    /// Whether there is nothing to keep.
    fn is_empty(&self) -> bool;
}

/// When a key will be woken, or is to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Alarms {
    pub time: Option<EventTime>,
    pub clock: Option<ProcessingTime>,
    /// The last time for which it was to be woken before it was to be sooner. In no checkpoint: it only serves to forget it.
    #[serde(skip)]
    later: Option<EventTime>,
}

impl Alarms {
    pub(crate) fn of(time: Option<EventTime>, clock: Option<ProcessingTime>) -> Self {
        Alarms { time, clock, later: None }
    }
}

/// What is kept by key, when keys are to be woken by event time, how far each key group has come in it, and when keys are to be
/// woken by the clock.
pub(crate) type WakingState<K, E> = (KeyedState<K, E>, Timers<K>, GroupMarks, Timers<K>);

pub(crate) fn state<K: Key, E: Waits>(groups: Range<u32>) -> WakingState<K, E> {
    (KeyedState::default(), Timers::default(), GroupMarks::new(groups), Timers::default())
}

/// The event time that a number stands for: in timers, or as a mark.
pub(crate) fn times<K: Key>(state: usize, number: i64) -> Option<Range<EventTime>> {
    let Range { start, end } = match state {
        1 => Timers::<K>::times(number),
        2 => i64::MIN..number,
        _ => return None,
    };
    Some(EventTime::from_micros(start)..EventTime::from_micros(end))
}

/// Has a key woken in time for what it waits for now.
pub(crate) fn arm<K: Key>(
    entry: &mut impl Waits,
    next: Alarms,
    timers: (&mut Timers<K>, &mut Timers<K>),
    hash: u64,
    key: &K,
) -> Result<()> {
    let alarms = entry.alarms();
    if let Some(next) = next.time
        && alarms.time.is_none_or(|before| next < before)
    {
        alarms.later = alarms.later.max(alarms.time);
        alarms.time = Some(next);
        timers.0.wake(next.micros(), hash, key).map_err(Error::read_back)?;
    }
    if let Some(next) = next.clock
        && alarms.clock.is_none_or(|before| next < before)
    {
        alarms.clock = Some(next);
        timers.1.wake(next.micros(), hash, key).map_err(Error::read_back)?;
    }
    Ok(())
}

/// Lets go of a key for which there is nothing to keep, and of when it was to be woken.
pub(crate) fn let_go<K: Key, E: Waits>(
    entries: &mut KeyedState<K, E>,
    timers: (&mut Timers<K>, &mut Timers<K>),
    hash: u64,
    key: &K,
) {
    let Some(mut entry) = entries.remove(hash, key) else { return };
    let Alarms { time, clock, later } = *entry.alarms();
    time.into_iter().chain(later).for_each(|at| timers.0.forget(at.micros(), hash, key));
    clock.into_iter().for_each(|at| timers.1.forget(at.micros(), hash, key));
}

/// How many keys are woken together: those that are not in memory are read together.
const TOGETHER: usize = 1024;

/// How often that is done before others have their turn.
const ROUNDS: usize = 16;

/// What wakes keys.
#[derive(Clone, Copy, Debug)]
enum By {
    Time(EventTime),
    Clock(ProcessingTime),
}

/// Wakes the keys whose event time has come. `each` does what is due for a key, is told how far event time had come for it before, and says
/// what it waits for next; a key that has nothing to keep afterwards is gone.
pub(crate) fn fire<K: Key, E: Waits, In: Data, Out: Data>(
    cx: &mut Context<In, Out>,
    state: &mut WakingState<K, E>,
    watermark: EventTime,
    each: impl FnMut(&mut Context<In, Out>, &K, &mut E, EventTime) -> Result<Alarms>,
) -> Result<Fired> {
    let fired = wake(cx, state, By::Time(watermark), each)?;
    if fired == Fired::All {
        state.2.raise(watermark.micros());
    }
    Ok(fired)
}

/// The same for the clock; says when it is to be asked again.
pub(crate) fn ring<K: Key, E: Waits, In: Data, Out: Data>(
    cx: &mut Context<In, Out>,
    state: &mut WakingState<K, E>,
    now: ProcessingTime,
    each: impl FnMut(&mut Context<In, Out>, &K, &mut E, EventTime) -> Result<Alarms>,
) -> Result<Option<ProcessingTime>> {
    match wake(cx, state, By::Clock(now), each)? {
        Fired::All => Ok(state.3.next().map(ProcessingTime::from_micros)),
        Fired::More => Ok(Some(now)),
    }
}

fn wake<K: Key, E: Waits, In: Data, Out: Data>(
    cx: &mut Context<In, Out>,
    (entries, time, marks, clock): &mut WakingState<K, E>,
    by: By,
    mut each: impl FnMut(&mut Context<In, Out>, &K, &mut E, EventTime) -> Result<Alarms>,
) -> Result<Fired> {
    for _ in 0..ROUNDS {
        let mut woken = Vec::new();
        let wake = |hash, key| woken.push((hash, key));
        let due = match by {
            By::Time(watermark) => time.due(watermark.micros(), TOGETHER, wake),
            By::Clock(now) => clock.due(now.micros(), TOGETHER, wake),
        };
        let all = due.map_err(Error::read_back)?;
        entries.load(woken.iter().map(|(hash, key)| (*hash, key))).map_err(Error::read_back)?;
        for (hash, key) in woken {
            let Some(entry) = entries.get_mut(hash, &key) else { continue };
            let since = EventTime::from_micros(marks.get(group_of(hash)));
            let next = each(cx, &key, entry, since)?;
            // Whatever timers there were of this kind are gone.
            match by {
                By::Time(_) => entry.alarms().time = None,
                By::Clock(_) => entry.alarms().clock = None,
            }
            arm(entry, next, (time, clock), hash, &key)?;
            if entry.is_empty() {
                let_go(entries, (time, clock), hash, &key);
            }
        }
        if all {
            return Ok(Fired::All);
        }
        if cx.is_full() {
            break;
        }
    }
    Ok(Fired::More)
}
