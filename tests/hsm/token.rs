//! A token of SoftHSM in a directory of its own, and a customer whose vault's keys are in it.

use std::fs;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::frontend::daemon::{Disk, expect_success};

pub const LABEL: &str = "test token";
pub const PIN: &str = "274655";

/// Where distributions put the library.
const MODULES: [&str; 4] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/lib/pkcs11/libsofthsm2.so",
];

pub struct Token {
    dir: TempDir,
}

impl Token {
    pub fn new() -> Self {
        let token = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        fs::create_dir(token.tokens()).unwrap();
        let conf = format!(
            "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
            token.tokens().display()
        );
        fs::write(token.conf(), conf).unwrap();
        let mut command = Command::new("softhsm2-util");
        command
            .env("SOFTHSM2_CONF", token.conf())
            .args(["--init-token", "--free", "--label", LABEL])
            .args(["--pin", PIN, "--so-pin", "12345678"]);
        let made = command.output();
        let made = made.unwrap_or_else(|e| panic!("softhsm2-util: {e}; see scripts/setup"));
        assert!(made.status.success(), "{made:?}");
        token.write_pin(PIN, 0o600);
        token
    }

    pub fn module() -> &'static Path {
        let found = MODULES.iter().map(Path::new).find(|path| path.exists());
        found.expect("libsofthsm2.so is not there; see scripts/setup")
    }

    pub fn conf(&self) -> PathBuf {
        self.dir.path().join("softhsm2.conf")
    }

    pub fn pin_file(&self) -> PathBuf {
        self.dir.path().join("pin")
    }

    fn tokens(&self) -> PathBuf {
        self.dir.path().join("tokens")
    }

    pub fn write_pin(&self, pin: &str, mode: u32) {
        use std::io::Write;
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(self.pin_file()).unwrap();
        writeln!(file, "{pin}").unwrap();
        fs::set_permissions(self.pin_file(), fs::Permissions::from_mode(mode)).unwrap();
    }

    /// The files of the token's objects.
    pub fn objects(&self) -> Vec<PathBuf> {
        let token = fs::read_dir(self.tokens())
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path();
        let files = fs::read_dir(token)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        files
            .filter(|path| path.extension().is_some_and(|e| e == "object"))
            .filter(|path| path.file_name().is_some_and(|n| n != "token.object"))
            .collect()
    }

    /// Takes the token out, or puts it back.
    pub fn set_present(&self, present: bool) {
        let away = self.dir.path().join("away");
        match present {
            true => fs::rename(away, self.tokens()).unwrap(),
            false => fs::rename(self.tokens(), away).unwrap(),
        }
    }
}

pub const VAULT: &str = "strongbox";
pub const KEY: &str = "key";
pub const SET: &str = "set";

/// An installation with an HSM-backed vault, and its disk, which is under the platform's key at
/// first.
pub struct Customer {
    pub token: Token,
    pub disk: Disk,
}

impl Customer {
    pub fn new() -> Self {
        let token = Token::new();
        let mut disk = Disk::new(8 << 20);
        disk.set_env("SOFTHSM2_CONF", token.conf().to_str().unwrap());
        let customer = Self { token, disk };
        customer.run(&customer.create_vault(VAULT));
        customer
    }

    /// The command that makes a vault in the token.
    pub fn create_vault(&self, name: &str) -> String {
        format!(
            "keyvault create {name} --hsm-module {} --hsm-token {} --hsm-pin-file {}",
            Token::module().display(),
            LABEL.replace(' ', "\u{a0}"),
            self.token.pin_file().display()
        )
    }

    pub fn create_key(&self) -> Value {
        self.json(&format!(
            "keyvault key create {KEY} --vault-name {VAULT} --size 2048"
        ))
    }

    pub fn key_url() -> String {
        format!("https://{VAULT}.vault.localhost/keys/{KEY}")
    }

    /// The words of a command line; a space within a word is written as one that does not break.
    pub fn command(&self, line: &str) -> Command {
        let words: Vec<String> = line.split(' ').map(|w| w.replace('\u{a0}', " ")).collect();
        self.disk
            .command(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Runs a command that must succeed.
    pub fn run(&self, line: &str) -> Vec<u8> {
        expect_success(&mut self.command(line)).stdout
    }

    pub fn json(&self, line: &str) -> Value {
        serde_json::from_slice(&self.run(&format!("{line} -o json"))).unwrap()
    }

    /// The message of a command that must be refused with that code.
    pub fn refused(&self, code: &str, line: &str) -> String {
        let output = self.command(&format!("{line} -o json")).output().unwrap();
        assert!(!output.status.success(), "{line}: {output:?}");
        let error: Value =
            serde_json::from_slice(&output.stderr).unwrap_or_else(|_| panic!("{line}: {output:?}"));
        assert_eq!(error["code"], code, "{line}: {error}");
        error["message"].as_str().unwrap().to_owned()
    }

    pub fn create_set(&self) -> String {
        let url = Self::key_url();
        let set = self.json(&format!("disk-encryption-set create {SET} --key-url {url}"));
        set["identity"]["principalId"].as_str().unwrap().to_owned()
    }

    pub fn grant(&self, identity: &str) {
        self.run(&format!(
            "keyvault set-policy {VAULT} --object-id {identity} --key-permissions get wrapKey unwrapKey"
        ));
    }

    /// Key, set, grant, and the disk under it.
    pub fn with_disk_under_the_key(self) -> Self {
        self.create_key();
        let identity = self.create_set();
        self.grant(&identity);
        self.use_key();
        self
    }

    pub fn use_key(&self) {
        self.run(&format!("disk update disk --disk-encryption-set {SET}"));
    }

    pub fn wrapping_key(&self) -> String {
        let disk = self.json("disk show disk");
        disk["encryption"]["keyUrl"]
            .as_str()
            .unwrap_or_else(|| panic!("{disk}"))
            .to_owned()
    }
}
