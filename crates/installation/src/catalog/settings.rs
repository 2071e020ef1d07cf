//! What a vault is and where a set's identity comes from: settings that vary by kind. They are
//! stored as JSON, as it is described here.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Where a vault is, and where its private keys are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum VaultKind {
    /// In a directory of this installation, its private keys too, encrypted.
    Embedded,
    /// In a directory of this installation, its private keys in a token behind PKCS#11.
    Hsm(HsmSettings),
    /// A remote vault, reached over HTTPS.
    Https {
        /// The certificates (PEM) that alone are trusted to have signed its own; the system's when
        /// none are given.
        ca: Option<String>,
        /// Where the other installation gives tokens to who shows what an identity of this one has signed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        token_endpoint: Option<String>,
    },
}

impl VaultKind {
    /// The kind in one word, for output.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Embedded => "Embedded",
            Self::Hsm(_) => "Hsm",
            Self::Https { .. } => "Https",
        }
    }

    /// Whether another installation, or Azure, keeps the vault: its keys, its policies and its log.
    pub fn is_remote(&self) -> bool {
        match self {
            Self::Embedded | Self::Hsm(_) => false,
            Self::Https { .. } => true,
        }
    }

    /// The token that has the private keys, where one has.
    pub fn token(&self) -> Option<&HsmSettings> {
        match self {
            Self::Hsm(token) => Some(token),
            Self::Embedded | Self::Https { .. } => None,
        }
    }

    /// Whether certificates of its own are trusted for a remote vault.
    pub fn has_own_ca(&self) -> Option<bool> {
        match self {
            Self::Https { ca, .. } => Some(ca.is_some()),
            Self::Embedded | Self::Hsm(_) => None,
        }
    }
}

/// The token that has a vault's private keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HsmSettings {
    /// The PKCS#11 library.
    pub module: PathBuf,
    /// The token's label.
    pub token: String,
    /// The file that has the user's PIN; a systemd credential when it is not given.
    pub pin_file: Option<PathBuf>,
}

/// Whom the vault sees when a disk encryption set uses its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum DesIdentity {
    /// None: it was removed, so nobody may use the key for the set's disks.
    None,
    /// An identity of this installation, made with the set and gone with it.
    SystemAssigned,
    /// An identity of a user of this installation, which stays while a set has it.
    UserAssigned {
        /// Its object id.
        object_id: Uuid,
        /// The identity of another installation (Azure: an application of another tenant) that trusts this one. It is
        /// the one that is seen by a vault there.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        federated_client_id: Option<Uuid>,
    },
    /// The managed identity that Azure gives this virtual machine, asked for by Azure's instance
    /// metadata service.
    Imds {
        /// Which one, when the machine has several.
        client_id: Option<Uuid>,
    },
    /// A managed identity for which an endpoint issues tokens, as Azure's App Service and the
    /// token service of `sealdisk keyvault serve` do.
    Endpoint {
        /// Where tokens are asked for.
        url: String,
        /// The file with the secret that is shown to the endpoint.
        header_file: PathBuf,
        /// Which one, when the endpoint serves several.
        client_id: Option<Uuid>,
    },
}
