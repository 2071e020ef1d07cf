//! Archived segments of audit logs in backups: those in the state directory come along, the others are
//! named, and the chain holds through both.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use test_support::Host;

use super::backups::{bring_disks, create, lose_state, with_identity};
use super::support::{Lines, content, host_with_disk};

fn archive(host: &Host, which: &str, dir: &Path) -> PathBuf {
    fs::create_dir_all(dir).unwrap();
    let archived = host.good(&format!(
        "audit archive {which} --output-dir {}",
        dir.display()
    ));
    archived["file"].as_str().unwrap().into()
}

fn notes(host: &Host, line: &str) -> String {
    let output = host.line(line);
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn joined(files: &[&PathBuf]) -> String {
    let files: Vec<&str> = files.iter().map(|file| file.to_str().unwrap()).collect();
    files.join(" ")
}

fn replaced(file: &Path, to: &Path, from: &str, by: &str) {
    let text = fs::read_to_string(file).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(to, text.replacen(from, by, 1)).unwrap();
}

#[test]
fn segments_come_along_or_are_named_and_the_restored_logs_verify_with_them() {
    let host = host_with_disk(b"kept");
    let (inside, outside) = (host.state().join("old-logs"), host.path("outside"));
    // The vault's log: inside, outside, inside; the installation's: outside.
    let first = archive(&host, "--vault vlt", &inside);
    let second = archive(&host, "--vault vlt", &outside);
    let third = archive(&host, "--vault vlt", &inside);
    let own = archive(&host, "--installation", &outside);
    let file = create(&host, "--with-master-key");
    let verify = with_identity(&host, "verify", &file);
    let said = notes(&host, &verify);
    for (file, named) in [
        (&first, false),
        (&second, true),
        (&third, false),
        (&own, true),
    ] {
        let name = file.to_str().unwrap();
        assert_eq!(said.contains(name), named, "{name}: {said}");
    }
    let sum = super::support::tool("sha256sum", &[second.to_str().unwrap()]);
    let sum = String::from_utf8(sum.stdout).unwrap();
    assert!(said.contains(sum.split(' ').next().unwrap()), "{said}");
    // With those that it names there is nothing left to be said.
    let all = joined(&[&own, &second]);
    assert_eq!(notes(&host, &format!("{verify} --archive {all}")), "");
    // One of them that was changed, cut off, or is none.
    let bad = host.path("bad.jsonl");
    replaced(
        &second,
        &bad,
        "\"operation\":\"AuditArchive\"",
        "\"operation\":\"KeyGet\"",
    );
    let line = format!("{verify} --archive {} {}", own.display(), bad.display());
    let message = host.bad(&line, "BackupDamaged");
    assert!(message.contains("it was changed"), "{message}");
    fs::write(&bad, "{}\n").unwrap();
    let message = host.bad(&line, "BackupDamaged");
    assert!(message.contains("bad.jsonl"), "{message}");
    // One that was archived later is of no use to this backup, and no fault of it.
    host.good("keyvault key show k --vault-name vlt");
    let later = archive(&host, "--vault vlt", &outside);
    let said = notes(
        &host,
        &format!("{verify} --archive {all} {}", later.display()),
    );
    assert!(said.contains("was not looked at"), "{said}");

    lose_state(&host);
    let restore = with_identity(&host, "restore", &file);
    let said = notes(&host, &format!("{restore} --archive {all}"));
    assert!(!said.contains("not in the backup"), "{said}");
    bring_disks(&host);
    assert_eq!(content(&host, 4), b"kept");
    let at = |file: &Path| {
        host.state()
            .join("segments")
            .join(file.file_name().unwrap())
    };
    let (first, third) = (at(&first), at(&third));
    host.good("audit verify");
    let all = joined(&[&third, &own, &first, &second]);
    let reports = host.line(&format!("audit verify -o json --archive {all}"));
    assert!(reports.status.success(), "{reports:?}");
    let reports = String::from_utf8(reports.stdout).unwrap();
    assert_eq!(reports.matches("\"archived\":0").count(), 2, "{reports}");
    // What the lost state had archived after the backup is no part of the log that was put back.
    let line = format!("audit verify --archive {all} {}", later.display());
    let message = host.line(&format!("{line} -o json"));
    let text = String::from_utf8(message.stdout).unwrap();
    assert!(
        !message.status.success() && text.contains("was put back"),
        "{text}"
    );
    host.bad(
        &format!(
            "audit archive --vault vlt --output-dir {}",
            outside.display()
        ),
        "BadParameter",
    );
    // The next backup has them again, from where they are now.
    let file = create(&host, "");
    let said = notes(&host, &with_identity(&host, "verify", &file));
    assert!(!said.contains("segments/"), "{said}");
    assert_eq!(said.matches("not in the backup").count(), 2, "{said}");
    // One that was changed is not taken, and is named.
    replaced(&first, &first, "\"operation\":\"", "\"operation\":\"x");
    let file = create(&host, "");
    let said = notes(&host, &with_identity(&host, "verify", &file));
    assert_eq!(said.matches("not in the backup").count(), 3, "{said}");
}

#[test]
fn a_purged_key_whose_records_were_archived_spoils_no_backup() {
    let host = host_with_disk(b"kept");
    host.good("keyvault key delete k --vault-name vlt --yes");
    host.good("keyvault key purge k --vault-name vlt --yes");
    let segment = archive(&host, "--vault vlt", &host.path("outside"));
    let file = create(&host, "");
    let verify = with_identity(&host, "verify", &file);
    let said = notes(&host, &verify);
    assert!(said.contains("the key was purged, or"), "{said}");
    let said = notes(&host, &format!("{verify} --archive {}", segment.display()));
    assert!(!said.contains("purged"), "{said}");
}

#[test]
fn backups_made_while_records_are_archived_and_segments_taken_away_are_whole() {
    let host = host_with_disk(b"kept");
    let (inside, away) = (host.state().join("archive"), host.path("away"));
    fs::create_dir(&away).unwrap();
    let over = AtomicBool::new(false);
    let take_away = || {
        for entry in fs::read_dir(&inside).unwrap().flatten() {
            fs::rename(entry.path(), away.join(entry.file_name())).unwrap();
        }
    };
    let files = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                archive(&host, "--vault vlt", &inside);
                take_away();
            }
        });
        let files: Vec<PathBuf> = (0..4)
            .map(|n| {
                let file = create(&host, "");
                let kept = host.path(&format!("{n}.age"));
                fs::rename(file, &kept).unwrap();
                kept
            })
            .collect();
        over.store(true, Ordering::Relaxed);
        files
    });
    let segments: Vec<PathBuf> = fs::read_dir(&away)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    let segments = joined(&segments.iter().collect::<Vec<_>>());
    for file in files {
        let verify = with_identity(&host, "verify", file.to_str().unwrap());
        host.good(&verify);
        let said = notes(&host, &format!("{verify} --archive {segments}"));
        assert!(!said.contains("not in the backup"), "{said}");
    }
}
