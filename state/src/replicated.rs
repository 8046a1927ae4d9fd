//! One value that every worker keeps as a whole, for what all keys have to know.
//!
//! Every worker writes its own copy into checkpoints, under a number that belongs to the first of its key groups. Workers may have come
//! to different points when a checkpoint was taken; so all of them read all copies, and go on with the one that has come least
//! far, whatever the number of workers was and is.

use std::ops::Range;

use crate::Result;
use crate::codec;
use crate::evolve::Migrations;
use crate::hash::hash_key;
use crate::key_group::{KeyGroup, group_of};
use crate::keyed::{self, KeyedState};
use crate::migrate::StateForm;
use crate::reader::{Holds, Reader};
use crate::snapshot::{Frozen, State, StoredEntry};

/// What every worker can keep a copy of.
pub trait Replica: Holds {
    /// How far it has come. The copy that has come least far must hold all that others were given, so that it can get
    /// there as well.
    fn progress(&self) -> i64;
}

/// See the module.
#[derive(Debug)]
pub struct Replicated<V> {
    copies: KeyedState<u32, V>,
    owned: Range<u32>,
    /// Under what its own copy is stored, with the hash of that.
    own: (u64, u32),
    /// Of the copies that were read: the one that has come least far, with its group.
    least: Option<(i64, KeyGroup, V)>,
    /// The numbers of those that were stored in groups of its own.
    stored: Vec<u32>,
}

/// The least number that belongs to a group.
fn number_of(group: u32) -> u32 {
    (0..u32::MAX).find(|number| u32::from(group_of(hash_key(number))) == group).unwrap_or_default()
}

impl<V: Replica> Replicated<V> {
    /// Nothing yet, for a worker that owns these groups.
    pub fn new(owned: Range<u32>) -> Self {
        let number = if owned.is_empty() { 0 } else { number_of(owned.start) };
        let own = (hash_key(&number), number);
        Replicated { copies: KeyedState::default(), owned, own, least: None, stored: Vec::new() }
    }

    /// Whether it belongs to the first worker: where one is to speak for all.
    pub fn is_first(&self) -> bool {
        self.owned.start == 0
    }

    /// The value.
    pub fn get(&self) -> Option<&V> {
        self.copies.get(self.own.0, &self.own.1)
    }

    /// The value, to be changed.
    pub fn update(&mut self, create: impl FnOnce() -> V) -> &mut V {
        self.copies.update(self.own.0, &self.own.1, create)
    }
}

impl<V: Replica> State for Replicated<V> {
    fn shape(&self) -> String {
        format!("`{}` on every worker", std::any::type_name::<V>())
    }

    fn readers(&self) -> Vec<Reader> {
        vec![Reader::keyed_with_part::<u32, V>()]
    }

    fn forms(&self, migrations: &Migrations) -> Vec<StateForm> {
        self.copies.forms(migrations)
    }

    /// A worker without key groups has no place for its copy, and needs none.
    fn track(&mut self) {
        if !self.owned.is_empty() {
            self.copies.track();
        }
    }

    fn begin_freeze(&mut self) {
        if !self.owned.is_empty() {
            self.copies.begin_freeze();
        }
    }

    fn copy_some(&mut self, most: &mut usize) -> bool {
        self.copies.copy_some(most)
    }

    fn take_frozen(&mut self) -> Option<Box<dyn Frozen>> {
        self.copies.take_frozen()
    }

    fn replicated(&self) -> Option<u8> {
        Some(0)
    }

    fn restore(&mut self, entry: StoredEntry<'_>) -> Result<()> {
        keyed::each_row(entry, |key, value| {
            let (_, number) = entry.decode_key::<u32>(key)?;
            let copy: V = codec::decode(value)?;
            let place = (copy.progress(), entry.group);
            if self.least.as_ref().is_none_or(|(progress, group, _)| place < (*progress, *group)) {
                self.least = Some((place.0, place.1, copy));
            }
            if self.owned.contains(&u32::from(entry.group)) {
                self.stored.push(number);
            }
            Ok(())
        })?;
        if self.owned.contains(&u32::from(entry.group)) { self.copies.restore(entry) } else { Ok(()) }
    }

    fn restored(&mut self) {
        let Some((_, group, least)) = self.least.take() else { return };
        for number in self.stored.drain(..).filter(|number| *number != self.own.1) {
            self.copies.remove(hash_key(&number), &number);
        }
        // What it wrote itself is stored already.
        if self.get().is_none() || u32::from(group) != self.owned.start {
            self.copies.remove(self.own.0, &self.own.1);
            self.update(|| least);
        }
    }

    fn entries(&self) -> u64 {
        self.copies.entries()
    }

    fn bytes(&self) -> usize {
        self.copies.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key_group::{KEY_GROUPS, groups_of};
    use crate::rocks::Next;
    use crate::rocks::tests::{Disk, OPERATOR};
    use proptest::prelude::*;
    use serde::{Deserialize, Serialize};

    /// Numbers that all are told, of which each has added up so many.
    #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
    struct Sum {
        told: Vec<u64>,
        added: usize,
        sum: u64,
    }

    impl Holds for Sum {
        type Part = u64;

        fn part(self) -> Option<u64> {
            Some(self.sum)
        }
    }

    impl Replica for Sum {
        fn progress(&self) -> i64 {
            self.added as i64
        }
    }

    impl Sum {
        fn advance(&mut self, to: usize) {
            for number in &self.told[self.added.min(to)..to] {
                self.sum += number;
            }
            self.added = self.added.max(to);
        }
    }

    fn worker(worker: usize, workers: usize, disk: &Disk) -> Replicated<Sum> {
        let groups = groups_of(worker, workers);
        let mut state = Replicated::new(groups);
        state.track();
        // As the driver does: copies from everywhere.
        let each = |entry: StoredEntry<'_>| state.restore(entry).map(|()| Next::Entry);
        disk.db.walk(OPERATOR, 0..KEY_GROUPS, each).unwrap();
        state.restored();
        state
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Workers are told the same and come to different points; after a restart with any number of them all are at the same, and
        /// get to the end.
        #[test]
        fn all_workers_go_on_from_the_one_that_has_come_least_far(
            runs in prop::collection::vec((1..9usize, prop::collection::vec(any::<u32>(), 0..5), any::<u64>(), any::<bool>()), 1..8),
        ) {
            let mut disk = Disk::new();
            let (mut told, mut saved) = (Vec::new(), None::<(Vec<u64>, usize)>);
            for (workers, numbers, seed, save) in runs {
                let mut all: Vec<_> = (0..workers).map(|number| worker(number, workers, &disk)).collect();
                for state in &all {
                    let found = state.get().map(|sum| (sum.told.clone(), sum.added, sum.sum));
                    let expected = saved.clone().map(|(told, added)| {
                        let sum = told[..added].iter().sum();
                        (told, added, sum)
                    });
                    prop_assert_eq!(found, expected);
                }
                if let Some((saved, _)) = &saved {
                    told.clone_from(saved);
                }
                told.extend(numbers.iter().map(|number| u64::from(*number)));
                let mut least = usize::MAX;
                for (number, state) in all.iter_mut().enumerate() {
                    let sum = state.update(Sum::default);
                    sum.told.clone_from(&told);
                    sum.advance(sum.added.max(hash_key(&(seed, number)) as usize % (told.len() + 1)));
                    least = least.min(sum.added);
                }
                if save {
                    all.iter_mut().for_each(|state| disk.save(state));
                    saved = Some((told.clone(), least));
                    let mut copies = 0;
                    disk.db.walk(OPERATOR, 0..KEY_GROUPS, |_| {
                        copies += 1;
                        Ok(Next::Entry)
                    }).unwrap();
                    prop_assert_eq!(copies, workers, "one for each worker, and none of workers that were");
                } else if saved.is_none() {
                    told.clear();
                }
            }
        }
    }

    #[test]
    fn a_worker_without_groups_has_its_copy_but_writes_none() {
        let mut disk = Disk::new();
        let mut first = worker(0, 200, &disk);
        first.update(Sum::default).told.push(1);
        disk.save(&mut first);
        // Of the last one the groups begin where there are none.
        for number in (0..200).filter(|number| groups_of(*number, 200).is_empty()) {
            let mut idle = worker(number, 200, &disk);
            assert_eq!(idle.get().unwrap().told, [1]);
            idle.update(Sum::default).told.push(2);
            assert!(crate::rocks::tests::freeze(&mut idle).is_none());
        }
    }
}
