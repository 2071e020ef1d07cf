//! What a disk's drop-ins say.

use std::path::{Path, PathBuf};

use super::needs::Needs;
use crate::cli::CliError;
use installation::{CATALOG_VARIABLE, HOST_VARIABLE, given_host_name};

/// The first line of each: who has written it, and where other settings go.
const HEAD: &str = "# Written by `sealdisk enable`, which replaces it. Settings of your own go into another file beside it.\n";

/// The descriptor of the first socket that systemd passes (sd_listen_fds(3)).
const FIRST_SOCKET: i32 = 3;

/// How a disk is attached by its units.
pub(super) struct Wanted {
    /// The disk's name, which is that of the units' instance.
    pub(super) disk: String,
    /// Where its VMM connects.
    pub(super) socket: PathBuf,
    /// Who may connect, by name or number.
    pub(super) group: Option<String>,
    /// The permissions of the socket, in octal.
    pub(super) mode: Option<String>,
    /// systemd makes the socket, and starts the unit when somebody connects.
    pub(super) by_socket: bool,
    /// Further options of `attach`.
    pub(super) options: Vec<String>,
    /// What the unit has to be given for it.
    pub(super) needs: Needs,
}

impl Wanted {
    /// The options of `attach` that say where the socket is.
    fn socket_words(&self) -> Vec<String> {
        if self.by_socket {
            return vec!["--fd".into(), FIRST_SOCKET.to_string()];
        }
        let mut words = vec!["--socket-path".into(), self.socket.display().to_string()];
        for (option, value) in [
            ("--socket-group", &self.group),
            ("--socket-mode", &self.mode),
        ] {
            if let Some(value) = value {
                words.extend([option.to_owned(), value.clone()]);
            }
        }
        words
    }

    /// The words of `attach` that the unit will have, for a look at whether they make sense.
    pub(super) fn words(&self) -> Vec<String> {
        let mut words = vec![self.disk.clone()];
        words.extend(self.socket_words());
        words.extend(self.options.iter().cloned());
        words
    }

    /// The drop-in of the service.
    ///
    /// # Errors
    /// [`CliError::usage`], when a word cannot be in a unit.
    pub(super) fn service(&self) -> Result<String, CliError> {
        let Needs {
            state_dir,
            catalog,
            changed,
            mounts,
            ..
        } = &self.needs;
        let mut text = HEAD.to_owned();
        let mut of_unit = Vec::new();
        if self.by_socket {
            of_unit.push(format!("Requires=sealdisk@{}.socket", self.disk));
            of_unit.push(format!("After=sealdisk@{}.socket", self.disk));
        }
        for path in mounts {
            of_unit.push(format!("RequiresMountsFor={}", path_setting(path)?));
        }
        section(&mut text, "Unit", &of_unit);
        let mut of_service = vec![
            environment("SEALDISK_SOCKET", &self.socket_words())?,
            environment("SEALDISK_OPTIONS", &self.options)?,
        ];
        if let Some(dir) = state_dir {
            let dir = vec![dir.display().to_string()];
            of_service.push(environment("SEALDISK_STATE_DIR", &dir)?);
        }
        if let Some(name) = given_host_name() {
            of_service.push(environment(HOST_VARIABLE, &[name.to_owned()])?);
        }
        if let Some(url) = catalog {
            of_service.push(environment(CATALOG_VARIABLE, std::slice::from_ref(url))?);
        }
        for path in changed {
            of_service.push(format!("ReadWritePaths={}", path_setting(path)?));
        }
        of_service.extend(self.needs.settings().into_iter().map(Into::into));
        section(&mut text, "Service", &of_service);
        Ok(text)
    }

    /// The drop-in of the socket, if systemd makes it.
    ///
    /// # Errors
    /// As [`Wanted::service`].
    pub(super) fn socket(&self) -> Result<Option<String>, CliError> {
        if !self.by_socket {
            return Ok(None);
        }
        let mut settings = vec![
            "ListenStream=".to_owned(),
            format!("ListenStream={}", path_setting(&self.socket)?),
        ];
        if let Some(group) = &self.group {
            settings.push(format!("SocketGroup={}", word(group)?));
        }
        let default = self.group.as_ref().map(|_| "0660".to_owned());
        if let Some(mode) = self.mode.clone().or(default) {
            settings.push(format!("SocketMode={}", word(&mode)?));
        }
        let mut text = HEAD.to_owned();
        section(&mut text, "Socket", &settings);
        Ok(Some(text))
    }
}

fn section(text: &mut String, name: &str, settings: &[String]) {
    if settings.is_empty() {
        return;
    }
    text.push_str(&format!("\n[{name}]\n"));
    for setting in settings {
        text.push_str(setting);
        text.push('\n');
    }
}

/// A variable whose words the unit takes apart again.
fn environment(name: &str, words: &[String]) -> Result<String, CliError> {
    let words: Result<Vec<_>, _> = words.iter().map(|text| word(text)).collect();
    Ok(format!("Environment=\"{name}={}\"", words?.join(" ")))
}

/// A word as systemd reads it back: within the quotes of the setting, and then of the command line.
fn word(text: &str) -> Result<String, CliError> {
    if let Some(odd) = text
        .chars()
        .find(|c| "'\"\\".contains(*c) || c.is_control())
    {
        return Err(CliError::usage(format!(
            "'{}' cannot be in a unit, because of the character {odd:?}: choose another name",
            text.escape_debug()
        )));
    }
    let text = text.replace('%', "%%");
    Ok(match text.is_empty() || text.contains(' ') {
        true => format!("'{text}'"),
        false => text,
    })
}

/// A path as a setting of its own has it.
fn path_setting(path: &Path) -> Result<String, CliError> {
    let text = path.to_str().ok_or_else(|| {
        CliError::usage(format!(
            "{} cannot be in a unit, because it is not UTF-8: choose another name",
            path.display()
        ))
    })?;
    if text.contains(char::is_whitespace) {
        return Err(CliError::usage(format!(
            "'{}' cannot be in a unit, because of its spaces: choose another name",
            text.escape_debug()
        )));
    }
    word(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Wanted {
        Wanted {
            disk: "web".into(),
            socket: "/run/sealdisk/web.sock".into(),
            group: Some("kvm".into()),
            mode: None,
            by_socket: false,
            options: ["--num-queues", "4", "--serial", "my 5% disk"]
                .map(Into::into)
                .into(),
            needs: Needs::default(),
        }
    }

    #[test]
    fn the_service_gets_its_options_as_words_that_systemd_takes_apart_again() {
        let expected = format!(
            "{HEAD}
[Service]
Environment=\"SEALDISK_SOCKET=--socket-path /run/sealdisk/web.sock --socket-group kvm\"
Environment=\"SEALDISK_OPTIONS=--num-queues 4 --serial 'my 5%% disk'\"
"
        );
        assert_eq!(wanted().service().unwrap(), expected);
        assert_eq!(wanted().socket().unwrap(), None);
    }

    #[test]
    fn the_service_is_told_where_the_catalog_is() {
        let url = "postgres://me@db/d?passfile=/etc/pass&options=-csearch_path%3Ds";
        let mut wanted = wanted();
        wanted.needs.catalog = Some(url.into());
        let service = wanted.service().unwrap();
        let line = format!(
            "\nEnvironment=\"SEALDISK_CATALOG={}\"\n",
            url.replace('%', "%%")
        );
        assert!(service.contains(&line), "{service}");
    }

    #[test]
    fn a_socket_of_systemds_is_passed_on() {
        let wanted = Wanted {
            by_socket: true,
            ..wanted()
        };
        let service = wanted.service().unwrap();
        assert!(service.contains("SEALDISK_SOCKET=--fd 3\""), "{service}");
        assert!(
            service.contains("Requires=sealdisk@web.socket\n"),
            "{service}"
        );
        let socket = wanted.socket().unwrap().unwrap();
        let settings = "[Socket]\nListenStream=\nListenStream=/run/sealdisk/web.sock\nSocketGroup=kvm\nSocketMode=0660\n";
        assert!(socket.ends_with(settings), "{socket}");
    }

    #[test]
    fn what_would_mean_something_else_in_a_unit_is_refused() {
        for bad in ["a'b", "a\"b", "a\\b", "a\nb"] {
            let wanted = Wanted {
                options: vec!["--serial".into(), bad.into()],
                ..wanted()
            };
            assert_eq!(wanted.service().unwrap_err().status, 2, "{bad}");
        }
        let wanted = Wanted {
            socket: "/run/my disks/s".into(),
            by_socket: true,
            ..wanted()
        };
        assert!(wanted.socket().is_err());
    }
}
