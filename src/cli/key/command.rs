//! The subcommands of `keyvault key`.

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use time::OffsetDateTime;

use super::attributes::AttributeArgs;
use super::import::{SourceArgs, read_jwk, read_pem};
use super::{lifecycle, what_if};
use crate::cli::output::time_cell;
use crate::cli::{CliError, Context, Tabular};
use installation::Installation;
use vault::{
    EmbeddedVault, KeyAttributes, KeyBundle, KeyChange, KeyId, KeyMaterial, KeySize, KeyType,
    KeyUrl, KeyVault, NewKey,
};

/// Arguments of `keyvault key`.
#[derive(Args)]
pub struct KeyArgs {
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Subcommand)]
enum KeyCommand {
    /// Create a key, or a new version of an existing key
    #[command(after_help = "Example:
  sealdisk keyvault key create mykey --vault-name myvault --kty RSA --size 3072")]
    Create(CreateArgs),
    /// Import an RSA private key, as a new key or as a new version of an existing key
    #[command(after_help = "Example:
  sealdisk keyvault key import mykey --vault-name myvault --pem-file mykey.pem")]
    Import(ImportArgs),
    /// List the keys of a vault
    #[command(after_help = "Example:\n  sealdisk keyvault key list --vault-name myvault")]
    List(ListArgs),
    /// List the versions of a key, oldest first
    #[command(after_help = "Example:
  sealdisk keyvault key list-versions mykey --vault-name myvault")]
    ListVersions(ListVersionsArgs),
    /// Show a key's public part and attributes
    #[command(after_help = "Example:\n  sealdisk keyvault key show mykey --vault-name myvault")]
    Show(VersionArgs),
    /// Enable or disable a key version, or set when it is valid
    #[command(after_help = "Example:
  sealdisk keyvault key set-attributes mykey --vault-name myvault --enabled false

A key version that is disabled, expired or not yet valid neither wraps nor unwraps: disks under it
cannot be created, attached or decrypted until it is valid again, and attached ones stop. The
command warns unless that is safe, as `what-if` does, and asks on a terminal.")]
    SetAttributes(SetAttributesArgs),
    /// List what would stop if a key version were disabled
    #[command(after_help = "Example:
  sealdisk keyvault key what-if --disable mykey --vault-name myvault")]
    WhatIf(what_if::WhatIfArgs),
    #[command(flatten)]
    Lifecycle(lifecycle::LifecycleCommand),
}

#[derive(Args)]
struct CreateArgs {
    /// The key
    name: String,
    /// Its vault
    #[arg(long)]
    vault_name: String,
    /// The key type
    #[arg(long, value_enum, ignore_case = true, default_value_t = Kty::Rsa)]
    kty: Kty,
    /// The key size in bits: 2048, 3072 or 4096
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
    /// Where the private key must be kept; a vault that keeps it in another place refuses
    #[arg(long, value_enum)]
    protection: Option<Protection>,
}

impl PlacementArgs {
    /// Refuses a vault that would keep the key in another place than it must be.
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
    /// The key version [default: the latest]
    #[arg(long)]
    version: Option<String>,
}

impl VersionArgs {
    fn key_id(&self) -> KeyId {
        KeyId {
            name: self.name.clone(),
            version: self.version.as_ref().map(|v| v.to_ascii_lowercase()),
        }
    }
}

#[derive(Args)]
struct SetAttributesArgs {
    #[command(flatten)]
    version: VersionArgs,
    #[command(flatten)]
    attributes: AttributeArgs,
    /// Do not warn or ask
    #[arg(long, short)]
    yes: bool,
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

pub fn run(context: &Context, installation: &Installation, args: KeyArgs) -> Result<(), CliError> {
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
                (Some(path), _) => import(KeyMaterial::Pem(&read_pem(&path)?)),
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
        KeyCommand::Lifecycle(command) => lifecycle::run(context, installation, command),
    }
}

fn items(bundles: Vec<KeyBundle>) -> Result<Vec<KeyItemView>, CliError> {
    bundles.into_iter().map(KeyItemView::try_from).collect()
}
