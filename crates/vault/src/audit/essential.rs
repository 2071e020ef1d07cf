//! What is recorded though the file system is full.

/// What the operation of an intent ends with in the log.
pub(super) const INTENT: &str = "Intent";

/// What is recorded though the file system is full: what takes something away from somebody, or makes room. Whoever fills
/// the file system would keep it otherwise.
const ESSENTIAL: [&str; 19] = [
    "AccessRevoke",
    "ApplicationDelete",
    "ApplicationRemovePassword",
    "DekDestroy",
    "DekRestore",
    "DeploymentCancel",
    "DeploymentDelete",
    "DiskEncryptionSetDelete",
    "DiskEncryptionSetRemoveIdentity",
    "FederatedCredentialDelete",
    "IdentityDelete",
    "IdentityResetSecret",
    "LockDelete",
    "ResourceDelete",
    "ResourceGroupDelete",
    "RoleAssignmentDelete",
    "UserDeletePassword",
    "UserSetPassword",
    "VaultAccessPolicyWrite",
];

/// Whether an operation, or the intent of one, is to be recorded though there is no room.
pub(super) fn is_essential(operation: &str) -> bool {
    let of = operation.strip_suffix(INTENT).unwrap_or(operation);
    ESSENTIAL.contains(&of)
}
