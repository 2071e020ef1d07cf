//! The identities that the token service knows: named users, and those of disk encryption sets.
//!
//! An identity proves itself to the token service by its secret (the `IDENTITY_HEADER` of Azure's
//! managed identities). The secret is 256 random bits, shown once and stored as its SHA-256.

use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use time::OffsetDateTime;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::{Installation, InstallationError, retrying};
use crate::catalog::{CatalogError, Change, IdentityOwner, IdentityRecord, Kind, Stored};
use keys::{fill_random, sha256};
use vault::audit::{AuditError, AuditRecord};
use vault::{Caller, VaultError, VaultErrorCode};

/// Random bytes of a secret.
const SECRET_LEN: usize = 32;
/// For how long tokens of an identity are counted where there is no room to record each.
const TOKENS_COUNTED: Duration = Duration::from_secs(3600);
/// The secret of an identity, to be handed to its owner once.
pub struct IdentitySecret(Zeroizing<String>);

impl IdentitySecret {
    /// The text that goes into `IDENTITY_HEADER`.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl IdentityRecord {
    /// Whether its secret is good no more.
    pub fn secret_has_ended(&self) -> bool {
        let end = self.secret_ends;
        end.is_some_and(|end| end <= OffsetDateTime::now_utc())
    }
}

/// What a deleted identity leaves behind.
pub struct DeletedIdentity {
    /// Its object id.
    pub object_id: Uuid,
    /// The vaults that still have an access policy for it.
    pub vaults_with_policy: Vec<String>,
}

impl Installation {
    /// Makes the identity of a user, who may use no key until it is granted.
    ///
    /// # Errors
    /// When the name is bad or taken.
    pub fn create_identity(
        &self,
        name: &str,
    ) -> Result<(IdentityRecord, IdentitySecret), InstallationError> {
        let client_id = Uuid::new_v4();
        let (secret, hash) = new_secret(client_id)?;
        let record = IdentityRecord {
            client_id,
            secret_hash: Some(hash),
            ..nobody(name)
        };
        self.insert_identity(&record)?;
        Ok((record, secret))
    }

    /// Adds the identity of a user or a program.
    pub(super) fn insert_identity(&self, record: &IdentityRecord) -> Result<(), InstallationError> {
        let name = record.owner.name();
        check_name(name)?;
        let catalog = self.catalog();
        catalog.refuse_locked(Kind::Identity, name, Change::Write)?;
        if catalog.identity(name).is_ok() {
            let (kind, name) = (Kind::Identity, name.into());
            return Err(CatalogError::Exists { kind, name }.into());
        }
        let intent = identity_record("IdentityCreate", record, &self.operator());
        self.recorded_identity(intent, || Ok(self.catalog().insert_identity(record)?))
    }

    /// The identity that `name` means: a user's name, or `disk-encryption-set/SET`.
    ///
    /// # Errors
    /// When there is none.
    pub fn find_identity(&self, name: &str) -> Result<Stored<IdentityRecord>, InstallationError> {
        Ok(match name.strip_prefix(IdentityOwner::SET_PREFIX) {
            Some(set) => self.catalog().identity_of_des(set)?,
            None => self.catalog().identity(name)?,
        })
    }

    /// The object id of a user's identity, which no management lock keeps from being changed like that, or from losing
    /// what is below it.
    pub(crate) fn unlocked_identity(
        &self,
        name: &str,
        change: Change,
    ) -> Result<Uuid, InstallationError> {
        let catalog = self.catalog();
        let identity = catalog.identity(name)?;
        catalog.refuse_locked(Kind::Identity, name, change)?;
        Ok(identity.record.object_id)
    }

    /// Gives an identity a new secret; the old one is worth nothing from then on, while tokens that
    /// were issued for it live out their time.
    ///
    /// # Errors
    /// When the identity is gone meanwhile.
    pub fn reset_secret(
        &self,
        identity: &Stored<IdentityRecord>,
    ) -> Result<IdentitySecret, InstallationError> {
        let name = identity.record.owner.to_string();
        retrying(|| self.try_reset_secret(&self.find_identity(&name)?))
    }

    fn try_reset_secret(
        &self,
        identity: &Stored<IdentityRecord>,
    ) -> Result<IdentitySecret, InstallationError> {
        let (secret, hash) = new_secret(identity.record.client_id)?;
        let intent = identity_record("IdentityResetSecret", &identity.record, &self.operator());
        self.recorded_identity(intent, || {
            let catalog = self.catalog();
            Ok(catalog.set_identity_secret(identity, Some(&hash), None)?)
        })?;
        Ok(secret)
    }

    /// Deletes the identity of a user: its secret and every token of it are worth nothing from then
    /// on.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn delete_identity(&self, name: &str) -> Result<DeletedIdentity, InstallationError> {
        retrying(|| self.try_delete_identity(name))
    }

    fn try_delete_identity(&self, name: &str) -> Result<DeletedIdentity, InstallationError> {
        let identity = self.catalog().identity(name)?;
        let catalog = self.catalog();
        catalog.refuse_locked(Kind::Identity, name, Change::Delete)?;
        let intent = identity_record("IdentityDelete", &identity.record, &self.operator());
        self.recorded_identity(intent, || Ok(self.catalog().delete_identity(&identity)?))?;
        let object_id = identity.record.object_id;
        Ok(DeletedIdentity {
            object_id,
            vaults_with_policy: self.vaults_with_policy(object_id)?,
        })
    }

    /// Records that an identity is given a token, in answer to a request from `peer`. Where there is room for essential
    /// records only, those of an identity and an address are counted, which takes next to none: who is to take access
    /// away then has to log in.
    ///
    /// # Errors
    /// When it cannot be recorded; the token must not be given then.
    pub fn record_token(
        &self,
        identity: &IdentityRecord,
        peer: SocketAddr,
    ) -> Result<(), InstallationError> {
        let caller = Caller::remote(identity.object_id, peer);
        let record = identity_record("TokenIssue", identity, &caller);
        let log = self.audit_log()?;
        match log.append(&record) {
            Err(AuditError::Full) => Ok(log.append_counted(record, TOKENS_COUNTED)?),
            recorded => Ok(recorded?),
        }
    }

    /// The identity whose secret that is.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn identity_by_secret(
        &self,
        secret: &str,
    ) -> Result<Option<IdentityRecord>, InstallationError> {
        let Some(client_id) = client_of(secret) else {
            return Ok(None);
        };
        let found = self.catalog().identity_by_client(client_id)?;
        // An identity that is not there is compared too, so that time does not tell which are.
        let known = found.as_ref().and_then(|identity| identity.secret_hash);
        let given = sha256(secret.as_bytes());
        let expected = known.unwrap_or_default();
        let equal = aws_lc_rs::constant_time::verify_slices_are_equal(&given, &expected).is_ok();
        let is_good = |identity: &IdentityRecord| !identity.secret_has_ended();
        Ok(found.filter(|identity| equal && known.is_some() && is_good(identity)))
    }
}

/// A new identity of that name, which has no secret.
pub(super) fn nobody(name: &str) -> IdentityRecord {
    IdentityRecord {
        object_id: Uuid::new_v4(),
        client_id: Uuid::new_v4(),
        owner: IdentityOwner::Named(name.into()),
        secret_hash: None,
        secret_ends: None,
        is_application: false,
        created: OffsetDateTime::now_utc(),
    }
}

/// The record of what is done with an identity.
pub(super) fn identity_record(
    operation: &str,
    identity: &IdentityRecord,
    caller: &Caller,
) -> AuditRecord {
    AuditRecord::new(caller.object_id, &caller.origin, operation)
        .with_detail(format!("{} {}", identity.object_id, identity.owner))
}

/// `CLIENT_ID.RANDOM`: the first part finds the identity, the second proves it.
pub(super) fn new_secret(client_id: Uuid) -> Result<(IdentitySecret, [u8; 32]), InstallationError> {
    let mut random = Zeroizing::new([0; SECRET_LEN]);
    fill_random(random.as_mut_slice())
        .map_err(|e| VaultError::caused(VaultErrorCode::Internal, "no secret was made", e))?;
    let random = Zeroizing::new(URL_SAFE_NO_PAD.encode(random.as_slice()));
    let secret = Zeroizing::new(format!("{}.{}", client_id.simple(), *random));
    let hash = sha256(secret.as_bytes());
    Ok((IdentitySecret(secret), hash))
}

fn client_of(secret: &str) -> Option<Uuid> {
    Uuid::try_parse(secret.split_once('.')?.0).ok()
}

/// Azure's rule for names of user-assigned identities: 3 to 128 letters, digits, `-` and `_`.
///
/// # Errors
/// For any other name.
pub fn check_name(name: &str) -> Result<(), InstallationError> {
    let allowed = (3..=128).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    if allowed {
        return Ok(());
    }
    Err(VaultError::new(
        VaultErrorCode::BadParameter,
        format!(
            "'{name}' is no name for an identity: use 3 to 128 letters, digits, '-' and '_', \
             beginning with a letter or digit"
        ),
    )
    .into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::contract::on_each;
    use crate::catalog::{DesIdentity, DiskEncryptionSetRecord, EncryptionType};

    #[test]
    fn a_secret_proves_its_identity_until_it_is_replaced_or_deleted() {
        on_each(|place| {
            let installation = place.installation();
            let (alice, secret) = installation.create_identity("alice").unwrap();
            installation.create_identity("bob").unwrap();
            let who = |secret: &str| installation.identity_by_secret(secret).unwrap();
            assert_eq!(who(secret.expose()), Some(alice.clone()));
            let mut wrong = secret.expose().to_owned();
            let last = wrong.pop().unwrap();
            wrong.push(if last == 'A' { 'B' } else { 'A' });
            for wrong in ["", ".", "x.y", &wrong, &secret.expose()[..40]] {
                assert_eq!(who(wrong), None, "{wrong}");
            }
            let stored = installation.find_identity("alice").unwrap();
            let newer = installation.reset_secret(&stored).unwrap();
            assert_eq!(who(secret.expose()), None);
            assert!(who(newer.expose()).is_some());
            installation.delete_identity("alice").unwrap();
            assert_eq!(who(newer.expose()), None);
            assert!(installation.find_identity("alice").is_err());
        });
    }

    #[test]
    fn the_identity_of_a_set_goes_with_the_set() {
        on_each(|place| {
            let installation = place.installation();
            let set = DiskEncryptionSetRecord {
                name: "set".into(),
                identity: DesIdentity::SystemAssigned,
                principal_id: Uuid::new_v4(),
                key_url: "https://v.vault.localhost/keys/k".into(),
                encryption_type: EncryptionType::default(),
                previous_keys: Vec::new(),
                auto_rotation: false,
                last_rotation: None,
                created: OffsetDateTime::now_utc(),
            };
            let catalog = installation.catalog();
            catalog.insert_des(&set).unwrap();
            let identity = installation
                .find_identity("disk-encryption-set/set")
                .unwrap();
            assert_eq!(identity.record.object_id, set.principal_id);
            assert_eq!(identity.record.secret_hash, None);
            let secret = installation.reset_secret(&identity).unwrap();
            let found = installation.identity_by_secret(secret.expose()).unwrap();
            assert_eq!(found.map(|i| i.object_id), Some(set.principal_id));
            let by_id = catalog.identity_by_object(set.principal_id).unwrap();
            assert!(by_id.is_some());
            catalog
                .delete_des("set", catalog.des("set").unwrap().rev)
                .unwrap();
            assert_eq!(
                installation.identity_by_secret(secret.expose()).unwrap(),
                None
            );
            assert_eq!(catalog.identity_by_object(set.principal_id).unwrap(), None);
            assert!(catalog.identities().unwrap().is_empty());
        });
    }

    #[test]
    fn bad_and_taken_names_are_refused() {
        on_each(|place| {
            let installation = place.installation();
            installation.create_identity("alice").unwrap();
            for bad in ["ab", "-ab", "a b", "a/b", "", &"x".repeat(129)] {
                assert!(installation.create_identity(bad).is_err(), "{bad}");
            }
            let error = installation.create_identity("alice").err().unwrap();
            assert!(
                matches!(
                    error,
                    InstallationError::Catalog(CatalogError::Exists { .. })
                ),
                "{error}"
            );
            let error = installation.find_identity("disk-encryption-set/none");
            assert!(error.is_err());
        });
    }
}
