//! `ankipi import`: imports the data of another sync server, or a package of Anki.

use std::path::Path;
use std::process::ExitCode;

use crate::accounts::users_file;
use crate::cli::command::{Command, FAILED, Invocation, say};
use crate::cli::progress::Progress;
use crate::collection::{Collection, FILE_NAME};
use crate::config::{Config, Flags, check_user_name};
use crate::error::{Error, Result};
use crate::files::data_folder;
use crate::import_export::from_other_servers::{Source, User, import, recognise, users};
use crate::import_export::read_colpkg;
use crate::text::counted::counted;
use crate::{files, logging};

/// `ankipi import`
pub static IMPORT: Command = Command {
    name: "import",
    arguments: "FOLDER | FILE.colpkg USER",
    summary: "take over another server's data, or a package of Anki",
    help: "\
FOLDER is the one of ankisyncd or anki-sync-server-rs, with auth.db and
collections/ in it. Its collections, media and accounts are copied into the data
folder. Stop both servers first. Devices log in again, with the passwords that
they had, and go on with a normal sync. The folder of Anki's own server needs no
import: point ankipi to it (SYNC_BASE). Media files that cannot be read are
named and left out; then the command ends with 1.

FILE.colpkg is what Anki exports (File > Export, with media) or `ankipi export`
writes. Its collection takes the place of that of USER, which is kept as a
backup, and its media are added. It is checked as an upload is. Stop the server
first. With the next sync each device asks; choose Download there. So a
collection can come from AnkiWeb.

Examples:
  ankipi import /opt/ankisyncd --base /var/lib/ankipi
  ankipi import /media/stick/anna.colpkg anna
",
    run,
};

fn run(mut invocation: Invocation) -> Result<ExitCode> {
    logging::start(log::LevelFilter::Warn, false);
    let words = invocation.words(1, 2)?;
    let source = Path::new(&words[0]);
    let config = invocation.settings(Flags::new())?.config()?;
    let is_package = source.extension().is_some_and(|extension| extension == "colpkg");
    match words.get(1) {
        Some(user) if is_package => return take_package(source, user, &config),
        None if is_package => return Err(Error::Usage("whose collection is it to become?".to_owned())),
        Some(_) => return Err(Error::Usage(format!("{:?} is no .colpkg", words[0]))),
        None => {}
    }
    if recognise(source)? == Source::Official {
        say(&format!(
            "{dir} is a data folder of Anki's own server, or of ankipi: there is nothing to import. Check it with\n  \
             ankipi check --base {dir}\nand start ankipi with SYNC_BASE={dir} and the same SYNC_USERn.\n",
            dir = source.display()
        ));
        return Ok(ExitCode::SUCCESS);
    }
    data_folder::init(&config.base)?;
    let _lock = files::lock_data_folder(&config.base)?;
    let (mut taken, mut failed, mut is_whole) = (0, 0, true);
    for user in users(source)? {
        match take(&user, &config.base, config.max_row_bytes) {
            Ok(unreadable) => {
                taken += 1;
                is_whole &= unreadable == 0;
            }
            Err(err) => {
                failed += 1;
                eprintln!("ankipi: {} is left out: {err}", user.name);
            }
        }
    }
    if taken + failed == 0 {
        return Err(Error::Broken(format!("no user in {} has a collection", source.display())));
    }
    Ok(ExitCode::from(if failed == 0 && is_whole { 0 } else { FAILED }))
}

fn take_package(package: &Path, name: &str, config: &Config) -> Result<ExitCode> {
    check_user_name(name)?;
    let base = &config.base;
    data_folder::init(base)?;
    let _lock = files::lock_data_folder(base)?;
    let dir = base.join(name);
    files::refuse_link(&dir)?;
    files::create_folder(&dir)?;
    let mut progress = Progress::start();
    progress.show_at_once("reading the collection");
    let imported =
        read_colpkg::import(package, &dir, config.backups, config.max_row_bytes, &mut |done, of| {
            progress.show(&format!("media file {done} of {of}"));
        });
    progress.clear();
    let imported = imported?;
    for fault in &imported.left_out {
        eprintln!("ankipi: left out {fault}");
    }
    let (notes, cards) = Collection::open_to_read(&dir.join(FILE_NAME))?.counts()?;
    let has_account =
        users_file::read(base)?.0.get(name).is_some() || config.users.iter().any(|user| user.name == name);
    let next = if has_account {
        "start the server, sync each device, and choose Download there".to_owned()
    } else {
        format!("no account has this name yet: `ankipi user add {name}`")
    };
    say(&format!("{name}: {}; {next}\n", contents((notes, cards), imported.files)));
    Ok(ExitCode::from(if imported.left_out.is_empty() { 0 } else { FAILED }))
}

fn contents((notes, cards): (u64, u64), media: u64) -> String {
    [counted(notes, "note"), counted(cards, "card"), counted(media, "media file")].join(", ")
}

/// Returns how many media files could not be read.
fn take(user: &User, base: &Path, max_row_bytes: u64) -> Result<u64> {
    check_user_name(&user.name)?;
    let add_account = || match &user.hash {
        Some(hash) => users_file::change(base, |users| {
            if users.get(&user.name).is_none() {
                users.set(&user.name, hash.clone());
            }
            Ok(users.get(&user.name) == Some(&Ok(hash.clone())))
        }),
        None => Ok(false),
    };
    let (media, has_account) = import(user, base, max_row_bytes, add_account)?;
    let (notes, cards) = Collection::open_to_read(&base.join(&user.name).join(FILE_NAME))?.counts()?;
    let left_out = match media.unusable + media.unreadable {
        0 => String::new(),
        count => format!(" ({count} left out)"),
    };
    let account = match (has_account, &user.hash) {
        (true, _) => "logs in with the password of before".to_owned(),
        (false, Some(_)) => "keeps the account that there was".to_owned(),
        (false, None) => format!("has no password yet: `ankipi user add {}`", user.name),
    };
    say(&format!("{}: {}{left_out}; {account}\n", user.name, contents((notes, cards), media.files)));
    Ok(media.unreadable)
}
