//! Azure's rules of names, versions of the API and hardware keys, as a client of the REST API meets them.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rsa::traits::{PrivateKeyParts, PublicKeyParts};
use serde_json::{Value, json};

use super::client::{Client, Connection};
use super::served::host_with_vault;

#[test]
fn names_of_keys_and_vaults_have_no_case() {
    let (host, alice) = host_with_vault();
    let served = host.serve("");
    let mut client = Client::new(&served, &alice);
    let kid = client.create("MyKey");
    assert!(kid.contains("/keys/MyKey/"), "{kid}");
    let second = client.create("mykey");
    assert!(second.contains("/keys/MyKey/"), "{second}");
    for (line, count) in [("GET /keys", 1), ("GET /keys/MYKEY/versions", 2)] {
        let answer = client.ask(line, None);
        assert_eq!(
            answer.body["value"].as_array().unwrap().len(),
            count,
            "{answer:?}"
        );
    }
    let version = kid.rsplit('/').next().unwrap().to_uppercase();
    let body = json!({"alg": "RSA-OAEP-256", "value": "AAEC"});
    let wrapped = client.ask(&format!("POST /keys/mykey/{version}/wrapkey"), Some(&body));
    let body = json!({"alg": "RSA-OAEP-256", "value": wrapped.body["value"]});
    let answer = client.ask(
        &format!("POST /keys/MYKEY/{version}/unwrapkey"),
        Some(&body),
    );
    assert_eq!(answer.body["value"], "AAEC", "{answer:?}");
    client.vault = served.host_of("MyVault");
    assert_eq!(client.ask("GET /keys/mykey", None).status, 200);
}

#[test]
fn previews_of_the_api_are_understood_and_other_versions_refused_as_azure_does() {
    let (host, alice) = host_with_vault();
    let served = host.serve("");
    let client = Client::new(&served, &alice);
    let ask = |version: &str| {
        let mut connection = Connection::open(&served).unwrap();
        let (host, token) = (&client.vault, &client.token);
        let request = format!(
            "GET /keys?api-version={version} HTTP/1.1\r\nHost: {host}\r\n\
             Authorization: Bearer {token}\r\n\r\n"
        );
        connection.write(request.as_bytes()).unwrap();
        connection.read().unwrap()
    };
    for version in ["7.6-preview.2", "2025-06-01-preview", "7.4", "2025-07-01"] {
        assert_eq!(ask(version).status, 200, "{version}");
    }
    for version in ["7.7", "7.6-preview.99", "2016-10-01"] {
        let answer = ask(version);
        assert_eq!(
            (answer.status, answer.code()),
            (400, "BadParameter"),
            "{answer:?}"
        );
        let message = answer.body["error"]["message"].as_str().unwrap();
        let expected = format!(
            "The specified version ({version}) is not recognized. Consider using the latest \
             supported version (2025-07-01)."
        );
        assert_eq!(message, expected);
    }
}

#[test]
fn a_key_that_is_to_be_in_hardware_does_not_become_one_of_software() {
    let (host, alice) = host_with_vault();
    let served = host.serve("");
    let client = Client::new(&served, &alice);
    let key = rsa::PrivateKey::new(&mut getrandom::SysRng, 2048).unwrap();
    let number = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let jwk = |kty: &str| {
        json!({"kty": kty, "n": number(&key.n_bytes()), "e": number(&key.e_bytes()),
               "d": number(&key.d().to_be_bytes())})
    };
    let import = |body: Value| client.ask("PUT /keys/imported", Some(&body));
    for body in [
        json!({"key": jwk("RSA"), "Hsm": true}),
        json!({"key": jwk("RSA-HSM")}),
        json!({"key": jwk("RSA-HSM"), "Hsm": false}),
    ] {
        let answer = import(body);
        assert_eq!(
            (answer.status, answer.code()),
            (400, "BadParameter"),
            "{answer:?}"
        );
        let message = answer.body["error"]["message"].as_str().unwrap();
        assert!(
            message.contains("Hardware key operation not allowed on standard vault"),
            "{message}"
        );
    }
    assert_eq!(client.ask("GET /keys/imported", None).status, 404);
    let answer = import(json!({"key": jwk("RSA"), "Hsm": false}));
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.body["key"]["kty"], "RSA");
}
