//! Locks between processes: one server for a data folder, and no collection replaced while a command opens it.

use crate::error::{Error, Result};
use crate::files::access::{self, ServerUser};
use crate::files::owner::{give_to_owner_of, refuse_link};
use crate::os;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// Lock file of the server that runs on a data folder.
const LOCK_FILE: &str = ".ankipi.lock";

/// Locks a data folder until the returned file is closed. Only one server may run on a data folder: two would not know of
/// each other's sessions.
pub fn lock_data_folder(base: &Path) -> Result<DataFolderLock> {
    let path = base.join(LOCK_FILE);
    refuse_link(&path)?;
    // Not truncated before it is locked: it contains the process id of the server that holds the lock.
    let open =
        OpenOptions::new().write(true).create(true).truncate(false).custom_flags(os::NO_FOLLOW).open(&path);
    let mut file = open.map_err(|err| match err.kind() {
        io::ErrorKind::PermissionDenied => {
            let who = ServerUser::this_process();
            let why = access::denied_at(&who, base, base).or_else(|| access::denied_at(&who, base, &path));
            let why = why.unwrap_or_else(|| format!("{}: {err}", path.display()));
            Error::Broken(format!("{why}\n(or use another data folder with --base DIR)"))
        }
        io::ErrorKind::ReadOnlyFilesystem => read_only(base),
        _ => Error::Io("creating", path.clone(), err),
    })?;
    let socket = match file.try_lock() {
        Ok(()) => None,
        Err(TryLockError::WouldBlock) => return Err(is_running(base)),
        Err(TryLockError::Error(err)) if os::has_no_locks(&err) => {
            // The socket exists as long as the process, however the process ends.
            let bound = socket_name(base).and_then(|name| UnixListener::bind_addr(&name));
            match bound {
                Ok(socket) => Some(socket),
                Err(err) if err.kind() == io::ErrorKind::AddrInUse => return Err(is_running(base)),
                Err(err) => return Err(Error::Io("locking", path, err)),
            }
        }
        Err(TryLockError::Error(err)) => return Err(Error::Io("locking", path, err)),
    };
    let sign = |file: &mut File| {
        give_to_owner_of(base, file)?;
        file.set_len(0)?;
        write!(file, "{}", std::process::id())
    };
    sign(&mut file).map_err(Error::io("writing", &path))?;
    Ok(DataFolderLock { _file: file, _socket: socket })
}

/// The lock of a data folder. Dropping it releases the lock.
pub struct DataFolderLock {
    _file: File,
    /// The lock where the disk has none: an abstract socket with the folder's name. It is known to this machine only (to
    /// this network namespace).
    _socket: Option<UnixListener>,
}

fn socket_name(base: &Path) -> io::Result<SocketAddr> {
    let folder = fs::metadata(base)?;
    SocketAddr::from_abstract_name(format!("ankipi {} {}", folder.dev(), folder.ino()))
}

fn is_running(base: &Path) -> Error {
    Error::Broken(format!(
        "another ankipi is running on {}: stop it first, or use another folder with --base DIR",
        base.display()
    ))
}

/// The error for a data folder that cannot be written to because its file system, or systemd, says so.
pub fn read_only(base: &Path) -> Error {
    let dir = base.display();
    // systemd sets this for each service.
    Error::Broken(if std::env::var_os("INVOCATION_ID").is_some() {
        format!(
            "the data folder {dir} is read-only for this service: if its unit says ProtectSystem=strict or \
             DynamicUser=yes, run `systemctl edit ankipi`, write two lines, [Service] and ReadWritePaths={dir}, and \
             restart it; otherwise the disk is mounted read-only (`mount -o remount,rw`)"
        )
    } else {
        format!(
            "the data folder {dir} is on a disk that is mounted read-only: remount it (`mount -o remount,rw`), or use \
             another with --base DIR"
        )
    })
}

/// The process id of the server that runs on the data folder, if one does. It may be an id of another container.
pub fn holder(base: &Path) -> Option<u32> {
    is_in_use(base)
        .then(|| fs::read_to_string(base.join(LOCK_FILE)).ok()?.lines().next()?.parse().ok())
        .flatten()
}

/// Leaves a line for the owner beside the process id: a notice of the running server about its settings. The next start
/// deletes it.
pub fn leave_notice(base: &Path, notice: &str) -> Result<()> {
    let path = base.join(LOCK_FILE);
    let mut open = OpenOptions::new();
    let file = open.append(true).custom_flags(os::NO_FOLLOW).open(&path);
    file.and_then(|mut file| write!(file, "\n{notice}")).map_err(Error::io("writing", &path))
}

/// The notices of the running server.
pub fn notices(base: &Path) -> Vec<String> {
    let text = fs::read_to_string(base.join(LOCK_FILE)).unwrap_or_default();
    if is_in_use(base) { text.lines().skip(1).map(str::to_owned).collect() } else { Vec::new() }
}

/// The servers that run on this machine, as far as this user may see: process ids and data folders. A server keeps the lock
/// file of its data folder open.
pub fn running_servers() -> Vec<(u32, PathBuf)> {
    let mut servers = Vec::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(id) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        for open_file in fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten() {
            let Ok(path) = fs::read_link(open_file.path()) else { continue };
            // A command that locks a folder itself is not a server, nor is one in a container, whose path is not here.
            if path.file_name() == Some(LOCK_FILE.as_ref())
                && let Some(base) = path.parent()
                && holder(base) == Some(id)
            {
                servers.push((id, base.to_owned()));
            }
        }
    }
    servers
}

/// Whether a server runs on a data folder.
pub fn is_in_use(base: &Path) -> bool {
    File::open(base.join(LOCK_FILE)).is_ok_and(|file| match file.try_lock_shared() {
        Ok(()) => false,
        Err(TryLockError::WouldBlock) => true,
        Err(TryLockError::Error(_)) => {
            socket_name(base).and_then(|name| UnixStream::connect_addr(&name)).is_ok()
        }
    })
}

/// Waits for the exclusive lock of a file. Where the disk has no locks, only the owner's care prevents two changes at once.
pub fn lock_if_possible(file: &File) -> io::Result<()> {
    match file.lock() {
        Err(err) if os::has_no_locks(&err) => Ok(()),
        locked => locked,
    }
}

/// Shared lock on a user's folder: while it is held, the server does not replace files in it. For a process other than the
/// server that opens one: if the file were replaced after SQLite opened it, SQLite would use the journal of the new file
/// for the old one. `None` if the file system has no locks.
pub fn lock_against_replacement(dir: &Path) -> Option<File> {
    let folder = File::open(dir).ok()?;
    folder.lock_shared().ok().map(|()| folder)
}

/// Exclusive lock on a user's folder, to replace files in it: waits until all locks of `lock_against_replacement` are released. `None`
/// after `timeout` (the process that holds one must be suspended), and if the file system has no locks.
pub fn lock_for_replacement(dir: &Path, timeout: Duration) -> Option<File> {
    let folder = File::open(dir).ok()?;
    let started = Instant::now();
    loop {
        match folder.try_lock() {
            Ok(()) => return Some(folder),
            Err(TryLockError::WouldBlock) if started.elapsed() < timeout => {
                thread::sleep(Duration::from_millis(5));
            }
            Err(err) => {
                log::warn!(
                    "{}: no lock on the folder, replacing its files while another program may be opening them: {err}",
                    dir.display()
                );
                return None;
            }
        }
    }
}
