//! Directories that only their owner may look into, and names that are given once.
//!
//! # Giving a name
//!
//! What is long in the making is made under another name and gets its own one when it is whole, if that
//! is still free. `renameat2` with `RENAME_NOREPLACE` does that in one step, and NFS, CephFS and most
//! of FUSE do not have it. There, see [`rename_new`]:
//!
//! * A file gets its second name by `link`, which fails when that is taken, and loses its first one by
//!   `unlink`. A crash between the two leaves it under both.
//! * Where there are no hard links, an empty file that must be new (`O_EXCL`) takes the name, and the
//!   whole one is renamed over it. A crash between the two leaves the empty one.
//! * A directory is renamed over an empty one that must be new. A crash between the two leaves the
//!   empty one; `rename` never replaces a directory that has something in it.
//!
//! Long work tries that at its start, with what it has made by then ([`try_rename_new`]).

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::fs::{CWD, Mode, RenameFlags, fchmod, renameat_with};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use zeroize::Zeroizing;

use super::InstallationError;

/// Connections that wait to be accepted at most.
const BACKLOG: i32 = 128;

/// Makes `path` and what is missing above it with mode 0700, whatever the umask, and makes the new
/// directory entries durable. One that is there already must be a directory of this user, or of
/// root, in which nobody else can write.
///
/// # Errors
/// [`InstallationError::Directory`], [`InstallationError::Exposed`].
pub fn private_dir(path: &Path) -> Result<(), InstallationError> {
    let fail = |source| InstallationError::Directory {
        path: path.into(),
        source,
    };
    let missing: Vec<&Path> = path
        .ancestors()
        .take_while(|above| !above.as_os_str().is_empty() && !above.exists())
        .collect();
    if !missing.is_empty() {
        DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(path)
            .map_err(fail)?;
        for made in missing {
            match made.parent().filter(|p| !p.as_os_str().is_empty()) {
                Some(parent) => sync_dir(parent).map_err(fail)?,
                None => sync_dir(Path::new(".")).map_err(fail)?,
            }
        }
    }
    let metadata = fs::metadata(path).map_err(fail)?;
    let own = rustix::process::geteuid().as_raw();
    if metadata.mode() & 0o022 != 0 || (metadata.uid() != own && metadata.uid() != 0) {
        return Err(InstallationError::Exposed { path: path.into() });
    }
    Ok(())
}

/// As [`private_dir`], but a new directory has mode 0711: others can go through it to a socket that they
/// may use, and see no names. With `open_up` one that is there already gets that mode too if it is this
/// user's.
///
/// # Errors
/// As [`private_dir`].
pub fn passable_dir(path: &Path, open_up: bool) -> Result<(), InstallationError> {
    const PASSABLE: u32 = 0o711;
    let is_new = !path.exists();
    private_dir(path)?;
    let fail = |source| InstallationError::Directory {
        path: path.into(),
        source,
    };
    let found = fs::metadata(path).map_err(fail)?;
    let own = found.uid() == rustix::process::geteuid().as_raw();
    if is_new || (open_up && own && found.mode() & 0o011 != 0o011) {
        fs::set_permissions(path, Permissions::from_mode(PASSABLE)).map_err(fail)?;
    }
    Ok(())
}

/// A listening socket that only its owner can connect to, from the moment it is there and whatever the
/// umask.
///
/// # Errors
/// What the system said.
pub fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // unix(7): what is bound gets the mode of the socket, as far as the umask lets it.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// Gives a file or a directory, `from`, the name `to` on the same file system, which must be free.
///
/// # Errors
/// `AlreadyExists` when it is not; others, that the system said. `from` then is what it was.
pub fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {}
        result => return Ok(result?),
    }
    match fs::symlink_metadata(from)?.is_dir() {
        true => rename_new_directory(from, to),
        false => rename_new_file(from, to),
    }
}

/// Sees whether [`rename_new`] will work for `path`, which has a name that nobody else uses: gives it
/// another one and back.
///
/// # Errors
/// What the system said.
pub fn try_rename_new(path: &Path) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push("-named");
    let other = path.with_file_name(name);
    rename_new(path, &other)?;
    fs::rename(&other, path)
}

fn rename_new_file(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Ok(()) => fs::remove_file(from),
        // A server's answer that got lost is asked for again, and says so the second time.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && is_same(from, to) => {
            fs::remove_file(from)
        }
        Err(e) if has_no_links(&e) => {
            OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(to)?;
            fs::rename(from, to).inspect_err(|_| drop(fs::remove_file(to)))
        }
        Err(e) => Err(e),
    }
}

fn rename_new_directory(from: &Path, to: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(to)?;
    let over_it = match fs::rename(from, to) {
        // Not every file system renames over what is empty. Nothing is lost if somebody is faster.
        Err(e) if is_taken(&e) => fs::remove_dir(to).and_then(|()| fs::rename(from, to)),
        result => result,
    };
    // What is not empty is not removed.
    over_it.inspect_err(|_| drop(fs::remove_dir(to)))
}

fn is_taken(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EEXIST | libc::ENOTEMPTY | libc::EINVAL | libc::EPERM)
    )
}

/// Whether a link failed because the file system has none (link(2): `EPERM`), or has enough of them.
pub fn has_no_links(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EPERM | libc::EOPNOTSUPP | libc::ENOSYS | libc::EMLINK)
    )
}

fn is_same(one: &Path, other: &Path) -> bool {
    let id = |path| fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()));
    matches!((id(one), id(other)), (Ok(one), Ok(other)) if one == other)
}

/// Writes a file that only its owner can read, under a name that nobody has: whole or not at all.
///
/// # Errors
/// What the system said.
pub fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let staging = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&staging)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&staging, path)?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// Reads a key, of `limit` bytes at most, that nobody else may read.
///
/// # Errors
/// [`InstallationError::KeyFile`].
pub fn read_private(path: &Path, limit: u64) -> Result<Zeroizing<Vec<u8>>, InstallationError> {
    let read = || {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)?;
        let metadata = file.metadata()?;
        let own = rustix::process::geteuid().as_raw();
        if metadata.uid() != own || metadata.mode() & 0o077 != 0 {
            let why = format!("others than user {own} can read it or own it");
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(limit).unwrap_or(0)));
        file.take(limit).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().map_err(|source| InstallationError::KeyFile {
        path: path.into(),
        source,
    })
}

/// Whether there is anything of that name. What cannot be looked at is not taken for gone.
///
/// # Errors
/// What the system said.
pub fn is_there(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// Makes the names in a directory durable. Where a file system cannot do that for a directory alone
/// (`EINVAL`), nobody can.
///
/// # Errors
/// What the system said.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    match File::open(path)?.sync_all() {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn new_directories_are_for_the_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        private_dir(&path).unwrap();
        private_dir(&path).unwrap();
        for made in ["a", "a/b"] {
            let mode = fs::metadata(dir.path().join(made)).unwrap().mode();
            assert_eq!(mode & 0o777, 0o700, "{made}");
        }
    }

    #[test]
    fn others_pass_a_new_runtime_directory_and_an_old_one_when_that_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        let mode = || fs::metadata(&path).unwrap().mode() & 0o777;
        passable_dir(&path, false).unwrap();
        assert_eq!(mode(), 0o711);
        fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
        passable_dir(&path, false).unwrap();
        assert_eq!(mode(), 0o700);
        passable_dir(&path, true).unwrap();
        assert_eq!(mode(), 0o711);
    }

    #[test]
    fn what_cannot_be_looked_at_is_not_taken_for_gone() {
        let dir = tempfile::tempdir().unwrap();
        let is_there = |name: &str| is_there(&dir.path().join(name));
        assert!(!is_there("gone").unwrap());
        std::os::unix::fs::symlink("loop", dir.path().join("loop")).unwrap();
        assert!(is_there("loop").unwrap());
        is_there("loop/vault.db").unwrap_err();
    }

    /// The three ways of giving a name, of which a file system here has the first.
    #[test]
    fn no_way_of_giving_a_name_replaces_what_has_it() {
        type Way = fn(&Path, &Path) -> io::Result<()>;
        let without_links: Way = |from, to| {
            OpenOptions::new().write(true).create_new(true).open(to)?;
            fs::rename(from, to)
        };
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        for way in [rename_new as Way, rename_new_file, without_links] {
            fs::write(&from, b"new").unwrap();
            fs::write(&to, b"old").unwrap();
            assert_eq!(
                way(&from, &to).unwrap_err().kind(),
                io::ErrorKind::AlreadyExists
            );
            assert_eq!(fs::read(&from).unwrap(), b"new");
            assert_eq!(fs::read(&to).unwrap(), b"old");
            fs::remove_file(&to).unwrap();
            way(&from, &to).unwrap();
            assert_eq!(fs::read(&to).unwrap(), b"new");
            assert!(!from.exists());
            fs::remove_file(&to).unwrap();
        }
        for way in [rename_new as Way, rename_new_directory] {
            for taken in [true, false] {
                fs::create_dir(&from).unwrap();
                fs::write(from.join("in it"), b"new").unwrap();
                if taken {
                    fs::create_dir(&to).unwrap();
                }
                let named = way(&from, &to);
                assert_eq!(named.is_err(), taken, "{named:?}");
                assert_eq!(to.join("in it").exists(), !taken);
                let _ = fs::remove_dir_all(&from);
                fs::remove_dir_all(&to).unwrap();
            }
        }
    }

    #[test]
    fn a_directory_in_which_others_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("open");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o770)).unwrap();
        let error = private_dir(&path).unwrap_err();
        assert!(
            matches!(error, InstallationError::Exposed { .. }),
            "{error}"
        );
    }
}
