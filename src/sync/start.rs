//! The first step of a session: new day, then the server's deletions (collection-format.md 12.2, 12.9).

use std::io::Write;

use rusqlite::params;

use crate::collection::{CachedStatements, Collection, Range};
use crate::collection::{int, spooling};
use crate::error::Result;
use crate::messages::graves::GraveKind;
use crate::os::clock;

const SECS_PER_DAY: i64 = 86_400;

impl Collection {
    /// Unburies cards if a new day has begun since the last unburying, as clients and the official server do.
    pub fn begin_day(&self, server_usn: i32) -> Result<()> {
        let day = self.day_number(server_usn)?;
        let last: i64 = self.config::<u32>("lastUnburied")?.unwrap_or(0).into();
        if last >= day && last <= day + 7 {
            return Ok(());
        }
        // `due` of a learning card is a timestamp (queue 1) or a day number (queue 3). Timestamps are large.
        self.db.execute_cached(
            "UPDATE cards SET queue = CASE type WHEN 0 THEN 0 WHEN 2 THEN 2 ELSE iif(due > 1000000000, 1, 3) END
             WHERE queue IN (-2, -3)",
            [],
        )?;
        self.set_config("lastUnburied", &day.to_string(), server_usn)
    }

    /// Writes the deletions in this range as `{"cards":[..],"notes":[..],"decks":[..]}`.
    pub fn write_graves(&self, unseen: Range, out: &mut impl Write) -> Result<()> {
        let mut select =
            self.db.prepare_cached("SELECT oid FROM graves WHERE type = ?1 AND usn BETWEEN ?2 AND ?3")?;
        let mut opening = '{';
        for (kind, key) in GraveKind::ALL {
            write!(out, "{opening}\"{key}\":").map_err(spooling)?;
            let mut rows = select.query(params![kind as i64, unseen.from, unseen.to])?;
            let mut separator = '[';
            while let Some(row) = rows.next()? {
                write!(out, "{separator}{}", int(row, 0)?).map_err(spooling)?;
                separator = ',';
            }
            out.write_all(if separator == '[' { b"[]" } else { b"]" }).map_err(spooling)?;
            opening = ',';
        }
        out.write_all(b"}").map_err(spooling)
    }

    /// The scheduler's day number: days since the collection's first day.
    fn day_number(&self, server_usn: i32) -> Result<i64> {
        let created: i64 = self.db.query_row_cached("SELECT crt FROM col", [], |row| row.get(0))?;
        let now = clock::now_secs();
        if self.config::<i64>("schedVer")? != Some(2) {
            return Ok(i64::from((now.saturating_sub(created) / SECS_PER_DAY) as u32));
        }
        let rollover = match self.config::<u8>("rollover")? {
            Some(hour) => i64::from(hour.min(23)),
            None => {
                self.set_config("rollover", "4", server_usn)?;
                4
            }
        };
        let zone = |key: &str| -> Result<Option<i64>> {
            Ok(self.config::<i32>(key)?.map(i64::from).filter(|minutes| minutes.abs() < 24 * 60))
        };
        Ok(day_number_v2(now, created, rollover, zone("localOffset")?.unwrap_or(0), zone("creationOffset")?))
    }

    /// Sets one config value, with this usn, as a change made by the server.
    pub(crate) fn set_config(&self, key: &str, json: &str, usn: i32) -> Result<()> {
        let mut put = self.db.prepare_cached(
            "INSERT OR REPLACE INTO config (KEY, usn, mtime_secs, val) VALUES (?1, ?2, ?3, ?4)",
        )?;
        put.execute(params![key, usn, clock::now_secs(), json.as_bytes()])?;
        Ok(())
    }
}

/// The day number of the v2 scheduler. Zones are minutes west of UTC. `created` comes from a client and may be any
/// number.
fn day_number_v2(
    now: i64,
    created: i64,
    rollover_hour: i64,
    local_zone: i64,
    creation_zone: Option<i64>,
) -> i64 {
    let local = |secs: i64, zone: i64| secs.saturating_sub(zone * 60);
    let local_now = local(now, local_zone);
    match creation_zone {
        None => {
            let first_day = local(created, local_zone).div_euclid(SECS_PER_DAY).saturating_mul(SECS_PER_DAY);
            let secs = local_now.saturating_sub(first_day).saturating_sub(rollover_hour * 3600);
            i64::from((secs / SECS_PER_DAY) as u32)
        }
        Some(creation_zone) => {
            let days =
                local_now.div_euclid(SECS_PER_DAY) - local(created, creation_zone).div_euclid(SECS_PER_DAY);
            let before_rollover = local_now.rem_euclid(SECS_PER_DAY) < rollover_hour * 3600;
            (days - i64::from(before_rollover)).max(0)
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::collection::{Collection, Range};
    use crate::sync::start::day_number_v2;

    /// The cases that the spec lists as checked against the real server (12.9).
    #[test]
    fn day_numbers_are_those_of_the_real_server() {
        let (created, now) = (1_600_000_000, 1_795_427_949);
        assert_eq!(day_number_v2(now, created, 4, 0, None), 2262);
        assert_eq!(day_number_v2(now, created, 23, 0, None), 2261);
        assert_eq!(day_number_v2(now, created, 4, 0, Some(0)), 2262);
        assert_eq!(day_number_v2(now, created, 4, 720, Some(0)), 2261);
        assert_eq!(day_number_v2(now, 1_900_000_000, 4, 0, Some(0)), 0);
    }

    #[test]
    fn a_first_day_beyond_all_times_is_no_panic() {
        for created in [i64::MIN, i64::MIN + 1, i64::MAX] {
            for zone in [-1439, 0, 1439] {
                day_number_v2(1_795_427_949, created, 4, zone, None);
                day_number_v2(1_795_427_949, created, 4, 0, Some(zone));
            }
        }
    }

    /// Found by fuzzing: an upload with non-integer grave ids was accepted, and then no sync could start.
    #[test]
    fn graves_of_any_type_are_sent() {
        let dir = tempfile::tempdir().unwrap();
        crate::collection::new_collection::create(dir.path()).unwrap();
        let path = dir.path().join(crate::collection::FILE_NAME);
        let db = rusqlite::Connection::open(&path).unwrap();
        db.execute_batch("INSERT INTO graves VALUES (16.5, 1, 3), ('x', 1, 3), (x'01', 1, 3), (7, 1, 3)")
            .unwrap();
        drop(db);
        let mut out = Vec::new();
        let everything = Range { from: 0, to: i32::MAX };
        Collection::open_alone(&path).unwrap().write_graves(everything, &mut out).unwrap();
        let mut sent: Vec<i64> = serde_json::from_slice::<serde_json::Value>(&out).unwrap()["notes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|id| id.as_i64().unwrap())
            .collect();
        sent.sort_unstable();
        assert_eq!(sent, [0, 0, 7, 16]);
    }
}
