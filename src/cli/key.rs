//! `sealdisk keyvault key`.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{Date, OffsetDateTime, PrimitiveDateTime};
use zeroize::Zeroizing;

use super::output::time_cell;
use super::{CliError, Context, Tabular, what_if};
use crate::control::Installation;
use crate::vault::{
    AttributeChange, KeyAttributes, KeyBundle, KeyId, KeyMaterial, KeySize, KeyUrl, KeyVault,
    NewKey,
};

/// Largest PEM file that is read: an RSA-4096 key has less than 4 KiB.
const PEM_LIMIT: u64 = 64 * 1024;

/// Arguments of `keyvault key`.
#[derive(Args)]
pub struct KeyArgs {
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Subcommand)]
enum KeyCommand {
    /// Make a key, or a new version of it when there is one of that name
    #[command(after_help = "Example:
  sealdisk keyvault key create mykey --vault-name myvault --kty RSA --size 3072")]
    Create(CreateArgs),
    /// Bring in an RSA private key; a new version when there is one of that name
    #[command(after_help = "Example:
  sealdisk keyvault key import mykey --vault-name myvault --pem-file mykey.pem")]
    Import(ImportArgs),
    /// List the keys of a vault
    #[command(after_help = "Example:\n  sealdisk keyvault key list --vault-name myvault")]
    List(ListArgs),
    /// List the versions of a key, the oldest first
    #[command(after_help = "Example:
  sealdisk keyvault key list-versions mykey --vault-name myvault")]
    ListVersions(ListVersionsArgs),
    /// Show a key's public part and attributes
    #[command(after_help = "Example:\n  sealdisk keyvault key show mykey --vault-name myvault")]
    Show(VersionArgs),
    /// Enable or disable a key version, or limit the time in which it is valid
    #[command(after_help = "Example:
  sealdisk keyvault key set-attributes mykey --vault-name myvault --enabled false

A key version that is disabled, expired or not yet valid neither wraps nor unwraps: disks under it
cannot be made, attached or decrypted until it is valid again.")]
    SetAttributes(SetAttributesArgs),
    /// List what would stop if a key version were disabled
    #[command(after_help = "Example:
  sealdisk keyvault key what-if --disable mykey --vault-name myvault")]
    WhatIf(what_if::WhatIfArgs),
}

#[derive(Args)]
struct CreateArgs {
    /// The key
    name: String,
    /// Its vault
    #[arg(long)]
    vault_name: String,
    /// The kind of key
    #[arg(long, value_enum, ignore_case = true, default_value_t = KeyType::Rsa)]
    kty: KeyType,
    /// Bits of the modulus: 2048, 3072 or 4096
    #[arg(long, default_value_t = 3072)]
    size: u32,
    #[command(flatten)]
    attributes: AttributeArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum KeyType {
    /// RSA
    #[value(name = "RSA")]
    Rsa,
}

#[derive(Args)]
struct ImportArgs {
    /// The key
    name: String,
    /// Its vault
    #[arg(long)]
    vault_name: String,
    /// The private key as PEM, PKCS#1 or PKCS#8 without a password; `-` reads stdin
    #[arg(long, value_name = "FILE")]
    pem_file: PathBuf,
    #[command(flatten)]
    attributes: AttributeArgs,
}

#[derive(Args)]
struct ListArgs {
    /// The vault
    #[arg(long)]
    vault_name: String,
}

#[derive(Args)]
struct ListVersionsArgs {
    /// The key
    name: String,
    /// Its vault
    #[arg(long)]
    vault_name: String,
}

#[derive(Args)]
struct VersionArgs {
    /// The key
    name: String,
    /// Its vault
    #[arg(long)]
    vault_name: String,
    /// The version, instead of the latest
    #[arg(long)]
    version: Option<String>,
}

#[derive(Args)]
struct SetAttributesArgs {
    #[command(flatten)]
    version: VersionArgs,
    #[command(flatten)]
    attributes: AttributeArgs,
}

#[derive(Args)]
struct AttributeArgs {
    /// Whether the key may be used
    #[arg(long, value_name = "true|false")]
    enabled: Option<bool>,
    /// When it stops being valid, as 2027-01-31, 2027-01-31T12:00Z or with seconds and zone
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    expires: Option<OffsetDateTime>,
    /// When it starts being valid, in the same forms
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    not_before: Option<OffsetDateTime>,
}

impl AttributeArgs {
    fn change(&self) -> AttributeChange {
        AttributeChange {
            enabled: self.enabled,
            not_before: self.not_before,
            expires: self.expires,
        }
    }
}

/// A key in a list: without its public numbers, as Azure lists it.
#[derive(Serialize)]
struct KeyItemView {
    kid: String,
    name: String,
    version: String,
    attributes: KeyAttributes,
}

impl Tabular for KeyItemView {
    const COLUMNS: &'static [&'static str] = &[
        "name",
        "version",
        "enabled",
        "notBefore",
        "expires",
        "created",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.version.clone(),
            self.attributes.enabled.to_string(),
            time_cell(self.attributes.not_before),
            time_cell(self.attributes.expires),
            time_cell(Some(self.attributes.created)),
        ]
    }
}

impl TryFrom<KeyBundle> for KeyItemView {
    type Error = CliError;

    fn try_from(bundle: KeyBundle) -> Result<Self, CliError> {
        let url: KeyUrl = bundle.key.kid.parse()?;
        Ok(Self {
            kid: bundle.key.kid,
            name: url.key.name,
            version: url.key.version.unwrap_or_default(),
            attributes: bundle.attributes,
        })
    }
}

pub(super) fn run(
    context: &Context,
    installation: &Installation,
    args: KeyArgs,
) -> Result<(), CliError> {
    let operator = installation.operator();
    let output = &context.output;
    match args.command {
        KeyCommand::Create(args) => {
            let KeyType::Rsa = args.kty;
            let size = KeySize::try_from(args.size)?;
            let vault = installation.vault(&args.vault_name)?;
            let change = args.attributes.change();
            let new = NewKey {
                attributes: change,
                ..NewKey::new(size)
            };
            output.show(&vault.create_key(&operator, &args.name, &new)?)
        }
        KeyCommand::Import(args) => {
            let vault = installation.vault(&args.vault_name)?;
            let pem = read_pem(&args.pem_file)?;
            let change = args.attributes.change();
            let material = KeyMaterial::Pem(&pem);
            output.show(&vault.import_key(&operator, &args.name, &material, &change.into())?)
        }
        KeyCommand::List(args) => {
            let keys = installation.vault(&args.vault_name)?.keys(&operator)?;
            output.list(&items(keys)?)
        }
        KeyCommand::ListVersions(args) => {
            let vault = installation.vault(&args.vault_name)?;
            output.list(&items(vault.key_versions(&operator, &args.name)?)?)
        }
        KeyCommand::Show(args) => {
            let vault = installation.vault(&args.vault_name)?;
            output.show(&vault.key(&operator, &args.key_id())?)
        }
        KeyCommand::WhatIf(args) => what_if::run(context, installation, &args),
        KeyCommand::SetAttributes(args) => {
            let change = args.attributes.change();
            if change == AttributeChange::default() {
                return Err(CliError::usage(
                    "nothing to change: give --enabled, --expires or --not-before",
                ));
            }
            let vault = installation.vault(&args.version.vault_name)?;
            output.show(&vault.update_key(&operator, &args.version.key_id(), &change.into())?)
        }
    }
}

impl VersionArgs {
    fn key_id(&self) -> KeyId {
        KeyId {
            name: self.name.clone(),
            version: self.version.as_ref().map(|v| v.to_ascii_lowercase()),
        }
    }
}

fn items(bundles: Vec<KeyBundle>) -> Result<Vec<KeyItemView>, CliError> {
    bundles.into_iter().map(KeyItemView::try_from).collect()
}

fn read_pem(path: &Path) -> Result<Zeroizing<String>, CliError> {
    let fail = |e: &dyn std::fmt::Display| {
        let message = format!("cannot read the PEM file {}: {e}", path.display());
        CliError::new("BadParameter", message)
    };
    // Room for all of it from the start, so that no copy of the key is left by growing.
    let mut text = Zeroizing::new(String::with_capacity(PEM_LIMIT as usize + 1));
    let read =
        |from: &mut dyn Read, text: &mut String| from.take(PEM_LIMIT + 1).read_to_string(text);
    let length = if path.as_os_str() == "-" {
        read(&mut std::io::stdin().lock(), &mut text)
    } else {
        File::open(path).and_then(|mut file| read(&mut file, &mut text))
    };
    let length = length.map_err(|e| fail(&e))?;
    if length as u64 > PEM_LIMIT {
        return Err(fail(&"it is too long for an RSA key"));
    }
    Ok(text)
}

/// RFC 3339, or the Azure CLI's `YYYY-MM-DD[THH:MMZ]`, which are in UTC.
fn parse_time(text: &str) -> Result<OffsetDateTime, String> {
    let minutes = format_description!("[year]-[month]-[day]T[hour]:[minute]Z");
    let day = format_description!("[year]-[month]-[day]");
    OffsetDateTime::parse(text, &Rfc3339)
        .or_else(|_| PrimitiveDateTime::parse(text, minutes).map(PrimitiveDateTime::assume_utc))
        .or_else(|_| Date::parse(text, day).map(|date| date.midnight().assume_utc()))
        .map_err(|_| {
            "write it as 2027-01-31, 2027-01-31T12:00Z or 2027-01-31T12:00:00+01:00".into()
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    #[test]
    fn times_in_every_documented_form() {
        for (text, time) in [
            ("2027-01-31", datetime!(2027-01-31 00:00 UTC)),
            ("2027-01-31T12:30Z", datetime!(2027-01-31 12:30 UTC)),
            ("2027-01-31T12:30:05Z", datetime!(2027-01-31 12:30:05 UTC)),
            (
                "2027-01-31T12:30:05+01:00",
                datetime!(2027-01-31 11:30:05 UTC),
            ),
        ] {
            assert_eq!(parse_time(text).unwrap(), time);
        }
        for bad in [
            "",
            "2027-02-30",
            "tomorrow",
            "31.1.2027",
            "2027-01-31T12:30",
        ] {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
    }
}
