//! The syncs that every user does several times a day: nothing new, a few reviews, a few notes, one picture. One device
//! does them one after another, as the real client of protocol 11 does; what is reported is the cost of one.

use std::path::Path;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::client::{Client, Rows, Traffic};
use crate::generate::{self, Counts};
use crate::measure::Usage;
use crate::media::Media;
use crate::{Bench, Result, file_of};

/// Most notes of each collection of a crowd.
const CROWD_NOTES: i64 = 1_000;

/// A device that syncs after a pause of this length finds the server as it is after hours: everything is closed.
const PAUSE: Duration = Duration::from_secs(11);

/// Length of a picture, and of each of the many small files of `first-media`.
const PICTURE_BYTES: usize = 30_000;
const SMALL_FILE_BYTES: usize = 6_000;

/// What the device has changed before each sync.
#[derive(Clone, Copy)]
pub struct Changes {
    /// Reviews, each of another card.
    pub reviews: i64,
    /// New notes with a card each.
    pub notes: i64,
}

/// A device that changes something before each sync.
struct Device {
    client: Client,
    config: String,
    /// Cards that it began with.
    cards: i64,
    changes: Changes,
    /// Syncs so far.
    number: i64,
    /// The rows that it has.
    counts: Counts,
}

impl Device {
    fn new(client: Client, file: &Path, counts: Counts, changes: Changes) -> Result<Device> {
        let config = generate::config_json(&generate::open(file)?)?;
        Ok(Device { client, config, cards: counts[1], changes, number: 0, counts })
    }

    fn sync(&mut self) -> Result<()> {
        let Device { cards, changes, number, .. } = *self;
        let reviews = generate::next_review(cards) + number * changes.reviews;
        let reviews = reviews..reviews + changes.reviews;
        let touched = (0..changes.reviews).map(move |n| (number * changes.reviews + n) * 7919 % cards);
        let notes = cards + number * changes.notes;
        let notes = notes..notes + changes.notes;
        self.number += 1;
        self.counts[0] += changes.notes;
        self.counts[1] += changes.notes;
        self.counts[2] += changes.reviews;
        let usn = self.client.meta()?.usn;
        let rows = Rows {
            revlog: Some(Box::new(reviews.map(move |n| generate::review_json(n, cards, usn)))),
            notes: Some(Box::new(notes.clone().map(move |n| generate::note_json(n, usn)))),
            cards: Some(Box::new(
                touched
                    .map(move |n| generate::card_json(n, usn, true))
                    .chain(notes.map(move |n| generate::card_json(n, usn, false))),
            )),
        };
        self.client.steps(usn, Some(&self.config), rows, self.counts).map(drop)
    }
}

impl Bench {
    /// Syncs in which there is nothing to do.
    pub fn everyday_none(&self) -> Result<Usage> {
        let (base, counts) = self.everyday_base()?;
        // One sync takes less time than the kernel's clock can measure, so many are measured together.
        let syncs = 10 * self.sizes.everyday;
        let (server, expected) = (self.start(&base)?, generate::stamps(&file_of(base.path(), 1))?);
        let mut client = server.client(1);
        client.meta()?;
        let usage = server.measure_each(syncs, || {
            let meta = client.meta()?;
            if (meta.modified, meta.schema, meta.usn) == expected {
                Ok(())
            } else {
                Err(format!("meta says {meta:?}, the file {expected:?}").into())
            }
        })?;
        drop(server);
        self.check(&file_of(base.path(), 1), counts)?;
        Ok(usage)
    }

    /// Syncs that bring these changes, at once after each other.
    pub fn everyday(&self, changes: Changes) -> Result<Usage> {
        self.everyday_syncs(changes, self.sizes.everyday, Duration::ZERO)
    }

    /// Syncs of one review, with a long pause before each.
    pub fn everyday_after_a_pause(&self) -> Result<Usage> {
        let (syncs, pause) = if self.sizes.everyday < 100 { (1, Duration::ZERO) } else { (5, PAUSE) };
        self.everyday_syncs(Changes { reviews: 1, notes: 0 }, syncs, pause)
    }

    fn everyday_syncs(&self, changes: Changes, syncs: usize, pause: Duration) -> Result<Usage> {
        let (base, counts) = self.everyday_base()?;
        let server = self.start(&base)?;
        let mut device = Device::new(server.client(1), &file_of(base.path(), 1), counts, changes)?;
        // The first one after a start finds nothing in memory, and SQLite's pages not in the kernel's.
        device.sync()?;
        let mut usage = server.measure_each_after(pause, syncs, || device.sync())?;
        usage.traffic = device.client.traffic;
        drop(server);
        self.check(&file_of(base.path(), 1), device.counts)?;
        Ok(usage)
    }

    /// So many users of a larger number with a device each, which all sync one review at the same time, so many times in a
    /// row. What is reported is the cost of one sync.
    pub fn crowd(&self, accounts: usize, users: usize, syncs: usize) -> Result<Usage> {
        let collection = generate::collection(&self.cache, CROWD_NOTES.min(self.sizes.everyday_notes))?;
        let base = self.base_of(&collection, users, |_| Ok(()))?;
        let counts = generate::counts(&generate::open(&file_of(base.path(), 1))?)?;
        let server = self.start_with(&base, accounts, 0)?;
        let changes = Changes { reviews: 1, notes: 0 };
        let devices = (1..=users)
            .map(|user| Device::new(server.client(user), &file_of(base.path(), user), counts, changes));
        let mut devices: Vec<Device> = devices.collect::<Result<_>>()?;
        let mut latencies = Vec::new();
        let mut usage = server.measure(|| {
            let begin = Barrier::new(users);
            let timed = thread::scope(|scope| {
                let begin = &begin;
                let run = move |device: &mut Device| -> Result<Vec<Duration>> {
                    begin.wait();
                    let timed = (0..syncs).map(|_| {
                        let started = Instant::now();
                        device.sync().map(|()| started.elapsed())
                    });
                    timed.collect()
                };
                let threads: Vec<_> =
                    devices.iter_mut().map(|device| scope.spawn(move || run(device))).collect();
                let joined =
                    threads.into_iter().map(|thread| thread.join().map_err(|_| "a client panicked")?);
                joined.collect::<Result<Vec<_>>>()
            })?;
            latencies = timed.concat();
            Ok(Traffic::default())
        })?;
        latencies.sort_unstable();
        usage.latencies = latencies;
        for device in &devices {
            usage.traffic += device.client.traffic;
        }
        drop(server);
        for (user, device) in (1..=users).zip(&devices) {
            self.check(&file_of(base.path(), user), device.counts)?;
        }
        Ok(usage)
    }

    /// Media syncs of one new picture each.
    pub fn everyday_picture(&self) -> Result<Usage> {
        let base = tempfile::tempdir_in(&self.cache)?;
        let media = Media::new(self.sizes.everyday + 1, PICTURE_BYTES);
        let zips = media.zips_of(1)?;
        let server = self.start(&base)?;
        let mut client = server.client(1);
        let (mut number, mut usn) = (0, 0);
        let mut sync = |client: &mut Client| -> Result<()> {
            let (zip, files) = &zips[number];
            number += 1;
            client.begin_media(usn)?;
            client.upload_media(zip, *files)?;
            usn += 1;
            client.end_media(number)
        };
        sync(&mut client)?;
        let mut usage = server.measure_each(self.sizes.everyday, || sync(&mut client))?;
        usage.traffic = client.traffic;
        drop(server);
        media.fetch(&mut self.start(&base)?.client(1))?;
        Ok(usage)
    }

    /// The first media sync of a device with many small files. What is reported is the cost of one file.
    pub fn first_media(&self) -> Result<Usage> {
        let base = tempfile::tempdir_in(&self.cache)?;
        let media = Media::new(10 * self.sizes.everyday, SMALL_FILE_BYTES);
        let zips = media.zips()?;
        let server = self.start(&base)?;
        let mut client = server.client(1);
        let mut usage = server.measure(|| {
            client.begin_media(0)?;
            zips.iter().try_for_each(|(zip, files)| client.upload_media(zip, *files))?;
            client.end_media(10 * self.sizes.everyday)?;
            Ok(client.traffic)
        })?;
        let each = usage.wall / u32::try_from(10 * self.sizes.everyday)?;
        usage.latencies = vec![each; 10 * self.sizes.everyday];
        drop(server);
        media.fetch(&mut self.start(&base)?.client(1))?;
        Ok(usage)
    }

    /// A data folder with a collection of everyday size, and what is in it.
    fn everyday_base(&self) -> Result<(TempDir, Counts)> {
        let collection = generate::collection(&self.cache, self.sizes.everyday_notes)?;
        let base = self.base_of(&collection, 1, |_| Ok(()))?;
        let counts = generate::counts(&generate::open(&file_of(base.path(), 1))?)?;
        Ok((base, counts))
    }
}

impl crate::measure::Server {
    fn measure_each(&self, syncs: usize, sync: impl FnMut() -> Result<()>) -> Result<Usage> {
        self.measure_each_after(Duration::ZERO, syncs, sync)
    }

    /// Runs so many syncs, with a pause before and after each; the last pause is part of what is measured, so that work
    /// that a server puts off counts.
    fn measure_each_after(
        &self,
        pause: Duration,
        syncs: usize,
        mut sync: impl FnMut() -> Result<()>,
    ) -> Result<Usage> {
        let mut latencies = Vec::with_capacity(syncs);
        let mut usage = self.measure(|| {
            thread::sleep(pause);
            for _ in 0..syncs {
                let started = Instant::now();
                sync()?;
                latencies.push(started.elapsed());
                thread::sleep(pause);
            }
            Ok(crate::client::Traffic::default())
        })?;
        latencies.sort_unstable();
        usage.latencies = latencies;
        Ok(usage)
    }
}
