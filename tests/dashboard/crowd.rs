//! A thousand disks: how long the page is busy with them, by Chromium's own trace.

use std::ops::Range;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use disks::import::Cancel;
use disks::{CreateRequest, DEFAULT_SECTOR_SIZE, create};
use installation::Installation;
use installation::catalog::DiskRecord;
use nix::time::ClockId;
use serde_json::{Value, json};
use test_support::{Customer, Daemon, Host};
use thirtyfour::Key;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use uuid::Uuid;

use super::Dashboard;
use super::pages::{Browser, with_browser, with_traced_browser};

const DISKS: u32 = 1000;
/// They wait for the disk more than for a CPU.
const MAKERS: u32 = 4;
const MIB: u64 = 1 << 20;

/// Sets with their vaults. Each has a key of its own.
const SETS: [(&str, &str); 12] = [
    ("web", "customer"),
    ("mail", "customer"),
    ("build", "customer"),
    ("edge", "customer"),
    ("billing", "finance"),
    ("ledger", "finance"),
    ("risk", "finance"),
    ("audit", "finance"),
    ("genome", "research"),
    ("render", "research"),
    ("models", "research"),
    ("archive", "research"),
];
/// The set whose key is disabled, and the one whose identity may use its key no more.
const REVOKED: &str = "risk";
const UNGRANTED: &str = "edge";

/// A disk of the crowd.
struct Member {
    id: Uuid,
    name: String,
    set: Option<String>,
}

fn make_sets(customer: &Customer) {
    for vault in ["finance", "research"] {
        customer.ok(["keyvault", "create", vault].as_slice());
    }
    for vault in ["customer", "finance", "research", "platform"] {
        customer.ok(format!("keyvault update {vault} --operations-limit 10000000").as_str());
    }
    for (set, vault) in SETS {
        let key = format!("keyvault key create {set}-key --vault-name {vault} --size 2048");
        customer.ok(key.as_str());
        let url = format!("https://{vault}.vault.localhost/keys/{set}-key");
        let create = format!("disk-encryption-set create {set} --key-url {url}");
        let made = customer.json(create.as_str());
        let id = made["identity"]["principalId"].as_str().unwrap();
        let permissions = "--key-permissions get wrapKey unwrapKey";
        customer.ok(format!("keyvault set-policy {vault} --object-id {id} {permissions}").as_str());
    }
}

/// Makes disks in this process, by what `disk create` calls.
fn make(customer: &Customer) -> Vec<Member> {
    make_sets(customer);
    let next = AtomicU32::new(0);
    let state = &customer.state();
    std::thread::scope(|scope| {
        for _ in 0..MAKERS {
            scope.spawn(|| {
                let installation = Installation::open(state).unwrap();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= DISKS {
                        break;
                    }
                    let set = SETS.get(number as usize % (SETS.len() + 1));
                    let set = set.map(|(set, _)| (*set).to_owned());
                    let request = CreateRequest {
                        name: format!("{}-{number:04}", set.as_deref().unwrap_or("vm")),
                        size: Some(MIB),
                        source: None,
                        disk_encryption_set: set,
                        sector_size: DEFAULT_SECTOR_SIZE,
                        logical_sector_size: None,
                        data_dir: None,
                    };
                    create(&installation, &request, &Cancel::default(), |_| |_| ()).unwrap();
                }
            });
        }
    });
    for set in ["billing", "genome"] {
        let (_, vault) = SETS.into_iter().find(|(name, _)| *name == set).unwrap();
        let key = format!("keyvault key create {set}-key --vault-name {vault} --size 2048");
        customer.ok(key.as_str());
    }
    customer.ok(format!(
        "keyvault key set-attributes {REVOKED}-key --vault-name finance --enabled false"
    )
    .as_str());
    let installation = Installation::open(state).unwrap();
    let id = installation.identity(Some(UNGRANTED)).unwrap().object_id;
    customer.ok(format!("keyvault delete-policy customer --object-id {id}").as_str());
    let rows = installation.catalog().disks().unwrap().into_iter();
    let member = |row: DiskRecord| Member {
        id: row.id,
        name: row.name,
        set: row.disk_encryption_set,
    };
    rows.map(|row| member(row.record)).collect()
}

/// Answers for attached disks, as their attaches would, until the test ends: nearly all of them are busy.
fn answer_for(runtime: &Path, disks: Vec<Member>) {
    let listen = |disk: Member| {
        let listener = UnixListener::bind(runtime.join(format!("{}.control", disk.id))).unwrap();
        listener.set_nonblocking(true).unwrap();
        (listener, disk)
    };
    let listening: Vec<_> = disks.into_iter().map(listen).collect();
    std::thread::spawn(move || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().build().unwrap();
        runtime.block_on(async {
            for (number, (listener, disk)) in (0..).zip(listening) {
                tokio::spawn(answer_one(listener, disk, number));
            }
            std::future::pending::<()>().await;
        });
    });
}

async fn answer_one(listener: UnixListener, disk: Member, number: u64) {
    static COUNTED: AtomicU64 = AtomicU64::new(1);
    let listener = tokio::net::UnixListener::from_std(listener).unwrap();
    while let Ok((stream, _)) = listener.accept().await {
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        let _ = stream.read_line(&mut line).await;
        let counted = COUNTED.fetch_add(1, Ordering::Relaxed);
        let answer = metrics(&disk, counted, number).to_string() + "\n";
        let _ = stream.get_mut().write_all(answer.as_bytes()).await;
    }
}

fn metrics(disk: &Member, counted: u64, number: u64) -> Value {
    let is_revoked = disk.set.as_deref() == Some(REVOKED);
    let done = if is_revoked {
        1
    } else {
        counted * (1 + number % 7)
    };
    let operation = |operation: &str, times: u64| {
        json!({
            "operation": operation, "bytes": 8192 * done * times, "errors": 0,
            "latencyTicks": 0, "buckets": [[40, done * times], [52, done / 90]],
        })
    };
    let (state, dek) = match is_revoked {
        true => ("KeyRevoked", "Destroyed"),
        false => ("Active", "Held"),
    };
    json!({ "ok": {
        "disk": disk.name, "diskId": disk.id, "sizeBytes": MIB,
        "checks": { "granted": 1, "refused": 0, "unknown": 0 },
        "status": {
            "state": state, "since": "2026-01-01T00:00:00Z", "dek": dek,
            "keyUrl": "https://customer.vault.localhost/keys/key/1",
            "lastCheck": "2026-01-01T00:00:00Z", "lastGranted": "2026-01-01T00:00:00Z",
            "checkIntervalSeconds": 60, "graceSeconds": 60, "onRevoke": "error",
        },
        "counters": {
            "operations": [operation("read", 3), operation("write", 2)],
            "inFlight": counted % 9, "waitForSpace": 0, "limitWaits": 0, "limitWaitTicks": 0,
            "spaceWaits": 0, "keyWaits": 0, "keyWaitTicks": 0, "pollTicks": 0,
        },
    }})
}

/// What a trace says of the main thread of a page.
#[derive(Debug, Default)]
struct Busy {
    /// How long tasks took, in milliseconds, the longest last.
    tasks: Vec<f64>,
    /// The time that the processor gave the longest of them.
    longest_cpu: f64,
}

impl Busy {
    /// Of the events that the browser has recorded, those whose time is within a range of microseconds.
    fn of(events: &[Value], range: Range<f64>) -> Self {
        let thread = |event: &Value| (event["pid"].as_u64(), event["tid"].as_u64());
        let is_main = |event: &&Value| {
            event["name"] == "thread_name" && event["args"]["name"] == "CrRendererMain"
        };
        let main: Vec<_> = events.iter().filter(is_main).map(thread).collect();
        let millis = |event: &Value, of: &str| event[of].as_f64().map(|micros| micros / 1000.0);
        let mut busy = Self::default();
        for event in events {
            let is_task = event["name"] == "RunTask" && event["ph"] == "X";
            let is_then = event["ts"].as_f64().is_some_and(|at| range.contains(&at));
            if is_task && is_then && main.contains(&thread(event)) {
                busy.tasks.extend(millis(event, "dur"));
                let cpu = millis(event, "tdur").unwrap_or_default();
                busy.longest_cpu = busy.longest_cpu.max(cpu);
            }
        }
        busy.tasks.sort_by(f64::total_cmp);
        busy
    }

    fn report(&self, what: &str) {
        let longer_than = |millis: f64| self.tasks.iter().filter(|task| **task > millis).count();
        println!(
            "{what}: {} tasks, longest {:.1} ms (processor {:.1} ms), {} over 50 ms, {} over 16.7 ms",
            self.tasks.len(),
            self.tasks.last().copied().unwrap_or_default(),
            self.longest_cpu,
            longer_than(50.0),
            longer_than(16.7),
        );
        assert!(!self.tasks.is_empty(), "there is no trace");
    }
}

/// The clock of a trace, in microseconds.
fn micros() -> f64 {
    let now = ClockId::CLOCK_MONOTONIC.now().unwrap();
    now.tv_sec() as f64 * 1e6 + now.tv_nsec() as f64 / 1e3
}

/// What the browser has recorded since it was started: it records once.
async fn recorded(browser: &Browser) -> Vec<Value> {
    let mut events = Vec::new();
    for entry in browser.driver.get_log("performance").await.unwrap() {
        let message: Value = serde_json::from_str(&entry.message).unwrap();
        if message["message"]["method"] == "Tracing.dataCollected" {
            events.push(message["message"]["params"].clone());
        }
    }
    events
}

/// Scrolls a list for some seconds, a bit in each frame; how long each frame took, in milliseconds.
async fn scroll(browser: &Browser, list: &str) -> Vec<f64> {
    let script = format!(
        "window.frames_ = [];
         (() => {{
           const scroller = document.querySelector('{list} .list-scroll');
           const end = performance.now() + 5000;
           let before = performance.now();
           let step = 180;
           const frame = () => {{
             const now = performance.now();
             window.frames_.push(now - before);
             before = now;
             scroller.scrollTop += step;
             if (scroller.scrollTop + scroller.clientHeight >= scroller.scrollHeight - 1 || scroller.scrollTop === 0) step = -step;
             if (now < end) requestAnimationFrame(frame); else window.framesOver_ = true;
           }};
           window.framesOver_ = false;
           requestAnimationFrame(frame);
         }})();"
    );
    browser.driver.execute(script, Vec::new()).await.unwrap();
    browser.await_true("window.framesOver_").await;
    let frames = browser.get("window.frames_").await;
    let mut frames: Vec<f64> = serde_json::from_value(frames).unwrap();
    frames.sort_by(f64::total_cmp);
    frames
}

fn at(sorted: &[f64], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted
        .get((last as f64 * share) as usize)
        .copied()
        .unwrap_or_default()
}

#[test]
#[ignore = "makes a thousand disks: scripts/test --full"]
fn a_thousand_disks_are_shown_without_a_stutter() {
    let customer = Customer::new(MIB);
    let mut crowd = make(&customer);
    assert_eq!(crowd.len() as u32, DISKS + 1);
    // These are attached in earnest, and one in five of the others is not.
    let attached: Vec<_> = crowd
        .extract_if(.., |disk| ["web-0000", "web-0013"].contains(&&*disk.name))
        .collect();
    let daemons: Vec<_> = attached
        .iter()
        .map(|disk| attach(&customer, &disk.name))
        .collect();
    let mut number = 0;
    crowd.retain(|_| {
        number += 1;
        number % 5 != 0
    });
    let rows = crowd.len() + daemons.len();
    answer_for(customer.runtime(), crowd);
    let dashboard = Dashboard::of(&customer);
    for view in ["overview", "dependencies", "disks", "timeline", "capacity"] {
        watch(&dashboard, view, rows);
    }
    for (view, list) in [("disks", "#disk-list"), ("timeline", "#timeline-list")] {
        watch_scrolling(&dashboard, view, list);
    }
    with_browser(async |browser| {
        browser.set_screen(1280, 860, "light").await;
        browser.log_in(&dashboard).await;
        find_among_many(&browser).await;
        keep_pictures(&browser).await;
        assert_eq!(browser.complaints().await, Vec::<String>::new());
    });
}

/// Opens a view, and looks at it while answers come.
fn watch(dashboard: &Dashboard, view: &str, rows: usize) {
    with_traced_browser(async |browser| {
        browser.set_screen(1280, 860, "light").await;
        browser.log_in(dashboard).await;
        let attached = format!("{rows} attached");
        browser.await_text("#tiles", &attached).await;
        browser.show(view).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let opened = micros();
        tokio::time::sleep(Duration::from_secs(10)).await;
        let events = recorded(&browser).await;
        Busy::of(&events, 0.0..opened).report(&format!("{view}, opened"));
        Busy::of(&events, opened..f64::MAX).report(view);
    });
}

fn watch_scrolling(dashboard: &Dashboard, view: &str, list: &str) {
    with_traced_browser(async |browser| {
        browser.set_screen(1280, 860, "light").await;
        browser.log_in(dashboard).await;
        browser.show(view).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let begun = micros();
        let frames = scroll(&browser, list).await;
        let events = recorded(&browser).await;
        println!(
            "scrolling {view}: {} frames, median {:.1} ms, 99 % {:.1} ms, longest {:.1} ms",
            frames.len(),
            at(&frames, 0.5),
            at(&frames, 0.99),
            at(&frames, 1.0),
        );
        Busy::of(&events, begun..f64::MAX).report(&format!("scrolling {view}"));
    });
}

fn attach(host: &Host, disk: &str) -> Daemon {
    host.attach(disk)
}

/// Only the rows that are seen are in the page, and one of a thousand is found.
async fn find_among_many(browser: &Browser) {
    browser.show("disks").await;
    let rows = browser
        .get("document.querySelectorAll('#disk-list .list-row').length")
        .await;
    println!("rows in the page: {rows}");
    assert!(rows.as_u64() < Some(100), "{rows}");
    let count = "document.querySelector('#disk-list .list-scroll').getAttribute('aria-rowcount')";
    assert_eq!(browser.get(count).await, "1002");
    let filter = browser.find("#disk-filter").await;
    filter.send_keys("-0999").await.unwrap();
    browser.await_true(&format!("{count} === '2'")).await;
    browser
        .await_text("#disk-list .list-row[data-row='0']", "-0999")
        .await;
    filter.send_keys(Key::Control + "a").await.unwrap();
    filter.send_keys(Key::Delete + "").await.unwrap();
    browser.await_true(&format!("{count} === '1002'")).await;
}

/// The pictures of docs/dashboard.md.
async fn keep_pictures(browser: &Browser) {
    // Plots of five minutes have something to show.
    if std::env::var_os("SEALDISK_TEST_SCREENSHOTS").is_some() {
        tokio::time::sleep(Duration::from_secs(120)).await;
    }
    for scheme in ["light", "dark"] {
        browser.set_screen(1280, 860, scheme).await;
        for view in ["overview", "disks", "timeline", "capacity"] {
            browser.show(view).await;
            browser
                .keep_picture(&format!("crowd-{view}-{scheme}"))
                .await;
        }
        browser.show("dependencies").await;
        let key = browser.find("#picture [aria-label^='web-key.']").await;
        key.click().await.unwrap();
        browser
            .await_text("#what-if .verdict", "2 disks in use would stop")
            .await;
        browser
            .keep_picture(&format!("crowd-dependencies-{scheme}"))
            .await;
    }
    browser.set_screen(375, 812, "light").await;
    for view in ["overview", "disks", "timeline"] {
        browser.show(view).await;
        browser.keep_picture(&format!("crowd-{view}-phone")).await;
    }
}
