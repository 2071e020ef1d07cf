//! A guest on a disk that Azure's own command line has made, and whose key it takes away.

use std::path::Path;
use std::process::Command;

use test_support::{Host, Server, expect_success, text};

use crate::images;
use crate::qemu::{Disk, Firmware, Machine};

const TESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests");

/// Azure's command line, on a host whose management API is served.
struct Azure {
    host: Host,
    served: Server,
    program: String,
    client_id: String,
    secret: String,
}

impl Azure {
    fn new() -> Self {
        let installed =
            expect_success(Command::new(format!("{TESTS}/vaults/azure/sdks.sh")).arg("az"));
        let venv = String::from_utf8(installed.stdout).expect("a path");
        let host = Host::that_attaches();
        let admin = host.json("identity create admin");
        host.ok("role assignment create --assignee admin --role Owner");
        let served = Server::start(host.command("serve --listen 127.0.0.1:0 -o json"));
        let field = |name: &str| admin[name].as_str().expect("an identity").to_owned();
        Self {
            program: format!("{}/bin/az", venv.trim_end()),
            client_id: field("clientId"),
            secret: field("secret"),
            host,
            served,
        }
    }

    /// Has az do a step of `azure.sh`.
    fn does(&self, step: &str) {
        let port = self.served.address.port();
        let tenant = self.served.ready["tenantId"].as_str().expect("a tenant");
        let mut command = Command::new("bash");
        command
            .args([&format!("{TESTS}/vm/azure.sh"), step])
            .env("AZ", &self.program)
            .env("AZURE_CONFIG_DIR", self.host.path("azure"))
            .env("PYTHONPATH", format!("{TESTS}/vaults/management/resolve"))
            .env("REQUESTS_CA_BUNDLE", &self.served.ca_file)
            .env("BASE", format!("https://localhost:{port}"))
            .env("TENANT", tenant)
            .env("CLIENT_ID", &self.client_id)
            .env("SECRET", &self.secret);
        expect_success(&mut command);
    }

    /// A disk with the content of an image, which the command line makes.
    fn import(&self, name: &str, image: &Path) {
        self.host
            .ok(&["disk", "create", name, "--source", text(image)]);
    }
}

/// The guest reads its disk until that fails, and goes on when it can.
const READ_UNTIL_IT_FAILS: &str = "
set -e
reads() { dd if=/dev/vda of=/dev/null bs=64k count=1 skip=$1 iflag=direct status=none 2>/dev/null; }
echo SEALDISK-STEP reading
n=0
while reads $((n % 256)); do
    n=$((n + 1))
    echo \"success $n\"
    usleep 20000
done
echo SEALDISK-STEP failed
[ $n -gt 10 ]
until reads 0; do usleep 50000; done
echo SEALDISK-STEP resumed
";

#[test]
#[ignore = "installs Azure's command line: scripts/test --full"]
fn a_guest_boots_from_a_disk_of_az_until_az_disables_the_key() {
    let azure = Azure::new();
    azure.import("golden", &images::bootable_disk());
    azure.does("make");
    let daemon = azure
        .host
        .attach_with("bootable", &["--key-check-interval", "1s"]);
    let mut guest = Machine::new(Firmware::SeaBios, READ_UNTIL_IT_FAILS)
        .disk(Disk::vhost_user(daemon.socket()))
        .start();
    let up = guest.wait_for("SEALDISK-UP ");
    assert!(up.contains("root=/dev/vda3"), "{up}");
    guest.wait_for("success 20");
    azure.does("disable");
    guest.wait_for("SEALDISK-STEP failed");
    let access = azure.host.json("disk show bootable")["keyAccess"].take();
    assert_eq!(
        (&access["state"], &access["reason"]["code"]),
        (&"KeyRevoked".into(), &"KeyDisabled".into()),
        "{access}"
    );
    azure.does("enable");
    guest.wait_for("SEALDISK-STEP resumed");
    guest.finish();
    daemon.stop();
}
