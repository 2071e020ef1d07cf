//! Two installations: one that keeps a vault and serves it, one that has a disk under its key.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use installation::Installation;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::frontend::PATIENCE;
use crate::frontend::daemon::{AttachOptions, Daemon, Disk, expect_success};
use crate::frontend::queue::Queue;
use crate::key_search::{may_read_memory, needles, search};

pub(super) const VAULT: &str = "far";
pub(super) const KEY: &str = "key";
pub(super) const SET: &str = "set";
const GUARDED: &[&str] = &["--key-check-interval", "1s", "--on-revoke", "error"];

/// The installation that keeps the vault.
pub(super) struct Keeper {
    state: TempDir,
    serving: Option<Child>,
    address: SocketAddr,
}

impl Keeper {
    pub(super) fn new() -> Self {
        let mut keeper = Self {
            state: tempfile::tempdir().unwrap(),
            serving: None,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
        };
        keeper.run(&format!("keyvault create {VAULT}"));
        keeper.create_key();
        let secret = keeper.secret();
        keeper.run(&format!(
            "identity create host --secret-file {}",
            secret.display()
        ));
        keeper.serve();
        keeper
    }

    pub(super) fn create_key(&self) -> String {
        let key = self.json(&format!(
            "keyvault key create {KEY} --vault-name {VAULT} --size 2048"
        ));
        let kid = key["key"]["kid"].as_str().unwrap();
        kid.rsplit('/').next().unwrap().to_owned()
    }

    fn secret(&self) -> PathBuf {
        self.state.path().join("host.secret")
    }

    fn ca(&self) -> PathBuf {
        self.state.path().join("state/tls/ca.pem")
    }

    fn url(&self) -> String {
        format!("https://{VAULT}.vault.localhost:{}", self.address.port())
    }

    fn key_url(&self) -> String {
        format!("{}/keys/{KEY}", self.url())
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sealdisk"));
        command
            .args(line.split(' '))
            .env("SEALDISK_STATE_DIR", self.state.path().join("state"))
            .env_remove("RUST_LOG")
            .stdin(Stdio::null());
        command
    }

    pub(super) fn run(&self, line: &str) -> Vec<u8> {
        expect_success(&mut self.command(line)).stdout
    }

    pub(super) fn json(&self, line: &str) -> Value {
        serde_json::from_slice(&self.run(&format!("{line} -o json"))).unwrap()
    }

    /// Serves, at the same address as before.
    fn serve(&mut self) {
        let mut command =
            self.command(&format!("keyvault serve --listen {} -o json", self.address));
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let stdout = child.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let view: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line:?}"));
        self.address = view["listen"].as_str().unwrap().parse().unwrap();
        self.serving = Some(child);
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.serving.take() {
            kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
            child.wait().unwrap();
        }
    }

    fn identity(&self) -> String {
        let identity = self.json("identity show host");
        identity["principalId"].as_str().unwrap().to_owned()
    }

    fn grant(&self) {
        let id = self.identity();
        self.run(&format!(
            "keyvault set-policy {VAULT} --object-id {id} --key-permissions get wrapKey unwrapKey"
        ));
    }

    fn enable(&self, enabled: bool) {
        self.run(&format!(
            "keyvault key set-attributes {KEY} --vault-name {VAULT} --enabled {enabled}"
        ));
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let Some(child) = &mut self.serving {
            // It has ended already when the test went well.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The installation that has the disk, which is under its platform's key at first.
pub(super) struct DiskHost {
    pub(super) disk: Disk,
}

impl DiskHost {
    pub(super) fn new() -> Self {
        Self {
            disk: Disk::new(8 << 20),
        }
    }

    fn connect(&self, keeper: &Keeper) {
        let (url, ca) = (keeper.url(), keeper.ca());
        self.run(&format!(
            "keyvault connect {VAULT} --url {url} --ca-file {}",
            ca.display()
        ));
    }

    fn create_set(keeper: &Keeper, secret: &Path) -> String {
        let endpoint = format!("https://localhost:{}/msi/token", keeper.address.port());
        format!(
            "disk-encryption-set create {SET} --key-url {} --identity-endpoint {endpoint} \
             --identity-header-file {}",
            keeper.key_url(),
            secret.display()
        )
    }

    /// Connected, with a set that is granted its key, and the disk under it.
    pub(super) fn under_the_key_of(keeper: &Keeper) -> Self {
        let host = Self::new();
        host.connect(keeper);
        host.run(&Self::create_set(keeper, &keeper.secret()));
        keeper.grant();
        host.run(&format!("disk update disk --disk-encryption-set {SET}"));
        host
    }

    fn command(&self, line: &str) -> Command {
        self.disk
            .command(&line.split_whitespace().collect::<Vec<_>>())
    }

    pub(super) fn run(&self, line: &str) -> Vec<u8> {
        expect_success(&mut self.command(line)).stdout
    }

    pub(super) fn json(&self, line: &str) -> Value {
        serde_json::from_slice(&self.run(&format!("{line} -o json"))).unwrap()
    }

    fn refused(&self, code: &str, line: &str) -> String {
        let output = self.command(&format!("{line} -o json")).output().unwrap();
        assert!(!output.status.success(), "{line}: {output:?}");
        let error: Value =
            serde_json::from_slice(&output.stderr).unwrap_or_else(|_| panic!("{line}: {output:?}"));
        assert_eq!(error["code"], code, "{line}: {error}");
        error["message"].as_str().unwrap().to_owned()
    }

    pub(super) fn attach(&self) -> Daemon {
        self.disk.attach(&AttachOptions {
            arguments: GUARDED,
            ..AttachOptions::default()
        })
    }

    pub(super) fn key_access(&self) -> Value {
        self.json("disk show disk")["keyAccess"].take()
    }
}

/// Waits until the disk is served, or is not any more.
pub(super) fn wait_served(queue: &mut Queue, served: bool) {
    let end = Instant::now() + PATIENCE;
    while queue.read(0, 512).is_ok() != served {
        assert!(Instant::now() < end, "served does not become {served}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn the_workflow_over_https_with_each_steps_refusal() {
    let mut keeper = Keeper::new();
    let host = DiskHost::new();
    let create = DiskHost::create_set(&keeper, &keeper.secret());
    let message = host.refused("VaultNotFound", &create);
    assert!(
        message.contains(&format!("--url {}", keeper.url())),
        "{message}"
    );
    host.connect(&keeper);
    let vaults = host.json("keyvault list");
    let far = vaults
        .as_array()
        .unwrap()
        .iter()
        .find(|v| v["name"] == VAULT)
        .unwrap();
    assert_eq!(far["properties"]["kind"], "Https");
    let message = host.refused(
        "OperationNotAllowed",
        &format!("keyvault key list --vault-name {VAULT}"),
    );
    assert!(message.contains(&keeper.url()), "{message}");

    // A secret that is not the identity's, or that others can read.
    let wrong = keeper.state.path().join("wrong");
    super::server::private_file(&wrong, "wrong");
    host.refused("Unauthorized", &DiskHost::create_set(&keeper, &wrong));
    std::fs::set_permissions(&wrong, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let message = host.refused("BadParameter", &DiskHost::create_set(&keeper, &wrong));
    assert!(message.contains("chmod 600"), "{message}");

    let set = host.json(&create);
    assert_eq!(set["identity"]["principalId"], keeper.identity().as_str());
    let disk = format!("disk create new --size 1MiB --disk-encryption-set {SET}");
    let message = host.refused("Forbidden", &disk);
    let grant = message
        .split('`')
        .nth(1)
        .unwrap()
        .strip_prefix("sealdisk ")
        .unwrap();
    assert!(message.contains("'get'"), "{message}");
    keeper.run(grant);
    host.run(&disk);
    let url = host.json("disk show new")["encryption"]["keyUrl"].take();
    assert!(
        url.as_str().unwrap().starts_with(&keeper.key_url()),
        "{url}"
    );
    host.run("disk decrypt new --output-file /dev/null");

    keeper.enable(false);
    let message = host.refused("KeyDisabled", "disk decrypt new --output-file /dev/null");
    let help = message
        .split('`')
        .nth(1)
        .unwrap()
        .strip_prefix("sealdisk ")
        .unwrap();
    keeper.run(help);
    host.run("disk decrypt new --output-file /dev/null");
    let message = host.refused("VaultInUse", &format!("keyvault disconnect {VAULT}"));
    assert!(message.contains(SET), "{message}");

    keeper.stop();
    host.refused(
        "VaultUnreachable",
        "disk decrypt new --output-file /dev/null",
    );
    keeper.serve();
    host.run("disk delete new --yes");
    host.run(&format!("disk-encryption-set delete {SET} --yes"));
    host.run(&format!("keyvault disconnect {VAULT}"));
}

#[test]
fn who_decides_about_an_attached_disk_is_the_vault_far_away() {
    let mut keeper = Keeper::new();
    let host = DiskHost::under_the_key_of(&keeper);
    let daemon = host.attach();
    let mut frontend = daemon.connect();
    let queue = &mut frontend.queues[0];
    queue.write(0, &[7; 512]).unwrap();

    for _ in 0..2 {
        keeper.enable(false);
        wait_served(queue, false);
        keeper.enable(true);
        wait_served(queue, true);
    }
    keeper.run(&format!(
        "keyvault delete-policy {VAULT} --object-id {}",
        keeper.identity()
    ));
    wait_served(queue, false);
    keeper.grant();
    wait_served(queue, true);

    // A vault that does not answer has not refused.
    keeper.stop();
    let end = Instant::now() + PATIENCE;
    while host.key_access()["state"] == "Active" {
        assert!(Instant::now() < end, "{}", host.key_access());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(queue.read(0, 512), Ok(vec![7; 512]));
    keeper.serve();
    while host.key_access()["state"] != "Active" {
        assert!(Instant::now() < end, "{}", host.key_access());
        std::thread::sleep(Duration::from_millis(50));
    }

    // A new version is followed while the disk is attached.
    let version = keeper.create_key();
    host.run(&format!(
        "disk-encryption-set update {SET} --enable-auto-key-rotation true"
    ));
    let url = host.json("disk show disk")["encryption"]["keyUrl"].take();
    assert_eq!(
        url.as_str().unwrap(),
        format!("{}/{version}", keeper.key_url())
    );
    queue.write(0, &[8; 512]).unwrap();

    keeper.run("identity delete host --yes");
    wait_served(queue, false);
    let access = host.key_access();
    assert_eq!(access["reason"]["code"], "Unauthorized", "{access}");
}

#[test]
fn no_key_is_left_in_the_process_that_asked_for_it_over_https() {
    if !may_read_memory() {
        return;
    }
    let keeper = Keeper::new();
    let host = DiskHost::under_the_key_of(&keeper);
    let dek = {
        let installation = Installation::open(host.disk.state_dir()).unwrap();
        let disk = disks::Disk::find(&installation, "disk").unwrap();
        let header = disk.header_file().unwrap().read().unwrap();
        let (_, dek) = disk.unlock(&installation, header).unwrap();
        dek.expose().to_vec()
    };
    let needles = needles(&dek);
    let daemon = host.attach();
    let mut frontend = daemon.connect();
    let queue = &mut frontend.queues[0];
    queue.write(0, &[7; 512]).unwrap();
    let found = search(daemon.data_plane(), &needles);
    assert!(!found.is_empty(), "the search finds nothing");
    // After several checks too, each of which unwraps the DEK.
    std::thread::sleep(Duration::from_secs(3));
    let found = search(daemon.pid(), &needles);
    assert!(found.is_empty(), "in the attach process: {found:#?}");
    keeper.enable(false);
    wait_served(queue, false);
    for pid in [daemon.pid(), daemon.data_plane()] {
        let found = search(pid, &needles);
        assert!(found.is_empty(), "{found:#?}");
    }
}
