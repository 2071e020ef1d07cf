//! What an attach process tells the program that goes on in its place, in the same process.
//!
//! It is JSON in sealed memory, with the numbers of descriptors that stay open. No secret is in it: the DEKs and the key
//! of the header come through a socket of their own, as they go to a data plane.
//!
//! A program says first which versions of it it reads (the subcommand [`VERSIONS`]), before anything is given up.
//! Whoever adds a field makes another version, and writes the highest that the other program reads.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::guard::key_guard::GuardState;
use crate::serve::event_hub::EventsState;
use crate::serve::passed::Passed;
use crate::status::{GuardOptions, Offered, Upgraded};
use installation::envelope::{HeaderPayload, SyncedFile};
use protocol::{Kept, Limits, Setup, Versions};

/// The subcommand by which a program tells which versions it reads.
pub const VERSIONS: &str = "attach-versions";

/// The versions that this program reads and writes.
pub(crate) const READS: Versions = Versions {
    lowest: 1,
    highest: 2,
};

/// Bytes of a state at most: a header and what is kept of a frontend are a fraction of that.
const MAX_LEN: u64 = 16 << 20;
/// Bytes of the answer of a program that is asked.
const MAX_ANSWER: u64 = 4096;

/// What is read and written, with its version.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Versioned {
    version: u16,
    attach: AttachState,
}

/// What an attach process is at.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct AttachState {
    /// The disk's name.
    pub(crate) disk: String,
    /// Where the program is that this process was started from first.
    pub(crate) program: PathBuf,
    pub(crate) options: GuardOptions,
    /// What the first data plane was told.
    pub(crate) setup: Setup,
    /// The disk as it is served.
    pub(crate) header: HeaderPayload,
    pub(crate) top: Uuid,
    pub(crate) size: u64,
    pub(crate) limits: Limits,
    pub(crate) runtime_path: PathBuf,
    pub(crate) failed_sync: Option<SyncedFile>,
    pub(crate) guard: GuardState,
    /// The layers whose DEKs are kept, from the top down.
    pub(crate) layers: Option<Vec<Uuid>>,
    pub(crate) offered: Offered,
    pub(crate) events: EventsState,
    pub(crate) restarts: u64,
    /// How many commands the data plane has had.
    pub(crate) sent: u64,
    /// What was heard of a message of it.
    pub(crate) heard: Vec<u8>,
    /// The id of the launcher's process.
    pub(crate) launcher: i32,
    /// The socket of the frontends.
    pub(crate) socket: SocketState,
    pub(crate) control_path: PathBuf,
    /// What came of the upgrade, for whoever waits for that.
    pub(crate) upgraded: Upgraded,
    pub(crate) kept: Vec<(Kept, Option<Passed>)>,
    pub(crate) descriptors: Descriptors,
}

/// The socket of the frontends.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct SocketState {
    pub(crate) listening: bool,
    /// Where it is in the file system, with its device and its number there, if it was bound.
    pub(crate) bound: Option<(PathBuf, u64, u64)>,
}

/// What stays open.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Descriptors {
    /// The command channel.
    pub(crate) commands: Passed,
    /// The launcher's socket.
    pub(crate) launcher: Passed,
    /// What names the process of the data plane; nothing before version 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) data_plane: Option<Passed>,
    /// The socket of the frontends.
    pub(crate) socket: Passed,
    /// The listening control socket.
    pub(crate) control: Passed,
    /// Through which the data plane has things kept, and the memory that outlives it.
    pub(crate) keep: Passed,
    pub(crate) region: Passed,
    pub(crate) runtime: Passed,
    /// The data file by which the disk is claimed.
    pub(crate) claim: Passed,
    /// Another open file of it, which knows what the kernel has lost; nothing before version 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) witness: Option<Passed>,
    /// Through which the keys come.
    pub(crate) keys: Passed,
    /// What signals were written to that came until now.
    pub(crate) end: Passed,
    pub(crate) hangup: Passed,
    /// Who waits for what came of the upgrade.
    pub(crate) client: Option<Passed>,
}

impl AttachState {
    /// Puts it into memory that nobody can change, as this version.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn write(self, version: u16) -> io::Result<File> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let mut file = File::from(memfd_create("sealdisk-attach", flags)?);
        let guard = match version {
            1 => self.guard.of_version_1(),
            _ => self.guard,
        };
        let attach = Self { guard, ..self };
        file.write_all(&serde_json::to_vec(&Versioned { version, attach })?)?;
        let all = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        fcntl_add_seals(&file, all)?;
        Ok(file)
    }

    /// Reads what [`AttachState::write`] wrote.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] for what this version does not know.
    pub(crate) fn read(file: &File) -> io::Result<Self> {
        use std::os::unix::fs::FileExt;
        let len = file.metadata()?.len();
        if len > MAX_LEN {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut json = vec![0; len as usize];
        file.read_exact_at(&mut json, 0)?;
        let read: Versioned = serde_json::from_slice(&json)?;
        match (READS.lowest..=READS.highest).contains(&read.version) {
            true => Ok(read.attach),
            false => Err(io::Error::other(format!(
                "the attach process tells in version {} what it is at, and this program reads {READS}",
                read.version
            ))),
        }
    }
}

/// What a program says that is asked which versions it reads, or why it cannot go on with the installation at all.
pub fn attach_versions(refused: Option<String>) -> String {
    let said = match refused {
        None => serde_json::to_string(&READS),
        Some(refused) => serde_json::to_string(&Unready { refused }),
    };
    // Numbers and a text have no reason to fail.
    said.unwrap_or_default()
}

/// Said in place of the versions.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Unready {
    refused: String,
}

/// The highest version that the other program reads too, which has said this.
///
/// # Errors
/// Why there is none, as a part of a sentence.
pub(crate) fn common_version(said: impl Read) -> Result<u16, String> {
    let mut answer = String::new();
    let read = said.take(MAX_ANSWER).read_to_string(&mut answer);
    let answer = read.map_or("", |_| answer.trim());
    if let Ok(Unready { refused }) = serde_json::from_str(answer) {
        return Err(format!("it cannot use the installation: {refused}"));
    }
    let theirs: Versions = serde_json::from_str(answer).map_err(|_| {
        "it does not say what it can read of an attach process: it must be a program of Sealdisk itself, and no script \
         that starts one"
    })?;
    let highest = READS.highest.min(theirs.highest);
    match highest >= READS.lowest.max(theirs.lowest) {
        true => Ok(highest),
        false => Err(format!(
            "it reads version {theirs} of what an attach process tells, this program writes {READS}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_reads_no_common_version_is_refused() {
        assert_eq!(common_version(attach_versions(None).as_bytes()), Ok(2));
        let both = common_version(br#"{"lowest":1,"highest":7}"#.as_slice());
        assert_eq!(both, Ok(2));
        let older = common_version(br#"{"lowest":1,"highest":1}"#.as_slice());
        assert_eq!(older, Ok(1));
        for (said, why) in [
            (r#"{"lowest":3,"highest":4}"#, "reads version 3 to 4"),
            ("error: unrecognized subcommand", "does not say"),
            ("", "does not say"),
            (
                &attach_versions(Some("it is newer".into())),
                "it cannot use the installation: it is newer",
            ),
        ] {
            let refused = common_version(said.as_bytes()).unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
    }

    #[test]
    fn a_state_of_another_version_is_refused_by_name() {
        let file = |json: &str| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(json.as_bytes()).unwrap();
            AttachState::read(&file).err().unwrap().to_string()
        };
        assert!(file(r#"{"version":1,"attach":{}}"#).contains("missing field"));
        assert!(file(r#"{"version":1,"why":2}"#).contains("unknown field `why`"));
        assert!(file("").contains("EOF"));
    }
}
