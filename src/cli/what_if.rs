//! `sealdisk keyvault key what-if`.

use clap::Args;

use super::{CliError, Context, Tabular};
use crate::control::{Installation, KeyUser};
use crate::envelope::ResourceKind;
use crate::vault::KeyId;

/// Arguments of `keyvault key what-if`.
#[derive(Args)]
pub struct WhatIfArgs {
    /// The key that would be disabled
    #[arg(long, value_name = "NAME")]
    disable: String,
    /// Its vault
    #[arg(long)]
    vault_name: String,
    /// Its version [default: the latest]
    #[arg(long)]
    version: Option<String>,
}

impl Tabular for KeyUser {
    const COLUMNS: &'static [&'static str] =
        &["type", "name", "diskEncryptionSet", "diskState", "effect"];

    fn cells(&self) -> Vec<String> {
        let effect = match (self.kind, self.disk_state) {
            (ResourceKind::Disk, "Attached") => "stops at its next key check",
            (ResourceKind::Disk, _) => "cannot be attached",
            _ => "cannot be read",
        };
        vec![
            self.kind.to_string(),
            self.name.clone(),
            self.disk_encryption_set_id
                .clone()
                .unwrap_or_else(|| "-".into()),
            self.disk_state.into(),
            effect.into(),
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
    let effect = installation.what_if_disabled(&args.vault_name, &key)?;
    let output = &context.output;
    if output.format() == super::OutputFormat::Json {
        return output.show(&effect);
    }
    output.note(&format!("without {}:", effect.key_url));
    for set in &effect.disk_encryption_sets {
        output.note(&format!(
            "no disk can be made with the disk encryption set '{set}'"
        ));
    }
    match effect.resources.is_empty() {
        true => output.text("nothing would stop"),
        false => output.list(&effect.resources),
    }
}
