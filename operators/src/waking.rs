//! Keys that wait for event time: what is kept for each, and when it is to be looked at.

use std::ops::Range;

use millstream_runtime::error::{Error, Result};
use millstream_runtime::operator::{Context, Fired};
use millstream_runtime::record::Data;
use millstream_runtime::time::EventTime;
use millstream_state::groups::GroupMarks;
use millstream_state::key_group::group_of;
use millstream_state::keyed::KeyedState;
use millstream_state::snapshot::{Key, Value};
use millstream_state::timers::Timers;

/// What is kept for a key that waits.
pub(crate) trait Waits: Value {
    /// When the key will be woken, at the latest. Kept with the rest, for [`arm`] and [`fire`] alone.
    fn wake(&mut self) -> &mut Option<EventTime>;
    /// Whether there is nothing to keep.
    fn is_empty(&self) -> bool;
}

/// What is kept by key, when keys are to be woken, and how far each key group has come.
pub(crate) type WakingState<K, E> = (KeyedState<K, E>, Timers<K>, GroupMarks);

pub(crate) fn state<K: Key, E: Waits>(groups: Range<u32>) -> WakingState<K, E> {
    (KeyedState::default(), Timers::default(), GroupMarks::new(groups))
}

/// The event time that a number stands for: in timers, or as a mark.
pub(crate) fn times<K: Key>(state: usize, number: i64) -> Option<Range<EventTime>> {
    let Range { start, end } = if state == 1 { Timers::<K>::times(number) } else { i64::MIN..number };
    Some(EventTime::from_micros(start)..EventTime::from_micros(end))
}

/// Has a key woken in time for `next`, the event time that it waits for now, if it does.
pub(crate) fn arm<K: Key>(
    entry: &mut impl Waits,
    next: Option<EventTime>,
    timers: &mut Timers<K>,
    hash: u64,
    key: &K,
) -> Result<()> {
    if let Some(next) = next
        && entry.wake().is_none_or(|wake| next < wake)
    {
        *entry.wake() = Some(next);
        timers.wake(next.micros(), hash, key).map_err(Error::read_back)?;
    }
    Ok(())
}

/// How many keys are woken together: those that are not in memory are read together.
const TOGETHER: usize = 1024;

/// How often that is done before others have their turn.
const ROUNDS: usize = 16;

/// Wakes the keys whose time has come. `each` does what is due for a key, is told how far event time had come for it before, and says what it
/// waits for next; a key that has nothing to keep afterwards is gone.
pub(crate) fn fire<K: Key, E: Waits, In: Data, Out: Data>(
    cx: &mut Context<In, Out>,
    (entries, timers, marks): &mut WakingState<K, E>,
    watermark: EventTime,
    mut each: impl FnMut(&mut Context<In, Out>, &K, &mut E, EventTime) -> Result<Option<EventTime>>,
) -> Result<Fired> {
    for _ in 0..ROUNDS {
        let mut woken = Vec::new();
        let due = timers.due(watermark.micros(), TOGETHER, |hash, key| woken.push((hash, key)));
        let all = due.map_err(Error::read_back)?;
        entries.load(woken.iter().map(|(hash, key)| (*hash, key))).map_err(Error::read_back)?;
        for (hash, key) in woken {
            let Some(entry) = entries.get_mut(hash, &key) else { continue };
            let since = EventTime::from_micros(marks.get(group_of(hash)));
            let next = each(cx, &key, entry, since)?;
            // Whatever timers there were are gone.
            *entry.wake() = None;
            arm(entry, next, timers, hash, &key)?;
            if entry.is_empty() {
                entries.remove(hash, &key);
            }
        }
        if all {
            marks.raise(watermark.micros());
            return Ok(Fired::All);
        }
        if cx.is_full() {
            break;
        }
    }
    Ok(Fired::More)
}
