//! The token that lets in.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::{Hashed, random_text};
use crate::error::DashboardError;
use vault::read_secret_file;

/// Characters that a token must have: one that is made has 43.
const LEAST: usize = 32;

/// The token that lets in, of which only a hash is kept.
#[derive(Debug)]
pub(crate) struct Token(Hashed);

impl Token {
    /// Reads the token in a file that only this user can read; makes the file when it is not there.
    ///
    /// # Errors
    /// [`DashboardError`]: the file cannot be used, or the token can be guessed.
    pub(crate) fn load(path: &Path) -> Result<Self, DashboardError> {
        match make(path) {
            // Another one is there.
            Ok(false) => {}
            Ok(true) => log::info!("a token was made in {}", path.display()),
            Err(error) => return Err(error),
        }
        let secret = read_secret_file(path).map_err(DashboardError::TokenFile)?;
        if secret.chars().count() < LEAST {
            return Err(DashboardError::ShortToken {
                path: path.into(),
                least: LEAST,
            });
        }
        Ok(Self(Hashed::of(&secret)))
    }

    /// Whether it is that one.
    pub(crate) fn is(&self, given: &str) -> bool {
        self.0.is(&Hashed::of(given))
    }
}

/// Makes the file with a new token; false when there is one of that name.
fn make(path: &Path) -> Result<bool, DashboardError> {
    if path.symlink_metadata().is_ok() || path.starts_with("/dev/fd") {
        return Ok(false);
    }
    let fail = |error: io::Error| {
        let path = path.display();
        DashboardError::TokenFile(format!("cannot make {path} for the token: {error}"))
    };
    let mut token = random_text()?;
    token.push('\n');
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    let written = |mut file: File| {
        file.write_all(token.as_bytes())?;
        file.sync_all()
    };
    match file {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(fail(error)),
        Ok(file) => match written(file) {
            Ok(()) => Ok(true),
            Err(error) => {
                // A half of it would be taken for the token next time.
                let _ = std::fs::remove_file(path);
                Err(fail(error))
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_token_is_made_once_and_only_for_this_user() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let token = Token::load(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.trim_end().len(), 43);
        let again = Token::load(&path).unwrap();
        for token in [&token, &again] {
            assert!(token.is(text.trim_end()));
            assert!(!token.is("") && !token.is(&text) && !token.is(&text[..42]));
        }
        let debug = format!("{token:?}");
        assert!(!debug.contains(text.trim_end()), "{debug}");
    }

    #[test]
    fn a_token_that_others_read_or_guess_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "secret").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        let error = Token::load(&path).unwrap_err();
        assert!(matches!(error, DashboardError::ShortToken { .. }));
        assert!(!error.to_string().contains("secret"), "{error}");
        std::fs::write(&path, "x".repeat(40)).unwrap();
        Token::load(&path).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        let error = Token::load(&path).unwrap_err().to_string();
        assert!(error.contains("chmod 600"), "{error}");
        assert!(Token::load(&dir.path().join("none/token")).is_err());
    }
}
