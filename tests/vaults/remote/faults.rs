//! Each fault of a vault over HTTPS, and each of its refusals.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use keys::LockedBytes;
use vault::remote::{ManagedIdentity, RemoteVault, TokenCache};
use vault::{Caller, KeyId, KeyVault, VaultError, VaultErrorCode, Verdict, WrapAlgorithm};

use super::identity::{Issuer, OBJECT_ID, challenge, token};
use super::server::{HOST, Reply, Request, Server, azure_error, json};

const VERSION: &str = "0123456789abcdef0123456789abcdef";
const KEYS: &str = "/keys/k";

fn key() -> KeyId {
    KeyId {
        name: "k".into(),
        version: Some(VERSION.into()),
    }
}

fn unwrap(vault: &RemoteVault) -> Result<LockedBytes, VaultError> {
    let caller = Caller::local(OBJECT_ID);
    vault.unwrap_key(&caller, &key(), WrapAlgorithm::RsaOaep256, &[1; 256])
}

/// What is wrong, and its code.
fn refused(vault: &RemoteVault) -> (VaultErrorCode, String) {
    let error = unwrap(vault).err().unwrap();
    assert!(!error.message.contains('\n'), "{error}");
    (error.code, error.message)
}

/// The good answer to a request about the key.
fn answer(request: &Request) -> Reply {
    let kid = format!("https://{HOST}/keys/k/{VERSION}");
    if request.path.ends_with("unwrapkey") {
        let value = URL_SAFE_NO_PAD.encode([7; 64]);
        return json(200, format!(r#"{{"kid":"{kid}","value":"{value}"}}"#));
    }
    let bundle = serde_json::json!({
        "key": {"kid": kid, "kty": "RSA", "n": "AQAB", "e": "AQAB", "key_ops": ["unwrapKey"]},
        "attributes": {"enabled": true, "created": 1_700_000_000, "updated": 1_700_000_000},
    });
    json(200, bundle.to_string())
}

/// A vault that accepts the newest token and answers requests with it by `script`.
fn server(
    issuer: &Arc<Issuer>,
    script: impl Fn(&Request) -> Reply + Send + Sync + 'static,
) -> Server {
    let issuer = issuer.clone();
    Server::new(move |request| {
        if request.path == "/msi/token" {
            return issuer.reply(request);
        }
        match request.token() {
            Some(shown) if shown == token(issuer.issued()) => script(request),
            _ => challenge(),
        }
    })
}

/// As [`server`], for one test that needs no issuer of its own.
fn answering(script: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Server {
    server(&Arc::default(), script)
}

fn unwraps(server: &Server) -> usize {
    let operations = server.seen(KEYS);
    let with_token = operations
        .iter()
        .filter(|r| r.path.ends_with("unwrapkey") && r.token().is_some());
    with_token.count()
}

#[test]
fn a_token_is_asked_for_once_and_no_connection_outlives_a_call() {
    let issuer = Arc::new(Issuer::default());
    let server = server(&issuer, answer);
    let tokens = TokenCache::default();
    let vault = server.vault(&tokens);
    for _ in 0..2 {
        assert_eq!(unwrap(&vault).unwrap().as_slice(), [7; 64]);
        assert_eq!(server.open_connections(), 0);
    }
    // Another command of the same process knows the token too.
    let again = server.vault(&tokens);
    let (id, bundle) = again.introduce(&key()).unwrap();
    assert_eq!(id, OBJECT_ID);
    assert_eq!(
        bundle.unwrap().key.kid,
        format!("https://{HOST}/keys/k/{VERSION}")
    );
    assert_eq!(issuer.issued(), 1);
    // Nothing about the operation is shown before the vault has the token.
    for request in server.seen(KEYS).iter().filter(|r| r.token().is_none()) {
        assert!(request.body.is_empty(), "{request:?}");
    }
    assert!(
        server
            .seen(KEYS)
            .iter()
            .all(|r| r.query.contains("api-version="))
    );
}

#[test]
fn a_token_that_is_not_accepted_any_more_is_replaced_once() {
    let issuer = Arc::new(Issuer::default());
    let server = server(&issuer, answer);
    let vault = server.vault(&TokenCache::default());
    unwrap(&vault).unwrap();
    // Somebody else was issued a token: the vault accepts only the newest.
    let other = server.vault(&TokenCache::default());
    unwrap(&other).unwrap();
    assert_eq!(issuer.issued(), 2);
    assert_eq!(unwrap(&vault).unwrap().as_slice(), [7; 64]);
    assert_eq!(issuer.issued(), 3);
    // The same when the next call comes from a new client that has the old token.
    let tokens = TokenCache::default();
    unwrap(&server.vault(&tokens)).unwrap();
    unwrap(&server.vault(&TokenCache::default())).unwrap();
    assert_eq!(unwrap(&server.vault(&tokens)).unwrap().as_slice(), [7; 64]);
    assert_eq!(issuer.issued(), 6);
}

#[test]
fn an_identity_that_is_deleted_while_it_has_a_token_is_refused() {
    let deleted = Arc::new(AtomicBool::new(false));
    let issuer = Arc::new(Issuer::default());
    let server = {
        let (deleted, issuer) = (deleted.clone(), issuer.clone());
        Server::new(move |request| {
            let gone = deleted.load(Ordering::SeqCst);
            match request.path.as_str() {
                "/msi/token" if gone => json(
                    400,
                    r#"{"error":"invalid_request","error_description":"identity not found"}"#,
                ),
                "/msi/token" => issuer.reply(request),
                _ if request.token().is_none() || gone => challenge(),
                _ => answer(request),
            }
        })
    };
    let tokens = TokenCache::default();
    unwrap(&server.vault(&tokens)).unwrap();
    deleted.store(true, Ordering::SeqCst);
    let (found, message) = refused(&server.vault(&tokens));
    assert_eq!(found, VaultErrorCode::Unauthorized, "{message}");
    assert!(message.contains("identity not found"), "{message}");
}

/// What an endpoint answers, and whether that is its refusal in OAuth's words.
const ENDPOINT_ANSWERS: [(u16, &str, bool); 18] = [
    (
        400,
        r#"{"error":"invalid_request","error_description":"identity not found"}"#,
        true,
    ),
    (
        400,
        r#"{"error":"unauthorized_client","error_description":"identity not found"}"#,
        true,
    ),
    (401, r#"{"error":"invalid_client"}"#, true),
    (401, r#"{"error":"access_denied"}"#, true),
    // A gateway, or an endpoint that is being updated (Azure's own 404 and 410).
    (401, "{}", false),
    (401, r#"{"message":"No API key found in request"}"#, false),
    (
        401,
        r#"{"error":{"code":"Unauthorized","message":"no"}}"#,
        false,
    ),
    (401, r#"{"error":"invalid_token"}"#, false),
    (403, r#"{"statusCode":403}"#, false),
    (403, r#"{"error":"access_denied"}"#, false),
    (
        404,
        r#"{"error":{"code":"NotFound","message":"no such path"}}"#,
        false,
    ),
    (404, r#"{"error":"invalid_request"}"#, false),
    (410, r#"{"error":"invalid_request"}"#, false),
    (403, "<html>proxy</html>", false),
    (429, "", false),
    (500, r#"{"error":"invalid_client"}"#, false),
    (200, "{}", false),
    (200, "<html>", false),
];

#[test]
fn only_an_endpoints_own_refusal_refuses_the_identity() {
    let tried = |status, body: &'static str, refuses: bool| {
        let server = Server::new(move |request| match request.path.as_str() {
            "/msi/token" => json(status, body),
            _ => challenge(),
        });
        let vault = server.vault(&TokenCache::default());
        let (found, message) = refused(&vault);
        let asked = server.seen("/msi/token").len();
        if refuses {
            assert_eq!(found, VaultErrorCode::Unauthorized, "{status} {message}");
            assert_eq!(asked, 1, "a refusal is not asked again");
        } else {
            assert_eq!(found, VaultErrorCode::Unreachable, "{status} {message}");
            assert_eq!(asked, 3, "{status}");
        }
        if body.contains("not found") {
            assert!(message.contains("identity not found"), "{message}");
        }
        assert!(message.contains("/msi/token"), "{message}");
    };
    std::thread::scope(|scope| {
        for (status, body, refuses) in ENDPOINT_ANSWERS {
            scope.spawn(move || tried(status, body, refuses));
        }
    });
}

#[test]
fn refusals_of_the_vault_are_told_apart_and_not_repeated() {
    use VaultErrorCode as Code;
    for (status, code, inner, expected) in [
        (403, "Forbidden", "AccessDenied", Code::Forbidden),
        (403, "Forbidden", "ForbiddenByPolicy", Code::Forbidden),
        (403, "Forbidden", "ForbiddenByRbac", Code::Forbidden),
        (403, "Forbidden", "KeyDisabled", Code::KeyDisabled),
        (403, "Forbidden", "KeyExpired", Code::KeyExpired),
        (403, "Forbidden", "KeyNotYetValid", Code::KeyNotYetValid),
        (
            403,
            "Forbidden",
            "KeyOperationForbidden",
            Code::KeyOperationForbidden,
        ),
        (403, "Forbidden", "VaultDeleted", Code::VaultDeleted),
        (404, "KeyNotFound", "", Code::KeyNotFound),
        (
            409,
            "Conflict",
            "ObjectIsDeletedButRecoverable",
            Code::KeyDeleted,
        ),
        (409, "Conflict", "ObjectIsBeingDeleted", Code::KeyDeleted),
    ] {
        let server = answering(move |request| match request.path.ends_with("unwrapkey") {
            true => azure_error(status, code, inner),
            false => answer(request),
        });
        let vault = server.vault(&TokenCache::default());
        let (found, message) = refused(&vault);
        assert_eq!(found, expected, "{message}");
        assert_eq!(found.verdict(), Verdict::Refused);
        assert_eq!(unwraps(&server), 1, "{code} {inner}");
        if expected == Code::KeyDisabled {
            let enable = format!("--version {VERSION} --enabled true`");
            assert!(message.contains(&enable), "{message}");
        }
        if expected == Code::Forbidden {
            let grant = format!(
                "'unwrapKey' in the key vault {}; grant it with `sealdisk keyvault set-policy \
                 myvault --object-id {OBJECT_ID} --key-permissions get wrapKey unwrapKey`",
                server.url()
            );
            assert!(message.contains(&grant), "{message}");
        }
    }
    // A token that was just issued is not accepted.
    let server = answering(|request| match request.path.ends_with("unwrapkey") {
        true => challenge(),
        false => answer(request),
    });
    let found = refused(&server.vault(&TokenCache::default())).0;
    assert_eq!(found, Code::Unauthorized);
    assert_eq!(found.verdict(), Verdict::Refused);
    // Wrapped bytes that are wrong are no decision about the key.
    let server = answering(|request| match request.path.ends_with("unwrapkey") {
        true => azure_error(400, "BadParameter", ""),
        false => answer(request),
    });
    let vault = server.vault(&TokenCache::default());
    assert_eq!(refused(&vault).0, Code::UnwrapFailed);
}

#[test]
fn an_expired_or_disabled_key_is_not_even_asked_to_unwrap() {
    use VaultErrorCode as Code;
    for (attributes, expected) in [
        (r#"{"enabled":true,"exp":1700000000}"#, Code::KeyExpired),
        (r#"{"enabled":true,"nbf":4102444800}"#, Code::KeyNotYetValid),
        (r#"{"enabled":false}"#, Code::KeyDisabled),
    ] {
        let server = answering(move |request| match request.method.as_str() {
            "GET" => json(
                200,
                format!(r#"{{"key":{{"kid":"x"}},"attributes":{attributes}}}"#),
            ),
            _ => answer(request),
        });
        let vault = server.vault(&TokenCache::default());
        assert_eq!(refused(&vault).0, expected);
        assert_eq!(unwraps(&server), 0);
    }
    // Who may not see the attributes is told by the vault alone.
    let server = answering(|request| match request.method.as_str() {
        "GET" => azure_error(403, "Forbidden", "AccessDenied"),
        _ => answer(request),
    });
    let vault = server.vault(&TokenCache::default());
    assert_eq!(unwrap(&vault).unwrap().as_slice(), [7; 64]);
}

#[test]
fn what_decides_nothing_is_tried_three_times() {
    let huge = "x".repeat(2 << 20);
    let truncated = Reply::Raw(
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{\"val"
            .to_vec(),
    );
    let faults = [
        (json(503, ""), "HTTP 503"),
        (
            json(
                500,
                r#"{"error":{"code":"InternalServerError","message":"oops"}}"#,
            ),
            "oops",
        ),
        (json(429, ""), "HTTP 429"),
        (
            json(403, "<html>proxy</html>"),
            "not in the words of a key vault",
        ),
        // Where it was asked from, not who may.
        (
            azure_error(403, "Forbidden", "ForbiddenByFirewall"),
            "HTTP 403 Forbidden, ForbiddenByFirewall: made up",
        ),
        (azure_error(403, "Forbidden", "ForbiddenByConnection"), ""),
        // Gateways that speak JSON.
        (azure_error(401, "Unauthorized", ""), "HTTP 401"),
        (azure_error(403, "AuthorizationFailed", ""), "HTTP 403"),
        (azure_error(404, "NotFound", ""), "HTTP 404"),
        (json(404, r#"{"message":"no Route matched"}"#), "HTTP 404"),
        (
            Reply::Answer(
                401,
                vec![("www-authenticate", "Basic realm=\"proxy\"".into())],
                r#"{"error":{"code":"Unauthorized","message":"log in"}}"#.into(),
            ),
            "Basic realm",
        ),
        (json(302, ""), "HTTP 302"),
        (Reply::Reset, ""),
        (Reply::Raw(b"garbage\r\n\r\n".to_vec()), ""),
        (truncated, ""),
        (json(200, huge), "more than"),
    ];
    let tried = |fault: Reply, why: &str| {
        let shown = fault.clone();
        let server = answering(move |request| match request.path.ends_with("unwrapkey") {
            true => fault.clone(),
            false => answer(request),
        });
        let vault = server.vault(&TokenCache::default());
        let (found, message) = refused(&vault);
        assert_eq!(found, VaultErrorCode::Unreachable, "{message}");
        assert_eq!(found.verdict(), Verdict::Unknown);
        assert!(message.contains(why) && message.len() < 1000, "{message}");
        assert_eq!(unwraps(&server), 3, "{shown:.100?}");
        assert_eq!(server.open_connections(), 0);
    };
    std::thread::scope(|scope| {
        for (fault, why) in faults {
            scope.spawn(move || tried(fault, why));
        }
    });
}

#[test]
fn an_answer_without_sense_is_no_secret() {
    for body in [
        "",
        "[]",
        "{\"value\":\"!\"}",
        "{\"kid\":\"x\"}",
        "{\"value\":\"AA\\u0041\"}",
    ] {
        let server = answering(move |request| match request.path.ends_with("unwrapkey") {
            true => json(200, body),
            false => answer(request),
        });
        let vault = server.vault(&TokenCache::default());
        let (found, message) = refused(&vault);
        assert_eq!(found, VaultErrorCode::Unreachable, "{body}: {message}");
    }
}

#[test]
fn a_passing_fault_is_not_noticed() {
    for fault in [json(503, ""), Reply::Reset, throttled("1")] {
        let failures = AtomicUsize::new(0);
        let server = answering(move |request| {
            let fails =
                request.path.ends_with("unwrapkey") && failures.fetch_add(1, Ordering::SeqCst) == 0;
            match fails {
                true => fault.clone(),
                false => answer(request),
            }
        });
        let vault = server.vault(&TokenCache::default());
        let begin = Instant::now();
        assert_eq!(unwrap(&vault).unwrap().as_slice(), [7; 64]);
        assert!(begin.elapsed() >= Duration::from_millis(250), "it waited");
        assert_eq!(unwraps(&server), 2);
    }
}

fn throttled(seconds: &str) -> Reply {
    Reply::Answer(429, vec![("retry-after", seconds.into())], String::new())
}

#[test]
fn who_is_asked_to_wait_for_an_hour_does_not() {
    let server = answering(|_| throttled("3600"));
    let vault = server.vault(&TokenCache::default());
    let begin = Instant::now();
    assert_eq!(refused(&vault).0, VaultErrorCode::Unreachable);
    assert!(begin.elapsed() < Duration::from_secs(10));
    assert_eq!(
        server
            .seen(KEYS)
            .iter()
            .filter(|r| r.token().is_some())
            .count(),
        1
    );
}

#[test]
fn a_vault_or_endpoint_that_hangs_is_given_up() {
    std::thread::scope(|scope| {
        let hangs = |server: Server, whom: &'static str| {
            scope.spawn(move || {
                let vault = server.vault(&TokenCache::default());
                let begin = Instant::now();
                let (found, message) = refused(&vault);
                assert_eq!(found, VaultErrorCode::Unreachable, "{message}");
                assert!(message.contains(whom), "{message}");
                // 10 s for an attempt, and none follows it.
                assert!(
                    begin.elapsed() < Duration::from_secs(19),
                    "{:?}",
                    begin.elapsed()
                );
            });
        };
        hangs(answering(|_| Reply::Hang), "(it did not answer");
        let endpoint = Server::new(|request| match request.path.as_str() {
            "/msi/token" => Reply::Hang,
            _ => challenge(),
        });
        hangs(endpoint, "endpoint did not answer");
    });
}

#[test]
fn nobody_is_trusted_but_who_has_the_right_certificate() {
    let good = answering(answer);
    let other = answering(answer);
    let wrong_name = Server::with_certificate_for("other.vault.localhost", |_| json(200, ""));
    let dir = tempfile::tempdir().unwrap();
    for (server, ca) in [(&good, other.ca()), (&wrong_name, wrong_name.ca())] {
        let vault = server.vault_with_ca(ca, &TokenCache::default());
        let (found, message) = refused(&vault);
        assert_eq!(found, VaultErrorCode::Unreachable, "{message}");
        assert!(message.contains("certificate"), "{message}");
        assert!(server.seen("/").is_empty());
    }
    // Nor is one that the system does not know.
    let secret = dir.path().join("secret");
    super::server::private_file(&secret, "s");
    let identity = ManagedIdentity::endpoint("https://localhost:1/x", secret, None).unwrap();
    let vault = RemoteVault::new(&good.url(), None, identity, &TokenCache::default()).unwrap();
    let (found, message) = refused(&vault);
    assert_eq!(found, VaultErrorCode::Unreachable, "{message}");
    assert!(message.contains("certificate"), "{message}");
    assert!(good.seen("/").is_empty());
}

#[test]
fn a_vault_that_is_not_there_is_unreachable() {
    let url = {
        let gone = answering(answer);
        gone.url()
    };
    let identity = ManagedIdentity::Imds { client_id: None };
    let vault = RemoteVault::new(&url, None, identity, &TokenCache::default()).unwrap();
    let begin = Instant::now();
    let (found, message) = refused(&vault);
    assert_eq!(found, VaultErrorCode::Unreachable, "{message}");
    assert!(message.contains(&url), "{message}");
    assert!(begin.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_challenge_for_another_vault_gets_no_token() {
    let issuer = Arc::new(Issuer::default());
    let server = {
        let issuer = issuer.clone();
        Server::new(move |request| match request.path.as_str() {
            "/msi/token" => issuer.reply(request),
            _ => {
                let header =
                    "Bearer authorization=\"https://x/\", resource=\"https://vault.azure.net\"";
                Reply::Answer(
                    401,
                    vec![("www-authenticate", header.into())],
                    String::new(),
                )
            }
        })
    };
    let vault = server.vault(&TokenCache::default());
    let (found, message) = refused(&vault);
    assert_eq!(found, VaultErrorCode::Unreachable, "{message}");
    assert_eq!(issuer.issued(), 0);
}
