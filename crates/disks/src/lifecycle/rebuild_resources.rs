//! Finding disks, snapshots and images by their headers, for a catalog that was lost.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use time::OffsetDateTime;
use uuid::Uuid;

use crate::des::check_des_name;
use crate::lifecycle::new_resource::ready_row;
use crate::lifecycle::rebuilt::{Rebuilt, RebuiltSet};
use crate::lifecycle::search::{Search, is_absent};
use crate::lifecycle::unregister::forget_returned;
use crate::resource::directory::header_claims;
use installation::catalog::{
    CatalogError, DesIdentity, DiskEncryptionSetRecord, DiskRecord, EncryptionType,
};
use installation::envelope::{HeaderPayload, LayerRecord, ResourceKind};
use installation::{Installation, InstallationError};
use vault::KeyUrl;

/// Where disks are looked for, outside of the usual directories.
#[derive(Clone, Copy)]
pub struct Looked<'a> {
    /// Each is the directory of a disk or has such directories in it.
    pub data_dirs: &'a [PathBuf],
    /// The operator says that there are no others.
    pub all_named: bool,
}

/// Adds a row for each header in the usual directories and in those that are named. What a header claims is not proven, and
/// need not be: a row is an index, and whoever uses the disk authenticates its header. What may hide a header is a problem:
/// it is not known to have none.
pub fn rebuild_resources(
    installation: &Installation,
    looked: Looked<'_>,
    rebuilt: &mut Rebuilt,
) -> Result<(), InstallationError> {
    let usual = ResourceKind::ALL.map(|kind| installation.resources_dir(kind));
    let mut search = Search::new(usual.iter().chain(looked.data_dirs), looked.all_named);
    let mut ended = Ok(());
    for dir in usual.iter().chain(looked.data_dirs) {
        let given = looked.data_dirs.contains(dir);
        // A link that leads nowhere is there.
        if !given && is_absent(dir) {
            continue;
        }
        if let Err(source) = search.directory(dir) {
            // What was found until then is in the catalog again all the same.
            let path = dir.clone();
            ended = Err(InstallationError::Directory { path, source });
            break;
        }
    }
    rebuilt.problems.append(&mut search.problems);
    let twice = sets_of_two_keys(&search.found);
    for directory in search.found {
        match take_up(installation, &directory, &twice, rebuilt) {
            Ok(Some(record)) => rebuilt.resources.push(record),
            Ok(None) => {}
            Err(why) => {
                let path = directory.display();
                rebuilt.problems.push(format!("{path}: {why}"));
            }
        }
    }
    ended
}

/// The sets under which some header has a layer that is encrypted twice. Nothing proves a header here: where headers
/// disagree the stronger one counts, since what is made under a set that asks for less is without the platform's key.
fn sets_of_two_keys(directories: &[PathBuf]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for header in directories.iter().filter_map(|dir| header_claims(dir).ok()) {
        let twice = sets(&header).filter(|(_, layer)| layer.is_double());
        found.extend(twice.map(|(set, _)| set.to_owned()));
    }
    found
}

/// `None` when the catalog has it already.
fn take_up(
    installation: &Installation,
    directory: &Path,
    twice: &BTreeSet<String>,
    rebuilt: &mut Rebuilt,
) -> Result<Option<DiskRecord>, String> {
    let header = header_claims(directory).map_err(|e| e.to_string())?;
    let text = |e: CatalogError| e.to_string();
    for known in installation.catalog().resources().map_err(text)? {
        let known = known.record;
        if known.id == header.disk && known.directory == directory {
            return Ok(None);
        }
        if known.id == header.disk {
            return Err(format!(
                "it is a copy of the {} '{}' in {}",
                known.kind,
                known.name,
                known.directory.display()
            ));
        }
        if (known.kind, &known.name) == (header.kind, &header.name) {
            return Err(format!(
                "there is another {} '{}'; register it under another name with `sealdisk disk \
                 register {} --name NAME`",
                known.kind,
                known.name,
                directory.display()
            ));
        }
    }
    for (set, layer) in sets(&header) {
        let encryption_type = match twice.contains(set) {
            true => EncryptionType::PlatformAndCustomerKeys,
            false => EncryptionType::CustomerKey,
        };
        rebuild_set(installation, set, layer, encryption_type, rebuilt)
            .map_err(|e| e.to_string())?;
    }
    let row = ready_row(&header, directory);
    installation.catalog().insert_disk(&row).map_err(text)?;
    forget_returned(installation, row.id).map_err(text)?;
    Ok(Some(row))
}

/// The sets that a header names, each with a layer under it; the top layer comes first, because it is the latest.
fn sets(header: &HeaderPayload) -> impl Iterator<Item = (&str, &LayerRecord)> {
    let layers = header.layers.iter().rev();
    layers.filter_map(|layer| Some((layer.disk_encryption_set.as_deref()?, layer)))
}

/// The set `name`, which a header names for that layer; made again when the catalog does not know it.
fn rebuild_set(
    installation: &Installation,
    name: &str,
    layer: &LayerRecord,
    encryption_type: EncryptionType,
    rebuilt: &mut Rebuilt,
) -> Result<(), InstallationError> {
    match installation.catalog().des(name) {
        Ok(_) => return Ok(()),
        Err(CatalogError::NotFound { .. }) => {}
        Err(e) => return Err(e.into()),
    }
    check_des_name(name)?;
    let mut url: KeyUrl = layer.envelope.key_url().parse()?;
    url.key.version = None;
    let (identity, principal_id) = match url.vault_name() {
        Some(_) => (DesIdentity::SystemAssigned, Some(Uuid::new_v4())),
        None => (DesIdentity::None, None),
    };
    installation
        .catalog()
        .insert_des(&DiskEncryptionSetRecord {
            name: name.into(),
            identity,
            principal_id: principal_id.unwrap_or_default(),
            key_url: url.to_string(),
            encryption_type,
            previous_keys: Vec::new(),
            auto_rotation: false,
            last_rotation: None,
            created: OffsetDateTime::now_utc(),
        })?;
    rebuilt.sets.push(RebuiltSet {
        name: name.into(),
        key_url: url.to_string(),
        principal_id,
    });
    Ok(())
}
