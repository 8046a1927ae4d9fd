//! Days, weeks, months and years in a few time zones, with nothing but a list of when clocks were put forward or back, and counting of days.

use std::collections::BTreeSet;

use millstream::prelude::*;
use proptest::prelude::*;

use super::trial::{Case, late_case};
use super::{Judged, Windowed};

const MINUTE: i64 = 60_000_000;
const DAY: i64 = 24 * 60 * MINUTE;

/// A time zone in a few years, as the IANA database has it: how many minutes its clocks were ahead of UTC, and from when on how many else.
struct Zone {
    name: &'static str,
    ahead: i64,
    changes: &'static [(&'static str, i64)],
}

const ZONES: [Zone; 7] = [
    Zone {
        name: "Europe/Berlin",
        ahead: 60,
        changes: &[
            ("2023-03-26T01:00:00Z", 120),
            ("2023-10-29T01:00:00Z", 60),
            ("2024-03-31T01:00:00Z", 120),
            ("2024-10-27T01:00:00Z", 60),
            ("2025-03-30T01:00:00Z", 120),
            ("2025-10-26T01:00:00Z", 60),
        ],
    },
    Zone {
        name: "America/New_York",
        ahead: -300,
        changes: &[
            ("2023-03-12T07:00:00Z", -240),
            ("2023-11-05T06:00:00Z", -300),
            ("2024-03-10T07:00:00Z", -240),
            ("2024-11-03T06:00:00Z", -300),
            ("2025-03-09T07:00:00Z", -240),
            ("2025-11-02T06:00:00Z", -300),
        ],
    },
    // From midnight to one and back.
    Zone {
        name: "America/Havana",
        ahead: -300,
        changes: &[
            ("2023-03-12T05:00:00Z", -240),
            ("2023-11-05T05:00:00Z", -300),
            ("2024-03-10T05:00:00Z", -240),
            ("2024-11-03T05:00:00Z", -300),
            ("2025-03-09T05:00:00Z", -240),
            ("2025-11-02T05:00:00Z", -300),
        ],
    },
    // From midnight back to the day before.
    Zone {
        name: "America/Sao_Paulo",
        ahead: -120,
        changes: &[
            ("2017-02-19T02:00:00Z", -180),
            ("2017-10-15T03:00:00Z", -120),
            ("2018-02-18T02:00:00Z", -180),
            ("2018-11-04T03:00:00Z", -120),
            ("2019-02-17T02:00:00Z", -180),
        ],
    },
    // From just after midnight back to the day before.
    Zone {
        name: "America/St_Johns",
        ahead: -150,
        changes: &[
            ("2009-11-01T02:31:00Z", -210),
            ("2010-03-14T03:31:00Z", -150),
            ("2010-11-07T02:31:00Z", -210),
            ("2011-03-13T03:31:00Z", -150),
            ("2011-11-06T04:30:00Z", -210),
        ],
    },
    // By half an hour.
    Zone {
        name: "Australia/Lord_Howe",
        ahead: 660,
        changes: &[
            ("2023-04-01T15:00:00Z", 630),
            ("2023-09-30T15:30:00Z", 660),
            ("2024-04-06T15:00:00Z", 630),
            ("2024-10-05T15:30:00Z", 660),
            ("2025-04-05T15:00:00Z", 630),
            ("2025-10-04T15:30:00Z", 660),
        ],
    },
    // It had no 30th of December 2011.
    Zone {
        name: "Pacific/Apia",
        ahead: -600,
        changes: &[
            ("2011-04-02T14:00:00Z", -660),
            ("2011-09-24T14:00:00Z", -600),
            ("2011-12-30T10:00:00Z", 840),
            ("2012-03-31T14:00:00Z", 780),
            ("2012-09-29T14:00:00Z", 840),
        ],
    },
];

/// The clocks of a zone: by how much they are ahead of UTC before the first instant, and from each of these on.
struct Clocks {
    instants: Vec<i64>,
    ahead: Vec<i64>,
}

impl Clocks {
    fn of(zone: &Zone) -> Self {
        let instant = |change: &(&str, i64)| change.0.parse::<EventTime>().expect("a time").micros();
        let ahead = [zone.ahead].into_iter().chain(zone.changes.iter().map(|change| change.1));
        Clocks {
            instants: zone.changes.iter().map(instant).collect(),
            ahead: ahead.map(|minutes| minutes * MINUTE).collect(),
        }
    }

    fn shown(&self, at: i64) -> i64 {
        at + self.ahead[self.instants.iter().take_while(|instant| **instant <= at).count()]
    }

    /// When they show this for the first time, or, when they never do, as much later as they were put forward.
    fn when(&self, shown: i64) -> i64 {
        let first = self.ahead.iter().map(|ahead| shown - ahead).filter(|at| self.shown(*at) == shown).min();
        first.unwrap_or_else(|| {
            let skipped = |number: &usize| {
                let from = self.instants[*number] + self.ahead[*number];
                from <= shown && shown < self.shown(self.instants[*number])
            };
            let put_forward = (0..self.instants.len()).find(skipped).expect("nothing else is never shown");
            shown - self.ahead[put_forward]
        })
    }
}

#[derive(Clone, Copy, Debug)]
enum Unit {
    Days,
    Weeks,
    WeeksFromSunday,
    Months,
    Years,
}

/// The days of some years, by their number from the 1st of January 1970, a Thursday, on which something begins.
fn first_days(unit: Unit) -> Vec<i64> {
    let (mut number, mut first_days) = (14_245, Vec::new());
    for year in 2009..2028 {
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let days = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        for (month, days) in days.into_iter().enumerate() {
            for day in 0..days {
                let begins = match unit {
                    Unit::Days => true,
                    Unit::Weeks => number % 7 == 4,
                    Unit::WeeksFromSunday => number % 7 == 3,
                    Unit::Months => day == 0,
                    Unit::Years => day == 0 && month == 0,
                };
                first_days.extend(begins.then_some(number));
                number += 1;
            }
        }
    }
    first_days
}

/// A case with records around a day on which clocks were put forward or back, and its windows.
#[derive(Clone, Debug)]
pub struct CalendarCase {
    pub case: Case,
    zone: usize,
    unit: Unit,
    hour: u8,
    minute: u8,
}

pub fn calendar_case() -> impl Strategy<Value = CalendarCase> {
    // A day begins at midnight, or when clocks are put forward or back, or at any time.
    let begin = prop_oneof![2 => Just((0u8, 0u8)), 1 => (0u8..4, Just(30u8)), 2 => (0u8..24, 0u8..60)];
    let units = prop_oneof![
        4 => Just(Unit::Days),
        1 => Just(Unit::Weeks),
        1 => Just(Unit::WeeksFromSunday),
        2 => Just(Unit::Months),
        1 => Just(Unit::Years),
    ];
    (late_case(3, 80), 0..ZONES.len(), 1usize..5, units, begin).prop_map(
        |(mut case, zone, change, unit, (hour, minute))| {
            let scale = match unit {
                Unit::Days => 37 * MINUTE,
                Unit::Weeks | Unit::WeeksFromSunday => 5 * 60 * MINUTE,
                Unit::Months | Unit::Years => 12 * 60 * MINUTE,
            };
            let instants = Clocks::of(&ZONES[zone]).instants;
            let middle = instants[change.min(instants.len() - 2)];
            case.delay *= scale;
            for item in case.splits.iter_mut().flatten() {
                item.at = middle + (item.at - 200) * scale / 2;
            }
            CalendarCase { case, zone, unit, hour, minute }
        },
    )
}

impl CalendarCase {
    pub fn windows(&self) -> Calendar {
        let calendar = match self.unit {
            Unit::Days => Calendar::days(),
            Unit::Weeks => Calendar::weeks(),
            Unit::WeeksFromSunday => Calendar::weeks_from_sunday(),
            Unit::Months => Calendar::months(),
            Unit::Years => Calendar::years(),
        };
        calendar.in_zone(ZONES[self.zone].name).expect("a zone").starting_at(self.hour, self.minute)
    }

    /// Which record counts where, and which are late.
    pub fn expected(&self, records: &[Judged]) -> Windowed {
        let time_of_day = (i64::from(self.hour) * 60 + i64::from(self.minute)) * MINUTE;
        let clocks = Clocks::of(&ZONES[self.zone]);
        let begins: BTreeSet<i64> =
            first_days(self.unit).into_iter().map(|day| clocks.when(day * DAY + time_of_day)).collect();
        let mut windowed = Windowed::default();
        for (item, watermark) in records {
            let start = *begins.range(..=item.at).next_back().expect("began before");
            let end = *begins.range(item.at + 1..).next().expect("ends after");
            if watermark.is_none_or(|watermark| i128::from(end) > watermark) {
                let window = Window { start: EventTime::from_micros(start), end: EventTime::from_micros(end) };
                windowed.0.entry((item.key, window)).or_default().push(*item);
            } else {
                windowed.1.push(*item);
            }
        }
        windowed
    }
}
