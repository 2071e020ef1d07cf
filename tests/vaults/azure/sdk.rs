//! Azure's SDKs for Python and JavaScript against a real server, with managed identities of both
//! flavours.

use std::path::{Path, PathBuf};
use std::process::Command;

use test_support::{Host, Server};

use super::served::{User, grant, host_with_vault};

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vaults/azure");

struct Fixture {
    _host: Host,
    served: Server,
    user: User,
}

impl Fixture {
    fn new() -> Self {
        let (host, user) = host_with_vault();
        host.json("keyvault create protected --enable-purge-protection");
        grant(&host, "protected", &user, "all");
        host.json("keyvault create foreign");
        let served = host
            .serve("--identity-listen 127.0.0.1:0 --imds-listen 127.0.0.1:0 --imds-identity alice");
        Self {
            _host: host,
            served,
            user,
        }
    }

    /// Runs a script that asks for tokens as an app on App Service does, at one of the two places.
    fn run_with_identity_endpoint(&self, endpoint: &str, program: &Path, script: &Path) {
        let mut command = self.command(program, script);
        command
            .env("IDENTITY_ENDPOINT", self.endpoint(endpoint))
            .env("IDENTITY_HEADER", &self.user.secret);
        check(command, endpoint);
    }

    /// Runs a script that asks for tokens as an app on a virtual machine does.
    fn run_with_imds(&self, program: &Path, script: &Path) {
        let mut command = self.command(program, script);
        command.env(
            "AZURE_POD_IDENTITY_AUTHORITY_HOST",
            self.endpoint("imdsEndpoint"),
        );
        check(command, "IMDS");
    }

    fn endpoint(&self, name: &str) -> &str {
        self.served.ready[name].as_str().unwrap()
    }

    fn command(&self, program: &Path, script: &Path) -> Command {
        let url = |vault: &str| format!("https://{}", self.served.host_of(vault));
        let mut command = Command::new(program);
        command
            .arg(script)
            .env("TEST_VAULT_URL", url("myvault"))
            .env("TEST_PROTECTED_VAULT_URL", url("protected"))
            .env("TEST_FOREIGN_VAULT_URL", url("foreign"))
            .env("REQUESTS_CA_BUNDLE", &self.served.ca_file)
            .env("NODE_EXTRA_CA_CERTS", &self.served.ca_file)
            .env("NO_PROXY", "*");
        for name in [
            "IDENTITY_ENDPOINT",
            "IDENTITY_HEADER",
            "MSI_ENDPOINT",
            "HTTPS_PROXY",
            "HTTP_PROXY",
        ] {
            command.env_remove(name);
        }
        command
    }
}

fn check(mut command: Command, flavour: &str) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?} with {flavour}: {}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Where the SDKs of a language are installed, or `az`.
pub fn sdks(language: &str) -> PathBuf {
    let output = Command::new(format!("{SCRIPTS}/sdks.sh"))
        .arg(language)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "sdks.sh {language}: {stderr}");
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim_end())
}

/// A copy of a script where its modules are: they are looked for from where the script is.
pub fn beside_modules(dir: &Path, script: &Path) -> PathBuf {
    let copy = dir.join("workflow.mjs");
    let staging = tempfile::NamedTempFile::new_in(dir).unwrap();
    std::fs::copy(script, staging.path()).unwrap();
    staging.persist(&copy).unwrap();
    copy
}

fn python() -> PathBuf {
    sdks("python").join("bin/python")
}

fn script(name: &str) -> PathBuf {
    Path::new(SCRIPTS).join(name)
}

#[test]
fn python_does_everything_by_identity_endpoint() {
    let fixture = Fixture::new();
    fixture.run_with_identity_endpoint("identityEndpoint", &python(), &script("workflow.py"));
}

#[test]
fn python_does_everything_by_imds() {
    let fixture = Fixture::new();
    fixture.run_with_imds(&python(), &script("workflow.py"));
}

#[test]
fn python_is_told_every_refusal() {
    let fixture = Fixture::new();
    fixture.run_with_identity_endpoint("localIdentityEndpoint", &python(), &script("refusals.py"));
}

#[test]
fn javascript_does_everything_by_both_flavours() {
    if Command::new("node").arg("--version").output().is_err() {
        eprintln!("skipped: node is not installed");
        return;
    }
    let dir = sdks("js");
    let copy = beside_modules(&dir, &script("js/workflow.mjs"));
    let fixture = Fixture::new();
    fixture.run_with_identity_endpoint("localIdentityEndpoint", Path::new("node"), &copy);
    Fixture::new().run_with_imds(Path::new("node"), &copy);
}
