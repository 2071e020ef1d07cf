//! The options that name the identity of a disk encryption set.

use std::path::PathBuf;

use clap::Args;
use uuid::Uuid;

use crate::cli::CliError;
use crate::cli::files::absolute;
use installation::Installation;
use installation::catalog::DesIdentity;

/// The identity that uses the key: a managed one for that of a remote vault.
#[derive(Args)]
pub(super) struct IdentityOptions {
    /// For a remote vault, the managed identity of this machine: `system` (the default), or the client
    /// id of a user-assigned one
    #[arg(long, value_name = "system|CLIENT-ID", value_parser = client_id)]
    identity: Option<ClientId>,
    /// The endpoint that issues tokens instead of Azure, such as that of `sealdisk keyvault serve`
    #[arg(long, value_name = "URL", requires = "identity_header_file")]
    identity_endpoint: Option<String>,
    /// A file (mode 0600) with the secret for the endpoint
    #[arg(long, value_name = "FILE", requires = "identity_endpoint")]
    identity_header_file: Option<PathBuf>,
    /// An identity of `sealdisk identity`, by its name, in place of one of the set's own
    #[arg(long, visible_alias = "user-assigned", value_name = "IDENTITY",
          conflicts_with_all = ["identity", "identity_endpoint"])]
    mi_user_assigned: Option<String>,
    /// For a vault of another installation: the client id of the identity there that trusts this one
    #[arg(long, value_name = "CLIENT-ID", requires = "mi_user_assigned")]
    federated_client_id: Option<Uuid>,
}

/// Which managed identity; `None` is the system-assigned one.
#[derive(Clone, Copy)]
struct ClientId(Option<Uuid>);

fn client_id(text: &str) -> Result<ClientId, String> {
    match text {
        "system" => Ok(ClientId(None)),
        id => Uuid::parse_str(id)
            .map(|id| ClientId(Some(id)))
            .map_err(|_| "give `system` or a client id, which is a UUID".into()),
    }
}

impl IdentityOptions {
    pub(super) fn identity(
        self,
        installation: &Installation,
    ) -> Result<Option<DesIdentity>, CliError> {
        if let Some(name) = &self.mi_user_assigned {
            return Ok(Some(DesIdentity::UserAssigned {
                object_id: installation.catalog().identity(name)?.record.object_id,
                federated_client_id: self.federated_client_id,
            }));
        }
        let client_id = self.identity.and_then(|id| id.0);
        Ok(match (self.identity_endpoint, self.identity_header_file) {
            (Some(url), Some(file)) => {
                let header_file = absolute("--identity-header-file", &file)?;
                Some(DesIdentity::Endpoint {
                    url,
                    header_file,
                    client_id,
                })
            }
            _ => self.identity.map(|_| DesIdentity::Imds { client_id }),
        })
    }
}
