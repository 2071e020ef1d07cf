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
    /// Remove a set's identity: the vault grants its disks no key any more, also not those that are
    /// attached
    #[command(after_help = "Example:
  sealdisk disk-encryption-set identity remove myset --yes")]
    Remove {
        /// The disk encryption set
        name: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Give a set whose identity was removed a new one, which is to be granted its key again
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
    /// Show a set's identity
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
            let wanted = identity.identity()?;
            let record = disks::des::assign_identity(&installation, &name, wanted.as_ref())?;
            output.show(&DesView::from(record).identity)
        }
        DesIdentityCommand::Show { name } => {
            let record = installation.catalog().des(&name)?.record;
            output.show(&DesView::from(record).identity)
        }
    }
}
