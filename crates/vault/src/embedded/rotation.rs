//! New versions of keys: on request, and by the rotation policy.

use database::Connection;
use time::OffsetDateTime;

use super::keys::{Gate, Make, NewVersion, latest};
use super::subject::Subject;
use super::vault::EmbeddedVault;
use crate::refusal;
use crate::rotation::RotationPolicy;
use crate::store::{self, KeyRow};
use crate::{
    AttributeChange, Caller, KeyBundle, KeyPermission, KeySize, VaultError, VaultErrorCode,
};

impl EmbeddedVault {
    /// Makes a new version of a key, like the latest one; its expiry is that of the rotation policy.
    ///
    /// # Errors
    /// `VaultErrorCode::Forbidden` without the permission `rotate`,
    /// `VaultErrorCode::KeyNotFound`.
    pub fn rotate_key(&self, caller: &Caller, name: &str) -> Result<KeyBundle, VaultError> {
        let subject = Subject::key("KeyRotate", name);
        let gate: Gate<'_> = &|db| {
            self.authorize(db, caller, KeyPermission::Rotate)?;
            self.find(db, &latest(name)).map(drop)
        };
        let failed = match self.read(|db| gate(db).and_then(|()| self.basis(db, name))) {
            Ok(basis) => return self.add_like(caller, &subject, gate, &basis),
            // Nor can it be recorded.
            Err(away) if away.code == VaultErrorCode::Unreachable => return Err(away),
            Err(failed) => failed,
        };
        self.audited(caller, &subject, |db| {
            // The refusal that counts is the one that is recorded.
            gate(db)?;
            // Where only the look has failed, nobody has changed anything.
            Err::<KeyBundle, _>(match failed.code {
                VaultErrorCode::Internal => failed.again(),
                _ => refusal::changed(name),
            })
        })
    }

    /// The rotation policy of a key; Azure's default for one that was given none.
    ///
    /// # Errors
    /// `VaultErrorCode::Forbidden` without the permission `getrotationpolicy`,
    /// `VaultErrorCode::KeyNotFound`.
    pub fn rotation_policy(
        &self,
        caller: &Caller,
        name: &str,
    ) -> Result<RotationPolicy, VaultError> {
        self.audited(caller, &Subject::key("KeyRotationPolicyGet", name), |db| {
            self.authorize(db, caller, KeyPermission::GetRotationPolicy)?;
            self.find(db, &latest(name))?;
            Ok(store::rotation_policy(db, name)?.unwrap_or_default())
        })
    }

    /// Replaces the rotation policy of a key.
    ///
    /// # Errors
    /// `VaultErrorCode::Forbidden` without the permission `setrotationpolicy`,
    /// `VaultErrorCode::KeyNotFound`, `VaultErrorCode::BadParameter`.
    pub fn set_rotation_policy(
        &self,
        caller: &Caller,
        name: &str,
        policy: &RotationPolicy,
    ) -> Result<RotationPolicy, VaultError> {
        self.audited(caller, &Subject::key("KeyRotationPolicySet", name), |db| {
            self.authorize(db, caller, KeyPermission::SetRotationPolicy)?;
            let name = self.find(db, &latest(name))?.name;
            policy.check()?;
            let now = self.clock.now().truncate_to_second();
            let before = store::rotation_policy(db, &name)?;
            let created = before.and_then(|policy| policy.attributes.created);
            let mut policy = policy.clone();
            policy.attributes.created = created.or(Some(now));
            policy.attributes.updated = Some(now);
            store::set_rotation_policy(db, &name, &policy)?;
            Ok(policy)
        })
    }

    pub(super) fn rotate_due(&self, name: &str) -> Result<KeyBundle, VaultError> {
        let basis = self.read(|db| self.basis(db, name))?;
        let subject = Subject {
            detail: Some("by the rotation policy".into()),
            ..Subject::key("KeyRotate", name)
        };
        let gate: Gate<'_> = &|db| match self.is_due(db, name, &basis.1, self.clock.now())? {
            true => Ok(()),
            false => Err(refusal::changed(name)),
        };
        self.add_like(&Caller::vault(), &subject, gate, &basis)
    }

    /// What the next version of a key is made after.
    fn basis(&self, db: &Connection, name: &str) -> Result<Basis, VaultError> {
        let row = self.find(db, &latest(name))?;
        Ok((row, store::rotation_policy(db, name)?.unwrap_or_default()))
    }

    pub(super) fn is_due(
        &self,
        db: &Connection,
        name: &str,
        policy: &RotationPolicy,
        now: OffsetDateTime,
    ) -> Result<bool, VaultError> {
        let Some(row) = store::key(db, &latest(name))? else {
            return Ok(false);
        };
        let at = policy.rotates_at(row.created, row.expires);
        Ok(at.is_some_and(|at| at <= now))
    }

    /// Adds a version that is like the one before.
    fn add_like(
        &self,
        caller: &Caller,
        subject: &Subject<'_>,
        gate: Gate<'_>,
        (row, policy): &Basis,
    ) -> Result<KeyBundle, VaultError> {
        let size = KeySize::of_modulus(&row.n)?;
        let attributes = AttributeChange {
            expires: policy.expires_at(self.clock.now()).map(Some),
            ..AttributeChange::default()
        };
        let new = NewVersion {
            name: &row.name,
            key_ops: &row.key_ops,
            attributes: &attributes,
            tags: &row.tags,
        };
        let make: Make<'_> = &|id| self.keys.generate(id, size);
        self.add_version(caller, subject, gate, &new, make)
    }
}

/// The latest version of a key and its rotation policy.
type Basis = (KeyRow, RotationPolicy);

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{NewKey, Permissions, SystemClock, VaultSettings};

    #[test]
    fn a_reader_that_fails_is_no_conflict() {
        let dir = tempfile::tempdir().unwrap();
        let settings = VaultSettings::default();
        let vault =
            EmbeddedVault::create(dir.path(), "v", &settings, Arc::new(SystemClock)).unwrap();
        let owner = Caller::local(uuid::Uuid::new_v4());
        let all = Permissions::all();
        vault.set_policy(&owner, owner.object_id, &all).unwrap();
        let new = NewKey::new(KeySize::Rsa2048);
        vault.create_key(&owner, "k", &new).unwrap();
        // For the reader alone a table of that name is another one.
        let other = "CREATE TEMP TABLE key_versions (none INTEGER)";
        vault
            .read(|db| Ok(db.execute(other, &[]).map(drop)?))
            .unwrap();
        let failed = vault.rotate_key(&owner, "k").unwrap_err();
        assert_eq!(failed.code, VaultErrorCode::Internal, "{failed}");
        let last = vault.audit_log().unwrap().pop().unwrap();
        assert_eq!(last.event.operation, "KeyRotate");
        assert_eq!(last.event.code.as_deref(), Some("InternalError"));
        vault
            .read(|db| Ok(db.execute("DROP TABLE temp.key_versions", &[]).map(drop)?))
            .unwrap();
        vault.rotate_key(&owner, "k").unwrap();
    }
}
