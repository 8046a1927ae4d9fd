//! Key groups: the unit in which keyed state is sharded, and moved when the number of workers changes.

use std::ops::Range;

/// One of a job's key groups. Their number is fixed for the job's life, so that any number of workers up to it can
/// share them out.
pub type KeyGroup = u16;

/// How many key groups a job has.
pub const KEY_GROUPS: u32 = 128;

/// The group of a key with this hash. Uses bits that hash tables do not: they take the lowest and the highest ones.
#[inline(always)]
pub fn group_of(hash: u64) -> KeyGroup {
    ((((hash >> 40) & 0xffff) * u64::from(KEY_GROUPS)) >> 16) as KeyGroup
}

/// The worker, of `workers`, that owns `group`.
#[inline(always)]
pub fn worker_of(group: KeyGroup, workers: usize) -> usize {
    (usize::from(group) * workers) / KEY_GROUPS as usize
}

/// The groups that `worker`, of `workers`, owns: empty when there are more workers than groups.
pub fn groups_of(worker: usize, workers: usize) -> Range<u32> {
    let groups = KEY_GROUPS as usize;
    let first = |worker: usize| (worker * groups).div_ceil(workers) as u32;
    first(worker)..first(worker + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_group_has_exactly_one_worker() {
        for workers in [1, 2, 3, 5, 8, 127, 128, 200] {
            let mut owners = vec![0; KEY_GROUPS as usize];
            for worker in 0..workers {
                for group in groups_of(worker, workers) {
                    owners[group as usize] += 1;
                    assert_eq!(worker_of(group as KeyGroup, workers), worker);
                }
            }
            assert!(owners.iter().all(|owners| *owners == 1), "{workers} workers");
        }
    }
}
