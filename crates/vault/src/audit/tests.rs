//! Every change of a stored log is found, and an honest log is never suspected.

use database::{Mode, params};
use proptest::prelude::*;
use test_support::postgres::PostgresServer;
use time::OffsetDateTime;
use uuid::Uuid;

use super::*;
use place::{Engine, Place, engines};

mod forged;
mod kept;
mod place;

const NAME: &str = "test";

struct Fixture {
    place: Place,
    log: AuditLog,
}

impl Fixture {
    fn new(engine: Engine, records: u64) -> Self {
        let place = Place::new(engine);
        let log = place.open().unwrap();
        let fixture = Self { place, log };
        fixture.append(records);
        fixture
    }

    fn append(&self, records: u64) {
        self.try_append(records).unwrap();
    }

    /// Appends all of them in one transaction.
    fn try_append(&self, records: u64) -> Result<(), AuditError> {
        let records: Vec<AuditRecord> = (0..records).map(record).collect();
        let db = self.log.db();
        db.transaction(APPENDING, |db| self.log.chain().append(db, &records))
    }

    fn reopen(&self) -> Result<AuditLog, AuditError> {
        self.place.open()
    }

    fn report_with(&self, pins: &[Pin]) -> Report {
        self.log
            .read(|chain, db| chain.verify(db, NAME, pins).unwrap())
    }

    fn report(&self) -> Report {
        self.report_with(&[])
    }

    fn export(&self, records: bool) -> Vec<u8> {
        let mut out = Vec::new();
        self.log
            .read(|chain, db| write_export(db, chain, NAME, records, &mut out))
            .unwrap();
        out
    }

    fn pins(&self) -> Vec<Pin> {
        pins(self.export(false).as_slice()).unwrap()
    }

    /// Changes the database as somebody does who has it and not the key.
    fn tamper(&self, sql: &str) {
        let db = self.place.database();
        let mut changed = 0;
        for sql in sql.split(';') {
            changed = db.execute(sql.trim(), &[]).unwrap();
        }
        assert!(changed > 0, "{sql}");
    }
}

fn record(n: u64) -> AuditRecord {
    AuditRecord {
        time: OffsetDateTime::UNIX_EPOCH + time::Duration::seconds(n.try_into().unwrap()),
        event: Event {
            caller: Uuid::from_u128(n.into()).to_string(),
            origin: "local".into(),
            operation: "KeyWrap".into(),
            key: n.is_multiple_of(3).then(|| "k".into()),
            version: (n % 3 == 1).then(|| "k".into()),
            disk: None,
            detail: n.is_multiple_of(2).then(String::new),
            code: n.is_multiple_of(5).then(|| "Forbidden".into()),
        },
    }
}

#[test]
fn an_honest_log_verifies_here_and_elsewhere() {
    for engine in engines() {
        for records in [0, 1, 7, CHECKPOINT_INTERVAL, 2 * CHECKPOINT_INTERVAL + 3] {
            let fixture = Fixture::new(engine, records);
            let report = fixture.report();
            assert_eq!(report.finding, None, "{records}");
            assert_eq!(report.records, records);
            let export = fixture.export(true);
            let reports = verify_export(export.as_slice(), &[]).unwrap();
            assert_eq!(reports, [report]);

            let pins = fixture.pins();
            let checkpoints = records / CHECKPOINT_INTERVAL;
            assert_eq!(pins.len() as u64, checkpoints + 1);
            fixture.append(5);
            let report = fixture.report_with(&pins);
            assert_eq!((report.finding, report.pins), (None, pins.len()));
        }
    }
}

#[test]
fn each_kind_of_tampering_is_found_and_named() {
    let cut = "DELETE FROM audit WHERE seq > 2500";
    let cases = [
        ("UPDATE audit SET caller = 'x' WHERE seq = 7", 7, "record 7"),
        ("UPDATE audit SET code = NULL WHERE seq = 6", 6, "record 6"),
        (
            "UPDATE audit SET detail = NULL WHERE seq = 3",
            3,
            "record 3",
        ),
        (
            "UPDATE audit SET key = version, version = key WHERE seq = 4",
            4,
            "record 4",
        ),
        (
            "UPDATE audit SET hash = (SELECT hash FROM audit_head) WHERE seq = 9",
            9,
            "record 9",
        ),
        (
            "UPDATE audit SET hash = substr(hash, 1, 1) WHERE seq = 9",
            9,
            "record 9",
        ),
        ("DELETE FROM audit WHERE seq = 1", 1, "record 1 was removed"),
        (
            "DELETE FROM audit WHERE seq = 1500",
            1500,
            "record 1500 was removed",
        ),
        (cut, 2501, "cut off: records 2501 to 2510"),
        ("DELETE FROM audit", 1, "cut off"),
        (
            "UPDATE audit SET seq = -1 WHERE seq = 5; UPDATE audit SET seq = 5 WHERE seq = 6;
             UPDATE audit SET seq = 6 WHERE seq = -1",
            5,
            "record 5",
        ),
        (
            "INSERT INTO audit SELECT 2511, time, caller, origin, operation, key, version, disk, \
             detail, code, hash FROM audit WHERE seq = 2510",
            2511,
            "record 2511",
        ),
        ("DELETE FROM audit_head", 2510, "head was removed"),
        ("UPDATE audit_head SET seq = 2509", 2509, "head was changed"),
        ("UPDATE audit_head SET time = 'x'", 2510, "head was changed"),
        (
            "DELETE FROM audit_checkpoints WHERE seq = 1000",
            1000,
            "checkpoint",
        ),
        (
            "UPDATE audit_checkpoints SET time = 'x' WHERE seq = 2000",
            2000,
            "checkpoint",
        ),
        (
            "INSERT INTO audit_checkpoints SELECT 1500, hash, time, signature FROM \
             audit_checkpoints WHERE seq = 1000",
            1500,
            "checkpoint without",
        ),
        // A checkpoint does not pass as a head.
        (
            "DELETE FROM audit WHERE seq > 2000; DELETE FROM audit_head; INSERT INTO audit_head \
             SELECT 1, seq, hash, time, signature FROM audit_checkpoints WHERE seq = 2000",
            2000,
            "head was changed",
        ),
    ];
    let each = engines().into_iter();
    let each = each.flat_map(|engine| cases.iter().map(move |case| (engine, *case)));
    for (engine, (sql, seq, what)) in each {
        let fixture = Fixture::new(engine, 2510);
        fixture.tamper(sql);
        let finding = fixture.report().finding.unwrap();
        assert!(finding.what.contains(what), "{sql}: {finding:?}");
        assert_eq!(finding.seq, seq, "{sql}: {finding:?}");
        // And in what is exported from it.
        let export = fixture.export(true);
        let [report] = &verify_export(export.as_slice(), &[]).unwrap()[..] else {
            panic!("{sql}");
        };
        assert_eq!(report.finding.as_ref(), Some(&finding), "{sql}");
    }
}

/// Whoever can write the database computes all hashes anew, but signs nothing.
#[test]
fn rewritten_hashes_do_not_fit_what_was_signed() {
    for engine in engines() {
        let fixture = Fixture::new(engine, 1510);
        let id = fixture.log.read(|chain, _| chain.log_id());
        let db = fixture.place.database();
        let mut hash = entry::GENESIS;
        fixture.tamper("UPDATE audit SET caller = 'x' WHERE seq = 1200");
        let mut rewritten = Vec::new();
        store::stored(&db, 0, |stored| {
            hash = stored.entry.hash(id, &hash);
            rewritten.push((stored.entry.seq, hash));
            Ok::<_, AuditError>(())
        })
        .unwrap();
        db.transaction(Mode::Write, |db| {
            let sql = "UPDATE audit SET hash = ? WHERE seq = ?";
            rewritten.iter().try_for_each(|(seq, hash)| {
                db.execute(sql, params![hash, seq.cast_signed()]).map(drop)
            })
        })
        .unwrap();
        let finding = fixture.report().finding.unwrap();
        assert_eq!(finding.seq, 1001, "the checkpoint narrows it down");
        assert!(
            finding.what.contains("between 1001 and 1510"),
            "{finding:?}"
        );
        // The head keeps its signature only as long as nothing is appended to what it does not sign.
        db.execute("UPDATE audit_head SET hash = ?", params![hash])
            .unwrap();
        let error = fixture.log.append(&record(1)).unwrap_err();
        assert!(matches!(error, AuditError::Tampered { .. }), "{error}");
    }
}

#[test]
fn only_a_checkpoint_kept_elsewhere_shows_that_a_log_was_put_back_or_replaced() {
    for engine in engines() {
        let fixture = Fixture::new(engine, 2100);
        let pins = fixture.pins();
        let shorter = Fixture::new(engine, 0);
        assert_eq!(shorter.report().finding, None);
        let finding = shorter.report_with(&pins).finding.unwrap();
        assert!(finding.what.contains("was replaced"), "{finding:?}");

        let export = fixture.export(true);
        let text = String::from_utf8(export).unwrap();
        let last = text.lines().last().unwrap();
        assert!(last.contains(r#""type":"head""#), "{last}");
        // An export that ends where an earlier head was signed is consistent in itself.
        let earlier = Fixture::new(engine, 3);
        let head = earlier.export(true);
        earlier.append(4);
        let pins = earlier.pins();
        let [report] = &verify_export(head.as_slice(), &pins).unwrap()[..] else {
            panic!()
        };
        let finding = report.finding.clone().unwrap();
        assert!(finding.what.contains("put back"), "{finding:?}");
        assert_eq!(finding.seq, 4);
    }
}

#[test]
fn a_log_with_another_signing_key_is_refused() {
    for engine in engines() {
        let (fixture, other) = (Fixture::new(engine, 3), Fixture::new(engine, 3));
        let key = fixture.place.key();
        std::fs::copy(other.place.key(), &key).unwrap();
        let error = fixture.reopen().err().unwrap();
        assert!(matches!(error, AuditError::Tampered { .. }), "{error}");
        std::fs::remove_file(&key).unwrap();
        let error = fixture.reopen().err().unwrap();
        assert!(matches!(error, AuditError::Key(_)), "{error}");
        assert!(!key.exists(), "a lost key is not replaced");
    }
}

#[test]
fn many_processes_append_to_one_chain() {
    for engine in engines() {
        let place = Place::new(engine);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let log = place.open().unwrap();
                    for n in 0..25 {
                        log.append(&record(n)).unwrap();
                    }
                });
            }
        });
        let log = place.open().unwrap();
        let report = log.read(|chain, db| chain.verify(db, NAME, &[]).unwrap());
        assert_eq!((report.records, report.finding), (100, None));
    }
}

/// They make it at the same time, and one is first.
#[test]
fn hosts_that_share_a_log_append_to_one_chain_under_one_key() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    let one = Place::new(Engine::Postgres(server));
    let other = one.of_another_host();
    let opened = std::thread::scope(|scope| {
        let opened = [&one, &other].map(|place| scope.spawn(move || place.open()));
        opened.map(|opened| opened.join().unwrap())
    });
    let (with_key, without) = match &opened {
        [Ok(_), Err(AuditError::Key(_))] => (&one, &other),
        [Err(AuditError::Key(_)), Ok(_)] => (&other, &one),
        [one, other] => panic!("{:?} {:?}", one.as_ref().err(), other.as_ref().err()),
    };
    assert!(!without.key().exists(), "it made none that counts");
    std::fs::copy(with_key.key(), without.key()).unwrap();
    std::thread::scope(|scope| {
        for place in [&one, &other, &one] {
            scope.spawn(move || {
                let log = place.open().unwrap();
                for n in 0..25 {
                    log.append_counted(record(n), REFUSALS).unwrap();
                    log.append(&record(n)).unwrap();
                }
            });
        }
    });
    let log = one.open().unwrap();
    let report = log.read(|chain, db| chain.verify(db, NAME, &[]).unwrap());
    assert_eq!(report.finding, None);
    assert!(report.records >= 75, "{}", report.records);

    // Whether a process of another host lives is not for this one to say.
    let _under_way = log.begin(record(2)).unwrap();
    let sql = "UPDATE audit_intents SET owner = ?";
    let gone = one.gone_process();
    one.database().execute(sql, params![gone]).unwrap();
    let records = |place: &Place| {
        let log = place.open().unwrap();
        log.read(|chain, db| chain.last(db).unwrap())
    };
    let before = records(&other);
    assert_eq!(records(&other), before);
    assert_eq!(records(&one), before + 1);
}

#[test]
fn nothing_is_put_over_what_somebody_has_put_behind_the_end() {
    for engine in engines() {
        let fixture = Fixture::new(engine, 3);
        fixture.tamper(
            "INSERT INTO audit SELECT 4, time, caller, origin, operation, key, version, disk, \
             detail, code, hash FROM audit WHERE seq = 3",
        );
        for (records, what) in [
            (1, "there is a record 4 behind its end"),
            (9, "there is a record between 4 and 11 behind its end"),
        ] {
            let error = fixture.try_append(records).unwrap_err();
            assert!(matches!(error, AuditError::Tampered { .. }), "{error}");
            assert!(error.to_string().contains(what), "{error}");
        }
        fixture.tamper("DELETE FROM audit WHERE seq = 4");
        fixture.append(9);
        assert_eq!(fixture.report().records, 12);
    }
}

#[test]
fn what_is_no_export_is_refused_with_its_line() {
    let export = Fixture::new(Engine::Sqlite, 3).export(true);
    let text = String::from_utf8(export).unwrap();
    let without_log: String = text.split_inclusive('\n').skip(1).collect();
    for (bad, line) in [
        (text.replace("\"format\":1", "\"format\":2"), 1),
        (without_log, 1),
        (text.replace("\"record\"", "\"records\""), 2),
        (format!("{text}x\n"), 6),
        ("x".repeat(2 << 20), 1),
    ] {
        let error = verify_export(bad.as_bytes(), &[]).unwrap_err();
        assert!(
            matches!(error, AuditError::Export { line: l, .. } if l == line),
            "{error}"
        );
    }
    let forged = text.replace(
        "1970-01-01T00:00:02Z\",\"signature",
        "1970-01-01T00:00:03Z\",\"signature",
    );
    assert!(forged != text);
    let error = pins(forged.as_bytes()).unwrap_err();
    assert!(
        error.to_string().contains("signature is not valid"),
        "{error}"
    );
    verify_export(format!("\n{text}\n").as_bytes(), &[]).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever single value of whatever record is changed, to whatever: it is found, and nothing
    /// before it is suspected.
    #[test]
    fn any_changed_value_is_found(
        seq in 1u64..=20,
        column in 0usize..10,
        value in proptest::option::of("[ -~]{0,8}"),
    ) {
        let names = ["time", "caller", "origin", "operation", "key", "version", "disk", "detail",
                     "code", "seq"];
        let (name, at) = (names[column], seq.cast_signed());
        for engine in engines() {
            let fixture = Fixture::new(engine, 20);
            let db = fixture.place.database();
            let sql = format!("UPDATE audit SET {name} = ? WHERE seq = ?");
            let changed = if name == "seq" {
                db.execute(&sql, params![at + 100, at])
            } else {
                let sql_before = format!("SELECT {name} FROM audit WHERE seq = ?");
                let before: Option<String> = db.the_value(&sql_before, params![at]).unwrap();
                prop_assume!(before != value, "it has that value already");
                db.execute(&sql, params![value, at])
            };
            prop_assume!(changed.is_ok(), "it must not be NULL");
            let finding = fixture.report().finding.unwrap();
            prop_assert_eq!(finding.seq, seq);
        }
    }

    /// Any change of any byte of an export is found, or makes it no export.
    #[test]
    fn any_changed_byte_of_an_export_is_found(at in any::<prop::sample::Index>(), bit in 0u32..8) {
        let fixture = Fixture::new(Engine::Sqlite, 5);
        let mut export = fixture.export(true);
        let pins = fixture.pins();
        let at = at.index(export.len());
        let before = export.clone();
        export[at] ^= 1 << bit;
        let same = |a: &[u8], b: &[u8]| {
            let lines = |bytes: &[u8]| -> Result<Vec<_>, _> {
                read_export(bytes).map(|l| l.map(|(_, line)| line)).collect::<Result<_, AuditError>>()
            };
            matches!((lines(a), lines(b)), (Ok(a), Ok(b)) if a == b)
        };
        let found = match verify_export(export.as_slice(), &pins) {
            Err(_) => true,
            Ok(reports) => {
                reports.iter().any(|r| r.finding.is_some() || r.pins == 0) || reports.is_empty()
            }
        };
        // `created` is only told; white space and the case of a unicode escape mean the same.
        let told = String::from_utf8_lossy(&before[..at]).matches("\"created\"").count() == 1
            && !String::from_utf8_lossy(&before[..at]).contains("publicKey");
        prop_assert!(found || told || same(&before, &export));
    }

    #[test]
    fn arbitrary_lines_never_panic(text in "(\\{\"type\":\"(log|record|head|checkpoint)\"[^\n]{0,40}\\}?\n?){0,4}") {
        let _ = verify_export(text.as_bytes(), &[]);
        let _ = pins(text.as_bytes());
    }
}
