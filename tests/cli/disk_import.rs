//! Images that become disks, and the file systems on which disks are made, as an operator meets them.

use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use landlock::{AccessFs, PathBeneath, Ruleset, RulesetAttr, RulesetCreatedAttr};
use test_support::{Host, noise, one_line, program, qemu_img, rlimits, seccomp, text};

/// A raw image with a GPT header in the second sector of `sector` bytes.
fn gpt_image(host: &Host, name: &str, sector: usize) -> std::path::PathBuf {
    let mut content = vec![0; 8 << 20];
    noise(&mut content[1 << 20..2 << 20]);
    content[sector..sector + 8].copy_from_slice(b"EFI PART");
    let path = host.path(name);
    fs::write(&path, content).unwrap();
    path
}

#[test]
fn the_image_of_a_4kn_disk_is_imported_only_when_that_is_said() {
    let host = Host::new();
    let image = gpt_image(&host, "4kn.raw", 4096);
    let create = ["disk", "create", "d", "--source", text(&image)];
    let refusal = host.refused(&create);
    assert!(refusal.contains("--logical-sector-size 4096"), "{refusal}");
    assert!(refusal.contains("SeaBIOS"), "{refusal}");
    host.assert_no_disks();

    host.ok(&[&create[..], &["--logical-sector-size", "4096"]].concat());
    let size = |of: &[&str]| host.json(of)["logicalSectorSize"].as_u64();
    assert_eq!(size(&["disk", "show", "d"]), Some(4096));
    assert!(host.ok(&["disk", "decrypt", "d"]) == fs::read(&image).unwrap());
    // What is made of it has it too.
    host.ok(&["snapshot", "create", "s", "--source", "d"]);
    host.ok(&["disk", "create", "clone", "--source", "snapshot:s"]);
    assert_eq!(size(&["snapshot", "show", "s"]), Some(4096));
    assert_eq!(size(&["disk", "show", "clone"]), Some(4096));
    let odd = ((9u64 << 20) + 512).to_string();
    let refusal = host.refused(&["disk", "resize", "d", "--size", &odd]);
    assert!(refusal.contains("multiple"), "{refusal}");
    let vhd = host.path("d.vhd");
    let export = [
        "disk",
        "export",
        "d",
        "--file",
        text(&vhd),
        "--format",
        "vhd",
    ];
    assert!(host.refused(&export).contains("512 bytes"));

    let insisted = [
        "disk",
        "create",
        "e",
        "--source",
        text(&image),
        "--logical-sector-size",
        "512",
    ];
    host.ok(&insisted);
    assert_eq!(size(&["disk", "show", "e"]), Some(512));
    let usual = gpt_image(&host, "usual.raw", 512);
    host.ok(&["disk", "create", "f", "--source", text(&usual)]);
    assert_eq!(size(&["disk", "show", "f"]), Some(512));
    let odd = [
        "disk",
        "create",
        "g",
        "--size",
        "1M",
        "--logical-sector-size",
        "2048",
    ];
    assert!(host.refused(&odd).contains("use 512 or 4096"));
}

#[test]
fn sizes_at_the_end_of_the_numbers_are_refused_and_do_not_overflow() {
    let host = Host::new();
    for size in [
        "18446744073709551615",
        "18446744073709551104",
        "16777215T",
        "65T",
    ] {
        for sector_size in ["512", "4096"] {
            let create = [
                "disk",
                "create",
                "d",
                "--size",
                size,
                "--sector-size",
                sector_size,
            ];
            let refusal = host.refused(&create);
            assert!(refusal.contains("64 TiB"), "{refusal}");
        }
    }
    host.assert_no_disks();
    host.ok(&["disk", "create", "d", "--size", "1M"]);
    host.ok(&["snapshot", "create", "s", "--source", "d"]);
    let largest = "18446744073709551615";
    let resize = ["disk", "resize", "d", "--size", largest];
    assert!(host.refused(&resize).contains("64 TiB"));
    let clone = [
        "disk",
        "create",
        "c",
        "--source",
        "snapshot:s",
        "--size",
        largest,
    ];
    assert!(host.refused(&clone).contains("64 TiB"));
}

#[test]
fn a_disk_of_no_size_names_both_ways_to_give_one() {
    let host = Host::new();
    let refusal = host.refused(&["disk", "create", "d"]);
    assert!(
        refusal.contains("--size") && refusal.contains("--source"),
        "{refusal}"
    );
}

/// A file system whose files end before the disk does says how long they can be.
#[test]
fn a_size_that_the_file_system_does_not_have_names_the_largest() {
    let host = Host::new();
    let mut create = host.command(&["disk", "create", "d", "--size", "64G"]);
    // A limit of the process is answered as one of the file system is.
    let most = 5u64 << 30;
    rlimits::limit(&mut create, libc::RLIMIT_FSIZE, most);
    let refusal = one_line(&create.output().unwrap());
    assert!(
        refusal.contains(&format!("{most} bytes at most")),
        "{refusal}"
    );
    assert!(refusal.contains("--data-dir"), "{refusal}");
    host.assert_no_disks();
}

/// The calls that make hard links.
#[cfg(target_arch = "x86_64")]
const LINKS: &[i64] = &[libc::SYS_link, libc::SYS_linkat];
#[cfg(not(target_arch = "x86_64"))]
const LINKS: &[i64] = &[libc::SYS_linkat];

/// The calls that rename without flags.
#[cfg(target_arch = "x86_64")]
const RENAMES: &[i64] = &[libc::SYS_rename, libc::SYS_renameat];
#[cfg(not(target_arch = "x86_64"))]
const RENAMES: &[i64] = &[libc::SYS_renameat];

/// Has the process run where `renameat2` takes no flags, as on NFS, CephFS and most of FUSE, and where
/// `calls` give `EPERM`.
fn without(command: &mut Command, calls: &[i64]) {
    seccomp::forbid_flags(command, libc::SYS_renameat2, 4, libc::EINVAL);
    if !calls.is_empty() {
        seccomp::forbid(command, calls, libc::EPERM);
    }
}

/// Runs a command that must succeed.
fn ok(run: &impl Fn(&[&str]) -> Output, arguments: &[&str]) {
    let output = run(arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
}

/// Makes the disk `d` of an image, and in `to` what else gets its name in the end: its plaintext, an
/// export and a copy.
fn made_and_written_out(host: &Host, run: &impl Fn(&[&str]) -> Output, to: &Path, format: &str) {
    let raw = host.raw_image("disk.raw");
    ok(run, &["disk", "create", "d", "--source", text(&raw)]);
    let decrypted = to.join("decrypted");
    let decrypt = ["disk", "decrypt", "d", "--output-file", text(&decrypted)];
    ok(run, &decrypt);
    assert!(fs::read(&decrypted).unwrap() == fs::read(&raw).unwrap());
    let exported = to.join(format!("d.{format}"));
    let export = ["disk", "export", "d", "--file", text(&exported), "--format"];
    ok(run, &[&export[..], &[format]].concat());
    // A VHD is filled up to whole cylinders.
    if format != "vhd" {
        qemu_img(&["compare", text(&exported), text(&raw)]);
    }
    let copied = to.join("copied");
    ok(run, &["disk", "copy", "d", "--to", text(&copied)]);
    assert!(copied.join("header").exists());
}

/// What makes, exports, decrypts and copies disks, with `run` running each command.
fn everything_that_is_named_in_the_end(host: &Host, run: impl Fn(&[&str]) -> Output) {
    made_and_written_out(host, &run, &host.path(""), "qcow2");
    // What has the name keeps it.
    fs::write(host.path("taken"), b"mine").unwrap();
    let taken = host.path("taken");
    let output = run(&["disk", "decrypt", "d", "--output-file", text(&taken)]);
    assert!(one_line(&output).contains("exists already"));
    assert_eq!(fs::read(&taken).unwrap(), b"mine");
    let output = run(&["disk", "create", "d", "--size", "1M"]);
    assert!(!output.status.success());
    ok(&run, &["disk", "delete", "d", "--yes"]);
    let hidden = |dir: &Path| {
        let names = fs::read_dir(dir)
            .unwrap()
            .flatten()
            .map(|entry| entry.file_name());
        names
            .filter(|name| name.to_string_lossy().starts_with('.'))
            .count()
    };
    assert_eq!((hidden(&host.disks()), hidden(&host.path(""))), (0, 0));
}

#[test]
fn disks_and_files_get_their_names_where_rename_has_no_flags() {
    for calls in [&[], LINKS] {
        let host = Host::new();
        everything_that_is_named_in_the_end(&host, |arguments| {
            let mut command = host.command(arguments);
            without(&mut command, calls);
            command.output().unwrap()
        });
    }
}

/// The file system of the disk, not the end of the work, decides whether names can be given.
#[test]
fn a_directory_in_which_nothing_can_be_renamed_is_refused_before_the_work() {
    let host = Host::new();
    host.ok(&["disk", "create", "d", "--size", "1M"]);
    let target = host.path("out");
    let mut command = host.command(&["disk", "decrypt", "d", "--output-file", text(&target)]);
    without(&mut command, &[LINKS, RENAMES].concat());
    let refusal = one_line(&command.output().unwrap());
    assert!(refusal.contains("cannot name"), "{refusal}");
    assert!(!target.exists());
}

#[test]
fn snapshots_say_that_they_need_hard_links() {
    let host = Host::new();
    host.ok(&["disk", "create", "d", "--size", "1M"]);
    let mut command = host.command(&["snapshot", "create", "s", "--source", "d"]);
    without(&mut command, LINKS);
    let refusal = one_line(&command.output().unwrap());
    assert!(refusal.contains("no hard links"), "{refusal}");
    host.ok(&["snapshot", "create", "s", "--source", "d"]);
}

/// A mounted NTFS, which is FUSE and has no `RENAME_NOREPLACE`.
struct Ntfs<'a>(&'a Path);

impl<'a> Ntfs<'a> {
    /// Nothing where FUSE cannot be had.
    fn mount(image: &Path, at: &'a Path) -> Option<Self> {
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
            return None;
        }
        let run = |command: &mut Command| command.output().is_ok_and(|it| it.status.success());
        let file = fs::File::create(image).unwrap();
        file.set_len(512 << 20).unwrap();
        fs::create_dir(at).unwrap();
        let made = run(Command::new("/usr/sbin/mkfs.ntfs")
            .args(["-F", "-Q", "-q"])
            .arg(image));
        let options = "permissions,big_writes";
        let mounted = made
            && run(Command::new("ntfs-3g")
                .args(["-o", options])
                .args([image, at]));
        mounted.then_some(Self(at))
    }
}

impl Drop for Ntfs<'_> {
    fn drop(&mut self) {
        let _ = Command::new("fusermount")
            .args(["-u", "-z"])
            .arg(self.0)
            .status();
    }
}

/// Has a command make no socket in any file system, as FUSE and some network file systems have none.
fn without_sockets_in_files(command: &mut Command) {
    // Without a rule for it, Landlock has nothing moved to another directory.
    let anywhere = PathBeneath::new(fs::File::open("/").unwrap(), AccessFs::Refer);
    let rules = Ruleset::default()
        .handle_access(AccessFs::MakeSock | AccessFs::Refer)
        .and_then(|rules| rules.create())
        .and_then(|rules| rules.add_rule(anywhere))
        .unwrap();
    let mut rules = Some(rules);
    let apply = move || match rules.take().map(|rules| rules.restrict_self()) {
        Some(Ok(_)) => Ok(()),
        _ => Err(io::Error::from(io::ErrorKind::PermissionDenied)),
    };
    // SAFETY: the closure makes system calls only.
    unsafe { command.pre_exec(apply) };
}

/// What talks to QEMU's tools needs no place for a socket.
#[test]
fn images_are_read_and_written_where_no_socket_can_be_made() {
    let host = Host::new();
    let raw = host.raw_image("disk.raw");
    let (source, exported) = (host.path("d.qcow2"), host.path("e.qcow2"));
    let (source, exported) = (text(&source), text(&exported));
    qemu_img(&["convert", "-O", "qcow2", text(&raw), source]);
    for arguments in [
        &["disk", "create", "d", "--source", source][..],
        &[
            "disk", "export", "d", "--file", exported, "--format", "qcow2",
        ],
    ] {
        let mut command = host.command(arguments);
        without_sockets_in_files(&mut command);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }
    qemu_img(&["compare", exported, text(&raw)]);
}

#[test]
fn disks_live_on_a_fuse_file_system() {
    let host = Host::new();
    let (image, at) = (host.path("ntfs"), host.path("mounted"));
    let Some(_mounted) = Ntfs::mount(&image, &at) else {
        return eprintln!("FUSE cannot be had here");
    };
    fs::set_permissions(&at, fs::Permissions::from_mode(0o755)).unwrap();
    let state = at.join("state");
    let run = |arguments: &[&str]| {
        Command::new(program())
            .args(["--state-dir", text(&state)])
            .args(arguments)
            .output()
            .unwrap()
    };
    made_and_written_out(&host, &run, &at, "vhd");
    ok(&run, &["snapshot", "create", "s", "--source", "d"]);
    ok(&run, &["disk", "create", "clone", "--source", "snapshot:s"]);
    // A file system without holes has space in use for nothing, which is status 3.
    let check = run(&["disk", "check", "d"]);
    assert!(matches!(check.status.code(), Some(0 | 3)), "{check:?}");
    ok(&run, &["disk", "delete", "clone", "--yes"]);
}

/// A program that says what it could do with the host, in the place of QEMU's.
#[test]
fn what_reads_an_image_is_nobody_and_reaches_nothing() {
    let host = Host::new();
    let raw = host.raw_image("disk.raw");
    let image = host.path("disk.qcow2");
    qemu_img(&["convert", "-O", "qcow2", text(&raw), text(&image)]);
    let programs = tempfile::tempdir_in("/dev/shm").unwrap();
    let open_to_all = fs::Permissions::from_mode(0o777);
    fs::set_permissions(programs.path(), open_to_all.clone()).unwrap();
    let (secret, made) = (programs.path().join("secret"), programs.path().join("made"));
    fs::write(&secret, "other plaintext").unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let script = format!(
        "#!/usr/bin/perl
        use Socket;
        my $did = '';
        open(my $f, '<', '{secret}') and $did .= ' read';
        open(my $f, '<', '{image}') and $did .= ' image';
        open(my $f, '>', '{made}') and $did .= ' made';
        socket(my $s, AF_INET, SOCK_STREAM, 0)
            and connect($s, pack_sockaddr_in({port}, inet_aton('127.0.0.1'))) and $did .= ' connected';
        print STDERR \"qemu-img: user $> did:$did.\\n\";
        exit 1;\n",
        secret = secret.display(),
        image = image.display(),
        made = made.display(),
        port = listener.local_addr().unwrap().port(),
    );
    let program = programs.path().join("qemu-img");
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, open_to_all).unwrap();
    let path = format!(
        "{}:{}",
        programs.path().display(),
        std::env::var("PATH").unwrap()
    );
    let mut create = host.command(&["disk", "create", "d", "--source", text(&image)]);
    let refusal = one_line(&create.env("PATH", path).output().unwrap());
    let user = match rustix::process::geteuid() {
        root if root.is_root() => 65534,
        user => user.as_raw(),
    };
    assert!(refusal.contains(&format!("user {user} did:.")), "{refusal}");
    assert!(!made.exists());
    host.assert_no_disks();
}

#[test]
fn an_image_that_a_vm_writes_to_is_refused_in_one_line() {
    let host = Host::new();
    let raw = host.raw_image("disk.raw");
    let mut vm = Command::new("qemu-system-x86_64")
        .args([
            "-nodefaults",
            "-display",
            "none",
            "-S",
            "-M",
            "none",
            "-blockdev",
        ])
        .arg(format!("driver=file,node-name=f,filename={}", text(&raw)))
        .args(["-blockdev", "driver=raw,node-name=r,file=f"])
        .arg("-qmp")
        .arg(format!(
            "unix:{},server=on,wait=off",
            text(&host.path("qmp"))
        ))
        .spawn()
        .unwrap();
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let qmp = host.path("qmp");
        export_writable(&qmp, &host.path("nbd"));
        let create = ["disk", "create", "d", "--source", text(&raw)];
        let refusal = host.refused_with("UnusableImage", &create);
        assert!(
            refusal.contains("failed to get shared \"write\" lock"),
            "{refusal}"
        );
        host.assert_no_disks();
        host.ok(&[&create[..], &["--force-share"]].concat());
    }));
    let _ = vm.kill();
    let _ = vm.wait();
    done.unwrap();
    host.ok(&["disk", "create", "e", "--source", text(&raw)]);
}

/// Has a QEMU serve its node `r` to write, over QMP.
fn export_writable(qmp: &Path, nbd: &Path) {
    use std::io::{BufRead, BufReader, Write};
    // It has a name before anybody listens there.
    let connect = |_| {
        let connected = std::os::unix::net::UnixStream::connect(qmp).ok();
        if connected.is_none() {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        connected
    };
    let mut stream = (0..3000).find_map(connect).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    lines.next().unwrap().unwrap();
    for command in [
        "{\"execute\": \"qmp_capabilities\"}".to_owned(),
        format!(
            "{{\"execute\": \"nbd-server-start\", \"arguments\": {{\"addr\": {{\"type\": \"unix\", \
             \"data\": {{\"path\": \"{}\"}}}}}}}}",
            text(nbd)
        ),
        "{\"execute\": \"block-export-add\", \"arguments\": {\"type\": \"nbd\", \"id\": \"e\", \
         \"node-name\": \"r\", \"writable\": true}}"
            .to_owned(),
    ] {
        writeln!(stream, "{command}").unwrap();
        let answer = lines.next().unwrap().unwrap();
        assert!(answer.contains("return"), "{answer}");
    }
}

/// An image of the vault's own disks is none of its bytes, and a download may have failed.
#[test]
fn what_is_no_image_is_refused_by_name_and_truncated_ones_for_that() {
    let host = Host::new();
    let raw = host.raw_image("disk.raw");
    host.ok(&["disk", "create", "d", "--source", text(&raw)]);
    let files = fs::read_dir(host.disks().join("d")).unwrap().flatten();
    let mut seen = Vec::new();
    for file in files.map(|entry| entry.path()) {
        let refusal = host.refused(&["disk", "create", "e", "--source", text(&file)]);
        for what in ["the header", "the map", "the ciphertext"] {
            if refusal.contains(&format!(
                "is {what} of a disk of Sealdisk: `sealdisk disk register"
            )) {
                seen.push(what);
            }
        }
    }
    seen.sort_unstable();
    assert_eq!(seen, ["the ciphertext", "the header", "the map"]);

    let vdi = host.path("d.vdi");
    qemu_img(&["convert", "-O", "vdi", text(&raw), text(&vdi)]);
    let file = fs::OpenOptions::new().write(true).open(&vdi).unwrap();
    file.set_len(1024).unwrap();
    for kind in ["disk", "image"] {
        let create = [kind, "create", "t", "--source", text(&vdi)];
        let refusal = host.refused_with("UnusableImage", &create);
        assert!(refusal.contains("as vdi: it is truncated"), "{refusal}");
    }
    fs::write(host.path("page.img"), "<!doctype HTML>\n<title>404</title>").unwrap();
    let refusal = host.refused(&[
        "disk",
        "create",
        "t",
        "--source",
        text(&host.path("page.img")),
    ]);
    assert!(refusal.contains("a page of HTML or XML"), "{refusal}");
}

/// A raw image named so stays raw, whatever a guest wrote to it, and that is said.
#[test]
fn a_raw_image_that_looks_like_something_else_is_told_of() {
    let host = Host::new();
    let raw = host.raw_image("disk.raw");
    let file = fs::OpenOptions::new().write(true).open(&raw).unwrap();
    file.write_all_at(b"LUKS\xba\xbe\0\x02", 0).unwrap();
    let output = host.run(&["disk", "create", "d", "--source", text(&raw)]);
    assert!(output.status.success(), "{output:?}");
    let note = String::from_utf8_lossy(&output.stderr);
    assert!(
        note.contains("read as raw") && note.contains("LUKS"),
        "{note}"
    );
    let other = host.path("disk.img");
    fs::rename(&raw, &other).unwrap();
    let refusal = host.refused(&["disk", "create", "e", "--source", text(&other)]);
    assert!(refusal.contains("LUKS container"), "{refusal}");
}
