//! The refusals of a vault over HTTPS, with the command that helps where that vault is kept.

use uuid::Uuid;

use super::failure::Failure;
use super::operation::Operation;
use crate::{KeyId, VaultError, VaultErrorCode, Verdict};

/// The domains of Azure's vaults, in its several clouds.
const AZURE_VAULTS: [&str; 4] = [
    ".vault.azure.net",
    ".vault.azure.cn",
    ".vault.usgovcloudapi.net",
    ".vault.microsoftazure.de",
];
/// The domains of Azure's managed HSMs.
const AZURE_HSMS: [&str; 3] = [
    ".managedhsm.azure.net",
    ".managedhsm.azure.cn",
    ".managedhsm.usgovcloudapi.net",
];

/// What manages a vault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Admin {
    AzureVault,
    AzureHsm,
    Sealdisk,
}

impl Admin {
    fn of(host: &str) -> Self {
        let below = |domains: &[&str]| domains.iter().any(|domain| host.ends_with(domain));
        if below(&AZURE_VAULTS) {
            Self::AzureVault
        } else if below(&AZURE_HSMS) {
            Self::AzureHsm
        } else {
            Self::Sealdisk
        }
    }
}

/// Who was asked.
pub(super) struct Asked<'a> {
    pub url: &'a str,
    pub host: &'a str,
    /// The object id of the identity that asked, when a token has told it.
    pub identity: Option<Uuid>,
}

/// The error that a caller of `operation` with `key` gets.
pub(super) fn worded(
    vault: &Asked<'_>,
    operation: Operation,
    key: &KeyId,
    failure: Failure,
) -> VaultError {
    let place = Place {
        vault,
        key,
        admin: Admin::of(vault.host),
        short: vault.host.split('.').next().unwrap_or_default(),
    };
    let mut message = match failure.code {
        VaultErrorCode::Forbidden => place.forbidden(operation),
        VaultErrorCode::Unauthorized => place.unauthorized(),
        VaultErrorCode::KeyNotFound => place.key_error("is not there"),
        VaultErrorCode::KeyDeleted => format!(
            "{}; bring it back with {}",
            place.key_error("is deleted"),
            place.key_command("recover", "")
        ),
        VaultErrorCode::KeyDisabled => format!(
            "{}; enable it with {}",
            place.key_error("is disabled"),
            place.set_attributes("--enabled true")
        ),
        VaultErrorCode::KeyExpired => format!(
            "{}; change that with {}",
            place.key_error("has expired"),
            place.set_attributes("--expires TIME")
        ),
        VaultErrorCode::KeyNotYetValid => place.key_error("is not valid yet"),
        VaultErrorCode::UnwrapFailed => place.key_error("does not unwrap this wrapped key"),
        VaultErrorCode::Unreachable => {
            format!("the key vault {} cannot be asked now", vault.url)
        }
        _ => format!(
            "the key vault {} refused to {}",
            vault.url,
            operation.verb()
        ),
    };
    message = format!("{message} ({}", failure.detail);
    // Another sealdisk says in the same words what is said here already.
    let told = failure.code.verdict() == Verdict::Refused && place.admin == Admin::Sealdisk;
    if let Some(said) = failure.said.filter(|_| !told) {
        message = format!("{message}: {said}");
    }
    VaultError::new(failure.code, message + ")")
}

struct Place<'a> {
    vault: &'a Asked<'a>,
    key: &'a KeyId,
    admin: Admin,
    /// The vault's name where it is kept: the first part of its host name.
    short: &'a str,
}

impl Place<'_> {
    fn key_error(&self, what: &str) -> String {
        let version = self.key.version.as_ref();
        let version = version.map_or_else(String::new, |v| format!(" version {v}"));
        format!(
            "the key '{}'{version} in the key vault {} {what}",
            self.key.name, self.vault.url
        )
    }

    /// The command that changes the attributes of the key, or of its version where one is meant: a
    /// key URL with a version has nothing of the attributes of the latest.
    fn set_attributes(&self, option: &str) -> String {
        let version = self.key.version.as_ref();
        let version = version.map_or_else(String::new, |v| format!(" --version {v}"));
        self.key_command("set-attributes", &format!("{version} {option}"))
    }

    /// A command about the key, for whoever manages the vault.
    fn key_command(&self, command: &str, options: &str) -> String {
        let (name, short) = (&self.key.name, self.short);
        match self.admin {
            Admin::AzureVault => {
                format!("`az keyvault key {command} --vault-name {short} --name {name}{options}`")
            }
            Admin::AzureHsm => {
                format!("`az keyvault key {command} --hsm-name {short} --name {name}{options}`")
            }
            Admin::Sealdisk => format!(
                "`sealdisk keyvault key {command} {name} --vault-name {short}{options}` where the \
                 vault is kept"
            ),
        }
    }

    fn identity(&self) -> String {
        match self.vault.identity {
            Some(id) => id.to_string(),
            None => "OBJECT-ID".into(),
        }
    }

    fn forbidden(&self, operation: Operation) -> String {
        let (short, id) = (self.short, self.identity());
        let grant = match self.admin {
            Admin::AzureVault => format!(
                "`az keyvault set-policy --name {short} --object-id {id} --key-permissions get \
                 wrapKey unwrapKey`, or, in a vault with roles, `az role assignment create --role \
                 'Key Vault Crypto Service Encryption User' --assignee-object-id {id} \
                 --assignee-principal-type ServicePrincipal --scope VAULT-RESOURCE-ID`"
            ),
            Admin::AzureHsm => format!(
                "`az keyvault role assignment create --hsm-name {short} --role 'Managed HSM Crypto \
                 Service Encryption User' --assignee-object-id {id} --scope /keys/{}`",
                self.key.name
            ),
            Admin::Sealdisk => format!(
                "`sealdisk keyvault set-policy {short} --object-id {id} --key-permissions get \
                 wrapKey unwrapKey` where the vault is kept"
            ),
        };
        format!(
            "the identity {id} does not have the key permission '{}' in the key vault {}; grant it \
             with {grant}",
            operation.permission(),
            self.vault.url
        )
    }

    fn unauthorized(&self) -> String {
        format!(
            "the key vault {} does not know who asks: the identity of the disk encryption set is \
             deleted, or its token is not accepted",
            self.vault.url
        )
    }
}
