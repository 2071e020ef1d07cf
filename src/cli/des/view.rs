//! How a disk encryption set and its keys are printed.

use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::cli::output::{NOTHING, key_cell};
use crate::cli::{Context, Tabular};
use disks::des::{DeletedDes, KeyUsage};
use installation::catalog::{DesIdentity, DiskEncryptionSetRecord};
use vault::KeyUrl;

/// Names of disks that a line of a table has; `-o json` has all.
const SHOWN_RESOURCES: usize = 5;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DesView {
    name: String,
    pub(super) identity: IdentityView,
    encryption_type: &'static str,
    active_key: ActiveKeyView,
    previous_keys: Vec<ActiveKeyView>,
    rotation_to_latest_key_version_enabled: bool,
    #[serde(with = "time::serde::rfc3339::option")]
    last_key_rotation_timestamp: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339")]
    created: OffsetDateTime,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct IdentityView {
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    principal_id: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_id: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    federated_client_id: Option<Uuid>,
}

impl IdentityView {
    fn new(principal_id: Uuid, identity: DesIdentity) -> Self {
        let of_system = |client_id: Option<Uuid>| match client_id {
            Some(_) => "UserAssigned",
            None => "SystemAssigned",
        };
        let plain = |r#type| Self {
            r#type,
            principal_id: Some(principal_id),
            client_id: None,
            endpoint: None,
            federated_client_id: None,
        };
        match identity {
            DesIdentity::None => Self {
                principal_id: None,
                ..plain("None")
            },
            DesIdentity::SystemAssigned => plain("SystemAssigned"),
            DesIdentity::UserAssigned {
                federated_client_id,
                ..
            } => Self {
                federated_client_id,
                ..plain("UserAssigned")
            },
            DesIdentity::Imds { client_id } => Self {
                client_id,
                ..plain(of_system(client_id))
            },
            DesIdentity::Endpoint { url, client_id, .. } => Self {
                client_id,
                endpoint: Some(url),
                ..plain(of_system(client_id))
            },
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ActiveKeyView {
    key_url: String,
    source_vault: SourceVaultView,
}

#[derive(Serialize)]
struct SourceVaultView {
    id: String,
}

impl From<String> for ActiveKeyView {
    fn from(key_url: String) -> Self {
        let vault_url = key_url.parse::<KeyUrl>().map(|url| url.vault_url);
        Self {
            source_vault: SourceVaultView {
                id: vault_url.unwrap_or_default(),
            },
            key_url,
        }
    }
}

impl From<DiskEncryptionSetRecord> for DesView {
    fn from(record: DiskEncryptionSetRecord) -> Self {
        Self {
            name: record.name,
            identity: IdentityView::new(record.principal_id, record.identity),
            encryption_type: record.encryption_type.as_str(),
            active_key: record.key_url.into(),
            previous_keys: record.previous_keys.into_iter().map(Into::into).collect(),
            rotation_to_latest_key_version_enabled: record.auto_rotation,
            last_key_rotation_timestamp: record.last_rotation,
            created: record.created,
        }
    }
}

impl Tabular for DesView {
    const COLUMNS: &'static [&'static str] = &["name", "key", "principalId", "autoRotation"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            key_cell(&self.active_key.key_url),
            self.identity
                .principal_id
                .map_or_else(|| NOTHING.into(), |id| id.to_string()),
            self.rotation_to_latest_key_version_enabled.to_string(),
        ]
    }
}

impl Tabular for KeyUsage {
    const COLUMNS: &'static [&'static str] = &["keyUrl", "active", "safeToDisable", "resources"];

    fn cells(&self) -> Vec<String> {
        let names: Vec<&str> = self.resources.iter().map(|r| r.name.as_str()).collect();
        let resources = match names.len() {
            0 => NOTHING.into(),
            1..=SHOWN_RESOURCES => names.join(" "),
            more => format!(
                "{} and {} more",
                names[..SHOWN_RESOURCES].join(" "),
                more - SHOWN_RESOURCES
            ),
        };
        vec![
            self.key_url.clone(),
            self.active.to_string(),
            self.safety.summary(),
            resources,
        ]
    }
}

/// What is left of an identity that is gone.
pub(super) fn note_policies(context: &Context, deleted: &DeletedDes) {
    for vault in &deleted.vaults_with_policy {
        context.output.note(&format!(
            "note: the key vault '{vault}' still has an access policy for its identity; remove it \
             with `sealdisk keyvault delete-policy {vault} --object-id {}`",
            deleted.principal_id
        ));
    }
}
