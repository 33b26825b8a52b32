//! Collections of any size, the same at every run: fields of a few hundred bytes to some KB of varied text, cards,
//! reviews. Kept in `target/bench-data`, as the file and as a client would send it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use ankipi::collection::FILE_NAME;
use ankipi::collection::full::download::Snapshot;
use ankipi::collection::new_collection;
use ankipi::collection::schema::downgrade::CopyToDowngrade;
use ankipi::text::{note, unicase};
use rusqlite::{Connection, params};

use crate::Result;

/// Part of the names of cached files; another number makes them anew.
const VERSION: u32 = 2;

/// Stamps of the collection, ms and s.
const CREATED_SECS: i64 = 1_600_000_000;
const SECS_PER_DAY: i64 = 86_400;
const MODIFIED_MILLIS: i64 = 1_750_000_000_000;
const SCHEMA_MILLIS: i64 = 1_700_000_000_000;

/// `col.usn`: rows from this usn on are new to a client that has the file.
pub const USN: i64 = 1;

/// Ids of notes, cards and reviews begin here, ms.
const FIRST_NOTE: i64 = 1_600_000_000_000;
const FIRST_CARD: i64 = 1_600_500_000_000;
const FIRST_REVIEW: i64 = 1_650_000_000_000;

/// The notetype and the number of its fields in every new collection of ankipi's.
const NOTETYPE: i64 = 1_600_000_000_000;
const FIELDS: usize = 2;

/// Reviews of a card.
const REVIEWS_PER_CARD: i64 = 6;
const DECKS: i64 = 30;
const TAGS: u64 = 300;

/// A collection file and the zstd frame that a client would send of it.
pub struct Generated {
    /// The file.
    pub path: PathBuf,
    /// One frame of level 3 with its window of 2 MiB, without content size, as the clients' encoder makes it.
    pub packed: PathBuf,
}

/// Rows of the tables that a sanity check compares, in its order.
pub type Counts = [i64; 6];

/// The collection with so many notes (and as many cards), made now if it is not in the cache.
pub fn collection(cache: &Path, notes: i64) -> Result<Generated> {
    fs::create_dir_all(cache)?;
    let name = format!("collection-{notes}-v{VERSION}");
    let (path, packed) = (cache.join(format!("{name}.anki2")), cache.join(format!("{name}.zst")));
    if !packed.exists() {
        let scratch = tempfile::tempdir_in(cache)?;
        let (filled, made) = (scratch.path().join(FILE_NAME), scratch.path().join("made"));
        new_collection::create(scratch.path())?;
        fill(&filled, notes)?;
        finish(&filled, &made)?;
        let frame = scratch.path().join("frame");
        zstd::stream::copy_encode(File::open(&made)?, File::create(&frame)?, 3)?;
        fs::rename(made, &path)?;
        // Last, because its presence says that both are whole.
        fs::rename(frame, &packed)?;
    }
    Ok(Generated { path, packed })
}

/// The same collection in schema 11, packed as a client that has it would send it.
pub fn old_collection(cache: &Path, made: &Generated) -> Result<PathBuf> {
    let packed = made.path.with_extension("schema11.zst");
    if !packed.exists() {
        let scratch = tempfile::tempdir_in(cache)?;
        let (copied, frame) = (scratch.path().join(FILE_NAME), scratch.path().join("frame"));
        copy(&made.path, &copied)?;
        let snapshot = Snapshot::open(&copied)?;
        let old = CopyToDowngrade::copy(&snapshot, &scratch.path().join("old"))?.downgrade()?;
        let mut encoder = zstd::Encoder::new(File::create(&frame)?, 3)?;
        old.write_to(&mut encoder)?;
        encoder.finish()?;
        fs::rename(frame, &packed)?;
    }
    Ok(packed)
}

/// Opens a collection for the benchmark itself.
pub fn open(path: &Path) -> Result<Connection> {
    let db = Connection::open(path)?;
    db.create_collation("unicase", unicase::compare)?;
    // The file need not survive a crash, and only the server's use of the disk is to be measured.
    db.execute_batch("PRAGMA synchronous = OFF; PRAGMA cache_size = -16000")?;
    Ok(db)
}

fn fill(path: &Path, notes: i64) -> Result<()> {
    let db = open(path)?;
    db.execute_batch("PRAGMA journal_mode = OFF; BEGIN")?;
    for n in 1..=DECKS {
        let copy = "INSERT INTO decks SELECT ?1, ?2, mtime_secs, usn, common, kind FROM decks WHERE id = 1";
        db.execute(copy, params![FIRST_NOTE + n, format!("Subject {n}\u{1f}Chapter")])?;
    }
    for n in 0..TAGS {
        db.execute("INSERT INTO tags VALUES (?1, 0, 0, NULL)", [tag(n)])?;
    }
    add_notes(&db, 0..notes, 0)?;
    add_reviews(&db, 0..notes * REVIEWS_PER_CARD, notes, 0)?;
    db.execute(
        "UPDATE col SET crt = ?1, mod = ?2, scm = ?3, ls = ?2, usn = ?4",
        [CREATED_SECS, MODIFIED_MILLIS, SCHEMA_MILLIS, USN],
    )?;
    db.execute_batch("UPDATE config SET mtime_secs = 0; UPDATE deck_config SET mtime_secs = 0; COMMIT")?;
    Ok(())
}

/// Packs it into another file as clients do before they upload; they leave the file in WAL mode. (A plain VACUUM would
/// need a third copy in the folder for temporary files, which is memory on many boards.)
fn finish(filled: &Path, made: &Path) -> Result<()> {
    open(filled)?.execute("VACUUM INTO ?1", [made.to_string_lossy()])?;
    fs::remove_file(filled)?;
    open(made)?.execute_batch("ANALYZE; PRAGMA journal_mode = WAL")?;
    Ok(())
}

/// Inserts notes of these numbers and a card of each.
pub fn add_notes(db: &Connection, numbers: std::ops::Range<i64>, usn: i64) -> Result<()> {
    let mut add_note = db.prepare("INSERT INTO notes VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, 0, '')")?;
    let mut add_card = db.prepare(
        "INSERT INTO cards VALUES (?1, ?2, ?3, 0, ?4, ?5, 2, 2, ?6, ?7, 2500, ?8, 0, 0, 0, 0, 0, ?9)",
    )?;
    for number in numbers {
        let note = Note::new(number);
        let prepared = note::prepare(&note.fields, FIELDS, 0)?;
        let (flds, sfld, csum) = (&prepared.fields, &prepared.sort_field, prepared.checksum);
        add_note.execute(params![
            note.id,
            note.guid,
            NOTETYPE,
            note.modified,
            usn,
            note.tags,
            flds,
            sfld,
            csum
        ])?;
        let Card { id, deck, modified, due, interval, reviews, data } = Card::new(number);
        add_card.execute(params![id, note.id, deck, modified, usn, due, interval, reviews, data])?;
    }
    Ok(())
}

/// Inserts reviews of these numbers, spread over so many cards.
pub fn add_reviews(db: &Connection, numbers: std::ops::Range<i64>, cards: i64, usn: i64) -> Result<()> {
    let mut add = db.prepare("INSERT INTO revlog VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)")?;
    for number in numbers {
        add.execute(rusqlite::params_from_iter(review(number, cards, usn)))?;
    }
    Ok(())
}

/// Gives cards of these numbers another due date, as a review does.
pub fn touch_cards(db: &Connection, numbers: std::ops::Range<i64>, usn: i64) -> Result<()> {
    let sql = "UPDATE cards SET mod = ?1, usn = ?2, due = due + 9, reps = reps + 1 WHERE id = ?3";
    let mut touch = db.prepare(sql)?;
    for number in numbers {
        touch.execute([REVIEWED_SECS, usn, FIRST_CARD + number])?;
    }
    Ok(())
}

/// When a client changed what it sends, s.
const REVIEWED_SECS: i64 = 1_760_000_000;

/// A note as it stands in a chunk, without usn.
struct Note {
    id: i64,
    guid: String,
    modified: i64,
    tags: String,
    fields: String,
}

impl Note {
    fn new(number: i64) -> Note {
        let mut random = Random::new(number as u64);
        let tags: String = (0..random.below(4)).map(|_| format!(" {}", tag(random.below(TAGS)))).collect();
        let tags = if tags.is_empty() { tags } else { tags + " " };
        let guid = (0..10).map(|_| char::from(b'a' + random.below(26) as u8)).collect();
        let front_bytes = 20 + random.below(200) as usize;
        let mut fields = text(&mut random, front_bytes);
        fields.push('\u{1f}');
        let back_bytes = match random.below(10) {
            0..4 => 150 + random.below(500),
            4..8 => 700 + random.below(2700),
            _ => 4000 + random.below(7800),
        };
        fields.push_str(&text(&mut random, back_bytes as usize));
        Note { id: FIRST_NOTE + number, guid, modified: CREATED_SECS + number, tags, fields }
    }
}

/// A card as it stands in a chunk, without usn.
struct Card {
    id: i64,
    deck: i64,
    modified: i64,
    due: i64,
    interval: i64,
    reviews: i64,
    data: String,
}

impl Card {
    fn new(number: i64) -> Card {
        let mut random = Random::new(!number as u64);
        let mut up_to = |bound: u64| random.below(bound) as i64;
        Card {
            id: FIRST_CARD + number,
            deck: FIRST_NOTE + 1 + up_to(DECKS as u64),
            modified: CREATED_SECS + up_to(100_000_000),
            due: 2000 + up_to(1000),
            interval: 1 + up_to(400),
            reviews: REVIEWS_PER_CARD,
            data: format!("{{\"s\":{}.{:03},\"d\":{}.12,\"dr\":0.9}}", up_to(300), up_to(1000), 1 + up_to(9)),
        }
    }
}

/// The columns of a review.
fn review(number: i64, cards: i64, usn: i64) -> [i64; 9] {
    let mut random = Random::new(number as u64 ^ 0x5555_5555);
    let mut up_to = |bound: u64| random.below(bound) as i64;
    // Ids in the order of time; which card it was follows no order.
    let card = FIRST_CARD + number.wrapping_mul(7919) % cards.max(1);
    let interval = 1 + up_to(400);
    [
        FIRST_REVIEW + number * 7000 + up_to(6000),
        card,
        usn,
        1 + up_to(4),
        interval,
        interval / 2,
        1300 + up_to(1700),
        1000 + up_to(30_000),
        1,
    ]
}

/// A note's row on the wire.
pub fn note_json(number: i64, usn: i64) -> String {
    let note = Note::new(number);
    let text = |text: &str| serde_json::Value::from(text);
    format!(
        "[{},{},{NOTETYPE},{},{usn},{},{},\"\",\"\",0,\"\"]",
        note.id,
        text(&note.guid),
        note.modified,
        text(&note.tags),
        text(&note.fields)
    )
}

/// A card's row on the wire: a new one, or one that was reviewed now.
pub fn card_json(number: i64, usn: i64, reviewed: bool) -> String {
    let Card { id, deck, modified, due, interval, reviews, data } = Card::new(number);
    let (note, data) = (FIRST_NOTE + number, serde_json::Value::from(data));
    let (modified, due, reviews) =
        if reviewed { (REVIEWED_SECS, due + 9, reviews + 1) } else { (modified, due, reviews) };
    format!("[{id},{note},{deck},0,{modified},{usn},2,2,{due},{interval},2500,{reviews},0,0,0,0,0,{data}]")
}

/// A review's row on the wire.
pub fn review_json(number: i64, cards: i64, usn: i64) -> String {
    serde_json::Value::from(review(number, cards, usn).to_vec()).to_string()
}

/// The first review that the collection of so many notes does not have.
pub fn next_review(notes: i64) -> i64 {
    notes * REVIEWS_PER_CARD
}

/// Counts the rows, and fails if the file is damaged.
pub fn check(path: &Path) -> Result<Counts> {
    // To read only: a damaged file must not be healed by looking at it, but a WAL left by a kill belongs to it.
    let db = open(path)?;
    let verdict: String = db.query_row("PRAGMA quick_check", [], |row| row.get(0))?;
    if verdict != "ok" {
        return Err(format!("{}: {verdict}", path.display()).into());
    }
    counts(&db)
}

/// Counts the rows.
pub fn counts(db: &Connection) -> Result<Counts> {
    let mut counts = Counts::default();
    for (count, table) in
        counts.iter_mut().zip(["cards", "notes", "revlog", "notetypes", "decks", "deck_config"])
    {
        *count = db.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0))?;
    }
    Ok(counts)
}

/// The whole config as the client that changed it last sends it.
pub fn config_json(db: &Connection) -> Result<String> {
    let mut select = db.prepare("SELECT KEY, val FROM config")?;
    let mut rows = select.query([])?;
    let mut config = serde_json::Map::new();
    while let Some(row) = rows.next()? {
        config.insert(row.get(0)?, serde_json::from_slice(&row.get::<_, Vec<u8>>(1)?)?);
    }
    // A client does this once a day. Otherwise the server does, and looks at each card for that.
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?;
    config.insert("lastUnburied".to_owned(), ((now - CREATED_SECS) / SECS_PER_DAY).into());
    Ok(serde_json::Value::from(config).to_string())
}

/// The stamps of a file.
pub fn stamps(path: &Path) -> Result<(i64, i64, i64)> {
    Ok(open(path)?
        .query_row("SELECT mod, scm, usn FROM col", [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?)
}

/// Writes the pages to the disk now, so that this is not measured as work of the server.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::copy(from, to)?;
    File::open(to)?.sync_all()
}

fn tag(number: u64) -> String {
    format!("{}::{}{number}", word(number % 17), word(1000 + number))
}

/// About so many bytes of words, some marked up, as notes are.
fn text(random: &mut Random, bytes: usize) -> String {
    let mut text = String::with_capacity(bytes + 32);
    while text.len() < bytes {
        // Few words make up most of a text.
        let rank = random.below(50_000) * random.below(50_000) / 50_000;
        let word = word(rank);
        match random.below(60) {
            0 => text.push_str("<br>"),
            1 => text.push_str(&format!("<b>{word}</b> ")),
            2 => text.push_str(&format!("{word}. ")),
            3 => text.push_str(&format!("({}) ", random.below(3000))),
            4 => text.push_str("&nbsp;- "),
            5 => text.push_str("日本語の "),
            6 => text.push_str(&format!(
                "<span style=\"color: rgb({}, 0, 85)\">{word}</span> ",
                random.below(256)
            )),
            _ => {
                text.push_str(&word);
                text.push(' ');
            }
        }
    }
    text
}

/// The word of that number.
fn word(number: u64) -> String {
    const SYLLABLES: [&str; 32] = [
        "ka", "ter", "mo", "lin", "sa", "ver", "tion", "re", "un", "den", "pro", "li", "the", "an", "est",
        "er", "con", "ja", "ro", "mi", "né", "gra", "pho", "lys", "ab", "or", "in", "zu", "pla", "ö", "ty",
        "ck",
    ];
    let mut random = Random::new(number ^ 0xabcd_ef01);
    (0..1 + random.below(4)).map(|_| SYLLABLES[random.below(32) as usize]).collect()
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        let mut random = Random(seed);
        random.next();
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}
