//! What is said of something by its name goes where that goes.

use std::collections::BTreeMap;

use serde_json::json;

use super::*;

const SUBSCRIPTION: &str = "/subscriptions/00000000-0000-0000-0000-000000000000";

fn touch(second: i64) -> Touch {
    Touch {
        at: OffsetDateTime::UNIX_EPOCH + time::Duration::seconds(second),
        by: Uuid::nil(),
    }
}

fn group(name: &str, location: &str) -> GroupRecord {
    GroupRecord {
        name: name.into(),
        location: location.into(),
        tags: BTreeMap::new(),
        created: OffsetDateTime::UNIX_EPOCH,
    }
}

fn placed(kind: Kind, name: &str, group: &str) -> PlacementRecord {
    PlacementRecord {
        kind,
        name: name.into(),
        group: group.into(),
        location: LOCATION.into(),
        tags: BTreeMap::from([("of".into(), name.into())]),
        settings: json!({}),
        created: touch(0),
        changed: touch(0),
    }
}

/// The one role that there is, at a scope of the subscription.
fn role(scope: &str, principal: u128) -> RoleAssignmentRecord {
    RoleAssignmentRecord {
        id: Uuid::new_v4(),
        scope: format!("{SUBSCRIPTION}{scope}"),
        role: Uuid::nil(),
        principal: Uuid::from_u128(principal),
        principal_type: "ServicePrincipal".into(),
        created: touch(0),
    }
}

fn lock_on(kind: Kind, name: &str, called: &str) -> LockRecord {
    LockRecord {
        name: called.into(),
        target: LockTarget::Resource(kind, name.into()),
        level: LockLevel::CanNotDelete,
        notes: None,
        created: touch(0),
    }
}

fn scopes(catalog: &DatabaseCatalog) -> Vec<String> {
    let all = catalog.role_assignments().unwrap().into_iter();
    let mut scopes: Vec<_> = all
        .map(|role| role.scope.replace(SUBSCRIPTION, ""))
        .collect();
    scopes.sort();
    scopes
}

fn locked(catalog: &DatabaseCatalog) -> Vec<(LockTarget, String)> {
    let all = catalog.locks().unwrap().into_iter();
    all.map(|lock| (lock.record.target, lock.record.name))
        .collect()
}

#[test]
fn placement_roles_and_locks_go_along_with_a_name_and_away_with_the_resource() {
    on_each(|place| {
        let catalog = place.catalog();
        catalog.put_group(&group("rg", LOCATION)).unwrap();
        let mut ready = DiskRecord {
            state: DiskState::Ready,
            ..disk("d", None)
        };
        let mut rev = catalog.insert_disk(&ready).unwrap();
        let at =
            |name: &str| format!("/resourceGroups/RG/providers/Microsoft.Compute/disks/{name}");
        let of = |name: &str| LockTarget::Resource(Kind::Disk, name.into());
        for name in ["D", "E"] {
            catalog
                .put_placement(&placed(Kind::Disk, name, "rg"))
                .unwrap();
        }
        // The second and the last one are of what had the name before, and are in the way of the first.
        for role in [
            role(&at("D"), 1),
            role(&at("E"), 1),
            role(&at("other"), 1),
            role(&at("e"), 2),
        ] {
            catalog.insert_role_assignment(&role).unwrap();
        }
        for lock in [
            lock_on(Kind::Disk, "D", "l"),
            lock_on(Kind::Disk, "E", "L"),
            lock_on(Kind::Image, "d", "l"),
        ] {
            catalog.put_lock(&lock).unwrap();
        }
        ready.name = "e".into();
        rev = catalog.update_disk(rev, &ready).unwrap();
        let placement = catalog.placement(Kind::Disk, "E").unwrap().unwrap();
        assert_eq!(
            (placement.name.as_str(), &placement.tags["of"][..]),
            ("e", "D")
        );
        assert_eq!(catalog.placement(Kind::Disk, "d").unwrap(), None);
        let new = "/resourceGroups/rg/providers/Microsoft.Compute/disks/e".to_owned();
        assert_eq!(scopes(&catalog), [at("e"), at("other"), new.clone()]);
        let image = (
            LockTarget::Resource(Kind::Image, "d".into()),
            "l".to_owned(),
        );
        assert_eq!(locked(&catalog), [(of("e"), "l".into()), image.clone()]);
        // To another case.
        ready.name = "E".into();
        rev = catalog.update_disk(rev, &ready).unwrap();
        assert_eq!(
            catalog.placement(Kind::Disk, "e").unwrap().unwrap().name,
            "E"
        );
        assert_eq!(locked(&catalog), [(of("E"), "l".into()), image.clone()]);
        assert_eq!(scopes(&catalog).len(), 3);
        assert!(catalog.delete_lock(&of("e"), "L").unwrap());
        catalog.delete_disk(&ready, rev).unwrap();
        assert_eq!(scopes(&catalog), [at("other")]);
        assert_eq!(locked(&catalog), [image]);
        assert!(catalog.placements().unwrap().is_empty());
    });
}

#[test]
fn the_roles_of_a_set_go_with_its_own_identity_and_not_with_that_of_a_user() {
    on_each(|place| {
        let catalog = place.catalog();
        let alice = IdentityRecord {
            object_id: Uuid::from_u128(7),
            client_id: Uuid::from_u128(8),
            owner: IdentityOwner::Named("alice".into()),
            secret_hash: Some([9; 32]),
            secret_ends: None,
            is_application: false,
            created: OffsetDateTime::UNIX_EPOCH,
        };
        catalog.insert_identity(&alice).unwrap();
        let user = DesIdentity::UserAssigned {
            object_id: alice.object_id,
            federated_client_id: None,
        };
        let mut set = DiskEncryptionSetRecord {
            principal_id: Uuid::from_u128(1),
            ..des("Set")
        };
        catalog.insert_des(&set).unwrap();
        let own = catalog.identity_of_des("Set").unwrap();
        assert_eq!(own, catalog.identity_of_des("Set").unwrap());
        let in_group = "/resourceGroups/default/providers/Microsoft.Compute/diskEncryptionSets/set";
        for role in [role("", 1), role(in_group, 3), role("", 7)] {
            catalog.insert_role_assignment(&role).unwrap();
        }
        let identities = |catalog: &DatabaseCatalog| {
            let all = catalog.identities().unwrap().into_iter();
            all.map(|row| row.record.owner.name().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(identities(&catalog), ["alice", "Set"]);
        // It gets the identity of a user: its own one goes, with its roles.
        (set.identity, set.principal_id) = (user, alice.object_id);
        let rev = catalog.update_des(Rev(1), &set).unwrap();
        assert_eq!(identities(&catalog), ["alice"]);
        assert_eq!(catalog.roles_of(Uuid::from_u128(1)).unwrap(), []);
        let stored = catalog.identity("alice").unwrap();
        let in_use = catalog.delete_identity(&stored);
        assert!(matches!(in_use, Err(CatalogError::IdentityInUse { set, .. }) if set == "Set"));
        catalog.delete_des("Set", rev).unwrap();
        assert_eq!(scopes(&catalog), [""]);
        catalog.delete_identity(&stored).unwrap();
        assert_eq!(scopes(&catalog), [] as [&str; 0]);
    });
}

#[test]
fn names_are_found_and_listed_in_any_case() {
    on_each(|place| {
        let catalog = place.catalog();
        for (name, location) in [("Rg", "a"), ("b_1", "a"), ("b-1", "a"), ("rG", "b")] {
            catalog.put_group(&group(name, location)).unwrap();
        }
        let found = catalog.group("RG").unwrap().unwrap();
        assert_eq!((&found.name[..], &found.location[..]), ("Rg", "b"));
        assert_eq!(catalog.groups().unwrap().len(), 4);
        for name in ["B", "a", "b", "C", "ä"] {
            let ready = DiskRecord {
                state: DiskState::Ready,
                ..disk(name, None)
            };
            catalog.insert_disk(&ready).unwrap();
        }
        catalog.insert_disk(&disk("made", None)).unwrap();
        for name in ["b", "A"] {
            catalog
                .put_placement(&placed(Kind::Disk, name, "RG"))
                .unwrap();
        }
        let listed = |group, after, limit| {
            let rows = catalog
                .placed_resources(ResourceKind::Disk, group, after, limit)
                .unwrap();
            let named = rows
                .into_iter()
                .map(|(name, placed)| (name, placed.map(|placed| placed.name)));
            named.collect::<Vec<_>>()
        };
        let row = |name: &str, placed: Option<&str>| (name.to_owned(), placed.map(str::to_owned));
        // By bytes; one placement is of all whose names differ in case only.
        let all = [
            row("B", Some("b")),
            row("C", None),
            row("a", Some("A")),
            row("b", Some("b")),
            row("ä", None),
        ];
        assert_eq!(listed(None, None, 9), all);
        assert_eq!(listed(None, Some("C"), 2), all[2..4]);
        assert_eq!(
            listed(Some("rg"), None, 9),
            [&all[..1], &all[2..4]].concat()
        );
        assert_eq!(
            listed(Some("DEFAULT"), None, 9),
            [&all[1..2], &all[4..]].concat()
        );
        let name_of = |name| catalog.name_of(Kind::Disk, name).unwrap();
        assert_eq!(name_of("b").as_deref(), Some("b"));
        assert_eq!(name_of("c").as_deref(), Some("C"));
        assert_eq!(name_of("d"), None);
        assert_eq!(
            catalog.name_of(Kind::Group, "rg").unwrap().as_deref(),
            Some("Rg")
        );
        for kind in [Kind::Vault, Kind::DiskEncryptionSet, Kind::Identity] {
            assert_eq!(catalog.name_of(kind, "b").unwrap(), None);
        }
        let placements = catalog.placements_of(Kind::Disk).unwrap();
        assert_eq!(placements.len(), 2);
        // More names than one statement has places for.
        let numbers: Vec<String> = (0..70).map(|number| number.to_string()).collect();
        for name in numbers.iter().skip(2) {
            catalog.insert_disk(&disk(name, None)).unwrap();
        }
        let names: Vec<&str> = numbers
            .iter()
            .map(String::as_str)
            .chain(["a", "2"])
            .collect();
        let found = catalog.resources_named(ResourceKind::Disk, &names).unwrap();
        let mut expected: Vec<_> = names[2..71].to_vec();
        expected.sort_unstable();
        let found: Vec<_> = found.iter().map(|row| &row.record.name[..]).collect();
        assert_eq!(found, expected);
        assert!(
            catalog
                .resources_named(ResourceKind::Disk, &[])
                .unwrap()
                .is_empty()
        );
    });
}

#[test]
fn what_is_noted_is_there_until_it_is_forgotten() {
    on_each(|place| {
        let catalog = place.catalog();
        let (one, two) = ("https://one.example", "https://two.example");
        for url in [one, one, two] {
            catalog.note_purged_vault(url).unwrap();
        }
        let is_noted = |url| catalog.vault_purged_at(url).unwrap().is_some();
        assert!(is_noted(one) && is_noted(two));
        catalog.insert_vault(&https("one", one)).unwrap();
        assert!(!is_noted(one) && is_noted(two));
        catalog.forget_purged_vaults().unwrap();
        assert!(!is_noted(two));
        let taken = catalog.insert_vault(&https("again", one)).unwrap_err();
        assert!(matches!(taken, CatalogError::Exists { .. }), "{taken}");
        let layers = [Uuid::from_u128(2), Uuid::from_u128(1)];
        for layer in [layers[0], layers[1], layers[0]] {
            catalog.insert_merge(layer).unwrap();
        }
        assert_eq!(catalog.merges().unwrap(), [layers[1], layers[0]]);
        catalog.delete_merge(layers[1]).unwrap();
        catalog.delete_merge(layers[1]).unwrap();
        assert_eq!(catalog.merges().unwrap(), [layers[0]]);
        let ends = OffsetDateTime::now_utc() + time::Duration::HOUR;
        assert!(catalog.use_assertion(&[1; 32], ends).unwrap());
        assert!(!catalog.use_assertion(&[1; 32], ends).unwrap());
        assert!(catalog.use_assertion(&[2; 32], ends).unwrap());
    });
}
