//! Key vaults: RSA keys that never leave them, behind one trait.
//!
//! The rest of the program knows a vault only as [`KeyVault`]; the embedded one is the default,
//! the same engine served over HTTPS and HSMs come beside it without touching callers.

pub mod audit;

mod algorithm;
mod bundle;
mod caller;
mod clock;
mod embedded;
mod error;
pub mod hsm;
mod key_id;
mod key_params;
mod key_row;
mod key_vault;
mod master;
mod moved;
mod moving;
mod names;
mod network;
mod permission;
mod place;
mod private_keys;
mod refusal;
pub mod remote;
mod rotation;
mod rsa_key;
mod secret_file;
mod seen;
mod seen_key;
mod store;
mod tags;
#[cfg(test)]
mod tests;
mod used;
mod vault_database;

pub use algorithm::{EncryptionAlgorithm, WrapAlgorithm};
pub use bundle::{AttributeChange, DeletedKey, JsonWebKey, KeyAttributes, KeyBundle};
pub use caller::{CHECK_HEADER, Caller, DISK_HEADER, LAYER_HEADER, Origin, Purpose};
pub use clock::{Clock, SystemClock, boot_instant, moment};

pub use database::{Connection, lacks_space};
pub use embedded::{Due, EmbeddedVault, Resealed, Throttle};
pub use error::{AzureError, VaultError, VaultErrorCode, Verdict};
pub use key_id::KeyId;
pub use key_params::{
    DEFAULT_RETENTION_DAYS, KeyChange, KeyOps, NewKey, Page, RETENTION_DAYS, VaultSettings,
};
pub use key_vault::{KeyVault, Wrapped};
pub use master::{MasterPlace, MasterSource};
pub use moving::MovingFile;
pub use names::{
    KeyUrl, check_key_name, embedded_vault_name, normal_vault_name, same_key_url, vault_url,
};
pub use network::{IpRule, NetworkRules};
pub use permission::{KeyPermission, Permissions};
pub use place::VaultPlace;
pub use private_keys::{
    KeyType, NewPrivateKey, PrivateKey, PrivateKeyId, PrivateKeys, SoftwareKeys,
};
pub use refusal::MissingKey;
pub use rotation::{
    LifetimeAction, Period, RotationAction, RotationActionKind, RotationAttributes, RotationPolicy,
    RotationTrigger,
};
pub use rsa_key::{KeyMaterial, KeySize, PrivateJwk, RsaComponents, RsaKey};
pub use secret_file::{read_credential, read_secret_file};
pub use seen::SeenRecords;
pub use seen_key::SeenKey;
pub use store::{VAULT_APPLICATION_ID, VAULT_DATABASE, VAULT_POSTGRES_STEPS, VaultDeletion};
pub use tags::Tags;
pub use used::{KeyUsed, NAMED_DISKS};
pub use vault_database::VaultDatabase;
