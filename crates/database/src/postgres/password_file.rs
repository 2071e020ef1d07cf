//! Passwords in a file of libpq's form: `HOST:PORT:DATABASE:USER:PASSWORD` in each line, `*` for any.

use std::path::PathBuf;

use postgres::Config;
use postgres::config::Host;

use super::private::must_be_private;

/// The credential of systemd's (systemd.exec(5)) that a service may have the file as.
const CREDENTIAL: &str = "sealdisk-pgpass";

/// The password for the first host that the file has one for. `named` is a file that must be there.
pub(super) fn find(config: &Config, named: Option<PathBuf>) -> Result<Option<String>, String> {
    let below = |variable: &str, name: &str| {
        std::env::var_os(variable).map(|dir| PathBuf::from(dir).join(name))
    };
    let usual = || {
        let by_variable = std::env::var_os("PGPASSFILE").map(PathBuf::from);
        let credential = || below("CREDENTIALS_DIRECTORY", CREDENTIAL).filter(|path| path.exists());
        let by_default = by_variable.or_else(credential);
        by_default.or_else(|| below("HOME", ".pgpass"))
    };
    let path = match named {
        Some(path) => path,
        None => match usual().filter(|path| path.exists()) {
            Some(path) => path,
            None => return Ok(None),
        },
    };
    must_be_private(&path)?;
    let text = std::fs::read_to_string(&path);
    let text = text.map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    Ok(password(&text, config))
}

fn password(text: &str, config: &Config) -> Option<String> {
    let user = config.get_user().unwrap_or_default();
    let database = config.get_dbname().unwrap_or(user);
    let ports = config.get_ports();
    let of_host = |(at, host): (usize, &Host)| {
        let port = ports.get(at).or(ports.first()).unwrap_or(&5432).to_string();
        let names = match host {
            Host::Tcp(name) => vec![name.clone()],
            Host::Unix(path) => vec![path.display().to_string(), "localhost".into()],
        };
        let is = |field: &str, value: &str| field == "*" || field == value;
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines
            .map(fields)
            .find_map(|fields| match fields.as_slice() {
                [host, of_port, of_database, of_user, password]
                    if names.iter().any(|name| is(host, name))
                        && is(of_port, &port)
                        && is(of_database, database)
                        && is(of_user, user) =>
                {
                    Some(password.clone())
                }
                _ => None,
            })
    };
    config.get_hosts().iter().enumerate().find_map(of_host)
}

/// The fields of a line, in which `\` takes away what `:` and `\` mean.
fn fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            ':' if fields.len() < 5 => fields.push(String::new()),
            '\\' => push(&mut fields, characters.next()),
            other => push(&mut fields, Some(other)),
        }
    }
    fields
}

fn push(fields: &mut [String], character: Option<char>) {
    if let Some(field) = fields.last_mut() {
        field.extend(character);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_that_fits_has_the_password() {
        let text = "# c\nother:*:*:*:no\ndb1:5433:d:me:a\\:b\\\\c:d\n*:*:d:me:any\nlocalhost:*:*:*:local\n";
        for (url, expected) in [
            ("postgres://me@db1:5433/d", Some("a:b\\c:d")),
            ("postgres://me@db1/d", Some("any")),
            ("postgres://me@db2,other/e", Some("no")),
            ("postgres://me@db1/e", None),
            ("postgres://me@/e?host=/run/postgresql", Some("local")),
        ] {
            let config = url.parse().unwrap();
            assert_eq!(password(text, &config).as_deref(), expected, "{url}");
        }
    }

    #[test]
    fn a_file_that_others_can_read_or_that_is_missing_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pass");
        let config = "postgres://me@db/d".parse().unwrap();
        let find = || find(&config, Some(path.clone()));
        assert!(find().unwrap_err().contains("cannot read"));
        std::fs::write(&path, "*:*:*:*:p\n").unwrap();
        let mode = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode));
        mode(0o640).unwrap();
        assert!(find().unwrap_err().contains("chmod 600"));
        mode(0o600).unwrap();
        assert_eq!(find().unwrap().as_deref(), Some("p"));
    }
}
