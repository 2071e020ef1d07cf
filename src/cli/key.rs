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
use super::{CliError, Context, Tabular, key_lifecycle, what_if};
use installation::Installation;
use vault::{
    AttributeChange, EmbeddedVault, KeyAttributes, KeyBundle, KeyChange, KeyId, KeyMaterial,
    KeyOps, KeySize, KeyType, KeyUrl, KeyVault, NewKey, PrivateJwk,
};

/// Largest PEM file that is read: an RSA-4096 key has less than 4 KiB.
const PEM_LIMIT: u64 = 64 * 1024;

/// Largest JSON Web Key that is read.
const JWK_LIMIT: u64 = 64 * 1024;

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
cannot be made, attached or decrypted until it is valid again, and attached ones stop. It is said whether
that is safe, as by `what-if`, and asked when there is a terminal.")]
    SetAttributes(SetAttributesArgs),
    /// List what would stop if a key version were disabled
    #[command(after_help = "Example:
  sealdisk keyvault key what-if --disable mykey --vault-name myvault")]
    WhatIf(what_if::WhatIfArgs),
    #[command(flatten)]
    Lifecycle(key_lifecycle::LifecycleCommand),
}

#[derive(Args)]
struct CreateArgs {
    /// The key
    name: String,
    /// Its vault
    #[arg(long)]
    vault_name: String,
    /// The kind of key
    #[arg(long, value_enum, ignore_case = true, default_value_t = Kty::Rsa)]
    kty: Kty,
    /// Bits of the modulus: 2048, 3072 or 4096
    #[arg(long, default_value_t = 3072)]
    size: u32,
    #[command(flatten)]
    placement: PlacementArgs,
    #[command(flatten)]
    attributes: AttributeArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kty {
    /// RSA
    #[value(name = "RSA")]
    Rsa,
    /// RSA, in a hardware security module
    #[value(name = "RSA-HSM")]
    RsaHsm,
}

#[derive(Clone, Copy, ValueEnum)]
enum Protection {
    /// In the vault's files, encrypted
    Software,
    /// In a hardware security module
    Hsm,
}

#[derive(Args)]
struct PlacementArgs {
    /// Where the private key has to be; the vault decides where it is
    #[arg(long, value_enum)]
    protection: Option<Protection>,
}

impl PlacementArgs {
    /// Refuses a vault that would keep the key elsewhere than it has to be.
    fn check(&self, vault: &EmbeddedVault, kty: Kty) -> Result<(), CliError> {
        let wanted = match (self.protection, kty) {
            (Some(Protection::Hsm), _) | (None, Kty::RsaHsm) => Some(KeyType::RsaHsm),
            (Some(Protection::Software), _) => Some(KeyType::Rsa),
            (None, Kty::Rsa) => None,
        };
        if wanted.is_none_or(|wanted| wanted == vault.key_type()) {
            return Ok(());
        }
        Err(CliError::new(
            "BadParameter",
            format!(
                "the key vault '{}' has keys of type {} only; whether keys are in a hardware \
                 security module is chosen when a vault is made (`keyvault create --hsm-module`)",
                vault.name(),
                vault.key_type().name()
            ),
        ))
    }
}

#[derive(Args)]
struct ImportArgs {
    /// The key
    name: String,
    /// Its vault
    #[arg(long)]
    vault_name: String,
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    placement: PlacementArgs,
    #[command(flatten)]
    attributes: AttributeArgs,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct SourceArgs {
    /// The private key as PEM, PKCS#1 or PKCS#8 without a password; `-` reads stdin
    #[arg(long, value_name = "FILE")]
    pem_file: Option<PathBuf>,
    /// The private key as a JSON Web Key (RFC 7518); `-` reads stdin
    #[arg(long, value_name = "FILE")]
    jwk_file: Option<PathBuf>,
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
    /// Do not say or ask what would stop
    #[arg(long, short)]
    yes: bool,
}

#[derive(Args)]
struct AttributeArgs {
    /// Whether the key may be used
    #[arg(long, value_name = "true|false")]
    enabled: Option<bool>,
    /// When it stops being valid, as 2027-01-31, 2027-01-31T12:00Z or with seconds and zone; '' for never
    #[arg(long, value_name = "TIME", value_parser = parse_limit)]
    expires: Option<Limit>,
    /// When it starts being valid, in the same forms; '' for always
    #[arg(long, value_name = "TIME", value_parser = parse_limit)]
    not_before: Option<Limit>,
    /// What it may be used for: some of encrypt decrypt wrapKey unwrapKey sign verify
    #[arg(long, num_args = 1.., value_name = "OPERATION")]
    ops: Vec<String>,
    /// What you attach to it, in place of what it has: NAME=VALUE, or '' for nothing
    #[arg(long, num_args = 1.., value_name = "NAME=VALUE", value_parser = parse_tag)]
    tags: Vec<Option<(String, String)>>,
}

impl AttributeArgs {
    fn change(self) -> Result<KeyChange, CliError> {
        let ops = self.ops.iter().map(String::as_str);
        Ok(KeyChange {
            attributes: AttributeChange {
                enabled: self.enabled,
                not_before: self.not_before.map(|limit| limit.0),
                expires: self.expires.map(|limit| limit.0),
            },
            key_ops: match self.ops.is_empty() {
                true => None,
                false => Some(KeyOps::from_names(ops)?),
            },
            tags: match self.tags.is_empty() {
                true => None,
                false => Some(self.tags.into_iter().flatten().collect()),
            },
        })
    }
}

/// `NAME=VALUE`; `None` for the empty text.
fn parse_tag(text: &str) -> Result<Option<(String, String)>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    match name.is_empty() {
        true => Err("write it as NAME=VALUE".into()),
        false => Ok(Some((name.into(), value.into()))),
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
            let vault = installation.vault(&args.vault_name)?;
            args.placement.check(&vault, args.kty)?;
            let KeyChange {
                attributes,
                key_ops,
                tags,
            } = args.attributes.change()?;
            let new = NewKey {
                size: KeySize::try_from(args.size)?,
                attributes,
                key_ops: key_ops.unwrap_or_default(),
                tags: tags.unwrap_or_default(),
            };
            output.show(&vault.create_key(&operator, &args.name, &new)?)
        }
        KeyCommand::Import(args) => {
            let vault = installation.vault(&args.vault_name)?;
            args.placement.check(&vault, Kty::Rsa)?;
            let change = args.attributes.change()?;
            let import = |material: KeyMaterial<'_>| {
                output.show(&vault.import_key(&operator, &args.name, &material, &change)?)
            };
            match (args.source.pem_file, args.source.jwk_file) {
                (Some(path), _) => import(KeyMaterial::Pem(&read_text("PEM", &path, PEM_LIMIT)?)),
                (None, Some(path)) => {
                    let key = read_jwk(&path)?;
                    if key.is_for_hardware() {
                        args.placement.check(&vault, Kty::RsaHsm)?;
                    }
                    import(KeyMaterial::Jwk(&key))
                }
                (None, None) => Err(CliError::usage("give --pem-file or --jwk-file")),
            }
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
            let change = args.attributes.change()?;
            if change == KeyChange::default() {
                return Err(CliError::usage(
                    "nothing to change: give --enabled, --expires, --not-before, --ops or --tags",
                ));
            }
            let vault = installation.vault(&args.version.vault_name)?;
            if change.takes_away(OffsetDateTime::now_utc()) && !args.yes {
                let (vault, key) = (&args.version.vault_name, args.version.key_id());
                let effect = disks::des::what_if_disabled(installation, vault, &key);
                let safety = effect.map(|effect| effect.safety);
                what_if::warn(output, "make this key version unusable", safety)?;
            }
            output.show(&vault.update_key(&operator, &args.version.key_id(), &change)?)
        }
        KeyCommand::Lifecycle(command) => key_lifecycle::run(context, installation, command),
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

fn read_jwk(path: &Path) -> Result<PrivateJwk, CliError> {
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

/// A moment, or none.
#[derive(Clone, Copy)]
struct Limit(Option<OffsetDateTime>);

/// A time; the empty text takes the limit away, as with the Azure CLI.
fn parse_limit(text: &str) -> Result<Limit, String> {
    match text.is_empty() {
        true => Ok(Limit(None)),
        false => parse_time(text).map(|time| Limit(Some(time))),
    }
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
