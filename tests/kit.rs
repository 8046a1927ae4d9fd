//! The test kit: all operators under it, and the kit itself.

use millstream::prelude::*;
use millstream::testing::*;

#[test]
fn tumbling_windows() {
    let (kit, input, (counts, late)) = Kit::of(|input: Stream<(&'static str, i64)>| {
        input
            .key_by(|(who, _)| who.to_string())
            .window(Tumbling::of(EventSpan::secs(10)))
            .aggregate_with_late(Sum::of(|(_, cents): &(&str, i64)| *cents))
    });
    let t = std::time::Instant::now();
    let script = [
        input.at(3, ("ann", 5)),
        input.at(12, ("ann", 7)),
        input.at(4, ("ann", 1)),
        counts.expect([]),
        input.watermark(13),
        expect_watermark(13),
        counts.expect_at([(EventTime::from_micros(9_999_999), ("ann".to_string(), window(0, 10), 6))]),
        input.at(5, ("bob", 9)),
        late.expect([("bob", 9)]),
        input.at(11, ("bob", 9)),
        input.end(),
        counts.expect([("ann".to_string(), window(10, 20), 7), ("bob".to_string(), window(10, 20), 9)]),
    ];
    kit.in_all_modes(script);
    println!("{:?}", t.elapsed());
}
