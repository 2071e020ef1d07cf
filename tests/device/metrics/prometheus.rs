//! A real Prometheus, where there is one (`scripts/setup test` installs it): it takes what is exported, and the rules.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;
use std::{fs, thread, time::Duration};

use serde_json::Value;
use tempfile::TempDir;
use test_support::{Customer, PATIENCE, text};

use super::Exporter;
use crate::supervise::{MIB_8, is_qsd};

/// Whether a program is there; else it is said that something is skipped.
pub(super) fn is_there(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    if !found {
        eprintln!("skipped: there is no {program} (apt-get install prometheus)");
    }
    found
}

pub(super) fn rules() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/prometheus")
}

fn assert_success(output: &Output) {
    let said = [&output.stdout[..], &output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success(), "{said}");
}

#[test]
fn each_alert_fires_for_what_is_bad_alone() {
    if !is_there("promtool") {
        return;
    }
    let promtool = |arguments: &[&str]| {
        let mut command = Command::new("promtool");
        command.args(arguments).current_dir(rules());
        assert_success(&command.output().unwrap());
    };
    promtool(&["check", "rules", "sealdisk.rules.yml"]);
    promtool(&["test", "rules", "sealdisk.test.yml"]);
    // Each has a test.
    let read = |name: &str| fs::read_to_string(rules().join(name)).unwrap();
    let (alerts, tests) = (read("sealdisk.rules.yml"), read("sealdisk.test.yml"));
    let alerts = alerts
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "));
    for alert in alerts {
        let fires = format!("alertname=\"{alert}\", alertstate=\"firing\"");
        assert!(tests.contains(&fires), "{alert} has no test");
    }
}

/// A Prometheus that scrapes an exporter every second, with the rules.
pub(super) struct Prometheus {
    process: Child,
    address: SocketAddr,
    _dir: TempDir,
}

impl Prometheus {
    pub(super) fn start(exporter: SocketAddr, options: &[&str]) -> Self {
        Self::with_rules(exporter, options, &rules().join("sealdisk.rules.yml"))
    }

    /// With these rules.
    pub(super) fn with_rules(exporter: SocketAddr, options: &[&str], rules: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = format!(
            "global: {{ scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s }}\n\
             rule_files: [\"{}\"]\n\
             scrape_configs:\n  - job_name: sealdisk\n    static_configs: [{{ targets: [\"{exporter}\"] }}]\n",
            rules.display()
        );
        let path = dir.path().join("prometheus.yml");
        fs::write(&path, config).unwrap();
        // Nobody else takes it within a moment, mostly; it ends at once if somebody does.
        let free = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", text(&path)))
            .arg(format!(
                "--storage.tsdb.path={}",
                text(&dir.path().join("data"))
            ))
            .arg(format!("--web.listen-address={address}"))
            .args(options)
            .stdout(Stdio::null())
            .stderr(fs::File::create(dir.path().join("log")).unwrap());
        Self {
            process: command.spawn().unwrap(),
            address,
            _dir: dir,
        }
    }

    fn get(&mut self, path: &str) -> Option<Value> {
        use std::io::{Read, Write};
        assert!(self.process.try_wait().unwrap().is_none(), "it has ended");
        let mut stream = std::net::TcpStream::connect(self.address).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
    }

    /// The first value of a query, once there is one that is as wanted.
    pub(super) fn await_query(&mut self, query: &str, wanted: impl Fn(f64) -> bool) -> f64 {
        let escaped: String = query
            .bytes()
            .map(|byte| match byte.is_ascii_alphanumeric() || byte == b'_' {
                true => char::from(byte).to_string(),
                false => format!("%{byte:02X}"),
            })
            .collect();
        let end = Instant::now() + PATIENCE;
        loop {
            let answer = self.get(&format!("/api/v1/query?query={escaped}"));
            let answer = answer.unwrap_or_default();
            let value = answer["data"]["result"][0]["value"][1].as_str();
            let value = value.and_then(|value| value.parse().ok());
            if let Some(value) = value.filter(|value| wanted(*value)) {
                return value;
            }
            assert!(Instant::now() < end, "{query}: {answer}");
            thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn prometheus_takes_what_is_exported_and_alerts() {
    if is_qsd() || !is_there("prometheus") || !is_there("promtool") {
        return;
    }
    let customer = Customer::new(MIB_8);
    let daemon = customer.attach(&["--key-check-interval", "1"]);
    let exporter = Exporter::of(&customer);
    let mut frontend = daemon.connect();
    for sector in 0..20 {
        frontend.queues[0].write(sector * 8, &[7; 4096]).unwrap();
    }
    // Its own opinion of the names.
    let text = exporter.scrape().0;
    let mut command = Command::new("promtool");
    let command = command.args(["check", "metrics"]);
    let mut linting = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    linting = linting.stderr(Stdio::piped());
    let mut linting = linting.spawn().unwrap();
    let mut stdin = linting.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, text.as_bytes()).unwrap();
    drop(stdin);
    assert_success(&linting.wait_with_output().unwrap());

    let mut prometheus = Prometheus::start(exporter.0.address, &[]);
    let written = "sealdisk_disk_requests_total{operation=\"write\"}";
    prometheus.await_query(written, |value| value == 20.0);
    let slow = "sealdisk_disk_request_duration_seconds_bucket{operation=\"write\",le=\"+Inf\"}";
    prometheus.await_query(slow, |value| value == 20.0);
    customer.enable(false);
    let alerts = "ALERTS{alertname=\"SealdiskKeyRevoked\",alertstate=\"firing\",disk=\"disk\"}";
    prometheus.await_query(alerts, |value| value == 1.0);
    drop(prometheus);

    let native = ["--enable-feature=native-histograms"];
    let mut prometheus = Prometheus::start(exporter.0.address, &native);
    let count = "histogram_count(sealdisk_disk_request_duration_seconds{operation=\"write\"})";
    prometheus.await_query(count, |value| value >= 20.0);
    let quantile =
        "histogram_quantile(0.5, sealdisk_disk_request_duration_seconds{operation=\"write\"})";
    let median = prometheus.await_query(quantile, |value| value > 0.0);
    assert!(median < 60.0, "{median}");
    drop(prometheus);
    drop(frontend);
    daemon.stop();
}

/// A hundred disks, which take some GiB and a minute to attach.
#[test]
#[ignore = "takes minutes: scripts/test --full"]
fn a_hundred_disks_are_scraped() {
    if is_qsd() {
        return;
    }
    let count = test_support::times("SEALDISK_METRICS_DISKS", 100);
    let disk = test_support::Disk::new(MIB_8);
    let names: Vec<_> = (0..count).map(|n| format!("d{n}")).collect();
    let options = ["--num-queues", "1", "--memory", "4MiB"];
    let daemons: Vec<_> = names
        .iter()
        .map(|name| {
            disk.ok(&format!("disk create {name} --size 8MiB"));
            disk.attach_with(name, &options)
        })
        .collect();
    let exporter = Exporter::of(&disk);
    let up = |scrape: &super::Scrape| {
        let up = |line: &&str| line.starts_with("sealdisk_disk_up{") && line.ends_with(" 1");
        scrape.0.lines().filter(up).count()
    };
    for _ in 0..5 {
        let scrape = exporter.scrape();
        assert_eq!(up(&scrape), daemons.len(), "{}", scrape.0);
        let took = scrape.value("sealdisk_exporter_scrape_duration_seconds");
        let (series, bytes) = (
            scrape.0.lines().filter(|l| !l.starts_with('#')).count(),
            scrape.0.len(),
        );
        eprintln!("{count} disks: {series} series, {bytes} bytes, asked within {took:?} s");
    }
    if is_there("prometheus") {
        let mut prometheus = Prometheus::start(exporter.0.address, &[]);
        prometheus.await_query("sum(sealdisk_disk_up)", |value| value == f64::from(count));
        let took = prometheus.await_query("scrape_duration_seconds", |value| value > 0.0);
        eprintln!("Prometheus scraped them within {took} s");
    }
    for daemon in daemons {
        daemon.stop();
    }
}
