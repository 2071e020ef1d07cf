//! How a key vault is printed.

use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::cli::{CliError, Tabular};
use installation::catalog::VaultRecord;
use vault::{EmbeddedVault, KeyType, KeyVault, NetworkRules};

#[derive(Serialize)]
pub(super) struct VaultView {
    name: String,
    #[serde(with = "time::serde::rfc3339")]
    created: OffsetDateTime,
    properties: VaultProperties,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct VaultProperties {
    vault_uri: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    own_ca: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    soft_delete_retention_in_days: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    enable_purge_protection: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    operations_limit: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    access_policies: Option<Vec<PolicyView>>,
    #[serde(flatten)]
    network: Option<NetworkView>,
}

/// From where the vault may be asked, by Azure's names.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NetworkView {
    public_network_access: &'static str,
    network_acls: NetworkAclsView,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NetworkAclsView {
    default_action: &'static str,
    bypass: &'static str,
    ip_rules: Vec<String>,
}

impl From<NetworkRules> for NetworkView {
    fn from(rules: NetworkRules) -> Self {
        let choose = |yes: bool, words: [&'static str; 2]| if yes { words[0] } else { words[1] };
        Self {
            public_network_access: choose(rules.public_access, ["Enabled", "Disabled"]),
            network_acls: NetworkAclsView {
                default_action: choose(rules.allow_by_default, ["Allow", "Deny"]),
                bypass: choose(rules.bypass_services, ["AzureServices", "None"]),
                ip_rules: rules.ip_rules.iter().map(ToString::to_string).collect(),
            },
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PolicyView {
    object_id: Uuid,
    permissions: PermissionsView,
}

#[derive(Serialize)]
struct PermissionsView {
    keys: Vec<&'static str>,
}

impl From<VaultRecord> for VaultView {
    fn from(record: VaultRecord) -> Self {
        Self {
            name: record.name,
            created: record.created,
            properties: VaultProperties {
                vault_uri: record.url,
                kind: Some(record.kind.name()),
                own_ca: record.kind.has_own_ca(),
                soft_delete_retention_in_days: None,
                enable_purge_protection: None,
                operations_limit: None,
                access_policies: None,
                network: None,
            },
        }
    }
}

impl Tabular for VaultView {
    const COLUMNS: &'static [&'static str] = &["name", "vaultUri", "kind"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.properties.vault_uri.clone(),
            self.properties.kind.unwrap_or("-").into(),
        ]
    }
}

pub(super) fn view(vault: &EmbeddedVault) -> Result<VaultView, CliError> {
    let policies = vault.policies()?.into_iter();
    let access_policies = policies
        .map(|(object_id, permissions)| PolicyView {
            object_id,
            permissions: PermissionsView {
                keys: permissions.names(),
            },
        })
        .collect();
    let settings = vault.settings()?;
    Ok(VaultView {
        name: vault.name().into(),
        created: vault.created(),
        properties: VaultProperties {
            vault_uri: vault.url().into(),
            kind: Some(match vault.key_type() {
                KeyType::Rsa => "Embedded",
                KeyType::RsaHsm => "Hsm",
            }),
            own_ca: None,
            soft_delete_retention_in_days: Some(settings.retention_days),
            enable_purge_protection: Some(settings.purge_protection),
            operations_limit: Some(vault.operations_limit()?),
            access_policies: Some(access_policies),
            network: Some(vault.network_rules()?.into()),
        },
    })
}
