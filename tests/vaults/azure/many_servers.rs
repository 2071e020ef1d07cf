//! Several servers of one installation, on several hosts that share a database: what one of them says counts for all.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};
use test_support::postgres::PostgresServer;
use test_support::{Host, Server};

use super::client::{Client, token};
use super::served::{User, grant, user};

/// Nothing here takes that long.
const PATIENCE: Duration = Duration::from_secs(60);
/// Clients at a time.
const CLIENTS: usize = 16;

/// Two hosts that share an installation with the vault `myvault`, in which `alice` may do everything.
struct Fleet {
    hosts: [Host; 2],
    alice: User,
}

impl Fleet {
    fn new(server: &PostgresServer) -> Self {
        let (url, mut hosts) = (server.new_schema(), [Host::new(), Host::new()]);
        for host in &mut hosts {
            host.set_env("SEALDISK_CATALOG", &url);
        }
        let [one, other] = &hosts;
        one.ok("keyvault create myvault");
        let alice = user(one, "alice");
        grant(one, "myvault", &alice, "all");
        // As an operator adds a host.
        other.ok("keyvault list");
        fs::create_dir_all(other.state().join("vaults/myvault")).unwrap();
        for key in ["audit.key", "vaults/myvault/master.key"] {
            fs::copy(one.state().join(key), other.state().join(key)).unwrap();
        }
        Self { hosts, alice }
    }

    fn serve(&self) -> [Server; 2] {
        self.hosts.each_ref().map(|host| host.serve(""))
    }

    /// The log of the vault is whole for either host; how many records of an operation it has.
    fn records(&self, operation: &str) -> usize {
        let counts = self.hosts.each_ref().map(|host| {
            let verified = host.run("audit verify");
            assert!(verified.status.success(), "{verified:?}");
            let list = host.text("audit list --vault myvault -o json");
            let records = list.lines().map(|line| {
                serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{e}: {line}"))
            });
            records.filter(|of| of["operation"] == operation).count()
        });
        assert_eq!(counts[0], counts[1]);
        counts[0]
    }

    fn has_no_vault(&self) -> bool {
        self.hosts.iter().all(|host| {
            let refused = host.refused_with("VaultNotFound", "keyvault show myvault");
            refused.contains("no key vault")
        })
    }
}

/// A client of one server with a token that another one may have given.
fn client<'a>(served: &'a Server, token: &str) -> Client<'a> {
    Client {
        served,
        vault: served.host_of("myvault"),
        token: token.into(),
    }
}

#[test]
fn a_token_and_a_certificate_of_one_server_are_good_at_the_other() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    let fleet = Fleet::new(server);
    let [one, other] = &fleet.serve();
    assert_eq!(
        fs::read(&one.ca_file).unwrap(),
        fs::read(&other.ca_file).unwrap()
    );
    // No secret of theirs is in a file of a host.
    for host in &fleet.hosts {
        assert!(!host.state().join("tokens").exists());
        assert!(!host.state().join("tls/ca.key").exists());
    }
    let given = token(one, &fleet.alice.secret, &one.resource());
    let given = given.body["access_token"].as_str().unwrap();
    let (here, there) = (client(one, given), client(other, given));
    let kid = here.create("k");
    let version = kid.rsplit_once('/').unwrap().1;
    let wrap = |client: &Client<'_>| {
        let body = json!({"alg": "RSA-OAEP-256", "value": "c2VjcmV0"});
        client.ask(&format!("POST /keys/k/{version}/wrapkey"), Some(&body))
    };
    for client in [&there, &here, &there] {
        assert_eq!(wrap(client).status, 200);
    }
    // What one is told to refuse the other refuses at once, however often it has allowed it before.
    for (enabled, status) in [(false, 403), (true, 200), (false, 403)] {
        let body = json!({"attributes": {"enabled": enabled}});
        let changed = here.ask(&format!("PATCH /keys/k/{version}"), Some(&body));
        assert_eq!(changed.status, 200, "{changed:?}");
        assert_eq!(wrap(&there).status, status);
    }
    let [host, _] = &fleet.hosts;
    let id = &fleet.alice.object_id;
    host.ok(&format!("keyvault delete-policy myvault --object-id {id}"));
    for client in [&there, &here] {
        let refused = client.ask("GET /keys", None);
        assert_eq!((refused.status, refused.code()), (403, "Forbidden"));
    }
    host.ok("identity delete alice --yes");
    for client in [&there, &here] {
        assert_eq!(client.ask("GET /keys", None).status, 401);
    }
    // A vault that is purged on one host is gone for the server of the other.
    host.ok("keyvault delete myvault --yes");
    host.ok("keyvault purge myvault --yes");
    assert!(fleet.has_no_vault());
}

/// Wraps, at another server when one does not answer, until it is told to end; what was answered is counted.
fn work(servers: [&Server; 2], first: usize, (token, line): (&str, &str), state: &State) {
    let body = json!({"alg": "RSA-OAEP-256", "value": "c2VjcmV0"});
    let mut at = first;
    while !state.ends.load(Ordering::Relaxed) {
        match client(servers[at], token).try_ask(line, Some(&body)) {
            Ok(answer) => {
                assert_eq!(answer.status, 200, "{answer:?}");
                state.answered.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => at = 1 - at,
        }
    }
}

#[derive(Default)]
struct State {
    ends: AtomicBool,
    answered: AtomicUsize,
}

impl State {
    /// Waits for so many answers more.
    fn wait_for(&self, more: usize) {
        let (until, from) = (
            Instant::now() + PATIENCE,
            self.answered.load(Ordering::Relaxed),
        );
        while self.answered.load(Ordering::Relaxed) < from + more {
            assert!(Instant::now() < until, "the clients are not answered");
            sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn nothing_that_was_answered_is_lost_with_the_server_that_is_killed() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    let fleet = Fleet::new(server);
    let servers = fleet.serve();
    let first = Client::new(&servers[0], &fleet.alice);
    let kid = first.create("k");
    let (_, path) = kid.split_once("/keys/").unwrap();
    let line = format!("POST /keys/{path}/wrapkey");
    let (state, both) = (State::default(), servers.each_ref());
    scope(|scope| {
        for number in 0..CLIENTS {
            let what = (first.token.as_str(), line.as_str());
            let state = &state;
            scope.spawn(move || work(both, number % 2, what, state));
        }
        state.wait_for(100);
        kill_process(servers[0].pid(), Signal::KILL).unwrap();
        // Those of the one that is gone go to the other.
        state.wait_for(200);
        state.ends.store(true, Ordering::Relaxed);
    });
    let answered = state.answered.load(Ordering::Relaxed);
    let records = fleet.records("KeyWrap");
    assert!(records >= answered, "{records} of {answered}");
    // What was under way when it was killed may be recorded without an answer.
    assert!(records <= answered + CLIENTS, "{records} of {answered}");
}

#[test]
fn one_server_does_what_is_due_and_another_takes_over() {
    // In which nobody else has names.
    let Some(server) = PostgresServer::start(&["fsync=off"]) else {
        return;
    };
    let fleet = Fleet::new(&server);
    let servers = fleet.serve();
    let holders = || {
        server.sql(
            "SELECT DISTINCT pid FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND granted",
        )
    };
    let one_holder = || {
        let until = Instant::now() + PATIENCE;
        loop {
            let found = holders();
            if !found.is_empty() && !found.contains('\n') {
                return (found, until - Instant::now());
            }
            assert!(Instant::now() < until, "nobody, or several: {found}");
            sleep(Duration::from_millis(50));
        }
    };
    let (first, _) = one_holder();
    // Whichever of both it is.
    kill_process(servers[0].pid(), Signal::KILL).unwrap();
    let (second, left) = one_holder();
    kill_process(servers[1].pid(), Signal::KILL).unwrap();
    assert!(left > PATIENCE - Duration::from_secs(10), "{left:?}");
    let again = fleet.hosts[0].serve("");
    let (third, left) = one_holder();
    assert!(left > PATIENCE - Duration::from_secs(10), "{left:?}");
    assert!(
        third != first && third != second,
        "{first} {second} {third}"
    );
    drop(again);
}
