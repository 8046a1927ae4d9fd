//! Stateless operators, windows and aggregates, process functions and joins of Millstream.
//!
//! | operator | input | output | state | results depend on the order of records |
//! |---|---|---|---|---|
//! | [`map`](map::MapExt::map), [`try_map`](map::MapExt::try_map) | stream | stream | none | no |
//! | [`filter`](filter::FilterExt::filter) | stream | stream | none | no |
//! | [`filter_map`](filter_map::FilterMapExt::filter_map) | stream | stream | none | no |
//! | [`flat_map`](flat_map::FlatMapExt::flat_map) | stream | stream | none | no |
//! | [`inspect`](inspect::InspectExt::inspect) | stream | the same stream | none | no |
//! | [`split`](split::SplitExt::split), [`partition`](split::SplitExt::partition) | stream | two streams | none | no |
//! | [`call`](call::CallExt::call) | stream | stream, records that failed | none: it waits for what is in flight | no; what comes out is what the outside says |
//! | [`look_up`](call::look_up::LookUpExt::look_up) + [`inner`](call::look_up::LookedUp::inner) or [`left`](call::look_up::LookedUp::left) | stream | stream, records that failed | none; a cache that is in no checkpoint | no; what comes out is what the outside says |
//! | `union` ([`Stream::union`](millstream_runtime::stream::Stream::union)) | streams | stream | none | no |
//! | `key_by` ([`Stream::key_by`](millstream_runtime::stream::Stream::key_by)) | stream | keyed stream | none | no |
//! | [`fold`](fold::FoldExt::fold), [`reduce`](fold::FoldExt::reduce) | keyed stream | stream | one value a key | yes, by nature |
//! | [`process`](process::ProcessExt::process) | keyed stream | stream, late records | what the function keeps, timers | yes, by nature |
//! | [`process_in_order`](process::ProcessExt::process_in_order) | keyed stream | stream, late records | as `process`, and records that event time has not passed | no |
//! | `with_broadcast` + [`process_in_order`](process::BroadcastProcessExt::process_in_order), [`process`](process::BroadcastProcessExt::process) | keyed stream and broadcast stream | stream, late records | as above, and one value on every worker | in order no, otherwise yes |
//! | [`deduplicate`](deduplicate::DeduplicateExt::deduplicate) | keyed stream | stream, late records | as `process_in_order` | no |
//! | [`matches`](pattern::PatternExt::matches) | keyed stream | stream, late records | what has begun to match, and as `process_in_order` | no |
//! | `connect` ([`KeyedStream::connect`](millstream_runtime::stream::KeyedStream::connect)) | two keyed streams | keyed stream | none | no |
//! | [`interval_join`](join::IntervalJoinExt::interval_join) | two keyed streams | stream, late records | records that may still match, and as `process_in_order` | no |
//! | [`cogroup`](join::CoGroupExt::cogroup) + [`inner_join`](join::WindowJoinExt::inner_join) and others | two keyed streams in windows | stream, late records | the records of open windows | no |
//! | [`temporal_join`](join::TemporalJoinExt::temporal_join) | two keyed streams | stream, late records | the newest version of each key, and as `process_in_order` | no |
//! | [`top`](top::TopExt::top) | keyed stream | changes, late records | the first few of each key, and as `process_in_order` | no |
//! | [`window`](window::WindowExt::window) + [`aggregate`](window::WindowedStream::aggregate) | keyed stream | stream, late records | one accumulator a slice and key, or an open window and key | no |
//! | `window` of [`Several`](window::Several) kinds + `aggregate` | keyed stream | stream, late records | one accumulator a slice and key, however many kinds there are | no |
//! | [`early`](window::WindowedStream::early), [`allowed_lateness`](window::WindowedStream::allowed_lateness) + `aggregate` | keyed stream | updates, late records | one accumulator a window and key | only how many updates there are |
//! | [`count_window`](window::CountWindowExt::count_window) + `aggregate` | keyed stream | stream, late records | accumulators of the records that count, and as `process_in_order` | no |
//! | [`into_table`](table::IntoTableExt::into_table), [`reduce`](table::Table::reduce), [`join`](table::Table::join), [`changes`](table::Table::changes) | streams | changes | all rows | only how many changes there are |
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod aggregate;
pub mod call;
pub mod deduplicate;
pub mod filter;
pub mod filter_map;
pub mod flat_map;
pub mod fold;
pub mod inspect;
pub mod join;
mod lateness;
pub mod map;
pub mod pattern;
pub mod process;
pub mod split;
pub mod table;
pub mod top;
mod waking;
pub mod window;
