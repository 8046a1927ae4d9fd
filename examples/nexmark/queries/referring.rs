//! A join without a window: records that refer to another one by its id, each with that one, whichever of the two comes
//! first.
//!
//! An id is given once, as those of persons and auctions are. So when the record with the id has come, those that refer to
//! it need not be kept, and it need not be kept itself where nobody wants it; it is only remembered that it was there. An
//! SQL engine that does not know of this keeps both sides.
//!
//! **State**: for every id, for ever, what is wanted of the record with that id, or that nothing is; before it has come,
//! what refers to it. **Time**: a pair happened when the later of the two did.

use millstream::prelude::*;
use millstream::state::snapshot::Value;
use serde::{Deserialize, Serialize};

/// Every record with the one it refers to, if something is wanted of that one. Both come with the id.
pub fn referring<A: Value, B: Value>(records: Stream<(u64, A)>, ids: Stream<(u64, Option<B>)>) -> Stream<(A, B)> {
    records
        .key_by(|(id, _)| *id)
        .connect(ids.key_by(|(id, _)| *id))
        .process_in_order(Referring)
        .name("referring")
}

#[derive(Clone)]
struct Referring;

/// What is known of an id.
#[derive(Clone, Serialize, Deserialize)]
enum Known<A, B> {
    /// Only what refers to it.
    Nothing(Vec<A>),
    /// What is wanted of its record.
    All(Option<B>),
}

impl<A: Value, B: Value> Process<u64, Either<(u64, A), (u64, Option<B>)>> for Referring {
    type State = Known<A, B>;
    type Out = (A, B);

    fn on_record(
        &mut self,
        cx: &mut ProcessContext<'_, u64, Known<A, B>, (A, B)>,
        value: &Either<(u64, A), (u64, Option<B>)>,
    ) -> Result<(), Error> {
        let known = cx.state().get_or_insert_with(|| Known::Nothing(Vec::new()));
        let mut pairs = Vec::new();
        match (value, known) {
            (Either::First((_, record)), Known::Nothing(waiting)) => waiting.push(record.clone()),
            (Either::First((_, record)), Known::All(wanted)) => {
                pairs.extend(wanted.clone().map(|wanted| (record.clone(), wanted)));
            }
            (Either::Second((_, wanted)), known) => {
                let before = std::mem::replace(known, Known::All(wanted.clone()));
                if let (Known::Nothing(waiting), Some(wanted)) = (before, wanted) {
                    pairs.extend(waiting.into_iter().map(|record| (record, wanted.clone())));
                }
            }
        }
        pairs.into_iter().for_each(|pair| cx.emit(pair));
        Ok(())
    }
}
