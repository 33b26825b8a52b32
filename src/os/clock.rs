//! The wall clock in milliseconds, seconds and days, whether it is probably wrong, and dates as text.
//!
//! Many boards have no clock that runs while they are off. They start in 1970, or at the time of the last shutdown, until
//! the time comes from the network. A stamp of such a time in a collection would undo changes of other devices.

#![allow(unsafe_code)]

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::OnceLock;

/// 2026-01-01: a clock before the year of this version is wrong. Raise this with the first release of each year.
const RELEASED_SECS: i64 = 1_767_225_600;

/// After this time since boot, the clock counts as set, because some programs that set clocks do not tell the kernel.
const UNSET_AT_MOST_SECS: i64 = 600;

/// If wall clock and boot clock have moved apart by more than this, it is not drift: somebody has set the wall clock.
const CLOCK_SET_MILLIS: i64 = 2000;

/// The wall clock minus the boot clock when `remember_start` was called, in milliseconds.
static OFFSET_AT_START: OnceLock<i64> = OnceLock::new();

/// Milliseconds since 1970-01-01 UTC, for stamps. Never before the year of this version, even if the clock is: stamps get
/// into collections and keys.
pub fn now_millis() -> i64 {
    wall_millis().max(RELEASED_SECS * 1000)
}

/// Seconds since 1970-01-01 UTC, for stamps, as `now_millis`.
pub fn now_secs() -> i64 {
    now_millis() / 1000
}

/// The wall clock, right or wrong, in seconds since 1970-01-01 UTC. For the log.
pub fn wall_secs() -> i64 {
    wall_millis() / 1000
}

/// As `wall_secs`, in milliseconds. For comparisons with the times of files.
pub fn wall_millis() -> i64 {
    millis(libc::CLOCK_REALTIME)
}

/// Remembers the clock as it is at the start of the server, to see later whether somebody has set it.
pub fn remember_start() {
    OFFSET_AT_START.get_or_init(offset_millis);
}

fn offset_millis() -> i64 {
    wall_millis() - millis(libc::CLOCK_BOOTTIME)
}

/// Why the clock is probably wrong, in words for the owner; None if it seems right. Takes a few system calls.
pub fn why_unreliable() -> Option<String> {
    let now = wall_secs();
    let is_before_release = now < RELEASED_SECS;
    let may_be_old = || {
        let was_set =
            OFFSET_AT_START.get().is_some_and(|then| (offset_millis() - then).abs() > CLOCK_SET_MILLIS);
        !was_set
            && millis(libc::CLOCK_BOOTTIME) < UNSET_AT_MOST_SECS * 1000
            && waits_for_the_time(Path::new("/"), kernel_is_unsynchronised)
    };
    (is_before_release || may_be_old())
        .then(|| format!("the clock of this machine is not set: it says {} (UTC)", moment(now)))
}

/// Whether this system starts with the time of its last shutdown, or of a file, and the time has not come from the network
/// yet. False where that cannot be told.
fn waits_for_the_time(root: &Path, is_unsynchronised: fn() -> bool) -> bool {
    let has = |path: &str| root.join(path).exists();
    let clocks = || root.join("sys/class/rtc").read_dir().is_ok_and(|mut clocks| clocks.next().is_some());
    if !has("sys/class") || clocks() {
        return false;
    }
    if has("run/systemd/timesync") {
        return !has("run/systemd/timesync/synchronized");
    }
    (has("etc/fake-hwclock.data") || has("etc/openwrt_release")) && is_unsynchronised()
}

fn kernel_is_unsynchronised() -> bool {
    // SAFETY: timex is a struct of numbers, for which zeroes are valid, and modes of 0 changes nothing.
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live timex.
    unsafe { libc::adjtimex(&mut state) == libc::TIME_ERROR }
}

/// A clock of the kernel in milliseconds; 0 if it is before 1970 or cannot be read.
///
/// Not `SystemTime::now`: on 32-bit musl it calls the function with 32-bit seconds, which fails for every time after
/// 2038-01-19, as a clock without a battery may show one today, and then it panics.
fn millis(clock: libc::clockid_t) -> i64 {
    in_millis(read_with_64_bits(clock).unwrap_or_else(|| read(clock)))
}

fn in_millis((secs, nanos): (i64, i64)) -> i64 {
    secs.max(0).saturating_mul(1000).saturating_add(nanos / 1_000_000)
}

/// The call with 64-bit seconds, which 32-bit kernels have since 5.1; None from older ones.
#[cfg(target_pointer_width = "32")]
fn read_with_64_bits(clock: libc::clockid_t) -> Option<(i64, i64)> {
    /// Number of `clock_gettime64`, the same for all 32-bit processors but MIPS, whose numbers begin at 4000.
    const CLOCK_GETTIME64: libc::c_long = if cfg!(target_arch = "mips") { 4403 } else { 403 };
    let mut time = [0i64; 2];
    // SAFETY: the kernel writes two 64-bit numbers to the live array.
    let outcome = unsafe { libc::syscall(CLOCK_GETTIME64, clock, time.as_mut_ptr()) };
    (outcome == 0).then_some((time[0], time[1]))
}

#[cfg(target_pointer_width = "64")]
fn read_with_64_bits(_clock: libc::clockid_t) -> Option<(i64, i64)> {
    None
}

fn read(clock: libc::clockid_t) -> (i64, i64) {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a live timespec. It stays 0 if the call fails.
    unsafe { libc::clock_gettime(clock, &mut time) };
    // Their types differ from system to system.
    #[allow(clippy::unnecessary_cast, clippy::useless_conversion)]
    (time.tv_sec as i64, time.tv_nsec as i64)
}

/// A day, UTC, counted from 1970; shown as 2026-11-24.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Day(i32);

impl Day {
    /// The day with this number; 0 is 1970-01-01.
    #[cfg(test)]
    pub fn from_number(number: i32) -> Day {
        Day(number)
    }

    /// A number that all days of a week share, Monday to Sunday.
    pub fn week(self) -> i32 {
        // 1970-01-01 was a Thursday.
        (self.0 + 3).div_euclid(7)
    }
}

/// Today in UTC, for stamps, as `now_millis`.
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
    fn a_clock_that_the_network_has_not_set_yet_is_not_believed() {
        let root = tempfile::tempdir().unwrap();
        let waits = |is_unsynchronised| waits_for_the_time(root.path(), is_unsynchronised);
        let make = |path: &str| std::fs::create_dir_all(root.path().join(path)).unwrap();
        make("etc/fake-hwclock.data");
        assert!(!waits(|| true), "without /sys nothing can be told");
        make("sys/class");
        assert!(waits(|| true) && !waits(|| false));
        make("run/systemd/timesync");
        assert!(waits(|| false));
        make("run/systemd/timesync/synchronized");
        assert!(!waits(|| true));
        std::fs::remove_dir_all(root.path().join("run")).unwrap();
        assert!(waits(|| true));
        make("sys/class/rtc/rtc0");
        assert!(!waits(|| true), "it has a clock with a battery");
    }

    #[test]
    fn the_clock_is_that_of_std() {
        let std = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        assert!((wall_millis() - std.as_millis() as i64).abs() < 10_000);
        assert_eq!(why_unreliable(), None);
    }

    #[test]
    fn seconds_beyond_32_bits_are_seconds() {
        assert_eq!(in_millis((1 << 31, 5_999_999)), 2_147_483_648_005);
        assert_eq!(moment(1 << 31), "2038-01-19 03:14");
        assert_eq!((in_millis((-1, 0)), in_millis((i64::MAX, 0))), (0, i64::MAX));
    }

    /// Kernels since 5.1 and the emulators that run this have the call, so it is the one that is used.
    #[cfg(target_pointer_width = "32")]
    #[test]
    fn a_32_bit_system_tells_the_time_in_64_bits() {
        let (secs, _) = read_with_64_bits(libc::CLOCK_REALTIME).expect("clock_gettime64");
        assert!((secs - read(libc::CLOCK_REALTIME).0).abs() < 3);
    }

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
