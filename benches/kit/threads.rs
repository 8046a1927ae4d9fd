//! Threads, and sums over them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Calls `f(p)` on a thread of its own for each `p` of `threads`, and adds up what they return.
pub fn sum_of(threads: usize, f: impl Fn(usize) -> u64 + Sync) -> u64 {
    std::thread::scope(|scope| {
        let f = &f;
        let running: Vec<_> = (0..threads).map(|p| scope.spawn(move || f(p))).collect();
        running.into_iter().map(|thread| thread.join().expect("no panic")).fold(0, u64::wrapping_add)
    })
}

/// A sum over the workers of a job. Each adds to its own part and hands it over when it is dropped, so that counting costs
/// little.
pub fn shared_sum() -> (Arc<AtomicU64>, impl FnMut(u64) + Clone + Send + 'static) {
    struct Part(Arc<AtomicU64>, u64);
    impl Clone for Part {
        fn clone(&self) -> Self {
            Part(Arc::clone(&self.0), 0)
        }
    }
    impl Drop for Part {
        fn drop(&mut self) {
            let (sum, part) = (&self.0, self.1);
            let _ = sum.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |sum| Some(sum.wrapping_add(part)));
        }
    }
    let total = Arc::new(AtomicU64::new(0));
    let mut part = Part(Arc::clone(&total), 0);
    (total, move |value| {
        let part = &mut part;
        part.1 = part.1.wrapping_add(value);
    })
}
