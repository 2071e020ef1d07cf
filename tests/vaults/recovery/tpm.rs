//! Master keys that are sealed to a TPM: swtpm's, through tpm2-tools.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use test_support::{Host, holds};

use super::support::host_with_disk;

/// A TPM in software, and programs that use it as `/dev/tpmrm0` lets them.
struct Tpm {
    server: Child,
    device: String,
    programs: PathBuf,
}

impl Tpm {
    fn start(host: &Host, name: &str) -> Self {
        let state = host.path(name);
        fs::create_dir(&state).unwrap();
        let port = pair_of_ports();
        let server = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
            .arg(format!("--tpmstate=dir={}", state.display()))
            .arg(format!("--server=type=tcp,port={port},bindaddr=127.0.0.1"))
            .arg(format!(
                "--ctrl=type=tcp,port={},bindaddr=127.0.0.1",
                port + 1
            ))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let device = format!("swtpm:host=127.0.0.1,port={port}");
        // The kernel's resource manager takes a program's objects from the TPM when it ends; swtpm by
        // itself keeps them, and has room for three.
        let programs = state.join("programs");
        fs::create_dir(&programs).unwrap();
        for program in fs::read_dir("/usr/bin").unwrap().flatten() {
            let name = program.file_name().into_string().unwrap();
            if !name.starts_with("tpm2_") {
                continue;
            }
            let script = programs.join(&name);
            let text = format!(
                "#!/bin/sh\n/usr/bin/{name} \"$@\"\nstatus=$?\n\
                 /usr/bin/tpm2_flushcontext -t >/dev/null 2>&1\nexit $status\n"
            );
            fs::write(&script, text).unwrap();
            fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let tpm = Self {
            server,
            device,
            programs,
        };
        for _ in 0..600 {
            if tpm.tool("tpm2_pcrread", &["sha256:16"]).status.success() {
                return tpm;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("swtpm does not answer");
    }

    fn tool(&self, name: &str, arguments: &[&str]) -> Output {
        Command::new(name)
            .args(arguments)
            .env("TPM2TOOLS_TCTI", &self.device)
            .output()
            .unwrap()
    }

    fn run(&self, host: &Host, line: &str) -> Output {
        let words: Vec<&str> = line.split(' ').collect();
        let path = format!("{}:/usr/bin:/bin", self.programs.display());
        host.command(&words).env("PATH", path).output().unwrap()
    }

    fn good(&self, host: &Host, line: &str) {
        let output = self.run(host, line);
        assert!(output.status.success(), "{line}: {output:?}");
    }
}

impl Drop for Tpm {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// Two neighbouring ports that are free.
fn pair_of_ports() -> u16 {
    for _ in 0..100 {
        let first = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = first.local_addr().unwrap().port();
        if port < u16::MAX && TcpListener::bind(("127.0.0.1", port + 1)).is_ok() {
            return port;
        }
    }
    panic!("there are no two free ports");
}

#[test]
fn a_sealed_master_key_opens_with_this_tpm_and_these_pcrs_only() {
    let host = host_with_disk(b"kept");
    let tpm = Tpm::start(&host, "tpm");
    let vault = host.state().join("vaults/vlt");
    let old = fs::read(vault.join("master.key")).unwrap();
    let device = &tpm.device;
    let read = "disk decrypt d --output-file /dev/null";
    tpm.good(
        &host,
        &format!("keyvault reseal vlt --tpm2 --tpm2-device {device}"),
    );
    tpm.good(&host, read);
    assert!(
        !holds(&host.state(), &old),
        "the old master key is still there"
    );
    let blob = fs::read_dir(&vault)
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|e| e == "tpm2"))
        .unwrap();
    // Nothing in the directory opens it without the TPM.
    assert!(!vault.join("master.key").exists());
    let mode = fs::metadata(&blob).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // Bound to a PCR, it is refused once that changes, and a running disk's vault says so.
    let pcrs = format!("keyvault reseal vlt --tpm2 --tpm2-pcrs sha256:16 --tpm2-device {device}");
    tpm.good(&host, &pcrs);
    assert!(!blob.exists(), "the old sealed key is still there");
    tpm.good(&host, read);
    let one = "0000000000000000000000000000000000000000000000000000000000000001";
    let extended = tpm.tool("tpm2_pcrextend", &[&format!("16:sha256={one}")]);
    assert!(extended.status.success(), "{extended:?}");
    let refused = tpm.run(&host, read);
    let message = String::from_utf8(refused.stderr).unwrap();
    assert!(message.contains("policy check failed"), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    let reset = tpm.tool("tpm2_pcrreset", &["16"]);
    assert!(reset.status.success(), "{reset:?}");
    tpm.good(&host, read);
    // A new vault has it there from the start.
    tpm.good(
        &host,
        &format!("keyvault create two --tpm2 --tpm2-device {device}"),
    );
    assert!(!host.state().join("vaults/two/master.key").exists());
    // Nothing of the tools stays behind.
    let left = fs::read_dir("/dev/shm").unwrap().flatten();
    let left = left.filter(|e| e.file_name().to_string_lossy().starts_with("sealdisk-tpm-"));
    assert_eq!(left.count(), 0);
    // Without the TPM it is one line that says so; with a backup it comes back elsewhere.
    let (identity, recipient) = super::support::age_keys(&host);
    let file = host.path("b.age");
    let file = file.display();
    tpm.good(
        &host,
        &format!("backup create {file} --recipient {recipient} --with-master-key"),
    );
    drop(tpm);
    let refused = host.run(&read.split(' ').collect::<Vec<_>>());
    let message = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(message.contains("TPM"), "{message}");
    fs::rename(host.state(), host.path("lost")).unwrap();
    let identity = identity.display();
    host.ok(&format!("backup restore {file} --identity-file {identity}")
        .split(' ')
        .collect::<Vec<_>>());
    fs::remove_dir(host.state().join("disks")).unwrap();
    fs::rename(host.path("lost/disks"), host.state().join("disks")).unwrap();
    host.ok(&read.split(' ').collect::<Vec<_>>());
}
