//! Who gets the bytes of a disk and who does not: tokens, times, keys, roles, policies.

use std::fs;
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use test_support::{PATIENCE, Server, text, threads};
use vault::AttributeChange;

use super::blob::{Blob, DISKS, access, asked, revoke, state};
use super::client::{Client, Managed};

const MIB: usize = 1 << 20;

/// A disk that takes half a minute to read at 2 MB/s.
fn with_large_disk(managed: &Managed, options: &str) {
    let mut content = vec![0; 64 * MIB];
    test_support::noise(&mut content);
    let raw = managed.host.path("large.raw");
    fs::write(&raw, content).unwrap();
    let raw = text(&raw);
    managed
        .host
        .ok(&format!("disk create d --source {raw} {options}"));
}

/// That a slow reader who had begun was cut off.
fn is_cut_off(managed: &Managed, mut reader: Child, why: &str) {
    let ended = reader.wait().unwrap();
    let got = fs::metadata(managed.host.path("got")).map_or(0, |got| got.len());
    assert!(
        !ended.success() && got < 64 * MIB as u64,
        "{why}: {ended:?} with {got} bytes"
    );
}

/// Begins to read slowly, and waits until something has come.
fn begun(managed: &Managed, blob: &Blob) -> Child {
    let file = managed.host.path("got");
    let _ = fs::remove_file(&file);
    let mut reader = blob.slowly(text(&file));
    for _ in 0..400 {
        std::thread::sleep(Duration::from_millis(50));
        if fs::metadata(&file).is_ok_and(|got| got.len() > 0) {
            return reader;
        }
    }
    reader.kill().unwrap();
    panic!("nothing comes: {:?}", reader.wait());
}

#[test]
fn a_download_ends_with_the_access() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    with_large_disk(&managed, "");
    let d = &format!("{DISKS}/d");
    let ends: [(&str, &dyn Fn()); 3] = [
        ("revoked", &|| revoke(&client, d)),
        ("revoked by the command line", &|| {
            drop(managed.host.ok("disk revoke-access d"))
        }),
        ("denied", &|| {
            let denied = json!({"properties": {"networkAccessPolicy": "DenyAll"}});
            client.ok(&format!("PATCH {d}"), Some(&denied));
        }),
    ];
    for (why, end) in ends {
        let blob = access(&client, d, "Read", 3600);
        let reader = begun(&managed, &blob);
        end();
        let status = blob.range("0-9").refusal().0;
        assert_eq!(status, 403, "{why}");
        is_cut_off(&managed, reader, why);
    }
    let allowed = json!({"properties": {"networkAccessPolicy": "AllowAll"}});
    client.ok(&format!("PATCH {d}"), Some(&allowed));
    revoke(&client, d);
    let blob = access(&client, d, "Read", 4);
    let reader = begun(&managed, &blob);
    is_cut_off(&managed, reader, "expired");
    assert_eq!(
        blob.range("0-9").refusal(),
        (403, "AuthenticationFailed".into())
    );
    assert_eq!(state(&client, d), "Unattached");
}

#[test]
fn a_download_ends_with_the_key() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    managed
        .host
        .encryption_set("des1", &["get", "wrapKey", "unwrapKey"]);
    with_large_disk(&managed, "--disk-encryption-set des1");
    let d = &format!("{DISKS}/d");
    let blob = access(&client, d, "Read", 3600);
    let reader = begun(&managed, &blob);
    let enabled = |enabled| AttributeChange {
        enabled: Some(enabled),
        ..AttributeChange::default()
    };
    managed.host.set_key(&enabled(false));
    is_cut_off(&managed, reader, "its key is disabled");
    assert_eq!(
        blob.range("0-9").refusal(),
        (403, "KeyVaultAccessForbidden".into())
    );
    let (status, code) =
        client.refused(&format!("POST {d}/beginGetAccess"), Some(&asked("Read", 9)));
    assert_eq!((status, code.as_str()), (403, "KeyVaultAccessForbidden"));
    managed.host.set_key(&enabled(true));
    assert_eq!(blob.range("0-9").status, 206);
}

#[test]
fn a_client_that_takes_nothing_keeps_no_key_in_use() {
    let mut managed = Managed::new();
    let serve = "serve --listen 127.0.0.1:0 --client-timeout 600 -o json";
    managed.served = Server::start(managed.host.command(serve));
    let client = managed.client(&managed.admin);
    managed
        .host
        .encryption_set("des1", &["get", "wrapKey", "unwrapKey"]);
    with_large_disk(&managed, "--disk-encryption-set des1");
    let blob = access(&client, &format!("{DISKS}/d"), "Read", 3600);
    let reader = begun(&managed, &blob);
    kill_process(Pid::from_child(&reader), Signal::STOP).unwrap();
    let server = managed.served.pid().as_raw_nonzero().get() as u32;
    // Who reads the disk has its keys.
    let is_read = || threads(server).iter().any(|(_, name)| name == "download");
    assert!(is_read());
    managed.host.set_key(&AttributeChange {
        enabled: Some(false),
        ..AttributeChange::default()
    });
    let deadline = Instant::now() + PATIENCE;
    while is_read() {
        assert!(Instant::now() < deadline, "it is still read");
        std::thread::sleep(Duration::from_millis(50));
    }
    kill_process(Pid::from_child(&reader), Signal::CONT).unwrap();
    is_cut_off(&managed, reader, "its key is disabled");
    assert_eq!(
        blob.range("0-9").refusal(),
        (403, "KeyVaultAccessForbidden".into())
    );
}

#[test]
fn a_token_is_for_one_disk_and_one_purpose() {
    let managed = Managed::new();
    let client = managed.client(&managed.admin);
    for disk in ["d", "other"] {
        managed.host.ok(&format!("disk create {disk} --size 1MiB"));
    }
    let d = access(&client, &format!("{DISKS}/d"), "Read", 3600);
    let other = access(&client, &format!("{DISKS}/other"), "Read", 3600);
    let (url, token) = d.url.split_once("&sig=").unwrap();
    let (path, query) = other.url.split_once(".vhd?").unwrap();
    let (_, own) = d.url.split_once(".vhd?").unwrap();
    let failed = (403, "AuthenticationFailed".to_owned());
    for wrong in [
        url.to_owned(),
        format!("{url}&sig="),
        format!("{url}&sig={}", &token[1..]),
        format!("{url}&sig={token}A"),
        format!("{url}&sig={}", token.to_ascii_lowercase()),
        format!("{path}.vhd?{own}"),
        format!("{}.vhd?{query}", d.url.split_once(".vhd?").unwrap().0),
        format!("{}/sas/x.vhd?{own}", managed.base()),
        format!("{}/sas", managed.base()),
    ] {
        assert_eq!(
            Blob::at(&managed, &wrong).range("0-9").refusal(),
            failed,
            "{wrong}"
        );
    }
    let head = Blob::at(&managed, url).curl(&["--head"]);
    assert_eq!(head.status, 403);
    assert_eq!(
        d.put(0, &[1; 512]).refusal().1,
        "AuthorizationPermissionMismatch"
    );
    assert_eq!(d.clear(0, 512).refusal().0, 403);
    assert_eq!(d.curl(&["-X", "DELETE"]).refusal().0, 405);
    // A token of the management API is none here.
    let bearer = format!("Authorization: Bearer {}", client.token);
    assert_eq!(
        Blob::at(&managed, url).curl(&["-H", &bearer]).refusal(),
        failed
    );
    assert_eq!(d.range("0-9").status, 206);
    managed.host.ok("disk revoke-access d");
    let log = managed.host.text("audit list --last 1000 -o json");
    for operation in ["AccessGrant", "AccessRevoke", "AccessRefused"] {
        assert!(log.contains(operation), "{operation}: {log}");
    }
    assert!(!log.contains(token), "the log has no token");
}

#[test]
fn who_is_not_known_hides_nobody_who_is_from_the_log() {
    let managed = Managed::new();
    let reader = managed.user("reader");
    managed
        .host
        .ok("role assignment create --assignee reader --role Reader");
    let client = managed.client(&reader);
    for n in 0..50 {
        let id = uuid::Uuid::from_u128(n);
        let url = format!("{}/sas/{id}.vhd?sig=none", managed.base());
        assert_eq!(Blob::at(&managed, &url).range("0-9").status, 403);
        managed.login(&format!("nobody{n}"), "x", &managed.base());
    }
    client.refused("DELETE ~/resourceGroups/default", None);
    managed.served.terminate();
    let Managed { host, served, .. } = managed;
    served.wait();
    let log = host.text("audit list --last 1000 -o json");
    let mut refused = log
        .lines()
        .filter(|line| line.contains("ManagementRefused"));
    assert!(
        refused.any(|line| line.contains(&reader.object_id)),
        "{log}"
    );
    let access = log.lines().filter(|line| line.contains("AccessRefused"));
    assert!(access.count() <= 20, "{log}");
}

#[test]
fn who_may_grant_is_up_to_roles_and_what_is_asked_is_checked() {
    let managed = Managed::new();
    let admin = managed.client(&managed.admin);
    managed.host.ok("disk create d --size 1MiB");
    let d = &format!("{DISKS}/d");
    let begin = &format!("POST {d}/beginGetAccess");
    let as_role = |role: &str| -> (u16, u16) {
        let name = role.to_ascii_lowercase().replace(' ', "-");
        let user = managed.user(&name);
        let role = role.replace(' ', "\u{a0}");
        managed.host.ok(&format!(
            "role assignment create --assignee {name} --role {role}"
        ));
        let client: Client<'_> = managed.client(&user);
        let begun = client.ask(begin, Some(&asked("Read", 60))).status;
        (
            begun,
            client.ask(&format!("POST {d}/endGetAccess"), None).status,
        )
    };
    assert_eq!(as_role("Reader"), (403, 403));
    assert_eq!(as_role("Disk Backup Reader"), (200, 403));
    assert_eq!(as_role("Disk Restore Operator"), (403, 403));
    assert_eq!(as_role("Contributor"), (200, 200));

    for body in [
        json!({"access": "Read"}),
        json!({"access": "Read", "durationInSeconds": 0}),
        json!({"access": "Read", "durationInSeconds": "60"}),
        json!({"access": "Read", "durationInSeconds": 1u64 << 32}),
        json!({"access": "None", "durationInSeconds": 60}),
        json!({"durationInSeconds": 60}),
        json!({"access": "Read", "durationInSeconds": 60, "fileFormat": "VHDX"}),
    ] {
        assert_eq!(admin.refused(begin, Some(&body)).0, 400, "{body}");
    }
    let (status, code) = admin.refused(begin, Some(&asked("Write", 60)));
    assert_eq!(
        (status, code.as_str()),
        (409, "OperationNotAllowed"),
        "not in upload"
    );
    let none = format!("POST {DISKS}/none/beginGetAccess");
    assert_eq!(admin.refused(&none, Some(&asked("Read", 60))).0, 404);

    for (name, value) in [
        ("networkAccessPolicy", "DenyAll"),
        ("publicNetworkAccess", "Disabled"),
    ] {
        let blob = access(&admin, d, "Read", 60);
        admin.ok(
            &format!("PATCH {d}"),
            Some(&json!({"properties": {name: value}})),
        );
        assert_eq!(
            blob.range("0-9").refusal(),
            (403, "AuthenticationFailed".into())
        );
        let (status, code) = admin.refused(begin, Some(&asked("Read", 60)));
        assert_eq!(
            (status, code.as_str()),
            (409, "OperationNotAllowed"),
            "{name}"
        );
        let said = managed
            .host
            .refused("disk grant-access d --duration-in-seconds 60");
        assert!(said.contains(name), "{said}");
        let allowed = json!({"properties": {"networkAccessPolicy": "AllowAll", "publicNetworkAccess": "Enabled"}});
        admin.ok(&format!("PATCH {d}"), Some(&allowed));
        assert_eq!(blob.range("0-9").status, 403, "it does not come back");
    }
    let private = json!({"properties": {"networkAccessPolicy": "AllowPrivate"}});
    let (status, code) = admin.refused(&format!("PATCH {d}"), Some(&private));
    assert_eq!((status, code.as_str()), (400, "FeatureNotOffered"));
}
