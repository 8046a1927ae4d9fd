//! A hint to the processor. The only file with unsafe code.

/// The bytes of a cache line.
const LINE: usize = 64;

/// Has the processor fetch `place`, up to its second cache line, while other things are done. Nothing depends on it but time.
#[inline(always)]
#[allow(unsafe_code)]
pub(crate) fn prefetch<T>(place: &T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let first = std::ptr::from_ref(place).cast::<i8>();
        let last = first.wrapping_add(size_of::<T>().clamp(1, LINE) - 1);
        // SAFETY: every x86-64 processor has this instruction. It reads and writes nothing that the program can see, and does
        // not fault at any address; these ones lie in what a reference refers to besides.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(first);
            _mm_prefetch::<_MM_HINT_T0>(last);
        }
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = place;
}
