//! What a vault does with deleted keys, who may do what in it, and from where.

use database::Connection;
use uuid::Uuid;

use super::subject::{Subject, VAULT_DELETE_POLICY};
use super::vault::EmbeddedVault;
use crate::refusal;
use crate::store;
use crate::{
    Caller, KeyPermission, NetworkRules, Permissions, VaultError, VaultErrorCode, VaultSettings,
};

impl EmbeddedVault {
    /// What the vault does with deleted keys.
    ///
    /// # Errors
    /// [`VaultErrorCode::Internal`].
    pub fn settings(&self) -> Result<VaultSettings, VaultError> {
        self.settings_in(&self.db())
    }

    /// Changes that. As for policies, who may reach the vault's files manages it.
    ///
    /// # Errors
    /// [`VaultErrorCode::BadParameter`] for another retention time than the vault was made with,
    /// which cannot be changed; [`VaultErrorCode::ForbiddenByPolicy`] when purge protection is to be
    /// switched off.
    pub fn update_settings(
        &self,
        caller: &Caller,
        settings: &VaultSettings,
    ) -> Result<(), VaultError> {
        let subject = Subject {
            detail: Some(format!(
                "retentionDays={} purgeProtection={}",
                settings.retention_days, settings.purge_protection
            )),
            ..Subject::vault("VaultUpdate")
        };
        self.audited(caller, &subject, |db| {
            settings.check()?;
            let now = self.settings_in(db)?;
            if settings.retention_days != now.retention_days {
                return Err(refusal::fixed_retention(&self.name, now.retention_days));
            }
            if now.purge_protection && !settings.purge_protection {
                return Err(VaultError::new(
                    VaultErrorCode::ForbiddenByPolicy,
                    format!(
                        "purge protection of the key vault '{}' cannot be switched off any more",
                        self.name
                    ),
                ));
            }
            store::update_vault(db, settings)
        })
    }

    /// From where the vault may be asked.
    ///
    /// # Errors
    /// [`VaultErrorCode::Internal`].
    pub fn network_rules(&self) -> Result<NetworkRules, VaultError> {
        store::network_rules(&self.db())
    }

    /// Changes that, for the next operation on.
    ///
    /// # Errors
    /// [`VaultErrorCode::BadParameter`] for too many rules.
    pub fn set_network_rules(
        &self,
        caller: &Caller,
        rules: &NetworkRules,
    ) -> Result<(), VaultError> {
        let subject = Subject {
            detail: Some(refusal::shortened(&rules.to_string())),
            ..Subject::vault("VaultUpdate")
        };
        self.audited(caller, &subject, |db| {
            rules.check()?;
            store::set_network_rules(db, rules)
        })
    }

    /// All access policies. Who may reach the vault's files manages it, so that this and the
    /// changes of policies need no policy; they are recorded all the same.
    ///
    /// # Errors
    /// [`VaultErrorCode::Internal`].
    pub fn policies(&self) -> Result<Vec<(Uuid, Permissions)>, VaultError> {
        store::policies(&self.db())
    }

    /// Replaces what an identity may do with the vault's keys.
    ///
    /// # Errors
    /// [`VaultErrorCode::Internal`].
    pub fn set_policy(
        &self,
        caller: &Caller,
        object_id: Uuid,
        permissions: &Permissions,
    ) -> Result<(), VaultError> {
        let subject = Subject::policy("VaultSetPolicy", object_id, permissions);
        self.audited(caller, &subject, |db| {
            store::set_policy(db, object_id, permissions)
        })
    }

    /// Takes everything from an identity, in a deleted vault too.
    ///
    /// # Errors
    /// [`VaultErrorCode::PolicyNotFound`] when it had nothing.
    pub fn delete_policy(&self, caller: &Caller, object_id: Uuid) -> Result<(), VaultError> {
        let none = Permissions::default();
        let subject = Subject::policy(VAULT_DELETE_POLICY, object_id, &none);
        self.audited(caller, &subject, |db| {
            if store::delete_policy(db, object_id)? {
                return Ok(());
            }
            Err(VaultError::new(
                VaultErrorCode::PolicyNotFound,
                format!(
                    "the key vault '{name}' has no access policy for {object_id}; \
                     `sealdisk keyvault show {name}` shows those that it has",
                    name = self.name
                ),
            ))
        })
    }

    /// Whether an identity has a permission, for a request that never becomes an operation. Nothing
    /// is recorded.
    ///
    /// # Errors
    /// [`VaultErrorCode::Forbidden`].
    pub fn check_permission(
        &self,
        caller: &Caller,
        permission: KeyPermission,
    ) -> Result<(), VaultError> {
        self.authorize(&self.db(), caller, permission)
    }

    /// Refuses who may not ask from where it is.
    pub(super) fn admit_from(
        &self,
        db: &Connection,
        caller: &Caller,
        permission: KeyPermission,
    ) -> Result<(), VaultError> {
        let rules = store::network_rules(db)?;
        match rules.refusal(&self.name, caller, permission) {
            None => Ok(()),
            Some(refused) => Err(refused),
        }
    }

    pub(super) fn authorize(
        &self,
        db: &Connection,
        caller: &Caller,
        permission: KeyPermission,
    ) -> Result<(), VaultError> {
        self.admit_from(db, caller, permission)?;
        let granted = store::permissions(db, caller.object_id)?;
        if granted.contains(permission) {
            return Ok(());
        }
        Err(refusal::forbidden(&self.name, caller, permission, &granted))
    }
}
