//! An installation with its management API, and somebody who asks it.

use std::time::{Duration, Instant};

use serde_json::Value;
use test_support::{Host, Server};

use crate::azure::client::{Answer, Connection};
use crate::azure::served::{User, user};

const PATIENCE: Duration = Duration::from_secs(120);

/// An installation that is served.
pub struct Managed {
    pub host: Host,
    pub served: Server,
    pub admin: User,
}

impl Managed {
    /// With an owner of the subscription.
    pub fn new() -> Self {
        Self::on(Host::new())
    }

    /// Ends the server as a crash does, if it has not ended, and starts another one.
    pub fn serve_again(&mut self) {
        self.served = serve(&self.host);
    }

    /// The same on such a host.
    pub fn on(host: Host) -> Self {
        let admin = user(&host, "admin");
        host.ok("role assignment create --assignee admin --role Owner");
        let served = serve(&host);
        Self {
            host,
            served,
            admin,
        }
    }

    pub fn subscription(&self) -> String {
        let id = self.served.ready["subscriptionId"].as_str().unwrap();
        format!("/subscriptions/{id}")
    }

    pub fn tenant(&self) -> &str {
        self.served.ready["tenantId"].as_str().unwrap()
    }

    /// Somebody who may do nothing yet.
    pub fn user(&self, name: &str) -> User {
        user(&self.host, name)
    }

    pub fn client(&self, user: &User) -> Client<'_> {
        Client {
            managed: self,
            token: self.token(user, &self.base()),
        }
    }

    pub fn base(&self) -> String {
        format!("https://{}", self.authority())
    }

    pub fn authority(&self) -> String {
        format!("localhost:{}", self.served.address.port())
    }

    /// A token for a service, as az asks for it.
    pub fn token(&self, user: &User, resource: &str) -> String {
        let answer = self.login(&user.client_id, &user.secret, resource);
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body["access_token"].as_str().unwrap().into()
    }

    pub fn login(&self, client: &str, secret: &str, resource: &str) -> Answer {
        let scope = resource.replace(':', "%3A").replace('/', "%2F");
        let body = format!(
            "client_id={client}&grant_type=client_credentials&client_info=1&client_secret={secret}&\
             scope={scope}%2F%2F.default"
        );
        self.raw("POST", "/adfs/oauth2/v2.0/token", "", &body)
    }

    /// A request as it is, on a connection of its own.
    pub fn raw(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        let mut connection = Connection::open(&self.served).unwrap();
        self.raw_on(&mut connection, method, path, headers, body)
    }

    fn raw_on(
        &self,
        connection: &mut Connection,
        method: &str,
        path: &str,
        headers: &str,
        body: &str,
    ) -> Answer {
        let host = self.authority();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\n{headers}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        connection.write(request.as_bytes()).unwrap();
        connection.read().unwrap()
    }
}

/// Serves a host's installation.
pub fn serve(host: &Host) -> Server {
    Server::start(host.command("serve --listen 127.0.0.1:0 -o json"))
}

/// Somebody with a token; each question on a connection of its own.
pub struct Client<'a> {
    pub managed: &'a Managed,
    pub token: String,
}

impl Client<'_> {
    /// Asks; `path` begins below the subscription unless it is a whole one.
    pub fn ask_with(&self, line: &str, headers: &str, body: Option<&Value>) -> Answer {
        let mut connection = Connection::open(&self.managed.served).unwrap();
        self.ask_on(&mut connection, line, headers, body)
    }

    /// The same on a connection that is there already.
    pub fn ask_on(
        &self,
        connection: &mut Connection,
        line: &str,
        headers: &str,
        body: Option<&Value>,
    ) -> Answer {
        let (method, path) = line.split_once(' ').unwrap();
        let path = match path.strip_prefix('~') {
            Some(below) => format!("{}{below}", self.managed.subscription()),
            None => path.to_owned(),
        };
        let separator = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{separator}api-version=2025-01-02");
        let headers = format!("Authorization: Bearer {}\r\n{headers}", self.token);
        let body = body.map(ToString::to_string).unwrap_or_default();
        let managed = self.managed;
        managed.raw_on(connection, method, &path, &headers, &body)
    }

    /// Asks for several things, one after the other on one connection.
    pub fn all_ok(&self, lines: &[&str]) -> Vec<Value> {
        let mut connection = Connection::open(&self.managed.served).unwrap();
        let mut ask = |line: &&str| {
            let answer = self.ask_on(&mut connection, line, "", None);
            assert_eq!(answer.status, 200, "{line}: {answer:?}");
            answer.body
        };
        lines.iter().map(&mut ask).collect()
    }

    pub fn ask(&self, line: &str, body: Option<&Value>) -> Answer {
        self.ask_with(line, "", body)
    }

    /// Asks for what is done.
    pub fn ok(&self, line: &str, body: Option<&Value>) -> Value {
        let answer = self.ask(line, body);
        assert!((200..300).contains(&answer.status), "{line}: {answer:?}");
        answer.body
    }

    /// Deletes a group, however long that takes.
    pub fn delete_group(&self, group: &str) {
        let deleted = self.ask(&format!("DELETE {group}"), None);
        assert!([200, 202].contains(&deleted.status), "{deleted:?}");
        let begun = Instant::now();
        while self.ask(&format!("GET {group}"), None).status != 404 {
            assert!(begun.elapsed() < PATIENCE, "{group} is still there");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Asks for what is refused.
    pub fn refused(&self, line: &str, body: Option<&Value>) -> (u16, String) {
        let answer = self.ask(line, body);
        assert!(answer.status >= 400, "{line}: {answer:?}");
        assert!(
            answer.body["error"]["message"].is_string(),
            "{line}: {answer:?}"
        );
        (answer.status, answer.code().into())
    }
}
