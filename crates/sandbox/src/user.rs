//! The user that a data plane runs as.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::str::FromStr;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::SandboxError;

/// A user and a group, by their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

/// The first number of a user of no name, and how many there are. Neither systemd nor the distributions give any of
/// these to users or containers.
const FIRST: u32 = 0x7000_0000;
const COUNT: u32 = 0x1_0000;
/// The same where a container has ids of 16 bits only: those that systemd has for users without a name.
const FIRST_OF_16_BITS: u32 = 61_184;
const COUNT_OF_16_BITS: u32 = 4_336;

/// Where the lock of each such user is. It is the host's: data planes of other installations must have others.
const LOCKS: &str = "/run/sealdisk-users";

impl User {
    /// Whether it is one of those that a launcher chooses, which no other process has.
    pub fn is_nobody_elses(self) -> bool {
        let is_of = |first, count| (first..first + count).contains(&self.uid);
        is_of(FIRST, COUNT) || is_of(FIRST_OF_16_BITS, COUNT_OF_16_BITS)
    }
}

/// `UID:GID`.
impl FromStr for User {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once(':').and_then(|(uid, gid)| {
            Some(Self {
                uid: uid.parse().ok()?,
                gid: gid.parse().ok()?,
            })
        });
        numbers.ok_or_else(|| format!("'{text}' is not UID:GID"))
    }
}

impl std::fmt::Display for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.uid, self.gid)
    }
}

/// A user that nobody else on this host has, for as long as this is kept.
#[derive(Debug)]
pub(crate) struct OwnUser {
    pub(crate) user: User,
    _lock: File,
}

impl OwnUser {
    /// The first that is free.
    ///
    /// # Errors
    /// [`SandboxError::User`] when none is, or when that cannot be known.
    pub(crate) fn choose() -> Result<Self, SandboxError> {
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        choose_in(Path::new(LOCKS), &map)
    }
}

fn choose_in(locks: &Path, uid_map: &str) -> Result<OwnUser, SandboxError> {
    let fail = |why: String| SandboxError::User {
        name: "of its own".into(),
        why: format!("{why}; name one with --user"),
    };
    let (first, count) = [(FIRST, COUNT), (FIRST_OF_16_BITS, COUNT_OF_16_BITS)]
        .into_iter()
        .find(|(first, count)| has_ids(uid_map, *first, *count))
        .ok_or_else(|| fail("this user namespace has too few".into()))?;
    let made = DirBuilder::new().recursive(true).mode(0o700).create(locks);
    made.map_err(|e| fail(format!("cannot make {}: {e}", locks.display())))?;
    for uid in first..first + count {
        let locked = lock(&locks.join(uid.to_string()));
        match locked {
            Ok(Some(lock)) => {
                let user = User { uid, gid: uid };
                return Ok(OwnUser { user, _lock: lock });
            }
            Ok(None) => {}
            Err(e) => return Err(fail(format!("cannot lock one in {}: {e}", locks.display()))),
        }
    }
    Err(fail("all are in use".into()))
}

/// The lock of a user, unless somebody else has it. Its file stays: one that is removed could be locked twice.
fn lock(path: &Path) -> io::Result<Option<File>> {
    let mut options = OpenOptions::new();
    let file = options
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether all these ids are in this user namespace, as /proc/self/uid_map has it.
fn has_ids(uid_map: &str, first: u32, count: u32) -> bool {
    let (first, end) = (u64::from(first), u64::from(first) + u64::from(count));
    uid_map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(|number| number.parse::<u64>());
        match (numbers.next(), numbers.next(), numbers.next()) {
            (Some(Ok(inside)), Some(Ok(_)), Some(Ok(len))) => {
                inside <= first && end <= inside + len
            }
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &str = "         0          0 4294967295\n";
    const CONTAINER: &str = "0 100000 65536\n";

    #[test]
    fn two_never_share_a_user_and_a_free_one_is_used_again() {
        let directory = tempfile::tempdir().unwrap();
        let locks = directory.path().join("users");
        let chosen: Vec<_> = (0..3).map(|_| choose_in(&locks, ALL).unwrap()).collect();
        let uids: Vec<_> = chosen.iter().map(|own| own.user.uid).collect();
        assert_eq!(uids, [FIRST, FIRST + 1, FIRST + 2]);
        let [first, second, _third] = <[OwnUser; 3]>::try_from(chosen).unwrap();
        drop(second);
        assert_eq!(choose_in(&locks, ALL).unwrap().user.uid, FIRST + 1);
        drop(first);
        let in_a_container = choose_in(&locks, CONTAINER).unwrap();
        assert_eq!(in_a_container.user.uid, FIRST_OF_16_BITS);
        assert!(choose_in(&locks, "0 1000 1\n").is_err());
        assert!(choose_in(&locks, "").is_err());
    }

    #[test]
    fn users_are_read_as_they_are_written() {
        let user = User { uid: 7, gid: 9 };
        assert_eq!(user.to_string().parse(), Ok(user));
        for bad in ["", "7", "7:", "a:b", "7:-1"] {
            assert!(bad.parse::<User>().is_err(), "{bad}");
        }
    }
}
