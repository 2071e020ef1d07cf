//! `sealdisk keyvault key what-if`.

use std::io::{self, IsTerminal};

use clap::Args;

use crate::cli::{CliError, Context, Output, Tabular};
use disks::DiskError;
use disks::des::{KeyUser, SafeToDisable, Safety};
use installation::Installation;
use vault::KeyId;

/// Arguments of `keyvault key what-if`.
#[derive(Args)]
pub struct WhatIfArgs {
    /// The key that would be disabled
    #[arg(long, value_name = "NAME")]
    disable: String,
    /// Its vault
    #[arg(long)]
    vault_name: String,
    /// Its version [default: the latest; other versions in use are named]
    #[arg(long)]
    version: Option<String>,
}

impl Tabular for KeyUser {
    const COLUMNS: &'static [&'static str] =
        &["type", "name", "diskEncryptionSet", "diskState", "effect"];

    const FIELDS: &'static [&'static str] = &[
        "type",
        "name",
        "layer",
        "diskEncryptionSetId",
        "keyUrl",
        "diskState",
        "problem",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.kind.to_string(),
            self.name.clone(),
            self.disk_encryption_set_id
                .clone()
                .unwrap_or_else(|| "-".into()),
            self.disk_state.into(),
            self.effect().into(),
        ]
    }
}

pub(super) fn run(
    context: &Context,
    installation: &Installation,
    args: &WhatIfArgs,
) -> Result<(), CliError> {
    let key = KeyId {
        name: args.disable.clone(),
        version: args.version.as_ref().map(|v| v.to_ascii_lowercase()),
    };
    let effect = disks::des::what_if_disabled(installation, &args.vault_name, &key)?;
    let output = &context.output;
    if !output.is_for_people() {
        return output.show(&effect);
    }
    output.note(&format!("without {}:", effect.key_url));
    output.note(&format!("safe to disable: {}", effect.safety.summary()));
    for reason in effect.safety.reasons.iter().skip(1) {
        output.note(&format!("also because {reason}"));
    }
    for set in &effect.disk_encryption_sets {
        output.note(&format!(
            "no disk can be created with the disk encryption set '{set}'"
        ));
    }
    for other in &effect.other_versions_in_use {
        output.note(&format!(
            "{} stays as it is, and is in use: safe to disable: {}",
            other.key_url,
            other.safety.summary()
        ));
    }
    match effect.resources.is_empty() {
        true if effect.safety.safe_to_disable == SafeToDisable::Yes => {
            output.text("nothing would stop")
        }
        true => output.text("nothing of this installation would stop, as far as is known"),
        false => output.list(&effect.resources),
    }
}

/// Warns of what would stop before a key is made unusable, and asks on a terminal. Without a terminal
/// it goes on, also when the answer is unknown: whoever revokes a key in an emergency must not be held
/// up.
pub(super) fn warn(
    output: &Output,
    what: &str,
    safety: Result<Safety, DiskError>,
) -> Result<(), CliError> {
    let summary = match safety {
        Ok(safety) if safety.safe_to_disable == SafeToDisable::Yes => return Ok(()),
        Ok(safety) => safety.summary(),
        Err(error) => format!("unknown, because {error}"),
    };
    output.note(&format!("warning: is it safe to {what}? {summary}"));
    match io::stdin().is_terminal() {
        true => output.confirm(&format!("{what} anyway?"), false),
        false => Ok(()),
    }
}
