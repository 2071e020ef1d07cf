//! What a server does to its clients.

mod tls;

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use test_support::postgres::PostgresServer;

use super::*;
use crate::tests::POSTGRES as SCHEMA;
use crate::{Connection, Error, ErrorKind, Held, Mode, params};

/// Of which the first step is that of [`SCHEMA`].
const NEWER: Schema = Schema {
    steps: &[SCHEMA.steps[0], "CREATE TABLE more (a integer)"],
    ..SCHEMA
};
const BROKEN: Schema = Schema {
    steps: &[SCHEMA.steps[0], "CREATE TABLE parents (a integer)"],
    ..SCHEMA
};

fn add(db: &Connection, id: i64) -> Result<u64, Error> {
    let name = id.to_string();
    db.execute("INSERT INTO parents VALUES (?, ?)", params![id, name])
}

/// The database for somebody who waits a second only.
fn open_impatient(url: &str) -> Database {
    open_with_patience(url, Duration::from_secs(1))
}

fn open_with_patience(url: &str, patience: Duration) -> Database {
    let mut address = Address::parse(url).unwrap();
    address.patience = patience;
    open_at(address, &SCHEMA).unwrap()
}

fn count(db: &Connection) -> i64 {
    db.the_value("SELECT count(*) FROM parents", &[]).unwrap()
}

#[test]
fn a_database_of_somebody_else_or_a_newer_one_is_left_alone() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    let url = server.new_schema();
    drop(open(&url, &SCHEMA).unwrap());
    add(&open(&url, &NEWER).unwrap(), 1).unwrap();
    let refused = open(&url, &SCHEMA).err().unwrap();
    assert!(
        matches!(
            refused,
            OpenError::Version {
                found: 2,
                known: 1,
                ..
            }
        ),
        "{refused}"
    );
    assert_eq!(count(&open(&url, &NEWER).unwrap()), 1);
    // Another one has its tables beside them.
    let other = Schema {
        application_id: 43,
        steps: &["CREATE TABLE other (a integer)"],
        ..SCHEMA
    };
    drop(open(&url, &other).unwrap());
    drop(open(&url, &NEWER).unwrap());

    let url = server.new_schema();
    let name = url.rsplit_once("%3D").unwrap().1;
    server.sql(&format!("CREATE TABLE {name}.theirs (a integer)"));
    let refused = open(&url, &SCHEMA).err().unwrap();
    assert!(matches!(refused, OpenError::Occupied { .. }), "{refused}");
    let tables = format!("SELECT count(*) FROM pg_tables WHERE schemaname = '{name}'");
    assert_eq!(server.sql(&tables), "1");
    let nowhere = open(&url.replace(name, "nowhere"), &SCHEMA).err().unwrap();
    assert!(nowhere.to_string().contains("search_path"), "{nowhere}");
}

#[test]
fn a_step_that_fails_leaves_nothing_and_many_openers_all_succeed() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    let url = server.new_schema();
    let failed = open(&url, &BROKEN).err().unwrap();
    assert!(matches!(failed, OpenError::Engine { .. }), "{failed}");
    std::thread::scope(|scope| {
        for id in 0..8 {
            let url = &url;
            scope.spawn(move || add(&open(url, &SCHEMA).unwrap(), id).unwrap());
        }
    });
    assert_eq!(count(&open(&url, &SCHEMA).unwrap()), 8);
}

#[test]
fn a_server_that_is_started_again_is_used_on() {
    let Some(server) = PostgresServer::start(&[]) else {
        return;
    };
    let db = open(&server.new_schema(), &SCHEMA).unwrap();
    add(&db, 1).unwrap();
    let end: [fn(&PostgresServer); 2] = [PostgresServer::stop, PostgresServer::kill];
    for (id, end) in (2..).zip(end) {
        end(&server);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(300));
                server.run();
            });
            add(&db, id).unwrap();
        });
        assert_eq!(count(&db), id);
        end(&server);
        server.run();
        // In the middle of a transaction: it is run again.
        let mut attempts = 0;
        db.transaction(Mode::Write, |db| {
            attempts += 1;
            add(db, 100 * id)?;
            if attempts == 1 {
                end(&server);
                server.run();
            }
            db.execute("DELETE FROM parents WHERE id = ?", params![100 * id])
        })
        .unwrap();
        assert_eq!((attempts, count(&db)), (2, id));
        end(&server);
        server.run();
        db.transaction(Mode::Read, |db| Ok::<_, Error>(count(db)))
            .unwrap();
    }
}

#[test]
fn a_server_that_stays_away_is_told() {
    let Some(server) = PostgresServer::start(&["fsync=off"]) else {
        return;
    };
    let db = open_impatient(&server.new_schema());
    add(&db, 1).unwrap();
    server.kill();
    let mut attempts = 0;
    let lost = [
        add(&db, 2).unwrap_err(),
        db.value::<i64>("SELECT 1", &[]).unwrap_err(),
        Held::begin(&db, Mode::Alone).err().unwrap(),
        db.transaction(Mode::Write, |_| {
            attempts += 1;
            Ok::<_, Error>(())
        })
        .unwrap_err(),
    ];
    for lost in lost {
        assert_eq!(lost.kind(), ErrorKind::Lost, "{lost}");
    }
    assert_eq!(attempts, 0);
    server.run();
    assert_eq!(count(&db), 1);
}

/// Those who wait for the same connection would wait for all who are before them.
#[test]
fn a_server_that_stays_away_is_waited_for_by_one_only() {
    let Some(server) = PostgresServer::start(&["fsync=off"]) else {
        return;
    };
    let patience = Duration::from_secs(3);
    let db = open_with_patience(&server.new_schema(), patience);
    add(&db, 1).unwrap();
    server.kill();
    let begun = Instant::now();
    for _ in 0..4 {
        assert_eq!(add(&db, 2).unwrap_err().kind(), ErrorKind::Lost);
    }
    assert!(begun.elapsed() >= patience, "{:?}", begun.elapsed());
    assert!(begun.elapsed() < 2 * patience, "{:?}", begun.elapsed());
    server.run();
    add(&db, 2).unwrap();
    // It was waited for at the connection, or is not waited for at all.
    server.kill();
    let begun = Instant::now();
    db.waited_since(begun.checked_sub(patience).unwrap());
    assert_eq!(add(&db, 3).unwrap_err().kind(), ErrorKind::Lost);
    let at_once = db.moment_at_once().err().unwrap();
    assert_eq!(at_once.kind(), ErrorKind::Lost);
    assert!(begun.elapsed() < patience, "{:?}", begun.elapsed());
}

#[test]
fn a_database_that_is_read_only_is_told_from_others() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    let url = server.new_schema();
    let db = open(&url, &SCHEMA).unwrap();
    let read_only = format!("{url}%20-c%20default_transaction_read_only%3Don");
    let refused = open(&read_only, &SCHEMA).err().unwrap();
    let is_read_only = |error: &Error| error.kind() == ErrorKind::ReadOnly;
    assert!(
        matches!(&refused, OpenError::Engine { source, .. } if is_read_only(source)),
        "{refused}"
    );
    db.execute("SET default_transaction_read_only = on", &[])
        .unwrap();
    let refused = add(&db, 1).unwrap_err();
    assert!(is_read_only(&refused), "{refused}");
    assert_eq!(count(&db), 0);
}

#[test]
fn what_is_committed_is_durable_whatever_the_server_is_set_to() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    for (setting, expected) in [("off", "on"), ("local", "local")] {
        let url = format!(
            "{}%20-c%20synchronous_commit%3D{setting}",
            server.new_schema()
        );
        let db = open(&url, &SCHEMA).unwrap();
        let sql = "SELECT current_setting('synchronous_commit')";
        assert_eq!(db.the_value::<String>(sql, &[]).unwrap(), expected);
    }
}

/// Ends the connection of a client.
fn cut_off(db: &Database, other: &Database) {
    let pid = db.the_value::<i64>("SELECT pg_backend_pid()", &[]).unwrap();
    let is_there = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE pid = ?";
    while other.the_value::<i64>(is_there, params![pid]).unwrap() > 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn who_connects_anew_finds_what_was_there_or_nothing() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    let url = server.new_schema();
    let name = url.rsplit_once("%3D").unwrap().1;
    let (db, other) = (open(&url, &SCHEMA).unwrap(), open(&url, &SCHEMA).unwrap());
    cut_off(&db, &other);
    add(&db, 1).unwrap();
    drop(open(&url, &NEWER).unwrap());
    add(&db, 2).unwrap();
    cut_off(&db, &other);
    let newer = add(&db, 3).unwrap_err();
    assert!(
        newer.to_string().contains("has schema version 2"),
        "{newer}"
    );
    server.sql(&format!("DROP SCHEMA {name} CASCADE; CREATE SCHEMA {name}"));
    let gone = add(&db, 3).unwrap_err();
    assert!(gone.to_string().contains("is not there any more"), "{gone}");
    let tables = format!("SELECT count(*) FROM pg_tables WHERE schemaname = '{name}'");
    assert_eq!(server.sql(&tables), "0");
}

#[test]
fn who_looks_makes_nothing_and_who_has_disconnected_connects_again() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    let url = server.new_schema();
    assert!(!look(&url, &SCHEMA).unwrap());
    assert!(open_made(&url, &SCHEMA).unwrap().is_none());
    let name = url.rsplit_once("%3D").unwrap().1;
    let tables = format!("SELECT count(*) FROM pg_tables WHERE schemaname = '{name}'");
    assert_eq!(server.sql(&tables), "0");
    let db = open(&url, &SCHEMA).unwrap();
    assert!(look(&url, &SCHEMA).unwrap());
    add(&open_made(&url, &SCHEMA).unwrap().unwrap(), 1).unwrap();
    // Nor is one brought up to date.
    assert!(look(&url, &NEWER).unwrap());
    assert!(look(&url, &SCHEMA).unwrap());

    let pid = |db: &Database| db.the_value::<i64>("SELECT pg_backend_pid()", &[]).unwrap();
    let before = pid(&db);
    db.disconnect();
    db.disconnect();
    add(&db, 2).unwrap();
    assert_ne!(pid(&db), before);
    // What is under way goes on.
    db.transaction(Mode::Write, |transaction| {
        add(transaction, 3)?;
        db.disconnect();
        add(transaction, 4)
    })
    .unwrap();
    assert_eq!(count(&db), 4);
}

/// As when a standby that was behind takes the place of the server.
#[test]
fn a_change_that_was_durable_and_is_lost_is_told_once_to_whoever_changes_something() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    for lost in [
        "UPDATE sealdisk_commits SET number = number - 1",
        "DELETE FROM sealdisk_commits",
    ] {
        let url = server.new_schema();
        let name = url.rsplit_once("%3D").unwrap().1;
        let (db, other) = (open(&url, &SCHEMA).unwrap(), open(&url, &SCHEMA).unwrap());
        add(&db, 1).unwrap();
        cut_off(&db, &other);
        // Without that, nothing is told.
        add(&db, 2).unwrap();
        server.sql(&format!("SET search_path = {name}; {lost}"));
        cut_off(&db, &other);
        let told = add(&db, 3).unwrap_err();
        assert!(told.to_string().contains("has lost a change"), "{told}");
        assert_eq!(told.kind(), ErrorKind::Other);
        add(&db, 3).unwrap();
        assert_eq!(count(&db), 3);
        // Whoever only looks does not keep it from them.
        server.sql(&format!("SET search_path = {name}; {lost}"));
        cut_off(&db, &other);
        let told = db.moment().err().unwrap();
        assert!(told.to_string().contains("has lost a change"), "{told}");
        assert_eq!(count(&db), 3);
        let told = add(&db, 4).unwrap_err();
        assert!(told.to_string().contains("has lost a change"), "{told}");
        add(&db, 4).unwrap();
    }
}

/// Kills the server again and again while somebody adds: what is said to be there is there, and nothing else is.
#[test]
fn what_becomes_of_a_commit_is_known_whenever_the_server_dies() {
    let Some(server) = PostgresServer::start(&[]) else {
        return;
    };
    let db = open(&server.new_schema(), &SCHEMA).unwrap();
    let is_over = AtomicBool::new(false);
    let (db, added) = std::thread::scope(|scope| {
        let is_over = &is_over;
        let adds = scope.spawn(move || {
            let mut next = 1;
            while !is_over.load(Ordering::Relaxed) {
                // A second attempt after a commit that counted would meet its own row.
                add(&db, next).unwrap();
                next += 1;
            }
            (db, next - 1)
        });
        for round in 0..test_support::times("SEALDISK_DEATHS", 10) {
            std::thread::sleep(Duration::from_micros(u64::from(50_000 + round * 777)));
            server.kill();
            server.run();
        }
        is_over.store(true, Ordering::Relaxed);
        adds.join().unwrap()
    });
    assert!(added > 0);
    assert_eq!(count(&db), added);
}

/// What a proxy does with the next commit.
#[derive(Clone, Copy, PartialEq)]
enum Commit {
    Pass,
    /// The server gets it, and the client no answer.
    CutAnswer,
    /// Nor does the server get it, for which the client goes on being there.
    Swallow,
}

/// The URL of a proxy between clients and the socket of a server, and what it does.
fn proxy(url: &str, server: &PostgresServer, dir: &Path) -> (String, Arc<Mutex<Commit>>) {
    let listener = UnixListener::bind(dir.join(".s.PGSQL.5432")).unwrap();
    let socket = server.dir().join(".s.PGSQL.5432");
    let what = Arc::new(Mutex::new(Commit::Pass));
    let told = Arc::clone(&what);
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for client in listener.incoming() {
            let client = client.unwrap();
            let server = UnixStream::connect(&socket).unwrap();
            kept.push(server.try_clone().unwrap());
            let (mut from, mut to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut from, &mut to));
            let told = Arc::clone(&told);
            std::thread::spawn(move || pass(client, server, &told));
        }
    });
    let own = server.dir().display().to_string();
    (url.replace(&own, &dir.display().to_string()), what)
}

fn pass(mut client: UnixStream, mut server: UnixStream, told: &Mutex<Commit>) {
    let mut buffer = [0; 8192];
    while let Ok(length @ 1..) = client.read(&mut buffer) {
        let sent = &buffer[..length];
        let is_commit = sent.windows(6).any(|part| part == b"COMMIT");
        let what = match is_commit {
            true => std::mem::replace(&mut *told.lock().unwrap(), Commit::Pass),
            false => Commit::Pass,
        };
        if what != Commit::Pass {
            client.shutdown(Shutdown::Both).unwrap();
        }
        if what != Commit::Swallow {
            server.write_all(sent).unwrap();
        }
    }
}

#[test]
fn a_commit_whose_answer_is_lost_has_counted_or_is_made_again() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (url, what) = proxy(&server.new_schema(), server, dir.path());
    let db = open(&url, &SCHEMA).unwrap();
    add(&db, 1).unwrap();
    for (id, commit, expected) in [
        (2, Commit::CutAnswer, 1),
        (3, Commit::Swallow, 2),
        (4, Commit::CutAnswer, 1),
    ] {
        *what.lock().unwrap() = commit;
        let mut attempts = 0;
        db.transaction(Mode::Write, |db| {
            attempts += 1;
            add(db, id)
        })
        .unwrap();
        assert_eq!(attempts, expected);
        assert_eq!(count(&db), id);
    }
    // The first transaction of a connection has no row yet.
    let db = open(&url, &SCHEMA).unwrap();
    *what.lock().unwrap() = Commit::Swallow;
    add(&db, 5).unwrap();
    assert_eq!(count(&db), 5);
}

#[test]
fn what_has_become_of_a_commit_is_not_made_up_when_nobody_tells() {
    let Some(server) = PostgresServer::start(&["fsync=off"]) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (url, what) = proxy(&server.new_schema(), &server, dir.path());
    let db = open_impatient(&url);
    *what.lock().unwrap() = Commit::Swallow;
    let mut attempts = 0;
    let done = db.transaction(Mode::Write, |db| {
        attempts += 1;
        add(db, 1)?;
        std::fs::remove_file(dir.path().join(".s.PGSQL.5432")).unwrap();
        Ok::<_, Error>(())
    });
    let unknown = done.unwrap_err();
    assert_eq!(
        (attempts, unknown.kind()),
        (1, ErrorKind::Unknown),
        "{unknown}"
    );
}
