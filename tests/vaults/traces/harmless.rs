//! No collector holds anything up or makes anything fail, and where there is none nothing is spent on it.

use std::net::TcpListener;

use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use test_support::{AttachOptions, Disk, Host, with_descendants};

use super::collector::{Collector, Manner};

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// The command lines of a process and of all that it has started.
fn command_lines(process: u32) -> Vec<String> {
    let all = with_descendants(process);
    all.into_iter()
        .filter_map(|pid| std::fs::read(format!("/proc/{pid}/cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .collect()
}

/// What is done with a disk while a collector is as it is.
fn work(endpoint: &str) {
    let mut disk = Disk::new(8 << 20);
    disk.set_env(ENDPOINT, endpoint);
    let mut daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    for snapshot in ["a", "b", "c"] {
        disk.ok(&format!("snapshot create {snapshot} --source disk"));
        frontend.queues[0].write(0, &[7; 4096]).unwrap();
    }
    drop(frontend);
    daemon.terminate();
    disk.ok("disk delete disk --yes");
    disk.refused("disk show disk");
}

#[test]
fn a_collector_that_never_answers_holds_nothing_up() {
    let collector = Collector::that(Manner::Hangs);
    // Each of these ends while the collector still has its first request.
    work(&collector.endpoint());
    assert!(!collector.requests().is_empty());
}

#[test]
fn a_collector_that_lies_or_is_gone_makes_nothing_fail() {
    for manner in [Manner::Babbles, Manner::Redirects, Manner::IsBusy] {
        let collector = Collector::that(manner);
        work(&collector.endpoint());
        assert!(!collector.requests().is_empty());
    }
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = nobody.local_addr().unwrap();
    drop(nobody);
    work(&format!("http://{address}"));
    work("http://");
    work("no address at all");
}

#[test]
fn where_nothing_is_traced_there_is_no_process_for_it() {
    let mut disk = Disk::new(8 << 20);
    let exporters = |disk: &Disk| {
        let daemon = disk.attach(&AttachOptions::default());
        let lines = command_lines(daemon.pid());
        assert!(lines.iter().any(|line| line.contains("data-plane")));
        let exporters = lines.iter().filter(|l| l.contains("trace-exporter"));
        exporters.count()
    };
    assert_eq!(exporters(&disk), 0);
    let collector = Collector::new();
    disk.set_env(ENDPOINT, &collector.endpoint());
    assert_eq!(exporters(&disk), 1);
    disk.set_env("OTEL_SDK_DISABLED", "true");
    assert_eq!(exporters(&disk), 0);
}

#[test]
fn a_collector_is_reached_as_the_environment_says() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
    let collector = Collector::over_tls(config);
    let mut host = Host::new();
    let ca = host.path("collector.pem");
    std::fs::write(&ca, made.cert.pem()).unwrap();
    host.set_env("OTEL_EXPORTER_OTLP_CERTIFICATE", ca.to_str().unwrap());
    host.set_env("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=storage,x-other=1");
    host.set_env(
        "OTEL_RESOURCE_ATTRIBUTES",
        "deployment.environment.name=lab",
    );
    host.set_env("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.endpoint());
    host.ok("keyvault create one");
    let own = format!("{}/own/path", collector.endpoint());
    host.set_env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &own);
    host.ok("keyvault create two");
    collector.wait("two commands", |spans| {
        let commands = spans
            .iter()
            .filter(|seen| seen.name.starts_with("sealdisk"));
        commands.count() == 2
    });
    let requests = collector.requests();
    for path in ["/v1/traces", "/own/path"] {
        let request = requests.iter().find(|request| request.path == path);
        let headers = &request.unwrap_or_else(|| panic!("{requests:?}")).headers;
        for header in ["x-tenant: storage", "content-type: application/x-protobuf"] {
            assert!(headers.iter().any(|h| h == header), "{headers:?}");
        }
    }
    let bytes = collector.bytes();
    let lab = b"deployment.environment.name";
    assert!(bytes.windows(lab.len()).any(|at| at == lab));

    // Of those that are not to be sampled nothing comes.
    host.set_env("OTEL_TRACES_SAMPLER", "always_off");
    let before = collector.spans().len();
    host.ok("keyvault create three");
    assert_eq!(collector.spans().len(), before);
}
