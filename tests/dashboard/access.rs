//! Who is let in, and what everybody else is answered.

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use test_support::{Disk, Host};

use super::{Answer, Dashboard, one_line};

const MIB: u64 = 1 << 20;

/// What must be in no answer to whoever is not let in.
const SECRETS: [&str; 3] = ["disk", "platform", "vault.localhost"];

fn assert_says_nothing(answer: &Answer) {
    for secret in SECRETS {
        assert!(!answer.body.contains(secret), "{secret}: {}", answer.body);
    }
}

#[test]
fn without_the_token_every_path_is_answered_the_same() {
    let disk = Disk::new(MIB);
    let dashboard = Dashboard::of(&disk);
    // So that there is something to tell.
    dashboard.await_section("resources", |resources| !resources.is_null());
    let wrong = "Authorization: Bearer 0123456789012345678901234567890123456789\r\n";
    let expected = dashboard.get_with("/nothing", "");
    assert_eq!((expected.status, &*expected.body), (401, "log in\n"));
    for path in [
        "/api/state",
        "/api/live",
        "/api/timeline",
        "/api/what-if?vault=platform",
        "/api/none",
        "/index.html",
        "/../catalog.db",
        "/login",
        "/logout",
    ] {
        for headers in ["", wrong, "Cookie: sealdisk-1=x\r\n"] {
            let answer = dashboard.get_with(path, headers);
            assert_eq!(answer.status, 401, "{path}");
            assert_eq!(answer.body, expected.body, "{path}");
            let without_date = |answer: &Answer| {
                let lines = answer.head.lines().map(str::to_owned);
                lines
                    .filter(|line| !line.starts_with("date"))
                    .collect::<Vec<_>>()
            };
            assert_eq!(without_date(&answer), without_date(&expected), "{path}");
        }
    }
    let form = dashboard.get_with("/", "");
    assert_eq!(form.status, 200);
    assert!(form.body.contains("name=\"token\""));
    assert!(!form.body.contains("<script"), "a bare form");
    assert!(!form.body.contains("Overview") && !form.body.contains("/api/"));
    for host in ["Cookie: a=b\r\n", ""] {
        let host = dashboard.get_with("/", host);
        assert!(!host.body.contains("vault.localhost"));
    }
    let host = dashboard.authority();
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"] {
        let answer = dashboard.send(&format!(
            "{method} /api/state HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n"
        ));
        assert_eq!(answer.status, 401, "{method}");
        assert_says_nothing(&answer);
    }
}

#[test]
fn a_session_begins_with_the_token_and_ends_when_it_is_ended() {
    let disk = Disk::new(MIB);
    let dashboard = Dashboard::of(&disk);
    let refused = dashboard.log_in("wrong");
    assert_eq!(refused.status, 401);
    assert!(refused.body.contains("That is not the token."));
    assert_eq!(refused.header("set-cookie"), None);
    let let_in = dashboard.log_in(&dashboard.token());
    assert_eq!((let_in.status, let_in.header("location")), (303, Some("/")));
    let cookie = let_in.header("set-cookie").unwrap();
    for attribute in ["HttpOnly", "SameSite=Strict", "Path=/"] {
        assert!(cookie.contains(attribute), "{cookie}");
    }
    assert!(!cookie.contains(&dashboard.token()), "it is no token");
    let session = cookie.split(';').next().unwrap();
    let shown = format!("Cookie: other=1; {session}\r\n");
    let page = dashboard.get_with("/", &shown);
    assert!(page.body.contains("Dependencies") && page.body.contains("<script>"));
    assert_eq!(dashboard.get_with("/api/state", &shown).status, 200);
    let host = dashboard.authority();
    let log_out = |headers: &str| {
        dashboard.send(&format!(
            "POST /logout HTTP/1.1\r\nHost: {host}\r\n{headers}Content-Length: 0\r\n\r\n"
        ))
    };
    let foreign = format!("{shown}Origin: https://evil.example.com\r\n");
    assert_eq!(log_out(&foreign).status, 403);
    assert_eq!(dashboard.get_with("/api/state", &shown).status, 200);
    assert_eq!(log_out(&shown).status, 303);
    assert_eq!(dashboard.get_with("/api/state", &shown).status, 401);
    // Nothing else can be changed.
    let token = dashboard.token();
    for path in ["/", "/api/state", "/api/what-if", "/x"] {
        let answer = dashboard.send(&format!(
            "POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\nContent-Length: 0\r\n\r\n"
        ));
        assert_eq!(
            (answer.status, answer.header("allow")),
            (405, Some("GET, HEAD"))
        );
    }
}

#[test]
fn pages_of_others_and_other_names_get_nothing() {
    let disk = Disk::new(MIB);
    let dashboard = Dashboard::with(&disk, "--public-url https://dash.example.com");
    let token = dashboard.token();
    let port = dashboard.0.address.port();
    let ask = |path: &str, host: &str, headers: &str| {
        dashboard.send(&format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n{headers}\r\n"
        ))
    };
    let own = format!("localhost:{port}");
    assert_eq!(ask("/api/state", &own, "").status, 200);
    assert_eq!(ask("/api/state", "dash.example.com", "").status, 200);
    let rebound = format!("evil.example.com:{port}");
    for path in ["/", "/api/state", "/nothing"] {
        let answer = ask(path, &rebound, "");
        assert_eq!(answer.status, 421, "{path}");
        assert_says_nothing(&answer);
    }
    for headers in [
        "Origin: https://evil.example.com\r\n",
        "Origin: null\r\n",
        "Sec-Fetch-Site: cross-site\r\n",
        "Sec-Fetch-Site: same-site\r\n",
    ] {
        let answer = ask("/api/state", &own, headers);
        assert_eq!(answer.status, 403, "{headers}");
        assert_says_nothing(&answer);
    }
    let good = "Origin: https://dash.example.com\r\nSec-Fetch-Site: same-origin\r\n";
    assert_eq!(ask("/api/state", "dash.example.com", good).status, 200);
    // A session of a page with TLS is never sent without.
    let let_in = dashboard.log_in(&token);
    assert!(let_in.header("set-cookie").unwrap().contains("; Secure"));
}

#[test]
fn every_answer_says_what_a_browser_may_do_with_it() {
    let disk = Disk::new(MIB);
    let dashboard = Dashboard::of(&disk);
    let page = dashboard.get("/");
    let form = dashboard.get_with("/", "");
    let others = ["/api/state", "/api/timeline", "/none"].map(|path| dashboard.get(path));
    let refused = dashboard.get_with("/api/state", "");
    for answer in [&page, &form, &refused].into_iter().chain(&others) {
        for (header, value) in [
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "no-referrer"),
            ("cache-control", "no-store"),
        ] {
            assert_eq!(answer.header(header), Some(value));
        }
        let policy = answer.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none'"), "{policy}");
        assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
        assert!(
            !policy.contains('*') && !policy.contains("http"),
            "{policy}"
        );
    }
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.contains("script-src 'sha256-") && policy.contains("trusted-types 'none'"));
    let weight = page.body.len();
    println!("the page weighs {weight} bytes");
    assert!(weight < 300_000, "{weight}");
    for elsewhere in ["http://", "https://", "//cdn"] {
        let page = page.body.replace("http://www.w3.org/2000/svg", "");
        let page = page.replace("/^https:", "");
        assert!(!page.contains(elsewhere), "the page names {elsewhere}");
    }
}

#[test]
fn guesses_are_slow_and_never_keep_the_right_token_out() {
    let disk = Disk::new(MIB);
    let dashboard = Dashboard::of(&disk);
    let begun = Instant::now();
    assert_eq!(dashboard.log_in("wrong").status, 401);
    assert!(begun.elapsed() >= Duration::from_secs(1));
    let by_form = || dashboard.log_in("wrong").status;
    let by_header = || {
        let answer = dashboard.get_with("/api/state", "Authorization: Bearer wrong\r\n");
        assert_says_nothing(&answer);
        answer.status
    };
    std::thread::scope(|scope| {
        // More of each than are told that they are wrong.
        let forms: Vec<_> = (0..12).map(|_| scope.spawn(by_form)).collect();
        let headers: Vec<_> = (0..12).map(|_| scope.spawn(by_header)).collect();
        for guesses in [forms, headers] {
            // While they are answered.
            assert_eq!(dashboard.get("/api/state").status, 200);
            assert_eq!(dashboard.log_in(&dashboard.token()).status, 303);
            let answers: Vec<_> = guesses.into_iter().map(|g| g.join().unwrap()).collect();
            assert!(answers.contains(&429), "{answers:?}");
            let all = answers.iter().all(|status| [401, 429].contains(status));
            assert!(all, "{answers:?}");
        }
        // After so many too.
        assert_eq!(dashboard.get("/api/state").status, 200);
        assert_eq!(dashboard.log_in(&dashboard.token()).status, 303);
    });
}

#[test]
fn slow_large_and_many_clients_keep_nobody_out() {
    let disk = Disk::new(MIB);
    let dashboard = Dashboard::of(&disk);
    let host = dashboard.authority();
    let large = "x".repeat(64 * 1024);
    let answer = dashboard.get_with("/", &format!("Cookie: {large}\r\n"));
    assert!([0, 400, 431].contains(&answer.status), "{}", answer.status);
    let form = format!("token={large}");
    let answer = dashboard.send(&format!(
        "POST /login HTTP/1.1\r\nHost: {host}\r\nContent-Length: {}\r\n\r\n{form}",
        form.len()
    ));
    assert!([0, 413].contains(&answer.status), "{}", answer.status);
    // They say nothing, or never end what they say.
    let mut idle = Vec::new();
    for number in 0..100 {
        let mut stream = TcpStream::connect(dashboard.0.address).unwrap();
        if number % 2 == 0 {
            write!(
                stream,
                "POST /login HTTP/1.1\r\nHost: {host}\r\nContent-Length: 10\r\n"
            )
            .unwrap();
        }
        idle.push(stream);
    }
    assert_eq!(dashboard.get("/api/state").status, 200);
}

#[test]
fn it_is_not_served_to_others_by_mistake() {
    let host = Host::new();
    let refused = host.refused_with("BadParameter", "dashboard --listen 0.0.0.0:0");
    assert!(
        refused.contains("no TLS") && refused.contains("proxy"),
        "{refused}"
    );
    let token = host.path("token");
    fs::write(&token, "short").unwrap();
    fs::set_permissions(&token, PermissionsExt::from_mode(0o600)).unwrap();
    let serve = format!(
        "dashboard --listen 127.0.0.1:0 --token-file {}",
        token.display()
    );
    let refused = host.refused_with("SecretFile", serve.as_str());
    assert!(refused.contains("32 characters"), "{refused}");
    fs::write(&token, "0123456789".repeat(4)).unwrap();
    fs::set_permissions(&token, PermissionsExt::from_mode(0o644)).unwrap();
    let refused = one_line(&host.run(serve.as_str()));
    assert!(refused.contains("chmod 600"), "{refused}");
    assert!(
        !host.state().join("catalog.db").exists(),
        "nothing was made"
    );
}

#[test]
fn neither_output_nor_log_has_the_token() {
    let disk = Disk::new(MIB);
    let log = disk.path("log");
    let serve = "dashboard --listen 127.0.0.1:0 --interval 1 -o json -vv";
    let mut command = disk.command(serve);
    command.stderr(fs::File::create(&log).unwrap());
    let dashboard = Dashboard(test_support::Server::start(command));
    let token = dashboard.token();
    assert_eq!(dashboard.log_in(&token).status, 303);
    assert_eq!(dashboard.get("/api/state").status, 200);
    assert_eq!(dashboard.log_in("a-wrong-one").status, 401);
    let ready = dashboard.0.ready.to_string();
    let log = fs::read_to_string(log).unwrap();
    assert!(log.contains("wrong token"), "{log}");
    for text in [ready, log] {
        assert!(!text.contains(&token) && !text.contains("a-wrong-one"));
    }
}
