//! Applications: identities whose secrets the management API gives, to whoever may have them, as Microsoft Graph does.
//!
//! Such a secret, Graph's password, is kept as any other, with the time when it ends. Only what was made as an
//! application gets one in that way: nobody over the network replaces the secret of an identity of the operator's.

use time::OffsetDateTime;
use uuid::{Builder, Uuid};

use super::identities::{IdentitySecret, identity_record, new_secret, nobody};
use super::{Installation, InstallationError, retrying};
use crate::catalog::{CatalogError, Change, IdentityRecord, Kind, Stored};
use keys::sha256;
use vault::{Caller, VaultError, VaultErrorCode, moment};

impl IdentityRecord {
    /// What tells the password of an application from others that it had, and says nothing of it.
    pub fn password_id(&self) -> Option<Uuid> {
        let hash = self.secret_hash.filter(|_| self.is_application)?;
        let what = b"sealdisk password id v1\0".as_slice();
        let hash = sha256(&[what, self.object_id.as_bytes(), &hash].concat());
        let mut id = [0; 16];
        id.copy_from_slice(&hash[..16]);
        Some(Builder::from_custom_bytes(id).into_uuid())
    }
}

impl Installation {
    /// Makes an application, which has no password yet.
    ///
    /// # Errors
    /// When the name is bad or taken.
    pub fn create_application(&self, name: &str) -> Result<IdentityRecord, InstallationError> {
        let record = IdentityRecord {
            is_application: true,
            ..nobody(name)
        };
        self.insert_identity(&record)?;
        Ok(record)
    }

    /// Gives an application a password, which is told this once, as `by` has asked for.
    ///
    /// # Errors
    /// When there is no such application, it has a password, or it is locked.
    pub fn add_password(
        &self,
        application: Uuid,
        ends: OffsetDateTime,
        by: &Caller,
    ) -> Result<(IdentityRecord, IdentitySecret), InstallationError> {
        let record = self.application(application)?;
        let detail = format!(
            "{} {}, until {}",
            record.object_id,
            record.owner,
            moment(ends)
        );
        let intent = identity_record("ApplicationAddPassword", &record, by).with_detail(detail);
        let add = || -> Result<_, InstallationError> {
            let found = self.unlocked_application(application)?;
            if found.record.secret_hash.is_some() {
                let message = "the application has a password, and one is all that it can have: take that away first \
                               (az: without --append)";
                return Err(VaultError::new(VaultErrorCode::Conflict, message).into());
            }
            let (secret, hash) = new_secret(found.record.client_id)?;
            let catalog = self.catalog();
            catalog.set_identity_secret(&found, Some(&hash), Some(ends))?;
            let record = IdentityRecord {
                secret_hash: Some(hash),
                secret_ends: Some(ends),
                ..found.record
            };
            Ok((record, secret))
        };
        self.recorded_identity(intent, || retrying(add))
    }

    /// Takes a password of an application away, as `by` has asked for, while tokens that were issued for it live out
    /// their time.
    ///
    /// # Errors
    /// When there is no such application or password, or it is locked.
    pub fn remove_password(
        &self,
        application: Uuid,
        password: Uuid,
        by: &Caller,
    ) -> Result<(), InstallationError> {
        let record = self.application(application)?;
        let intent = identity_record("ApplicationRemovePassword", &record, by);
        let remove = || -> Result<(), InstallationError> {
            let found = self.unlocked_application(application)?;
            if found.record.password_id() != Some(password) {
                let message = format!("the application has no password with the id {password}");
                return Err(VaultError::new(VaultErrorCode::BadParameter, message).into());
            }
            Ok(self.catalog().set_identity_secret(&found, None, None)?)
        };
        self.recorded_identity(intent, || retrying(remove))
    }

    fn application(&self, object_id: Uuid) -> Result<IdentityRecord, InstallationError> {
        let known = self.catalog().identity_by_object(object_id)?;
        let known = known.filter(|known| known.is_application);
        Ok(known.ok_or_else(|| missing(object_id))?)
    }

    fn unlocked_application(
        &self,
        object_id: Uuid,
    ) -> Result<Stored<IdentityRecord>, InstallationError> {
        let catalog = self.catalog();
        let name = self.application(object_id)?.owner;
        let found = catalog.identity(name.name())?;
        // Another one may have got the name meanwhile.
        if found.record.object_id != object_id {
            return Err(missing(object_id).into());
        }
        catalog.refuse_locked(Kind::Identity, name.name(), Change::Write)?;
        Ok(found)
    }
}

fn missing(object_id: Uuid) -> CatalogError {
    CatalogError::NotFound {
        kind: Kind::Identity,
        name: object_id.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::contract::on_each;
    use time::Duration;

    #[test]
    fn an_application_has_one_password_that_ends() {
        on_each(|place| {
            let installation = place.installation();
            let by = installation.operator();
            let app = installation.create_application("pipeline").unwrap();
            assert_eq!(app.password_id(), None);
            let who = |secret: &IdentitySecret| {
                let found = installation.identity_by_secret(secret.expose()).unwrap();
                found.map(|identity| identity.object_id)
            };
            let ends = OffsetDateTime::now_utc() + Duration::days(1);
            let add = || installation.add_password(app.object_id, ends, &by);
            let (with, secret) = add().unwrap();
            assert_eq!(who(&secret), Some(app.object_id));
            let stored = installation.find_identity("pipeline").unwrap();
            assert_eq!(stored.record, with);
            assert!(add().is_err(), "it has one");
            let past = OffsetDateTime::now_utc() - Duration::SECOND;
            let catalog = installation.catalog();
            let hash = with.secret_hash.as_ref();
            catalog
                .set_identity_secret(&stored, hash, Some(past))
                .unwrap();
            assert_eq!(who(&secret), None, "it has ended");
            let id = with.password_id().unwrap();
            let remove = |id| installation.remove_password(app.object_id, id, &by);
            assert!(remove(Uuid::nil()).is_err());
            remove(id).unwrap();
            assert!(remove(id).is_err(), "twice");
            let (newer, secret) = add().unwrap();
            assert_ne!(newer.password_id(), Some(id));
            assert_eq!(who(&secret), Some(app.object_id));
            // One that the operator gives does not end.
            let stored = installation.find_identity("pipeline").unwrap();
            installation.reset_secret(&stored).unwrap();
            let stored = installation.find_identity("pipeline").unwrap().record;
            assert!(stored.is_application && stored.secret_ends.is_none());
        });
    }

    #[test]
    fn only_an_application_gets_a_password() {
        on_each(|place| {
            let installation = place.installation();
            let (alice, secret) = installation.create_identity("alice").unwrap();
            assert_eq!(alice.password_id(), None);
            let ends = OffsetDateTime::now_utc() + Duration::days(1);
            let by = installation.operator();
            let added = installation.add_password(alice.object_id, ends, &by);
            assert!(added.is_err());
            let removed = installation.remove_password(alice.object_id, Uuid::nil(), &by);
            assert!(removed.is_err());
            let found = installation.identity_by_secret(secret.expose()).unwrap();
            assert_eq!(found, Some(alice));
            assert!(installation.create_application("alice").is_err());
        });
    }
}
