//! Whether a key version can be disabled, where another installation has disks under it.

use serde_json::Value;

use super::served::{DiskHost, KEY, Keeper, SET, VAULT};

impl Keeper {
    fn what_if(&self, version: &str) -> Value {
        self.json(&format!(
            "keyvault key what-if --disable {KEY} --vault-name {VAULT} --version {version}"
        ))
    }
}

#[test]
fn who_keeps_the_vault_knows_by_its_log_who_else_needs_a_key_version() {
    let keeper = Keeper::new();
    let host = DiskHost::under_the_key_of(&keeper);
    let url = host.json("disk show disk")["encryption"]["keyUrl"].take();
    let old = url.as_str().unwrap().rsplit('/').next().unwrap().to_owned();
    let new = keeper.create_key();
    let daemon = host.attach();

    // Nothing of this is in the installation that keeps the vault.
    let effect = keeper.what_if(&old);
    assert_eq!(effect["resources"], serde_json::json!([]));
    assert_eq!(effect["safeToDisable"], "no", "{effect}");
    let reason = effect["reasons"][0].as_str().unwrap();
    assert!(reason.contains("the identity 'host' used it"), "{reason}");
    let text = keeper.ok(&format!(
        "keyvault key what-if --disable {KEY} --vault-name {VAULT} --version {old}"
    ));
    assert!(!String::from_utf8_lossy(&text).contains("nothing would stop"));
    // A version that nobody has used yet.
    let effect = keeper.what_if(&new);
    assert_eq!(effect["safeToDisable"], "yes", "{effect}");
    assert_eq!(effect["reasons"], serde_json::json!([]));

    // The other installation knows its own disks, and not who else uses the vault.
    let usage = host.json(&format!("disk-encryption-set show-usage {SET}"));
    assert_eq!(usage[0]["safeToDisable"], "no", "{usage}");
    host.ok(&format!(
        "disk-encryption-set update {SET} --enable-auto-key-rotation true"
    ));
    let usage = host.json(&format!("disk-encryption-set show-usage {SET}"));
    let of_old = usage.as_array().unwrap().iter();
    let mut of_old = of_old.filter(|usage| usage["keyUrl"].as_str().unwrap().ends_with(&old));
    let of_old = of_old.next().unwrap();
    assert_eq!(of_old["safeToDisable"], "unknown", "{usage}");
    let reason = of_old["reasons"][0].as_str().unwrap();
    assert!(reason.contains("is a remote vault"), "{reason}");
    // A moment ago it was still used, and headers elsewhere may name it for ever.
    assert_ne!(keeper.what_if(&old)["safeToDisable"], "yes");
    drop(daemon);
}
