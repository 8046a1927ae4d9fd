//! One number per key group: what an operator remembers of a group as a whole, such as how far it has fired.
//!
//! It is kept per group, not per worker, because groups that move to one worker may come from workers that had come
//! to different points.

use std::ops::Range;

use crate::key_group::{KEY_GROUPS, KeyGroup};
use crate::snapshot::{Frozen, Run, State, StoredEntry};
use crate::{Result, StateError};

/// A number per key group that only grows; `i64::MIN` at first.
#[derive(Debug)]
pub struct GroupMarks {
    marks: [i64; KEY_GROUPS as usize],
    owned: Range<u32>,
    dirty: bool,
}

impl GroupMarks {
    /// Marks for the groups that this worker owns.
    pub fn new(owned: Range<u32>) -> Self {
        GroupMarks { marks: [i64::MIN; KEY_GROUPS as usize], owned, dirty: false }
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

    fn track(&mut self) {}

    fn freeze(&mut self) -> Option<Box<dyn Frozen>> {
        if !std::mem::take(&mut self.dirty) {
            return None;
        }
        let marks = self.owned.clone().map(|group| (group as KeyGroup, self.marks[group as usize])).collect();
        Some(Box::new(FrozenMarks(marks)))
    }

    fn restore(&mut self, entry: StoredEntry<'_>) -> Result<()> {
        let Ok(mark) = <[u8; 8]>::try_from(entry.value) else {
            let reason = format!("{} bytes instead of 8", entry.value.len());
            return Err(StateError::Codec { what: "a mark".into(), reason });
        };
        self.marks[usize::from(entry.group)] = i64::from_le_bytes(mark);
        Ok(())
    }

    fn entries(&self) -> u64 {
        0
    }
}

struct FrozenMarks(Vec<(KeyGroup, i64)>);

impl Frozen for FrozenMarks {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn encode(self: Box<Self>, run: &mut Run) -> Result<()> {
        for (group, mark) in &self.0 {
            let value = |out: &mut Vec<u8>| {
                out.extend_from_slice(&mark.to_le_bytes());
                Ok(())
            };
            run.push(*group, |_| Ok(()), Some(value))?;
        }
        Ok(())
    }
}
