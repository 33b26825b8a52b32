//! `ankipi import`: imports the data of another sync server.

use std::path::Path;
use std::process::ExitCode;

use crate::accounts::users_file;
use crate::cli::command::{Command, FAILED, Invocation, say};
use crate::collection::{Collection, FILE_NAME};
use crate::config::{Flags, check_user_name};
use crate::error::{Error, Result};
use crate::import_export::from_other_servers::{Source, User, import, recognise, users};
use crate::server::data_folder;
use crate::{files, logging};

/// `ankipi import`
pub static IMPORT: Command = Command {
    name: "import",
    arguments: "FOLDER",
    summary: "take over the data of another sync server",
    help: "\
Copies collections, media and accounts of ankisyncd or anki-sync-server-rs into
the data folder. FOLDER is the one with auth.db and collections/ in it; it stays
as it is. Stop both servers first. Devices log in again, with the passwords that
they had, and go on with a normal sync.

The folder of Anki's own server needs no import: point ankipi to it (SYNC_BASE).

Example:
  ankipi import /opt/ankisyncd --base /var/lib/ankipi
",
    run,
};

fn run(mut invocation: Invocation) -> Result<ExitCode> {
    logging::start(log::LevelFilter::Warn, false);
    let source = invocation.words(1, 1)?.remove(0);
    let source = Path::new(&source);
    let config = invocation.settings(Flags::new())?.config()?;
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
    let (mut taken, mut failed) = (0, 0);
    for user in users(source)? {
        match take(&user, &config.base, config.max_row_bytes) {
            Ok(()) => taken += 1,
            Err(err) => {
                failed += 1;
                eprintln!("ankipi: {} is left out: {err}", user.name);
            }
        }
    }
    if taken + failed == 0 {
        return Err(Error::Broken(format!("no user in {} has a collection", source.display())));
    }
    Ok(ExitCode::from(if failed == 0 { 0 } else { FAILED }))
}

fn take(user: &User, base: &Path, max_row_bytes: u64) -> Result<()> {
    check_user_name(&user.name)?;
    let media = import(user, base, max_row_bytes)?;
    let has_account = match &user.hash {
        Some(hash) => users_file::change(base, |users| {
            if users.get(&user.name).is_none() {
                users.set(&user.name, hash.clone());
            }
            Ok(users.get(&user.name) == Some(&Ok(hash.clone())))
        })?,
        None => false,
    };
    let (notes, cards) = Collection::open_to_read(&base.join(&user.name).join(FILE_NAME))?.counts()?;
    let unusable = match media.unusable {
        0 => String::new(),
        count => format!(" ({count} left out)"),
    };
    let account = match (has_account, &user.hash) {
        (true, _) => "logs in with the password of before".to_owned(),
        (false, Some(_)) => "keeps the account that there was".to_owned(),
        (false, None) => format!("has no password yet: `ankipi user add {}`", user.name),
    };
    say(&format!(
        "{}: {notes} notes, {cards} cards, {} media files{unusable}; {account}\n",
        user.name, media.files
    ));
    Ok(())
}
