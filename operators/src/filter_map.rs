//! `filter_map`: at most one value out for every value in.

use millstream_runtime::record::Data;
use millstream_runtime::stream::Stream;

use crate::flat_map::FlatMap;

/// Adds `filter_map` to streams.
pub trait FilterMapExt<T: Data> {
    /// Maps, and leaves out what maps to `None`.
    ///
    /// ```no_run
    /// # use millstream_runtime::stream::Stream;
    /// # use millstream_operators::filter_map::FilterMapExt;
    /// # fn example(words: Stream<String>) {
    /// let numbers: Stream<u64> = words.filter_map(|word| word.parse().ok());
    /// # }
    /// ```
    #[must_use]
    fn filter_map<U: Data>(self, function: impl FnMut(T) -> Option<U> + Clone + Send + 'static) -> Stream<U>;
}

impl<T: Data> FilterMapExt<T> for Stream<T> {
    fn filter_map<U: Data>(self, function: impl FnMut(T) -> Option<U> + Clone + Send + 'static) -> Stream<U> {
        self.stage("filter_map", FlatMap::new(function))
    }
}
