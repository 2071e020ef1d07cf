//! Private keys that are brought in, from a file or stdin.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;
use zeroize::Zeroizing;

use crate::cli::CliError;
use vault::PrivateJwk;

/// Largest PEM file that is read: an RSA-4096 key has less than 4 KiB.
const PEM_LIMIT: u64 = 64 * 1024;

/// Largest JSON Web Key that is read.
const JWK_LIMIT: u64 = 64 * 1024;

#[derive(Args)]
#[group(required = true, multiple = false)]
pub(super) struct SourceArgs {
    /// The private key as PEM, PKCS#1 or PKCS#8 without a password; `-` reads stdin
    #[arg(long, value_name = "FILE")]
    pub(super) pem_file: Option<PathBuf>,
    /// The private key as a JSON Web Key (RFC 7518); `-` reads stdin
    #[arg(long, value_name = "FILE")]
    pub(super) jwk_file: Option<PathBuf>,
}

/// The text of a PEM file.
pub(super) fn read_pem(path: &Path) -> Result<Zeroizing<String>, CliError> {
    read_text("PEM", path, PEM_LIMIT)
}

pub(super) fn read_jwk(path: &Path) -> Result<PrivateJwk, CliError> {
    let text = read_text("JSON Web Key", path, JWK_LIMIT)?;
    // The parser's own message could repeat a part of the key.
    serde_json::from_str(&text).map_err(|_| {
        let message = format!("the file {} is no JSON Web Key", path.display());
        CliError::new("BadParameter", message)
    })
}

/// Reads a file with a secret, or stdin.
fn read_text(what: &str, path: &Path, limit: u64) -> Result<Zeroizing<String>, CliError> {
    let fail = |e: &dyn std::fmt::Display| {
        let message = format!("cannot read the {what} file {}: {e}", path.display());
        CliError::new("BadParameter", message)
    };
    // Room for all of it from the start, so that no copy of the key is left by growing.
    let mut text = Zeroizing::new(String::with_capacity(limit as usize + 1));
    let read = |from: &mut dyn Read, text: &mut String| from.take(limit + 1).read_to_string(text);
    let length = if path.as_os_str() == "-" {
        read(&mut std::io::stdin().lock(), &mut text)
    } else {
        File::open(path).and_then(|mut file| read(&mut file, &mut text))
    };
    let length = length.map_err(|e| fail(&e))?;
    if length as u64 > limit {
        return Err(fail(&"it is too long for an RSA key"));
    }
    Ok(text)
}
