//! Disks for tests.

use std::time::Duration;

use time::OffsetDateTime;
use uuid::Uuid;

use crate::app::App;
use crate::sampler::{Sampled, Snapshot};
use crate::{Column, Options, View};
use attach::{
    AttachedLayer, DekState, DiskHold, JobStatus, KeyState, KeyStatus, Offered, ToldEvent,
};
use live::{DiskRow, Histogram, KeyRow, OpRates, Rates, Standing};
use protocol::Limits;

/// A moment.
pub(crate) fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_796_034_600).unwrap()
}

/// What every attach tells of its key.
fn status() -> KeyStatus {
    serde_json::from_value(serde_json::json!({
        "state": "Active", "since": "2026-11-30T08:00:00Z", "dek": "Held",
        "keyUrl": "https://v1.vault.localhost/keys/web/0123456789abcdef0123456789abcdef",
        "lastCheck": "2026-11-30T10:29:55Z", "lastGranted": "2026-11-30T10:29:55Z",
        "checkIntervalSeconds": 60, "graceSeconds": 3600, "onRevoke": "error",
    }))
    .unwrap()
}

fn rates(bucket: u16, requests: u64, bytes: f64) -> OpRates {
    let histogram = Histogram {
        buckets: vec![(bucket, requests), (bucket + 9, requests / 50)],
    };
    OpRates {
        requests: histogram.count() as f64 / 2.0,
        bytes,
        errors: 0.0,
        p50: histogram.quantile(0.5),
        p99: histogram.quantile(0.99),
        histogram,
    }
}

/// A disk that is served, and does so much.
pub(crate) fn disk(number: u128, name: &str, requests: u64) -> DiskRow {
    let (read, write) = (
        rates(24, requests, requests as f64 * 8192.0),
        rates(28, requests / 2, requests as f64 * 2048.0),
    );
    let io = OpRates {
        requests: read.requests + write.requests,
        bytes: read.bytes + write.bytes,
        ..read.clone()
    };
    let rates = Rates {
        seconds: 2.0,
        read,
        write,
        io,
        ..Rates::default()
    };
    let status = status();
    DiskRow {
        id: Uuid::from_u128(number << 96 | number),
        name: name.into(),
        standing: Standing::Served,
        silent: None,
        size_bytes: Some(10 << 30),
        waiting_attaches: 0,
        rates: Some(rates),
        in_flight: Some(requests / 100),
        wait_for_space: Some(0),
        errors: Some(0),
        key: Some(KeyRow {
            state: status.state,
            since: status.since,
            until: None,
            reason: None,
            dek: status.dek,
            url: status.key_url,
            last_granted: status.last_granted,
            check_interval_seconds: 60,
            checks: None,
        }),
        limits: Some(Limits::default()),
        serving: Some(Offered {
            queues: 4,
            memory_bytes: 64 << 20,
            attach: Uuid::nil(),
            disk: DiskHold::Held,
            refused: None,
            restarts: 0,
            deaths_in_a_row: 0,
            last_restart: None,
            version: "0.1.0".into(),
            last_upgrade: None,
            stall: None,
            launcher_ended: None,
            installation: None,
        }),
        job: None,
        layers: vec![AttachedLayer {
            id: Uuid::from_u128(7 << 96),
            size_bytes: 10 << 30,
            key_url: status_url(),
            disk_encryption_set: Some("web".into()),
        }],
        events: 1,
        last_event: None,
        socket: "/run/sealdisk/x.control".into(),
    }
}

fn status_url() -> String {
    status().key_url
}

/// A host with some of everything.
pub(crate) fn host() -> Vec<DiskRow> {
    let mut rows = vec![
        disk(1, "web1", 2400),
        disk(2, "web2", 1800),
        disk(3, "db-primary", 31_000),
        disk(4, "db-replica", 12_000),
        disk(5, "ci-7f3a", 40),
        disk(6, "mail", 0),
        disk(7, "backup", 900),
        disk(8, "old-shop", 0),
    ];
    rows[1].job = Some(JobStatus {
        kind: serde_json::from_value("rotate".into()).unwrap(),
        paused: false,
        bytes_done: 41 << 20,
        bytes_total: 100 << 20,
        error: None,
    });
    let unreachable = &mut rows[5];
    unreachable.standing = Standing::KeyUnreachable;
    if let Some(key) = &mut unreachable.key {
        key.state = KeyState::KeyUnreachable;
        key.until = Some(now() + Duration::from_secs(1800));
    }
    let full = &mut rows[6];
    (full.standing, full.wait_for_space) = (Standing::SpaceFull, Some(9));
    let revoked = &mut rows[7];
    revoked.standing = Standing::KeyRevoked;
    if let Some(key) = &mut revoked.key {
        (key.state, key.dek) = (KeyState::KeyRevoked, DekState::Destroyed);
    }
    let mut silent = disk(9, "win11", 0);
    silent.standing = Standing::Silent;
    silent.silent = Some("it does not answer within 2s".into());
    (silent.rates, silent.in_flight, silent.key, silent.serving) = (None, None, None, None);
    rows.push(silent);
    rows
}

/// The events of a disk.
pub(crate) fn events() -> Vec<ToldEvent> {
    let event = |seconds, event: &str, message: &str| ToldEvent {
        time: now() - Duration::from_secs(seconds),
        event: event.into(),
        message: message.into(),
    };
    vec![
        event(9000, "Attached", "the disk web2 is attached"),
        event(60, "Struck", ""),
    ]
}

/// A table of these disks, by IOPS, which was looked at several times.
pub(crate) fn app(rows: &[DiskRow]) -> App {
    let mut app = App::new(&Options {
        runtime_dir: "/run/sealdisk".into(),
        host: "host1".into(),
        names: std::collections::HashMap::new(),
        interval: Duration::from_secs(2),
        view: View {
            sort: Column::Iops,
            ..View::all()
        },
    });
    for look in 0..24 {
        let mut seen = rows.to_vec();
        for (number, row) in seen.iter_mut().enumerate() {
            if let Some(rates) = &mut row.rates {
                // The last one is as it is.
                let part = ((23 - look) * (number + 3) % 7) as f64 / 10.0;
                for of in [&mut rates.io, &mut rates.read, &mut rates.write] {
                    of.requests *= 1.0 - part;
                    of.bytes *= 1.0 - part;
                }
            }
        }
        app.take(Sampled::Host(Snapshot {
            time: now(),
            rows: Ok(seen),
        }));
    }
    app
}
