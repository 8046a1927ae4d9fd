//! `split`: a main output and a side output.

use std::marker::PhantomData;

use millstream_runtime::operator::{Divider, Side};
use millstream_runtime::record::Data;
use millstream_runtime::stream::Stream;

/// Sends every value to one of two outputs.
#[derive(Debug)]
struct Split<T, A, B, F> {
    choose: F,
    types: PhantomData<fn(T) -> (A, B)>,
}

impl<T, A, B, F: Clone> Clone for Split<T, A, B, F> {
    fn clone(&self) -> Self {
        Split { choose: self.choose.clone(), types: PhantomData }
    }
}

impl<T: Data, A: Data, B: Data, F: FnMut(T) -> Side<A, B> + Send + 'static> Divider for Split<T, A, B, F> {
    type In = T;
    type Main = A;
    type Side = B;

    fn divide(&mut self, value: T) -> Side<A, B> {
        (self.choose)(value)
    }
}

/// Adds `split` and `partition` to streams.
pub trait SplitExt<T: Data> {
    /// Sends every value to the main output or to the side output, as a type of its own each.
    ///
    /// ```no_run
    /// # use millstream_runtime::{operator::Side, stream::Stream};
    /// # use millstream_operators::split::SplitExt;
    /// # fn example(words: Stream<String>) {
    /// let (numbers, words): (Stream<u64>, Stream<String>) = words.split(|word| match word.parse() {
    ///     Ok(number) => Side::Main(number),
    ///     Err(_) => Side::Side(word),
    /// });
    /// # }
    /// ```
    #[must_use]
    fn split<A: Data, B: Data>(
        self,
        choose: impl FnMut(T) -> Side<A, B> + Clone + Send + 'static,
    ) -> (Stream<A>, Stream<B>);

    /// The values for which `predicate` holds, and the others.
    ///
    /// ```no_run
    /// # use millstream_runtime::stream::Stream;
    /// # use millstream_operators::split::SplitExt;
    /// # fn example(numbers: Stream<u64>) {
    /// let (even, odd) = numbers.partition(|number| number % 2 == 0);
    /// # }
    /// ```
    #[must_use]
    fn partition(self, predicate: impl FnMut(&T) -> bool + Clone + Send + 'static) -> (Stream<T>, Stream<T>);
}

impl<T: Data> SplitExt<T> for Stream<T> {
    fn split<A: Data, B: Data>(
        self,
        choose: impl FnMut(T) -> Side<A, B> + Clone + Send + 'static,
    ) -> (Stream<A>, Stream<B>) {
        self.divide("split", Split { choose, types: PhantomData })
    }

    fn partition(self, mut predicate: impl FnMut(&T) -> bool + Clone + Send + 'static) -> (Stream<T>, Stream<T>) {
        self.split(move |value| if predicate(&value) { Side::Main(value) } else { Side::Side(value) })
    }
}
