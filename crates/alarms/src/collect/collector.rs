//! One look at an installation.

use std::collections::BTreeSet;
use std::io;

use time::OffsetDateTime;
use uuid::Uuid;

use super::keys::KeyBook;
use super::one_disk::OneDisk;
use super::remote_keys::RemoteKeys;
use super::{certificates, resources, space};
use crate::alarm::{Subject, SubjectKind};
use crate::error::AlarmsError;
use crate::facts::{Attaches, BackupFacts, Facts, Unknown, VaultFacts};
use crate::settings::Settings;
use disks::DiskView;
use installation::Installation;
use installation::backup::{directory_of_units, last_made};
use installation::envelope::ResourceKind;

/// What is looked at.
#[derive(Debug, Clone, Copy)]
pub enum Scope<'a> {
    /// All of the installation.
    Host,
    /// All of the installation, whose disks, snapshots and images were looked at already. Vaults elsewhere are not
    /// asked: nothing is alarmed of their keys.
    Seen(&'a [DiskView]),
    /// One attached disk, and its keys.
    Disk(OneDisk<'a>),
    /// The vaults that are here, and what they need.
    Vaults,
}

/// Finds out facts, and remembers what is dear to ask again.
#[derive(Debug, Default)]
pub struct Collector {
    remote: RemoteKeys,
}

impl Collector {
    /// One that remembers nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// What is known now; and the disks, snapshots and images that were looked at.
    ///
    /// # Errors
    /// [`AlarmsError`]: the catalog cannot be read.
    pub fn collect(
        &self,
        installation: &Installation,
        settings: &Settings,
        scope: Scope<'_>,
        attaches: &dyn Attaches,
    ) -> Result<(Facts, Vec<DiskView>), AlarmsError> {
        let mut facts = Facts::none(OffsetDateTime::now_utc());
        let asks_elsewhere = !matches!(scope, Scope::Seen(_));
        let remote = asks_elsewhere.then_some(&self.remote);
        let mut book = KeyBook::new(installation, remote);
        // Before the catalog: what is attached later may be younger than it was.
        let here = matches!(scope, Scope::Host | Scope::Seen(_)).then(|| attaches.here());
        let views = views(installation, scope)?;
        facts.resources = resources::resources(&views, &mut book, attaches)?;
        match here {
            Some(Ok(here)) => {
                // Of a catalog that may have lost disks, and of an installation that has lost its id with it, another id
                // says nothing.
                let is_complete = installation.catalog().restored()?.is_none();
                let own = is_complete.then(|| installation.id());
                (facts.elsewhere, facts.strangers) = strangers(here, &views, own, attaches);
            }
            Some(Err(error)) => runtime_dir_unknown(&error, &views, &mut facts.unknown),
            None => {}
        }
        if let Scope::Disk(disk) = &scope {
            let disk = resources::attached_disk(disk, &mut book, attaches)?;
            facts.resources.push(disk);
        }
        if let Scope::Host | Scope::Seen(_) = scope {
            book.need_active_keys()?;
        }
        if let Scope::Host | Scope::Seen(_) | Scope::Vaults = scope {
            let state_dir = installation.state_dir();
            book.need_latest_versions()?;
            vaults(installation, &mut facts)?;
            facts.backup = backup(installation, &mut facts.unknown)?;
            certificates::certificates(state_dir, settings, &mut facts);
            let directories = views.iter().map(|view| view.directory.as_path());
            // A backup that has no room is none.
            let backups = directory_of_units(state_dir);
            let directories = directories.chain(backups.as_deref());
            space::file_systems(state_dir, directories, &mut facts);
        }
        book.finish(&mut facts)?;
        Ok((facts, views))
    }
}

/// The disks whose processes answer though none of the views is of them: those of another installation, and those of which
/// nothing says that they are not of this one. Without its `own` id those are all.
fn strangers(
    here: Vec<Uuid>,
    views: &[DiskView],
    own: Option<Uuid>,
    attaches: &dyn Attaches,
) -> (Vec<Uuid>, Vec<Uuid>) {
    let known: BTreeSet<_> = views.iter().map(|view| view.unique_id).collect();
    let unknown = here.into_iter().filter(|disk| !known.contains(disk));
    let answers = unknown.filter_map(|disk| Some((disk, attaches.ask(disk)?.installation)));
    let (elsewhere, strangers): (Vec<_>, Vec<_>) =
        answers.partition(|(_, of)| own.zip(*of).is_some_and(|(own, of)| own != of));
    let ids = |found: Vec<(Uuid, Option<Uuid>)>| found.into_iter().map(|(disk, _)| disk).collect();
    (ids(elsewhere), ids(strangers))
}

/// Notes that the processes which have disks attached cannot be found. Where none has any the directory need not be
/// there.
fn runtime_dir_unknown(error: &io::Error, views: &[DiskView], unknown: &mut Vec<Unknown>) {
    let is_missing = error.kind() == io::ErrorKind::NotFound;
    if is_missing && !views.iter().any(resources::is_served_here) {
        return;
    }
    unknown.push(Unknown {
        subject: Subject::new(SubjectKind::Installation, "runtime directory"),
        why: error.to_string(),
    });
}

fn views(installation: &Installation, scope: Scope<'_>) -> Result<Vec<DiskView>, AlarmsError> {
    let mut views = Vec::new();
    match scope {
        Scope::Host => {
            for kind in ResourceKind::ALL {
                views.extend(disks::list(installation, kind)?);
            }
        }
        Scope::Seen(seen) => views.extend_from_slice(seen),
        Scope::Disk(_) | Scope::Vaults => {}
    }
    Ok(views)
}

/// The vaults that are kept here, and how near to their limit somebody is.
fn vaults(installation: &Installation, facts: &mut Facts) -> Result<(), AlarmsError> {
    for stored in installation.catalog().vaults()? {
        let record = stored.record;
        if record.kind.is_remote() {
            continue;
        }
        let looked = installation
            .look_at_vault(&record.name)
            .and_then(|database| database.busiest(facts.now));
        match looked {
            Ok((busiest, limit)) => facts.vaults.push(VaultFacts {
                name: record.name,
                busiest,
                limit,
            }),
            Err(error) => facts.unknown.push(Unknown {
                subject: Subject::new(SubjectKind::Vault, record.name),
                why: error.to_string(),
            }),
        }
    }
    Ok(())
}

/// When the last backup was made, and since when there is something to back up.
fn backup(
    installation: &Installation,
    unknown: &mut Vec<Unknown>,
) -> Result<Option<BackupFacts>, AlarmsError> {
    let catalog = installation.catalog();
    let vaults = catalog
        .vaults()?
        .into_iter()
        .map(|vault| vault.record.created);
    let sets = catalog.all_des()?.into_iter().map(|set| set.record.created);
    let needed_since = vaults.chain(sets).min();
    match last_made(installation.state_dir()) {
        Ok(last) => Ok(Some(BackupFacts {
            last: last.map(|made| made.created),
            needed_since,
        })),
        Err(error) => {
            unknown.push(Unknown {
                subject: Subject::new(SubjectKind::Installation, "backup"),
                why: error.to_string(),
            });
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::{AttachedFacts, KeyStanding};

    /// Those that answer, with the installation that they say.
    struct Answers(Vec<(Uuid, Option<Uuid>)>);

    impl Attaches for Answers {
        fn ask(&self, disk: Uuid) -> Option<AttachedFacts> {
            let (_, answer) = self.0.iter().find(|(known, _)| *known == disk)?;
            Some(AttachedFacts {
                key: KeyStanding::Granted,
                last_granted: OffsetDateTime::UNIX_EPOCH,
                deaths_in_a_row: 0,
                last_death: None,
                job_error: None,
                stall: None,
                launcher_ended: None,
                installation: *answer,
            })
        }

        fn here(&self) -> io::Result<Vec<Uuid>> {
            Ok(self.0.iter().map(|(disk, _)| *disk).collect())
        }
    }

    /// What does not say whose it is may be this installation's, whose catalog was lost.
    #[test]
    fn only_what_says_so_is_of_another_installation() {
        let [own, other, lost, older, foreign, dead] = [1, 2, 3, 4, 5, 6].map(Uuid::from_u128);
        let answers = Answers(vec![
            (lost, Some(own)),
            (older, None),
            (foreign, Some(other)),
        ]);
        let here = vec![lost, older, foreign, dead];
        let found = |own| strangers(here.clone(), &[], own, &answers);
        assert_eq!(found(Some(own)), (vec![foreign], vec![lost, older]));
        // What was lost may have been served under the id of before.
        assert_eq!(found(None), (vec![], vec![lost, older, foreign]));
    }
}
