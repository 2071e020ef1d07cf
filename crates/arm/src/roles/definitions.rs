//! The built-in roles: Azure's names, ids and actions, as far as there is here what they are about.

use uuid::{Uuid, uuid};

/// A built-in role.
#[derive(Debug, PartialEq, Eq)]
pub struct Role {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: &'static str,
    /// What it is for.
    pub description: &'static str,
    /// What it permits; `*` stands for any characters.
    pub actions: &'static [&'static str],
    /// What of that it does not permit.
    pub not_actions: &'static [&'static str],
    /// What it permits with the keys of vaults.
    pub data_actions: &'static [&'static str],
}

/// Everything with keys.
const KEYS: &str = "Microsoft.KeyVault/vaults/keys/*";

const READ_VAULTS: &[&str] = &[
    "Microsoft.Authorization/*/read",
    "Microsoft.KeyVault/checkNameAvailability/read",
    "Microsoft.KeyVault/deletedVaults/read",
    "Microsoft.KeyVault/locations/*/read",
    "Microsoft.KeyVault/vaults/*/read",
    "Microsoft.KeyVault/vaults/read",
    "Microsoft.Resources/subscriptions/resourceGroups/read",
];

/// All of them.
pub const ROLES: &[Role] = &[
    Role {
        id: uuid!("8e3af657-a8ff-443c-a75c-2fe8c4bcb635"),
        name: "Owner",
        description: "Grants full access to manage all resources, including the ability to assign roles.",
        actions: &["*"],
        not_actions: &[],
        data_actions: &[],
    },
    Role {
        id: uuid!("b24988ac-6180-42a0-ab88-20f7382dd24c"),
        name: "Contributor",
        description: "Grants full access to manage all resources, but does not allow you to assign roles.",
        actions: &["*"],
        not_actions: &[
            "Microsoft.Authorization/*/Delete",
            "Microsoft.Authorization/*/Write",
            "Microsoft.Authorization/elevateAccess/Action",
        ],
        data_actions: &[],
    },
    Role {
        id: uuid!("acdd72a7-3385-48ef-bd42-f606fba81ae7"),
        name: "Reader",
        description: "View all resources, but does not allow you to make any changes.",
        actions: &["*/read"],
        not_actions: &[],
        data_actions: &[],
    },
    Role {
        id: uuid!("18d7d88d-d35e-4fb5-a5c3-7773c20a72d9"),
        name: "User Access Administrator",
        description: "Lets you manage user access to resources.",
        actions: &["*/read", "Microsoft.Authorization/*"],
        not_actions: &[],
        data_actions: &[],
    },
    Role {
        id: uuid!("00482a5a-887f-4fb3-b363-3b7fe8e74483"),
        name: "Key Vault Administrator",
        description: "Perform all data plane operations on a key vault and all objects in it.",
        actions: READ_VAULTS,
        not_actions: &[],
        data_actions: &["Microsoft.KeyVault/vaults/*"],
    },
    Role {
        id: uuid!("f25e0fa2-a7c8-4377-a976-54943a77a395"),
        name: "Key Vault Contributor",
        description: "Lets you manage key vaults, but not access to them.",
        actions: &[
            "Microsoft.Authorization/*/read",
            "Microsoft.KeyVault/*",
            "Microsoft.Resources/deployments/*",
            "Microsoft.Resources/subscriptions/resourceGroups/read",
        ],
        not_actions: &[
            "Microsoft.KeyVault/locations/deletedVaults/purge/action",
            "Microsoft.KeyVault/hsmPools/*",
            "Microsoft.KeyVault/managedHsms/*",
        ],
        data_actions: &[],
    },
    Role {
        id: uuid!("21090545-7ca7-4776-b22c-e363652d74d2"),
        name: "Key Vault Reader",
        description: "Read metadata of key vaults and their keys.",
        actions: READ_VAULTS,
        not_actions: &[],
        data_actions: &["Microsoft.KeyVault/vaults/*/read"],
    },
    Role {
        id: uuid!("14b46e9e-c2b7-41b4-b07b-48a6ebf60603"),
        name: "Key Vault Crypto Officer",
        description: "Perform any action on the keys of a key vault, except manage permissions.",
        actions: READ_VAULTS,
        not_actions: &[],
        data_actions: &[KEYS, "Microsoft.KeyVault/vaults/keyrotationpolicies/*"],
    },
    Role {
        id: uuid!("12338af0-0e69-4776-bea7-57ae8d297424"),
        name: "Key Vault Crypto User",
        description: "Perform cryptographic operations using keys.",
        actions: &[],
        not_actions: &[],
        data_actions: &[
            "Microsoft.KeyVault/vaults/keys/read",
            "Microsoft.KeyVault/vaults/keys/update/action",
            "Microsoft.KeyVault/vaults/keys/backup/action",
            "Microsoft.KeyVault/vaults/keys/encrypt/action",
            "Microsoft.KeyVault/vaults/keys/decrypt/action",
            "Microsoft.KeyVault/vaults/keys/wrap/action",
            "Microsoft.KeyVault/vaults/keys/unwrap/action",
            "Microsoft.KeyVault/vaults/keys/sign/action",
            "Microsoft.KeyVault/vaults/keys/verify/action",
        ],
    },
    Role {
        id: uuid!("e147488a-f6f5-4113-8e2d-b22465e65bf6"),
        name: "Key Vault Crypto Service Encryption User",
        description: "Read metadata of keys and perform wrap/unwrap operations.",
        actions: &[],
        not_actions: &[],
        data_actions: &[
            "Microsoft.KeyVault/vaults/keys/read",
            "Microsoft.KeyVault/vaults/keys/wrap/action",
            "Microsoft.KeyVault/vaults/keys/unwrap/action",
        ],
    },
    Role {
        id: uuid!("3e5e47e6-65f7-47ef-90b5-e5dd4d455f24"),
        name: "Disk Backup Reader",
        description: "Provides permission to backup vault to perform disk backup.",
        actions: &[
            "Microsoft.Authorization/*/read",
            "Microsoft.Compute/disks/read",
            "Microsoft.Compute/disks/beginGetAccess/action",
            "Microsoft.Resources/subscriptions/resourceGroups/read",
        ],
        not_actions: &[],
        data_actions: &[],
    },
    Role {
        id: uuid!("b50d9833-a0cb-478e-945f-707fcc997c13"),
        name: "Disk Restore Operator",
        description: "Provides permission to backup vault to perform disk restore.",
        actions: &[
            "Microsoft.Authorization/*/read",
            "Microsoft.Compute/disks/write",
            "Microsoft.Compute/disks/read",
            "Microsoft.Resources/subscriptions/resourceGroups/read",
        ],
        not_actions: &[],
        data_actions: &[],
    },
    Role {
        id: uuid!("7efff54f-a5b4-42b5-a1c5-5411624893ce"),
        name: "Disk Snapshot Contributor",
        description: "Provides permission to backup vault to manage disk snapshots.",
        actions: &[
            "Microsoft.Authorization/*/read",
            "Microsoft.Compute/snapshots/*",
            "Microsoft.Compute/disks/beginGetAccess/action",
            "Microsoft.Resources/subscriptions/resourceGroups/read",
        ],
        not_actions: &[],
        data_actions: &[],
    },
    Role {
        id: uuid!("e40ec5ca-96e0-45a2-b4ff-59039f2c2b59"),
        name: "Managed Identity Contributor",
        description: "Create, Read, Update, and Delete User Assigned Identity.",
        actions: &[
            "Microsoft.Authorization/*/read",
            "Microsoft.ManagedIdentity/userAssignedIdentities/read",
            "Microsoft.ManagedIdentity/userAssignedIdentities/write",
            "Microsoft.ManagedIdentity/userAssignedIdentities/delete",
            "Microsoft.ManagedIdentity/userAssignedIdentities/*/read",
            "Microsoft.ManagedIdentity/userAssignedIdentities/*/write",
            "Microsoft.ManagedIdentity/userAssignedIdentities/*/delete",
            "Microsoft.Resources/deployments/*",
            "Microsoft.Resources/subscriptions/resourceGroups/read",
        ],
        not_actions: &[],
        data_actions: &[],
    },
    Role {
        id: uuid!("f1a07417-d97a-45cb-824c-7a7467783830"),
        name: "Managed Identity Operator",
        description: "Read and Assign User Assigned Identity.",
        actions: &[
            "Microsoft.Authorization/*/read",
            "Microsoft.ManagedIdentity/userAssignedIdentities/read",
            "Microsoft.ManagedIdentity/userAssignedIdentities/assign/action",
            "Microsoft.Resources/subscriptions/resourceGroups/read",
        ],
        not_actions: &[],
        data_actions: &[],
    },
];

impl Role {
    /// Whether it permits an action.
    pub fn permits(&self, action: &str) -> bool {
        matches_any(self.actions, action) && !matches_any(self.not_actions, action)
    }

    /// Whether it permits that with the keys of vaults.
    pub fn permits_data(&self, action: &str) -> bool {
        matches_any(self.data_actions, action)
    }
}

/// The role with that id.
pub fn role(id: Uuid) -> Option<&'static Role> {
    ROLES.iter().find(|role| role.id == id)
}

/// The role of that name.
pub fn role_named(name: &str) -> Option<&'static Role> {
    ROLES
        .iter()
        .find(|role| role.name.eq_ignore_ascii_case(name))
}

fn matches_any(patterns: &[&str], action: &str) -> bool {
    patterns
        .iter()
        .any(|pattern| matches(&pattern.to_ascii_lowercase(), &action.to_ascii_lowercase()))
}

/// Whether a text is as a pattern, in which `*` stands for any characters.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((begin, rest)) => text.strip_prefix(begin).is_some_and(|text| {
            rest.is_empty()
                || (0..=text.len())
                    .filter(|at| text.is_char_boundary(*at))
                    .any(|at| matches(rest, &text[at..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn may(name: &str, action: &str) -> bool {
        role_named(name).unwrap().permits(action)
    }

    #[test]
    fn roles_permit_what_azures_do() {
        let assign = "Microsoft.Authorization/roleAssignments/write";
        let disk = "Microsoft.Compute/disks/write";
        assert!(may("owner", assign) && may("Owner", disk));
        assert!(!may("Contributor", assign) && may("Contributor", disk));
        assert!(may(
            "Contributor",
            "Microsoft.Authorization/roleAssignments/read"
        ));
        assert!(may("Reader", "Microsoft.Compute/disks/read") && !may("Reader", disk));
        assert!(!may(
            "Reader",
            "Microsoft.Compute/disks/beginGetAccess/action"
        ));
        assert!(may("User Access Administrator", assign));
        for verb in ["write", "delete"] {
            let lock = format!("Microsoft.Authorization/locks/{verb}");
            assert!(may("Owner", &lock) && may("User Access Administrator", &lock));
            assert!(!may("Contributor", &lock) && !may("Reader", &lock));
        }
        for verb in ["write", "delete"] {
            // Whoever gives an application a password can act as it.
            let application = format!("Microsoft.Authorization/applications/{verb}");
            let may_do = |role: &&Role| role.permits(&application);
            let who: Vec<_> = ROLES.iter().filter(may_do).map(|role| role.name).collect();
            assert_eq!(who, ["Owner", "User Access Administrator"], "{verb}");
        }
        assert!(may(
            "Key Vault Contributor",
            "Microsoft.KeyVault/vaults/write"
        ));
        assert!(!may("Key Vault Contributor", disk));
        assert!(!may(
            "Key Vault Contributor",
            "Microsoft.KeyVault/locations/deletedVaults/purge/action"
        ));
        assert!(!may(
            "Key Vault Crypto Officer",
            "Microsoft.KeyVault/vaults/write"
        ));
        let of_identity = |name: &str, what: &str| {
            may(
                name,
                &format!("Microsoft.ManagedIdentity/userAssignedIdentities/{what}"),
            )
        };
        for what in [
            "read",
            "write",
            "delete",
            "federatedIdentityCredentials/write",
        ] {
            assert!(of_identity("Managed Identity Contributor", what), "{what}");
        }
        assert!(!of_identity(
            "Managed Identity Contributor",
            "assign/action"
        ));
        assert!(of_identity("Managed Identity Operator", "assign/action"));
    }

    #[test]
    fn no_role_for_keys_is_one_for_management() {
        for role in ROLES.iter().filter(|role| !role.data_actions.is_empty()) {
            assert!(
                !role.permits("Microsoft.KeyVault/vaults/write"),
                "{}",
                role.name
            );
            assert!(
                !role.permits("Microsoft.Compute/disks/write"),
                "{}",
                role.name
            );
        }
        let owner = role_named("Owner").unwrap();
        assert!(!owner.permits_data("Microsoft.KeyVault/vaults/keys/read"));
    }

    #[test]
    fn ids_and_names_are_unique() {
        for (at, one) in ROLES.iter().enumerate() {
            assert_eq!(role(one.id).map(|role| role.name), Some(one.name));
            assert!(ROLES[..at].iter().all(|other| other.name != one.name));
        }
    }

    #[test]
    fn a_star_stands_for_any_characters() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("a/*/read", "a/b/c/read", true),
            ("a/*/read", "a/read", false),
            ("*/read", "a/write", false),
            ("a*b*c", "a1b2b3c", true),
            ("a", "ab", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }
}
