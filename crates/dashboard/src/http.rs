//! What a browser asks for, and how it is answered. Whoever is not let in is answered the same to everything, but for the
//! form to log in with.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ALLOW, AUTHORIZATION, CONTENT_SECURITY_POLICY, COOKIE, HeaderMap, HeaderName, HeaderValue,
    LOCATION, SET_COOKIE,
};
use hyper::{Method, Request, StatusCode, Uri};
use serde_json::json;
use time::OffsetDateTime;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use url::form_urlencoded;
use uuid::Uuid;
use web::{Answer, Service, answer};
use zeroize::Zeroizing;

use crate::access::{Guesses, Hosts, PAUSE, SESSION_LIFETIME, Sessions, Token};
use crate::data::{Part, Shared};
use crate::page::Pages;
use disks::des::Loss;
use installation::{Installation, Place};

const PLAIN: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// What is said to whoever is not let in, whatever they ask for.
const LOG_IN: &str = "log in\n";
/// What is said to who shows a wrong token after many others, whatever they ask for.
const TOO_MANY: &str =
    "there were too many wrong tokens, and this is another one: wait some seconds\n";
/// Bytes of a form.
const MAX_FORM: usize = 8 * 1024;
/// How long a client may take to send one.
const FORM_PATIENCE: Duration = Duration::from_secs(5);
/// Questions at once that take a moment.
const MAX_QUESTIONS: usize = 2;
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// What every answer says of itself.
const HEADERS: [(&str, &str); 7] = [
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cache-control", "no-store"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    (
        "permissions-policy",
        "camera=(), display-capture=(), geolocation=(), microphone=(), usb=()",
    ),
];
/// What an answer may do that is no page.
const NO_PAGE: &str = "default-src 'none'; frame-ancestors 'none'; sandbox";

/// What answers.
pub(crate) struct Dashboard {
    pub(crate) token: Token,
    pub(crate) hosts: Hosts,
    pub(crate) sessions: Sessions,
    pub(crate) guesses: Guesses,
    pub(crate) pages: Pages,
    pub(crate) cookie: Cookie,
    pub(crate) shared: Arc<Shared>,
    pub(crate) place: Place,
    pub(crate) questions: Arc<Semaphore>,
}

/// The cookie that has a session.
#[derive(Debug)]
pub(crate) struct Cookie {
    /// Browsers tell no ports apart: two dashboards of one host have two.
    pub(crate) name: String,
    /// Whether it is only sent over TLS.
    pub(crate) is_secure: bool,
}

impl Cookie {
    fn set(&self, value: &str, seconds: u64) -> Option<HeaderValue> {
        let Self { name, is_secure } = self;
        let secure = if *is_secure { "; Secure" } else { "" };
        let text = Zeroizing::new(format!(
            "{name}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}"
        ));
        let mut header = HeaderValue::from_str(&text).ok()?;
        header.set_sensitive(true);
        Some(header)
    }

    /// The session that a request shows.
    fn of<'a>(&self, headers: &'a HeaderMap) -> Option<&'a str> {
        let cookies = headers.get_all(COOKIE).iter();
        let cookies = cookies.filter_map(|cookies| cookies.to_str().ok());
        let mut pairs = cookies.flat_map(|cookies| cookies.split(';'));
        pairs.find_map(|pair| pair.trim().strip_prefix(&self.name)?.strip_prefix('='))
    }
}

/// For [`Dashboard::questions`].
pub(crate) fn questions() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(MAX_QUESTIONS))
}

impl Service for Dashboard {
    fn patience(&self) -> Duration {
        PATIENCE
    }

    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let mut answer = self.route(request).await;
        let headers = answer.headers_mut();
        for (name, value) in HEADERS {
            let value = HeaderValue::from_static(value);
            headers.insert(HeaderName::from_static(name), value);
        }
        let policy = headers.entry(CONTENT_SECURITY_POLICY);
        policy.or_insert(HeaderValue::from_static(NO_PAGE));
        answer
    }
}

impl Dashboard {
    async fn route(&self, request: Request<Incoming>) -> Answer {
        if !self.hosts.are_meant(&request) {
            let why = "this server has another name: docs/dashboard.md, --public-url\n";
            return said(StatusCode::MISDIRECTED_REQUEST, why);
        }
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let is_read = [Method::GET, Method::HEAD].contains(&method);
        let is_visit = is_read && path == "/";
        // A link on somebody else's page may lead here: without a session it leads to the form.
        if !is_visit && self.hosts.is_foreign(&request) {
            return said(StatusCode::FORBIDDEN, "a page of another origin asks\n");
        }
        if method == Method::POST && path == "/login" {
            return self.log_in(request).await;
        }
        match self.shown(&request).await {
            Guess::Right => {}
            Guess::TooMany => return said(StatusCode::TOO_MANY_REQUESTS, TOO_MANY),
            Guess::Wrong if is_visit => return self.form(StatusCode::OK, None),
            Guess::Wrong => return said(StatusCode::UNAUTHORIZED, LOG_IN),
        }
        match path.as_str() {
            "/logout" if method == Method::POST => self.log_out(&request),
            _ if !is_read => {
                let mut refused = said(StatusCode::METHOD_NOT_ALLOWED, "nothing can be changed\n");
                let allowed = HeaderValue::from_static("GET, HEAD");
                refused.headers_mut().insert(ALLOW, allowed);
                refused
            }
            "/" => self.pages.main.answer(StatusCode::OK),
            "/api/state" => self.state(request.uri()).await,
            "/api/live" => self.live(request.uri()).await,
            "/api/timeline" => self.timeline(request.uri()),
            "/api/what-if" => self.what_if(request.uri()).await,
            _ => said(StatusCode::NOT_FOUND, "there is nothing\n"),
        }
    }

    /// What a request shows to be let in: a session, or the token itself, as that of a script.
    async fn shown(&self, request: &Request<Incoming>) -> Guess {
        let headers = request.headers();
        let session = self.cookie.of(headers);
        if session.is_some_and(|session| self.sessions.goes_on(session)) {
            return Guess::Right;
        }
        let authorization = headers.get(AUTHORIZATION);
        let authorization = authorization.and_then(|value| value.to_str().ok());
        match authorization.and_then(bearer) {
            Some(token) => self.guess(token).await,
            None => Guess::Wrong,
        }
    }

    /// Whether it is the token. The right one is always let in: whoever sends wrong ones keeps nobody out, and is helped
    /// by nothing, since one is right by chance as seldom as the next. The answer to a wrong one takes its time.
    async fn guess(&self, token: &str) -> Guess {
        if self.token.is(token) {
            return Guess::Right;
        }
        let guess = match self.guesses.may_guess() {
            false => Guess::TooMany,
            true => {
                self.guesses.was_wrong();
                log::warn!("somebody has tried to log in with a wrong token");
                Guess::Wrong
            }
        };
        tokio::time::sleep(PAUSE).await;
        guess
    }

    async fn log_in(&self, request: Request<Incoming>) -> Answer {
        let form = Limited::new(request.into_body(), MAX_FORM).collect();
        let form = match timeout(FORM_PATIENCE, form).await {
            Ok(Ok(form)) => Zeroizing::new(form.to_bytes().to_vec()),
            Ok(Err(_)) => return said(StatusCode::PAYLOAD_TOO_LARGE, "that is no form\n"),
            Err(_) => return said(StatusCode::REQUEST_TIMEOUT, "that is too slow\n"),
        };
        let mut fields = form_urlencoded::parse(&form);
        let token = fields.find(|(name, _)| name == "token");
        let token = Zeroizing::new(token.map_or_else(String::new, |(_, token)| token.into_owned()));
        let (status, why) = match self.guess(token.trim()).await {
            Guess::Wrong => (StatusCode::UNAUTHORIZED, "That is not the token."),
            Guess::TooMany => (
                StatusCode::TOO_MANY_REQUESTS,
                "That is not the token, as others before it. Wait some seconds.",
            ),
            Guess::Right => return self.let_in(),
        };
        self.form(status, Some(why))
    }

    fn let_in(&self) -> Answer {
        let session = self.sessions.begin();
        let session = session.inspect_err(|error| log::error!("no session is begun: {error}"));
        let lifetime = SESSION_LIFETIME.as_secs();
        let cookie = session.ok();
        let cookie = cookie.and_then(|session| self.cookie.set(&session, lifetime));
        match cookie {
            Some(cookie) => to_the_page(cookie),
            None => said(StatusCode::INTERNAL_SERVER_ERROR, "no session is begun\n"),
        }
    }

    fn log_out(&self, request: &Request<Incoming>) -> Answer {
        if let Some(session) = self.cookie.of(request.headers()) {
            self.sessions.end(session);
        }
        match self.cookie.set("", 0) {
            Some(cookie) => to_the_page(cookie),
            None => said(StatusCode::OK, ""),
        }
    }

    fn form(&self, status: StatusCode, why: Option<&'static str>) -> Answer {
        match why {
            Some(why) => self.pages.refused(why).answer(status),
            None => self.pages.login.answer(status),
        }
    }

    async fn state(&self, uri: &Uri) -> Answer {
        self.shared.is_asked_for(Part::State).await;
        let since = parameter(uri, "since").unwrap_or_default();
        let content = self.shared.content();
        json_answer(serde_json::to_vec(&content.state.since(&since)))
    }

    /// Rows that have changed, and the sums behind a number.
    async fn live(&self, uri: &Uri) -> Answer {
        self.shared.is_asked_for(Part::Rows).await;
        let since = parameter(uri, "since").unwrap_or_default();
        let after: u64 = number(uri, "after");
        let content = self.shared.content();
        let totals = content.totals.iter();
        let totals: Vec<_> = totals.filter(|(number, _)| *number > after).collect();
        let last = content.totals.last().map_or(0, |(number, _)| *number);
        let answered = json!({
            "rows": content.live.since(&since),
            "totals": totals,
            "last": last,
            "now": OffsetDateTime::now_utc().unix_timestamp(),
        });
        drop(content);
        json_answer(serde_json::to_vec(&answered))
    }

    fn timeline(&self, uri: &Uri) -> Answer {
        self.shared.is_asked();
        let content = self.shared.content();
        let entries = content.timeline.after(number(uri, "after"));
        json_answer(serde_json::to_vec(&entries))
    }

    /// What would stop without a key, a vault or an identity.
    async fn what_if(&self, uri: &Uri) -> Answer {
        let loss = match loss_of(uri) {
            Ok(loss) => loss,
            Err(why) => return said(StatusCode::BAD_REQUEST, why),
        };
        self.shared.is_asked_for(Part::State).await;
        let dependencies = self.shared.content().dependencies.clone();
        let Some(dependencies) = dependencies else {
            return said(StatusCode::SERVICE_UNAVAILABLE, "nothing was seen yet\n");
        };
        // It reads the logs of vaults.
        let turn = self.questions.clone().acquire_owned().await;
        let place = self.place.clone();
        let work = move || {
            let _turn = turn;
            let installation = Installation::open_if_there(place);
            let installation = installation.map_err(|error| error.to_string())?;
            let installation = installation.ok_or("there is no installation any more")?;
            let cut = dependencies.without(&installation, &loss);
            cut.map_err(|error| error.to_string())
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(Ok(cut)) => json_answer(serde_json::to_vec(&cut)),
            Ok(Err(why)) => {
                let why = serde_json::to_vec(&json!({ "error": why }));
                json_answer(why)
            }
            Err(_) => said(StatusCode::INTERNAL_SERVER_ERROR, "it was not found out\n"),
        }
    }
}

/// What somebody shows to be let in.
enum Guess {
    Right,
    Wrong,
    /// Wrong as well, after many others.
    TooMany,
}

/// The token of an `Authorization`, whose scheme may be written in any case (RFC 9110).
fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, token) = authorization.split_once(' ')?;
    let is_bearer = scheme.eq_ignore_ascii_case("bearer");
    is_bearer.then(|| token.trim())
}

fn loss_of(uri: &Uri) -> Result<Loss, &'static str> {
    if let Some(key) = parameter(uri, "key") {
        return Ok(Loss::Key(key));
    }
    if let Some(vault) = parameter(uri, "vault") {
        return Ok(Loss::Vault(vault.to_ascii_lowercase()));
    }
    let identity = parameter(uri, "identity").ok_or("key, vault or identity is needed\n")?;
    let id = Uuid::try_parse(&identity);
    let id = id.map_err(|_| "an identity is named by its object id, a UUID\n")?;
    Ok(Loss::Identity(id))
}

fn parameter(uri: &Uri, name: &str) -> Option<String> {
    let mut fields = form_urlencoded::parse(uri.query()?.as_bytes());
    let (_, value) = fields.find(|(field, _)| field == name)?;
    Some(value.into_owned())
}

fn number(uri: &Uri, name: &str) -> u64 {
    let text = parameter(uri, name);
    text.and_then(|text| text.parse().ok()).unwrap_or_default()
}

fn to_the_page(cookie: HeaderValue) -> Answer {
    let mut answer = said(StatusCode::SEE_OTHER, "");
    let headers = answer.headers_mut();
    headers.insert(LOCATION, HeaderValue::from_static("/"));
    headers.insert(SET_COOKIE, cookie);
    answer
}

fn json_answer(json: serde_json::Result<Vec<u8>>) -> Answer {
    match json {
        Ok(json) => answer(StatusCode::OK, JSON, json),
        Err(error) => {
            log::error!("an answer cannot be written: {error}");
            said(StatusCode::INTERNAL_SERVER_ERROR, "there is no answer\n")
        }
    }
}

fn said(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    answer(status, PLAIN, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_found_among_other_cookies() {
        let cookie = Cookie {
            name: "sealdisk-1".into(),
            is_secure: true,
        };
        let mut headers = HeaderMap::new();
        assert_eq!(cookie.of(&headers), None);
        headers.append(COOKIE, HeaderValue::from_static("a=b; sealdisk-12=no"));
        assert_eq!(cookie.of(&headers), None);
        headers.append(COOKIE, HeaderValue::from_static("x=1; sealdisk-1=yes; y=2"));
        assert_eq!(cookie.of(&headers), Some("yes"));
        let set = cookie.set("s", 60).unwrap();
        assert!(set.is_sensitive());
        let expected = "sealdisk-1=s; Path=/; Max-Age=60; HttpOnly; SameSite=Strict; Secure";
        assert_eq!(set.to_str().unwrap(), expected);
    }

    #[test]
    fn a_token_follows_a_scheme_in_any_case() {
        for written in ["Bearer t", "bearer t", "BEARER  t "] {
            assert_eq!(bearer(written), Some("t"), "{written}");
        }
        for other in ["Basic t", "t", "Bearert"] {
            assert_eq!(bearer(other), None, "{other}");
        }
    }

    #[test]
    fn a_loss_is_a_key_a_vault_or_an_identity() {
        let loss = |query: &str| loss_of(&format!("/api/what-if?{query}").parse().unwrap());
        let key = "https://v.vault.localhost/keys/k";
        let encoded = "key=https%3A%2F%2Fv.vault.localhost%2Fkeys%2Fk";
        assert_eq!(loss(encoded), Ok(Loss::Key(key.into())));
        assert_eq!(loss("vault=V"), Ok(Loss::Vault("v".into())));
        let id = Uuid::from_u128(7);
        assert_eq!(loss(&format!("identity={id}")), Ok(Loss::Identity(id)));
        assert!(loss("identity=x").unwrap_err().contains("UUID"));
        assert!(loss("disk=x").unwrap_err().contains("needed"));
    }
}
