//! Programs of others: QEMU's tools and VMMs, and what tells VMMs of this one.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::check::Check;

/// Where QEMU and libvirt look for back-ends; what comes first hides files of the same name after it.
const DESCRIPTORS: [&str; 3] = [
    "/etc/qemu/vhost-user",
    "/usr/local/share/qemu/vhost-user",
    "/usr/share/qemu/vhost-user",
];

/// QEMU by its names, and Cloud Hypervisor.
const VMMS: [&str; 5] = [
    "qemu-system-x86_64",
    "qemu-system-aarch64",
    "/usr/libexec/qemu-kvm",
    "kvm",
    "cloud-hypervisor",
];

/// The first QEMU that knows `reconnect-ms`.
const RECONNECT_MS: (u32, u32) = (9, 2);

pub(super) fn all() -> Vec<Check> {
    vec![tools(), vmm(), descriptor()]
}

fn tools() -> Check {
    const CHECK: &str = "qemu-utils";
    let missing: Vec<&str> = ["qemu-img", "qemu-nbd"]
        .into_iter()
        .filter(|program| version_of(program).is_none())
        .collect();
    match (version_of("qemu-img"), missing.is_empty()) {
        (Some(version), true) => Check::ok(CHECK, version),
        _ => Check::warn(
            CHECK,
            format!("there is no {}", missing.join(" and no ")),
            "install the package qemu-utils: without it images other than raw are neither imported nor \
             exported",
        ),
    }
}

fn vmm() -> Check {
    const CHECK: &str = "vmm";
    let found = VMMS
        .into_iter()
        .find_map(|program| Some((program, version_of(program)?)));
    match found {
        None => Check::warn(
            CHECK,
            "neither QEMU nor Cloud Hypervisor was found",
            "install one (qemu-system-x86), unless guests run from a place that is not in PATH",
        ),
        Some((program, version)) => {
            let is_old = qemu_version(&version).is_some_and(|found| found < RECONNECT_MS);
            let how = match is_old {
                true => "; its chardev takes reconnect=1, not reconnect-ms=1000",
                false => "",
            };
            Check::ok(CHECK, format!("{program}: {version}{how}"))
        }
    }
}

/// `QEMU emulator version 7.2.22 (Debian …)`.
fn qemu_version(text: &str) -> Option<(u32, u32)> {
    let (_, version) = text.split_once("QEMU emulator version ")?;
    let mut numbers = version.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// What a program says with `--version`, without its package; `None` when it cannot be run.
fn version_of(program: &str) -> Option<String> {
    let output = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().next().unwrap_or_default();
    let version = line.split(" (").next().unwrap_or(line);
    output.status.success().then(|| version.trim().into())
}

fn descriptor() -> Check {
    const CHECK: &str = "vhost-user descriptor";
    let advice = "install contrib/vhost-user/50-sealdisk.json in /usr/share/qemu/vhost-user/, and \
                  sealdisk-vhost-user-blk in /usr/libexec/: management tools find the back-end by it";
    let Some((file, binary)) = DESCRIPTORS.iter().find_map(|dir| named_in(Path::new(dir))) else {
        return Check::warn(CHECK, "there is none", advice);
    };
    let answer = Command::new(&binary)
        .arg("--print-capabilities")
        .stdin(Stdio::null())
        .output();
    let found = format!("{} names {}", file.display(), binary.display());
    match answer {
        Ok(output) if output.status.success() => Check::ok(CHECK, found),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.lines().next().unwrap_or("it fails");
            Check::warn(
                CHECK,
                format!("{found}, which does not work: {said}"),
                advice,
            )
        }
        Err(error) => Check::warn(
            CHECK,
            format!("{found}, which cannot be run: {error}"),
            advice,
        ),
    }
}

/// The descriptor in a directory that names this back-end, and the program that it names.
fn named_in(dir: &Path) -> Option<(PathBuf, PathBuf)> {
    let files = std::fs::read_dir(dir).ok()?.filter_map(Result::ok);
    files.map(|entry| entry.path()).find_map(|path| {
        let text = std::fs::read(&path).ok()?;
        let value: serde_json::Value = serde_json::from_slice(&text).ok()?;
        let binary = value["binary"].as_str()?;
        binary.contains("sealdisk").then(|| (path, binary.into()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_qemu_is_read() {
        let text = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)";
        assert_eq!(qemu_version(text), Some((7, 2)));
        assert_eq!(qemu_version("cloud-hypervisor v40.0"), None);
        assert_eq!(version_of("there is no such program"), None);
    }

    #[test]
    fn a_descriptor_is_found_by_the_program_that_it_names() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        put(
            "40-other.json",
            r#"{"type": "block", "binary": "/usr/bin/other"}"#,
        );
        put("45-broken.json", "{");
        assert_eq!(named_in(dir.path()), None);
        put(
            "50-sealdisk.json",
            r#"{"type": "block", "binary": "/x/sealdisk-vhost-user-blk"}"#,
        );
        let (_, binary) = named_in(dir.path()).unwrap();
        assert_eq!(binary, Path::new("/x/sealdisk-vhost-user-blk"));
    }
}
