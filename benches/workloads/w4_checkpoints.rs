//! W4: W2 with a million keys and a checkpoint every second, beside the same without checkpoints.
//!
//! Checkpoints are written to a temporary directory on the system's own disk and synced, so the device counts. Most of the
//! state changes between two of them: that is the dear case. A run that is shorter than two seconds shows nothing.

use crate::kit::Plan;
use crate::kit::event::{Keys, Stream};
use crate::kit::race::Race;
use crate::kit::report::Report;
use crate::w2_tumbling;

pub fn run(plan: Plan, report: &mut Report) {
    let (keys, events) = (Keys::Uniform(1_000_000), plan.scaled(60_000_000));
    let stream = Stream::new(keys, plan.scaled(5_000));
    let mut race = Race::new("w4", "", Some(keys), events);
    let without = race.add("no checkpoints", 2, &[], |workers| w2_tumbling::job(&stream, events, workers, None));
    race.add("millstream", 2, &[without], |workers| {
        let dir = tempfile::tempdir().expect("a temporary directory");
        w2_tumbling::job(&stream, events, workers, Some(dir.path()))
    });
    race.run(plan.brief(), report);
}
