//! Media files that the server may not open, because they have another owner or a wrong mode.
//!
//! Such a file is sound, so its record stays. It is not listed to clients, so that the others go through. `mediaSanity` takes
//! devices with and without the file for complete. When the server may open the file again, its record gets a new usn, and
//! the devices that lack the file request it. A table of our own in `media.db` lists these files (`index`).

use std::path::Path;

use crate::error::Result;
use crate::files::access::{self, ServerUser};
use crate::media::file_paths::FilePaths;
use crate::media::index::{MediaDb, Record};
use crate::media::name::MediaName;
use crate::media::{MediaStore, State, lost_files};
use crate::text::counted::counted;

/// How many of the files are tried at a time.
const TRIED_AT_ONCE: u32 = 1000;

/// The first media file that the server could not open and still may not: its owner, and the command to type.
pub fn first_denied(who: &ServerUser, base: &Path, user_name: &str) -> Option<String> {
    let dir = base.join(user_name);
    if MediaDb::is_missing(&dir) {
        return None;
    }
    let names = MediaDb::open_to_read(&dir).and_then(|index| index.denied(TRIED_AT_ONCE)).ok()?;
    let paths = FilePaths::new(&dir);
    let mut paths =
        names.into_iter().filter_map(|name| MediaName::parse(name).ok()).map(|name| paths.path_of(&name));
    paths.find_map(|path| access::denied_to_read(who, base, &path))
}

impl MediaStore {
    /// Lists files to clients again that the server may open now. An error is only logged: other files are served.
    pub(super) fn list_allowed_again(&self, state: &mut State) {
        if state.may_have_denied
            && let Err(err) = self.try_to_list_again(state)
        {
            log::error!(
                "{}: media files that could not be opened are not listed yet: {err}",
                self.dir.display()
            );
        }
    }

    fn try_to_list_again(&self, state: &mut State) -> Result<()> {
        let names = if MediaDb::is_missing(&self.dir) {
            Vec::new()
        } else {
            state.reader(&self.dir, |db| db.denied(TRIED_AT_ONCE))?
        };
        state.may_have_denied = !names.is_empty();
        let mut allowed = Vec::new();
        for name in names {
            let parsed = MediaName::parse(name.clone()).ok();
            let record = match &parsed {
                Some(name) => state.reader(&self.dir, |db| db.record(name))?.filter(Record::is_live),
                None => None,
            };
            let is_denied = match (&parsed, &record) {
                (Some(name), Some(record)) => {
                    matches!(lost_files::open(&self.paths, name, record)?, Err(lost_files::Fault::Denied))
                }
                _ => false,
            };
            if !is_denied {
                allowed.push((name, parsed.zip(record)));
            }
        }
        if allowed.is_empty() {
            return Ok(());
        }
        let mut recording = state.writer(&self.dir)?.begin()?;
        for (name, listed) in &allowed {
            recording.stop_denying(name)?;
            // If the file is gone or damaged, that is noticed before it is listed.
            if let Some((name, record)) = listed {
                recording.put(name, record)?;
            }
        }
        recording.commit()?;
        let files = counted(allowed.len(), "media file");
        log::info!("{}: {files} can be opened again", self.dir.display());
        Ok(())
    }

    /// Logs the first of the files with the command to type, and how many others there are.
    pub(super) fn log_denied(&self, names: &[&MediaName]) {
        let Some(first) = names.first() else { return };
        let path = self.paths.path_of(first);
        let base = self.dir.parent().unwrap_or(&self.dir);
        let text = access::denied_to_read(&ServerUser::this_process(), base, &path);
        let text = text.unwrap_or_else(|| format!("{} may not be read by the server", path.display()));
        let others = match names.len() - 1 {
            0 => String::new(),
            others => format!(" and {}", counted(others, "other")),
        };
        log::error!("media file {:?}{others} cannot be sent to devices that lack it: {text}", first.as_str());
    }
}
