//! Whole stories: requests that look right, or nearly so, against the handlers with a data folder of their own.
//!
//! The bytes are lines, one for each request. The first byte of a line is its method, as in `METHODS`; each byte after it
//! is a choice, and those that are not there are the ordinary ones, so `s`, `k`, `f` in a line each are a sync. With
//! FUZZ_SHOW set, each answer is shown.

use std::cell::{Ref, RefCell};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use ankipi::api::App;
use ankipi::collection::full::upload;
use ankipi::config::{Config, Settings};
use ankipi::http::Request;
use ankipi::media::check::{Depth, Listener, check as check_media};
use ankipi::text::unicase;
use rusqlite::Connection;
use serde_json::{Value, json};

use super::bodies::gzipped;
use super::input::Input;
use requests::{Asked, Pools};

mod requests;

/// Timeout of a request.
const EVENT_TIMEOUT: Duration = Duration::from_secs(20);

/// Requests of one story.
const MAX_REQUESTS: usize = 24;

/// The largest row, bytes: MAX_SYNC_ROW_MEGS.
const MAX_ROW_BYTES: u64 = 1 << 20;

/// Of the password `p`; quick, for who logs in a hundred times.
const HASH: &str = "$pbkdf2-sha256$i=1000,l=32$c2FsdHNhbHRzYWx0$FZZuZXAtil0bPzFvK5nwjt1V+4MHdxw35oYRA+tcva4";

/// Plays a story; then everything must be in order, and a sync must go through.
pub fn session(data: &[u8]) {
    // Of the thread, because statics are never dropped.
    thread_local!(static WORLD: World = World::new());
    WORLD.with(|world| {
        let mut story = Story::begin(world);
        for line in data.split(|byte| *byte == b'\n').take(MAX_REQUESTS) {
            story.send(line);
        }
        story.end();
    });
}

/// The data folder as each story finds it, and tiny_http before the handlers.
struct World {
    dir: PathBuf,
    /// The files of the data folder, by their paths.
    template: BTreeMap<PathBuf, Vec<u8>>,
    config: Config,
    pools: Pools,
    server: tiny_http::Server,
    /// Of the story that is being played.
    app: RefCell<Option<App>>,
}

/// User a has the rich collection and some media, user b another collection.
impl World {
    fn new() -> World {
        // In memory, if nothing else was asked for.
        let memory = Some(PathBuf::from("/dev/shm"))
            .filter(|dir| dir.is_dir() && std::env::var_os("TMPDIR").is_none());
        let dir =
            memory.unwrap_or_else(std::env::temp_dir).join(format!("ankipi-fuzz-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        let base = dir.join("data");
        for (user, collection) in [("a", "rich18"), ("b", "mid_schema18")] {
            fs::create_dir_all(base.join(user)).unwrap();
            let path = base.join(user).join("collection.anki2");
            fs::copy(vector(collection), &path).unwrap();
            // As an upload is taken over.
            assert!(upload::check(&path, MAX_ROW_BYTES).unwrap().is_ok());
        }
        let setting = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let settings = [
            setting("SYNC_BASE", base.to_str().unwrap()),
            setting("SYNC_USER1", &format!("a:{HASH}")),
            setting("SYNC_USER2", &format!("b:{HASH}")),
            setting("PASSWORDS_HASHED", "1"),
            setting("SYNC_OFFICIAL_KEYS", "yes"),
            setting("MAX_SYNC_PAYLOAD_MEGS", "4"),
            setting("MAX_SYNC_ROW_MEGS", "1"),
            setting("SYNC_MIN_FREE_MEGS", "0"),
            setting("SYNC_BACKUPS", "1"),
            setting("SYNC_BACKUP_DAYS", "0"),
        ];
        let config = Settings::read(None, settings.into_iter(), Vec::new()).unwrap().config().unwrap();
        assert_eq!(config.max_row_bytes, MAX_ROW_BYTES);
        let listener = UnixListener::bind(dir.join("socket")).unwrap();
        let server = tiny_http::Server::from_listener(listener, None).unwrap();
        let pools = Pools::of(&base.join("a/collection.anki2"));
        let mut world =
            World { dir, template: BTreeMap::new(), config, pools, server, app: RefCell::default() };
        // The first start and a first sync make what a data folder has beside the collections.
        let mut story = Story::begin_anew(&world);
        for line in ["s", "f", "U\0\x02\x01\x02\x05hello\x02\x02\x03abc"] {
            story.send(line.as_bytes());
        }
        assert!(world.base().join("a/media/a.mp3").exists());
        world.stop();
        world.template = files_in(&world.base());
        world
    }

    fn base(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn app(&self) -> Ref<'_, App> {
        Ref::map(self.app.borrow(), |app| app.as_ref().unwrap())
    }

    fn stop(&self) {
        self.app().users().end_sessions();
        *self.app.borrow_mut() = None;
    }

    /// Sends a request, lets the handler answer it, and returns what it said.
    fn exchange(&self, asked: &Asked) -> Reply {
        let socket = UnixStream::connect(self.dir.join("socket")).unwrap();
        socket.set_read_timeout(Some(EVENT_TIMEOUT)).unwrap();
        let head = format!(
            "{0}x-ankipi-peer: 192.0.2.1\r\nx-ankipi-length: {1}\r\nContent-Length: {1}\r\nConnection: close\r\n\r\n",
            asked.head,
            asked.body.len()
        );
        let request = [head.as_bytes(), &asked.body].concat();
        let send = |mut socket: &UnixStream| {
            // A handler may refuse without reading on.
            let _ = socket.write_all(&request);
            let _ = socket.shutdown(Shutdown::Write);
        };
        let receive = |mut socket: &UnixStream| {
            let mut raw = Vec::new();
            socket.read_to_end(&mut raw).map(|_| raw)
        };
        let answer = || {
            let request = self.server.recv_timeout(EVENT_TIMEOUT).unwrap().expect("a request");
            self.app().answer(Request::new(request));
        };
        // What fits into the buffers of the socket needs no threads.
        let is_large = request.len() > 60_000 || asked.method.starts_with("download");
        let reply = if is_large {
            thread::scope(|scope| {
                let talk = scope.spawn(|| {
                    send(&socket);
                    receive(&socket)
                });
                answer();
                talk.join().unwrap()
            })
        } else {
            send(&socket);
            answer();
            receive(&socket)
        };
        Reply::parse(&reply.expect("it is stuck"))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn vector(name: &str) -> PathBuf {
    let path = format!("tests/vectors/{name}.anki2");
    let mut above = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    above.find_map(|dir| Some(dir.join(&path)).filter(|path| path.exists())).unwrap()
}

/// All files below a folder.
fn files_in(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_in(&path))
        } else {
            drop(files.insert(path.clone(), fs::read(path).unwrap()))
        }
    }
    files
}

struct Reply {
    status: u16,
    body: Vec<u8>,
}

impl Reply {
    fn parse(raw: &[u8]) -> Reply {
        let end = raw.windows(4).position(|window| window == b"\r\n\r\n").expect("a head");
        let head = std::str::from_utf8(&raw[..end]).unwrap();
        let status = head[9..12].parse().unwrap();
        let mut rest = &raw[end + 4..];
        if let Some((_, length)) = head.split_once("Content-Length: ") {
            let length: usize = length.lines().next().unwrap().parse().unwrap();
            assert_eq!(rest.len(), length);
            return Reply { status, body: rest.to_vec() };
        }
        let mut body = Vec::new();
        loop {
            let line = rest.windows(2).position(|window| window == b"\r\n").expect("a whole reply");
            let length = usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap(), 16).unwrap();
            body.extend_from_slice(&rest[line + 2..][..length]);
            rest = &rest[line + 2 + length + 2..];
            if length == 0 {
                assert!(rest.is_empty());
                return Reply { status, body };
            }
        }
    }
}

/// One run, and what it may have changed.
struct Story<'w> {
    world: &'w World,
    /// Whether a commit or an upload of user a was acknowledged.
    is_changed: bool,
    /// Whether every device of user a is asked for a full sync: the collection got new stamps, and nothing else.
    has_new_stamps: bool,
    /// That of user a at the beginning.
    schema_stamp: i64,
    has_new_media: bool,
    b_took_part: bool,
}

impl<'w> Story<'w> {
    fn begin(world: &'w World) -> Story<'w> {
        let base = world.base();
        let _ = fs::remove_dir_all(&base);
        for user in ["a", "b"] {
            fs::create_dir_all(base.join(user).join("media")).unwrap();
        }
        for (path, contents) in &world.template {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, contents).unwrap();
        }
        Story::begin_anew(world)
    }

    fn begin_anew(world: &'w World) -> Story<'w> {
        let folder = ankipi::files::data_folder::open(&world.config.base, false).unwrap();
        let app = App::open(world.config.clone(), folder).unwrap();
        *world.app.borrow_mut() = Some(app);
        let schema_stamp = schema_stamp(&open(&world.base().join("a/collection.anki2")));
        Story {
            world,
            is_changed: false,
            has_new_stamps: false,
            schema_stamp,
            has_new_media: false,
            b_took_part: false,
        }
    }

    fn send(&mut self, line: &[u8]) {
        let asked = Asked::of(&mut Input(line), self.world);
        let reply = self.world.exchange(&asked);
        // A login is recorded.
        self.b_took_part |= asked.user == "b" || asked.method == "hostKey" && reply.status == 200;
        let why = || format!("{} {:?}: {:?}", reply.status, asked.head, String::from_utf8_lossy(&reply.body));
        if std::env::var_os("FUZZ_SHOW").is_some() {
            println!("{}", why());
        }
        let known = [200, 400, 403, 404, 405, 409, 413, 501, 503];
        assert!(known.contains(&reply.status), "{}", why());
        assert!(reply.status != 403 || asked.user != "a" || asked.method == "hostKey", "{}", why());
        if reply.status != 200 {
            // A client that knows more than the collection makes the server ask every device for a full sync. Nothing else
            // is a reason for 503 here, unless another device has uploaded.
            if asked.user == "a" && asked.method == "start" && reply.status == 503 && !self.is_changed {
                let path = self.world.base().join("a/collection.anki2");
                assert!(schema_stamp(&open(&path)) > self.schema_stamp, "{}", why());
                self.has_new_stamps = true;
            }
            return;
        }
        assert!(!asked.user.is_empty() || asked.method == "hostKey", "{}", why());
        let body =
            if asked.is_form { reply.body.clone() } else { zstd::decode_all(&reply.body[..]).unwrap() };
        let is_ok = match asked.method {
            "upload" => {
                let text = String::from_utf8_lossy(&body);
                assert!(!text.contains("could not store"), "no file is the server's fault: {text}");
                text == "OK"
            }
            "download" => {
                assert!(self.is_fit(&body), "what is sent for download would be refused as an upload");
                true
            }
            "downloadFiles" => true,
            _ => {
                assert!(serde_json::from_slice::<Value>(&body).is_ok(), "{}", why());
                true
            }
        };
        self.has_new_media |= asked.method == "uploadChanges";
        self.is_changed |= is_ok && asked.user == "a" && ["finish", "upload"].contains(&asked.method);
    }

    /// Whether these bytes would be taken as an upload.
    fn is_fit(&self, collection: &[u8]) -> bool {
        let path = self.world.dir.join("fit.anki2");
        fs::write(&path, collection).unwrap();
        match upload::check(&path, MAX_ROW_BYTES).unwrap() {
            Ok(()) => true,
            Err(unfit) => {
                eprintln!("{}", unfit.reason);
                false
            }
        }
    }

    fn end(mut self) {
        let path = self.world.base().join("a/collection.anki2");
        if !self.is_changed {
            let [all, without_stamps] = rows_of(self.world.template.get(&path).unwrap(), &self.world.dir);
            let before = if self.has_new_stamps { without_stamps } else { all };
            let now = contents(&open(&path), !self.has_new_stamps);
            assert!(now == *before, "nothing was acknowledged, but something changed");
        }
        self.sync("a");
        if self.b_took_part {
            self.sync("b");
        }
        // A restart finds nothing to do.
        self.world.stop();
        let files = files_in(&self.world.base());
        self.check_files(&files);
        if self.is_changed {
            assert!(self.is_fit(&files[&path]), "what was merged would be refused as an upload");
            let sound: String =
                open(&path).query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
            assert_eq!(sound, "ok");
        }
        if self.has_new_media {
            for user in ["a", "b"] {
                let dir = self.world.base().join(user);
                assert_eq!(check_media(&dir, Depth { deep: true, fix: false }, &mut Problems).unwrap(), 0);
            }
        }
    }

    /// A sync of a device that has nothing, to its end.
    fn sync(&mut self, user: &'static str) {
        let call = |method: &str, body: Value| -> Value {
            let asked = Asked::plain(user, method, &body, "last");
            let reply = self.world.exchange(&asked);
            assert_eq!(reply.status, 200, "the {method} of a sync at the end");
            serde_json::from_slice(&zstd::decode_all(&reply.body[..]).unwrap()).unwrap()
        };
        call("start", json!({"minUsn": 0, "lnewer": false, "graves": null}));
        if !self.is_changed {
            // The rest is as it was in the last story.
            assert!(call("finish", json!({})).is_i64());
            return;
        }
        let changes = call("applyChanges", json!({"changes": {"models": [], "decks": [[], []], "tags": []}}));
        assert!(changes["conf"].is_object());
        let mut rows = 0;
        for chunk in 0.. {
            let sent = call("chunk", json!({"_pad": null}));
            rows += ["cards", "notes", "revlog"]
                .map(|key| sent[key].as_array().map_or(0, Vec::len))
                .iter()
                .sum::<usize>();
            if sent["done"] == true {
                break;
            }
            assert!(chunk < 100, "chunks without end");
        }
        let db = open(&self.world.base().join(user).join("collection.anki2"));
        let count = |table: &str| -> usize {
            let sql = format!("SELECT count(*) FROM {table}");
            db.query_row(&sql, [], |row| row.get::<_, i64>(0)).unwrap() as usize
        };
        let [cards, notes, revlog] = ["cards", "notes", "revlog"].map(count);
        let [models, decks, options] = ["notetypes", "decks", "deck_config"].map(count);
        drop(db);
        assert_eq!(rows, cards + notes + revlog, "a device gets every row");
        let counts = json!([[0, 0, 0], cards, notes, revlog, 0, models, decks, options]);
        assert_eq!(call("sanityCheck2", json!({"client": counts, "full": true}))["status"], "ok");
        assert!(call("finish", json!({})).is_i64());
    }

    /// Checks that no temporary file is left and that the files of other users are unchanged.
    fn check_files(&self, files: &BTreeMap<PathBuf, Vec<u8>>) {
        let base = self.world.base();
        for (path, contents) in files {
            let name = path.strip_prefix(&base).unwrap().to_str().unwrap();
            if name == ".ankipi.accounts.lock" {
                continue;
            }
            let (user, name) = name.split_once('/').unwrap_or(("", name));
            let is_known = ["collection.anki2", "media.db", "keys"].contains(&name)
                || name.starts_with("backups/")
                || name.strip_prefix("media/").is_some_and(|name| !name.contains('/'));
            assert!(is_known && ["a", "b"].contains(&user), "{} is left over", path.display());
            let is_media = name.starts_with("media");
            if user == "b" && !self.b_took_part || is_media && !self.has_new_media {
                assert!(self.world.template.get(path) == Some(contents), "{} has changed", path.display());
            }
        }
    }
}

fn open(path: &Path) -> Connection {
    let db = Connection::open(path).unwrap();
    db.create_collation("unicase", unicase::compare).unwrap();
    db
}

/// Every row of a collection, as text; with or without the times of the last change and of the last full sync.
fn contents(db: &Connection, with_stamps: bool) -> String {
    let mut out = String::new();
    for table in requests::TABLES {
        let mut select = db.prepare(&format!("SELECT * FROM {table}")).unwrap();
        let columns: Vec<usize> = (0..select.column_count())
            .filter(|at| {
                with_stamps || table != "col" || !["mod", "scm"].contains(&select.column_name(*at).unwrap())
            })
            .collect();
        let mut rows = select.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let values = columns.iter().map(|column| format!("{:?}", row.get_ref(*column).unwrap()));
            out.extend(values);
        }
    }
    out
}

/// The time of the last full sync.
fn schema_stamp(db: &Connection) -> i64 {
    db.query_row("SELECT scm FROM col", [], |row| row.get(0)).unwrap()
}

/// The contents of this file, which is always the same one, with and without stamps.
fn rows_of(file: &[u8], dir: &Path) -> &'static [String; 2] {
    static ROWS: OnceLock<[String; 2]> = OnceLock::new();
    ROWS.get_or_init(|| {
        let path = dir.join("rows.anki2");
        fs::write(&path, file).unwrap();
        let db = open(&path);
        [contents(&db, true), contents(&db, false)]
    })
}

struct Problems;

impl Listener for Problems {
    fn problem(&mut self, what: String) {
        panic!("{what}");
    }

    fn note(&mut self, what: String) {
        panic!("{what}");
    }

    fn progress(&mut self, _: u64, _: u64) {}
}

/// A body as its protocol packs it.
fn packed(body: &[u8], is_form: bool) -> Vec<u8> {
    if is_form { gzipped(body) } else { zstd::encode_all(body, 1).unwrap() }
}
