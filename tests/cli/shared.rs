//! A directory of disks that several hosts have mounted, of a file system that has only what all of them have.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};

use disks::CreateRequest;
use disks::import::Cancel;
use test_support::shared_fs::SharedFs;
use test_support::{Host, text};
use uuid::Uuid;

const BLOCK: usize = 4096;

/// Names that are in a directory.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap().flatten();
    let mut names: Vec<_> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn all_that_is_done_with_disks_is_done_where_a_file_system_lacks_much() {
    let Some(shared) = SharedFs::mount(1) else {
        return;
    };
    let host = Host::new();
    let raw = host.raw_image("disk.raw");
    let mut content = fs::read(&raw).unwrap();
    let at = format!("--data-dir {}", text(&shared.path(0)));
    let holds = |source: &str, content: &[u8]| {
        assert!(
            host.ok(&format!("disk decrypt {source}")) == content,
            "{source}"
        );
    };
    host.ok(&format!("disk create d --source {} {at}", text(&raw)));
    host.ok(&format!("disk create empty --size 64MiB {at}"));
    host.ok(&format!("snapshot create s --source d {at}"));
    host.ok(&format!("disk create clone --source s {at}"));
    let before = content.clone();
    host.write("d", 0, &[7; BLOCK]);
    content[..BLOCK].fill(7);
    host.discard("d", 5 << 20, 1 << 20);
    content[5 << 20..6 << 20].fill(0);
    host.ok(&format!("snapshot create s2 --source d {at}"));
    holds("clone", &before);
    holds("d", &content);
    // Its layer is merged.
    host.ok("disk flatten clone");
    host.ok("snapshot delete s --yes");
    host.ok("disk rotate-dek d");
    host.ok(&format!("image create i --source d {at}"));
    host.write("d", 0, &[8; BLOCK]);
    host.ok("disk revert d --snapshot s2 --yes");
    host.ok("disk resize empty --size 128MiB");
    host.ok(&format!("disk copy d --to {}/copy", text(&shared.path(0))));
    holds("d", &content);
    holds("clone", &before);
    host.is_clean("empty");
    host.is_clean("clone");
    // Space of what was discarded is noted, and no more.
    host.ok("disk check d");
    for deleted in ["disk delete d", "disk delete empty", "disk delete clone"] {
        host.ok(&format!("{deleted} --yes"));
    }
    host.ok("snapshot delete s2 --yes");
    host.ok("image delete i --yes");
    host.assert_no_disks();
    // Of all the locks, and of what was in the making, nothing is left.
    assert_eq!(names(&shared.backing()), ["copy"]);
    let mut copied = names(&shared.backing().join("copy"));
    copied.retain(|name| !name.ends_with(".data") && !name.ends_with(".map"));
    assert_eq!(copied, ["header"]);
}

/// The kernel of another host knows nothing of the lock of a directory. What is in the making is none of its business.
#[test]
fn another_host_leaves_alone_what_is_being_made() {
    let Some(shared) = SharedFs::mount(2) else {
        return;
    };
    let (host, other) = (Host::new(), Host::new());
    let request = CreateRequest {
        name: "d".into(),
        size: Some(1 << 20),
        source: None,
        disk_encryption_set: None,
        sector_size: 4096,
        logical_sector_size: None,
        data_dir: Some(shared.path(0)),
    };
    let there = shared.path(1);
    let create_other = format!("disk create other --size 1M --data-dir {}", text(&there));
    let mut seen = Vec::new();
    let begun = |_: &disks::Created| {
        // It cleans up before.
        other.ok(&create_other);
        seen = names(&shared.backing());
        |_: u64| ()
    };
    let made = disks::create(&host.installation(), &request, &Cancel::default(), begun);
    assert!(made.is_ok(), "{made:?}");
    assert!(seen[0].starts_with(".d.creating-"), "{seen:?}");
    assert_eq!(names(&shared.backing()), ["d", "other"]);
    assert_eq!(names(&shared.backing().join("d")).len(), 3);
    host.ok("disk decrypt d");
    host.ok("disk delete d --yes");
    other.ok("disk delete other --yes");
    assert!(names(&shared.backing()).is_empty());
}

/// Ciphertext is given back when nobody else has it, and a host may believe for a while of who has it what was so before.
#[test]
fn ciphertext_of_which_another_host_has_made_a_disk_is_not_given_back() {
    let Some(shared) = SharedFs::mount_with(2, &["--believe", "--holes"]) else {
        return;
    };
    let host = Host::new();
    let at = format!("--data-dir {}", text(&shared.path(1)));
    host.ok(&format!("disk create d --size 8MiB {at}"));
    host.ok(&format!("snapshot create s --source d {at}"));
    host.ok("disk rotate-dek d");
    let shown = host.json("disk show d");
    let data = PathBuf::from(shown["layers"][0]["data"].as_str().unwrap());
    let file = File::options().write(true).open(&data).unwrap();
    file.write_all_at(&[7; 65536], 0).unwrap();
    drop(file);
    assert_eq!(host.json("disk show d")["layers"][0]["shared"], false);
    // As by a clone of what it holds now.
    let (d, clone) = (shared.path(0).join("d"), shared.path(0).join("clone"));
    let name = data.file_name().unwrap();
    fs::create_dir(&clone).unwrap();
    fs::hard_link(d.join(name), clone.join(name)).unwrap();
    // The layer goes from the disk.
    host.ok("disk revert d --snapshot s --yes");
    assert!(!data.exists());
    let kept = fs::read(shared.backing().join("clone").join(name)).unwrap();
    assert!(kept[..65536] == [7; 65536]);
}

/// What a maker on another host left when it was killed, with the lock that it had or without.
#[test]
fn another_host_cleans_up_what_nobody_makes() {
    let Some(shared) = SharedFs::mount(2) else {
        return;
    };
    let mut private = DirBuilder::new();
    let each: [&[&str]; 2] = [&[], &["lock"]];
    for left in each {
        let host = Host::new();
        let name = format!(".x.creating-{}", Uuid::new_v4());
        let directory = shared.path(0).join(name);
        private.mode(0o700).create(&directory).unwrap();
        for file in left {
            fs::write(directory.join(file), "").unwrap();
        }
        let data = text(&shared.path(1)).to_owned();
        host.ok(&format!("disk create d --size 1M --data-dir {data}"));
        assert_eq!(names(&shared.backing()), ["d"]);
        host.ok("disk delete d --yes");
    }
}
