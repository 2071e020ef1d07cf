//! Every change of a stored log is found, and an honest log is never suspected.

use std::path::PathBuf;

use proptest::prelude::*;
use rusqlite::Connection;
use tempfile::TempDir;
use time::OffsetDateTime;
use uuid::Uuid;

use super::*;

mod forged;
mod kept;

const NAME: &str = "test";

struct Fixture {
    dir: TempDir,
    log: AuditLog,
}

impl Fixture {
    fn new(records: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = AuditLog::open(&dir.path().join("audit.db")).unwrap();
        let fixture = Self { dir, log };
        fixture.append(records);
        fixture
    }

    fn append(&self, records: u64) {
        let records: Vec<AuditRecord> = (0..records).map(record).collect();
        self.log.read(|chain, db| {
            let transaction = db.unchecked_transaction().unwrap();
            chain.append(&transaction, &records).unwrap();
            transaction.commit().unwrap();
        });
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("audit.db")
    }

    fn reopen(&self) -> Result<AuditLog, AuditError> {
        AuditLog::open(&self.path())
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

    /// Changes the database as somebody does who has the file and not the key.
    fn tamper(&self, sql: &str) {
        let db = Connection::open(self.path()).unwrap();
        db.execute_batch(sql).unwrap();
        assert!(db.changes() > 0, "{sql}");
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
    for records in [0, 1, 7, CHECKPOINT_INTERVAL, 2 * CHECKPOINT_INTERVAL + 3] {
        let fixture = Fixture::new(records);
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
            "UPDATE audit SET hash = zeroblob(32) WHERE seq = 9",
            9,
            "record 9",
        ),
        ("UPDATE audit SET hash = x'00' WHERE seq = 9", 9, "record 9"),
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
            "DELETE FROM audit WHERE seq > 2000; INSERT OR REPLACE INTO audit_head SELECT 1, seq, \
             hash, time, signature FROM audit_checkpoints WHERE seq = 2000",
            2000,
            "head was changed",
        ),
    ];
    for (sql, seq, what) in cases {
        let fixture = Fixture::new(2510);
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
    let fixture = Fixture::new(1510);
    let id = fixture.log.read(|chain, _| chain.log_id());
    let db = Connection::open(fixture.path()).unwrap();
    let mut hash = entry::GENESIS;
    db.execute("UPDATE audit SET caller = 'x' WHERE seq = 1200", [])
        .unwrap();
    let mut rewritten = Vec::new();
    store::stored(&db, 0, |stored| {
        hash = stored.entry.hash(id, &hash);
        rewritten.push((stored.entry.seq, hash));
        Ok::<_, AuditError>(())
    })
    .unwrap();
    for (seq, hash) in rewritten {
        db.execute(
            "UPDATE audit SET hash = ? WHERE seq = ?",
            (hash, seq as i64),
        )
        .unwrap();
    }
    let finding = fixture.report().finding.unwrap();
    assert_eq!(finding.seq, 1001, "the checkpoint narrows it down");
    assert!(
        finding.what.contains("between 1001 and 1510"),
        "{finding:?}"
    );
    // The head keeps its signature only as long as nothing is appended to what it does not sign.
    db.execute("UPDATE audit_head SET hash = ?", [hash])
        .unwrap();
    let error = fixture.log.append(&record(1)).unwrap_err();
    assert!(matches!(error, AuditError::Tampered { .. }), "{error}");
}

#[test]
fn only_a_checkpoint_kept_elsewhere_shows_that_a_log_was_put_back_or_replaced() {
    let fixture = Fixture::new(1200);
    let files = ["audit.db", "audit.key"];
    let old: Vec<_> = files
        .iter()
        .map(|name| std::fs::read(fixture.dir.path().join(name)).unwrap())
        .collect();
    fixture.append(900);
    let pins = fixture.pins();

    let put_back = tempfile::tempdir().unwrap();
    for (name, bytes) in files.iter().zip(&old) {
        std::fs::write(put_back.path().join(name), bytes).unwrap();
    }
    // What WAL holds back is not in the copy of the main file; an export is complete in any case.
    let path = put_back.path().join("audit.key");
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let shorter = Fixture::new(0);
    assert_eq!(shorter.report().finding, None);
    let finding = shorter.report_with(&pins).finding.unwrap();
    assert!(finding.what.contains("was replaced"), "{finding:?}");

    let export = fixture.export(true);
    let text = String::from_utf8(export).unwrap();
    let last = text.lines().last().unwrap();
    assert!(last.contains(r#""type":"head""#), "{last}");
    // An export that ends where an earlier head was signed is consistent in itself.
    let earlier = Fixture::new(3);
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

#[test]
fn a_log_with_another_signing_key_is_refused() {
    let (fixture, other) = (Fixture::new(3), Fixture::new(3));
    std::fs::copy(other.path(), fixture.dir.path().join("other.db")).unwrap();
    let other_key = other.dir.path().join("audit.key");
    std::fs::copy(other_key, fixture.dir.path().join("audit.key")).unwrap();
    let error = fixture.reopen().err().unwrap();
    assert!(matches!(error, AuditError::Tampered { .. }), "{error}");
    std::fs::remove_file(fixture.dir.path().join("audit.key")).unwrap();
    let error = fixture.reopen().err().unwrap();
    assert!(matches!(error, AuditError::Key(_)), "{error}");
    let key = fixture.dir.path().join("audit.key");
    assert!(!key.exists(), "a lost key is not replaced");
}

#[test]
fn many_processes_append_to_one_chain() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.db");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let log = AuditLog::open(&path).unwrap();
                for n in 0..25 {
                    log.append(&record(n)).unwrap();
                }
            });
        }
    });
    let log = AuditLog::open(&path).unwrap();
    let report = log.read(|chain, db| chain.verify(db, NAME, &[]).unwrap());
    assert_eq!((report.records, report.finding), (100, None));
}

#[test]
fn what_is_no_export_is_refused_with_its_line() {
    let export = Fixture::new(3).export(true);
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
        let fixture = Fixture::new(20);
        let names = ["time", "caller", "origin", "operation", "key", "version", "disk", "detail",
                     "code", "seq"];
        let name = names[column];
        let db = Connection::open(fixture.path()).unwrap();
        let before: rusqlite::types::Value = db
            .query_row(&format!("SELECT {name} FROM audit WHERE seq = ?"), [seq as i64], |r| r.get(0))
            .unwrap();
        let sql = format!("UPDATE audit SET {name} = ? WHERE seq = ?");
        let changed = match name {
            "seq" => db.execute(&sql, (seq as i64 + 100, seq as i64)),
            _ => db.execute(&sql, (&value, seq as i64)),
        };
        let after = value.map_or(rusqlite::types::Value::Null, rusqlite::types::Value::Text);
        // A column that must not be NULL, or the value that it has already.
        prop_assume!(changed.is_ok() && (name == "seq" || before != after));
        let finding = fixture.report().finding.unwrap();
        prop_assert_eq!(finding.seq, seq);
    }

    /// Any change of any byte of an export is found, or makes it no export.
    #[test]
    fn any_changed_byte_of_an_export_is_found(at in any::<prop::sample::Index>(), bit in 0u32..8) {
        let fixture = Fixture::new(5);
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
