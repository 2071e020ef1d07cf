//! What is done in several processes is one trace.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use test_support::Host;

use super::collector::{Collector, Seen};
use crate::remote::served::{DiskHost, Keeper, VAULT};

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// A disk under a key of a vault that another installation serves, all of it traced.
struct Traced {
    collector: Collector,
    keeper: Keeper,
    host: DiskHost,
}

impl Traced {
    fn new() -> Self {
        let collector = Collector::new();
        let mut keeper = Host::new();
        keeper.set_env(ENDPOINT, &collector.endpoint());
        let keeper = Keeper::on(keeper);
        let mut host = DiskHost::under_the_key_of(&keeper);
        host.disk.set_env(ENDPOINT, &collector.endpoint());
        Self {
            collector,
            keeper,
            host,
        }
    }

    /// Waits for a span.
    fn span(&self, name: &str, is_it: impl Fn(&Seen) -> bool) -> Seen {
        let is_it = |seen: &Seen| seen.name == name && is_it(seen);
        let spans = self.collector.wait(name, |spans| spans.iter().any(is_it));
        spans.into_iter().find(is_it).unwrap()
    }

    /// Waits for the span above another.
    fn parent(&self, child: &Seen) -> Seen {
        let is_it = |seen: &Seen| seen.id == child.parent && seen.trace == child.trace;
        let what = format!("the parent of {}", child.name);
        let spans = self.collector.wait(&what, |spans| spans.iter().any(is_it));
        spans.into_iter().find(is_it).unwrap()
    }

    /// The services and names from a span up to the root of its trace.
    fn way_up(&self, from: &Seen) -> Vec<(String, String)> {
        let mut way = Vec::new();
        let mut at = from.clone();
        loop {
            way.push((at.service.clone(), at.name.clone()));
            if at.parent.is_empty() {
                return way;
            }
            at = self.parent(&at);
        }
    }
}

fn attribute<'a>(span: &'a Seen, name: &str) -> Option<&'a str> {
    let mut all = span.attributes.iter();
    all.find(|(key, _)| key == name).map(|(_, value)| &**value)
}

#[test]
fn a_snapshot_of_an_attached_disk_is_one_trace_from_the_command_to_the_audit_log_of_the_vault() {
    let traced = Traced::new();
    let _daemon = traced.host.attach();
    traced.host.ok("snapshot create s --source disk");

    let root = traced.span("sealdisk snapshot create", |_| true);
    assert_eq!((&*root.service, root.parent.len()), ("sealdisk", 0));
    assert_eq!(root.kind, SpanKind::Internal);
    // The new layer has a DEK that the vault wraps, and says in its log that it did.
    let commit = traced.span("commit audit record", |seen| {
        seen.trace == root.trace
            && traced.parent(seen).name == "KeyWrap"
            && seen.service == "sealdisk-keyvault"
    });
    let way: Vec<_> = traced.way_up(&commit);
    let way: Vec<_> = way.iter().map(|(s, n)| (&**s, &**n)).collect();
    assert_eq!(
        way,
        [
            ("sealdisk-keyvault", "commit audit record"),
            ("sealdisk-keyvault", "KeyWrap"),
            ("sealdisk-keyvault", "vault wrap"),
            ("sealdisk-attach", "ask vault to wrap"),
            ("sealdisk-attach", "wrap DEK"),
            ("sealdisk-attach", "create snapshot"),
            ("sealdisk-attach", "control request"),
            ("sealdisk", "ask attach process"),
            ("sealdisk", "sealdisk snapshot create"),
        ]
    );
    for (name, kind) in [
        ("ask attach process", SpanKind::Client),
        ("control request", SpanKind::Server),
        ("ask vault to wrap", SpanKind::Client),
        ("vault wrap", SpanKind::Server),
        ("verify token", SpanKind::Internal),
        ("quiesce data plane", SpanKind::Internal),
        ("swap layers", SpanKind::Internal),
        ("append audit record", SpanKind::Internal),
    ] {
        let span = traced.span(name, |seen| seen.trace == root.trace);
        assert_eq!((span.kind, span.error.as_deref()), (kind, None), "{name}");
    }
    let applied = traced.span("create snapshot", |seen| seen.trace == root.trace);
    assert_eq!(attribute(&applied, "sealdisk.disk"), Some("disk"));
}

#[test]
fn an_attach_is_a_trace_until_it_serves_and_each_check_of_its_key_another() {
    let traced = Traced::new();
    let _daemon = traced.host.attach();
    let attach = traced.span("attach", |_| true);
    assert_eq!(
        (&*attach.service, attach.parent.len()),
        ("sealdisk-attach", 0)
    );
    for name in [
        "claim disk",
        "open layers",
        "start data plane",
        "begin session",
        "hand over to data plane",
    ] {
        let part = traced.span(name, |seen| seen.trace == attach.trace);
        assert_eq!(part.parent, attach.id, "{name}");
    }
    let unwrapped = traced.span("vault unwrap", |seen| seen.trace == attach.trace);
    let unwrap = traced.parent(&traced.parent(&unwrapped));
    assert_eq!(unwrap.name, "unwrap DEK");
    assert_eq!(traced.parent(&unwrap).name, "open layers");

    let check = traced.span("check key", |_| true);
    assert!(check.trace != attach.trace && check.parent.is_empty() && check.error.is_none());
    traced.span("vault unwrap", |seen| seen.trace == check.trace);

    // A refusal is an error at both ends, by its code; what the message of it says stays where it is.
    traced.keeper.enable(false);
    let refused = traced.span("check key", |seen| seen.error.is_some());
    assert_eq!(refused.error.as_deref(), Some("KeyDisabled"));
    assert_eq!(attribute(&refused, "error.type"), Some("KeyDisabled"));
    let unwrap = traced.span("unwrap DEK", |seen| seen.trace == refused.trace);
    assert_eq!(unwrap.error.as_deref(), Some("KeyDisabled"));
    traced.keeper.enable(true);
    traced.keeper.revoke();
    let served = traced.span("vault unwrap", |seen| seen.error.is_some());
    assert_eq!(attribute(&served, "http.response.status_code"), Some("403"));
    assert_eq!(attribute(&served, "sealdisk.vault"), Some(VAULT));
    let asked = traced.parent(&served);
    assert_eq!(
        (&*asked.name, asked.error.as_deref()),
        ("ask vault to unwrap", Some("Forbidden"))
    );
    let check = traced.span("check key", |seen| seen.trace == served.trace);
    assert_eq!(check.error.as_deref(), Some("Forbidden"));
}

#[test]
fn a_command_is_a_part_of_what_has_started_it() {
    let collector = Collector::new();
    let mut host = Host::new();
    host.set_env(ENDPOINT, &collector.endpoint());
    let trace = "0af7651916cd43dd8448eb211c80319c";
    host.set_env("TRACEPARENT", &format!("00-{trace}-b7ad6b7169203331-01"));
    host.set_env("OTEL_SERVICE_NAME", "nightly");
    host.ok("keyvault create myvault");
    host.refused("keyvault create myvault");
    let spans = collector.wait("two commands", |spans| {
        let commands = spans
            .iter()
            .filter(|seen| seen.name.starts_with("sealdisk"));
        commands.count() == 2
    });
    let of_commands = spans
        .iter()
        .filter(|seen| seen.name.starts_with("sealdisk"));
    for (span, error) in of_commands.zip([None, Some("VaultExists")]) {
        assert_eq!(span.name, "sealdisk keyvault create");
        assert_eq!(span.service, "nightly");
        let hex: String = span
            .trace
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(hex, trace);
        assert_eq!(span.parent, 0xb7ad_6b71_6920_3331_u64.to_be_bytes());
        assert_eq!(span.error.is_some(), error.is_some(), "{span:?}");
    }
}

#[test]
fn another_program_in_the_place_of_an_attach_process_goes_on_tracing() {
    let traced = Traced::new();
    let _daemon = traced.host.attach();
    traced.host.ok("upgrade disk");
    let root = traced.span("sealdisk upgrade", |_| true);
    let upgrade = traced.span("upgrade", |_| true);
    assert_eq!(upgrade.service, "sealdisk-attach");
    assert_eq!(traced.parent(&traced.parent(&upgrade)).id, root.id);
    assert_eq!(upgrade.error, None);
    traced.host.ok("disk resize disk --size 16MiB");
    let root = traced.span("sealdisk disk resize", |_| true);
    let told = traced.span("tell data plane its size", |_| true);
    assert_eq!(
        (told.trace, &*told.service),
        (root.trace, "sealdisk-attach")
    );
}

#[test]
fn no_key_and_no_token_is_in_what_a_collector_gets() {
    let traced = Traced::new();
    let daemon = traced.host.attach();
    traced.host.ok("snapshot create s --source disk");
    traced.host.ok("disk rotate-dek disk --wait");
    traced.span("sealdisk disk rotate-dek", |_| true);
    traced.span("check key", |_| true);
    drop(daemon);
    let installation = traced.host.installation();
    let disk = disks::Disk::find(&installation, "disk").unwrap();
    let header = disk.header_file().unwrap().read().unwrap();
    let envelope = header.claims().top().unwrap().envelope.clone();
    let (_, dek) = disk.unlock(&installation, header).unwrap();
    let got = traced.collector.bytes();
    let has = |what: &[u8]| got.windows(what.len()).any(|at| at == what);
    assert!(has(b"sealdisk.key"), "the search finds nothing");
    for secret in [dek.expose(), &envelope.wrapped] {
        let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        let base64 = URL_SAFE_NO_PAD.encode(secret);
        assert!(!has(&secret[..16]) && !has(&hex.as_bytes()[..32]));
        assert!(!has(&base64.as_bytes()[..22]));
    }
    // How each token begins, of the forms that there are.
    for begin in [r#"{"typ""#, r#"{"alg""#] {
        let token = URL_SAFE_NO_PAD.encode(begin);
        assert!(token.starts_with("eyJ") && token.len() == 8);
        assert!(!has(token.as_bytes()), "{token}");
    }
}
