//! Which host this is, for disks on storage that several hosts have.
//!
//! The header of an attached disk says where it is attached, and what a guest has written and not flushed is in memory
//! there. After the next boot of that host it is gone, and its guest with it. On another host it is out of reach while that
//! guest may go on; so the two are told apart, which the id of a boot alone does not do.
//!
//! A host is known by the id of its machine (machine-id(5)), or by a name that its operator gives it: where hosts have the
//! same id, since they were made of one image; where one has another id after each boot; where several are played on one
//! machine. Only a hash of either is written, behind what people call it: `NAME/ID`.

use std::fs;
use std::sync::OnceLock;
use std::time::Duration;

use keys::{hex, sha256};

/// The variable of the environment by which a process is told the name of its host.
pub const HOST_VARIABLE: &str = "SEALDISK_HOST";

/// How often a host renews its lease in a catalog that it shares.
pub const RENEWAL: Duration = Duration::from_secs(5);

/// How long that lease is good for: a renewal or two may get lost.
pub const LEASE: Duration = Duration::from_secs(15);

/// Characters of the name at most, so that a header has room for both (`HOST_NAME_MAX`).
const MAX_NAME: usize = 47;
/// Bytes of the hash that are written.
const ID_LEN: usize = 8;

static GIVEN: OnceLock<String> = OnceLock::new();

/// Checks a name for this host: 1 to 47 letters, digits, `.`, `-` and `_`.
///
/// # Errors
/// What is wrong, as a sentence.
pub fn check_host_name(name: &str) -> Result<String, String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    match (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(allowed) {
        true => Ok(name.to_owned()),
        false => Err(format!(
            "the name of a host has 1 to {MAX_NAME} letters, digits, '.', '-' and '_'"
        )),
    }
}

/// Gives this host a name that [`check_host_name`] has passed, for as long as this process lives. The first one counts.
pub fn name_host(name: String) {
    let _ = GIVEN.set(name);
}

/// The name that it was given.
pub fn given_host_name() -> Option<&'static str> {
    GIVEN.get().map(String::as_str)
}

/// This host, as the header of a disk that it has attached says it.
pub fn this_host() -> &'static str {
    static THIS: OnceLock<String> = OnceLock::new();
    THIS.get_or_init(|| match given_host_name() {
        Some(name) => described(name, "name", name),
        None => {
            let machine = read("/etc/machine-id");
            let name = read("/proc/sys/kernel/hostname");
            // Empty, or this word, where no system has written one yet. The name says less, and is not taken for
            // another host's all the same.
            match machine.is_empty() || machine == "uninitialized" {
                true => described(&name, "hostname", &name),
                false => described(&name, "machine", &machine),
            }
        }
    })
}

/// This host's id: what tells it from others, behind its name in [`this_host`].
pub fn this_host_id() -> &'static str {
    // What is said here has both.
    parts(this_host()).map_or("", |(_, id)| id)
}

/// The id in what a header says of a host. Nothing where it has a name alone.
pub fn id_of_host(said: &str) -> Option<&str> {
    parts(said).map(|(_, id)| id)
}

/// Tells this machine from others that were given the same name: a hash of its machine id, or of its hostname where it has
/// none.
pub(crate) fn this_machine() -> String {
    let machine = read("/etc/machine-id");
    let of = match machine.is_empty() || machine == "uninitialized" {
        true => read("/proc/sys/kernel/hostname"),
        false => machine,
    };
    let hash = sha256(format!("sealdisk machine {of}").as_bytes());
    hex(&hash[..ID_LEN])
}

/// The boot of this host's kernel.
pub(crate) fn this_boot() -> String {
    read("/proc/sys/kernel/random/boot_id")
}

/// Whether what a header says of a host is said of this one. Nothing where it has a name alone, as of an earlier version of
/// this program.
pub fn is_this_host(said: &str) -> Option<bool> {
    let (_, id) = parts(said)?;
    let (_, own) = parts(this_host())?;
    Some(id == own)
}

/// As people call the host of which a header says this.
pub fn name_of_host(said: &str) -> &str {
    parts(said).map_or(said, |(name, _)| name)
}

fn read(path: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.trim().to_owned()
}

fn parts(said: &str) -> Option<(&str, &str)> {
    let (name, id) = said.rsplit_once('/')?;
    let is_id = id.len() == 2 * ID_LEN && id.bytes().all(|b| b.is_ascii_hexdigit());
    is_id.then_some((name, id))
}

fn described(name: &str, kind: &str, of: &str) -> String {
    let hash = sha256(format!("sealdisk host {kind} {of}").as_bytes());
    let shown = name.chars().filter(|c| c.is_ascii_graphic() && *c != '/');
    let shown: String = shown.take(MAX_NAME).collect();
    let shown = if shown.is_empty() { "unknown" } else { &shown };
    format!("{shown}/{}", hex(&hash[..ID_LEN]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_is_told_from_others_and_from_what_says_nothing() {
        let this = this_host();
        assert_eq!(is_this_host(this), Some(true));
        assert!(this.len() <= 64, "{this}");
        assert_eq!(id_of_host(this), Some(this_host_id()));
        assert_eq!(this_host_id().len(), 2 * ID_LEN);
        assert_ne!(this_machine(), this_host_id());
        let other = described("other", "name", "other");
        assert_eq!(is_this_host(&other), Some(false));
        assert_eq!(name_of_host(&other), "other");
        for before in ["other", "", "a/b", "a/0123"] {
            assert_eq!(is_this_host(before), None, "{before}");
            assert_eq!(id_of_host(before), None, "{before}");
            assert_eq!(name_of_host(before), before);
        }
    }

    #[test]
    fn a_name_is_one_and_what_it_is_of_counts() {
        assert_eq!(described("a", "name", "a"), described("a", "name", "a"));
        assert_ne!(described("a", "name", "a"), described("a", "machine", "a"));
        assert_ne!(
            described("a", "machine", "1"),
            described("a", "machine", "2")
        );
        let long = described(&"é/x".repeat(40), "name", "x");
        assert_eq!(long.len(), 40 + 1 + 2 * ID_LEN);
        assert!(described("", "machine", "1").starts_with("unknown/"));
        assert!(check_host_name("node-1.example").is_ok());
        for wrong in ["", "a b", "a/b", "é", &"x".repeat(48)] {
            assert!(check_host_name(wrong).is_err(), "{wrong}");
        }
    }
}
