//! Names that one has alone, and schemas.

use super::*;
use crate::Exclusive;

#[test]
fn a_name_is_one_connections_until_it_gives_it_back_or_is_lost() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    let url = server.new_schema();
    let [one, other] = [(); 2].map(|()| open(&url, &SCHEMA).unwrap());
    let held = one.try_exclusive("due").unwrap().unwrap();
    assert!(held.is_kept().unwrap());
    assert!(other.try_exclusive("due").unwrap().is_none());
    assert!(other.try_exclusive("another").unwrap().is_some());
    // The same name in another schema is another one.
    let elsewhere = open(&server.new_schema(), &SCHEMA).unwrap();
    assert!(elsewhere.try_exclusive("due").unwrap().is_some());
    drop(held);
    let held = other.try_exclusive("due").unwrap().unwrap();
    assert!(one.try_exclusive("due").unwrap().is_none());

    // As when its process dies, or its host is gone.
    let process: i64 = other.the_value("SELECT pg_backend_pid()", &[]).unwrap();
    server.sql(&format!("SELECT pg_terminate_backend({process}, 60000)"));
    let taken = one.try_exclusive("due").unwrap().unwrap();
    assert!(!held.is_kept().unwrap());
    drop(taken);
    assert!(held.is_kept().unwrap(), "it has it again");
    assert!(one.try_exclusive("due").unwrap().is_none());
}

#[test]
fn who_waits_for_a_name_gets_it() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    let url = server.new_schema();
    let at_once = Mutex::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..5 {
                    let db = Box::new(open(&url, &SCHEMA).unwrap());
                    let held = Exclusive::take(db, "one").unwrap();
                    *at_once.lock().unwrap() += 1;
                    assert_eq!(*at_once.lock().unwrap(), 1);
                    std::thread::sleep(Duration::from_millis(2));
                    *at_once.lock().unwrap() -= 1;
                    drop(held);
                }
            });
        }
    });
}

#[test]
fn schemas_are_made_renamed_and_removed_with_what_else_a_transaction_does() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    let url = server.new_schema();
    let own = url.rsplit_once("%3D").unwrap().1;
    let [new, named] = ["new", "named"].map(|name| format!("{own}_{name}"));
    let db = open(&url, &SCHEMA).unwrap();
    make_schema(&db, &new).unwrap();
    make_schema(&db, &new).unwrap_err();
    let in_new = ServerUrl::parse(&url).unwrap().in_schema(&new);
    let made = open(in_new.as_str(), &SCHEMA).unwrap();
    add(&made, 7).unwrap();
    assert!(made.size().unwrap() > 0);
    let refused = db.transaction(Mode::Write, |db| {
        rename_schema(db, &new, &named)?;
        add(db, 1)?;
        db.execute("INSERT INTO nowhere VALUES (1)", &[])
    });
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Missing);
    assert!(has_schema(&db, &new).unwrap() && !has_schema(&db, &named).unwrap());
    db.transaction(Mode::Write, |db| {
        rename_schema(db, &new, &named)?;
        add(db, 1)
    })
    .unwrap();
    let beginning = format!("{own}_n");
    assert_eq!(schemas(&db, &beginning).unwrap(), [named.clone()]);
    assert_eq!(count(&db), 1);
    // Who has it open by its old name finds nothing any more, and a new connection says so too.
    let gone = made.the_value::<i64>("SELECT count(*) FROM parents", &[]);
    assert_eq!(gone.unwrap_err().kind(), ErrorKind::Missing);
    let refused = open_made(in_new.as_str(), &SCHEMA).err().unwrap();
    assert!(matches!(refused, OpenError::NoSchema { .. }), "{refused}");
    let by_name = ServerUrl::parse(&url).unwrap().in_schema(&named);
    assert_eq!(count(&open(by_name.as_str(), &SCHEMA).unwrap()), 1);
    for _ in 0..2 {
        drop_schema(&db, &named).unwrap();
    }
    assert!(schemas(&db, &beginning).unwrap().is_empty());
}
