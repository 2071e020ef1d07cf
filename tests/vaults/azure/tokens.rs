//! Who gets a token, and what a token is worth.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use test_support::{Host, Server};

use super::client::{Answer, Client, Connection, plain, plain_as, token};
use super::served::{host_with_vault, user};

/// The installation's own signing key, as somebody has it who stole it.
struct Signer {
    kid: String,
    pkcs8: Vec<u8>,
}

impl Signer {
    fn of(host: &Host) -> Self {
        let mut files = std::fs::read_dir(host.state().join("tokens")).unwrap();
        let path: PathBuf = files.next().unwrap().unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        Self {
            kid: name.split_once('-').unwrap().1.into(),
            pkcs8: std::fs::read(&path).unwrap(),
        }
    }

    fn header(&self, algorithm: Algorithm) -> Header {
        Header {
            kid: Some(self.kid.clone()),
            ..Header::new(algorithm)
        }
    }

    fn sign(&self, claims: &Value) -> String {
        let key = EncodingKey::from_ec_der(&self.pkcs8);
        encode(&self.header(Algorithm::ES256), claims, &key).unwrap()
    }
}

fn claims_of(token: &str) -> Value {
    let claims = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap()
}

fn with(claims: &Value, change: &Value) -> Value {
    let mut claims = claims.clone();
    for (name, value) in change.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims
}

fn use_token(served: &Server, token: &str) -> Answer {
    let mut connection = Connection::open(served).unwrap();
    let host = served.host_of("myvault");
    connection.ask(&host, token, "GET /keys", None).unwrap()
}

#[test]
fn only_a_genuine_token_that_is_valid_now_opens_the_vault() {
    let (host, alice) = host_with_vault();
    let served = host.serve("");
    let genuine = Client::new(&served, &alice).token;
    let claims = claims_of(&genuine);
    let signer = Signer::of(&host);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    assert_eq!(use_token(&served, &genuine).status, 200);
    assert_eq!(
        use_token(&served, &signer.sign(&claims)).status,
        200,
        "the test signs well"
    );
    // A clock that is off by a little.
    let skewed = with(&claims, &json!({"nbf": now + 15, "exp": now + 60}));
    assert_eq!(use_token(&served, &signer.sign(&skewed)).status, 200);
    let skewed = with(&claims, &json!({"exp": now - 10}));
    assert_eq!(use_token(&served, &signer.sign(&skewed)).status, 200);

    let forger =
        EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new());
    let forger = Signer {
        kid: signer.kid.clone(),
        pkcs8: forger.unwrap().as_ref().to_vec(),
    };
    let public = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &signer.pkcs8).unwrap();
    let public_as_secret = EncodingKey::from_secret(public.public_key().as_ref());
    let header = signer.header(Algorithm::HS256);
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let none = json!({"alg": "none", "typ": "JWT", "kid": signer.kid});
    let mut cut = genuine.clone();
    cut.truncate(genuine.len() - 10);
    for (what, token) in [
        (
            "expired",
            signer.sign(&with(&claims, &json!({"exp": now - 120}))),
        ),
        (
            "not valid yet",
            signer.sign(&with(&claims, &json!({"nbf": now + 120, "exp": now + 600}))),
        ),
        (
            "of another audience",
            signer.sign(&with(
                &claims,
                &json!({"aud": "https://management.azure.com"}),
            )),
        ),
        (
            "of another issuer",
            signer.sign(&with(
                &claims,
                &json!({"iss": "https://sts.windows.net/x/"}),
            )),
        ),
        ("forged", forger.sign(&claims)),
        (
            "without a signature",
            format!("{}.{}.", part(&none), part(&claims)),
        ),
        (
            "signed with the public key",
            encode(&header, &claims, &public_as_secret).unwrap(),
        ),
        (
            "of nobody",
            signer.sign(&with(
                &claims,
                &json!({"oid": "00000000-0000-4000-8000-000000000000"}),
            )),
        ),
        ("cut", cut),
        ("empty", String::new()),
    ] {
        let answer = use_token(&served, &token);
        assert_eq!(
            (answer.status, answer.code()),
            (401, "Unauthorized"),
            "{what}: {answer:?}"
        );
        let challenge = answer.header("www-authenticate").unwrap();
        let resource = format!("resource=\"{}\"", served.resource());
        assert!(
            challenge.starts_with("Bearer authorization=\"https://"),
            "{challenge}"
        );
        assert!(challenge.ends_with(&resource), "{challenge}");
    }
}

#[test]
fn a_token_ends_with_its_identity() {
    let (host, alice) = host_with_vault();
    host.json("keyvault key create k --vault-name myvault --size 2048");
    let set = host
        .json("disk-encryption-set create set --key-url https://myvault.vault.localhost/keys/k");
    let id = set["identity"]["principalId"].as_str().unwrap();
    host.json(&format!(
        "keyvault set-policy myvault --object-id {id} --key-permissions get list"
    ));
    let secret = host.json("identity secret --disk-encryption-set set");
    assert_eq!(secret["principalId"], id);
    let secret = secret["secret"].as_str().unwrap();
    let served = host.serve("");
    let client = Client::new(&served, &alice);
    let of_set = token(&served, secret, &served.resource()).body["access_token"].clone();
    let of_set = of_set.as_str().unwrap();
    assert_eq!(claims_of(of_set)["oid"], id);
    assert_eq!(use_token(&served, of_set).status, 200);
    // The grant is looked up each time.
    host.json(&format!("keyvault delete-policy myvault --object-id {id}"));
    assert_eq!(use_token(&served, of_set).status, 403);

    host.json("disk-encryption-set delete set --yes");
    assert_eq!(use_token(&served, of_set).status, 401);
    assert_eq!(token(&served, secret, &served.resource()).status, 401);
    assert_eq!(
        client.ask("GET /keys", None).status,
        200,
        "another identity goes on"
    );
    host.json("identity delete alice --yes");
    assert_eq!(client.ask("GET /keys", None).status, 401);
    assert_eq!(
        token(&served, &alice.secret, &served.resource()).status,
        401
    );
}

#[test]
fn a_replaced_secret_is_worth_nothing() {
    let (host, alice) = host_with_vault();
    let served = host.serve("");
    let newer = host.json("identity reset-secret alice");
    let newer = newer["secret"].as_str().unwrap();
    let resource = served.resource();
    for wrong in [alice.secret.as_str(), "x", "", &newer[..newer.len() - 1]] {
        let answer = token(&served, wrong, &resource);
        assert_eq!(answer.status, 401, "{wrong}: {answer:?}");
        assert!(answer.body.get("access_token").is_none());
    }
    assert_eq!(token(&served, newer, &resource).status, 200);
    let foreign = token(&served, newer, "https://management.azure.com");
    assert_eq!(
        (foreign.status, &foreign.body["error"]),
        (400, &json!("invalid_resource"))
    );
}

#[test]
fn imds_gives_tokens_of_its_identities_to_who_asks_itself() {
    let (host, alice) = host_with_vault();
    let bob = user(&host, "bob");
    let carol = user(&host, "carol");
    let served = host.serve("--imds-listen 127.0.0.1:0 --imds-identity alice bob");
    let url = served.ready["imdsEndpoint"].as_str().unwrap();
    let path = |more: &str| {
        format!(
            "/metadata/identity/oauth2/token?api-version=2018-02-01&resource={}{more}",
            served.resource()
        )
    };
    let of_bob = path(&format!("&client_id={}", bob.client_id));
    let (status, body) = plain(url, &of_bob, "Metadata: true\r\n");
    assert_eq!(status, 200, "{body}");
    assert_eq!(
        claims_of(body["access_token"].as_str().unwrap())["oid"],
        bob.object_id
    );
    for field in ["expires_in", "expires_on", "token_type", "resource"] {
        assert!(body[field].is_string(), "{field} in {body}");
    }
    let by_object = path(&format!("&object_id={}", alice.object_id));
    assert_eq!(plain(url, &by_object, "Metadata: true\r\n").0, 200);
    for (what, path, headers) in [
        ("no header", of_bob.as_str(), ""),
        ("another value", &of_bob, "Metadata: false\r\n"),
        (
            "a proxy",
            &of_bob,
            "Metadata: true\r\nX-Forwarded-For: 10.0.0.1\r\n",
        ),
        ("no choice", &path(""), "Metadata: true\r\n"),
        (
            "an identity of elsewhere",
            &path(&format!("&client_id={}", carol.client_id)),
            "Metadata: true\r\n",
        ),
        (
            "another path's",
            "/metadata/instance?api-version=2018-02-01",
            "Metadata: true\r\n",
        ),
        ("a vault's", "/keys?api-version=7.4", "Metadata: true\r\n"),
    ] {
        let (status, body) = plain(url, path, headers);
        assert!(matches!(status, 400 | 404), "{what}: {status} {body}");
        assert!(body.get("access_token").is_none(), "{what}: {body}");
    }
    host.json("identity delete bob --yes");
    assert_eq!(plain(url, &of_bob, "Metadata: true\r\n").0, 400);
}

/// Asks for a token at `url` with this `Host`; the status and whether there is a token in the answer.
fn ask_as(url: &str, path: &str, host: &str, headers: &str) -> (u16, Value) {
    plain_as(url, path, host, &format!("Metadata: true\r\n{headers}"))
}

#[test]
fn a_page_whose_name_means_this_host_gets_no_token() {
    let (host, alice) = host_with_vault();
    let served =
        host.serve("--imds-listen 127.0.0.1:0 --imds-identity alice --identity-listen 127.0.0.1:0");
    let resource = served.resource();
    let imds =
        format!("/metadata/identity/oauth2/token?api-version=2018-02-01&resource={resource}");
    let endpoint = format!("/msi/token?api-version=2019-08-01&resource={resource}");
    let secret = format!("X-IDENTITY-HEADER: {}\r\n", alice.secret);
    for (url, path, headers) in [
        (&served.ready["imdsEndpoint"], &imds, ""),
        (
            &served.ready["localIdentityEndpoint"],
            &endpoint,
            secret.as_str(),
        ),
    ] {
        let url = url.as_str().unwrap();
        let port = url.split('/').nth(2).unwrap().rsplit_once(':').unwrap().1;
        for own in [format!("127.0.0.1:{port}"), format!("localhost:{port}")] {
            let (status, body) = ask_as(url, path, &own, headers);
            assert_eq!(status, 200, "{own}: {body}");
        }
        for foreign in [
            format!("rebind.evil.example:{port}"),
            "rebind.evil.example".into(),
            format!("10.0.2.2:{port}"),
            format!("127.0.0.1.evil.example:{port}"),
        ] {
            let (status, body) = ask_as(url, path, &foreign, headers);
            assert_eq!(status, 421, "{foreign}: {body}");
            assert!(body.get("access_token").is_none(), "{foreign}: {body}");
            assert_eq!(body["error"], "misdirected_request");
            // Whatever is asked.
            assert_eq!(ask_as(url, "/adfs/oauth2/token", &foreign, headers).0, 421);
        }
    }
}

#[test]
fn only_processes_of_named_users_get_tokens() {
    let (host, alice) = host_with_vault();
    let own = rustix::process::geteuid().as_raw();
    let path = |served: &Server| {
        let resource = served.resource();
        format!("/metadata/identity/oauth2/token?api-version=2018-02-01&resource={resource}")
    };
    let listen = "--imds-listen 127.0.0.1:0 --imds-identity alice --identity-listen 127.0.0.1:0";
    for (allowed, status) in [
        (String::new(), 200),
        (format!("--allow-user {own}"), 200),
        (format!("--allow-user {} {own}", own + 1), 200),
        (format!("--allow-user {}", own + 1), 403),
        (format!("--allow-uid {}", own + 1), 403),
    ] {
        let served = host.serve(&format!("{listen} {allowed}"));
        let url = served.ready["imdsEndpoint"].as_str().unwrap();
        let (found, body) = plain(url, &path(&served), "Metadata: true\r\n");
        assert_eq!(found, status, "{allowed}: {body}");
        let url = served.ready["localIdentityEndpoint"].as_str().unwrap();
        let endpoint = format!(
            "/msi/token?api-version=2019-08-01&resource={}",
            served.resource()
        );
        let secret = format!("X-IDENTITY-HEADER: {}\r\n", alice.secret);
        let (found, body) = plain(url, &endpoint, &secret);
        assert_eq!(found, status, "{allowed}: {body}");
        if status == 403 {
            let why = body["error_description"].as_str().unwrap();
            assert!(why.contains(&format!("uid {own}")), "{why}");
            assert!(why.contains("--allow-user"), "{why}");
        }
    }
    let unknown = format!("keyvault serve {listen} --allow-user no-such-user");
    assert_eq!(host.run(&unknown).status.code(), Some(2));

    // As another user, for whom the test has to be root.
    if own != 0 {
        return;
    }
    let served = host.serve(listen);
    let address = served.ready["imdsEndpoint"].as_str().unwrap()["http://".len()..].to_owned();
    let (ip, port) = address.split_once(':').unwrap();
    let script = format!(
        "exec 3<>/dev/tcp/{ip}/{port}; printf 'GET {} HTTP/1.1\\r\\nHost: {address}\\r\\n\
         Metadata: true\\r\\nConnection: close\\r\\n\\r\\n' >&3; cat <&3",
        path(&served)
    );
    for (uid, status) in [(0, "200"), (65_534, "403")] {
        let mut command = Command::new("bash");
        command.args(["-c", &script]).uid(uid).current_dir("/");
        let answer = command.output().unwrap();
        let text = String::from_utf8_lossy(&answer.stdout);
        assert_eq!(
            text.split(' ').nth(1),
            Some(status),
            "uid {uid}: {answer:?}"
        );
        assert_eq!(text.contains("access_token"), uid == 0, "{text}");
    }
}

#[test]
fn tokens_in_the_clear_are_for_this_host_alone() {
    let (host, _) = host_with_vault();
    for options in [
        "--imds-listen 0.0.0.0:0 --imds-identity alice",
        "--identity-listen [::]:0",
        "--imds-listen 127.0.0.1:0",
        "--imds-identity alice",
    ] {
        let output = host.run(&format!("keyvault serve --listen 127.0.0.1:0 {options}"));
        assert_eq!(output.status.code(), Some(2), "{options}: {output:?}");
    }
    let options = "--imds-listen 127.0.0.1:0 --imds-identity nobody";
    let output = host.run(&format!("keyvault serve --listen 127.0.0.1:0 {options}"));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}
