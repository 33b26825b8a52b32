//! `ankipi check`: checks the data of each user and reports problems in plain words.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use crate::cli::command::{Command, FAILED, Invocation};
use crate::cli::commands::user_folders::{open_between_syncs, selected_users};
use crate::cli::progress::Progress;
use crate::collection;
use crate::collection::Collection;
use crate::config::USERS_FILE;
use crate::error::{Error, Result};
use crate::files::access::{self, ServerUser};
use crate::media;
use crate::media::check as media_check;
use crate::media::check::{Depth, Listener};
use crate::media::denied_files::first_denied;
use crate::media::index::FILE_NAME as INDEX_NAME;
use crate::sync::user::HELP_WITH_DAMAGE;
use crate::{files, logging};

/// Reading a larger collection takes a while on a small board.
const LARGE_COLLECTION_BYTES: u64 = 20 * 1024 * 1024;

/// `ankipi check`
pub static CHECK: Command = Command {
    name: "check",
    arguments: "[USER] [--deep] [--fix]",
    summary: "say whether what is stored is in order",
    help: "\
Looks at the collection of one user or of all, and compares media.db with the
files in media/. Names media files that the disk lost or damaged; a device that
has one sends it again when it syncs. Ends with 1 if anything is not in order.
The server may run; if a device syncs, it waits until that is done.

Options:
  --deep    read every media file and compare its checksum, and look up every
            row of the collection in its indexes
  --fix     with the server stopped: ask the devices for media files that are
            missing or damaged, whose remains go to damaged/; record files that
            were put into media/. Deletes and replaces nothing on any device.
",
    run,
};

fn run(mut invocation: Invocation) -> Result<ExitCode> {
    logging::start(log::LevelFilter::Warn, false);
    let depth = Depth { deep: invocation.has("--deep"), fix: invocation.has("--fix") };
    let user = invocation.words(0, 1)?.pop();
    if check(&invocation.base()?, user, depth)? { Ok(ExitCode::SUCCESS) } else { Ok(ExitCode::from(FAILED)) }
}

/// Checks one user or all of them. Returns whether no problem is left.
fn check(base: &Path, user: Option<String>, depth: Depth) -> Result<bool> {
    // Keeps the lock until the check ends.
    let _lock = depth.fix.then(|| files::lock_data_folder(base)).transpose()?;
    if !depth.fix && files::is_in_use(base) {
        println!("A server runs on {}: what it is doing right now may look like a fault.", base.display());
    }
    let server = ServerUser::of(base, files::holder(base));
    let mut in_order = true;
    if let Some(text) = access::denied_in_base(&server, base, USERS_FILE) {
        println!("{text}");
        in_order = false;
    }
    let names = selected_users(base, user)?;
    if names.is_empty() {
        println!("Nothing is stored in {} yet.", base.display());
    }
    for name in names {
        in_order &= check_user(base, &name, depth, &server)?;
    }
    Ok(in_order)
}

fn check_user(base: &Path, name: &str, depth: Depth, server: &ServerUser) -> Result<bool> {
    let mut report = Report::new(name);
    let dir = base.join(name);
    // With --fix, this process holds the lock.
    let beside_server = !depth.fix && files::is_in_use(base);
    let denied = access::denied_to(server, base, name);
    let mut unrepaired = 0;
    if denied.is_none()
        && let Some(text) = first_denied(server, base, name)
    {
        report.problem(text);
        unrepaired += 1;
    }
    if let Some(denied) = &denied {
        report.problem(denied.text.clone());
        unrepaired += 1;
    }
    // Files that this process may not read are not checked: they may be sound.
    let is_readable =
        denied.is_none() || access::denied_to(&ServerUser::this_process(), base, name).is_none();
    let mut of_media = 0;
    // What the server does not follow is not looked at. It is not damaged.
    let mut paths = vec![dir.clone()];
    paths.extend([collection::FILE_NAME, media::FOLDER, INDEX_NAME].map(|name| dir.join(name)));
    let links: Vec<_> = paths.iter().filter_map(|path| files::refuse_link(path).err()).collect();
    unrepaired += links.len() as u64;
    links.iter().for_each(|link| report.problem(link.to_string()));
    if is_readable && links.is_empty() {
        unrepaired += check_collection(&dir, beside_server, depth.deep, &mut report);
        of_media = media_check::check(&dir, depth, &mut report)?;
        unrepaired += of_media;
    }
    report.progress.clear();
    let verdict = match (report.problems, unrepaired) {
        (0, _) => "in order".to_owned(),
        (found, 0) => format!("{found} found, all repaired: each device gets the repairs with its next sync"),
        (found, left) if depth.fix => format!("{found} found, {left} of them left"),
        (found, _) if of_media == 0 => format!("{found} found"),
        (found, _) => format!("{found} found; `ankipi check --fix` repairs those of media"),
    };
    println!("{name}: {verdict}");
    Ok(unrepaired == 0)
}

/// Returns the number of problems. None of them can be repaired here.
fn check_collection(dir: &Path, beside_server: bool, deep: bool, report: &mut Report) -> u64 {
    let path = dir.join(collection::FILE_NAME);
    if !path.exists() {
        return 0;
    }
    // The check is one SQL statement, so there is no progress to show during it.
    if fs::metadata(&path).is_ok_and(|meta| meta.len() > LARGE_COLLECTION_BYTES) {
        report.progress.show_at_once(&format!("{}: reading the collection", report.user));
    }
    let found = if beside_server {
        open_between_syncs(dir, &mut report.progress).and_then(|snapshot| snapshot.damage(deep))
    } else {
        Collection::open_to_read(&path).and_then(|collection| collection.damage(deep))
    };
    let damage = match found {
        Ok(None) => return 0,
        Err(err @ Error::OldSchema(_)) => {
            report.note(err.to_string());
            return 0;
        }
        Err(err @ Error::Busy(_)) => {
            report.problem(format!("collection.anki2 was not looked at: {err}"));
            return 1;
        }
        Ok(Some(damage)) => damage,
        Err(err) => err.to_string(),
    };
    report
        .problem(format!("collection.anki2 is damaged ({damage}). Stop the server; then {HELP_WITH_DAMAGE}"));
    1
}

/// The output for the user: findings to stdout, progress to a terminal.
struct Report<'n> {
    user: &'n str,
    problems: u64,
    progress: Progress,
}

impl Report<'_> {
    fn new(user: &str) -> Report<'_> {
        Report { user, problems: 0, progress: Progress::start() }
    }

    fn say(&mut self, what: &str) {
        self.progress.clear();
        println!("{}: {what}", self.user);
    }
}

impl Listener for Report<'_> {
    fn problem(&mut self, what: String) {
        self.problems += 1;
        self.say(&what);
    }

    fn note(&mut self, what: String) {
        self.say(&what);
    }

    fn progress(&mut self, done: u64, of: u64) {
        self.progress.show(&format!("{}: media file {done} of {of}", self.user));
    }
}
