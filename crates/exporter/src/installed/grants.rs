//! Whether those who need a key version may use it. A vault is asked nothing for that: its database has who may do what.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use crate::catalogue as metric;
use crate::disks::flag;
use crate::samples::Samples;
use disks::des::SeenKeys;
use installation::catalog::{DesIdentity, DiskEncryptionSetRecord, DiskRecord};
use vault::{KeyPermission, KeyUrl, Permissions};

/// Who may do what, by the names of the vaults that could be read.
pub(super) type Policies = BTreeMap<String, BTreeMap<Uuid, Permissions>>;

/// Key versions, and in whose name something needs each: a set's, or with no name the platform's.
pub(super) struct Needs<'a> {
    by: BTreeSet<(&'a str, &'a str)>,
    /// Nothing for a set that has lost its identity.
    identities: BTreeMap<&'a str, Option<Uuid>>,
}

impl<'a> Needs<'a> {
    pub(super) fn of(
        resources: &'a [DiskRecord],
        sets: &'a [DiskEncryptionSetRecord],
        platform: Uuid,
    ) -> Self {
        let identity = |set: &'a DiskEncryptionSetRecord| {
            let has_one = set.identity != DesIdentity::None;
            (set.name.as_str(), has_one.then_some(set.principal_id))
        };
        let identities = sets.iter().map(identity);
        let mut by = BTreeSet::new();
        for resource in resources {
            let set = resource.disk_encryption_set.as_deref();
            by.insert((resource.key_url.as_str(), set.unwrap_or_default()));
            for layer in &resource.layers {
                let set = layer.disk_encryption_set.as_deref();
                by.insert((layer.key_url.as_str(), set.unwrap_or_default()));
            }
        }
        Self {
            by,
            identities: identities.chain([("", Some(platform))]).collect(),
        }
    }

    /// Adds who may use what, and which versions are not there any more.
    pub(super) fn add(&self, keys: &SeenKeys, policies: &Policies, samples: &mut Samples) {
        let there: BTreeSet<_> = keys.versions().map(|(url, _)| url.as_str()).collect();
        let mut missing = BTreeSet::new();
        for (url, set) in &self.by {
            let parsed = url.parse::<KeyUrl>().ok();
            let vault = parsed.as_ref().and_then(KeyUrl::vault_name);
            let Some(policies) = vault.and_then(|vault| policies.get(vault)) else {
                continue;
            };
            let identity = self.identities.get(set).copied().flatten();
            let granted = identity.and_then(|identity| policies.get(&identity));
            let may = granted.is_some_and(|granted| granted.contains(KeyPermission::UnwrapKey));
            samples.put(&metric::KEY_GRANTED, &[url, set], flag(may));
            if !there.contains(url) && missing.insert(url) {
                samples.put(&metric::KEY_ENABLED, &[url], 0.0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use installation::catalog::EncryptionType;
    use installation::envelope::ResourceKind;
    use time::OffsetDateTime;

    use super::*;

    #[test]
    fn who_may_not_use_a_key_and_what_is_gone_are_told() {
        let version = "0".repeat(32);
        let url = |name: &str| format!("https://myvault.vault.localhost/keys/{name}/{version}");
        let disk = |name: &str, set: &str| DiskRecord {
            id: Uuid::nil(),
            kind: ResourceKind::Disk,
            name: name.into(),
            directory: "/d".into(),
            size: 1,
            disk_encryption_set: Some(set.into()),
            key_url: url(name),
            layers: Vec::new(),
            created: OffsetDateTime::UNIX_EPOCH,
            state: installation::catalog::DiskState::Ready,
        };
        let set = |name: &str, principal: u128| DiskEncryptionSetRecord {
            name: name.into(),
            identity: DesIdentity::SystemAssigned,
            principal_id: Uuid::from_u128(principal),
            key_url: url("k"),
            encryption_type: EncryptionType::default(),
            previous_keys: Vec::new(),
            auto_rotation: false,
            last_rotation: None,
            created: OffsetDateTime::UNIX_EPOCH,
        };
        let (disks, sets) = (
            [disk("k", "good"), disk("k", "bad"), disk("gone", "good")],
            [set("good", 1), set("bad", 2)],
        );
        let mut keys = SeenKeys::default();
        keys.put(
            "https://myvault.vault.localhost",
            vault::SeenKey {
                name: "k".into(),
                version: version.clone(),
                enabled: true,
                not_before: None,
                expires: None,
                created: OffsetDateTime::UNIX_EPOCH,
                is_latest: true,
                is_deleted: false,
            },
        );
        let granted = Permissions::for_disks();
        let of_vault = BTreeMap::from([(Uuid::from_u128(1), granted)]);
        let policies = Policies::from([("myvault".to_owned(), of_vault)]);
        let mut samples = Samples::default();
        Needs::of(&disks, &sets, Uuid::nil()).add(&keys, &policies, &mut samples);
        let value = |metric, labels: &[&str]| samples.value(metric, labels);
        let (key, gone) = (url("k"), url("gone"));
        assert_eq!(value(&metric::KEY_GRANTED, &[&key, "good"]), Some(1.0));
        assert_eq!(value(&metric::KEY_GRANTED, &[&key, "bad"]), Some(0.0));
        assert_eq!(value(&metric::KEY_ENABLED, &[&gone]), Some(0.0));
        assert_eq!(value(&metric::KEY_ENABLED, &[&key]), None);
    }
}
