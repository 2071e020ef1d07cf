//! What protects a backup, and what opens it: passphrases, recipients and identities.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use age::secrecy::{ExposeSecret, SecretString};
use clap::{ArgGroup, Args};
use zeroize::Zeroizing;

use crate::cli::CliError;
use installation::backup::{Protection, Secret};
use vault::read_secret_file;

/// The systemd credential with the passphrase.
const CREDENTIAL: &str = "sealdisk-backup-passphrase";

/// Characters of the shortest passphrase under which a backup is made. It is guessed at without end where
/// the file is, at the pace that scrypt allows.
const SHORTEST: usize = 12;

/// Longest list of recipients or identities that is read.
const LIST_LIMIT: u64 = 1 << 20;

#[derive(Args)]
#[command(group = ArgGroup::new("for").args(["passphrase_file", "recipient", "recipients_file"]).multiple(true))]
pub(super) struct ProtectionArgs {
    /// Encrypt it with the passphrase in this file (mode 0600, or a pipe), or from stdin (-): at least
    /// 12 characters [default: the systemd credential sealdisk-backup-passphrase]
    #[arg(long, value_name = "FILE", conflicts_with_all = ["recipient", "recipients_file"])]
    passphrase_file: Option<PathBuf>,
    /// Encrypt it for this recipient: age1…, as age-keygen prints it
    #[arg(long, value_name = "RECIPIENT")]
    recipient: Vec<String>,
    /// Encrypt it for the recipients in this file, one per line
    #[arg(long, value_name = "FILE")]
    recipients_file: Option<PathBuf>,
}

#[derive(Args)]
pub(super) struct SecretArgs {
    /// A file (mode 0600) with the passphrase, or - for stdin [default: the systemd credential
    /// sealdisk-backup-passphrase]
    #[arg(long, value_name = "FILE", conflicts_with = "identity_file")]
    passphrase_file: Option<PathBuf>,
    /// A file (mode 0600) with the identities (AGE-SECRET-KEY-1…), as age-keygen writes it
    #[arg(long, value_name = "FILE")]
    identity_file: Option<PathBuf>,
}

pub(super) fn protection(args: &ProtectionArgs) -> Result<Protection, CliError> {
    let mut texts = args.recipient.clone();
    if let Some(path) = &args.recipients_file {
        let mut list = String::new();
        File::open(path)
            .and_then(|file| file.take(LIST_LIMIT).read_to_string(&mut list))
            .map_err(|e| CliError::usage(format!("cannot read {}: {e}", path.display())))?;
        let lines = list.lines().map(str::trim);
        texts.extend(
            lines
                .filter(|line| !line.is_empty() && !line.starts_with('#'))
                .map(Into::into),
        );
        if texts.is_empty() {
            let what = format!("{} names no recipient", path.display());
            return Err(CliError::usage(what));
        }
    }
    if texts.is_empty() {
        let passphrase = passphrase(args.passphrase_file.as_deref())?;
        if passphrase.expose_secret().chars().count() < SHORTEST {
            return Err(CliError::usage(format!(
                "the passphrase has less than {SHORTEST} characters, and whoever gets the backup can try \
                 passphrases as long as they like: take a longer one, of several random words"
            )));
        }
        return Ok(Protection::Passphrase(passphrase));
    }
    let recipients = texts.iter().map(|text| {
        text.parse().map_err(|why: &str| {
            CliError::usage(format!(
                "'{text}' is no recipient ({why}): give the age1… that age-keygen prints"
            ))
        })
    });
    Ok(Protection::Recipients(
        recipients.collect::<Result<_, _>>()?,
    ))
}

pub(super) fn secret(args: &SecretArgs) -> Result<Secret, CliError> {
    let Some(path) = &args.identity_file else {
        return passphrase(args.passphrase_file.as_deref()).map(Secret::Passphrase);
    };
    let text = read_secret_file(path).map_err(CliError::usage)?;
    let mut identities = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        identities.push(line.parse().map_err(|why: &str| {
            CliError::usage(format!(
                "{} has a line that is no identity: {why}",
                path.display()
            ))
        })?);
    }
    match identities.is_empty() {
        true => Err(CliError::usage(format!(
            "{} has no identity in it",
            path.display()
        ))),
        false => Ok(Secret::Identities(identities)),
    }
}

/// From a file, from stdin, or from the systemd credential: never from an argument, which others see.
fn passphrase(file: Option<&Path>) -> Result<SecretString, CliError> {
    let text: Zeroizing<String> = match file {
        Some(path) if path == Path::new("-") => {
            let mut text = Zeroizing::new(String::with_capacity(4096));
            std::io::stdin()
                .lock()
                .take(4096)
                .read_to_string(&mut text)
                .map_err(|e| CliError::usage(format!("cannot read the passphrase: {e}")))?;
            let length = text.trim_end_matches(['\r', '\n']).len();
            text.truncate(length);
            text
        }
        Some(path) => read_secret_file(path).map_err(CliError::usage)?,
        None => {
            let dir = std::env::var_os("CREDENTIALS_DIRECTORY");
            let path = dir.map(|dir| PathBuf::from(dir).join(CREDENTIAL));
            let path = path.filter(|path| path.exists()).ok_or_else(|| {
                CliError::usage(format!(
                    "say what protects the backup: --passphrase-file, or a recipient or identity of age; \
                     there is no systemd credential {CREDENTIAL}"
                ))
            })?;
            vault::read_credential(&path).map_err(CliError::usage)?
        }
    };
    if text.is_empty() {
        return Err(CliError::usage("the passphrase is empty"));
    }
    Ok(SecretString::from(text.as_str().to_owned()))
}
