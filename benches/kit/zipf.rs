//! Zipf keys in integers only, so that every language draws the same ones; defined in `benches/README.md`.
//!
//! Exponent 1, in steps: rank `i` (from 1) has the weight `floor(2^40 / t(i))`, where `t` keeps the six highest bits of `i` and
//! clears the rest. Ranks of equal `t` are a step. Up to rank 63 each step is one rank, so the keys that matter have their
//! exact weights; behind, a weight is off by 3 % at most.

/// Draws keys `0..keys`, of which key 0 is the most frequent.
#[derive(Debug)]
pub struct Zipf {
    steps: Vec<Step>,
    total: u64,
    /// For each stretch of `1 << shift` in the sum of weights, the step at its beginning: where the search starts.
    guide: Vec<u32>,
    shift: u32,
}

/// Ranks of equal weight that follow one another.
#[derive(Debug)]
struct Step {
    /// The sum of the weights of all ranks before.
    before: u64,
    weight: u64,
    first_rank: u64,
}

impl Zipf {
    pub fn new(keys: u64) -> Self {
        let (mut steps, mut total, mut first_rank) = (Vec::new(), 0, 1);
        while first_rank <= keys {
            let width = 1 << (first_rank.ilog2().saturating_sub(5));
            let weight = (1 << 40) / first_rank;
            steps.push(Step { before: total, weight, first_rank });
            total += weight * width.min(keys + 1 - first_rank);
            first_rank += width;
        }
        let shift = (u64::BITS - total.leading_zeros()).saturating_sub(12);
        let guide = (0..=total >> shift)
            .map(|stretch| (steps.partition_point(|step| step.before <= stretch << shift) - 1) as u32)
            .collect();
        Zipf { steps, total, guide, shift }
    }

    /// The key that belongs to a random number.
    #[inline]
    pub fn key(&self, random: u64) -> u64 {
        let u = random % self.total;
        let mut at = self.guide[(u >> self.shift) as usize] as usize;
        while self.steps.get(at + 1).is_some_and(|next| next.before <= u) {
            at += 1;
        }
        let step = &self.steps[at];
        step.first_rank - 1 + (u - step.before) / step.weight
    }
}
