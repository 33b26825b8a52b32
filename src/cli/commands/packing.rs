//! Shared by the commands that write a user's collection and media into a package.

use std::io::ErrorKind;
use std::path::Path;

use crate::cli::progress::Progress;
use crate::collection::full::download::Snapshot;
use crate::error::{Error, Result};
use crate::files;
use crate::files::access::{self, ServerUser};
use crate::import_export::write_colpkg::{self, Event, Packed};
use crate::media;
use crate::media::file_paths::FilePaths;
use crate::text::counted::counted;

/// Writes the package of a user to `path`. Names on standard error each media file that cannot be read and is left out, and,
/// if that is because of an owner or a mode, the command to type.
pub fn pack(
    snapshot: &Snapshot,
    base: &Path,
    name: &str,
    path: &Path,
    progress: &mut Progress,
) -> Result<Packed> {
    let dir = base.join(name);
    files::refuse_link(&dir.join(media::FOLDER))?;
    let odd = FilePaths::new(&dir).odd_files()?;
    let server = ServerUser::of(base, files::holder(base));
    let mut remedy = None;
    let packed =
        write_colpkg::write(snapshot, &dir.join(media::FOLDER), &odd, path, &mut |event| match event {
            Event::Packed(files) => {
                progress.show(&format!("{name}: {} packed", counted(files, "media file")))
            }
            Event::LeftOut(file, err) => {
                progress.clear();
                eprintln!("ankipi: left out {}: {err}", file.display());
                if remedy.is_none() && err.kind() == ErrorKind::PermissionDenied {
                    let denied = |who: &ServerUser| access::denied_to_read(who, base, file);
                    remedy = denied(&server).or_else(|| denied(&ServerUser::this_process()));
                }
            }
        });
    progress.clear();
    if let Some(remedy) = remedy {
        eprintln!("ankipi: {remedy}");
    }
    packed.map_err(|err| match err {
        Error::Io(_, _, ref cause) if cause.kind() == ErrorKind::PermissionDenied => {
            access::denied_to(&server, base, name).map_or(err, |denied| Error::Broken(denied.text))
        }
        err => err,
    })
}
