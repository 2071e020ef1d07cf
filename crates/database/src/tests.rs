//! What holds for each engine.

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

/// An empty database that can be opened many times, for as long as this is kept.
struct Place {
    open: Box<dyn Fn() -> Database + Sync>,
    _dir: Option<tempfile::TempDir>,
}

fn in_sqlite() -> Place {
    const SCHEMA: sqlite::Schema = sqlite::Schema {
        what: "test database",
        application_id: 42,
        steps: &[|db| {
            db.execute_batch(
                "CREATE TABLE parents (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;
                 CREATE TABLE children (
                     parent INTEGER NOT NULL REFERENCES parents (id) ON DELETE CASCADE,
                     data   BLOB,
                     note   TEXT
                 ) STRICT;",
            )
        }],
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.db");
    Place {
        open: Box::new(move || sqlite::open(&path, &SCHEMA).unwrap().into()),
        _dir: Some(dir),
    }
}

#[cfg(feature = "postgres")]
pub(crate) const POSTGRES: postgres::Schema = postgres::Schema {
    what: "test database",
    application_id: 42,
    steps: &[r#"
CREATE TABLE parents (id bigint PRIMARY KEY, name text NOT NULL UNIQUE);
CREATE TABLE children (
    parent bigint NOT NULL REFERENCES parents (id) ON DELETE CASCADE,
    data   bytea,
    note   text
);"#],
};

#[cfg(feature = "postgres")]
fn in_postgres() -> Option<Place> {
    let url = test_support::postgres::PostgresServer::shared()?.new_schema();
    Some(Place {
        open: Box::new(move || postgres::open(&url, &POSTGRES).unwrap()),
        _dir: None,
    })
}

/// Does a test in each engine.
fn on_each(test: impl Fn(&Place)) {
    test(&in_sqlite());
    #[cfg(feature = "postgres")]
    if let Some(place) = in_postgres() {
        test(&place);
    }
}

fn add(db: &Connection, id: i64, name: &str) -> Result<u64, Error> {
    db.execute("INSERT INTO parents VALUES (?, ?)", params![id, name])
}

fn count(db: &Connection) -> i64 {
    db.the_value("SELECT count(*) FROM parents", &[]).unwrap()
}

#[test]
fn values_come_back_as_they_were_given() {
    on_each(|place| {
        let db = (place.open)();
        assert_eq!(add(&db, i64::MAX, "it's 'ä' ?").unwrap(), 1);
        let bytes = [0_u8, 255, 7];
        let sql = "INSERT INTO children VALUES (?1, ?3, ?2)";
        for data in [Some(bytes.as_slice()), None] {
            db.execute(sql, params![i64::MAX, data.map(|_| "?"), data])
                .unwrap();
        }
        let sql =
            "SELECT parent, data, note, note = '?' AS same FROM children ORDER BY note NULLS FIRST";
        let rows = db
            .select(sql, &[], |row| {
                let columns = (row.get::<i64>(0)?, row.get::<Option<Vec<u8>>>("data")?);
                Ok::<_, Error>((
                    columns,
                    row.get::<Option<String>>(2)?,
                    row.get::<Option<bool>>("same")?,
                ))
            })
            .unwrap();
        assert_eq!(rows[0], ((i64::MAX, None), None, None));
        let full = (
            (i64::MAX, Some(bytes.to_vec())),
            Some("?".into()),
            Some(true),
        );
        assert_eq!(rows[1], full);
        let name = db.value::<String>("SELECT name FROM parents WHERE id = ?", params![i64::MAX]);
        assert_eq!(name.unwrap().unwrap(), "it's 'ä' ?");
        let wrong = db
            .value::<i64>("SELECT name FROM parents", &[])
            .unwrap_err();
        assert_eq!(wrong.kind(), ErrorKind::Column);
        assert_eq!(
            db.value::<i64>("SELECT id FROM parents WHERE id = 1", &[])
                .unwrap(),
            None
        );
        let changed = db.execute(
            "UPDATE children SET note = ? WHERE note IS NULL",
            params!["n"],
        );
        assert_eq!(changed.unwrap(), 1);
    });
}

#[test]
fn a_violated_constraint_is_told_from_others() {
    on_each(|place| {
        let db = (place.open)();
        add(&db, 1, "a").unwrap();
        for (id, name) in [(1, "b"), (2, "a")] {
            let taken = add(&db, id, name).unwrap_err();
            assert_eq!(taken.kind(), ErrorKind::Unique, "{taken}");
        }
        let orphan = db.execute("INSERT INTO children VALUES (2, NULL, NULL)", &[]);
        assert_eq!(orphan.unwrap_err().kind(), ErrorKind::ForeignKey);
        let null = db.execute("INSERT INTO parents VALUES (2, NULL)", &[]);
        assert_eq!(null.unwrap_err().kind(), ErrorKind::Other);
        let wrong = db.execute("NO STATEMENT", &[]);
        assert_eq!(wrong.unwrap_err().kind(), ErrorKind::Other);
        assert_eq!(count(&db), 1);
    });
}

#[test]
fn of_a_transaction_all_counts_or_nothing() {
    on_each(|place| {
        let (db, other) = ((place.open)(), (place.open)());
        let failed = db.transaction(Mode::Write, |db| {
            add(db, 1, "a")?;
            assert_eq!((count(db), count(&other)), (1, 0));
            add(db, 1, "b")
        });
        assert_eq!(failed.unwrap_err().kind(), ErrorKind::Unique);
        assert_eq!(count(&db), 0);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            db.transaction(Mode::Write, |db| {
                add(db, 1, "a").unwrap();
                panic!("in the middle");
                #[allow(unreachable_code, reason = "its type is asked for")]
                Ok::<(), Error>(())
            })
        }));
        assert!(panicked.is_err());
        assert_eq!(count(&db), 0);
        db.transaction(Mode::Write, |db| add(db, 1, "a").and(add(db, 2, "b")))
            .unwrap();
        assert_eq!(count(&other), 2);
        // What is read is of one moment.
        other
            .transaction(Mode::Read, |other| {
                assert_eq!(count(other), 2);
                add(&db, 3, "c")?;
                assert_eq!(count(other), 2);
                Ok::<_, Error>(())
            })
            .unwrap();
        assert_eq!(count(&other), 3);
    });
}

/// Has several add at once what depends on what the others have added; how often they began.
fn meet(place: &Place, mode: Mode) -> u32 {
    let db = (place.open)();
    db.execute("INSERT INTO parents VALUES (0, 'n')", &[])
        .unwrap();
    let attempts = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let attempts = &attempts;
            scope.spawn(move || {
                let db = (place.open)();
                for round in 0..10 {
                    db.transaction(mode, |db| {
                        attempts.fetch_add(1, Ordering::Relaxed);
                        let next: i64 = db.the_value("SELECT max(id) + 1 FROM parents", &[])?;
                        add(db, next, &format!("{thread}-{round}"))
                    })
                    .unwrap();
                }
            });
        }
    });
    assert_eq!(count(&db), 41);
    let last: i64 = db.the_value("SELECT max(id) FROM parents", &[]).unwrap();
    assert_eq!(last, 40, "{attempts:?} attempts");
    attempts.into_inner()
}

#[test]
fn changes_that_meet_are_as_one_after_the_other() {
    on_each(|place| assert!(meet(place, Mode::Write) >= 40));
}

#[test]
fn those_who_change_something_in_turn_begin_once() {
    on_each(|place| assert_eq!(meet(place, Mode::InTurn("parents")), 40));
}

#[test]
fn nobody_changes_anything_while_somebody_is_alone() {
    on_each(|place| {
        let (db, other) = ((place.open)(), (place.open)());
        let alone = Held::begin(&db, Mode::Alone).unwrap();
        std::thread::scope(|scope| {
            let adds = scope.spawn(move || add(&other, 1, "a").unwrap());
            std::thread::sleep(std::time::Duration::from_millis(100));
            assert!(!adds.is_finished());
            assert_eq!(count(&alone), 0);
            drop(alone);
            adds.join().unwrap();
        });
        // Who has waited to be alone sees what was done meanwhile.
        assert_eq!(count(&Held::begin(&db, Mode::Alone).unwrap()), 1);
    });
}

#[test]
fn what_is_looked_at_is_of_one_moment_within_a_transaction_too() {
    on_each(|place| {
        let (db, other) = ((place.open)(), (place.open)());
        add(&db, 1, "a").unwrap();
        let moment = db.moment().unwrap();
        assert_eq!(count(&moment), 1);
        add(&other, 2, "b").unwrap();
        assert_eq!(count(&moment.moment().unwrap()), 1);
        assert_eq!(count(&moment), 1, "the inner one ends nothing");
        drop(moment);
        assert_eq!(count(&db), 2);
        db.transaction(Mode::Write, |db| {
            add(db, 3, "c")?;
            let moment = db.moment()?;
            assert_eq!(count(&moment), 3);
            add(db, 4, "d")
        })
        .unwrap();
        assert_eq!(count(&other), 4);
        db.limit_journal(50).unwrap();
        db.overwrite_journal().unwrap();
        db.shrink().unwrap();
        assert_eq!(count(&db), 4);
    });
}

#[test]
fn a_journal_is_not_overwritten_while_somebody_reads_what_is_in_it() {
    const SCHEMA: sqlite::Schema = sqlite::Schema {
        what: "test database",
        application_id: 42,
        steps: &[|db| db.execute_batch("CREATE TABLE parents (id INTEGER, name TEXT) STRICT")],
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.db");
    let (own, other) = (
        sqlite::open(&path, &SCHEMA).unwrap(),
        sqlite::open(&path, &SCHEMA).unwrap(),
    );
    own.busy_timeout(std::time::Duration::ZERO).unwrap();
    let (db, other) = (Database::from(own), Database::from(other));
    add(&db, 1, "a").unwrap();
    let moment = other.moment().unwrap();
    assert_eq!(count(&moment), 1);
    add(&db, 2, "b").unwrap();
    assert_eq!(db.overwrite_journal().unwrap_err().kind(), ErrorKind::Busy);
    drop(moment);
    db.overwrite_journal().unwrap();
    let journal = std::fs::metadata(dir.path().join("t.db-wal")).unwrap();
    assert_eq!(journal.len(), 0);
}

#[test]
fn who_has_enough_gets_no_more() {
    on_each(|place| {
        let db = (place.open)();
        for id in 1..=5 {
            add(&db, id, &id.to_string()).unwrap();
        }
        let mut seen = Vec::new();
        let sql = "SELECT id FROM parents ORDER BY id";
        db.visit(sql, &[], |row| {
            seen.push(row.get::<i64>(0)?);
            Ok::<_, Error>(match seen.len() {
                2 => std::ops::ControlFlow::Break(()),
                _ => std::ops::ControlFlow::Continue(()),
            })
        })
        .unwrap();
        assert_eq!(seen, [1, 2]);
        assert_eq!(
            db.first(sql, &[], |row| row.get::<i64>(0)).unwrap(),
            Some(1)
        );
    });
}
