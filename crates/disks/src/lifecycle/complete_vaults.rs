//! When a vault that was restored, or made in the place of a lost one, has again all that is known to need it.
//!
//! Until then what it does not know is not refused for good (`vault::EmbeddedVault::incomplete`). It is looked at by the
//! headers: a restored catalog may be as old as the vault.

use vault::{KeyPermission, KeyUrl};

use crate::resource::reconcile::reconcile_one;
use installation::catalog::{CatalogError, DesIdentity, VaultRecord};
use installation::envelope::HeaderBuffer;
use installation::{Installation, InstallationError};
use uuid::Uuid;

/// A key version that something needs, and who is to be granted it.
struct Need {
    /// What needs it, in words.
    of: String,
    key: KeyUrl,
    /// `None` for a set that is not known, or has no identity.
    principal: Option<Uuid>,
}

/// Takes the mark from each vault that lacks nothing; what the others lack, in sentences.
pub(super) fn complete_vaults(
    installation: &Installation,
) -> Result<Vec<String>, InstallationError> {
    let needs = needs(installation)?;
    let mut lacking = Vec::new();
    for record in installation.vaults_here()? {
        let name = &record.name;
        match complete(installation, &record, &needs) {
            Ok(found) => lacking.extend(found),
            Err(error) => log::warn!("the key vault '{name}' was not looked at: {error}"),
        }
    }
    Ok(lacking)
}

fn complete(
    installation: &Installation,
    record: &VaultRecord,
    needs: &[Need],
) -> Result<Vec<String>, InstallationError> {
    let database = installation.vault_database(&record.name)?;
    // A deleted vault takes no change, and refuses everything for another reason.
    if database.incomplete()?.is_none() || database.deletion()?.is_some() {
        return Ok(Vec::new());
    }
    let policies = database.policies()?;
    let mut lacking = Vec::new();
    for need in needs {
        if need.key.vault_url != record.url {
            continue;
        }
        let version = need.key.key.version.as_deref();
        let has_key = database.has_version(&need.key.key.name, version)?;
        let is_granted = |id: Uuid| {
            let mut of_id = policies.iter().filter(|(of, _)| *of == id);
            of_id.any(|(_, granted)| granted.contains(KeyPermission::UnwrapKey))
        };
        let what = match (has_key, need.principal) {
            (false, _) => format!("does not have {}", need.key),
            (true, Some(id)) if !is_granted(id) => {
                format!(
                    "does not grant {id} the permission unwrapKey for {}",
                    need.key
                )
            }
            _ => continue,
        };
        lacking.push(format!(
            "the key vault '{}' {what}, which {} needs; if that is meant to be so: \
             `sealdisk keyvault update {} --complete`",
            record.name, need.of, record.name
        ));
    }
    lacking.dedup();
    if lacking.is_empty() {
        let vault = installation.vault(&record.name)?;
        vault.clear_incomplete(&installation.operator())?;
    }
    Ok(lacking)
}

/// What disks, snapshots and images need by their headers, or by the catalog where a header cannot be read.
fn needs(installation: &Installation) -> Result<Vec<Need>, InstallationError> {
    let (mut found, mut buffer) = (Vec::new(), HeaderBuffer::default());
    for row in installation.catalog().resources()? {
        let record = reconcile_one(installation, row, &mut buffer)?;
        let own = (&record.disk_encryption_set, &record.key_url);
        let layers = record.layers.iter();
        let layers = layers.map(|layer| (&layer.disk_encryption_set, &layer.key_url));
        for (set, key_url) in std::iter::once(own).chain(layers) {
            // What is no URL is in no vault.
            let Ok(key) = key_url.parse::<KeyUrl>() else {
                continue;
            };
            found.push(Need {
                of: format!("the {} '{}'", record.kind, record.name),
                key,
                principal: principal(installation, set.as_deref())?,
            });
        }
    }
    Ok(found)
}

fn principal(
    installation: &Installation,
    set: Option<&str>,
) -> Result<Option<Uuid>, InstallationError> {
    let Some(set) = set else {
        return Ok(Some(installation.platform().object_id));
    };
    match installation.catalog().des(set) {
        // Nobody can be granted what a set without an identity needs.
        Ok(set) if matches!(set.record.identity, DesIdentity::None) => Ok(None),
        Ok(set) => Ok(Some(set.record.principal_id)),
        Err(CatalogError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
