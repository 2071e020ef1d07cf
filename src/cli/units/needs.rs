//! What the unit of a disk has to be given beyond what every disk needs: paths, a network, a device.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::files::{Root, drop_ins};
use crate::cli::files::absolute;
use crate::cli::{CliError, Context};
use alarms::notify::Target;
use installation::Installation;

/// The state directory of the units.
pub(super) const STATE_DIR: &str = "/var/lib/sealdisk";
/// The runtime directory of the units.
pub(super) const RUNTIME_DIR: &str = "/run/sealdisk";

/// Options of the address of a catalog that name files.
const FILES: [&str; 4] = ["passfile", "sslrootcert", "sslcert", "sslkey"];
/// What `ProtectHome=yes` takes away.
const HOMES: [&str; 3] = ["/home", "/root", "/run/user"];
/// What the unit has for itself (`PrivateTmp=yes`).
const OWN: [&str; 2] = ["/tmp", "/var/tmp"];

/// The setting by which a drop-in gives a network.
const NETWORK: &str = "PrivateNetwork=no";

/// The option of `attach` that names who is told of events.
const ON_EVENT: &str = "--on-event";

/// What the unit of a disk needs.
#[derive(Debug, Default)]
pub(super) struct Needs {
    /// The installation's directory, when it is another than that of the units.
    pub(super) state_dir: Option<PathBuf>,
    /// Directories in which it changes files.
    pub(super) changed: Vec<PathBuf>,
    /// What has to be mounted before.
    pub(super) mounts: Vec<PathBuf>,
    /// Where the catalog is, when it is on a server.
    pub(super) catalog: Option<String>,
    /// The catalog is reached over a network.
    server: bool,
    /// A vault is elsewhere.
    network: bool,
    /// Events go to a webhook.
    webhook: bool,
    /// Events go to a program, which has what the unit has.
    program: bool,
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
        let catalog = &installation.place().catalog;
        let is_default = state_dir == Path::new(STATE_DIR);
        // Snapshots are made beside their disk.
        let beside = directory.parent().unwrap_or(directory);
        let of_socket = socket.parent().unwrap_or(Path::new("/"));
        let wanted = [state_dir.as_path(), beside, of_socket].into_iter();
        let wanted = wanted.chain(further.iter().map(PathBuf::as_path));
        let mut needs = Self {
            state_dir: (!is_default).then(|| state_dir.to_owned()),
            catalog: catalog.server().map(|url| url.as_str().to_owned()),
            server: catalog.needs_network(),
            mounts: vec![directory.to_owned()],
            ..Self::default()
        };
        for path in wanted {
            needs.give(path)?;
        }
        if let Some(url) = catalog.server() {
            needs.take_files(url.as_str())?;
        }
        for vault in installation.catalog().vaults()? {
            needs.network |= vault.record.kind.is_remote();
            needs.token |= vault.record.kind.token().is_some();
        }
        Ok(needs)
    }

    /// Gives it what these options of `attach` need: whoever is told of events over a network.
    ///
    /// # Errors
    /// [`CliError::usage`] for a program that the unit does not have.
    pub(super) fn take_options(&mut self, options: &[String]) -> Result<(), CliError> {
        let mut words = options.iter();
        while let Some(word) = words.next() {
            let value = match word.strip_prefix(ON_EVENT) {
                Some("") => words.next().map(String::as_str),
                Some(value) => value.strip_prefix('='),
                None => None,
            };
            // What is none of these, `attach` refuses.
            match value.map(str::parse) {
                Some(Ok(Target::Webhook(_))) => self.webhook = true,
                Some(Ok(Target::Command(words))) => self.take_program(&words)?,
                Some(Err(_)) | None => {}
            }
        }
        Ok(())
    }

    /// Gives it the files that the address of a catalog names.
    fn take_files(&mut self, url: &str) -> Result<(), CliError> {
        let options = url.split_once('?').map_or("", |(_, options)| options);
        for option in options.split('&') {
            let Some((name, value)) = option.split_once('=') else {
                continue;
            };
            if !FILES.contains(&name) {
                continue;
            }
            let path = PathBuf::from(value.replace("%2F", "/").replace("%2f", "/"));
            if is_in(&path, &OWN) {
                return Err(of_no_use(&path, "a file elsewhere"));
            }
            self.homes |= is_in(&path, &HOMES);
        }
        Ok(())
    }

    /// Gives it a program that tells somebody of events, who may be anywhere.
    fn take_program(&mut self, words: &[String]) -> Result<(), CliError> {
        self.program = true;
        let Some(program) = words.first().map(Path::new) else {
            return Ok(());
        };
        if is_in(program, &OWN) {
            return Err(of_no_use(program, "a program elsewhere"));
        }
        self.homes |= is_in(program, &HOMES);
        Ok(())
    }

    /// Gives it a directory, unless the unit has that already.
    fn give(&mut self, path: &Path) -> Result<(), CliError> {
        if is_in(path, &OWN) {
            return Err(of_no_use(path, "another directory"));
        }
        self.homes |= is_in(path, &HOMES);
        // What is not there yet is for the unit to say.
        self.overrides |= path.metadata().is_ok_and(|found| found.uid() != 0);
        let has = self.changed.iter().any(|dir| path.starts_with(dir));
        if !has && !is_in(path, &[STATE_DIR, RUNTIME_DIR]) {
            self.changed.push(path.to_owned());
        }
        Ok(())
    }

    /// The settings that give it what is no path.
    pub(super) fn settings(&self) -> Vec<&'static str> {
        let mut settings = Vec::new();
        let reasons = [
            (self.server, "# The catalog is on a server."),
            (
                self.network || self.token,
                "# A key vault is not a file of this host.",
            ),
            (self.webhook, "# Events go to a webhook."),
            (
                self.program,
                "# Events go to a program, which may tell somebody elsewhere.",
            ),
        ];
        let reasons = reasons.into_iter().filter(|(is_so, _)| *is_so);
        settings.extend(reasons.map(|(_, reason)| reason));
        if !settings.is_empty() {
            settings.extend([
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

fn is_in(path: &Path, dirs: &[&str]) -> bool {
    dirs.iter().any(|dir| path.starts_with(dir))
}

fn of_no_use(path: &Path, instead: &str) -> CliError {
    CliError::usage(format!(
        "{} is of no use to a unit, which has a /tmp and a /var/tmp of its own: name {instead}",
        path.display()
    ))
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
    fn files_that_the_address_of_the_catalog_names_are_seen() {
        for (options, homes) in [
            ("", false),
            ("?passfile=/etc/sealdisk/pgpass&host=/home", false),
            ("?passfile=/home/me/pgpass", true),
            ("?sslmode=verify-full&sslkey=%2Froot%2Fkey.pem", true),
        ] {
            let mut needs = Needs::default();
            let url = format!("postgres://me@db/d{options}");
            needs.take_files(&url).unwrap();
            assert_eq!(needs.homes, homes, "{url}");
        }
        let mut needs = Needs::default();
        assert!(
            needs
                .take_files("postgres://me@db/d?passfile=/tmp/p")
                .is_err()
        );
    }

    #[test]
    fn a_network_is_given_to_who_needs_one() {
        assert_eq!(Needs::default().settings(), Vec::<&str>::new());
        let remote = Needs {
            network: true,
            ..Needs::default()
        };
        assert!(remote.settings().contains(&NETWORK));
        let shared = Needs {
            server: true,
            ..Needs::default()
        };
        assert!(shared.settings().contains(&NETWORK));
        for (options, reason) in [
            (&["--on-event", "https://example.org/hook"][..], "webhook"),
            (&["--on-event=HTTPS://example.org/hook"][..], "webhook"),
            (
                &["--read-only", "--on-event", "/usr/bin/tell --all"][..],
                "program",
            ),
        ] {
            let mut told = Needs::default();
            let options: Vec<_> = options.iter().map(|word| (*word).to_owned()).collect();
            told.take_options(&options).unwrap();
            let settings = told.settings();
            let wanted = [
                NETWORK,
                "RestrictAddressFamilies=AF_INET AF_INET6",
                "IPAddressDeny=",
            ];
            assert_eq!(settings[1..], wanted, "{options:?}");
            assert!(settings[0].contains(reason), "{settings:?}");
        }
        let mut none = Needs::default();
        none.take_options(&["--serial".into(), "https".into()])
            .unwrap();
        assert!(none.settings().is_empty());
        let at = |path: &str| vec!["--on-event".to_owned(), path.to_owned()];
        none.take_options(&at("/home/me/tell")).unwrap();
        assert!(none.settings().contains(&"ProtectHome=no"));
        assert!(none.take_options(&at("/tmp/tell")).is_err());
    }
}
