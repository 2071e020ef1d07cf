//! An installation with a vault, and somebody who asks it.

use std::process::Command;

use test_support::{Host, Server, program};

/// Somebody who asks a vault.
pub struct User {
    pub object_id: String,
    pub client_id: String,
    pub secret: String,
}

/// A host with the vault `myvault`, in which `alice` may do everything.
pub fn host_with_vault() -> (Host, User) {
    let host = Host::new();
    host.ok("keyvault create myvault");
    let alice = user(&host, "alice");
    grant(&host, "myvault", &alice, "all");
    (host, alice)
}

pub fn user(host: &Host, name: &str) -> User {
    let identity = host.json(&format!("identity create {name}"));
    let text = |field: &str| identity[field].as_str().unwrap().to_owned();
    User {
        object_id: text("principalId"),
        client_id: text("clientId"),
        secret: text("secret"),
    }
}

pub fn grant(host: &Host, vault: &str, user: &User, permissions: &str) {
    let id = &user.object_id;
    host.ok(&format!(
        "keyvault set-policy {vault} --object-id {id} --key-permissions {permissions}"
    ));
}

/// A server that can write no file beyond so many blocks of 512 bytes, as on a full disk.
pub fn serve_with_full_disk(host: &Host, blocks: u64) -> Server {
    let mut command = Command::new("sh");
    let line = format!(
        "trap '' XFSZ; ulimit -f {blocks}; \
         exec {} keyvault serve --listen 127.0.0.1:0 -o json",
        program().display()
    );
    command.args(["-c", &line]);
    host.prepare(&mut command);
    Server::start(command)
}
