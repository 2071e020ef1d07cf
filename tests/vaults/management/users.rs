//! Logins of users: a name and a password, a code that the operator approves, and what renews a login.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::client::{Client, Managed};
use crate::azure::client::Answer;

const AZ: &str = "04b07795-8ddb-461a-bbee-02f9e1bf7b46";

/// What a part of a token says.
fn said(token: &Value) -> Value {
    let payload = token.as_str().unwrap().split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap()
}

impl Managed {
    /// Asks for tokens as az does.
    fn grant(&self, fields: &str) -> Answer {
        let base = self.base().replace(':', "%3A").replace('/', "%2F");
        let body = format!(
            "client_id={AZ}&client_info=1&scope={base}%2F%2F.default+offline_access+openid+profile&{fields}"
        );
        self.raw("POST", "/adfs/oauth2/v2.0/token", "", &body)
    }

    fn password(&self, user: &str, password: &str) -> Answer {
        self.grant(&format!(
            "grant_type=password&username={user}&password={password}"
        ))
    }

    fn refresh(&self, token: &Value) -> Answer {
        self.grant(&format!(
            "grant_type=refresh_token&refresh_token={}",
            token.as_str().unwrap()
        ))
    }

    fn asks(&self, token: &Value) -> Answer {
        let token = token.as_str().unwrap().into();
        let client = Client {
            managed: self,
            token,
        };
        client.ask("GET /subscriptions", None)
    }
}

fn refused(answer: &Answer) -> (u16, &str) {
    assert!(answer.body["error_description"].is_string(), "{answer:?}");
    (answer.status, answer.body["error"].as_str().unwrap())
}

#[test]
fn a_user_logs_in_with_a_password() {
    let managed = Managed::new();
    let alice = managed.user("alice");
    managed
        .host
        .ok("role assignment create --assignee alice --role Reader");
    assert_eq!(
        refused(&managed.password("alice", "")),
        (400, "invalid_request")
    );
    let early = managed.password("alice", "not-set-yet-at-all");
    assert_eq!(refused(&early), (400, "invalid_grant"));
    let set = managed.host.json("identity set-password alice");
    let (name, password) = (&set["userPrincipalName"], set["password"].as_str().unwrap());
    let answer = managed.password("alice", password);
    assert_eq!(answer.status, 200, "{answer:?}");
    let tokens = &answer.body;
    let id = said(&tokens["id_token"]);
    assert_eq!((&id["tid"], &id["upn"]), (&json!(managed.tenant()), name));
    assert_eq!(
        (&id["aud"], &id["oid"]),
        (&json!(AZ), &json!(alice.object_id))
    );
    let info = tokens["client_info"].as_str().unwrap();
    let info: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(info).unwrap()).unwrap();
    assert_eq!(
        info,
        json!({"uid": alice.object_id, "utid": managed.tenant()})
    );
    let shown = managed.asks(&tokens["access_token"]);
    assert_eq!(
        shown.body["value"][0]["tenantId"],
        managed.tenant(),
        "{shown:?}"
    );
    // By the name that the token has, too.
    let by_principal = name.as_str().unwrap().replace('@', "%40");
    assert_eq!(managed.password(&by_principal, password).status, 200);

    // What is for the client, or renews the login, is no token for the API, and the other way round.
    for token in ["id_token", "refresh_token"] {
        assert_eq!(managed.asks(&tokens[token]).status, 401, "{token}");
    }
    for token in ["id_token", "access_token"] {
        assert_eq!(
            refused(&managed.refresh(&tokens[token])),
            (400, "invalid_grant"),
            "{token}"
        );
    }
    let renewed = managed.refresh(&tokens["refresh_token"]);
    assert_eq!(renewed.status, 200, "{renewed:?}");
    assert_eq!(managed.asks(&renewed.body["access_token"]).status, 200);
    // A login ends when it would have without that.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let again = managed.refresh(&renewed.body["refresh_token"]);
    let ends = said(&tokens["refresh_token"])["exp"].clone();
    assert_eq!(said(&again.body["refresh_token"])["exp"], ends);
    assert!(again.body["refresh_token_expires_in"].as_i64().unwrap() < 12 * 3600);
    let log = managed.host.text("audit list -o json");
    assert!(
        log.contains("UserSetPassword") && log.contains("TokenIssue"),
        "{log}"
    );
    assert!(!log.contains(password));
    // Another password ends what the old one has begun.
    let file = managed.host.path("password");
    std::fs::write(&file, "a much longer password\n").unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    managed.host.ok(&format!(
        "identity set-password alice --password-file {}",
        file.display()
    ));
    assert_eq!(
        refused(&managed.refresh(&tokens["refresh_token"])),
        (400, "invalid_grant")
    );
    assert_eq!(
        refused(&managed.password("alice", password)),
        (400, "invalid_grant")
    );
    let answer = managed.password("alice", "a+much+longer+password");
    assert_eq!(answer.status, 200, "{answer:?}");
    managed.host.ok("identity delete-password alice --yes");
    assert_eq!(
        refused(&managed.refresh(&answer.body["refresh_token"])),
        (400, "invalid_grant")
    );
    // Deleted, she is nobody, whatever she has.
    managed.host.ok("identity delete alice --yes");
    assert_eq!(managed.asks(&answer.body["access_token"]).status, 401);
    assert_eq!(
        refused(&managed.refresh(&answer.body["refresh_token"])),
        (400, "invalid_grant")
    );
    std::fs::write(&file, "short").unwrap();
    managed.user("bob");
    managed.host.refused_with(
        "BadParameter",
        &format!(
            "identity set-password bob --password-file {}",
            file.display()
        ),
    );
}

#[test]
fn who_guesses_waits_whoever_that_is() {
    let managed = Managed::new();
    managed.user("alice");
    let set = managed.host.json("identity set-password alice");
    let right = set["password"].as_str().unwrap();
    for user in ["alice", "nobody"] {
        for _ in 0..5 {
            let answer = managed.password(user, "a-guess-of-twelve");
            assert!(
                answer.body["error_description"]
                    .as_str()
                    .unwrap()
                    .contains("AADSTS50126")
            );
        }
        let locked = managed.password(user, right);
        assert_eq!(refused(&locked), (400, "invalid_grant"));
        let message = locked.body["error_description"].as_str().unwrap();
        assert!(message.contains("AADSTS50053"), "{message}");
    }
    let log = managed.host.text("audit list -o json");
    assert!(log.contains("TokenRefused"), "{log}");
    // A name or a password without end is not even hashed.
    let long = "x".repeat(2000);
    assert_eq!(
        refused(&managed.password(&long, right)),
        (400, "invalid_grant")
    );
    assert_eq!(
        refused(&managed.password("bob", &long)),
        (400, "invalid_grant")
    );
}

#[test]
fn a_login_on_a_device_is_approved_by_the_operator() {
    let managed = Managed::new();
    let alice = managed.user("alice");
    let config = managed.raw("GET", "/adfs/.well-known/openid-configuration", "", "");
    let endpoint = config.body["device_authorization_endpoint"]
        .as_str()
        .unwrap();
    let path = endpoint.strip_prefix(&managed.base()).unwrap();
    let base = managed.base().replace(':', "%3A").replace('/', "%2F");
    let begin = || {
        let body = format!("client_id={AZ}&scope={base}%2F%2F.default+offline_access+openid");
        managed.raw("POST", path, "", &body).body
    };
    // For which service the tokens are to be az has said before.
    let poll_as = |client: &str, code: &str| {
        let body = format!(
            "client_id={client}&client_info=1&device_code={code}&code={code}&\
             grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Adevice_code"
        );
        managed.raw("POST", "/adfs/oauth2/v2.0/token", "", &body)
    };
    let poll = |code: &str| poll_as(AZ, code);
    let login = begin();
    let (user, device) = (&login["user_code"], login["device_code"].as_str().unwrap());
    let user = user.as_str().unwrap();
    assert!(login["message"].as_str().unwrap().contains(user), "{login}");
    assert!(login["interval"].as_u64().unwrap() > 0 && login["expires_in"].as_u64().unwrap() > 60);
    assert_eq!(refused(&poll(device)), (400, "authorization_pending"));
    // The short code is for the operator, not for a device.
    assert_eq!(refused(&poll(user)), (400, "expired_token"));
    let host = &managed.host;
    host.refused_with(
        "ResourceNotFound",
        "identity approve BBBB-BBBB --identity-name alice --yes",
    );
    host.refused_with(
        "ResourceNotFound",
        &format!("identity approve {user} --identity-name x --yes"),
    );
    host.ok(&format!(
        "identity approve {user} --identity-name alice --yes"
    ));
    host.refused_with(
        "ResourceNotFound",
        &format!("identity approve {user} --identity-name alice --yes"),
    );
    // Who has got hold of the code has begun nothing with it.
    let other = poll_as("11111111-2222-3333-4444-555555555555", device);
    assert_eq!(refused(&other), (400, "expired_token"));
    let tokens = poll(device);
    assert_eq!(tokens.status, 200, "{tokens:?}");
    assert_eq!(
        said(&tokens.body["id_token"])["oid"],
        alice.object_id.as_str()
    );
    assert_eq!(managed.asks(&tokens.body["access_token"]).status, 200);
    assert_eq!(managed.refresh(&tokens.body["refresh_token"]).status, 200);
    assert_eq!(
        refused(&poll(device)),
        (400, "expired_token"),
        "it is used once"
    );
    // A new secret ends the login.
    host.ok("identity reset-secret alice");
    assert_eq!(
        refused(&managed.refresh(&tokens.body["refresh_token"])),
        (400, "invalid_grant")
    );
    let log = host.text("audit list -o json");
    assert!(
        log.contains("DeviceLoginApprove") && log.contains("127.0.0.1"),
        "{log}"
    );
    // Nobody fills the catalog with logins that nobody approves.
    let mut last = Value::Null;
    for _ in 0..70 {
        last = begin();
    }
    assert_eq!(last["error"], "temporarily_unavailable");
}
