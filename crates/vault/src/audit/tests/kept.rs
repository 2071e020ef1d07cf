//! What is counted, what is archived, and what is begun.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::*;

fn refused(seconds: i64) -> AuditRecord {
    let origin = format!("127.0.0.1:{}", 1024 + seconds % 1000);
    let mut record = AuditRecord::new(Uuid::from_u128(7), origin, "KeyUnwrap")
        .at(OffsetDateTime::UNIX_EPOCH + time::Duration::milliseconds(seconds * 100))
        .with_code("KeyDisabled");
    record.event.key = Some("k".into());
    record.event.version = Some(format!("v{seconds}"));
    record
}

/// Its signature covers the counters, which another process may change between two looks.
#[test]
fn what_was_seen_is_of_one_moment_though_others_append() {
    for engine in engines() {
        let fixture = Fixture::new(engine, 1);
        let own = fixture.place.dir().join("own.db");
        let other = fixture.reopen().unwrap();
        let appended = AtomicBool::new(false);
        std::thread::scope(|threads| {
            threads.spawn(|| {
                for n in 0..300 {
                    other.append_counted(refused(n % 7), REFUSALS).unwrap();
                }
                appended.store(true, Ordering::Relaxed);
            });
            fixture.log.read(|chain, db| {
                let seen = Seen::open(chain, db, &own, NAME).unwrap();
                while !appended.load(Ordering::Relaxed) {
                    seen.note(chain, db);
                    let noted = std::fs::read(own.with_extension("seen")).unwrap();
                    assert_eq!(pins(noted.as_slice()).map(|pins| pins.len()).unwrap(), 1);
                }
            });
        });
    }
}

/// Who takes an export, and stops once in the middle of it.
struct Slow(Vec<u8>);

impl std::io::Write for Slow {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        const MIDDLE: usize = 10_000;
        let before = self.0.len();
        self.0.extend_from_slice(bytes);
        if (before + 1..=self.0.len()).contains(&MIDDLE) {
            std::thread::sleep(std::time::Duration::from_millis(500));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_server_does_not_cut_an_export_off_that_is_taken_slowly() {
    for engine in engines() {
        let fixture = Fixture::new(engine, CHECKPOINT_INTERVAL + 5);
        let Some(db) = fixture.place.impatient_database() else {
            continue;
        };
        let mut slow = Slow(Vec::new());
        fixture
            .log
            .read(|chain, _| write_export(&db, chain, NAME, true, &mut slow))
            .unwrap();
        let reports = verify_export(slow.0.as_slice(), &[]).unwrap();
        assert_eq!(reports, [fixture.report()]);
    }
}

/// Whoever is slower would be overtaken by the others again and again.
#[test]
fn of_those_who_append_at_once_nobody_begins_again() {
    for engine in engines() {
        let fixture = Fixture::new(engine, 1);
        let other = fixture.reopen().unwrap();
        let attempts = AtomicU32::new(0);
        std::thread::scope(|threads| {
            for log in [&fixture.log, &other] {
                let attempts = &attempts;
                threads.spawn(move || {
                    for n in 0..50 {
                        let append = |chain: &Chain, db: &database::Connection| {
                            attempts.fetch_add(1, Ordering::Relaxed);
                            chain.append(db, &[record(n)])
                        };
                        log.write_as("KeyWrap", false, append).unwrap();
                    }
                });
            }
        });
        assert_eq!(attempts.into_inner(), 100);
        assert_eq!(fixture.report().records, 101);
    }
}

/// Whoever has it open goes on with what was put back, and would write over what shows that.
#[test]
fn a_log_that_is_put_back_while_it_is_open_is_noticed_and_the_evidence_stays() {
    for engine in engines() {
        // What shows it is remembered, or another process has noted it.
        for by_another in [false, true] {
            let fixture = Fixture::new(engine, 4);
            fixture.log.append(&record(4)).unwrap();
            fixture.tamper("CREATE TABLE kept AS SELECT * FROM audit_head; UPDATE kept SET id = 1");
            let other = fixture.reopen().unwrap();
            let log = if by_another { &other } else { &fixture.log };
            for n in 5..8 {
                log.append(&record(n)).unwrap();
            }
            assert_eq!(fixture.log.older(), None);
            let evidence = std::fs::read(fixture.place.key().with_extension("seen")).unwrap();
            assert_eq!(pins(evidence.as_slice()).unwrap()[0].at().seq, 8);
            fixture.tamper(
                "DELETE FROM audit_head; INSERT INTO audit_head SELECT * FROM kept; \
                 DELETE FROM audit WHERE seq > 5",
            );
            // Also when it has as many records again by the time that somebody looks.
            let records: Vec<_> = (20..24).map(record).collect();
            let mut rest = records.as_slice();
            if by_another {
                fixture.try_append(3).unwrap();
                rest = &records[..1];
            }
            for record in rest {
                fixture.log.append(record).unwrap();
            }
            let finding = fixture.log.older().unwrap();
            let expected = if by_another {
                "record 8 is another one"
            } else {
                "ends with record 6"
            };
            assert!(finding.what.contains(expected), "{finding:?}");
            let kept = std::fs::read(fixture.place.key().with_extension("seen")).unwrap();
            assert_eq!(kept, evidence);
            assert!(fixture.reopen().unwrap().older().is_some());
        }
    }
}

/// Whoever has access could keep it otherwise, by filling the file system.
#[test]
fn what_takes_access_away_is_recorded_though_there_is_no_room() {
    let is_essential = essential::is_essential;
    for operation in ["AccessRevoke", "RoleAssignmentDelete", "ResourceDelete"] {
        assert!(is_essential(operation), "{operation}");
        assert!(is_essential(&format!("{operation}Intent")), "{operation}");
    }
    for operation in [
        "AccessGrant",
        "ResourceWrite",
        "ResourceWriteIntent",
        "TokenIssue",
    ] {
        assert!(!is_essential(operation), "{operation}");
    }
}

fn entries(fixture: &Fixture) -> Vec<Entry> {
    let mut entries = Vec::new();
    fixture
        .log
        .read(|chain, db| {
            chain.for_each(db, 0, |entry| {
                entries.push(entry);
                Ok::<_, AuditError>(())
            })
        })
        .unwrap();
    entries
}

#[test]
fn what_happens_again_and_again_is_counted_and_none_of_it_is_lost() {
    for engine in engines() {
        let fixture = Fixture::new(engine, 1);
        // Ten in a second, for 20 seconds; the last of them are still being counted.
        for n in 10..205 {
            fixture.log.append_counted(refused(n), REFUSALS).unwrap();
        }
        let log = entries(&fixture);
        assert_eq!(log[1].event.detail, None);
        assert_eq!(
            log[1].event.version.as_deref(),
            Some("v10"),
            "the first is recorded as it is"
        );
        assert!(log.len() < 2 + 20, "{}", log.len());
        let counted = |detail: &str| detail.split(' ').next().unwrap().parse::<u64>().unwrap();
        let recorded: u64 = log[2..]
            .iter()
            .map(|e| counted(e.event.detail.as_deref().unwrap()))
            .sum();
        let open = fixture.log.read(|chain, db| chain.counters(db).unwrap());
        assert_eq!(1 + recorded + open[0].count, 195);
        assert!(
            log[2]
                .event
                .detail
                .as_deref()
                .unwrap()
                .starts_with("9 more from 1970-01-01T00:00:01.1Z")
        );
        let report = fixture.report();
        assert_eq!(report.finding, None);
        let exported = verify_export(fixture.export(true).as_slice(), &[]).unwrap();
        assert_eq!(exported, [report]);
        let pins = fixture.pins();

        // Who can write the database can no more change a count than a record.
        for sql in [
            "UPDATE audit_open SET count = count - 1",
            "DELETE FROM audit_open",
            "UPDATE audit_open SET caller = 'x'",
        ] {
            fixture.tamper(sql);
            let finding = fixture.report().finding.unwrap();
            assert!(finding.what.contains("counter"), "{finding:?}");
            fixture.log.append(&record(1)).unwrap_err();
            // Back to what it was, for the next.
            let put = format!(
                "DELETE FROM audit_open; INSERT INTO audit_open VALUES ({}, '{}', '127.0.0.1', \
                 'KeyUnwrap', 'k', NULL, NULL, NULL, 'KeyDisabled', {}, '{}', '{}', {}, {})",
                open[0].id,
                open[0].event.caller,
                open[0].count,
                open[0].first.as_deref().unwrap(),
                open[0].last.as_deref().unwrap(),
                open[0].closes,
                open[0].window
            );
            fixture.tamper(&put);
            assert_eq!(fixture.report().finding, None);
        }
        // Something else about the key tells how many there were before it.
        let mut other = refused(210);
        (other.event.code, other.event.operation) = (None, "KeyGet".into());
        fixture.log.append(&other).unwrap();
        let log = entries(&fixture);
        let sum: u64 = log[2..log.len() - 1]
            .iter()
            .map(|e| counted(e.event.detail.as_deref().unwrap()))
            .sum();
        assert_eq!(1 + sum, 195);
        // With nothing more the counter goes.
        fixture.log.settle(OffsetDateTime::now_utc()).unwrap();
        assert!(
            fixture
                .log
                .read(|chain, db| chain.counters(db).unwrap())
                .is_empty()
        );
        let report = fixture.report_with(&pins);
        assert_eq!((report.finding, report.pins), (None, pins.len()));
    }
}

pub(super) fn archive(fixture: &Fixture, dir: &std::path::Path) -> Archived {
    let now = OffsetDateTime::now_utc();
    let archived = fixture.log.archive(NAME, dir, now, record(3)).unwrap();
    archived.unwrap()
}

pub(super) fn read(files: &[&std::path::Path], pins: &[Pin]) -> Archives {
    let mut archives = Archives::default();
    for file in files {
        let file = std::fs::read(file).unwrap();
        archives.read(file.as_slice(), pins).unwrap();
    }
    archives
}

#[test]
fn archived_segments_and_the_log_are_one_chain() {
    for engine in engines() {
        let fixture = Fixture::new(engine, 1003);
        let dir = tempfile::tempdir().unwrap();
        let before = fixture.pins();
        let first = archive(&fixture, dir.path());
        assert_eq!((first.segment.first, first.segment.last), (1, 1003));
        fixture.append(20);
        let second = archive(&fixture, dir.path());
        assert_eq!(second.segment.first, 1004);
        fixture.append(4);
        let log = entries(&fixture);
        assert_eq!(log.len(), 5, "the archiving is on record");
        assert!(
            log[0]
                .event
                .detail
                .as_deref()
                .unwrap()
                .contains("records 1004 to 1024")
        );

        // By itself, with what it does not look at; with its segments; and elsewhere.
        let alone = fixture.report_with(&before);
        assert_eq!((alone.finding, alone.archived, alone.pins), (None, 1024, 0));
        let verify = |files: &[&std::path::Path]| {
            let mut archives = read(files, &before);
            fixture.log.read(|chain, db| {
                chain
                    .verify_behind(db, NAME, &before, &mut archives)
                    .unwrap()
            })
        };
        let whole = verify(&[&first.file, &second.file]);
        assert_eq!(
            (whole.finding, whole.archived, whole.pins),
            (None, 0, before.len())
        );
        assert_eq!(whole.records, 1029);
        let export = dir.path().join("live.jsonl");
        std::fs::write(&export, fixture.export(true)).unwrap();
        let elsewhere = read(&[&first.file, &second.file, &export], &before).finish();
        assert_eq!(elsewhere.len(), 1);
        assert_eq!((&elsewhere[0].finding, elsewhere[0].archived), (&None, 0));
        let segment = read(&[&second.file], &[]).finish();
        assert_eq!((&segment[0].finding, segment[0].archived), (&None, 1003));
        assert_eq!(segment[0].not_given, [1..=1003]);

        // A segment that is missing, whichever: nothing is wrong with the others.
        assert_eq!((alone.not_given, whole.not_given), (vec![], vec![]));
        for (given, missing) in [(&first, 1004..=1024), (&second, 1..=1003)] {
            let report = verify(&[&given.file]);
            assert_eq!(report.finding, None);
            assert_eq!(report.archived, missing.end() - missing.start() + 1);
            assert_eq!(report.not_given, [missing]);
        }

        // One that was cut off, or changed.
        let finding = |files: &[&std::path::Path]| verify(files).finding.unwrap();
        let text = std::fs::read_to_string(&second.file).unwrap();
        let bad = dir.path().join("bad.jsonl");
        let cut: Vec<&str> = text.lines().take(9).collect();
        std::fs::write(&bad, cut.join("\n")).unwrap();
        assert!(finding(&[&first.file, &bad]).what.contains("cut off"));
        std::fs::write(&bad, text.replacen("KeyWrap", "KeyGets", 1)).unwrap();
        assert_eq!(finding(&[&first.file, &bad]).seq, 1004);
        std::fs::write(&bad, text.replacen("\"last\":1024", "\"last\":1023", 1)).unwrap();
        assert!(finding(&[&first.file, &bad]).what.contains("segment"));

        // In the database: nobody else can say that records were archived.
        fixture.tamper("DELETE FROM audit WHERE seq <= 1026");
        assert_eq!(fixture.report().finding.unwrap().seq, 1025);
        fixture.tamper("UPDATE audit_segments SET last = 1026 WHERE first = 1004");
        let forged = fixture.report().finding.unwrap();
        assert!(forged.what.contains("segment"), "{forged:?}");
    }
}

#[test]
fn segments_are_missing_at_the_beginning_between_and_at_the_end() {
    for engine in engines() {
        let fixture = Fixture::new(engine, 3);
        let dir = tempfile::tempdir().unwrap();
        let mut segments = Vec::new();
        for _ in 0..5 {
            segments.push(archive(&fixture, dir.path()));
            fixture.append(2);
        }
        let at = |n: usize| segments[n].file.as_path();
        let records = |n: usize| segments[n].segment.first..=segments[n].segment.last;
        for given in [vec![1, 3], vec![0, 2, 4], vec![2], vec![0, 4], vec![4]] {
            let files: Vec<_> = given.iter().map(|n| at(*n)).collect();
            let mut archives = read(&files, &[]);
            let report = fixture
                .log
                .read(|chain, db| chain.verify_behind(db, NAME, &[], &mut archives).unwrap());
            assert_eq!(report.finding, None, "{given:?}");
            let missing = (0..5).filter(|n| !given.contains(n));
            let missing: Vec<u64> = missing.flat_map(records).collect();
            let named: Vec<u64> = report.not_given.into_iter().flatten().collect();
            assert_eq!(named, missing, "{given:?}");
        }
        // What hides in the gap is found: a segment whose own neighbours have other hashes.
        fixture.tamper("UPDATE audit_segments SET hash = previous WHERE first = 1");
        let mut archives = read(&[at(1)], &[]);
        let report = fixture
            .log
            .read(|chain, db| chain.verify_behind(db, NAME, &[], &mut archives).unwrap());
        assert!(report.finding.is_some());
    }
}

#[test]
fn a_segment_that_was_written_and_not_taken_out_of_the_log_is_taken_up() {
    for engine in engines() {
        let fixture = Fixture::new(engine, 10);
        let dir = tempfile::tempdir().unwrap();
        let now = OffsetDateTime::now_utc();
        let written = fixture.log.read(|chain, db| {
            let written = chain.write_segment(db, NAME, dir.path(), now, now);
            written.unwrap().unwrap()
        });
        // What the process that dies may leave besides.
        std::fs::write(written.file.with_extension("part"), "half").unwrap();
        assert_eq!(fixture.report().records, 10);
        fixture.append(3);
        let archived = archive(&fixture, dir.path());
        assert_eq!(archived, written);
        assert_eq!(entries(&fixture).len(), 4);
        assert_eq!(fixture.report().finding, None);
        let all = read(&[&archived.file], &[]);
        let mut all = all;
        let report = fixture
            .log
            .read(|chain, db| chain.verify_behind(db, NAME, &[], &mut all).unwrap());
        assert_eq!(
            (report.finding, report.archived, report.records),
            (None, 0, 14)
        );
        // One that does not fit is not taken up.
        let next = dir.path().join("test-000000000011-000000000099.jsonl");
        std::fs::copy(&archived.file, next).unwrap();
        let refused = fixture.log.archive(NAME, dir.path(), now, record(3));
        assert!(matches!(refused, Err(AuditError::SegmentTaken { .. })));
        assert_eq!(entries(&fixture).len(), 4);
    }
}

#[test]
fn a_change_whose_process_died_is_noted_by_the_next() {
    for engine in engines() {
        let fixture = Fixture::new(engine, 0);
        let done = fixture.log.begin(record(2)).unwrap();
        fixture.log.end(done, None).unwrap();
        let refused = fixture.log.begin(record(2)).unwrap();
        fixture.log.end(refused, Some("Forbidden".into())).unwrap();
        let _under_way = fixture.log.begin(record(2)).unwrap();
        fixture.reopen().unwrap();
        let operations = || {
            let log = entries(&fixture).into_iter();
            log.map(|e| (e.event.operation, e.event.code))
                .collect::<Vec<_>>()
        };
        let refusal = |code: &str| Some(code.to_owned());
        let intent = ("KeyWrapIntent".to_owned(), None);
        let expected = [
            intent.clone(),
            ("KeyWrap".into(), None),
            intent.clone(),
            ("KeyWrap".into(), refusal("Forbidden")),
            intent,
        ];
        assert_eq!(operations(), expected, "this process is alive");
        let gone = fixture.place.gone_process();
        fixture.tamper(&format!("UPDATE audit_intents SET owner = '{gone}'"));
        fixture.reopen().unwrap();
        fixture.reopen().unwrap();
        let operations = operations();
        assert_eq!(operations.len(), 6);
        assert_eq!(operations[5], ("KeyWrap".into(), refusal("Unfinished")));
        assert_eq!(fixture.report().finding, None);
    }
}

#[test]
fn a_number_that_no_record_can_have_is_refused_wherever_it_stands() {
    let line = |kind: &str, fields: &str| {
        let hash = "A".repeat(43);
        format!(
            r#"{{"type":"{kind}",{fields},"hash":"{hash}","previous":"{hash}","time":"t","signature":"AA","caller":"c","origin":"o","operation":"x"}}"#
        )
    };
    let log = r#"{"type":"log","format":1,"name":"n","log":"00000000-0000-0000-0000-000000000001","created":"t","publicKey":"AA"}"#;
    for number in [u64::MAX, 1 << 63] {
        for bad in [
            line("segment", &format!(r#""first":1,"last":{number}"#)),
            line("segment", &format!(r#""first":{number},"last":1"#)),
            line("record", &format!(r#""seq":{number}"#)),
            line("checkpoint", &format!(r#""seq":{number}"#)),
            line("head", &format!(r#""seq":{number}"#)),
        ] {
            let text = format!("{log}\n{bad}\n");
            let refused = [
                export_start(text.as_bytes()).err(),
                pins(text.as_bytes()).err(),
                verify_export(text.as_bytes(), &[]).err(),
            ];
            for error in refused {
                let AuditError::Export { line: 2, what } = error.unwrap() else {
                    panic!("{bad}");
                };
                assert!(what.starts_with("its number is none"), "{what}");
            }
        }
    }
    // In a database they are negative.
    for engine in engines() {
        let fixture = Fixture::new(engine, 3);
        fixture.tamper(
            "INSERT INTO audit_segments (first, last, previous, hash, time, signature) \
             SELECT 1, -1, hash, hash, 't', signature FROM audit_head",
        );
        let (now, dir) = (OffsetDateTime::now_utc(), tempfile::tempdir().unwrap());
        let archived = fixture.log.archive(NAME, dir.path(), now, record(3));
        assert!(matches!(archived, Err(AuditError::Tampered { .. })));
        let report = fixture.log.read(|chain, db| chain.verify(db, NAME, &[]));
        assert!(matches!(report, Err(AuditError::Tampered { .. })));
    }
}

#[test]
fn who_archive_at_the_same_time_take_turns_and_nothing_half_written_stays() {
    for engine in engines() {
        let fixture = Fixture::new(engine, 300);
        let dir = tempfile::tempdir().unwrap();
        let others: Vec<AuditLog> = (0..4).map(|_| fixture.reopen().unwrap()).collect();
        std::thread::scope(|scope| {
            for log in &others {
                scope.spawn(|| {
                    let now = OffsetDateTime::now_utc();
                    log.archive(NAME, dir.path(), now, record(3)).unwrap();
                });
            }
        });
        let mut files: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        let files: Vec<&std::path::Path> = files.iter().map(PathBuf::as_path).collect();
        let mut archives = read(&files, &[]);
        let report = fixture.log.read(|chain, db| {
            let verified = chain.verify_behind(db, NAME, &[], &mut archives);
            verified.unwrap()
        });
        assert_eq!((report.finding, report.archived), (None, 0));
        // What cannot be written whole leaves nothing.
        let full = tempfile::tempdir().unwrap();
        std::fs::create_dir(full.path().join("test-000000000999-000000000999.jsonl")).unwrap();
        fixture.tamper("UPDATE audit SET origin = 'x' WHERE seq = (SELECT max(seq) FROM audit)");
        let now = OffsetDateTime::now_utc();
        let refused = fixture.log.archive(NAME, full.path(), now, record(3));
        assert!(matches!(refused, Err(AuditError::Tampered { .. })));
        assert_eq!(std::fs::read_dir(full.path()).unwrap().count(), 1);
    }
}
