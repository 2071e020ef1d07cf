//! From where a vault may be asked: `sealdisk keyvault network-rule`, and options of `keyvault update`.

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use super::unlocked::unlocked;
use super::view::view;
use crate::cli::{CliError, Context, Tabular};
use installation::Installation;
use vault::{EmbeddedVault, IpRule, NetworkRules, VaultError};

/// Arguments of `keyvault network-rule`.
#[derive(Args)]
pub(super) struct NetworkRuleArgs {
    #[command(subcommand)]
    command: NetworkRuleCommand,
}

#[derive(Subcommand)]
enum NetworkRuleCommand {
    /// Let an address or a range of them ask the vault
    #[command(after_help = "Examples:
  sealdisk keyvault network-rule add myvault --ip-address 203.0.113.0/24
  sealdisk keyvault update myvault --default-action Deny")]
    Add(AddressArgs),
    /// List the addresses that may ask the vault
    #[command(after_help = "Example:\n  sealdisk keyvault network-rule list myvault")]
    List {
        /// The key vault
        name: String,
    },
    /// Remove an address or a range of them
    #[command(after_help = "Example:
  sealdisk keyvault network-rule remove myvault --ip-address 203.0.113.0/24")]
    Remove(AddressArgs),
}

#[derive(Args)]
struct AddressArgs {
    /// The key vault
    name: String,
    /// The address, or the range as 203.0.113.0/24
    #[arg(long, required = true, num_args = 1.., value_name = "ADDRESS", value_parser = ip_rule)]
    ip_address: Vec<IpRule>,
}

fn ip_rule(text: &str) -> Result<IpRule, VaultError> {
    text.parse()
}

/// The options of `keyvault update`.
#[derive(Args)]
pub(super) struct NetworkOptions {
    /// What happens to clients over the network whose address no rule names
    #[arg(long, value_enum, value_name = "Allow|Deny")]
    default_action: Option<DefaultAction>,
    /// Who may use keys in spite of the rules: AzureServices are the disk encryption sets of this installation
    #[arg(long, value_enum, value_name = "AzureServices|None")]
    bypass: Option<Bypass>,
    /// Whether clients over the network may ask at all
    #[arg(long, value_enum, value_name = "Enabled|Disabled")]
    public_network_access: Option<PublicAccess>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
enum DefaultAction {
    Allow,
    Deny,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
enum Bypass {
    AzureServices,
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
enum PublicAccess {
    Enabled,
    Disabled,
}

impl NetworkOptions {
    /// What is given, in place of what is so now.
    fn over(&self, now: &NetworkRules) -> NetworkRules {
        let mut wanted = now.clone();
        if let Some(action) = self.default_action {
            wanted.allow_by_default = action == DefaultAction::Allow;
        }
        if let Some(bypass) = self.bypass {
            wanted.bypass_services = bypass == Bypass::AzureServices;
        }
        if let Some(access) = self.public_network_access {
            wanted.public_access = access == PublicAccess::Enabled;
        }
        wanted
    }

    pub(super) fn apply(
        &self,
        installation: &Installation,
        vault: &EmbeddedVault,
    ) -> Result<(), CliError> {
        change(installation, vault, |rules| *rules = self.over(rules))
    }
}

/// Changes the rules of a vault, if that changes anything.
fn change(
    installation: &Installation,
    vault: &EmbeddedVault,
    change: impl FnOnce(&mut NetworkRules),
) -> Result<(), CliError> {
    let now = vault.network_rules()?;
    let mut wanted = now.clone();
    change(&mut wanted);
    if wanted != now {
        vault.set_network_rules(&installation.operator(), &wanted)?;
    }
    Ok(())
}

#[derive(Serialize)]
struct RuleView {
    value: String,
}

impl Tabular for RuleView {
    const COLUMNS: &'static [&'static str] = &["value"];

    fn cells(&self) -> Vec<String> {
        vec![self.value.clone()]
    }
}

pub(super) fn run(
    context: &Context,
    installation: &Installation,
    args: NetworkRuleArgs,
) -> Result<(), CliError> {
    match args.command {
        NetworkRuleCommand::Add(args) => {
            let vault = unlocked(installation, &args.name)?;
            change(installation, &vault, |rules| {
                for rule in &args.ip_address {
                    if !rules.ip_rules.contains(rule) {
                        rules.ip_rules.push(*rule);
                    }
                }
            })?;
            context.output.show(&view(&vault)?)
        }
        NetworkRuleCommand::Remove(args) => {
            let vault = unlocked(installation, &args.name)?;
            change(installation, &vault, |rules| {
                rules
                    .ip_rules
                    .retain(|rule| !args.ip_address.contains(rule));
            })?;
            context.output.show(&view(&vault)?)
        }
        NetworkRuleCommand::List { name } => {
            let rules = installation.vault(&name)?.network_rules()?.ip_rules;
            let views: Vec<RuleView> = rules
                .iter()
                .map(|rule| RuleView {
                    value: rule.to_string(),
                })
                .collect();
            context.output.list(&views)
        }
    }
}
