//! The audit logs of an installation by their databases alone: no vault is opened, no signing key is at hand, and nothing
//! is written.

use std::path::{Path, PathBuf};

use super::{Installation, InstallationError};
use database::Connection;
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
    path: PathBuf,
    is_vault: bool,
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
                    path: self.vaults_dir().join(record.name).join("vault.db"),
                    is_vault: true,
                });
            }
        }
        let path = self.state_dir().join("audit.db");
        if path.exists() {
            logs.push(LogDatabase {
                name: INSTALLATION_LOG.into(),
                path,
                is_vault: false,
            });
        }
        Ok(logs)
    }
}

impl LogDatabase {
    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Verifies the log by the public key that is in it, and against checkpoints of it that were kept elsewhere: without
    /// these, what is shown is that it is consistent in itself.
    ///
    /// # Errors
    /// [`InstallationError`]: it cannot be read. What does not fit is in the report.
    pub fn verify(&self, pins: &[Pin]) -> Result<Report, InstallationError> {
        let mut archives = Archives::default();
        if self.is_vault {
            let database = VaultDatabase::look(&self.path)?;
            return Ok(verify_database(
                database.connection(),
                &self.name,
                pins,
                &mut archives,
            )?);
        }
        let db = AuditLog::look_at_database(&self.path)?;
        Ok(verify_database(&db, &self.name, pins, &mut archives)?)
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
        let (vault, own);
        let db: &Connection = if self.is_vault {
            vault = VaultDatabase::look(&self.path)?;
            vault.connection()
        } else {
            own = AuditLog::look_at_database(&self.path)?;
            &own
        };
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
    use vault::VaultSettings;

    #[test]
    fn logs_are_read_and_verified_without_their_keys() {
        let dir = tempfile::tempdir().unwrap();
        let installation = Installation::open(dir.path()).unwrap();
        let names = |installation: &Installation| {
            let logs = installation.log_databases().unwrap().into_iter();
            logs.map(|log| log.name).collect::<Vec<_>>()
        };
        assert!(names(&installation).is_empty());
        installation
            .create_vault("myvault", &VaultSettings::default())
            .unwrap();
        installation.create_identity("alice").unwrap();
        assert_eq!(names(&installation), ["vault/myvault", "installation"]);
        for key in ["vaults/myvault/master.key", "audit.key"] {
            std::fs::remove_file(dir.path().join(key)).unwrap();
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
            let db = rusqlite::Connection::open(log.path()).unwrap();
            db.execute("UPDATE audit SET caller = 'mallory' WHERE seq = 1", [])
                .unwrap();
            let finding = log.verify(&[]).unwrap().finding.unwrap();
            assert_eq!(finding.seq, 1);
        }
    }
}
