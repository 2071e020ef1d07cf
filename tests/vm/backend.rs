//! A customer's installation, whose key the test holds as the customer does.

use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rsa::pkcs8::{EncodePrivateKey, LineEnding};
use serde_json::Value;
use sha2::Sha256;
use test_support::{Host, PATIENCE, text};

/// One installation, with a customer's vault, key and disk encryption set.
pub struct CustomerHost {
    host: Host,
    customer_key: rsa::PrivateKey,
}

impl Deref for CustomerHost {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

impl CustomerHost {
    /// Makes the installation and, as the documented workflow has it, key, disk encryption set
    /// and policy. The key is made here and imported, so that the test holds it as a customer
    /// does.
    pub fn new() -> Self {
        let customer_key =
            rsa::PrivateKey::new(&mut getrandom::SysRng, 2048).expect("an RSA key can be made");
        let host = Self {
            host: Host::that_attaches(),
            customer_key,
        };
        let pem = host
            .customer_key
            .to_pkcs8_pem(LineEnding::LF)
            .expect("the key can be encoded");
        let pem_file = host.runtime().join("key.pem");
        fs::write(&pem_file, pem.as_bytes()).expect("a file on tmpfs");
        host.ok(&["keyvault", "create", "customer"]);
        host.ok(&[
            "keyvault",
            "key",
            "import",
            "disk-key",
            "--vault-name",
            "customer",
            "--pem-file",
            text(&pem_file),
        ]);
        fs::remove_file(&pem_file).expect("the key file can be removed");
        let set = host.json(&[
            "disk-encryption-set",
            "create",
            "customer-set",
            "--key-url",
            "https://customer.vault.localhost/keys/disk-key",
        ]);
        assert!(set["identity"]["principalId"].is_string());
        host.grant();
        host
    }

    /// Object id of the disk encryption set's identity.
    pub fn identity(&self) -> String {
        let set = self.json(&["disk-encryption-set", "show", "customer-set"]);
        set["identity"]["principalId"]
            .as_str()
            .expect("the set has an identity")
            .to_owned()
    }

    /// Lets that identity use the customer's keys.
    pub fn grant(&self) {
        self.grant_to(&self.identity());
    }

    fn grant_to(&self, identity: &str) {
        self.ok(&[
            "keyvault",
            "set-policy",
            "customer",
            "--object-id",
            identity,
            "--key-permissions",
            "get",
            "wrapKey",
            "unwrapKey",
        ]);
    }

    /// Makes a further disk encryption set, with a key of its own that has the same name.
    pub fn create_set(&self, name: &str) {
        let create = ["keyvault", "key", "create", name, "--size", "2048"];
        self.ok(&[&create[..], &["--vault-name", "customer"]].concat());
        let key = format!("https://customer.vault.localhost/keys/{name}");
        let create = ["disk-encryption-set", "create", name, "--key-url", &key];
        let set = self.json(&create);
        let identity = set["identity"]["principalId"].as_str();
        self.grant_to(identity.expect("the set has an identity"));
    }

    /// An empty disk under the customer's key, with further options of `disk create`.
    pub fn create_disk(&self, name: &str, size: &str, options: &[&str]) {
        let args = ["disk", "create", name, "--size", size];
        let set = ["--disk-encryption-set", "customer-set"];
        self.ok(&[&args[..], &set, options].concat());
    }

    /// A disk with the content of an image, under the customer's key.
    pub fn import_disk(&self, name: &str, image: &Path) {
        let args = ["disk", "create", name, "--source", text(image)];
        let set = ["--disk-encryption-set", "customer-set"];
        self.ok(&[&args[..], &set].concat());
    }

    /// The folder of a disk's header, data and map.
    pub fn disk_dir(&self, name: &str) -> PathBuf {
        self.state().join("disks").join(name)
    }

    /// The one ciphertext file of a disk.
    pub fn ciphertext(&self, name: &str) -> PathBuf {
        let dir = self.disk_dir(name);
        fs::read_dir(&dir)
            .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
            .map(|entry| entry.expect("the folder can be read").path())
            .find(|path| path.extension().is_some_and(|e| e == "data"))
            .expect("the disk has a data file")
    }

    /// What the newest copy of a disk's header says, read by docs/format.md and not by the
    /// program's own code.
    pub fn header(&self, name: &str) -> Value {
        const SLOT: usize = 64 << 10;
        let file = fs::read(self.disk_dir(name).join("header")).expect("the disk has a header");
        let number = |slot: &[u8], at: usize, length: usize| {
            slot[at..at + length]
                .iter()
                .rev()
                .fold(0, |n, byte| n << 8 | u64::from(*byte))
        };
        let slot = file
            .chunks(SLOT)
            .filter(|slot| slot.starts_with(b"SEALDISK"))
            .max_by_key(|slot| number(slot, 16, 8))
            .expect("one copy of the header is there");
        let length = usize::try_from(number(slot, 12, 4)).expect("a length");
        serde_json::from_slice(&slot[512..512 + length]).expect("the header is JSON")
    }

    /// What the header says about the disk's top layer.
    pub fn top_layer(&self, name: &str) -> Value {
        let mut header = self.header(name);
        let layers = header["layers"].as_array_mut();
        layers.and_then(Vec::pop).expect("the disk has a top layer")
    }

    /// Bytes that are encrypted under one tweak.
    pub fn data_unit(&self, name: &str) -> u64 {
        self.top_layer(name)["dataUnit"]
            .as_u64()
            .expect("the layer has a data unit")
    }

    /// The DEK of the disk's top layer, unwrapped with the customer's private key as the customer
    /// could.
    pub fn dek(&self, name: &str) -> Vec<u8> {
        let layer = self.top_layer(name);
        let wrapped = layer["envelope"]["wrapped"]
            .as_str()
            .expect("the layer has an envelope");
        let wrapped = URL_SAFE_NO_PAD.decode(wrapped).expect("base64url");
        let dek = self
            .customer_key
            .oaep_decrypt::<Sha256>(&wrapped)
            .expect("the customer's key unwraps the DEK");
        assert_eq!(dek.len(), 64);
        dek
    }

    /// A set of the customer's key whose disks are encrypted twice.
    pub fn create_set_with_double_encryption(&self, name: &str) {
        let set = self.json(&format!(
            "disk-encryption-set create {name} --key-url https://customer.vault.localhost/keys/disk-key \
             --encryption-type EncryptionAtRestWithPlatformAndCustomerKeys"
        ));
        let identity = set["identity"]["principalId"].as_str();
        self.grant_to(identity.expect("the set has an identity"));
    }

    /// The inner and the outer DEK of the top layer of a disk that is encrypted twice.
    pub fn double_dek(&self, name: &str) -> (Vec<u8>, Vec<u8>) {
        let installation = self.installation();
        let disk = disks::Disk::find(&installation, name).expect("the disk is there");
        let header = disk.header_file().and_then(|file| Ok(file.read()?));
        let header = header.expect("its header can be read");
        let (_, dek) = disk
            .unlock(&installation, header)
            .expect("both keys unwrap");
        let outer = dek.outer().expect("it is encrypted twice");
        (dek.expose().to_vec(), outer.expose().to_vec())
    }

    /// Waits until nothing is being done to the disk's layers; gives what `disk show` says then.
    pub fn wait_for_job(&self, name: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let disk = self.json(&["disk", "show", name]);
            if disk["job"].is_null() {
                return disk;
            }
            assert!(Instant::now() < deadline, "the job goes on: {disk}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}
