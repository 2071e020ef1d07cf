//! What somebody may have meant who named a thing that is not there.

use strsim::osa_distance;

use super::error::NotFound;
use super::{CliError, Context};
use installation::Installation;
use installation::catalog::{CatalogError, Kind};
use installation::envelope::ResourceKind;
use vault::VaultError;

/// Adds to an error about a thing that is not there the name that is nearest, or what else has the name.
pub(super) fn suggest(context: &Context, error: &mut CliError) {
    let Some(missing) = &error.not_found else {
        return;
    };
    // The error is what counts: where the catalog cannot be read again, it stays as it is.
    let Ok(installation) = context.installation() else {
        return;
    };
    let (name, names) = match missing {
        NotFound::Named(kind, name) => {
            if let Some(other) = other_kind(&installation, *kind, name) {
                error.message += &format!("; there is a {other} of that name");
                return;
            }
            (name, names(&installation, *kind).unwrap_or_default())
        }
        NotFound::Key(missing) => {
            let names = keys(&installation, &missing.vault).unwrap_or_default();
            (&missing.key, names)
        }
    };
    if let Some(near) = nearest(name, &names) {
        error.message += &format!("; did you mean '{near}'?");
    }
}

/// The names of a vault's keys, which nobody records that somebody has looked at.
fn keys(installation: &Installation, vault: &str) -> Result<Vec<String>, VaultError> {
    let versions = installation.look_at_vault(vault)?.seen_keys()?;
    let mut names: Vec<_> = versions.into_iter().map(|version| version.name).collect();
    names.sort();
    names.dedup();
    Ok(names)
}

fn names(installation: &Installation, kind: Kind) -> Result<Vec<String>, CatalogError> {
    let catalog = installation.catalog();
    let of_kind = |wanted: ResourceKind| -> Result<Vec<String>, CatalogError> {
        let records = catalog.resources()?.into_iter().map(|row| row.record);
        let records = records.filter(|record| record.kind == wanted);
        Ok(records.map(|record| record.name).collect())
    };
    Ok(match kind {
        Kind::Disk => of_kind(ResourceKind::Disk)?,
        Kind::Snapshot => of_kind(ResourceKind::Snapshot)?,
        Kind::Image => of_kind(ResourceKind::Image)?,
        Kind::Vault => catalog
            .vaults()?
            .into_iter()
            .map(|row| row.record.name)
            .collect(),
        Kind::DiskEncryptionSet => catalog
            .all_des()?
            .into_iter()
            .map(|row| row.record.name)
            .collect(),
        Kind::Identity => {
            let identities = catalog.identities()?.into_iter();
            identities.map(|row| row.record.owner.to_string()).collect()
        }
        Kind::Group => catalog
            .groups()?
            .into_iter()
            .map(|group| group.name)
            .collect(),
        // Nobody types the id of one from memory.
        Kind::RoleAssignment | Kind::FederatedCredential | Kind::DeviceLogin => Vec::new(),
    })
}

/// A disk, a snapshot or an image that is called as another of the three was looked for.
fn other_kind(installation: &Installation, kind: Kind, name: &str) -> Option<ResourceKind> {
    if !matches!(kind, Kind::Disk | Kind::Snapshot | Kind::Image) {
        return None;
    }
    disks::resources_named(installation, name)
        .ok()?
        .first()
        .copied()
}

/// The one that is nearest by the keys that were hit wrong, one in three of the name at most; of several, by capitals too.
fn nearest<'a>(name: &str, names: &'a [String]) -> Option<&'a String> {
    let wanted = name.to_lowercase();
    let most = (wanted.chars().count() / 3).max(1);
    names
        .iter()
        .map(|known| {
            let distance = osa_distance(&wanted, &known.to_lowercase());
            (distance, osa_distance(name, known), known)
        })
        .filter(|(distance, ..)| *distance <= most)
        .min()
        .map(|(.., known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_found_and_a_far_one_is_not() {
        let names: Vec<String> = ["boot1", "boot2", "data-web", "x"].map(Into::into).into();
        for (name, expected) in [
            ("bot1", Some("boot1")),
            ("obot2", Some("boot2")),
            ("BOOT2", Some("boot2")),
            ("data_web", Some("data-web")),
            ("dataweb1", Some("data-web")),
            ("database", None),
            ("y", Some("x")),
            ("web", None),
        ] {
            let found = nearest(name, &names).map(String::as_str);
            assert_eq!(found, expected, "{name}");
        }
        let names: Vec<String> = ["WEB", "web"].map(Into::into).into();
        for (name, expected) in [("wep", "web"), ("WEP", "WEB"), ("Web", "web")] {
            assert_eq!(nearest(name, &names).unwrap(), expected, "{name}");
        }
    }
}
