//! Clients that are slow, large, many or wrong.

use std::net::TcpStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;

use super::client::{Client, Connection};
use super::served::{host_with_vault, user};

const MIB: usize = 1 << 20;

fn head(host: &str, token: &str, more: &str) -> String {
    format!(
        "POST /keys/k/create?api-version=7.4 HTTP/1.1\r\nHost: {host}\r\n\
         Authorization: Bearer {token}\r\n{more}\r\n"
    )
}

#[test]
fn a_body_that_is_too_large_is_refused() {
    let (host, alice) = host_with_vault();
    let served = host.serve("");
    let client = Client::new(&served, &alice);
    // Announced: refused before it is sent.
    let mut connection = Connection::open(&served).unwrap();
    let announced = head(
        &client.vault,
        &client.token,
        &format!("Content-Length: {}\r\n", MIB + 1),
    );
    connection.write(announced.as_bytes()).unwrap();
    assert_eq!(connection.read().unwrap().status, 413);
    // Not announced: refused when it has become too large.
    let mut connection = Connection::open(&served).unwrap();
    let chunked = head(
        &client.vault,
        &client.token,
        "Transfer-Encoding: chunked\r\n",
    );
    connection.write(chunked.as_bytes()).unwrap();
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
    let mut sent = 0;
    while sent <= MIB && connection.write(chunk.as_bytes()).is_ok() {
        sent += 0x10000;
    }
    assert_eq!(connection.read().unwrap().status, 413);
    // Just not too large, and no JSON.
    let mut connection = Connection::open(&served).unwrap();
    let largest = head(
        &client.vault,
        &client.token,
        &format!("Content-Length: {MIB}\r\n"),
    );
    connection.write(largest.as_bytes()).unwrap();
    connection.write(&vec![b'x'; MIB]).unwrap();
    assert_eq!(connection.read().unwrap().status, 400);
    // Somebody unknown is not listened to, and the answer says nothing about bodies.
    let mut connection = Connection::open(&served).unwrap();
    let unknown = head(
        &client.vault,
        "x",
        &format!("Content-Length: {}\r\n", 1_u64 << 40),
    );
    connection.write(unknown.as_bytes()).unwrap();
    assert_eq!(connection.read().unwrap().status, 401);
    assert_eq!(client.ask("GET /keys", None).body["value"], json!([]));
}

#[test]
fn who_asks_is_settled_before_what_for() {
    let (host, alice) = host_with_vault();
    let bob = user(&host, "bob");
    let served = host.serve("");
    let client = Client::new(&served, &alice);
    let stranger = Client::new(&served, &bob);
    for (line, status) in [
        ("GET /secrets/s", 404),
        ("GET /keys/k/v/w", 404),
        ("POST /keys", 405),
        ("GET /keys?maxresults=99", 400),
        ("GET /keys/k/zz", 400),
        ("POST /keys/k/create", 400),
    ] {
        let mut nobody = Connection::open(&served).unwrap();
        let answer = nobody.ask(&client.vault, "", line, None).unwrap();
        assert_eq!(answer.status, 401, "{line}");
        assert_eq!(client.ask(line, None).status, status, "{line}");
    }
    // Who may not do it is told that, whatever is wrong with the request.
    assert_eq!(stranger.ask("POST /keys/k/create", None).status, 403);
    assert_eq!(stranger.ask("GET /keys/k/zz", None).status, 403);
    // Paths with empty parts, and names that are encoded.
    assert_eq!(client.ask("GET //keys/?%6daxresults=1", None).status, 200);
    for host in [
        "localhost",
        "nowhere.example.net",
        "a.b.vault.localhost",
        "x",
    ] {
        let mut connection = Connection::open(&served).unwrap();
        let answer = connection
            .ask(host, &client.token, "GET /keys", None)
            .unwrap();
        assert_eq!(
            (answer.status, answer.code()),
            (400, "BadParameter"),
            "{host}"
        );
    }
}

#[test]
fn what_a_proxy_may_read_otherwise_is_refused() {
    let (host, alice) = host_with_vault();
    let served = host.serve("");
    let client = Client::new(&served, &alice);
    for (other, status) in [
        ("", 200),
        ("Host: localhost\r\n", 400),
        ("Authorization: Bearer x\r\n", 400),
        ("Transfer-Encoding: gzip, chunked\r\n", 501),
        ("Content-Encoding: gzip\r\n", 415),
    ] {
        let mut connection = Connection::open(&served).unwrap();
        let request = format!(
            "GET /keys?api-version=7.4 HTTP/1.1\r\nHost: {}\r\n{other}Authorization: Bearer {}\r\n\r\n",
            client.vault, client.token
        );
        connection.write(request.as_bytes()).unwrap();
        let answer = connection.read().unwrap();
        assert_eq!(answer.status, status, "{other}: {answer:?}");
    }
    // Of two lengths of a body the one of chunks counts, and nothing is read behind it.
    let mut connection = Connection::open(&served).unwrap();
    let get = format!(
        "GET /keys?api-version=7.4 HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\n",
        client.vault, client.token
    );
    let both = "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    connection
        .write(format!("{get}{both}{get}\r\n").as_bytes())
        .unwrap();
    let answer = connection.read().unwrap();
    assert_eq!(
        (answer.status, answer.header("connection")),
        (200, Some("close"))
    );
    assert!(connection.read().is_err());
}

#[test]
fn a_slow_client_is_cut_off() {
    let (host, alice) = host_with_vault();
    let served = host.serve("--client-timeout 2");
    let client = Client::new(&served, &alice);
    // A head that comes byte by byte.
    let mut connection = Connection::open(&served).unwrap();
    let started = Instant::now();
    let request = head(&client.vault, &client.token, "");
    let cut = request.bytes().any(|byte| {
        sleep(Duration::from_millis(100));
        connection.write(&[byte]).is_err() || started.elapsed() > Duration::from_secs(30)
    });
    assert!(cut && connection.read().is_err(), "it is still listened to");
    // A body that does not come.
    let mut connection = Connection::open(&served).unwrap();
    let request = head(&client.vault, &client.token, "Content-Length: 100\r\n");
    connection.write(request.as_bytes()).unwrap();
    connection.write(b"{").unwrap();
    assert_eq!(connection.read().unwrap().status, 408);
    // A handshake that does not come, and a connection without a request.
    let silent = TcpStream::connect(("127.0.0.1", served.address.port())).unwrap();
    silent
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    assert_eq!(std::io::Read::read(&mut &silent, &mut [0]).unwrap_or(0), 0);
    let mut idle = Connection::open(&served).unwrap();
    assert!(idle.read().is_err());
    assert_eq!(client.ask("GET /keys", None).status, 200);
}

#[test]
fn thousands_of_connections_keep_nobody_out() {
    let limit = getrlimit(Resource::Nofile).maximum;
    let raised = Rlimit {
        current: limit,
        maximum: limit,
    };
    setrlimit(Resource::Nofile, raised).unwrap();
    if limit.is_some_and(|limit| limit < 4096) {
        eprintln!("skipped: {limit:?} files may be open only");
        return;
    }
    let (host, alice) = host_with_vault();
    let served = host.serve("--max-connections 500");
    let client = Client::new(&served, &alice);
    let kid = client.create("k");
    let mut working = Connection::open(&served).unwrap();
    let mut crowd = Vec::new();
    for n in 0..2000 {
        // Half of them do not even greet; the others do, and then say nothing.
        let tcp = TcpStream::connect(("127.0.0.1", served.address.port())).unwrap();
        crowd.push(tcp);
        if n % 100 == 0 {
            // Who works keeps the connection, and who comes gets in.
            let answer = working.ask(&client.vault, &client.token, "GET /keys/k", None);
            assert_eq!(answer.unwrap().status, 200, "after {n} connections");
            assert_eq!(client.ask("GET /keys/k", None).body["key"]["kid"], kid);
        }
    }
    drop(crowd);
    assert_eq!(client.ask("GET /keys/k", None).status, 200);
}

#[test]
fn what_is_under_way_is_finished_before_the_end() {
    let (host, alice) = host_with_vault();
    let served = host.serve("");
    let client = Client::new(&served, &alice);
    let mut connection = Connection::open(&served).unwrap();
    let body = json!({"kty": "RSA", "key_size": 4096}).to_string();
    let length = format!("Content-Length: {}\r\n", body.len());
    let request = head(&client.vault, &client.token, &length) + &body;
    connection.write(request.as_bytes()).unwrap();
    // Long enough for the request to arrive, and shorter than the search for primes mostly takes.
    sleep(Duration::from_millis(20));
    served.terminate();
    let answer = connection.read().unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    drop(connection);
    assert!(served.wait().success());
    let keys = host.json("keyvault key list --vault-name myvault");
    assert_eq!(keys.as_array().unwrap().len(), 1);
}

#[test]
fn the_audit_log_says_from_where() {
    let (host, alice) = host_with_vault();
    let served = host.serve("");
    let client = Client::new(&served, &alice);
    client.create("k");
    let log = host.run("audit list --vault myvault -o json");
    let log = String::from_utf8(log.stdout).unwrap();
    let made = log.lines().find(|line| line.contains("KeyCreate")).unwrap();
    assert!(
        made.contains("127.0.0.1:") && made.contains(&alice.object_id),
        "{made}"
    );
    let verified = host.run("audit verify --vault myvault");
    assert!(verified.status.success(), "{verified:?}");
    let log = host.run("audit list --installation -o json");
    let log = String::from_utf8(log.stdout).unwrap();
    let given = log.lines().find(|line| line.contains("TokenIssue"));
    assert!(given.unwrap().contains("127.0.0.1:"), "{log}");
}
