//! A customer who has the private key needs neither the vault nor this program to get at a disk's
//! key: `openssl` unwraps it from the header, as docs and module docs lay the header out.

use std::fs;
use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::Value;
use sha2::Sha256;
use test_support::program;

fn openssl(dir: &Path, line: &str) {
    let output = Command::new("openssl")
        .args(line.split_whitespace())
        .current_dir(dir)
        .output()
        .expect("the package openssl is installed");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "openssl {line}: {stderr}");
}

fn sealdisk(dir: &Path, line: &str) -> Result<Value, String> {
    let output = Command::new(program())
        .args(line.split_whitespace())
        .args(["-o", "json"])
        .current_dir(dir)
        .env("SEALDISK_STATE_DIR", dir.join("state"))
        .env_remove("CREDENTIALS_DIRECTORY")
        .output()
        .unwrap();
    if !output.status.success() {
        return Err(String::from_utf8(output.stderr).unwrap());
    }
    Ok(serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn openssl_unwraps_the_dek_that_authenticates_the_header() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    openssl(dir, "genrsa -traditional -out 1.pem 2048");
    openssl(dir, "pkcs8 -topk8 -nocrypt -in 1.pem -out 8.pem");
    openssl(
        dir,
        "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out ec.pem",
    );
    openssl(
        dir,
        "pkcs8 -topk8 -passout pass:x -in 1.pem -out encrypted.pem",
    );
    openssl(
        dir,
        "rsa -aes256 -traditional -passout pass:x -in 1.pem -out legacy.pem",
    );

    sealdisk(dir, "keyvault create myvault").unwrap();
    let import = "keyvault key import mykey --vault-name myvault --pem-file";
    let first = sealdisk(dir, &format!("{import} 1.pem")).unwrap();
    let second = sealdisk(dir, &format!("{import} 8.pem")).unwrap();
    assert_eq!(first["key"]["n"], second["key"]["n"]);
    for (pem, why) in [
        ("encrypted.pem", "password"),
        ("legacy.pem", "password"),
        ("ec.pem", "another kind"),
    ] {
        let error = sealdisk(dir, &format!("{import} {pem}")).unwrap_err();
        assert!(error.contains(why), "{error}");
    }

    let url = "https://myvault.vault.localhost/keys/mykey";
    let set = sealdisk(
        dir,
        &format!("disk-encryption-set create s --key-url {url}"),
    )
    .unwrap();
    let id = set["identity"]["principalId"].as_str().unwrap();
    let grant = "--key-permissions get wrapKey unwrapKey";
    sealdisk(
        dir,
        &format!("keyvault set-policy myvault --object-id {id} {grant}"),
    )
    .unwrap();
    sealdisk(dir, "disk create d --size 1MiB --disk-encryption-set s").unwrap();

    let file = fs::read(dir.join("state/disks/d/header")).unwrap();
    // Both slots say the same; this is the first one.
    let header = &file[64 << 10..128 << 10];
    let length = u32::from_le_bytes(header[12..16].try_into().unwrap()) as usize;
    let payload = &header[512..512 + length];
    let json: Value = serde_json::from_slice(payload).unwrap();
    let envelope = &json["layers"][0]["envelope"];
    assert_eq!(envelope["algorithm"], "RSA-OAEP-256");
    let wrapped = envelope["wrapped"].as_str().unwrap();
    fs::write(
        dir.join("wrapped"),
        URL_SAFE_NO_PAD.decode(wrapped).unwrap(),
    )
    .unwrap();
    openssl(
        dir,
        "pkeyutl -decrypt -inkey 8.pem -in wrapped -out dek -pkeyopt rsa_padding_mode:oaep \
         -pkeyopt rsa_oaep_md:sha256 -pkeyopt rsa_mgf1_md:sha256",
    );

    let dek = fs::read(dir.join("dek")).unwrap();
    assert_eq!(dek.len(), 64);
    let mut key = [0; 64];
    Hkdf::<Sha256>::new(None, &dek)
        .expand(b"sealdisk header authentication v1", &mut key)
        .unwrap();
    Hmac::<Sha256>::new_from_slice(&key)
        .unwrap()
        .chain_update(&header[..24])
        .chain_update(payload)
        .verify_slice(&header[24..56])
        .unwrap();
}
