//! Two installations: one that keeps a vault and serves it, one that has a disk under its key.

use std::net::SocketAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use test_support::frontend::queue::Queue;
use test_support::key_search::{may_read_memory, needles, search_what_stays};
use test_support::{AttachOptions, Daemon, Disk, Host, PATIENCE, Server};

pub(crate) const VAULT: &str = "far";
pub(super) const KEY: &str = "key";
pub(super) const SET: &str = "set";
const GUARDED: &[&str] = &["--key-check-interval", "1s", "--on-revoke", "error"];

/// The installation that keeps the vault.
pub(crate) struct Keeper {
    host: Host,
    serving: Option<Server>,
    address: SocketAddr,
}

impl Deref for Keeper {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

impl Keeper {
    pub(super) fn new() -> Self {
        Self::on(Host::new())
    }

    /// On a host with nothing in it yet.
    pub(crate) fn on(host: Host) -> Self {
        let mut keeper = Self {
            host,
            serving: None,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
        };
        keeper.ok(&format!("keyvault create {VAULT}"));
        keeper.create_key();
        let secret = keeper.secret();
        keeper.ok(&format!(
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
        self.path("host.secret")
    }

    fn ca(&self) -> PathBuf {
        self.state().join("tls/ca.pem")
    }

    fn url(&self) -> String {
        format!("https://{VAULT}.vault.localhost:{}", self.address.port())
    }

    fn key_url(&self) -> String {
        format!("{}/keys/{KEY}", self.url())
    }

    /// Serves, at the same address as before.
    fn serve(&mut self) {
        let server = self.host.serve_at(self.address, "");
        self.address = server.address;
        self.serving = Some(server);
    }

    fn stop(&mut self) {
        if let Some(server) = self.serving.take() {
            server.terminate();
            server.wait();
        }
    }

    fn identity(&self) -> String {
        let identity = self.json("identity show host");
        identity["principalId"].as_str().unwrap().to_owned()
    }

    fn grant(&self) {
        let id = self.identity();
        self.ok(&format!(
            "keyvault set-policy {VAULT} --object-id {id} --key-permissions get wrapKey unwrapKey"
        ));
    }

    /// Takes back what [`Keeper::grant`] gave.
    pub(crate) fn revoke(&self) {
        let id = self.identity();
        self.ok(&format!("keyvault delete-policy {VAULT} --object-id {id}"));
    }

    pub(crate) fn enable(&self, enabled: bool) {
        self.ok(&format!(
            "keyvault key set-attributes {KEY} --vault-name {VAULT} --enabled {enabled}"
        ));
    }
}

/// The installation that has the disk, which is under its platform's key at first.
pub(crate) struct DiskHost {
    pub(crate) disk: Disk,
}

impl Deref for DiskHost {
    type Target = Disk;

    fn deref(&self) -> &Disk {
        &self.disk
    }
}

impl DiskHost {
    pub(super) fn new() -> Self {
        Self {
            disk: Disk::new(8 << 20),
        }
    }

    fn connect(&self, keeper: &Keeper) {
        let (url, ca) = (keeper.url(), keeper.ca());
        self.ok(&format!(
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
    pub(crate) fn under_the_key_of(keeper: &Keeper) -> Self {
        let host = Self::new();
        host.connect(keeper);
        host.ok(&Self::create_set(keeper, &keeper.secret()));
        keeper.grant();
        host.ok(&format!("disk update disk --disk-encryption-set {SET}"));
        host
    }

    pub(crate) fn attach(&self) -> Daemon {
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
    let message = host.refused_with("VaultNotFound", &create);
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
    let message = host.refused_with(
        "OperationNotAllowed",
        &format!("keyvault key list --vault-name {VAULT}"),
    );
    assert!(message.contains(&keeper.url()), "{message}");

    // A secret that is not the identity's, or that others can read.
    let wrong = keeper.path("wrong");
    super::server::private_file(&wrong, "wrong");
    host.refused_with("Unauthorized", &DiskHost::create_set(&keeper, &wrong));
    std::fs::set_permissions(&wrong, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let message = host.refused_with("BadParameter", &DiskHost::create_set(&keeper, &wrong));
    assert!(message.contains("chmod 600"), "{message}");

    let set = host.json(&create);
    assert_eq!(set["identity"]["principalId"], keeper.identity().as_str());
    let disk = format!("disk create new --size 1MiB --disk-encryption-set {SET}");
    let message = host.refused_with("Forbidden", &disk);
    let grant = message
        .split('`')
        .nth(1)
        .unwrap()
        .strip_prefix("sealdisk ")
        .unwrap();
    assert!(message.contains("'get'"), "{message}");
    keeper.ok(grant);
    host.ok(&disk);
    let url = host.json("disk show new")["encryption"]["keyUrl"].take();
    assert!(
        url.as_str().unwrap().starts_with(&keeper.key_url()),
        "{url}"
    );
    host.ok("disk decrypt new --output-file /dev/null");

    keeper.enable(false);
    let message = host.refused_with("KeyDisabled", "disk decrypt new --output-file /dev/null");
    let help = message
        .split('`')
        .nth(1)
        .unwrap()
        .strip_prefix("sealdisk ")
        .unwrap();
    keeper.ok(help);
    host.ok("disk decrypt new --output-file /dev/null");
    let message = host.refused_with("VaultInUse", &format!("keyvault disconnect {VAULT}"));
    assert!(message.contains(SET), "{message}");

    keeper.stop();
    host.refused_with(
        "VaultUnreachable",
        "disk decrypt new --output-file /dev/null",
    );
    keeper.serve();
    host.ok("disk delete new --yes");
    host.ok(&format!("disk-encryption-set delete {SET} --yes"));
    host.ok(&format!("keyvault disconnect {VAULT}"));
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
    keeper.revoke();
    wait_served(queue, false);
    keeper.grant();
    wait_served(queue, true);
    // A deleted vault refuses; it is not one that does not answer, whose grace period would run.
    keeper.ok(&format!("keyvault delete {VAULT} --yes"));
    wait_served(queue, false);
    let access = host.key_access();
    assert_eq!(access["reason"]["code"], "VaultDeleted", "{access}");
    keeper.ok(&format!("keyvault recover {VAULT}"));
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
    host.ok(&format!(
        "disk-encryption-set update {SET} --enable-auto-key-rotation true"
    ));
    let url = host.json("disk show disk")["encryption"]["keyUrl"].take();
    assert_eq!(
        url.as_str().unwrap(),
        format!("{}/{version}", keeper.key_url())
    );
    queue.write(0, &[8; 512]).unwrap();

    keeper.ok("identity delete host --yes");
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
        let installation = host.installation();
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
    let found = search_what_stays(daemon.data_plane(), &needles);
    assert!(!found.is_empty(), "the search finds nothing");
    // After several checks too, each of which unwraps the DEK.
    std::thread::sleep(Duration::from_secs(3));
    let found = search_what_stays(daemon.pid(), &needles);
    assert!(found.is_empty(), "in the attach process: {found:#?}");
    keeper.enable(false);
    wait_served(queue, false);
    for pid in [daemon.pid(), daemon.data_plane()] {
        let found = search_what_stays(pid, &needles);
        assert!(found.is_empty(), "{found:#?}");
    }
}
