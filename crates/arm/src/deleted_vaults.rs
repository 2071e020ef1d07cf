//! `Microsoft.KeyVault/deletedVaults`: vaults that can be recovered, and purging them.

use serde_json::{Value, json};
use server::FrontReply;

use crate::audit::recorded;
use crate::call::Call;
use crate::error::{ArmError, text};
use crate::names::time_text;
use crate::reply::{done, item, list};
use installation::DeletedVault;
use installation::catalog::{DEFAULT_GROUP, Kind, LOCATION};

const READ: &str = "Microsoft.KeyVault/deletedVaults/read";
const PURGE: &str = "Microsoft.KeyVault/locations/deletedVaults/purge/action";

/// `GET S/providers/Microsoft.KeyVault/deletedVaults`
///
/// # Errors
/// When they cannot be read.
pub fn all(call: &Call<'_>) -> Result<FrontReply, ArmError> {
    call.require(READ, &call.names.subscription_id())?;
    let deleted = call.installation().deleted_vaults()?;
    let views = deleted.iter().map(|vault| view(call, vault));
    Ok(list(views.collect::<Result<_, _>>()?, None))
}

/// `S/providers/Microsoft.KeyVault/locations/L/deletedVaults/N`, and `…/purge`.
///
/// # Errors
/// 403, 404, and why it cannot be purged.
pub fn one(call: &Call<'_>, name: &str, action: Option<&str>) -> Result<FrontReply, ArmError> {
    // As in Azure: a deleted vault is no more its group's, whose contributors could else destroy for good what is kept.
    let subscription = call.names.subscription_id();
    match action {
        Some(_) => call.require(PURGE, &subscription)?,
        None => call.require(READ, &subscription)?,
    }
    let all = call.installation().deleted_vaults()?;
    let found = all
        .iter()
        .find(|vault| vault.name.eq_ignore_ascii_case(name));
    let found = found.ok_or_else(|| {
        let message = format!("The specified deleted vault '{name}' does not exist.");
        ArmError::new(404, "DeletedVaultNotFound", message)
    })?;
    let view = view(call, found)?;
    match (call.head.method.as_str(), action) {
        ("GET", None) => Ok(item(view)),
        ("POST", Some(action)) if action.eq_ignore_ascii_case("purge") => {
            let id = text(&view, "/properties/vaultId").unwrap_or_default();
            let vault = format!("Microsoft.KeyVault/vaults/{name}");
            let _lock = call.changes.lock(&vault, call.what())?;
            recorded(call, "VaultPurge", id, || {
                Ok(call.installation().purge_vault(name)?)
            })?;
            Ok(done(200))
        }
        _ => Err(ArmError::new(
            405,
            "MethodNotAllowed",
            "A deleted vault is read or purged.",
        )),
    }
}

/// The body; `vaultId` is the id that the vault had.
fn view(call: &Call<'_>, vault: &DeletedVault) -> Result<Value, ArmError> {
    let placed = call.catalog().placement(Kind::Vault, &vault.name)?;
    let (group, tags) = match placed {
        Some(placed) => (placed.group, placed.tags),
        None => (DEFAULT_GROUP.to_owned(), Default::default()),
    };
    let id = call
        .names
        .resource_id(&group, "Microsoft.KeyVault/vaults", &vault.name);
    let mut properties = json!({
        "vaultId": id,
        "location": LOCATION,
        "tags": tags,
        "purgeProtectionEnabled": vault.purge_protection,
    });
    if let Some(deletion) = &vault.deletion {
        properties["deletionDate"] = json!(time_text(deletion.deleted));
        properties["scheduledPurgeDate"] = json!(time_text(deletion.scheduled_purge));
    }
    Ok(json!({
        "id": format!(
            "{}/providers/Microsoft.KeyVault/locations/{LOCATION}/deletedVaults/{}",
            call.names.subscription_id(),
            vault.name
        ),
        "name": vault.name,
        "type": "Microsoft.KeyVault/deletedVaults",
        "properties": properties,
    }))
}
