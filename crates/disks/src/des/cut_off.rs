//! What a change of a set would cut off from its key, or has left under another one.

use crate::resource::disk::Disk;
use crate::resource::error::DiskError;
use installation::catalog::{CatalogError, DiskEncryptionSetRecord, DiskRecord};
use installation::envelope::{EnvelopeError, HeaderPayload, LayerRecord, unwrap_one};
use installation::{Installation, InstallationError};
use keys::with_wiped_call_stack;
use vault::{VaultError, VaultErrorCode, Verdict, same_key_url};

use super::safety::{is_version_of, without_version};

/// Refuses another identity of a set that cannot use a key version which wraps something of the set now: old DEKs
/// are unwrapped in its name from then on, so what could be opened could be opened no more. What the identity of before
/// is refused as well is cut off already, and keeps nothing from changing. What has a header that cannot be read now does.
pub(super) fn refuse_cut_off(
    installation: &Installation,
    before: &DiskEncryptionSetRecord,
    after: &DiskEncryptionSetRecord,
) -> Result<(), InstallationError> {
    let mut tried: Vec<String> = Vec::new();
    for row in installation.catalog().resources_under(Some(&after.name))? {
        let row = row.record;
        let claims = match claims(installation, &row) {
            Ok(claims) => claims,
            Err(error) if is_none(&error) => continue,
            // It may be read again later, by an identity that may not unwrap what it says.
            Err(error) => return Err(unreadable(&row, &error)),
        };
        for layer in &claims.layers {
            let url = layer.envelope.key_url();
            let is_of_set = layer.disk_encryption_set.as_ref() == Some(&after.name);
            if !is_of_set || tried.contains(&url) {
                continue;
            }
            let Err(error) = try_as(installation, after, &row.name, layer) else {
                tried.push(url);
                continue;
            };
            if may_use(installation, before, &row.name, layer) {
                return Err(cut_off(&row, &url, error));
            }
            tried.push(url);
        }
    }
    Ok(())
}

fn claims(installation: &Installation, row: &DiskRecord) -> Result<HeaderPayload, DiskError> {
    let disk = Disk::of_kind(installation, row.kind, &row.name)?;
    let header = disk.header_file()?.read()?;
    disk.check_identity(header.claims())?;
    Ok(header.claims().clone())
}

/// Whether it is deleted, or not there yet.
fn is_none(error: &DiskError) -> bool {
    match error {
        DiskError::Unfinished { .. } => true,
        DiskError::Control(InstallationError::Catalog(error)) => {
            matches!(error, CatalogError::NotFound { .. })
        }
        _ => false,
    }
}

/// Where the header is only the log says: clients of the API are told too.
fn unreadable(row: &DiskRecord, error: &DiskError) -> InstallationError {
    log::error!("the header of the {} '{}': {error}", row.kind, row.name);
    let message = format!(
        "the header of the {} '{}' cannot be read ({}), so that nobody can tell whether the new identity of the set may \
         use its keys: mend it, delete it, or have the catalog forget it with `sealdisk disk unregister`",
        row.kind,
        row.name,
        error.code()
    );
    VaultError::new(VaultErrorCode::Conflict, message).into()
}

/// Unwraps the DEK of a layer in the name of a set with that record, and wipes it.
fn try_as(
    installation: &Installation,
    set: &DiskEncryptionSetRecord,
    disk: &str,
    layer: &LayerRecord,
) -> Result<(), InstallationError> {
    let envelope = &layer.envelope;
    let access = installation.unwrapping_key_of(set, &envelope.vault_url, envelope.key_id())?;
    let caller = access.caller.for_layer(disk, layer.id);
    let vault = access.vault.as_ref();
    match with_wiped_call_stack(|| unwrap_one(vault, &caller, layer.id, envelope).map(drop)) {
        Err(EnvelopeError::Vault(refusal)) => Err(refusal.into()),
        // The envelope is not one, whoever asks.
        _ => Ok(()),
    }
}

/// Whether the set with that record may use the key, as far as is known: a vault that cannot be asked has not refused.
fn may_use(
    installation: &Installation,
    set: &DiskEncryptionSetRecord,
    disk: &str,
    layer: &LayerRecord,
) -> bool {
    match try_as(installation, set, disk, layer) {
        Ok(()) => true,
        Err(InstallationError::Vault(error)) => error.code.verdict() == Verdict::Unknown,
        Err(_) => true,
    }
}

fn cut_off(row: &DiskRecord, url: &str, error: InstallationError) -> InstallationError {
    let InstallationError::Vault(error) = error else {
        return error;
    };
    let message = format!(
        "the {} '{}' is still wrapped by {url}, which the new identity of the set cannot use; change the key first and \
         the identity then, or grant the identity that key too: {}",
        row.kind, row.name, error.message
    );
    VaultError::new(error.code, message).into()
}

/// The URL of the key that a set uses. Of one that follows its key it has the version by which the catalog knows that
/// all is wrapped which is not left under an older one; no vault is asked. It is what was given while nothing is under
/// the set.
///
/// # Errors
/// [`CatalogError`].
pub fn active_key(
    installation: &Installation,
    set: &DiskEncryptionSetRecord,
) -> Result<String, CatalogError> {
    if !set.auto_rotation {
        return Ok(set.key_url.clone());
    }
    let rows = installation.catalog().resources_under(Some(&set.name))?;
    let used = rows
        .iter()
        .flat_map(|row| row.record.keys_under(Some(&set.name)));
    Ok(followed(set, used).unwrap_or(&set.key_url).to_owned())
}

/// The one version of a set's key among those used that the set had not before. Of two nobody can tell which is newer.
fn followed<'a>(
    set: &DiskEncryptionSetRecord,
    used: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    let key = without_version(&set.key_url);
    let was_before = |url: &str| set.previous_keys.iter().any(|old| same_key_url(old, url));
    let mut found = None;
    for url in used.filter(|url| is_version_of(url, key) && !was_before(url)) {
        match found {
            Some(known) if !same_key_url(known, url) => return None,
            _ => found = Some(url),
        }
    }
    found
}

/// What is under a set, but under another key than the set's, by the catalog: a change of the key could not take it
/// along. Another version of the same key is none where the set names no version.
///
/// # Errors
/// [`CatalogError`].
pub fn left_behind(
    installation: &Installation,
    set: &DiskEncryptionSetRecord,
) -> Result<Vec<DiskRecord>, CatalogError> {
    let key = match set.auto_rotation {
        true => without_version(&set.key_url),
        false => &set.key_url,
    };
    let rows = installation.catalog().resources_under(Some(&set.name))?;
    let mut left: Vec<DiskRecord> = rows.into_iter().map(|row| row.record).collect();
    left.retain(|row| {
        let mut keys = row.keys_under(Some(&set.name));
        keys.any(|url| !is_version_of(url, key))
    });
    Ok(left)
}
