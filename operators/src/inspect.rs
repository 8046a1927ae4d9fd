//! `inspect`: looks at values as they pass.

use millstream_runtime::record::Data;
use millstream_runtime::stream::Stream;

use crate::map::MapExt;

/// Adds `inspect` to streams.
pub trait InspectExt<T: Data> {
    /// Calls `look` with every value and passes it on unchanged. After a crash, values since the last checkpoint are seen
    /// again.
    ///
    /// ```no_run
    /// # use millstream_runtime::stream::Stream;
    /// # use millstream_operators::inspect::InspectExt;
    /// # fn example(numbers: Stream<u64>) {
    /// let same: Stream<u64> = numbers.inspect(|number| println!("{number}"));
    /// # }
    /// ```
    #[must_use]
    fn inspect(self, look: impl FnMut(&T) + Clone + Send + 'static) -> Stream<T>;
}

impl<T: Data> InspectExt<T> for Stream<T> {
    fn inspect(self, mut look: impl FnMut(&T) + Clone + Send + 'static) -> Stream<T> {
        self.map(move |value| {
            look(&value);
            value
        })
    }
}
