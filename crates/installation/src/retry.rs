//! Commands that change the same row of the catalog at the same time take turns.

use std::thread;
use std::time::Duration;

use super::InstallationError;
use crate::catalog::CatalogError;

/// How often a change is attempted. Of those that meet, one gets through each time.
const ATTEMPTS: usize = 32;
/// The longest pause between two attempts; how long it is is left to chance, so that those who met do
/// not meet again.
const PAUSE: Duration = Duration::from_millis(40);

/// Makes a change that reads a row and writes it back, anew for as long as another command's change
/// comes between the two: whoever asked for it is not to do that by hand.
///
/// # Errors
/// What `attempt` returns; [`CatalogError::Changed`] when others never pause.
pub fn retrying<T>(
    mut attempt: impl FnMut() -> Result<T, InstallationError>,
) -> Result<T, InstallationError> {
    for _ in 1..ATTEMPTS {
        match attempt() {
            Err(InstallationError::Catalog(CatalogError::Changed { .. })) => {
                thread::sleep(PAUSE.mul_f64(rand::random::<f64>()));
            }
            outcome => return outcome,
        }
    }
    attempt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Kind;

    #[test]
    fn a_change_is_attempted_anew_while_others_come_between_and_not_for_other_errors() {
        let changed = || {
            InstallationError::from(CatalogError::Changed {
                kind: Kind::DiskEncryptionSet,
                name: "set".into(),
            })
        };
        let mut left = 3;
        let outcome = retrying(|| {
            left -= 1;
            if left > 0 { Err(changed()) } else { Ok(7) }
        });
        assert_eq!(outcome.unwrap(), 7);
        let mut attempts = 0;
        let outcome: Result<(), _> = retrying(|| {
            attempts += 1;
            Err(InstallationError::NoStateDirectory)
        });
        assert!(matches!(outcome, Err(InstallationError::NoStateDirectory)));
        assert_eq!(attempts, 1);
        let endless: Result<(), _> = retrying(|| Err(changed()));
        assert!(endless.is_err());
    }
}
