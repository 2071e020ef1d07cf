//! Exports and archived segments of an audit log, which come from wherever they were kept.
#![no_main]

use std::fs;

use arbitrary::Arbitrary;
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use libfuzzer_sys::fuzz_target;
use sealdisk_fuzz::{Edit, edited};
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;
use vault::audit::{
    Archives, AuditLog, AuditRecord, Entry, Event, Hash, Report, export_start, own_segment, pins,
    verify_export, write_export,
};

const NAME: &str = "vault/v";
const LOG: Uuid = Uuid::from_u128(7);
const TIME: &str = "2026-11-02T10:11:12Z";

#[derive(Debug, Arbitrary)]
enum Number {
    Next,
    Last,
    Plus(u8),
    Checkpoint,
    Any(u64),
}

/// A line of a log whose key is the writer's own: an export brings its key along.
#[derive(Debug, Arbitrary)]
enum Line {
    Record {
        seq: Number,
        rewritten: bool,
    },
    Checkpoint(Number),
    Segment {
        first: Number,
        last: Number,
        follows: bool,
    },
    Counter(u64),
    Head(Number),
    Log,
    Text(String),
}

#[derive(Debug, Arbitrary)]
enum Input {
    Real { segment: Vec<Edit>, rest: Vec<Edit> },
    Own(Vec<Vec<Line>>),
}

/// A segment and what was left of its log, and what is sound of them.
struct Fixture {
    segment: Vec<u8>,
    rest: Vec<u8>,
    key: EcdsaKeyPair,
    public_key: String,
}

fn record(second: i64) -> AuditRecord {
    let mut record = AuditRecord::new(Uuid::from_u128(1), "local", "KeyWrap")
        .at(OffsetDateTime::UNIX_EPOCH + Duration::seconds(second));
    record.event.key = Some("k".into());
    record
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let log = AuditLog::open(&dir.path().join("audit.db")).unwrap();
        let before = OffsetDateTime::UNIX_EPOCH + Duration::seconds(4);
        let mut rest = Vec::new();
        for second in 0..8 {
            log.append(&record(second)).unwrap();
        }
        let archived = log.archive(NAME, dir.path(), before, record(9));
        let archived = archived.unwrap().unwrap();
        log.read(|chain, db| write_export(db, chain, NAME, true, &mut rest))
            .unwrap();
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
        let public_key = AsDer::<PublicKeyX509Der<'_>>::as_der(key.public_key()).unwrap();
        Self {
            segment: fs::read(archived.file).unwrap(),
            rest,
            public_key: URL_SAFE_NO_PAD.encode(public_key.as_ref()),
            key,
        }
    }

    /// As docs/format.md has it: the kind, the log, what is signed.
    fn sign(&self, kind: &str, parts: &[&[u8]]) -> String {
        let kind = format!("sealdisk audit {kind} v1\0");
        let message = [
            &[kind.as_bytes(), LOG.as_bytes()],
            parts,
            &[TIME.as_bytes()],
        ]
        .concat();
        let signature = self.key.sign(&SystemRandom::new(), &message.concat());
        URL_SAFE_NO_PAD.encode(signature.unwrap().as_ref())
    }
}

/// Where a chain of one's own is.
#[derive(Default)]
struct Own {
    last: u64,
    hash: Hash,
}

impl Own {
    fn number(&self, number: &Number) -> u64 {
        match number {
            Number::Next => self.last.wrapping_add(1),
            Number::Last => self.last,
            Number::Plus(n) => self.last.wrapping_add(u64::from(*n)),
            Number::Checkpoint => self.last.next_multiple_of(1000),
            Number::Any(n) => *n,
        }
    }

    fn record(&mut self, seq: u64, rewritten: bool) -> Value {
        let entry = Entry {
            seq,
            time: TIME.into(),
            event: Event {
                caller: "c".into(),
                origin: "o".into(),
                operation: "KeyWrap".into(),
                key: None,
                version: None,
                disk: None,
                detail: None,
                code: None,
            },
        };
        if !rewritten {
            self.hash = entry.hash(LOG, &self.hash);
        }
        self.last = seq;
        json!({"type": "record", "seq": seq, "time": TIME, "caller": "c", "origin": "o",
            "operation": "KeyWrap", "hash": URL_SAFE_NO_PAD.encode(self.hash)})
    }

    fn signed(&self, fixture: &Fixture, kind: &str, seq: u64) -> Value {
        let signature = fixture.sign(kind, &[&seq.to_le_bytes(), &self.hash]);
        json!({"type": kind, "seq": seq, "hash": URL_SAFE_NO_PAD.encode(self.hash), "time": TIME,
            "signature": signature})
    }

    fn line(&mut self, fixture: &Fixture, line: &Line) -> String {
        let json = match line {
            Line::Record { seq, rewritten } => self.record(self.number(seq), *rewritten),
            Line::Checkpoint(seq) => self.signed(fixture, "checkpoint", self.number(seq)),
            Line::Head(seq) => self.signed(fixture, "head", self.number(seq)),
            Line::Segment {
                first,
                last,
                follows,
            } => {
                let (first, last) = (self.number(first), self.number(last));
                let previous = if *follows { self.hash } else { Hash::default() };
                let parts: [&[u8]; 4] = [
                    &first.to_le_bytes(),
                    &previous,
                    &last.to_le_bytes(),
                    &self.hash,
                ];
                let signature = fixture.sign("segment", &parts);
                let base64 = |hash: Hash| URL_SAFE_NO_PAD.encode(hash);
                json!({"type": "segment", "first": first, "last": last,
                    "previous": base64(previous), "hash": base64(self.hash), "time": TIME,
                    "signature": signature})
            }
            Line::Counter(count) => json!({"type": "counter", "id": 1, "caller": "c",
                "origin": "o", "operation": "KeyWrap", "count": count, "closes": 1, "window": 1}),
            Line::Log => return self.log(fixture),
            Line::Text(text) => return text.replace('\n', " "),
        };
        json.to_string()
    }

    fn log(&self, fixture: &Fixture) -> String {
        json!({"type": "log", "format": 1, "name": NAME, "log": LOG, "created": TIME,
            "publicKey": fixture.public_key})
        .to_string()
    }
}

/// What is found in several files, in the order in which they are given.
fn verify(files: &[Vec<u8>]) -> Option<Vec<Report>> {
    let known: Vec<_> = files
        .iter()
        .filter_map(|file| pins(file.as_slice()).ok())
        .flatten()
        .collect();
    let mut archives = Archives::default();
    for file in files {
        let start = export_start(file.as_slice());
        let alone = verify_export(file.as_slice(), &known);
        let read = archives.read(file.as_slice(), &known);
        // Whatever is an export is one of which it can be told where it begins.
        assert!(start.is_ok() || read.is_err());
        assert!(own_segment(file.as_slice()).is_ok() || read.is_err());
        assert!(alone.is_ok() == read.is_ok());
        read.ok()?;
    }
    let reports = archives.finish();
    for report in &reports {
        assert!(report.archived <= report.records);
    }
    Some(reports)
}

thread_local! {
    static FIXTURE: Fixture = Fixture::new();
}

fuzz_target!(|input: Input| {
    FIXTURE.with(|fixture| match input {
        Input::Real { segment, rest } => {
            let files = [
                edited(&fixture.segment, &segment),
                edited(&fixture.rest, &rest),
            ];
            verify(&files);
        }
        Input::Own(files) => {
            let mut own = Own::default();
            let files: Vec<Vec<u8>> = files
                .iter()
                .map(|lines| {
                    let mut text = own.log(fixture);
                    for line in lines {
                        text += "\n";
                        text += &own.line(fixture, line);
                    }
                    text.into_bytes()
                })
                .collect();
            verify(&files);
        }
    });
});
