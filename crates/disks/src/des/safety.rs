//! Whether a key version can be disabled without anything stopping. What is not known is never "yes".
//!
//! Four things are looked at: what is under the key version by the headers, and, where a header cannot
//! be read, by the catalog; what was under it when it left the catalog, and may still exist; which sets make
//! disks with it; and the vault's own log of its uses, which has the clients that keep their disks elsewhere.

use serde::Serialize;
use time::{Duration, OffsetDateTime};

use super::key_user::KeyUser;
use installation::catalog::{DepartedRecord, Departure, RestoredRecord};
use installation::{Installation, InstallationError};
use vault::audit::AuditRecord;
use vault::{KeyId, KeyUrl, KeyUsed, moment, same_key_url};

/// A client that used a key version within this time is taken to need it still: a running disk uses
/// its key at every check, and one that is attached now and then has its days.
const RECENT: Duration = Duration::DAY;

/// The answer; the worst of what was found counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum SafeToDisable {
    /// Nothing needs it.
    Yes,
    /// It cannot be known from here.
    Unknown,
    /// Something needs it.
    No,
}

/// The answer with what it is based on.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Safety {
    /// Whether it is safe.
    pub safe_to_disable: SafeToDisable,
    /// Why not, or why it is not known; nothing when it is safe.
    pub reasons: Vec<String>,
}

impl Safety {
    pub(super) fn of(found: Vec<(SafeToDisable, String)>) -> Self {
        let worst = found.iter().map(|(answer, _)| *answer).max();
        let mut found = found;
        // What decides comes first.
        found.sort_by_key(|(answer, _)| std::cmp::Reverse(*answer));
        Self {
            safe_to_disable: worst.unwrap_or(SafeToDisable::Yes),
            reasons: found.into_iter().map(|(_, reason)| reason).collect(),
        }
    }

    /// In one line.
    pub fn summary(&self) -> String {
        let answer = match self.safe_to_disable {
            SafeToDisable::Yes => return "yes".into(),
            SafeToDisable::Unknown => "unknown",
            SafeToDisable::No => "no",
        };
        let more = match self.reasons.len() {
            0 | 1 => String::new(),
            reasons => format!(" (and {} more)", reasons - 1),
        };
        let first = self.reasons.first().map_or("", String::as_str);
        format!("{answer}, because {first}{more}")
    }
}

/// How it is found out what a vault of this installation knows of its keys' uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum VaultLook {
    /// The vault is opened with its master key, and what it says was verified as far as it verifies itself.
    Opened,
    /// Its database is read, and nothing else.
    Database,
}

impl VaultLook {
    fn last_uses(
        self,
        installation: &Installation,
        vault: &str,
        key: &KeyId,
    ) -> Result<Vec<KeyUsed>, InstallationError> {
        let (name, version) = (&key.name, key.version.as_deref());
        Ok(match self {
            Self::Opened => installation.vault(vault)?.last_uses(name, version)?,
            Self::Database => installation
                .look_at_vault(vault)?
                .last_uses(name, version)?,
        })
    }

    /// Since when a vault may lack what it had, so that its log and its keys say less than everything.
    fn incomplete(
        self,
        installation: &Installation,
        vault: &str,
    ) -> Result<Option<OffsetDateTime>, InstallationError> {
        Ok(match self {
            Self::Opened => installation.vault(vault)?.incomplete()?,
            Self::Database => installation.look_at_vault(vault)?.incomplete()?,
        })
    }

    fn has_key(
        self,
        installation: &Installation,
        vault: &str,
        key: &str,
    ) -> Result<bool, InstallationError> {
        Ok(match self {
            Self::Opened => installation.vault(vault)?.has_key(key)?,
            Self::Database => installation.look_at_vault(vault)?.has_key(key)?,
        })
    }
}

/// What this installation has under a key, and the sets that make disks with it.
pub(super) struct Needs<'a> {
    /// All that is under any key.
    pub users: &'a [KeyUser],
    /// The sets that wrap new disks with the key version (`No`), or may (`Unknown`).
    pub sets: &'a [(String, SafeToDisable)],
    /// How vaults are looked at.
    pub vaults: VaultLook,
}

/// Whether the key version with that URL can be disabled. A URL without a version means all
/// versions of the key.
///
/// # Errors
/// When the catalog cannot be read. A vault that cannot be asked makes the answer unknown.
pub(super) fn safety_of(
    installation: &Installation,
    key_url: &str,
    needs: &Needs<'_>,
) -> Result<Safety, InstallationError> {
    use SafeToDisable::{No, Unknown};
    let mut found = Vec::new();
    for (set, answer) in needs.sets {
        let reason = match answer {
            Unknown => format!(
                "the key vault does not say which version of the key the disk encryption set \
                 '{set}' wraps new disks with"
            ),
            _ => format!("the disk encryption set '{set}' wraps new disks with it"),
        };
        found.push((*answer, reason));
    }
    for user in needs.users {
        let (kind, name) = (user.kind, &user.name);
        let whole_key = same_key_url(without_version(&user.key_url), without_version(key_url));
        match (&user.problem, is_version_of(&user.key_url, key_url)) {
            (None, true) => found.push((No, format!("it wraps the {kind} '{name}'"))),
            (Some(why), true) => found.push((
                No,
                format!(
                    "it wraps the {kind} '{name}' by the catalog; its header is not readable: {why}"
                ),
            )),
            // The catalog may be behind what the header would say.
            (Some(why), false) if whole_key => found.push((
                Unknown,
                format!(
                    "the {kind} '{name}' is under another version of the key by the catalog, and \
                     its header is not readable: {why}"
                ),
            )),
            _ => {}
        }
    }
    found.extend(departed_under(installation, key_url, needs.vaults)?);
    found.extend(uses_elsewhere(installation, key_url, needs.vaults)?);
    found.dedup();
    Ok(Safety::of(found))
}

/// What has left the catalog with its header, which may still need the key version.
fn departed_under(
    installation: &Installation,
    key_url: &str,
    vaults: VaultLook,
) -> Result<Vec<(SafeToDisable, String)>, InstallationError> {
    let whole_key = without_version(key_url);
    let mut found = Vec::new();
    for departed in installation.catalog().departed()? {
        let has = |same: &dyn Fn(&str) -> bool| departed.keys.iter().any(|k| same(&k.key_url));
        let this = has(&|url| is_version_of(url, key_url));
        // Its header was not looked at, and may have been ahead of the catalog.
        let another = departed.reason.is_unseen()
            && has(&|url| same_key_url(without_version(url), whole_key));
        if this || another {
            found.push((SafeToDisable::Unknown, why_departed(&departed, this)));
        }
    }
    if !found.is_empty() && is_purged(installation, key_url, vaults)? {
        found.clear();
    }
    Ok(found)
}

/// Records that the operator says of something that has left the catalog that it is gone.
pub fn record_forgotten(
    installation: &Installation,
    departed: &DepartedRecord,
) -> Result<(), InstallationError> {
    let operator = installation.operator();
    installation.audit_log()?.append(
        &AuditRecord::new(operator.object_id, &operator.origin, "CatalogForget").with_detail(
            format!("the {} '{}' {}", departed.kind, departed.name, departed.id),
        ),
    )?;
    Ok(())
}

/// Whether the key is gone for good, so that nothing can need it. A vault that cannot be asked does not
/// say so, nor does one that may only lack it.
fn is_purged(
    installation: &Installation,
    key_url: &str,
    vaults: VaultLook,
) -> Result<bool, InstallationError> {
    let url: KeyUrl = key_url.parse()?;
    let Some(vault) = installation.catalog().vault_by_url(&url.vault_url)? else {
        return Ok(false);
    };
    let name = &vault.record.name;
    let known = vaults.has_key(installation, name, &url.key.name);
    let is_complete = matches!(vaults.incomplete(installation, name), Ok(None));
    Ok(is_complete && matches!(known, Ok(false)))
}

/// The versions of the key of `key_url`, a version of it, that anything here or in the vault's log has
/// used, but that one.
pub(super) fn other_versions(
    installation: &Installation,
    key_url: &str,
    users: &[KeyUser],
) -> Result<Vec<String>, InstallationError> {
    let url: KeyUrl = key_url.parse()?;
    let mut urls: Vec<String> = users.iter().map(|user| user.key_url.clone()).collect();
    for departed in installation.catalog().departed()? {
        urls.extend(departed.keys.into_iter().map(|key| key.key_url));
    }
    if let Some(vault) = installation.catalog().vault_by_url(&url.vault_url)?
        && let Ok(vault) = installation.vault(&vault.record.name)
        && let Ok(uses) = vault.last_uses(&url.key.name, None)
    {
        let key = without_version(key_url);
        urls.extend(
            uses.into_iter()
                .map(|used| format!("{key}/{}", used.version)),
        );
    }
    urls.retain(|found| {
        same_key_url(without_version(found), without_version(key_url))
            && !same_key_url(found, key_url)
    });
    urls.iter_mut().for_each(|url| url.make_ascii_lowercase());
    urls.sort();
    urls.dedup();
    Ok(urls)
}

/// What the vault's log says about clients whose disks are not in this installation.
fn uses_elsewhere(
    installation: &Installation,
    key_url: &str,
    vaults: VaultLook,
) -> Result<Vec<(SafeToDisable, String)>, InstallationError> {
    use SafeToDisable::Unknown;
    let url: KeyUrl = key_url.parse()?;
    let Some(vault) = installation.catalog().vault_by_url(&url.vault_url)? else {
        let reason = format!("the key vault {} is not known here", url.vault_url);
        return Ok(vec![(Unknown, reason)]);
    };
    let name = vault.record.name;
    if vault.record.kind.is_remote() {
        return Ok(vec![(
            Unknown,
            format!(
                "the key vault '{name}' is a remote vault, and only its own log says who else uses \
                 the key"
            ),
        )]);
    }
    let uses = match vaults.last_uses(installation, &name, &url.key) {
        Ok(uses) => uses,
        Err(error) => {
            let reason = format!("the log of the key vault '{name}' is not readable: {error}");
            return Ok(vec![(Unknown, reason)]);
        }
    };
    let mut found = of_elsewhere(installation, uses)?;
    if let Some(time) = installation.catalog().not_noted_since(&url.vault_url)?
        && !is_purged(installation, key_url, vaults)?
    {
        let reason = format!(
            "the catalog was made again at {}, and what the log of the key vault '{name}' names was not \
             compared with it yet; `sealdisk catalog rebuild` does so, with --data-dir for disks elsewhere",
            moment(time)
        );
        found.push((Unknown, reason));
    }
    match vaults.incomplete(installation, &name) {
        Ok(None) => {}
        Ok(Some(since)) => found.push((Unknown, why_incomplete(&name, since))),
        // One of an older version, which is only looked at, does not say.
        Err(error) => {
            let reason =
                format!("the key vault '{name}' does not say whether it is whole: {error}");
            found.push((Unknown, reason));
        }
    }
    if let Some(restored) = installation.catalog().restored()?
        && restored.is_about(vault.record.created)
        && !is_purged(installation, key_url, vaults)?
    {
        found.push((Unknown, why_restored(&restored)));
    }
    Ok(found)
}

pub(super) fn why_restored(restored: &RestoredRecord) -> String {
    let time = moment(restored.time);
    let why = match restored.backup {
        Some(backup) => format!(
            "the catalog was restored at {time} from a backup of {}, and disks that were made in between are not known",
            moment(backup)
        ),
        None => format!(
            "the catalog was lost and made again at {time}, and disks, snapshots and images that it did not find are not \
             known"
        ),
    };
    format!(
        "{why}; `sealdisk catalog rebuild --all-directories-named` takes them up, with --data-dir for disks elsewhere"
    )
}

pub(super) fn why_incomplete(vault: &str, since: OffsetDateTime) -> String {
    format!(
        "the key vault '{vault}' was restored or made anew at {}, and its log may lack who has used the key before; \
         `sealdisk catalog rebuild --all-directories-named` says that all disks are known",
        moment(since)
    )
}

/// The uses for what is not in this installation. A recent one is one that needs the key.
pub(super) fn of_elsewhere(
    installation: &Installation,
    uses: Vec<KeyUsed>,
) -> Result<Vec<(SafeToDisable, String)>, InstallationError> {
    let now = OffsetDateTime::now_utc();
    let mut found = Vec::new();
    for used in latest_of_each(uses) {
        if !is_of_here(installation, &used)? {
            let answer = match now - used.last < RECENT {
                true => SafeToDisable::No,
                false => SafeToDisable::Unknown,
            };
            found.push((answer, described(installation, &used)?));
        }
    }
    Ok(found)
}

/// Whether a use was for something that is in this installation, where headers and catalog tell
/// more: one of a process here. An identity that was given a secret can be used elsewhere too, and
/// the log has only its last origin.
fn is_of_here(installation: &Installation, used: &KeyUsed) -> Result<bool, InstallationError> {
    let known = installation.catalog().identity_by_object(used.caller)?;
    let has_secret = known.is_some_and(|identity| identity.secret_hash.is_some());
    Ok(used.origin.starts_with("local") && !has_secret)
}

fn described(installation: &Installation, used: &KeyUsed) -> Result<String, InstallationError> {
    let known = installation.catalog().identity_by_object(used.caller)?;
    let who = match known {
        Some(identity) => format!("the identity '{}'", identity.owner),
        None => format!("the identity {}", used.caller),
    };
    let disk = used.disk.as_ref();
    let disk = disk.map_or_else(String::new, |disk| format!(" for its disk '{disk}'"));
    let last = moment(used.last);
    Ok(format!(
        "{who} used it{disk} from {} at {last}, and its disks are not known here",
        used.origin
    ))
}

pub(super) fn why_departed(departed: &DepartedRecord, this: bool) -> String {
    let DepartedRecord {
        kind,
        name,
        directory,
        time,
        ..
    } = departed;
    let time = moment(*time);
    let version = if this {
        "it"
    } else {
        "another version of the key, by the catalog,"
    };
    match departed.reason {
        Departure::Unregistered => format!(
            "the {kind} '{name}' was under {version} when it was unregistered at {time}, and its header in \
             {directory} may still exist; `sealdisk catalog forget {name}` says that it does not"
        ),
        Departure::UnregisteredUnseen => format!(
            "the {kind} '{name}' was under {version} when it was unregistered at {time} without its header, \
             which was not in {directory} and may still exist; `sealdisk catalog forget {name}` says that it \
             does not"
        ),
        Departure::DeletedUnseen => format!(
            "the {kind} '{name}' was under {version} when it was deleted at {time} without its header, which \
             was not in {directory} and may still exist; `sealdisk catalog forget {name}` says that it does not"
        ),
        Departure::NotFound => format!(
            "'{name}' used it by the vault's log, and was not found when the catalog was made again at \
             {time}; `sealdisk catalog forget {id}` says that it is gone",
            id = departed.id
        ),
    }
}

/// One use for each caller, disk and version: what it did last.
fn latest_of_each(uses: Vec<KeyUsed>) -> Vec<KeyUsed> {
    let mut latest: Vec<KeyUsed> = Vec::new();
    for used in uses {
        let same = |known: &&mut KeyUsed| {
            (known.caller, &known.version, &known.disk) == (used.caller, &used.version, &used.disk)
        };
        match latest.iter_mut().find(same) {
            Some(known) if known.last < used.last => *known = used,
            Some(_) => {}
            None => latest.push(used),
        }
    }
    latest
}

/// Whether `url` is that key version, or a version of that key when `key_url` names none.
pub(super) fn is_version_of(url: &str, key_url: &str) -> bool {
    same_key_url(url, key_url)
        || (without_version(key_url) == key_url && same_key_url(without_version(url), key_url))
}

/// A key's URL without its version, where it has one.
pub(super) fn without_version(url: &str) -> &str {
    match url.rsplit_once('/') {
        Some((key, version)) if version.len() == 32 && !key.ends_with("/keys") => key,
        _ => url,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_a_key_are_told_from_another_keys() {
        let version = "0123456789abcdef0123456789abcdef";
        let key = "https://v.vault.localhost/keys/k";
        let of = |key: &str| format!("{key}/{version}");
        assert!(is_version_of(&of(key), key));
        assert!(is_version_of(
            &of(key),
            &of(&key.replace("/k", "/K").replace("/Keys", "/keys"))
        ));
        assert!(is_version_of(key, key));
        assert!(!is_version_of(key, &of(key)));
        assert!(!is_version_of(
            &of("https://v.vault.localhost/keys/k2"),
            key
        ));
        // A name of 32 digits is no version.
        let name = format!("https://v.vault.localhost/keys/{version}");
        assert_eq!(without_version(&name), name);
    }

    #[test]
    fn the_worst_counts_and_comes_first() {
        use SafeToDisable::{No, Unknown, Yes};
        assert_eq!(Safety::of(Vec::new()).safe_to_disable, Yes);
        let mixed = Safety::of(vec![(Unknown, "a".into()), (No, "b".into())]);
        assert_eq!(mixed.safe_to_disable, No);
        assert_eq!(mixed.summary(), "no, because b (and 1 more)");
        let unknown = Safety::of(vec![(Unknown, "a".into())]);
        assert_eq!(unknown.summary(), "unknown, because a");
    }
}
