//! One window for all of a key's records.

use millstream_runtime::error::Result;
use millstream_runtime::record::Data;
use millstream_runtime::time::EventTime;

use super::{Assigned, Window, Windows};

/// All records of a key are in one window, which ends with the input. Before that it has results only where
/// [early ones](super::WindowedStream::early) are asked for.
///
/// ```no_run
/// # use millstream_runtime::stream::Stream;
/// # use millstream_operators::{aggregate::Count, window::{Early, Global, Update, WindowExt}};
/// # #[derive(Clone)] struct Click { page: String }
/// # fn example(clicks: Stream<Click>) {
/// let every_thousand: Stream<Update<String, u64>> = clicks
///     .key_by(|click| click.page.clone())
///     .window(Global)
///     .early(Early::count(1_000))
///     .aggregate(Count);
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Global;

impl<T: Data> Windows<T> for Global {
    fn kind(&self) -> &'static str {
        "global window"
    }

    fn describe(&self) -> String {
        "one window for all".to_string()
    }

    fn assign(&self, _: EventTime, _: &T, windows: &mut Assigned) -> Result<()> {
        windows.add(Window { start: EventTime::MIN, end: EventTime::MAX });
        Ok(())
    }
}
