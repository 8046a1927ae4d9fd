//! One number per key group: what an operator remembers of a group as a whole, such as how far it has fired.
//!
//! It is kept per group, not per worker, because groups that move to one worker may come from workers that had come
//! to different points.

use std::ops::Range;

use crate::evolve::Migrations;
use crate::key_group::{KEY_GROUPS, KeyGroup};
use crate::migrate::StateForm;
use crate::reader::Reader;
use crate::snapshot::{Change, Frozen, Run, State, StoredEntry};
use crate::{Result, StateError};

/// What this kind of state is called in manifests.
pub(crate) const MARKS: &str = "marks";

/// A number per key group that only grows; `i64::MIN` at first.
#[derive(Debug)]
pub struct GroupMarks {
    marks: [i64; KEY_GROUPS as usize],
    owned: Range<u32>,
    dirty: bool,
    frozen: Option<FrozenMarks>,
}

impl GroupMarks {
    /// Marks for the groups that this worker owns.
    pub fn new(owned: Range<u32>) -> Self {
        GroupMarks { marks: [i64::MIN; KEY_GROUPS as usize], owned, dirty: false, frozen: None }
    }

    /// The mark of one group.
    pub fn get(&self, group: KeyGroup) -> i64 {
        self.marks[usize::from(group)]
    }

    /// The least and the greatest mark of the owned groups.
    pub fn bounds(&self) -> (i64, i64) {
        let owned = &self.marks[self.owned.start as usize..self.owned.end as usize];
        let least = owned.iter().min().copied().unwrap_or(i64::MIN);
        (least, owned.iter().max().copied().unwrap_or(i64::MIN))
    }

    /// Raises the mark of every owned group that is below `mark`.
    pub fn raise(&mut self, mark: i64) {
        for own in &mut self.marks[self.owned.start as usize..self.owned.end as usize] {
            if *own < mark {
                *own = mark;
                self.dirty = true;
            }
        }
    }
}

impl State for GroupMarks {
    fn shape(&self) -> String {
        "a mark per key group".into()
    }

    fn readers(&self) -> Vec<Reader> {
        vec![Reader::marks()]
    }

    fn forms(&self, _: &Migrations) -> Vec<StateForm> {
        vec![StateForm::plain(MARKS)]
    }

    fn track(&mut self) {}

    fn begin_freeze(&mut self) {
        if std::mem::take(&mut self.dirty) {
            let marks = self.owned.clone().map(|group| (group as KeyGroup, self.marks[group as usize]));
            self.frozen = Some(FrozenMarks(marks.collect()));
        }
    }

    fn copy_some(&mut self, _most: &mut usize) -> bool {
        true
    }

    fn take_frozen(&mut self) -> Option<Box<dyn Frozen>> {
        Some(Box::new(self.frozen.take()?))
    }

    fn restore(&mut self, entry: StoredEntry<'_>) -> Result<()> {
        self.marks[usize::from(entry.group)] = mark_of(entry.value)?;
        Ok(())
    }

    fn entries(&self) -> u64 {
        0
    }

    fn bytes(&self) -> usize {
        size_of::<Self>()
    }
}

/// A stored mark.
pub(crate) fn mark_of(value: &[u8]) -> Result<i64> {
    let Ok(mark) = <[u8; 8]>::try_from(value) else {
        let reason = format!("{} bytes instead of 8", value.len());
        return Err(StateError::Codec { what: "a mark".into(), reason });
    };
    Ok(i64::from_le_bytes(mark))
}

#[derive(Debug)]
struct FrozenMarks(Vec<(KeyGroup, i64)>);

impl Frozen for FrozenMarks {
    fn encode(self: Box<Self>, run: &mut Run) -> Result<()> {
        for (group, mark) in &self.0 {
            run.push(*group, &[], Change::Put(&mark.to_le_bytes()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key_group::{groups_of, worker_of};
    use crate::rocks::tests::Disk;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Several workers raise their marks at different paces; what they froze last comes back to any number of workers.
        #[test]
        fn marks_come_back_to_other_workers(
            before in 1..6usize,
            after in 1..6usize,
            raises in prop::collection::vec((0..6usize, prop_oneof![any::<i64>(), Just(i64::MIN), Just(i64::MAX), -9..9i64], any::<bool>()), 0..30),
        ) {
            let mut disk = Disk::new();
            let mut marks: Vec<_> = (0..before).map(|worker| GroupMarks::new(groups_of(worker, before))).collect();
            let (mut model, mut saved) = (vec![i64::MIN; before], vec![i64::MIN; before]);
            for (worker, mark, freeze) in raises {
                let worker = worker % before;
                marks[worker].raise(mark);
                model[worker] = model[worker].max(mark);
                assert_eq!(marks[worker].bounds(), (model[worker], model[worker]));
                if freeze {
                    disk.save(&mut marks[worker]);
                    saved[worker] = model[worker];
                }
            }
            for worker in 0..after {
                let groups = groups_of(worker, after);
                let restored = disk.load(GroupMarks::new(groups.clone()), groups.clone());
                let expected = |group: u32| saved[worker_of(group as KeyGroup, before)];
                for group in groups.clone() {
                    assert_eq!(restored.get(group as KeyGroup), expected(group));
                }
                let bounds = (groups.clone().map(expected).min().unwrap(), groups.map(expected).max().unwrap());
                assert_eq!(restored.bounds(), bounds);
            }
        }
    }

    #[test]
    fn a_worker_without_groups_has_no_marks() {
        let mut marks = GroupMarks::new(5..5);
        marks.raise(7);
        assert_eq!(marks.bounds(), (i64::MIN, i64::MIN));
        marks.begin_freeze();
        assert!(marks.take_frozen().is_none());
    }

    #[test]
    fn a_mark_of_another_length_is_refused() {
        let mut marks = GroupMarks::new(0..128);
        assert!(marks.restore(StoredEntry { group: 3, state: 0, key: &[], value: &[1, 2, 3] }).is_err());
    }
}
