//! What a sync costs the server: memory, processor, disk. Runs a server binary through the jobs of the memory budget,
//! each on a fresh process, and checks the outcome of each. See README.md beside this file.

mod client;
mod everyday;
mod generate;
mod link;
mod measure;
mod media;
#[path = "../tests/media/zip.rs"]
#[expect(dead_code, reason = "the benchmark needs no odd zips")]
mod zip;

use std::io::{BufReader, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use ankipi::collection::FILE_NAME;
use serde_json::json;
use tempfile::TempDir;

use client::{Client, Head, Received, Rows, Traffic};
use everyday::Changes;
use generate::{Counts, Generated};
use measure::{Server, USERS, Usage};
use media::Media;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const HELP: &str = "\
cargo bench --bench sync -- [options], or on a board ankipi-bench [options]

  --quick          small sizes, for a smoke test
  --board          sizes for a board with 512 MB of memory and 700 MB of disk
  --job NAME       this job only; may be given more than once
  --server CMD     another server: a path, or a command with arguments
                   (otherwise the ankipi beside this program, or in PATH)
  --notes N        notes of the collection (75000 make 300 MB, 20000 make 80)
  --data DIR       where collections and the servers' folders go
                   (otherwise ankipi-bench-data here; with cargo target/bench-data)
  --link MBPS      all bytes pass a link of so many MB a second (as root); 118 is a LAN
  --fsyncs         run each job once more and count the server's fsyncs
                   (needs strace)
  --fsync-ms N     each fsync takes N ms longer, as on a slow card, and is
                   counted (needs strace)
  --json           JSON in place of the table
";

/// Sizes of a run.
struct Sizes {
    /// Passwords to check; one alone is too short for the clock of a PC, and takes seconds on a Pi Zero.
    logins: u32,
    /// Notes of the collection that every job but `idle` is about.
    notes: i64,
    new_notes: i64,
    /// Reviews of a day.
    reviews: i64,
    /// Reviews of years.
    history: i64,
    /// Pictures of 50 KB.
    pictures: usize,
    /// One recording, bytes.
    recording: usize,
    connections: usize,
    /// Syncs of an everyday job.
    everyday: usize,
    /// Notes of the collection of everyday jobs. What such a sync costs must not depend on it.
    everyday_notes: i64,
}

const FULL: Sizes = Sizes {
    logins: 20,
    notes: 75_000,
    new_notes: 10_000,
    reviews: 5_000,
    history: 200_000,
    pictures: 1000,
    recording: 90_000_000,
    connections: 250,
    everyday: 200,
    everyday_notes: 3_000,
};
const QUICK: Sizes = Sizes {
    logins: 20,
    notes: 1_000,
    new_notes: 600,
    reviews: 300,
    history: 3_000,
    pictures: 60,
    recording: 5_000_000,
    connections: 50,
    everyday: 4,
    everyday_notes: 1_000,
};
/// A Pi Zero is done in minutes, and client and server fit into its memory together.
const BOARD: Sizes = Sizes {
    logins: 5,
    notes: 20_000,
    new_notes: 2_000,
    reviews: 1_000,
    history: 20_000,
    pictures: 200,
    recording: 20_000_000,
    connections: 250,
    everyday: 40,
    everyday_notes: 3_000,
};

/// Something to measure.
struct Job {
    name: &'static str,
    /// VmHWM that design.md allows, MB.
    budget: f64,
    run: fn(&Bench) -> Result<Usage>,
}

/// What users feel, shown per sync.
const EVERYDAY_JOBS: &[Job] = &[
    Job { name: "everyday-none", budget: 8.0, run: Bench::everyday_none },
    Job { name: "everyday-1", budget: 8.0, run: |b| b.everyday(Changes { reviews: 1, notes: 0 }) },
    Job { name: "everyday-20", budget: 8.0, run: |b| b.everyday(Changes { reviews: 20, notes: 0 }) },
    Job { name: "everyday-notes", budget: 8.0, run: |b| b.everyday(Changes { reviews: 0, notes: 10 }) },
    Job { name: "everyday-pause", budget: 8.0, run: Bench::everyday_after_a_pause },
    Job { name: "crowd", budget: 16.0, run: |b| b.crowd(200, b.sizes.everyday.min(50), 1) },
    Job { name: "crowd-12", budget: 16.0, run: |b| b.crowd(12, 12, 15) },
    Job { name: "everyday-picture", budget: 8.0, run: Bench::everyday_picture },
    Job { name: "first-media", budget: 8.0, run: Bench::first_media },
];

const JOBS: &[Job] = &[
    Job { name: "idle", budget: 1.5, run: Bench::idle },
    Job { name: "logins", budget: 8.0, run: Bench::logins },
    Job { name: "no-change", budget: 8.0, run: Bench::no_change },
    Job { name: "upload", budget: 8.0, run: |b| b.uploads(1) },
    Job { name: "download", budget: 8.0, run: |b| b.downloads(1) },
    Job { name: "old-upload", budget: 8.0, run: Bench::old_upload },
    Job { name: "old-download", budget: 8.0, run: Bench::old_download },
    Job { name: "notes-up", budget: 8.0, run: |b| b.notes_up(1) },
    Job { name: "notes-down", budget: 8.0, run: |b| b.notes_down(1) },
    Job { name: "reviews-up", budget: 8.0, run: Bench::reviews_up },
    Job { name: "reviews-down", budget: 8.0, run: Bench::reviews_down },
    Job { name: "history-up", budget: 8.0, run: |b| b.history_up(1) },
    Job { name: "history-down", budget: 8.0, run: |b| b.history_down(1) },
    Job { name: "daily-copy", budget: 8.0, run: Bench::daily_copy },
    Job { name: "pictures-up", budget: 8.0, run: |b| b.media_up(&b.pictures(), 1) },
    Job { name: "pictures-down", budget: 8.0, run: |b| b.media_down(&b.pictures(), 1) },
    Job { name: "recording-up", budget: 8.0, run: |b| b.media_up(&b.recording(), 1) },
    Job { name: "recording-down", budget: 8.0, run: |b| b.media_down(&b.recording(), 1) },
    Job { name: "four-notes-up", budget: 16.0, run: |b| b.notes_up(USERS) },
    Job { name: "four-notes-down", budget: 16.0, run: |b| b.notes_down(USERS) },
    Job { name: "four-history-up", budget: 16.0, run: |b| b.history_up(USERS) },
    Job { name: "four-history-down", budget: 16.0, run: |b| b.history_down(USERS) },
    Job { name: "four-pictures-up", budget: 16.0, run: |b| b.media_up(&b.pictures(), USERS) },
    Job { name: "four-pictures-down", budget: 16.0, run: |b| b.media_down(&b.pictures(), USERS) },
    Job { name: "four-recording-up", budget: 16.0, run: |b| b.media_up(&b.recording(), USERS) },
    Job { name: "four-recording-down", budget: 16.0, run: |b| b.media_down(&b.recording(), USERS) },
    Job { name: "four-uploads", budget: 16.0, run: |b| b.uploads(USERS) },
    Job { name: "four-downloads", budget: 16.0, run: |b| b.downloads(USERS) },
    Job { name: "connections", budget: 16.0, run: Bench::connections },
];

/// One run of the program.
struct Bench {
    server: String,
    sizes: Sizes,
    cache: PathBuf,
    collection: Generated,
    counts: Counts,
    /// Count the server's fsyncs, which slows it down.
    count_fsyncs: bool,
    /// How much longer each fsync of the server takes, ms.
    fsync_ms: Option<u32>,
}

/// No-change syncs of one job; one alone is too short for the clock.
const REPEATS: u32 = 20;

impl Bench {
    /// A data folder on which the users have the collection, changed by `prepare`.
    fn base(&self, users: usize, prepare: impl Fn(&rusqlite::Connection) -> Result<()>) -> Result<TempDir> {
        self.base_of(&self.collection, users, prepare)
    }

    fn base_of(
        &self,
        collection: &Generated,
        users: usize,
        prepare: impl Fn(&rusqlite::Connection) -> Result<()>,
    ) -> Result<TempDir> {
        let base = tempfile::tempdir_in(&self.cache)?;
        for user in 1..=users {
            let file = file_of(base.path(), user);
            std::fs::create_dir_all(file.with_file_name(""))?;
            generate::copy(&collection.path, &file)?;
            let db = generate::open(&file)?;
            // As ankipi keeps it; Anki's server sets its own mode.
            db.execute_batch("PRAGMA journal_mode = DELETE; BEGIN")?;
            prepare(&db)?;
            db.execute_batch("COMMIT")?;
        }
        // The disk has been busy for the benchmark's sake only.
        std::process::Command::new("sync").status()?;
        Ok(base)
    }

    fn start(&self, base: &TempDir) -> Result<Server> {
        self.start_with(base, USERS, 0)
    }

    fn start_with(&self, base: &TempDir, accounts: usize, backup_days: u32) -> Result<Server> {
        Server::start(&self.server, base.path(), accounts, backup_days, self.count_fsyncs, self.fsync_ms)
    }

    fn idle(&self) -> Result<Usage> {
        let base = tempfile::tempdir_in(&self.cache)?;
        let server = self.start(&base)?;
        server.measure(|| {
            thread::sleep(Duration::from_millis(500));
            Ok(Traffic::default())
        })
    }

    fn logins(&self) -> Result<Usage> {
        let base = tempfile::tempdir_in(&self.cache)?;
        let server = self.start(&base)?;
        let mut client = server.client(1);
        server.measure(|| {
            for _ in 0..self.sizes.logins {
                client.log_in()?;
            }
            Ok(client.traffic)
        })
    }

    fn no_change(&self) -> Result<Usage> {
        let base = self.base(1, |_| Ok(()))?;
        let expected = generate::stamps(&file_of(base.path(), 1))?;
        let server = self.start(&base)?;
        let mut client = server.client(1);
        let usage = server.measure(|| {
            for _ in 0..REPEATS {
                let meta = client.meta()?;
                if (meta.modified, meta.schema, meta.usn) != expected {
                    return Err(format!("meta says {meta:?}, the file {expected:?}").into());
                }
            }
            Ok(client.traffic)
        })?;
        match usage.written {
            0 => Ok(usage),
            bytes => Err(format!("syncs without changes wrote {bytes} bytes").into()),
        }
    }

    /// So many users send the collection at once.
    fn uploads(&self, users: usize) -> Result<Usage> {
        self.uploads_of(&self.collection.packed, users)
    }

    /// A file in schema 11, which is upgraded on arrival.
    fn old_upload(&self) -> Result<Usage> {
        self.uploads_of(&generate::old_collection(&self.cache, &self.collection)?, 1)
    }

    fn uploads_of(&self, packed: &Path, users: usize) -> Result<Usage> {
        let base = tempfile::tempdir_in(&self.cache)?;
        let server = self.start(&base)?;
        let expected = generate::stamps(&self.collection.path)?;
        let usage = server.measure(|| {
            at_once(&server, users, |client, _| {
                client.upload(packed)?;
                let meta = client.meta()?;
                if (meta.modified, meta.schema, meta.usn) == expected {
                    Ok(())
                } else {
                    Err(format!("meta says {meta:?}, the file {expected:?}").into())
                }
            })
        })?;
        drop(server);
        for user in 1..=users {
            self.check(&file_of(base.path(), user), self.counts)?;
        }
        Ok(usage)
    }

    /// So many users fetch theirs at once.
    fn downloads(&self, users: usize) -> Result<Usage> {
        let base = self.base(users, |_| Ok(()))?;
        let server = self.start(&base)?;
        let file = |user: usize| base.path().join(format!("downloaded-{user}"));
        let usage =
            server.measure(|| at_once(&server, users, |client, user| client.download(&file(user))))?;
        drop(server);
        let bytes = std::fs::metadata(&self.collection.path)?.len();
        for user in 1..=users {
            self.check(&file(user), self.counts)?;
            let arrived = std::fs::metadata(file(user))?.len();
            if arrived != bytes {
                return Err(format!("{arrived} bytes arrived of a collection of {bytes}").into());
            }
        }
        Ok(usage)
    }

    /// A client of protocol 10 fetches the collection: in schema 11, made for it on the side.
    fn old_download(&self) -> Result<Usage> {
        let base = self.base(1, |_| Ok(()))?;
        let server = self.start(&base)?;
        let mut client = server.client(1);
        let file = base.path().join("downloaded");
        let usage = server.measure(|| client.download_old(&file).map(|()| client.traffic))?;
        drop(server);
        let old = generate::open(&file)?;
        let rows = "SELECT ver, (SELECT count(*) FROM cards), (SELECT count(*) FROM notes), (SELECT count(*) FROM revlog) FROM col";
        let rows: [i64; 4] =
            old.query_row(rows, [], |row| Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?]))?;
        if rows == [11, self.counts[0], self.counts[1], self.counts[2]] {
            Ok(usage)
        } else {
            Err(format!("version and rows of the download are {rows:?}").into())
        }
    }

    fn notes_up(&self, users: usize) -> Result<Usage> {
        let numbers = self.sizes.notes..self.sizes.notes + self.sizes.new_notes;
        self.sync_up(users, |usn| Rows {
            notes: Some(Box::new(numbers.clone().map(move |n| generate::note_json(n, usn)))),
            cards: Some(Box::new(numbers.clone().map(move |n| generate::card_json(n, usn, false)))),
            ..Rows::default()
        })
    }

    fn notes_down(&self, users: usize) -> Result<Usage> {
        let numbers = self.sizes.notes..self.sizes.notes + self.sizes.new_notes;
        let count = self.sizes.new_notes as usize;
        self.sync_down(users, Received { notes: count, cards: count, revlog: 0 }, |db| {
            generate::add_notes(db, numbers.clone(), generate::USN)
        })
    }

    /// A day of reviews, each of another card.
    fn reviews_up(&self) -> Result<Usage> {
        let (cards, reviews) = (self.sizes.notes, self.reviews(self.sizes.reviews));
        let touched = 0..self.sizes.reviews.min(cards);
        self.sync_up(1, |usn| Rows {
            revlog: Some(Box::new(reviews.clone().map(move |n| generate::review_json(n, cards, usn)))),
            cards: Some(Box::new(touched.clone().map(move |n| generate::card_json(n, usn, true)))),
            ..Rows::default()
        })
    }

    fn reviews_down(&self) -> Result<Usage> {
        let touched = 0..self.sizes.reviews.min(self.sizes.notes);
        let received = Received {
            revlog: self.sizes.reviews as usize,
            cards: touched.end as usize,
            ..Received::default()
        };
        self.sync_down(1, received, |db| {
            generate::touch_cards(db, touched.clone(), generate::USN)?;
            generate::add_reviews(db, self.reviews(self.sizes.reviews), self.sizes.notes, generate::USN)
        })
    }

    /// Reviews alone, as an import of somebody's history has them.
    fn history_up(&self, users: usize) -> Result<Usage> {
        let (cards, reviews) = (self.sizes.notes, self.reviews(self.sizes.history));
        self.sync_up(users, |usn| Rows {
            revlog: Some(Box::new(reviews.clone().map(move |n| generate::review_json(n, cards, usn)))),
            ..Rows::default()
        })
    }

    fn history_down(&self, users: usize) -> Result<Usage> {
        let received = Received { revlog: self.sizes.history as usize, ..Received::default() };
        self.sync_down(users, received, |db| {
            generate::add_reviews(db, self.reviews(self.sizes.history), self.sizes.notes, generate::USN)
        })
    }

    /// The first sync of a day, of some reviews, until the copy of the collection before it is complete.
    fn daily_copy(&self) -> Result<Usage> {
        let base = self.base(1, |_| Ok(()))?;
        let config = generate::config_json(&generate::open(&file_of(base.path(), 1))?)?;
        let (cards, reviews) = (self.sizes.notes, self.reviews(REPEATS.into()));
        let mut counts = self.counts;
        counts[2] += i64::from(REPEATS);
        let rows = Rows {
            revlog: Some(Box::new(reviews.map(|n| generate::review_json(n, cards, generate::USN)))),
            ..Rows::default()
        };
        let server = self.start_with(&base, USERS, 1)?;
        let mut client = server.client(1);
        let backups = file_of(base.path(), 1).with_file_name("backups");
        let mut copy = None;
        let usage = server.measure(|| {
            client.sync(generate::USN, Some(&config), rows, counts)?;
            let deadline = Instant::now() + Duration::from_secs(600);
            while copy.is_none() {
                if Instant::now() > deadline {
                    return Err("there is no daily copy".into());
                }
                thread::sleep(Duration::from_millis(5));
                let found =
                    std::fs::read_dir(&backups).into_iter().flatten().flatten().map(|entry| entry.path());
                copy = found.into_iter().find(|path| path.extension().is_some_and(|end| end == "anki2"));
            }
            Ok(client.traffic)
        })?;
        drop(server);
        self.check(&copy.ok_or("there is no daily copy")?, self.counts)?;
        self.check(&file_of(base.path(), 1), counts)?;
        Ok(usage)
    }

    /// Numbers of reviews that the collection does not have.
    fn reviews(&self, count: i64) -> std::ops::Range<i64> {
        let first = generate::next_review(self.sizes.notes);
        first..first + count
    }

    /// Normal syncs of devices that have new rows, of so many users at once.
    fn sync_up<'r>(&self, users: usize, rows: impl Fn(i64) -> Rows<'r> + Sync) -> Result<Usage> {
        let base = self.base(users, |_| Ok(()))?;
        let config = generate::config_json(&generate::open(&file_of(base.path(), 1))?)?;
        let mut counts = self.counts;
        let new = rows(generate::USN);
        counts[0] += if new.notes.is_some() { count(new.cards) } else { 0 };
        counts[1] += count(new.notes);
        counts[2] += count(new.revlog);
        let server = self.start(&base)?;
        let usage = server.measure(|| {
            at_once(&server, users, |client, _| {
                let received = client.sync(generate::USN, Some(&config), rows(generate::USN), counts)?;
                if received == Received::default() {
                    Ok(())
                } else {
                    Err(format!("{received:?} came down, and nothing was new").into())
                }
            })
        })?;
        drop(server);
        (1..=users).try_for_each(|user| self.check(&file_of(base.path(), user), counts))?;
        Ok(usage)
    }

    /// Normal syncs of devices that have not seen what `prepare` puts into the server's collections, of so many users at
    /// once.
    fn sync_down(
        &self,
        users: usize,
        expected: Received,
        prepare: impl Fn(&rusqlite::Connection) -> Result<()>,
    ) -> Result<Usage> {
        let base = self.base(users, |db| {
            prepare(db)?;
            db.execute("UPDATE col SET mod = mod + 1, usn = usn + 1", [])?;
            Ok(())
        })?;
        let counts = generate::counts(&generate::open(&file_of(base.path(), 1))?)?;
        let server = self.start(&base)?;
        let usage = server.measure(|| {
            at_once(&server, users, |client, _| {
                let received = client.sync(generate::USN, None, Rows::default(), counts)?;
                if received == expected {
                    Ok(())
                } else {
                    Err(format!("{received:?} came down instead of {expected:?}").into())
                }
            })
        })?;
        drop(server);
        (1..=users).try_for_each(|user| self.check(&file_of(base.path(), user), counts))?;
        Ok(usage)
    }

    fn pictures(&self) -> Media {
        Media::new(self.sizes.pictures, 50_000)
    }

    fn recording(&self) -> Media {
        Media::new(1, self.sizes.recording)
    }

    /// So many users send these files at once.
    fn media_up(&self, media: &Media, users: usize) -> Result<Usage> {
        let base = tempfile::tempdir_in(&self.cache)?;
        let zips = media.zips()?;
        let server = self.start(&base)?;
        let usage = server.measure(|| {
            at_once(&server, users, |client, _| {
                zips.iter().try_for_each(|(zip, files)| client.upload_media(zip, *files))
            })
        })?;
        drop(server);
        // Another process, so that nothing comes from the memory of the first.
        let server = self.start(&base)?;
        (1..=users).try_for_each(|user| media.fetch(&mut server.client(user)))?;
        Ok(usage)
    }

    /// So many users fetch these files at once.
    fn media_down(&self, media: &Media, users: usize) -> Result<Usage> {
        let base = tempfile::tempdir_in(&self.cache)?;
        let server = self.start(&base)?;
        for (zip, files) in media.zips()? {
            (1..=users).try_for_each(|user| server.client(user).upload_media(&zip, files))?;
        }
        drop(server);
        std::process::Command::new("sync").status()?;
        let server = self.start(&base)?;
        server.measure(|| at_once(&server, users, |client, _| media.fetch(client)))
    }

    /// Half of them kept alive after a request, half in the middle of a head; all of them are served in the end.
    fn connections(&self) -> Result<Usage> {
        const HEAD: &[u8] = b"GET /health HTTP/1.1\r\nhost: bench\r\n";
        let base = self.base(1, |_| Ok(()))?;
        let server = self.start(&base)?;
        let send =
            |connection: &mut BufReader<TcpStream>, bytes: &[u8]| connection.get_mut().write_all(bytes);
        let finish = |connection: &mut BufReader<TcpStream>| -> Result<()> {
            send(connection, b"\r\n")?;
            let head = Head::read(connection)?;
            match head.status {
                200 => head.skip_body(connection),
                status => Err(format!("health: status {status}").into()),
            }
        };
        server.measure(|| {
            let (mut idle, mut half_open) = (Vec::new(), Vec::new());
            for number in 0..self.sizes.connections {
                let mut connection = client::connect(server.address())?;
                send(&mut connection, HEAD)?;
                if number % 2 == 0 {
                    finish(&mut connection)?;
                    idle.push(connection);
                } else {
                    half_open.push(connection);
                }
            }
            let mut client = server.client(1);
            client.meta()?;
            half_open.iter_mut().try_for_each(finish)?;
            for connection in &mut idle {
                send(connection, HEAD)?;
                finish(connection)?;
            }
            Ok(client.traffic)
        })
    }

    fn check(&self, file: &Path, expected: Counts) -> Result<()> {
        match generate::check(file)? {
            counts if counts == expected => Ok(()),
            counts => Err(format!("{} holds {counts:?} rows instead of {expected:?}", file.display()).into()),
        }
    }
}

fn count<T>(rows: Option<impl Iterator<Item = T>>) -> i64 {
    rows.map_or(0, |rows| rows.count() as i64)
}

fn file_of(base: &Path, user: usize) -> PathBuf {
    base.join(format!("user{user}")).join(FILE_NAME)
}

/// Lets the clients of so many users work side by side.
fn at_once(
    server: &Server,
    users: usize,
    work: impl Fn(&mut Client, usize) -> Result<()> + Sync,
) -> Result<Traffic> {
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (1..=users)
            .map(|user| {
                let mut client = server.client(user);
                scope.spawn(move || work(&mut client, user).map(|()| client.traffic))
            })
            .collect();
        let mut sum = Traffic::default();
        for thread in threads {
            sum += thread.join().map_err(|_| "a client panicked")??;
        }
        Ok(sum)
    })
}

const MB: f64 = 1024.0 * 1024.0;

fn print_heading() {
    println!(
        "{:<20} {:>8} {:>8} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>7}  (MiB)",
        "job", "wall s", "CPU s", "VmHWM", "budget", "RssAnon", "written", "wire up", "wire down", "fsyncs"
    );
}

fn print_row(job: &Job, usage: &Usage) {
    let megs = |bytes: u64| bytes as f64 / MB;
    let hwm = megs(usage.hwm_kib * 1024);
    println!(
        "{:<20} {:>8.2} {:>8.2} {:>8.1}{} {:>9.1} {:>9.1} {:>9.1} {:>9.1} {:>9.1} {:>7}{}",
        job.name,
        usage.wall.as_secs_f64(),
        usage.cpu,
        hwm,
        if hwm > job.budget { '!' } else { ' ' },
        job.budget,
        megs(usage.anon_kib * 1024),
        megs(usage.written),
        megs(usage.traffic.up),
        megs(usage.traffic.down),
        usage.fsyncs.map_or("-".to_owned(), |fsyncs| fsyncs.to_string()),
        match usage.traffic.refused {
            0 => String::new(),
            times => format!("  {times} x 503"),
        }
    );
}

fn print_everyday_heading() {
    println!(
        "{:<20} {:>9} {:>8} {:>8} {:>8} {:>12} {:>10} {:>9} {:>8} {:>9}  (of each)",
        "job",
        "median ms",
        "p90 ms",
        "most ms",
        "CPU ms",
        "written KiB",
        "wire bytes",
        "switches",
        "fsyncs",
        "VmHWM MiB"
    );
}

/// What one sync of the job cost.
fn print_everyday_row(job: &Job, usage: &Usage) {
    let count = usage.latencies.len() as f64;
    let ms = |part: f64| usage.latency(part).as_secs_f64() * 1000.0;
    let each = |sum: u64| sum as f64 / count;
    println!(
        "{:<20} {:>9.2} {:>8.2} {:>8.2} {:>8.2} {:>12.1} {:>10.0} {:>9.1} {:>8} {:>9.1}{}",
        job.name,
        ms(0.5),
        ms(0.9),
        ms(1.0),
        usage.cpu * 1000.0 / count,
        each(usage.written) / 1024.0,
        each(usage.traffic.up + usage.traffic.down),
        each(usage.switches),
        usage.fsyncs.map_or("-".to_owned(), |fsyncs| format!("{:.2}", each(fsyncs))),
        usage.hwm_kib as f64 / 1024.0,
        match usage.traffic.refused {
            0 => String::new(),
            times => format!("  {times} x 503"),
        }
    );
}

fn json_row(job: &Job, usage: &Usage) -> serde_json::Value {
    json!({
        "job": job.name,
        "wall_secs": usage.wall.as_secs_f64(),
        "cpu_secs": usage.cpu,
        "hwm_bytes": usage.hwm_kib * 1024,
        "budget_bytes": (job.budget * MB) as u64,
        "anon_bytes": usage.anon_kib * 1024,
        "written_bytes": usage.written,
        "wire_up_bytes": usage.traffic.up,
        "wire_down_bytes": usage.traffic.down,
        "fsyncs": usage.fsyncs,
        "refused_requests": usage.traffic.refused,
        "thread_switches": usage.switches,
        "syncs": usage.latencies.len(),
        "latency_median_secs": usage.latency(0.5).as_secs_f64(),
        "latency_p90_secs": usage.latency(0.9).as_secs_f64(),
        "latency_most_secs": usage.latency(1.0).as_secs_f64(),
    })
}

/// The server to measure unless another is named: the one beside this program or, as cargo lays them, beside its folder;
/// otherwise the one in PATH.
fn ankipi() -> Result<String> {
    let program = std::env::current_exe()?;
    let beside = program.ancestors().skip(1).take(2).map(|folder| folder.join("ankipi"));
    let found = beside.into_iter().find(|path| path.is_file());
    Ok(found.map_or("ankipi".to_owned(), |path| path.to_string_lossy().into_owned()))
}

/// Where things go unless a folder is named.
fn default_data() -> &'static str {
    // cargo sets it for what it runs.
    match std::env::var_os("CARGO_MANIFEST_DIR") {
        Some(_) => "target/bench-data",
        None => "ankipi-bench-data",
    }
}

/// Jobs, how to print a heading for them, and how one of them.
type Table<'j> = (&'j [Job], fn(), fn(&Job, &Usage));

/// Runs a job; a second time where fsyncs are counted, so that neither disturbs the other.
fn measure(bench: &mut Bench, job: &Job, fsyncs: bool) -> Result<Usage> {
    let mut usage = (job.run)(bench)?;
    if fsyncs {
        bench.count_fsyncs = true;
        usage.fsyncs = (job.run)(bench)?.fsyncs;
        bench.count_fsyncs = false;
    }
    Ok(usage)
}

fn run() -> Result<()> {
    let mut args = pico_args::Arguments::from_env();
    if args.contains(["-h", "--help"]) {
        print!("{HELP}");
        return Ok(());
    }
    // What cargo adds.
    let _ = args.contains("--bench");
    let mut sizes = match (args.contains("--quick"), args.contains("--board")) {
        (true, _) => QUICK,
        (_, true) => BOARD,
        _ => FULL,
    };
    let (as_json, fsyncs) = (args.contains("--json"), args.contains("--fsyncs"));
    let fsync_ms: Option<u32> = args.opt_value_from_str("--fsync-ms")?;
    let server: Option<String> = args.opt_value_from_str("--server")?;
    let data: Option<PathBuf> = args.opt_value_from_str("--data")?;
    if let Some(megabytes_per_sec) = args.opt_value_from_str("--link")? {
        link::enter(megabytes_per_sec)?;
    }
    if let Some(notes) = args.opt_value_from_str("--notes")? {
        (sizes.notes, sizes.everyday_notes) = (notes, notes);
    }
    let wanted: Vec<String> = args.values_from_str("--job")?;
    if let Some(extra) = args.finish().first() {
        return Err(format!("{} is not an option\n{HELP}", extra.to_string_lossy()).into());
    }
    let names: Vec<_> = EVERYDAY_JOBS.iter().chain(JOBS).map(|job| job.name).collect();
    if let Some(unknown) = wanted.iter().find(|name| !names.contains(&name.as_str())) {
        return Err(format!("no job '{unknown}'; there are: {}", names.join(", ")).into());
    }

    let cache = data.unwrap_or_else(|| default_data().into());
    let collection = generate::collection(&cache, sizes.notes)?;
    let counts = generate::check(&collection.path)?;
    let server = server.map_or_else(ankipi, Ok)?;
    let file_bytes = std::fs::metadata(&collection.path)?.len();
    let mut bench = Bench { server, sizes, cache, collection, counts, count_fsyncs: false, fsync_ms };
    if !as_json {
        println!("{}; a collection of {} notes, {file_bytes} bytes", bench.server, bench.sizes.notes);
    }
    let mut rows = Vec::new();
    let mut failures = Vec::new();
    let tables: [Table; 2] =
        [(EVERYDAY_JOBS, print_everyday_heading, print_everyday_row), (JOBS, print_heading, print_row)];
    for (jobs, print_heading, print_row) in tables {
        let jobs: Vec<_> = jobs
            .iter()
            .filter(|job| wanted.is_empty() || wanted.iter().any(|name| name == job.name))
            .collect();
        if !as_json && !jobs.is_empty() {
            print_heading();
        }
        for job in jobs {
            match measure(&mut bench, job, fsyncs && fsync_ms.is_none()) {
                Ok(usage) if as_json => rows.push(json_row(job, &usage)),
                Ok(usage) => print_row(job, &usage),
                Err(err) => {
                    eprintln!("{}: {err}", job.name);
                    failures.push(job.name);
                }
            }
        }
    }
    if as_json {
        let run = json!({ "server": bench.server, "notes": bench.sizes.notes, "collection_bytes": file_bytes, "jobs": rows });
        println!("{run:#}");
    }
    match failures[..] {
        [] => Ok(()),
        _ => Err(format!("failed: {}", failures.join(", ")).into()),
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("{err}");
            ExitCode::FAILURE
        }
    }
}
