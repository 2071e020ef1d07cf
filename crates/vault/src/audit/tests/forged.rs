//! Files of archived segments that somebody wrote who has not got the log's key.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::kept::{archive, read};
use super::*;
use crate::audit::entry::StoredEntry;
use crate::audit::line::{Line, write_line};

/// A log with `segments` segments and records behind them.
fn archived(segments: usize) -> (Fixture, TempDir, Vec<Archived>) {
    let fixture = Fixture::new(Engine::Sqlite, 20);
    let dir = tempfile::tempdir().unwrap();
    let segments = (0..segments).map(|_| {
        let segment = archive(&fixture, dir.path());
        fixture.append(9);
        segment
    });
    let segments = segments.collect();
    (fixture, dir, segments)
}

fn lines(segment: &Archived) -> Vec<Line> {
    let file = std::fs::read(&segment.file).unwrap();
    let lines = read_export(file.as_slice()).map(|line| line.unwrap().1);
    lines.collect()
}

/// Records whose hashes fit each other, from the beginning of that segment on.
fn made_up(segment: &Archived, records: RangeInclusive<u64>) -> Vec<Line> {
    let lines = lines(segment);
    let (Line::Log(log), Line::Record(genuine)) = (&lines[0], &lines[2]) else {
        panic!("{lines:?}");
    };
    let mut hash = segment.segment.previous;
    let records = records.map(|seq| {
        let mut entry = genuine.entry.clone();
        (entry.seq, entry.event.operation) = (seq, "KeyPurge".into());
        hash = entry.hash(log.log, &hash);
        Line::Record(StoredEntry {
            entry,
            hash: hash.to_vec(),
        })
    });
    records.collect()
}

fn write(dir: &Path, lines: &[Line]) -> PathBuf {
    let mut text = Vec::new();
    for line in lines {
        write_line(&mut text, line).unwrap();
    }
    let path = dir.join("forged.jsonl");
    std::fs::write(&path, text).unwrap();
    path
}

/// What is found in those files by themselves, and with the log behind them.
fn findings(fixture: &Fixture, files: &[&Path]) -> [Finding; 2] {
    let [by_themselves] = &read(files, &[]).finish()[..] else {
        panic!();
    };
    let mut archives = read(files, &[]);
    let with_the_log = fixture
        .log
        .read(|chain, db| chain.verify_behind(db, NAME, &[], &mut archives).unwrap());
    [by_themselves.finding.clone(), with_the_log.finding]
        .map(|finding| finding.expect("a forged file is found"))
}

#[test]
fn records_without_any_signature_are_no_segment() {
    let (fixture, dir, segments) = archived(3);
    let [first, second, third] = &segments[..] else {
        panic!();
    };
    // Instead of the oldest one, and between two that are genuine.
    let mut forged = lines(first)[..1].to_vec();
    forged.extend(made_up(first, 1..=10));
    let file = write(dir.path(), &forged);
    for finding in findings(&fixture, &[&file]) {
        assert_eq!(finding.seq, 10);
        assert!(finding.what.contains("signed head"), "{finding:?}");
    }
    let mut forged = lines(second)[..1].to_vec();
    forged.extend(made_up(second, 21..=25));
    let file = write(dir.path(), &forged);
    for finding in findings(&fixture, &[&first.file, &file, &third.file]) {
        assert_eq!(finding.seq, 25);
        assert!(finding.what.contains("signed head"), "{finding:?}");
    }
}

#[test]
fn records_before_a_gap_are_signed_for() {
    let (fixture, dir, segments) = archived(2);
    let [first, second] = &segments[..] else {
        panic!();
    };
    // A file that goes on with another segment where the first one is cut off.
    let mut forged = lines(first)[..2].to_vec();
    forged.push(lines(second)[1].clone());
    forged.extend(made_up(first, 1..=10));
    forged.extend_from_slice(&lines(second)[2..]);
    let file = write(dir.path(), &forged);
    for finding in findings(&fixture, &[&file]) {
        assert_eq!(finding.seq, 1);
        let what = "records 1 to 10 are covered by no signature";
        assert!(finding.what.contains(what), "{finding:?}");
    }
}

#[test]
fn a_segment_without_its_records_was_cut_off() {
    let (fixture, dir, segments) = archived(2);
    for (n, records) in [(0, "records 1 to 20 "), (1, "records 21 to 30 ")] {
        let file = write(dir.path(), &lines(&segments[n])[..2]);
        let others = segments[..n].iter().map(|segment| segment.file.as_path());
        let files: Vec<&Path> = others.chain([file.as_path()]).collect();
        for finding in findings(&fixture, &files) {
            assert_eq!(finding.seq, segments[n].segment.first);
            assert!(finding.what.contains("cut off"), "{finding:?}");
            assert!(finding.what.contains(records), "{finding:?}");
        }
    }
}

#[test]
fn a_segment_ends_with_the_record_that_is_signed() {
    let (fixture, dir, segments) = archived(2);
    let [first, second] = &segments[..] else {
        panic!();
    };
    // All records made up, and one more than the segment has.
    let mut forged = lines(first)[..2].to_vec();
    forged.extend(made_up(first, 1..=21));
    let file = write(dir.path(), &forged);
    for finding in findings(&fixture, &[&file]) {
        assert_eq!(finding.seq, 1);
        assert!(finding.what.contains("rewritten"), "{finding:?}");
    }
    // Genuine, and one more.
    let mut forged = lines(first);
    forged.push(lines(second)[2].clone());
    let file = write(dir.path(), &forged);
    for finding in findings(&fixture, &[&file]) {
        assert_eq!(finding.seq, 21);
        assert!(finding.what.contains("behind the end"), "{finding:?}");
    }
}

#[test]
fn the_signed_head_of_a_log_is_missed_behind_its_segments() {
    let (fixture, _dir, segments) = archived(1);
    fixture.tamper("DELETE FROM audit; DELETE FROM audit_head");
    let mut archives = read(&[&segments[0].file], &[]);
    let report = fixture
        .log
        .read(|chain, db| chain.verify_behind(db, NAME, &[], &mut archives).unwrap());
    let finding = report.finding.unwrap();
    assert!(finding.what.contains("head was removed"), "{finding:?}");
}

/// A crash between the two steps of archiving leaves the file and the records.
#[test]
fn archiving_that_was_cut_off_is_named_as_what_it_may_be() {
    let fixture = Fixture::new(Engine::Sqlite, 10);
    let dir = tempfile::tempdir().unwrap();
    let now = OffsetDateTime::now_utc();
    let written = fixture.log.read(|chain, db| {
        let written = chain.write_segment(db, NAME, dir.path(), now, now);
        written.unwrap().unwrap()
    });
    let verify = || {
        let mut archives = read(&[&written.file], &[]);
        fixture
            .log
            .read(|chain, db| chain.verify_behind(db, NAME, &[], &mut archives).unwrap())
    };
    let finding = verify().finding.unwrap();
    assert!(
        finding.what.contains("'audit archive' was cut off"),
        "{finding:?}"
    );
    assert!(finding.what.contains("repeat it"), "{finding:?}");
    archive(&fixture, dir.path());
    assert_eq!(verify().finding, None);
}
