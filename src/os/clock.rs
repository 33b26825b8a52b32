//! The wall clock in milliseconds, seconds and days, and dates as text.

use std::fmt;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970-01-01 UTC; 0 if the clock is before that.
pub fn now_millis() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Seconds since 1970-01-01 UTC.
pub fn now_secs() -> i64 {
    now_millis() / 1000
}

/// A day, UTC, counted from 1970; shown as 2026-11-24.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Day(i32);

/// Today in UTC; 1970-01-01 if the clock is before that.
pub fn today() -> Day {
    Day(i32::try_from(now_secs() / (24 * 60 * 60)).unwrap_or(i32::MAX))
}

/// A time for people, UTC: 2026-11-24 09:05.
pub fn moment(secs: i64) -> String {
    const DAY_SECS: i64 = 24 * 60 * 60;
    let day = Day(i32::try_from(secs.div_euclid(DAY_SECS)).unwrap_or(i32::MAX));
    let minutes = secs.rem_euclid(DAY_SECS) / 60;
    format!("{day} {:02}:{:02}", minutes / 60, minutes % 60)
}

/// A time for logs, UTC: 2026-11-24T09:05:07Z.
pub fn stamp(secs: i64) -> String {
    format!("{}:{:02}Z", moment(secs).replace(' ', "T"), secs.rem_euclid(60))
}

// The calendar as a count of days, for a year that begins in March (Howard Hinnant, "chrono-compatible low-level date
// algorithms"): the leap day is then the last one.
impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let days = i64::from(self.0) + 719_468;
        let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
        let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year + year / 4 - year / 100);
        let month = (5 * of_year + 2) / 153;
        let day = of_year - (153 * month + 2) / 5 + 1;
        let (carry, month) = if month < 10 { (0, month + 3) } else { (1, month - 9) };
        write!(f, "{:04}-{month:02}-{day:02}", year + era * 400 + carry)
    }
}

impl FromStr for Day {
    type Err = ();

    fn from_str(text: &str) -> Result<Day, ()> {
        let mut fields = text.splitn(3, '-').map(|field| field.parse::<i64>().ok());
        let mut next = || fields.next().flatten().ok_or(());
        let (year, month, day) = (next()?, next()?, next()?);
        if !(0..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
            return Err(());
        }
        let year = year - i64::from(month <= 2);
        let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
        let of_era =
            year.rem_euclid(400) * 365 + year.rem_euclid(400) / 4 - year.rem_euclid(400) / 100 + of_year;
        i32::try_from(year.div_euclid(400) * 146_097 + of_era - 719_468).map(Day).map_err(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_in_utc() {
        assert_eq!(moment(0), "1970-01-01 00:00");
        assert_eq!(moment(1_795_511_100), "2026-11-24 09:05");
        assert_eq!(moment(-1), "1969-12-31 23:59");
        assert_eq!(stamp(1_795_511_107), "2026-11-24T09:05:07Z");
    }

    #[test]
    fn days_are_written_and_read() {
        for (number, text) in [
            (0, "1970-01-01"),
            (59, "1970-03-01"),
            (11_016, "2000-02-29"),
            (20_781, "2026-11-24"),
            (-1, "1969-12-31"),
        ] {
            assert_eq!(Day(number).to_string(), text);
            assert_eq!(text.parse(), Ok(Day(number)));
        }
        for number in 0..40_000 {
            assert_eq!(Day(number).to_string().parse(), Ok(Day(number)));
        }
        for text in ["", "2026", "2026-13-01", "2026-01-00", "x-y-z", "2026-01-01-01"] {
            assert_eq!(text.parse::<Day>(), Err(()), "{text}");
        }
    }
}
