//! Backups: what is in them, what is found in a bad one, and the way back.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use test_support::{Host, holds, one_line, program, text};

use super::support::{
    ALL_MOMENTS, Lines, MOMENTS, age_keys, content, host_with_disk, killed, principal, private,
    tool,
};
use keys::FIPS;

pub fn create(host: &Host, options: &str) -> String {
    let (_, recipient) = age_keys(host);
    let file = host.path("backup.age");
    let _ = fs::remove_file(&file);
    let file = file.to_str().unwrap().to_owned();
    host.good(&format!(
        "backup create {file} --recipient {recipient} {options}"
    ));
    file
}

pub fn with_identity(host: &Host, command: &str, file: &str) -> String {
    let (identity, _) = age_keys(host);
    format!(
        "backup {command} {file} --identity-file {}",
        identity.display()
    )
}

/// Takes the installation's state away, all but its disks. The directory is the same one afterwards: what runs can write
/// in no other.
pub fn lose_state(host: &Host) {
    let lost = host.path("lost");
    fs::create_dir(&lost).unwrap();
    for entry in fs::read_dir(host.state()).unwrap() {
        let entry = entry.unwrap();
        fs::rename(entry.path(), lost.join(entry.file_name())).unwrap();
    }
}

pub fn bring_disks(host: &Host) {
    let disks = host.state().join("disks");
    fs::remove_dir(&disks).unwrap();
    fs::rename(host.path("lost/disks"), disks).unwrap();
}

#[test]
fn everything_comes_back_with_what_was_done_last_while_a_server_runs() {
    let host = host_with_disk(b"kept");
    let server = host.serve("");
    let held = rusqlite::Connection::open(host.state().join("vaults/vlt/vault.db")).unwrap();
    held.query_row("SELECT count(*) FROM audit", [], |_| Ok(()))
        .unwrap();
    // These are in write-ahead logs only.
    let key = host.good("keyvault key create k --vault-name vlt --size 2048");
    let newest = key["key"]["kid"].as_str().unwrap().to_owned();
    host.good("identity create alice");
    host.good("disk-encryption-set update s --key-url https://vlt.vault.localhost/keys/k");
    let before = (principal(&host, "s"), host.good("identity show alice"));
    let file = create(&host, "--with-master-key");
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    drop((held, server));
    let items = host.good(&with_identity(&host, "verify", &file));
    let vault = items
        .as_array()
        .unwrap()
        .iter()
        .find(|i| i["path"] == "vaults/vlt/vault.db");
    assert_eq!(vault.unwrap()["keys"], 1);
    assert!(vault.unwrap()["auditRecords"].as_u64().unwrap() > 5);
    let ca = fs::read(host.state().join("tls/ca.key")).unwrap();

    lose_state(&host);
    let restored = host.line(&with_identity(&host, "restore", &file));
    assert!(restored.status.success(), "{restored:?}");
    let notes = String::from_utf8(restored.stderr).unwrap();
    assert!(notes.contains("the disk 'd' is not in"), "{notes}");
    assert!(notes.contains("keyvault reseal vlt"), "{notes}");
    bring_disks(&host);
    assert_eq!(content(&host, 4), b"kept");
    assert_eq!(
        (principal(&host, "s"), host.good("identity show alice")),
        before
    );
    let versions = host.good("keyvault key list-versions k --vault-name vlt");
    let kids: Vec<&str> = versions
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v["kid"].as_str().unwrap())
        .collect();
    assert!(kids.contains(&newest.as_str()), "{kids:?} without {newest}");
    assert_eq!(fs::read(host.state().join("tls/ca.key")).unwrap(), ca);
    host.good("audit verify");
    let log = host.line("audit list --installation");
    let log = String::from_utf8(log.stdout).unwrap();
    assert!(
        log.contains("BackupCreate") && log.contains("BackupRestore"),
        "{log}"
    );
    // Nothing is left over.
    let names: Vec<String> = fs::read_dir(host.state())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with('.'))
        .collect();
    assert!(names.is_empty(), "{names:?}");
}

#[test]
fn the_archive_is_ages_and_has_master_keys_only_when_asked() {
    let host = host_with_disk(b"kept");
    let master = fs::read(host.state().join("vaults/vlt/master.key")).unwrap();
    let (identity, _) = age_keys(&host);
    for (options, wanted) in [("", false), ("--with-master-key", true)] {
        let file = create(&host, options);
        let tar = host.path("backup.tar");
        let decrypted = tool(
            "age",
            &[
                "-d",
                "-i",
                identity.to_str().unwrap(),
                "-o",
                tar.to_str().unwrap(),
                &file,
            ],
        );
        assert!(decrypted.status.success(), "{decrypted:?}");
        let listed = tool("tar", &["-tf", tar.to_str().unwrap()]);
        let listed = String::from_utf8(listed.stdout).unwrap();
        assert!(listed.starts_with("manifest.json\n"), "{listed}");
        assert_eq!(listed.contains("vaults/vlt/master.key"), wanted, "{listed}");
        let bytes = fs::read(&tar).unwrap();
        assert_eq!(bytes.windows(32).any(|w| w == master), wanted);
        fs::remove_file(&tar).unwrap();
        // Nothing of it is in the clear. Three bytes would be in it by chance.
        let encrypted = fs::read(&file).unwrap();
        for clear in [
            master.as_slice(),
            b"SQLite format",
            b"PRIVATE KEY",
            b"vaults/vlt",
        ] {
            assert!(!encrypted.windows(clear.len()).any(|w| w == clear));
        }
    }
}

#[test]
fn a_vault_without_its_master_key_says_where_to_put_it() {
    let host = host_with_disk(b"kept");
    let master = fs::read(host.state().join("vaults/vlt/master.key")).unwrap();
    let file = create(&host, "");
    host.good(&with_identity(&host, "verify", &file));
    lose_state(&host);
    let restored = host.line(&with_identity(&host, "restore", &file));
    assert!(restored.status.success(), "{restored:?}");
    let notes = String::from_utf8(restored.stderr).unwrap();
    assert!(
        notes.contains("the vault 'vlt' needs its master key"),
        "{notes}"
    );
    bring_disks(&host);
    host.bad("disk decrypt d --output-file /dev/null", "VaultMasterKey");
    private(&host.state().join("vaults/vlt/master.key"), &master);
    assert_eq!(content(&host, 4), b"kept");
}

#[test]
fn a_passphrase_comes_from_a_file_or_stdin_and_a_wrong_one_is_said_to_be() {
    let host = Host::new();
    host.good("keyvault create vlt");
    let (right, wrong) = (host.path("right"), host.path("wrong"));
    private(&right, b"correct horse battery\n");
    private(&wrong, b"wrong\n");
    let file = host.path("b.age");
    let file = file.to_str().unwrap();
    host.good(&format!(
        "backup create {file} --passphrase-file {}",
        right.display()
    ));
    // As costly a passphrase as the program's own takes a second to try; one that `age` made need not.
    let cheap = host.path("cheap.age");
    let mut recipient = age::scrypt::Recipient::new("correct horse battery".to_owned().into());
    recipient.set_work_factor(2);
    fs::write(&cheap, age::encrypt(&recipient, b"").unwrap()).unwrap();
    let verify = |passphrase: &Path, code| {
        host.bad(
            &format!(
                "backup verify {} --passphrase-file {}",
                cheap.display(),
                passphrase.display()
            ),
            code,
        )
    };
    let message = verify(&wrong, "BackupKey");
    assert!(message.contains("the passphrase is wrong"), "{message}");
    verify(&right, "BackupDamaged");
    let (identity, _) = age_keys(&host);
    let message = host.bad(
        &format!(
            "backup verify {file} --identity-file {}",
            identity.display()
        ),
        "BackupKey",
    );
    assert!(message.contains("--passphrase-file"), "{message}");
    let mut command = host.command(&["backup", "verify", file, "--passphrase-file", "-"]);
    command.env("SEALDISK_RUNTIME_DIR", host.path("run"));
    let output = command
        .stdin(fs::File::open(&right).unwrap())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    // A shell's pipe.
    let piped = format!(
        "exec {} backup verify {} --passphrase-file <(echo correct horse battery)",
        program().display(),
        cheap.display()
    );
    let piped = tool("bash", &["-c", &piped]);
    let said = String::from_utf8(piped.stderr).unwrap();
    assert!(said.contains("is not a complete backup"), "{said}");
    // One that is guessed soon.
    private(&wrong, b"eleven char\n");
    let short = host.bad(
        &format!(
            "backup create {file}.2 --passphrase-file {}",
            wrong.display()
        ),
        "InvalidArgument",
    );
    assert!(short.contains("less than 12 characters"), "{short}");
    // None at all, an exposed file, a taken name.
    let none = host.line(&format!("backup create {file}.2"));
    assert_eq!(none.status.code(), Some(2), "{none:?}");
    fs::set_permissions(&right, fs::Permissions::from_mode(0o644)).unwrap();
    let exposed = host.line(&format!(
        "backup create {file}.2 --passphrase-file {}",
        right.display()
    ));
    assert!(
        String::from_utf8(exposed.stderr)
            .unwrap()
            .contains("chmod 600")
    );
    let (_, recipient) = age_keys(&host);
    host.bad(
        &format!("backup create {file} --recipient {recipient}"),
        "BadParameter",
    );
    assert!(!Path::new(&format!("{file}.2")).exists());
}

#[test]
fn with_fips_a_backup_is_refused_unless_age_outside_of_the_module_is_allowed() {
    let host = Host::new();
    host.good("keyvault create vlt");
    let (_, recipient) = age_keys(&host);
    let create = |name: &str, more: &[&str]| {
        let file = host.path(name);
        let output = host
            .command(&["backup", "create", text(&file), "--recipient", &recipient])
            .args(more)
            .env_remove("SEALDISK_ALLOW_NON_FIPS")
            .output()
            .unwrap();
        assert_eq!(output.status.success(), file.exists(), "{output:?}");
        output
    };
    let plain = create("plain", &["-o", "json"]);
    assert_eq!(plain.status.success(), !FIPS, "{plain:?}");
    if FIPS {
        let said = one_line(&plain);
        assert!(said.contains("NotInFipsModule"), "{said}");
        assert!(said.contains("--allow-non-fips"), "{said}");
    }
    assert!(create("allowed", &["--allow-non-fips"]).status.success());
}

#[test]
fn a_backup_that_was_cut_off_is_named_wherever_it_ends() {
    let host = host_with_disk(b"kept");
    let file = create(&host, "--with-master-key");
    let whole = fs::read(&file).unwrap();
    let path = Path::new(&file);
    fs::create_dir(host.path("work")).unwrap();
    fs::set_permissions(host.path("work"), fs::Permissions::from_mode(0o700)).unwrap();
    let work = || fs::read_dir(host.path("work")).unwrap().count();
    let verify = with_identity(&host, "verify", &file);
    let verify = format!("{verify} --work-dir {}", host.path("work").display());
    let target = host.path("target");
    let restore = with_identity(&host, "restore", &file);
    let restore = format!("--state-dir {} {restore}", target.display());
    let length = whole.len();
    let parts = (1..8).map(|part| length * part / 8);
    for cut in parts.chain([length - 100_000, length - 100, length - 1]) {
        fs::write(path, &whole[..cut]).unwrap();
        for line in [&verify, &restore] {
            let message = host.bad(line, "BackupDamaged");
            assert!(message.contains(&file), "{cut}: {message}");
            assert!(message.contains("cut off"), "{cut}: {message}");
        }
        assert_eq!(work(), 0, "{cut}");
        assert!(fs::read_dir(&target).is_ok_and(|mut left| left.next().is_none()));
    }
    // A file that cannot be written is not the backup's fault.
    fs::write(path, &whole).unwrap();
    let full = format!(
        "ulimit -f 8; exec {} backup verify {file} --identity-file {} --work-dir {}",
        program().display(),
        host.path("identity").display(),
        host.path("work").display()
    );
    let full = tool("bash", &["-c", &format!("trap '' XFSZ; {full}")]);
    let said = String::from_utf8(full.stderr).unwrap();
    assert!(
        said.contains("cannot write") && said.contains("/item"),
        "{said}"
    );
}

/// Writes another archive of the same form, with one entry changed.
fn rewritten(host: &Host, from: &str, change: impl Fn(&str, &Path)) -> String {
    let (identity, recipient) = age_keys(host);
    let dir = host.path("unpacked");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir(&dir).unwrap();
    let tar = host.path("unpacked.tar");
    let _ = fs::remove_file(&tar);
    let (dir_text, tar_text) = (dir.to_str().unwrap(), tar.to_str().unwrap());
    let run = |name: &str, arguments: &[&str]| {
        let output = tool(name, arguments);
        assert!(output.status.success(), "{name}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    run(
        "age",
        &["-d", "-i", identity.to_str().unwrap(), "-o", tar_text, from],
    );
    let names = run("tar", &["-tf", tar_text]);
    run("tar", &["-xf", tar_text, "-C", dir_text]);
    let manifest_path = dir.join("manifest.json");
    let mut manifest: Value = serde_json::from_slice(&fs::read(&manifest_path).unwrap()).unwrap();
    for item in manifest["items"].as_array_mut().unwrap() {
        let name = item["path"].as_str().unwrap().to_owned();
        let path = dir.join(&name);
        change(&name, &path);
        // Whoever can encrypt for a recipient can make the rest fit.
        let bytes = fs::read(&path).unwrap();
        item["bytes"] = bytes.len().into();
        let sum = run("sha256sum", &[path.to_str().unwrap()]);
        item["sha256"] = sum.split(' ').next().unwrap().into();
    }
    fs::write(&manifest_path, serde_json::to_vec(&manifest).unwrap()).unwrap();
    fs::remove_file(&tar).unwrap();
    let names: Vec<&str> = names.lines().collect();
    run(
        "tar",
        &[&["-cf", tar_text, "-C", dir_text], names.as_slice()].concat(),
    );
    let to = host.path("rewritten.age");
    let _ = fs::remove_file(&to);
    let to = to.to_str().unwrap().to_owned();
    run("age", &["-r", &recipient, "-o", &to, tar_text]);
    to
}

#[test]
fn verify_finds_what_does_not_fit_and_restore_refuses_it() {
    let host = host_with_disk(b"kept");
    host.good("keyvault key create k --vault-name vlt --size 2048");
    host.good("disk-encryption-set update s --key-url https://vlt.vault.localhost/keys/k");
    host.good("disk update d --disk-encryption-set s");
    let file = create(&host, "--with-master-key");
    let sql = |sql: &'static str| {
        move |path: &Path| {
            let db = rusqlite::Connection::open(path).unwrap();
            assert!(db.execute(sql, []).unwrap() > 0, "{sql}");
        }
    };
    type Change = Box<dyn Fn(&Path)>;
    let cases: Vec<(&str, &str, Change)> = vec![
        (
            "audit.db",
            "record 2",
            Box::new(sql("UPDATE audit SET caller = 'x' WHERE seq = 2")),
        ),
        (
            "vaults/vlt/vault.db",
            "its audit log",
            Box::new(sql(
                "DELETE FROM audit WHERE seq = (SELECT max(seq) FROM audit)",
            )),
        ),
        (
            "vaults/vlt/vault.db",
            "not those that it had",
            Box::new(sql(
                "DELETE FROM key_versions WHERE seq = (SELECT max(seq) FROM key_versions)",
            )),
        ),
        (
            "vaults/vlt/vault.db",
            "damaged",
            Box::new(|path: &Path| {
                let mut bytes = fs::read(path).unwrap();
                let middle = bytes.len() / 2;
                bytes[middle..middle + 8192].fill(0xa5);
                fs::write(path, bytes).unwrap();
            }),
        ),
        (
            "vaults/vlt/master.key",
            "not the master key",
            Box::new(|path: &Path| fs::write(path, [1; 32]).unwrap()),
        ),
        (
            "catalog.db",
            "older than the catalog",
            Box::new(sql(
                "UPDATE disk_encryption_sets SET key_url = key_url || '/0123456789abcdef0123456789abcdef'",
            )),
        ),
    ];
    for (entry, why, change) in cases {
        let bad = rewritten(&host, &file, |name, path| {
            if name == entry {
                change(path);
            }
        });
        let message = host.bad(&with_identity(&host, "verify", &bad), "BackupDamaged");
        assert!(message.contains(why), "{entry}: {message}");
        let empty = host.path("empty");
        let line = with_identity(&host, "restore", &bad);
        let message = host.bad(
            &format!("--state-dir {} {line}", empty.display()),
            "BackupDamaged",
        );
        assert!(message.contains(why), "{message}");
        assert_eq!(
            fs::read_dir(&empty).unwrap().count(),
            0,
            "something was restored"
        );
    }
    // What is unchanged is good, made by age and tar or not.
    let same = rewritten(&host, &file, |_, _| {});
    host.good(&with_identity(&host, "verify", &same));
    // Any change of the encrypted file, and any end before its end.
    let whole = fs::read(&file).unwrap();
    let cut = host.path("cut.age");
    for (length, flip) in [
        (whole.len() - 1, None),
        (whole.len() / 2, None),
        (whole.len(), Some(400)),
        (whole.len(), Some(whole.len() - 1)),
    ] {
        let mut bytes = whole[..length].to_vec();
        if let Some(at) = flip {
            bytes[at] ^= 1;
        }
        fs::write(&cut, bytes).unwrap();
        let message = host.line(&with_identity(&host, "verify", cut.to_str().unwrap()));
        assert!(!message.status.success(), "{length} {flip:?}");
    }
}

#[test]
fn an_older_backup_shows_against_a_checkpoint_kept_elsewhere() {
    let host = host_with_disk(b"kept");
    let file = create(&host, "");
    host.good("keyvault key create k --vault-name vlt --size 2048");
    let checkpoint = host.path("checkpoint.jsonl");
    host.good(&format!(
        "audit export --checkpoints-only --output-file {}",
        checkpoint.display()
    ));
    let line = with_identity(&host, "verify", &file);
    host.good(&line);
    let message = host.bad(
        &format!("{line} --checkpoint {}", checkpoint.display()),
        "BackupDamaged",
    );
    assert!(
        message.contains("put back to an earlier state"),
        "{message}"
    );
}

#[test]
fn a_restore_takes_an_empty_directory_only_and_none_that_is_killed_is_half_done() {
    kill_restores(MOMENTS);
}

#[test]
#[ignore = "more moments of the same: scripts/test --full"]
fn no_restore_that_is_killed_at_any_moment_is_half_done() {
    kill_restores(ALL_MOMENTS);
}

fn kill_restores(moments: u32) {
    let host = host_with_disk(b"kept");
    let file = create(&host, "--with-master-key");
    let restore = with_identity(&host, "restore", &file);
    let message = host.bad(&restore, "StateDirectory");
    assert!(message.contains("not empty"), "{message}");
    let before = principal(&host, "s");
    let target = host.path("target");
    let command = |_| {
        let mut command = Command::new(program());
        command
            .args(restore.split(' '))
            .arg("--state-dir")
            .arg(&target);
        command
    };
    killed(moments, command, |n| {
        let line = format!("--state-dir {} ", target.display());
        if !target.join("catalog.db").exists() {
            // Nobody takes it for a new installation.
            if target.exists() && fs::read_dir(&target).unwrap().count() > 0 {
                let refused = host.line(&format!("{line} keyvault list"));
                assert!(!refused.status.success(), "moment {n}: {refused:?}");
            }
            host.good(&format!("{line} {restore}"));
        }
        let installation = host.installation_in(&target);
        let set = installation.catalog().des("s").unwrap();
        assert_eq!(set.record.principal_id.to_string(), before, "moment {n}");
        installation.vault("vlt").unwrap();
        // A disk that lay in the old state directory is looked for in the new one.
        let disks = installation.catalog().disks().unwrap();
        assert_eq!(disks[0].record.directory, target.join("disks/d"));
        fs::remove_dir_all(&target).unwrap();
    });
}

#[test]
fn a_backup_that_is_killed_leaves_no_file_of_that_name_and_no_copy() {
    kill_backups(MOMENTS);
}

#[test]
#[ignore = "more moments of the same: scripts/test --full"]
fn a_backup_that_is_killed_at_any_moment_leaves_nothing() {
    kill_backups(ALL_MOMENTS);
}

fn kill_backups(moments: u32) {
    let host = host_with_disk(b"kept");
    let (_, recipient) = age_keys(&host);
    let dir = host.path("backups");
    fs::create_dir(&dir).unwrap();
    let file = |n| dir.join(format!("{n}.age"));
    let command = |n| {
        let mut command = host.command(&["backup", "create"]);
        command.arg(file(n)).args(["--recipient", &recipient]);
        command
    };
    killed(moments, command, |n| {
        if file(n).exists() {
            host.good(&with_identity(&host, "verify", file(n).to_str().unwrap()));
        }
    });
    create(&host, "");
    let left: Vec<_> = fs::read_dir(host.state())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with(".backup-"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(!holds(&dir, b"SQLite format"));
}
