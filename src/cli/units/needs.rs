//! What the unit of a disk has to be given beyond what every disk needs: paths, a network, a device.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::files::{Root, drop_ins};
use crate::cli::files::absolute;
use crate::cli::{CliError, Context};
use installation::Installation;

/// The state directory of the units.
pub(super) const STATE_DIR: &str = "/var/lib/sealdisk";
/// The runtime directory of the units.
pub(super) const RUNTIME_DIR: &str = "/run/sealdisk";

/// What `ProtectHome=yes` takes away.
const HOMES: [&str; 3] = ["/home", "/root", "/run/user"];
/// What the unit has for itself (`PrivateTmp=yes`).
const OWN: [&str; 2] = ["/tmp", "/var/tmp"];

/// The setting by which a drop-in gives a network.
const NETWORK: &str = "PrivateNetwork=no";

/// What the unit of a disk needs.
#[derive(Debug, Default)]
pub(super) struct Needs {
    /// The installation's directory, when it is another than that of the units.
    pub(super) state_dir: Option<PathBuf>,
    /// Directories in which it changes files.
    pub(super) changed: Vec<PathBuf>,
    /// What has to be mounted before.
    pub(super) mounts: Vec<PathBuf>,
    /// A vault is elsewhere, or a webhook.
    network: bool,
    /// A vault has its keys in a token, whose library may need anything.
    token: bool,
    /// One of the directories is in a user's home.
    homes: bool,
    /// One of the directories belongs to another user than root.
    overrides: bool,
}

impl Needs {
    /// Finds out what a disk needs whose files are in `directory`, with its socket at `socket` and with these further
    /// directories in which it may make snapshots.
    ///
    /// # Errors
    /// What the catalog says, or [`CliError::usage`] for a directory that the unit cannot have.
    pub(super) fn of(
        installation: &Installation,
        directory: &Path,
        socket: &Path,
        further: &[PathBuf],
    ) -> Result<Self, CliError> {
        let state_dir = &absolute("--state-dir", installation.state_dir())?;
        let is_default = state_dir == Path::new(STATE_DIR);
        // Snapshots are made beside their disk.
        let beside = directory.parent().unwrap_or(directory);
        let of_socket = socket.parent().unwrap_or(Path::new("/"));
        let wanted = [state_dir.as_path(), beside, of_socket].into_iter();
        let wanted = wanted.chain(further.iter().map(PathBuf::as_path));
        let mut needs = Self {
            state_dir: (!is_default).then(|| state_dir.to_owned()),
            mounts: vec![directory.to_owned()],
            ..Self::default()
        };
        for path in wanted {
            needs.give(path)?;
        }
        for vault in installation.catalog().vaults()? {
            needs.network |= vault.record.kind.is_remote();
            needs.token |= vault.record.kind.token().is_some();
        }
        Ok(needs)
    }

    /// Gives it what these options of `attach` need: a webhook is told over a network.
    pub(super) fn take_options(&mut self, options: &[String]) {
        let is_url = |word: &String| {
            let value = word.strip_prefix("--on-event=").unwrap_or(word);
            value.starts_with("http://") || value.starts_with("https://")
        };
        self.network |= options.iter().any(is_url);
    }

    /// Gives it a directory, unless the unit has that already.
    fn give(&mut self, path: &Path) -> Result<(), CliError> {
        let is_in = |dirs: &[&str]| dirs.iter().any(|dir| path.starts_with(dir));
        if is_in(&OWN) {
            return Err(CliError::usage(format!(
                "{} is of no use to a unit, which has a /tmp and a /var/tmp of its own: name another directory",
                path.display()
            )));
        }
        self.homes |= is_in(&HOMES);
        // What is not there yet is for the unit to say.
        self.overrides |= path.metadata().is_ok_and(|found| found.uid() != 0);
        let has = self.changed.iter().any(|dir| path.starts_with(dir));
        if !has && !is_in(&[STATE_DIR, RUNTIME_DIR]) {
            self.changed.push(path.to_owned());
        }
        Ok(())
    }

    /// The settings that give it what is no path.
    pub(super) fn settings(&self) -> Vec<&'static str> {
        let mut settings = Vec::new();
        if self.network || self.token {
            settings.extend([
                "# A key vault is not a file of this host, or events go to a webhook.",
                NETWORK,
                "RestrictAddressFamilies=AF_INET AF_INET6",
                "IPAddressDeny=",
            ]);
        }
        if self.token {
            settings.extend([
                "# A key vault has its keys in a token, whose library has files and devices that only it knows.",
                "DevicePolicy=auto",
                "DeviceAllow=",
                // It would be a list of devices.
                "ProtectClock=no",
                "MemoryDenyWriteExecute=no",
                "ProtectSystem=no",
            ]);
        }
        if self.homes {
            settings.push("ProtectHome=no");
        }
        if self.overrides {
            settings.extend([
                "# One of its directories is not root's.",
                "CapabilityBoundingSet=CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER",
            ]);
        }
        settings
    }
}

/// Says, after a vault elsewhere was connected, which units cannot reach it yet.
pub(in crate::cli) fn note_network(context: &Context) {
    let is_units = context
        .state_dir()
        .is_ok_and(|dir| dir == Path::new(STATE_DIR));
    if !is_units {
        return;
    }
    let without = drop_ins(&Root::default()).into_iter().filter(|(_, path)| {
        std::fs::read_to_string(path).is_ok_and(|text| !text.contains(NETWORK))
    });
    let disks: Vec<_> = without.map(|(disk, _)| disk).collect();
    if !disks.is_empty() {
        context.output.note(&format!(
            "note: the units of these disks have no network, and cannot reach a remote vault: {}; before they are to \
             use a key of it, run `sealdisk enable` again for each, and restart its unit",
            disks.join(" ")
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_that_the_unit_has_are_not_named_again() {
        let mut needs = Needs::default();
        for path in [
            "/var/lib/sealdisk/disks",
            "/run/sealdisk",
            "/srv/disks",
            "/srv/disks/inner",
            "/home/a",
        ] {
            needs.give(Path::new(path)).unwrap();
        }
        assert_eq!(needs.changed, ["/srv/disks", "/home/a"].map(PathBuf::from));
        assert!(needs.homes);
        assert!(needs.give(Path::new("/tmp/disks")).is_err());
        assert!(needs.give(Path::new("/tmpfs")).is_ok());
    }

    #[test]
    fn a_network_is_given_to_who_needs_one() {
        assert_eq!(Needs::default().settings(), Vec::<&str>::new());
        let remote = Needs {
            network: true,
            ..Needs::default()
        };
        assert!(remote.settings().contains(&NETWORK));
        let mut told = Needs::default();
        told.take_options(&["--on-event".into(), "/usr/bin/tell".into()]);
        assert!(told.settings().is_empty());
        told.take_options(&["--on-event".into(), "https://example.org/hook".into()]);
        assert!(told.settings().contains(&NETWORK));
    }
}
