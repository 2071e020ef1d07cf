//! Files, networks, signals and abstract sockets, by Landlock: what is not named cannot be reached.

use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use crate::Missing;

/// The newest that this program knows. What a kernel does not know of it is left out.
const NEWEST: ABI = ABI::V10;
/// The newest that lets a process connect to any socket in a file system.
const WITHOUT_SOCKETS: ABI = ABI::V8;

/// What a process may do beneath a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Read files and list directories.
    Read,
    /// Read files, and start programs.
    Execute,
    /// Everything with files and directories.
    Change,
}

impl Use {
    fn access(self) -> BitFlags<AccessFs> {
        match self {
            Self::Read => AccessFs::ReadFile | AccessFs::ReadDir,
            Self::Execute => AccessFs::from_read(NEWEST),
            Self::Change => {
                let never = AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock;
                AccessFs::from_all(WITHOUT_SOCKETS) & !never
            }
        }
    }
}

/// What Landlock keeps from a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeps {
    /// Paths that no rule names, networks, and what is outside: processes to signal, abstract sockets.
    All,
    /// Files that no rule names. Sockets can be connected to.
    Files,
}

/// Restricts the calling thread, and threads and processes that it will start, to what is named; what of it is not
/// there needs no rule. It gains no privileges either.
pub fn restrict<'a>(
    keeps: Keeps,
    paths: impl IntoIterator<Item = (&'a Path, Use)>,
    missing: &mut Missing,
) {
    const WHAT: &str = "Landlock";
    let Some(status) = missing.or_note(WHAT, restricted(keeps, paths)) else {
        return;
    };
    match status.landlock {
        LandlockStatus::NotImplemented => missing.note(WHAT, "this kernel has none"),
        LandlockStatus::NotEnabled => {
            missing.note(WHAT, "it is not enabled: see lsm= of the kernel")
        }
        LandlockStatus::Available { effective_abi, .. } => {
            if status.ruleset == RulesetStatus::PartiallyEnforced {
                log::info!(
                    "Landlock as far as this kernel has it: {effective_abi:?} of {NEWEST:?}"
                );
            }
        }
    }
}

fn restricted<'a>(
    keeps: Keeps,
    paths: impl IntoIterator<Item = (&'a Path, Use)>,
) -> Result<landlock::RestrictionStatus, RulesetError> {
    let mut rules = handled(keeps)?;
    for (path, usage) in paths {
        let Ok(file) = std::fs::File::open(path) else {
            continue;
        };
        let is_directory = file.metadata().is_ok_and(|found| found.is_dir());
        let access = match is_directory {
            true => usage.access(),
            false => usage.access() & AccessFs::from_file(NEWEST),
        };
        rules = rules.add_rule(PathBeneath::new(file, access))?;
    }
    rules.restrict_self()
}

fn handled(keeps: Keeps) -> Result<RulesetCreated, RulesetError> {
    let rules = Ruleset::default();
    match keeps {
        Keeps::Files => rules
            .handle_access(AccessFs::from_all(WITHOUT_SOCKETS))?
            .create(),
        Keeps::All => rules
            .handle_access(AccessFs::from_all(NEWEST))?
            .handle_access(AccessNet::from_all(NEWEST))?
            .scope(Scope::from_all(NEWEST))?
            .create(),
    }
}
