//! What an error says about a key.

use crate::resource::error::DiskError;
use installation::catalog::{CatalogError, Kind, RestoredRecord};
use installation::envelope::EnvelopeError;
use installation::{Installation, InstallationError};
use vault::{VaultError, VaultErrorCode, Verdict, embedded_vault_name, moment};

impl DiskError {
    /// What it says about the key. A set that is gone has taken its identity with it, so nobody
    /// can be granted the key any more; everything else beside the vault's own refusals decides nothing.
    pub fn key_verdict(&self) -> Verdict {
        match (self.vault_error(), self) {
            (Some(error), _) => error.code.verdict(),
            (None, Self::Layer { source, .. }) => source.key_verdict(),
            (
                None,
                Self::Control(InstallationError::Catalog(CatalogError::NotFound {
                    kind: Kind::DiskEncryptionSet,
                    ..
                })),
            ) => Verdict::Refused,
            (None, _) => Verdict::Unknown,
        }
    }

    /// What a vault said, of whichever layer's key.
    pub fn vault_error(&self) -> Option<&VaultError> {
        match self {
            Self::Layer { source, .. } => source.vault_error(),
            Self::Control(InstallationError::Vault(error))
            | Self::Envelope(EnvelopeError::Vault(error)) => Some(error),
            _ => None,
        }
    }
}

/// The error of an unwrap, which decides nothing where it may only come from a catalog that does not know all that it
/// did: restored from a backup, it may lack the set; made again without its copy, it gave the set a new identity, which no
/// vault here has granted anything yet. A disk that runs must not lose its DEK because of that. What a vault lacks is for
/// the vault to say, and a vault elsewhere knows what it has granted.
pub(crate) fn as_far_as_known(
    installation: &Installation,
    vault_url: &str,
    error: DiskError,
) -> DiskError {
    match installation.catalog().restored() {
        Ok(Some(restored)) if is_about(installation, vault_url, &error, &restored) => {
            let message = format!(
                "{error}; but the catalog was restored or made again at {}, and may not know what it knew before: make \
                 or grant that again, and run `sealdisk catalog rebuild --all-directories-named` then",
                moment(restored.time)
            );
            VaultError::new(VaultErrorCode::Incomplete, message).into()
        }
        _ => error,
    }
}

fn is_about(
    installation: &Installation,
    vault_url: &str,
    error: &DiskError,
    restored: &RestoredRecord,
) -> bool {
    let lacks_set = matches!(
        error,
        DiskError::Control(InstallationError::Catalog(CatalogError::NotFound {
            kind: Kind::DiskEncryptionSet,
            ..
        }))
    );
    let is_forbidden = error
        .vault_error()
        .is_some_and(|error| error.code == VaultErrorCode::Forbidden);
    let is_from_before = || {
        let known = installation.catalog().vault_by_url(vault_url);
        known.is_ok_and(|row| row.is_some_and(|row| restored.is_about(row.record.created)))
    };
    lacks_set || (is_forbidden && embedded_vault_name(vault_url).is_some() && is_from_before())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vault::VaultSettings;

    fn no_set() -> DiskError {
        CatalogError::NotFound {
            kind: Kind::DiskEncryptionSet,
            name: "s".into(),
        }
        .into()
    }

    fn refused(code: VaultErrorCode) -> DiskError {
        VaultError::new(code, "why").into()
    }

    #[test]
    fn a_restored_catalog_decides_nothing_about_what_it_may_lack() {
        let dir = tempfile::tempdir().unwrap();
        let installation = Installation::open(dir.path()).unwrap();
        let settings = VaultSettings::default();
        installation.create_vault("kv-here", &settings).unwrap();
        let here = "https://kv-here.vault.localhost";
        let verdict = |url: &str, error| as_far_as_known(&installation, url, error).key_verdict();
        let forbidden = || refused(VaultErrorCode::Forbidden);
        assert_eq!(verdict(here, no_set()), Verdict::Refused);
        assert_eq!(verdict(here, forbidden()), Verdict::Refused);

        let restored = RestoredRecord::made_again();
        installation.catalog().mark_restored(&restored).unwrap();
        assert_eq!(verdict(here, no_set()), Verdict::Unknown);
        assert_eq!(verdict(here, forbidden()), Verdict::Unknown);
        // What is decided stays so.
        for code in [
            VaultErrorCode::KeyDisabled,
            VaultErrorCode::KeyExpired,
            VaultErrorCode::KeyNotFound,
            VaultErrorCode::Unauthorized,
        ] {
            assert_eq!(verdict(here, refused(code)), Verdict::Refused, "{code:?}");
        }
        // A vault elsewhere, and one that was made since, know what they grant.
        installation.create_vault("since", &settings).unwrap();
        for url in ["https://far.example", "https://since.vault.localhost"] {
            assert_eq!(verdict(url, forbidden()), Verdict::Refused, "{url}");
        }
        installation.catalog().clear_restored().unwrap();
        assert_eq!(verdict(here, forbidden()), Verdict::Refused);
    }
}
