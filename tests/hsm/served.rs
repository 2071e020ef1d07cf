//! A vault in a token that is served over HTTPS, by many threads of one process.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use serde_json::Value;

use crate::token::{Customer, KEY, VAULT};

struct Serving {
    child: Child,
    port: u64,
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn serve(customer: &Customer) -> Serving {
    let mut command = customer.command("keyvault serve --listen 127.0.0.1:0 -o json");
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let stdout = child.stdout.take().unwrap();
    BufReader::new(stdout).read_line(&mut line).unwrap();
    let view: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line:?}"));
    let listen = view["listen"].as_str().unwrap();
    let port = listen.rsplit(':').next().unwrap().parse().unwrap();
    Serving { child, port }
}

#[test]
fn a_vault_in_a_token_is_served_to_many_at_once() {
    let customer = Customer::new();
    customer.create_key();
    let serving = serve(&customer);
    let state = customer.disk.state_dir().display().to_string();
    let (port, secret) = (serving.port, format!("{state}/host.secret"));
    customer.run(&format!("identity create host --secret-file {secret}"));
    let identity = customer.json("identity show host");
    customer.grant(identity["principalId"].as_str().unwrap());
    // The same installation is its own client here, by the vault's other URL.
    let url = format!("https://{VAULT}.vault.localhost:{port}");
    customer.run(&format!(
        "keyvault connect far --url {url} --ca-file {state}/tls/ca.pem"
    ));
    customer.run(&format!(
        "disk-encryption-set create far --key-url {url}/keys/{KEY} --identity-header-file {secret} \
         --identity-endpoint https://localhost:{port}/msi/token"
    ));
    customer.run("disk update disk --disk-encryption-set far");
    assert!(customer.wrapping_key().starts_with(&url));
    for n in 0..6 {
        customer.run(&format!(
            "disk create d{n} --size 1MiB --disk-encryption-set far"
        ));
    }
    std::thread::scope(|scope| {
        for n in 0..6 {
            let customer = &customer;
            scope.spawn(move || {
                for _ in 0..3 {
                    customer.run(&format!("disk decrypt d{n} --output-file /dev/null"));
                }
            });
        }
    });
    // The client says for which disk it asks, and the log has it as its claim.
    let log = customer.run(&format!("audit list --vault {VAULT} -o json"));
    let log = String::from_utf8(log).unwrap();
    let claims = log.lines().filter(|line| line.contains("\"disk\":\"d0\""));
    let unwraps: Vec<_> = claims.filter(|line| line.contains("KeyUnwrap")).collect();
    assert!(
        unwraps[0].contains("claimed by the client: layer "),
        "{log}"
    );
    customer.token.set_present(false);
    customer.refused(
        "VaultUnreachable",
        "disk decrypt d0 --output-file /dev/null",
    );
    customer.token.set_present(true);
    customer.run("disk decrypt d0 --output-file /dev/null");
}
