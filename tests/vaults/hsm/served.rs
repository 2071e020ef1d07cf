//! A vault in a token that is served over HTTPS, by many threads of one process.

use super::token::{KEY, TokenOwner, VAULT};

#[test]
fn a_vault_in_a_token_is_served_to_many_at_once() {
    let customer = TokenOwner::new();
    customer.create_key();
    let serving = customer.serve("");
    let state = customer.state().display().to_string();
    let (port, secret) = (serving.address.port(), format!("{state}/host.secret"));
    customer.ok(&format!("identity create host --secret-file {secret}"));
    let identity = customer.json("identity show host");
    customer.grant_to(identity["principalId"].as_str().unwrap());
    // The same installation is its own client here, by the vault's other URL.
    let url = format!("https://{VAULT}.vault.localhost:{port}");
    customer.ok(&format!(
        "keyvault connect far --url {url} --ca-file {state}/tls/ca.pem"
    ));
    customer.ok(&format!(
        "disk-encryption-set create far --key-url {url}/keys/{KEY} --identity-header-file {secret} \
         --identity-endpoint https://localhost:{port}/msi/token"
    ));
    customer.ok("disk update disk --disk-encryption-set far");
    assert!(customer.wrapping_key().starts_with(&url));
    for n in 0..6 {
        customer.ok(&format!(
            "disk create d{n} --size 1MiB --disk-encryption-set far"
        ));
    }
    std::thread::scope(|scope| {
        for n in 0..6 {
            let customer = &customer;
            scope.spawn(move || {
                for _ in 0..3 {
                    customer.ok(&format!("disk decrypt d{n} --output-file /dev/null"));
                }
            });
        }
    });
    // The client says for which disk it asks, and the log has it as its claim.
    let log = customer.text(&format!("audit list --vault {VAULT} -o json"));
    let claims = log.lines().filter(|line| line.contains("\"disk\":\"d0\""));
    let unwraps: Vec<_> = claims.filter(|line| line.contains("KeyUnwrap")).collect();
    assert!(
        unwraps[0].contains("claimed by the client: layer "),
        "{log}"
    );
    customer.token.set_present(false);
    customer.refused_with(
        "VaultUnreachable",
        "disk decrypt d0 --output-file /dev/null",
    );
    customer.token.set_present(true);
    customer.ok("disk decrypt d0 --output-file /dev/null");
}
