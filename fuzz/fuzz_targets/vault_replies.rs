//! What a vault over HTTPS, whoever issues tokens, and what stands between may answer.
#![no_main]

use arbitrary::Arbitrary;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use libfuzzer_sys::fuzz_target;
use sealdisk_fuzz::{Edit, edited};
use serde_json::Value;
use vault::remote::answers;
use vault::{KeyUrl, Verdict};

const KEY: &[u8] = br#"{"key":{"kid":"https://v.vault.azure.net/keys/k/0123456789abcdef0123456789abcdef","kty":"RSA","key_ops":["wrapKey","unwrapKey"],"n":"uZkT2w","e":"AQAB"},"attributes":{"enabled":true,"nbf":1700000000,"exp":2000000000,"created":1690000000,"updated":1690000001,"recoveryLevel":"Recoverable","recoverableDays":90},"tags":{"a":"b"}}"#;
const REFUSED: &[u8] = br#"{"error":{"code":"Forbidden","message":"Operation unwrapKey is not allowed on a disabled key.","innererror":{"code":"KeyDisabled","innererror":{"code":"AccessDenied"}}}}"#;
const CHALLENGE: &str = "Bearer authorization=\"https://login.microsoftonline.com/T\", resource=\"https://vault.azure.net\"";
const KEY_URL: &[u8] = b"https://v.vault.azure.net/keys/k/0123456789abcdef0123456789abcdef";
const UNWRAPPED: &[u8] =
    br#"{"kid":"https://v.vault.azure.net/keys/k/1","value":"AAECAwQFBgcICQ"}"#;
const TOKEN: &[u8] = br#"{"access_token":"e30.eyJvaWQiOiIwMDAwMDAwMC0wMDAwLTAwMDAtMDAwMC0wMDAwMDAwMDAwMDEifQ.c2ln","expires_on":"2000000000","expires_in":"3599","resource":"https://vault.azure.net","token_type":"Bearer"}"#;
const NO_TOKEN: &[u8] =
    br#"{"error":"invalid_request","error_description":"Identity not found","message":"m"}"#;
const STATUSES: [u16; 12] = [200, 302, 400, 401, 403, 404, 407, 409, 410, 429, 500, 503];

#[derive(Debug, Arbitrary)]
enum Body {
    Raw(Vec<u8>),
    Edited(Vec<Edit>),
}

#[derive(Debug, Arbitrary)]
enum Input {
    Key(Body),
    Refusal {
        status: u8,
        body: Body,
        challenge: Option<(Vec<Edit>, bool)>,
        unwraps: bool,
    },
    Unwrapped(Body),
    Token(Body),
    NoToken {
        status: u8,
        body: Body,
    },
    ObjectId(String),
    KeyUrl(Vec<Edit>),
}

impl Body {
    fn bytes(&self, valid: &[u8]) -> Vec<u8> {
        match self {
            Self::Raw(bytes) => bytes.clone(),
            Self::Edited(edits) => edited(valid, edits),
        }
    }
}

/// Fit for a message on one line.
fn is_one_line(text: &str) -> bool {
    !text.contains(char::is_control)
}

/// A field of a body that is an object through and through.
fn field(body: &[u8], name: &str) -> Option<Value> {
    let body: Value = serde_json::from_slice(body).ok()?;
    Some(body.as_object()?.get(name).cloned().unwrap_or_default())
}

fn check(input: Input) {
    let status = |number: u8| STATUSES[usize::from(number) % STATUSES.len()];
    match input {
        Input::Key(body) => match answers::key(&body.bytes(KEY)) {
            Ok(bundle) => {
                let kid = &bundle.key.kid;
                assert!(kid.bytes().all(|b| b.is_ascii_graphic()), "{kid:?}");
                assert!(kid.parse::<KeyUrl>().is_ok(), "{kid:?}");
            }
            Err(why) => assert!(is_one_line(&why), "{why:?}"),
        },
        Input::Refusal {
            status: number,
            body,
            challenge,
            unwraps,
        } => {
            let (number, body) = (status(number), body.bytes(REFUSED));
            let challenge = challenge.map(|(edits, whole)| match whole {
                true => CHALLENGE.into(),
                false => {
                    String::from_utf8_lossy(&edited(CHALLENGE.as_bytes(), &edits)).into_owned()
                }
            });
            let (code, text) = answers::refusal(number, &body, challenge.as_deref(), unwraps);
            assert!(is_one_line(&text), "{text:?}");
            if code.verdict() == Verdict::Refused {
                // A proxy in between can say the rest.
                let says = serde_json::from_slice::<Value>(&body);
                let in_words = says.is_ok_and(|body| body["error"]["code"].is_string());
                match number {
                    401 => assert!(challenge.is_some()),
                    403 | 404 | 409 => assert!(in_words),
                    _ => panic!("{number} is taken for a refusal: {text}"),
                }
            }
        }
        Input::Unwrapped(body) => {
            let body = body.bytes(UNWRAPPED);
            if let Some(secret) = answers::secret(&body) {
                let value = field(&body, "value").map(|value| value.as_str().unwrap().to_owned());
                let decoded = value.map(|value| URL_SAFE_NO_PAD.decode(value).unwrap());
                assert!(decoded.is_none_or(|decoded| decoded == secret.as_slice()));
            }
        }
        Input::Token(body) => {
            let body = body.bytes(TOKEN);
            if let (Some(token), Some(value)) =
                (answers::token(&body), field(&body, "access_token"))
            {
                assert_eq!(value, token);
            }
        }
        Input::NoToken {
            status: number,
            body,
        } => {
            let (number, body) = (status(number), body.bytes(NO_TOKEN));
            let (refused, text) = answers::token_refusal(number, &body);
            assert!(is_one_line(&text), "{text:?}");
            if refused {
                assert!(number == 400 || number == 401);
                assert!(field(&body, "error").is_none_or(|error| error.is_string()));
            }
        }
        Input::ObjectId(token) => {
            let _ = answers::object_id(&token);
        }
        Input::KeyUrl(edits) => {
            let text = String::from_utf8_lossy(&edited(KEY_URL, &edits)).into_owned();
            if let Ok(url) = text.parse::<KeyUrl>() {
                let text = url.to_string();
                assert!(text.bytes().all(|b| b.is_ascii_graphic()), "{text:?}");
                assert_eq!(text.parse::<KeyUrl>().unwrap(), url);
            }
        }
    }
}

fuzz_target!(|input: Input| check(input));
