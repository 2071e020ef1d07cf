//! An attached disk whose vault, or whose identity's endpoint, has a gateway in front of it that
//! answers instead: that decides nothing, and only their own refusals take the key away.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use test_support::PATIENCE;
use time::OffsetDateTime;

use super::identity::{challenge, token};
use super::served::{DiskHost, wait_served};
use super::server::{Reply, Request, SECRET, Server, azure_error, private_file};

const VERSION: &str = "0123456789abcdef0123456789abcdef";
const ENDPOINT: &str = "/msi/token";

/// What is answered instead of the vault's and the endpoint's good answers.
#[derive(Clone, Debug)]
enum Answers {
    Good,
    OfVault(Reply),
    OfEndpoint(Reply),
}

fn reply(status: u16, body: &Value) -> Reply {
    super::server::json(status, body.to_string())
}

/// "Wraps" by writing a length before the secret and filling up, as no vault should.
fn wrapped(secret: &[u8]) -> Vec<u8> {
    let mut bytes = vec![u8::try_from(secret.len()).unwrap()];
    bytes.extend_from_slice(secret);
    bytes.resize(256, 0);
    bytes
}

fn unwrapped(bytes: &[u8]) -> &[u8] {
    &bytes[1..][..usize::from(bytes[0])]
}

fn of_vault(request: &Request) -> Reply {
    if request.token().is_none() {
        return challenge();
    }
    let host = request.header("host").unwrap();
    let kid = format!("https://{host}/keys/k/{VERSION}");
    let value = || {
        let body: Value = serde_json::from_slice(&request.body).unwrap();
        URL_SAFE_NO_PAD
            .decode(body["value"].as_str().unwrap())
            .unwrap()
    };
    let answer = |value: &[u8]| {
        reply(
            200,
            &json!({"kid": kid, "value": URL_SAFE_NO_PAD.encode(value)}),
        )
    };
    match request.path.rsplit('/').next() {
        Some("wrapkey") => answer(&wrapped(&value())),
        Some("unwrapkey") => answer(unwrapped(&value())),
        _ => reply(
            200,
            &json!({
                "key": {"kid": kid, "kty": "RSA", "e": "AQAB", "key_ops": ["wrapKey", "unwrapKey"],
                        "n": URL_SAFE_NO_PAD.encode([0xff; 256])},
                "attributes": {"enabled": true, "created": 1_700_000_000, "updated": 1_700_000_000},
            }),
        ),
    }
}

/// A token that lives so shortly that it is used for one call.
fn of_endpoint(request: &Request) -> Reply {
    assert_eq!(request.header("x-identity-header"), Some(SECRET));
    let expires = OffsetDateTime::now_utc().unix_timestamp() + 30;
    reply(
        200,
        &json!({"access_token": token(1), "expires_on": expires.to_string(),
                "token_type": "Bearer", "resource": "https://vault.localhost"}),
    )
}

#[test]
fn a_gateways_answers_destroy_no_key_and_refusals_do() {
    let answers = Arc::new(Mutex::new(Answers::Good));
    let server = {
        let answers = answers.clone();
        Server::new(move |request| {
            let answers = answers.lock().unwrap().clone();
            match (request.path == ENDPOINT, answers) {
                (true, Answers::OfEndpoint(reply)) | (false, Answers::OfVault(reply)) => reply,
                (true, _) => of_endpoint(request),
                (false, _) => of_vault(request),
            }
        })
    };
    let host = DiskHost::new();
    let file = |name: &str, content: &str| {
        let path = host.state().join(name);
        private_file(&path, content);
        path
    };
    let (ca, secret) = (file("ca.pem", server.ca()), file("secret", SECRET));
    let (url, port) = (
        server.url(),
        server.url().rsplit_once(':').unwrap().1.to_owned(),
    );
    host.ok(&format!(
        "keyvault connect far --url {url} --ca-file {}",
        ca.display()
    ));
    host.ok(&format!(
        "disk-encryption-set create set --key-url {url}/keys/k --identity-endpoint \
         https://localhost:{port}{ENDPOINT} --identity-header-file {}",
        secret.display()
    ));
    host.ok("disk update disk --disk-encryption-set set");
    let daemon = host.attach();
    let mut frontend = daemon.connect();
    let queue = &mut frontend.queues[0];
    queue.write(0, &[7; 512]).unwrap();

    let set = |next: Answers| *answers.lock().unwrap() = next;
    let wait_state = |wanted: &str| {
        let end = Instant::now() + PATIENCE;
        while host.key_access()["state"] != wanted {
            assert!(Instant::now() < end, "no {wanted}: {}", host.key_access());
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    let firewall = azure_error(403, "Forbidden", "ForbiddenByFirewall");
    let no_route = reply(
        404,
        &json!({"error": {"code": "NotFound", "message": "no Route matched"}}),
    );
    let log_in = reply(
        401,
        &json!({"error": {"code": "Unauthorized", "message": "log in"}}),
    );
    for answer in [
        Answers::OfVault(firewall),
        Answers::OfEndpoint(no_route),
        Answers::OfEndpoint(log_in),
    ] {
        set(answer.clone());
        wait_state("KeyUnreachable");
        assert_eq!(queue.read(0, 512), Ok(vec![7; 512]), "{answer:?}");
        let access = host.key_access();
        assert_eq!(access["dek"], "Held", "{answer:?}: {access}");
        assert_eq!(access["reason"]["code"], "VaultUnreachable", "{access}");
        set(Answers::Good);
        wait_state("Active");
    }
    let gone = json!({"error": "invalid_request", "error_description": "Identity not found"});
    for (answer, code) in [
        (
            Answers::OfVault(azure_error(403, "Forbidden", "ForbiddenByRbac")),
            "Forbidden",
        ),
        (Answers::OfEndpoint(reply(400, &gone)), "Unauthorized"),
    ] {
        set(answer.clone());
        wait_served(queue, false);
        let access = host.key_access();
        assert_eq!(access["reason"]["code"], code, "{answer:?}: {access}");
        set(Answers::Good);
        wait_served(queue, true);
        assert_eq!(queue.read(0, 512), Ok(vec![7; 512]));
    }
}
