//! The audit logs of an installation by their databases alone: no vault is opened, no signing key is at hand, and nothing
//! is written.

use std::path::PathBuf;

use super::server_databases::{LOG, look_at_vault};
use super::{Installation, InstallationError};
use database::postgres::{self, ServerUrl};
use database::{Connection, Database};
use vault::VaultDatabase;
use vault::audit::{
    Archives, AuditError, AuditLog, Entry, Pin, Report, last_record, verify_database, visit_records,
};

/// What the installation's own log is called.
pub const INSTALLATION_LOG: &str = "installation";

/// What the log of a vault is called.
pub fn vault_log_name(vault: &str) -> String {
    format!("vault/{vault}")
}

/// The database of an audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogDatabase {
    /// What exports call the log.
    pub name: String,
    at: At,
    is_vault: bool,
}

/// Where a log is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum At {
    File(PathBuf),
    Server(ServerUrl),
}

/// The database of a log that is open to be looked at.
enum Looked {
    Vault(VaultDatabase),
    Own(Database),
}

impl Looked {
    fn connection(&self) -> &Connection {
        match self {
            Self::Vault(database) => database.connection(),
            Self::Own(database) => database,
        }
    }
}

impl Installation {
    /// The logs of the vaults that are kept here, and the installation's own one once there is one.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn log_databases(&self) -> Result<Vec<LogDatabase>, InstallationError> {
        let mut logs = Vec::new();
        for vault in self.catalog().vaults()? {
            let record = vault.record;
            // A remote vault keeps its own log.
            if !record.kind.is_remote() {
                logs.push(LogDatabase {
                    name: vault_log_name(&record.name),
                    at: match self.vault_on_server(&record.name) {
                        None => At::File(self.vault_file(&record.name)),
                        Some(url) => At::Server(url),
                    },
                    is_vault: true,
                });
            }
        }
        logs.extend(self.own_log_database()?);
        Ok(logs)
    }

    /// The installation's own log, once there is one.
    fn own_log_database(&self) -> Result<Option<LogDatabase>, InstallationError> {
        let at = match self.place().catalog.server() {
            None => {
                let path = self.state_dir().join("audit.db");
                path.exists().then_some(At::File(path))
            }
            Some(url) => {
                let is_there = postgres::look(url.as_str(), &LOG).map_err(AuditError::from)?;
                is_there.then(|| At::Server(url.clone()))
            }
        };
        Ok(at.map(|at| LogDatabase {
            name: INSTALLATION_LOG.into(),
            at,
            is_vault: false,
        }))
    }

    /// The number of the last record of the installation's own log, once there is one.
    ///
    /// # Errors
    /// [`InstallationError`]: it cannot be read.
    pub fn last_own_record(&self) -> Result<Option<u64>, InstallationError> {
        let Some(log) = self.own_log_database()? else {
            return Ok(None);
        };
        Ok(Some(last_record(log.look()?.connection())?))
    }
}

impl LogDatabase {
    fn look(&self) -> Result<Looked, InstallationError> {
        Ok(match (&self.at, self.is_vault) {
            (At::File(path), true) => Looked::Vault(VaultDatabase::look(path)?),
            (At::File(path), false) => Looked::Own(AuditLog::look_at_database(path)?),
            (At::Server(url), true) => {
                let database = look_at_vault(url).map_err(vault::VaultError::from)?;
                Looked::Vault(VaultDatabase::on_server(database, &url.to_string())?)
            }
            (At::Server(url), false) => {
                let found = postgres::open_as_it_is(url.as_str(), &LOG);
                let found = found.map_err(AuditError::from)?;
                Looked::Own(found.ok_or_else(|| {
                    let what = format!("the audit log at {url} is not there any more");
                    InstallationError::from(AuditError::Tampered { what })
                })?)
            }
        })
    }

    /// Verifies the log by the public key that is in it, and against checkpoints of it that were kept elsewhere: without
    /// these, what is shown is that it is consistent in itself.
    ///
    /// # Errors
    /// [`InstallationError`]: it cannot be read. What does not fit is in the report.
    pub fn verify(&self, pins: &[Pin]) -> Result<Report, InstallationError> {
        let (looked, mut archives) = (self.look()?, Archives::default());
        let db = looked.connection();
        Ok(verify_database(db, &self.name, pins, &mut archives)?)
    }

    /// Visits the records behind number `after`, or the last `most` of them, as they are stored. The number of the last
    /// one that there is.
    ///
    /// # Errors
    /// [`InstallationError`].
    pub fn visit_last(
        &self,
        after: u64,
        most: u64,
        mut visit: impl FnMut(Entry),
    ) -> Result<u64, InstallationError> {
        let looked = self.look()?;
        let db = looked.connection();
        let last = last_record(db)?;
        // The log of a vault that was put back to an earlier state, or made anew, begins again.
        let after = if after > last { 0 } else { after };
        let after = after.max(last.saturating_sub(most));
        if after < last {
            visit_records(db, after, |entry| {
                visit(entry);
                Ok::<_, AuditError>(())
            })?;
        }
        Ok(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::contract::on_each;
    use vault::VaultSettings;

    #[test]
    fn logs_are_read_and_verified_without_their_keys() {
        on_each(|place| {
            let installation = place.installation();
            let names = |installation: &Installation| {
                let logs = installation.log_databases().unwrap().into_iter();
                logs.map(|log| log.name).collect::<Vec<_>>()
            };
            assert!(names(&installation).is_empty());
            assert_eq!(installation.last_own_record().unwrap(), None);
            installation
                .create_vault("myvault", &VaultSettings::default())
                .unwrap();
            installation.create_identity("alice").unwrap();
            assert_eq!(names(&installation), ["vault/myvault", "installation"]);
            for key in ["vaults/myvault/master.key", "audit.key"] {
                std::fs::remove_file(installation.state_dir().join(key)).unwrap();
            }
            for log in installation.log_databases().unwrap() {
                let mut seen = Vec::new();
                let last = log
                    .visit_last(0, 1000, |entry| seen.push(entry.seq))
                    .unwrap();
                assert_eq!(seen.last(), Some(&last));
                let mut newest = Vec::new();
                log.visit_last(0, 1, |entry| newest.push(entry.seq))
                    .unwrap();
                assert_eq!(newest, [last]);
                assert_eq!(
                    log.visit_last(last, 1000, |_| panic!("none")).unwrap(),
                    last
                );
                log.visit_last(last + 9, 1, |_| newest.push(0)).unwrap();
                assert_eq!(newest.len(), 2, "it begins again");
                let report = log.verify(&[]).unwrap();
                assert_eq!((report.finding, report.records), (None, last));
                if !log.is_vault {
                    assert_eq!(installation.last_own_record().unwrap(), Some(last));
                }
                let db: Database = match &log.at {
                    At::File(path) => rusqlite::Connection::open(path).unwrap().into(),
                    At::Server(url) => log_database(url, log.is_vault),
                };
                db.execute("UPDATE audit SET caller = 'mallory' WHERE seq = 1", &[])
                    .unwrap();
                let finding = log.verify(&[]).unwrap().finding.unwrap();
                assert_eq!(finding.seq, 1);
            }
        });
    }

    fn log_database(url: &ServerUrl, is_vault: bool) -> Database {
        match is_vault {
            true => look_at_vault(url).unwrap(),
            false => postgres::open(url.as_str(), &LOG).unwrap(),
        }
    }
}
