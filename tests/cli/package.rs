//! What the Debian package has in it. That it can be installed, upgraded and removed is tested in a guest (tests/vm).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;
use test_support::{Host, expect_success, program, text};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn each_command_has_a_man_page_and_hidden_ones_have_none() {
    let host = Host::new();
    let dir = host.path("man");
    host.ok(&["manpages", text(&dir)]);
    let page = |name: &str| fs::read_to_string(dir.join(name));
    assert!(page("sealdisk.1").unwrap().contains("\n.SH SYNOPSIS\n"));
    let create = page("sealdisk-disk-create.1").unwrap();
    assert!(create.contains("sector\\-size"), "{create}");
    for there in [
        "attach",
        "enable",
        "upgrade",
        "keyvault-key-create",
        "keyvault-serve",
    ] {
        page(&format!("sealdisk-{there}.1")).unwrap();
    }
    for hidden in ["data-plane", "continue-attach", "manpages", "help"] {
        assert!(page(&format!("sealdisk-{hidden}.1")).is_err(), "{hidden}");
    }
}

/// Builds the package with the program of the tests; `None` where the tools are not Debian's.
fn package(output: &Path) -> Option<String> {
    if Command::new("dpkg-deb").arg("--version").output().is_err() {
        eprintln!("this is no Debian");
        return None;
    }
    let mut build = build(output);
    Some(built(build.args(["--version", "1.2-3"])))
}

/// What builds it.
fn build(output: &Path) -> Command {
    let mut build = Command::new(root().join("scripts/package"));
    build.args(["--fast", "--program", text(program())]);
    build.args(["--output", text(output)]);
    build
}

/// The path of the package that was built.
fn built(build: &mut Command) -> String {
    let said = expect_success(build).stdout;
    String::from_utf8(said).unwrap().trim().to_owned()
}

/// A clone of few commits has no tags, and a tarball has no repository.
#[test]
fn a_package_is_built_without_a_tag_of_the_release_too() {
    if Command::new("dpkg-deb").arg("--version").output().is_err() {
        eprintln!("this is no Debian");
        return;
    }
    let dir = TempDir::new().unwrap();
    let mut build = build(dir.path());
    let package = built(build.env("GIT_DIR", dir.path().join("none")));
    let version = concat!("sealdisk_", env!("CARGO_PKG_VERSION"), "-1_");
    assert!(package.contains(version), "{package}");
    assert!(Path::new(&package).exists(), "{package}");
}

#[test]
fn the_package_has_everything_that_a_host_needs() {
    let dir = TempDir::new().unwrap();
    let Some(package) = package(dir.path()) else {
        return;
    };
    let list = expect_success(Command::new("dpkg-deb").args(["--contents", &package])).stdout;
    let list = String::from_utf8(list).unwrap();
    let has = |mode: &str, path: &str| {
        let ending = format!(" .{path}");
        let line = list.lines().find(|line| line.ends_with(&ending));
        let line = line.unwrap_or_else(|| panic!("{path} is missing in\n{list}"));
        assert!(
            line.starts_with(mode) && line.contains(" root/root "),
            "{line}"
        );
    };
    const PROGRAM: &str = "-rwxr-xr-x";
    const FILE: &str = "-rw-r--r--";
    for path in [
        "bin/sealdisk",
        "sbin/sealdisk-keyvault",
        "libexec/sealdisk-vhost-user-blk",
    ] {
        has(PROGRAM, &format!("/usr/{path}"));
    }
    for path in [
        "qemu/vhost-user/50-sealdisk.json",
        "man/man1/sealdisk.1.gz",
        "man/man1/sealdisk-attach.1.gz",
        "bash-completion/completions/sealdisk",
        "zsh/vendor-completions/_sealdisk",
        "fish/vendor_completions.d/sealdisk.fish",
        "doc/sealdisk/README.md",
        "doc/sealdisk/docs/install.md",
        "doc/sealdisk/copyright",
        "doc/sealdisk/changelog.gz",
    ] {
        has(FILE, &format!("/usr/share/{path}"));
    }
    for entry in fs::read_dir(root().join("contrib/systemd")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        match name.strip_suffix(".conf") {
            Some(kind) => has(FILE, &format!("/usr/lib/{kind}.d/sealdisk.conf")),
            None => has(FILE, &format!("/usr/lib/systemd/system/{name}")),
        }
    }
    for (tool, made) in [
        ("pandoc", "man/man7/sealdisk-tutorial.7.gz"),
        ("mdbook", "doc/sealdisk/html/tutorial.html"),
        ("mdbook", "doc-base/sealdisk"),
    ] {
        if is_there(tool) {
            has(FILE, &format!("/usr/share/{made}"));
        }
    }
    has(FILE, "/etc/apparmor.d/sealdisk-attach");
    has(FILE, "/etc/apparmor.d/abstractions/libvirt-qemu.d/sealdisk");
    let field = |name: &str| {
        let mut ask = Command::new("dpkg-deb");
        let said = expect_success(ask.args(["--field", &package, name])).stdout;
        String::from_utf8(said).unwrap().trim().to_owned()
    };
    assert_eq!(field("Version"), "1.2-3");
    assert!(
        field("Depends").starts_with("libc6 (>= 2."),
        "{}",
        field("Depends")
    );
    // What an administrator changes stays when the package is upgraded.
    let control = dir.path().join("control");
    let mut unpack = Command::new("dpkg-deb");
    expect_success(unpack.args(["--control", &package, text(&control)]));
    let conffiles = fs::read_to_string(control.join("conffiles")).unwrap();
    for path in [
        "/etc/default/sealdisk",
        "/etc/default/sealdisk-host",
        "/etc/default/sealdisk-keyvault",
        "/etc/default/sealdisk-alarms",
        "/etc/apparmor.d/sealdisk-attach",
    ] {
        assert!(conffiles.lines().any(|line| line == path), "{conffiles}");
    }
    for script in ["postinst", "prerm", "postrm"] {
        let script = fs::read_to_string(control.join(script)).unwrap();
        assert!(!script.contains("@TIMERS@") && !script.contains("@SERVICES@"));
        assert!(!script.contains("@ELSEWHERE@"), "{script}");
        assert!(script.contains("sealdisk-alarms.service"), "{script}");
    }
}

/// Whether a tool that `scripts/package` can do without is there for it, as `scripts/setup package` installs it.
fn is_there(tool: &str) -> bool {
    let own = root().join("target/tools/bin").join(tool).exists();
    let found = own || Command::new(tool).arg("--version").output().is_ok();
    if !found {
        eprintln!("{tool} is missing (scripts/setup package)");
    }
    found
}

#[test]
fn the_shell_finds_nothing_wrong_with_the_scripts_of_the_package() {
    for script in [
        "postinst",
        "prerm",
        "postrm",
        "elsewhere",
        "sealdisk-keyvault",
    ] {
        let script = root().join("contrib/debian").join(script);
        expect_success(Command::new("sh").arg("-n").arg(&script));
    }
}

/// Runs `postinst` as an upgrade does, with tools that only write down what they are told. What was told to
/// `deb-systemd-invoke`, and what was said.
fn upgraded(left_behind: bool, catalog: Option<&str>) -> (String, String) {
    let dir = TempDir::new().unwrap();
    let bin = dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let told = dir.path().join("told");
    let put = |name: &str, does: &str| {
        let path = bin.join(name);
        fs::write(&path, format!("#!/bin/sh\n{does}\n")).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    };
    for name in ["systemd-sysusers", "systemd-tmpfiles"] {
        put(name, "exit 0");
    }
    put("aa-enabled", "exit 1");
    // One was disabled by the administrator, one is of the new version.
    put(
        "deb-systemd-helper",
        r#"[ "$2 $3" != "was-enabled off.timer" ]"#,
    );
    // A disk is attached by its unit.
    put(
        "systemctl",
        &format!(
            r#"case "$1" in
list-units) echo "sealdisk@web.service loaded active running Encrypted disk web" ;;
reload) echo "$*" >>'{}' ;;
*) [ "$2 $3" != "is-enabled new.timer" ] ;;
esac"#,
            text(&told)
        ),
    );
    if let Some(catalog) = catalog {
        let said = format!("SEALDISK_CATALOG={catalog}\n");
        fs::write(dir.path().join("sealdisk"), said).unwrap();
    }
    put(
        "deb-systemd-invoke",
        &format!("echo \"$*\" >>'{}'", text(&told)),
    );
    put("sealdisk", if left_behind { "exit 1" } else { "exit 0" });

    let script = fs::read_to_string(root().join("contrib/debian/postinst")).unwrap();
    let script = script
        .replace("@TIMERS@", "old.timer new.timer off.timer")
        .replace("@SERVICES@", "a.service")
        .replace("/run/systemd/system", text(dir.path()))
        .replace("/var/lib/misc/", &format!("{}/", text(dir.path())))
        .replace("/etc/default/", &format!("{}/", text(dir.path())))
        .replace("/etc/systemd/system/", &format!("{}/", text(dir.path())));
    let own = dir.path().join("postinst");
    fs::write(&own, script).unwrap();
    let mut command = Command::new("sh");
    command
        .arg(&own)
        .args(["configure", "0.1"])
        .env("PATH", format!("{}:/usr/bin:/bin", text(&bin)));
    let said = String::from_utf8(expect_success(&mut command).stderr).unwrap();
    (fs::read_to_string(told).unwrap(), said)
}

#[test]
fn an_upgrade_starts_the_timers_that_are_new_and_says_what_comes_of_a_disk_left_behind() {
    let (told, said) = upgraded(false, None);
    assert_eq!(told, "start new.timer\ntry-restart a.service\n");
    assert!(!said.contains("--key-grace"), "{said}");
    let (_, said) = upgraded(true, None);
    assert!(said.contains("served by the version before"), "{said}");
    assert!(said.contains("--key-grace"), "{said}");
    // The password of a server may be a credential, which the unit of the disk has.
    let (told, said) = upgraded(true, Some("postgres://me@db/d"));
    assert!(told.starts_with("reload sealdisk@web.service\n"), "{told}");
    assert!(!said.contains("served by the version before"), "{said}");
}

/// A build takes minutes: what is missing is said before it, all of it and with what to do.
#[test]
fn what_the_package_needs_is_looked_for_first() {
    let dir = TempDir::new().unwrap();
    let bin = dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let path = std::env::var("PATH").unwrap();
    for tool in ["bash", "dirname", "gzip", "install", "md5sum"] {
        let mut places = std::env::split_paths(&path).map(|place| place.join(tool));
        let Some(found) = places.find(|place| place.is_file()) else {
            return;
        };
        std::os::unix::fs::symlink(found, bin.join(tool)).unwrap();
    }
    let run = Command::new(bin.join("bash"))
        .arg(root().join("scripts/package"))
        .env("PATH", &bin)
        .env("HOME", dir.path())
        .output()
        .unwrap();
    assert!(!run.status.success());
    let said = String::from_utf8(run.stderr).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    for part in [
        " dpkg-deb",
        " strip",
        " objdump",
        " cargo",
        "rustup",
        "scripts/setup package",
    ] {
        assert!(said.contains(part), "{part} in {said}");
    }
}

/// Where disks and installations are that nobody finds below `/var/lib` is said before what names them is gone.
#[test]
fn who_removes_the_package_is_told_of_what_is_elsewhere() {
    let (dir, host) = (TempDir::new().unwrap(), Host::new());
    let Some(package) = package(dir.path()) else {
        return;
    };
    let control = dir.path().join("control");
    let mut unpack = Command::new("dpkg-deb");
    expect_success(unpack.args(["--control", &package, text(&control)]));
    let root = dir.path().join("root");
    let installation = root.join("srv/my disks");
    let place = dir.path().join("place");
    let create = ["--state-dir", text(&installation), "disk", "create", "db"];
    let create = [&create[..], &["--size", "1MiB", "--data-dir", text(&place)]].concat();
    host.ok(&create);
    let put = |path: &str, said: &str| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, said).unwrap();
    };
    let of_disk = "etc/systemd/system/sealdisk@db.service.d/50-sealdisk.conf";
    put(
        of_disk,
        "# Written by `sealdisk enable`\n[Unit]\nRequiresMountsFor=/srv/5%%/db\n\n[Service]\n\
         Environment=\"SEALDISK_STATE_DIR='/srv/my disks'\"\n",
    );
    put(
        "etc/systemd/system/sealdisk-metrics.service.d/own.conf",
        "[Service]\n#Environment=SEALDISK_STATE_DIR=/srv/old\nEnvironment=SEALDISK_STATE_DIR=/srv/third A=b\n",
    );
    put(
        "etc/default/sealdisk-alarms",
        "SEALDISK_ALARMS_OPTIONS=--state-dir /srv/fourth\n",
    );
    fs::create_dir_all(root.join("srv/third")).unwrap();
    fs::create_dir_all(root.join("var/lib/misc")).unwrap();
    let run = |script: &str, what: &str| {
        let mut command = Command::new("sh");
        let path = std::env::var("PATH").unwrap();
        let of_program = program().parent().unwrap().display();
        command
            .arg(control.join(script))
            .arg(what)
            .env("DPKG_ROOT", &root)
            .env("PATH", format!("{of_program}:{path}"));
        String::from_utf8(expect_success(&mut command).stderr).unwrap()
    };
    let said = run("prerm", "remove");
    for place in [
        "/srv/my disks",
        "/srv/third",
        "/srv/fourth",
        "/srv/5%/db",
        text(&place.join("db")),
    ] {
        let is_named = said.lines().any(|line| line == format!("  {place}"));
        assert!(is_named, "{place} in:\n{said}");
    }
    assert!(!said.contains("/srv/old"), "{said}");
    let said = run("postrm", "purge");
    assert!(said.contains("  /srv/my disks (") && said.contains("  /srv/third ("));
    assert!(!root.join(of_disk).exists() && installation.exists());
}

/// One that was killed has left the vaults' credential; the next one removes that, and nothing that is in use.
#[test]
fn a_credential_that_was_left_is_removed_by_the_next_command() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let script = fs::read_to_string(root().join("contrib/debian/sealdisk-keyvault")).unwrap();
    let own = dir.path().join("sealdisk-keyvault");
    let credentials = dir.path().join("sealdisk-keyvault-credentials");
    let script = script.replace("/run/sealdisk-keyvault-credentials", text(&credentials));
    // There is no such user here: it ends when it has cleaned up.
    fs::write(
        &own,
        script.replace("user=sealdisk-keyvault", "user=no-such-user"),
    )
    .unwrap();
    let [left, used] = ["left", "used"].map(|name| credentials.with_extension(name));
    for directory in [&left, &used] {
        fs::create_dir(directory).unwrap();
        fs::write(directory.join("sealdisk-keyvault"), "secret").unwrap();
    }
    let lock = fs::File::open(&used).unwrap();
    lock.lock().unwrap();
    let run = Command::new("sh")
        .arg(&own)
        .arg("version")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(said.contains("no-such-user"), "{said}");
    assert!(!left.exists() && used.exists());
    drop(lock);
    Command::new("sh")
        .arg(&own)
        .arg("version")
        .output()
        .unwrap();
    let rest = fs::read_dir(dir.path()).unwrap();
    let rest = rest.map(|entry| entry.unwrap().path());
    let rest: Vec<_> = rest.filter(|path| path.is_dir()).collect();
    assert!(rest.is_empty(), "{rest:?}");
}

#[test]
fn the_apparmor_rules_can_be_read() {
    let dir = TempDir::new().unwrap();
    let guest = dir.path().join("guest");
    let rules = fs::read_to_string(root().join("contrib/apparmor/libvirt-qemu")).unwrap();
    fs::write(&guest, format!("profile guest {{\n{rules}}}\n")).unwrap();
    can_be_read(&root().join("contrib/apparmor/sealdisk-attach"));
    can_be_read(&guest);
}

fn can_be_read(profile: &Path) {
    // It compiles the profile, and loads nothing.
    let mut parse = Command::new("apparmor_parser");
    parse.args(["--skip-kernel-load", "--skip-cache", "--quiet"]);
    parse.arg(profile);
    match parse.output() {
        Ok(said) => assert!(
            said.status.success(),
            "{}",
            String::from_utf8_lossy(&said.stderr)
        ),
        Err(_) => eprintln!("apparmor_parser is missing (scripts/setup test)"),
    }
}
