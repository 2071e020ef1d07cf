//! The own TLS authority vouches for the server's names and for nothing else.

use std::fs;
use std::path::Path;

use test_support::Host;

use super::support::tool;

fn openssl(arguments: &[&str]) {
    let output = tool("openssl", arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
}

/// Whether a certificate for `name`, made with the authority's key, is believed by who trusts it.
fn is_believed(host: &Host, tls: &Path, name: &str) -> bool {
    let file = |name: &str| host.path(name).to_str().unwrap().to_owned();
    let authority = |name: &str| tls.join(name).to_str().unwrap().to_owned();
    let (key, request, leaf, names) = (file("key"), file("request"), file("leaf"), file("names"));
    fs::write(&names, format!("subjectAltName=DNS:{name}\n")).unwrap();
    let curve = "ec_paramgen_curve:P-256";
    openssl(&[
        "req", "-newkey", "ec", "-pkeyopt", curve, "-nodes", "-keyout", &key, "-out", &request,
        "-subj", "/CN=leaf",
    ]);
    let (ca, ca_key) = (authority("ca.pem"), authority("ca.key"));
    openssl(&[
        "x509",
        "-req",
        "-in",
        &request,
        "-CA",
        &ca,
        "-CAkey",
        &ca_key,
        "-set_serial",
        "7",
        "-extfile",
        &names,
        "-out",
        &leaf,
    ]);
    let verified = tool("openssl", &["verify", "-CAfile", &ca, &leaf]);
    let said = String::from_utf8_lossy(&verified.stderr).into_owned();
    if !verified.status.success() {
        assert!(said.contains("permitted subtree violation"), "{said}");
    }
    verified.status.success()
}

#[test]
fn the_authority_is_constrained_to_the_servers_names_and_an_old_one_gets_constraints() {
    let host = Host::new();
    let tls = host.state().join("tls");
    drop(host.serve(""));
    assert!(is_believed(&host, &tls, "myvault.vault.localhost"));
    assert!(!is_believed(&host, &tls, "www.example.net"));
    assert!(!is_believed(&host, &tls, "vault.example.net"));
    // A domain of the operator's own is added, under the same key.
    let key = fs::read(tls.join("ca.key")).unwrap();
    host.ok(&[
        "keyvault",
        "serve",
        "--print-ca",
        "--domain",
        "vault.example.net",
    ]);
    assert!(is_believed(&host, &tls, "myvault.vault.example.net"));
    assert!(!is_believed(&host, &tls, "www.example.net"));
    assert_eq!(fs::read(tls.join("ca.key")).unwrap(), key);
    // An authority from before there were constraints.
    let (pem, ca_key) = (tls.join("ca.pem"), tls.join("ca.key"));
    openssl(&[
        "req",
        "-x509",
        "-key",
        ca_key.to_str().unwrap(),
        "-days",
        "7300",
        "-subj",
        "/CN=old",
        "-out",
        pem.to_str().unwrap(),
    ]);
    let until =
        "# Certificate authority of a Sealdisk key vault, valid until 2046-01-01T00:00:00Z\n";
    let old = fs::read_to_string(&pem).unwrap();
    fs::write(&pem, format!("{until}{old}")).unwrap();
    assert!(
        is_believed(&host, &tls, "www.example.net"),
        "the old one vouches for everything"
    );
    drop(host.serve(""));
    assert!(!is_believed(&host, &tls, "www.example.net"));
    assert!(is_believed(&host, &tls, "myvault.vault.localhost"));
    assert_eq!(fs::read(tls.join("ca.key")).unwrap(), key);
}
