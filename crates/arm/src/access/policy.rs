//! Whether the data of a disk may be reached over the network at all: `networkAccessPolicy` and `publicNetworkAccess`.

use serde_json::Value;

use crate::error::ArmError;
use installation::Installation;
use installation::catalog::{CatalogError, Kind};
use installation::envelope::ResourceKind;

/// What of the settings of a resource forbids access over the network, with its value.
fn forbidden(settings: &Value) -> Option<(&'static str, &str)> {
    let policy = settings["networkAccessPolicy"].as_str();
    let public = settings["publicNetworkAccess"].as_str();
    let policy = policy.filter(|policy| *policy != "AllowAll");
    let public = public.filter(|public| *public != "Enabled");
    let policy = policy.map(|policy| ("networkAccessPolicy", policy));
    policy.or(public.map(|public| ("publicNetworkAccess", public)))
}

/// Whether the settings of a resource forbid access over the network.
pub fn forbids(settings: &Value) -> bool {
    forbidden(settings).is_some()
}

/// Refuses to grant access that the settings of a resource forbid.
///
/// # Errors
/// 409.
pub fn check_allowed(kind: ResourceKind, name: &str, settings: &Value) -> Result<(), ArmError> {
    match forbidden(settings) {
        None => Ok(()),
        Some((setting, value)) => Err(ArmError::new(
            409,
            "OperationNotAllowed",
            format!(
                "Access over the network to the data of the {kind} '{name}' is not allowed: its {setting} is {value}."
            ),
        )),
    }
}

/// Ends the access that was granted to a resource whose settings forbid it from now on. It does not come back with other
/// settings.
///
/// # Errors
/// When the catalog cannot be read or written.
pub fn end_forbidden(
    installation: &Installation,
    kind: ResourceKind,
    name: &str,
    settings: &Value,
) -> Result<(), CatalogError> {
    if forbidden(settings).is_none() {
        return Ok(());
    }
    let catalog = installation.catalog();
    let resource = catalog.resource(kind, name)?.record.id;
    for access in catalog.accesses(Some(resource))? {
        catalog.delete_access(access.id)?;
    }
    Ok(())
}

/// Whether the settings of the resource of that name forbid it now.
///
/// # Errors
/// When they cannot be read.
pub fn is_forbidden(
    installation: &Installation,
    kind: Kind,
    name: &str,
) -> Result<bool, CatalogError> {
    let placed = installation.catalog().placement(kind, name)?;
    Ok(placed.is_some_and(|placed| forbidden(&placed.settings).is_some()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn all_but_what_allows_all_forbids() {
        for (settings, wanted) in [
            (json!({}), None),
            (
                json!({"networkAccessPolicy": "AllowAll", "publicNetworkAccess": "Enabled"}),
                None,
            ),
            (
                json!({"networkAccessPolicy": "DenyAll"}),
                Some(("networkAccessPolicy", "DenyAll")),
            ),
            (
                json!({"networkAccessPolicy": "AllowPrivate"}),
                Some(("networkAccessPolicy", "AllowPrivate")),
            ),
            (
                json!({"publicNetworkAccess": "Disabled"}),
                Some(("publicNetworkAccess", "Disabled")),
            ),
        ] {
            assert_eq!(forbidden(&settings), wanted, "{settings}");
        }
    }
}
