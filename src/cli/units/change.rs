//! The change of a disk's units from how they are to how they are wanted: all of it, or none.

use super::drop_in::Wanted;
use super::files::{Before, Root, put, remove};
use super::systemctl::Systemctl;
use crate::cli::CliError;

/// The service of a disk.
pub(super) fn service(disk: &str) -> String {
    format!("sealdisk@{disk}.service")
}

/// The socket of a disk, which starts its service.
pub(super) fn socket(disk: &str) -> String {
    format!("sealdisk@{disk}.socket")
}

/// What was changed.
pub(super) struct Changed {
    /// The unit that the disk begins with.
    pub(super) unit: String,
    /// Whether a drop-in is another one than before.
    pub(super) drop_ins: bool,
    /// Whether the disk was served by the other unit, and is served by this one now.
    pub(super) moved: bool,
}

/// How the two units of a disk were.
struct Was {
    units: [String; 2],
    enabled: [bool; 2],
    at_work: [bool; 2],
    drop_ins: [Before; 2],
}

/// A change that is under way.
pub(super) struct Change<'a> {
    systemctl: &'a Systemctl,
    wanted: &'a Wanted,
    was: Was,
    /// Whether units were stopped or started.
    has_stopped: bool,
}

impl<'a> Change<'a> {
    /// Looks at how the units are.
    ///
    /// # Errors
    /// What keeps a drop-in from being read.
    pub(super) fn of(
        root: &Root,
        systemctl: &'a Systemctl,
        wanted: &'a Wanted,
    ) -> Result<Self, CliError> {
        let units = [service(&wanted.disk), socket(&wanted.disk)];
        let drop_ins = [
            Before::of(&root.drop_in(&units[0]))?,
            Before::of(&root.drop_in(&units[1]))?,
        ];
        let was = Was {
            enabled: [
                systemctl.is_enabled(&units[0]),
                systemctl.is_enabled(&units[1]),
            ],
            at_work: [
                systemctl.is_at_work(&units[0]),
                systemctl.is_at_work(&units[1]),
            ],
            units,
            drop_ins,
        };
        Ok(Self {
            systemctl,
            wanted,
            was,
            has_stopped: false,
        })
    }

    /// Writes the drop-ins, enables the unit that is wanted in place of the other, and has a disk that the other serves
    /// served by this one.
    ///
    /// # Errors
    /// What cannot be done; everything is as it was then, or the error says what is not.
    pub(super) fn make(mut self) -> Result<Changed, CliError> {
        self.steps().map_err(|error| self.undo(error))
    }

    fn steps(&mut self) -> Result<Changed, CliError> {
        let (service_text, socket_text) = (self.wanted.service()?, self.wanted.socket()?);
        let [of_service, of_socket] = &self.was.drop_ins;
        let mut drop_ins = put(of_service.path(), &service_text)?;
        drop_ins |= match socket_text {
            Some(text) => put(of_socket.path(), &text)?,
            None => remove(of_socket.path())?,
        };
        self.systemctl.reload()?;
        let [service, socket] = &self.was.units;
        let (unit, other) = match self.wanted.by_socket {
            true => (socket, service),
            false => (service, socket),
        };
        // The disk is attached at the start of the host, or when somebody connects, and not both.
        self.systemctl.run(&["disable"], &[other])?;
        self.systemctl.run(&["enable"], &[unit])?;
        // A service beside its socket is what the socket has started. A socket beside a service that has one of its own
        // takes it away, and the service gives way to no socket while it runs.
        let moved = match (self.wanted.by_socket, self.was.at_work) {
            (true, [service_works, socket_works]) => service_works && !socket_works,
            (false, [_, socket_works]) => socket_works,
        };
        if moved {
            self.has_stopped = true;
            stop(self.systemctl, &self.was.units)?;
            self.systemctl.run(&["start"], &[unit])?;
        }
        let unit = unit.clone();
        Ok(Changed {
            unit,
            drop_ins,
            moved,
        })
    }

    /// Brings back what was, as far as it can be.
    fn undo(&self, mut error: CliError) -> CliError {
        let mut left = Vec::new();
        let mut done = |what: Result<(), CliError>| {
            if let Err(error) = what {
                left.push(error.message);
            }
        };
        for before in &self.was.drop_ins {
            done(before.restore());
        }
        done(self.systemctl.reload());
        for (unit, was_enabled) in self.was.units.iter().zip(self.was.enabled) {
            if was_enabled != self.systemctl.is_enabled(unit) {
                let command = if was_enabled { "enable" } else { "disable" };
                done(self.systemctl.run(&[command], &[unit]));
            }
        }
        if self.has_stopped {
            done(stop(self.systemctl, &self.was.units));
            // The socket first: a service that it has started takes its descriptor.
            for at in [1, 0] {
                if self.was.at_work[at] {
                    done(self.systemctl.run(&["start"], &[&self.was.units[at]]));
                }
            }
        }
        error.message = match left.is_empty() {
            true => format!("{}; the units are as they were", error.message),
            false => format!(
                "{}; not everything is as it was ({}): look at `systemctl status {}`, and run the command again",
                error.message,
                left.join("; "),
                self.was.units.join(" ")
            ),
        };
        error
    }
}

/// Stops both units of a disk: the socket first, which would start the service again.
fn stop(systemctl: &Systemctl, units: &[String; 2]) -> Result<(), CliError> {
    systemctl.run(&["stop"], &[&units[1], &units[0]])
}

#[cfg(test)]
#[path = "change_tests.rs"]
mod tests;
