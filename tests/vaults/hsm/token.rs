//! A token of SoftHSM in a directory of its own, and a customer whose vault's keys are in it.

use std::fs;
use std::ops::Deref;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use test_support::{Customer, Disk};

pub const LABEL: &str = "test token";
pub const PIN: &str = "274655";

pub const VAULT: &str = Customer::VAULT;
pub const KEY: &str = Customer::KEY;
pub const SET: &str = Customer::SET;

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

/// A customer whose vault's keys are in a token. The disk is under the platform's key at first.
pub struct TokenOwner {
    pub token: Token,
    customer: Customer,
}

impl Deref for TokenOwner {
    type Target = Customer;

    fn deref(&self) -> &Customer {
        &self.customer
    }
}

impl TokenOwner {
    pub fn new() -> Self {
        let token = Token::new();
        let mut disk = Disk::new(8 << 20);
        disk.set_env("SOFTHSM2_CONF", token.conf().to_str().unwrap());
        let owner = Self::of(token, disk);
        owner.ok(&owner.create_vault(VAULT));
        owner
    }

    pub fn of(token: Token, disk: Disk) -> Self {
        let customer = Customer { disk };
        Self { token, customer }
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

    /// Key, set, grant, and the disk under it.
    pub fn with_disk_under_the_key(self) -> Self {
        let Self { token, customer } = self;
        let customer = customer.with_disk_under_the_key();
        Self { token, customer }
    }
}
