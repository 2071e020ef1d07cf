//! `sealdisk disk-encryption-set identity`.

use clap::{Args, Subcommand};

use super::identity_options::IdentityOptions;
use super::view::{DesView, note_policies};
use crate::cli::{CliError, Context};

/// Arguments of `disk-encryption-set identity`.
#[derive(Args)]
pub struct DesIdentityArgs {
    #[command(subcommand)]
    command: DesIdentityCommand,
}

#[derive(Subcommand)]
enum DesIdentityCommand {
    /// Remove the identity of a set; its disks stop, also attached ones
    #[command(after_help = "Example:
  sealdisk disk-encryption-set identity remove myset --yes")]
    Remove {
        /// The disk encryption set
        name: String,
        /// Do not ask for confirmation
        #[arg(long, short)]
        yes: bool,
    },
    /// Assign a new identity to a set; grant it the key permissions next
    #[command(after_help = "Example:
  sealdisk disk-encryption-set identity assign myset
  sealdisk keyvault set-policy myvault --key-permissions get wrapKey unwrapKey --object-id \\
    $(sealdisk disk-encryption-set identity show myset -o json | jq -r .principalId)")]
    Assign {
        /// The disk encryption set
        name: String,
        #[command(flatten)]
        identity: IdentityOptions,
    },
    /// Show the identity of a set
    #[command(after_help = "Example:
  sealdisk disk-encryption-set identity show myset -o json")]
    Show {
        /// The disk encryption set
        name: String,
    },
}

pub(super) fn run(context: &Context, args: DesIdentityArgs) -> Result<(), CliError> {
    let installation = context.installation()?;
    let output = &context.output;
    match args.command {
        DesIdentityCommand::Remove { name, yes } => {
            installation.catalog().des(&name)?;
            let question = format!(
                "Remove the identity of the disk encryption set '{name}'? Its disks stop, also \
                 those that are attached."
            );
            output.confirm(&question, yes)?;
            note_policies(context, &disks::des::remove_identity(&installation, &name)?);
            Ok(())
        }
        DesIdentityCommand::Assign { name, identity } => {
            let wanted = identity.identity(&installation)?;
            let record = disks::des::assign_identity(&installation, &name, wanted.as_ref())?;
            output.show(&DesView::from(record).identity)
        }
        DesIdentityCommand::Show { name } => {
            let record = installation.catalog().des(&name)?.record;
            output.show(&DesView::from(record).identity)
        }
    }
}
