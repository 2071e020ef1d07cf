//! Whether anything is traced, by the variables that OpenTelemetry has for it.

use std::env;
use std::process::Child;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use log::Level;
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{
    OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, SpanExporter, WithHttpConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::EnvResourceDetector;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use rustix::system::uname;

use crate::exporter::spawn;
use crate::passed::Passing;

/// How long the last spans are waited for, at the end of a command, until they are sent: longer than the other process
/// takes for them at most.
const PATIENCE: Duration = Duration::from_millis(800);
/// How often it is looked meanwhile.
const LOOK: Duration = Duration::from_millis(5);

/// What traces, if anything does.
static TRACING: OnceLock<Tracing> = OnceLock::new();

struct Tracing {
    service: Service,
    tracer: SdkTracer,
    passing: Passing,
    exporter: Mutex<Child>,
}

/// What is traced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// A command, from its beginning to its end.
    Command,
    /// What an attach process does.
    Attach,
    /// What served vaults do.
    KeyVault,
}

impl Service {
    /// As it is called, unless `OTEL_SERVICE_NAME` says.
    fn name(self) -> &'static str {
        match self {
            Self::Command => "sealdisk",
            Self::Attach => "sealdisk-attach",
            Self::KeyVault => "sealdisk-keyvault",
        }
    }

    /// From which level on the log has what is wrong with traces. On stderr a command says what is wrong with itself
    /// alone, unless it is asked for more.
    fn level(self) -> Level {
        match self {
            Self::Command => Level::Info,
            Self::Attach | Self::KeyVault => Level::Warn,
        }
    }
}

/// Begins to trace, if it is wanted. To be called before the process has a key, and before it is confined. Where it
/// cannot be, the log says why.
pub fn start(service: Service) {
    if !is_wanted() || TRACING.get().is_some() {
        return;
    }
    match tracing(service) {
        // Another thread cannot have been here: there is one.
        Ok(tracing) => drop(TRACING.set(tracing)),
        Err(why) => log::log!(service.level(), "nothing is traced: {why}"),
    }
}

/// Whether anything is traced.
pub fn are_on() -> bool {
    TRACING.get().is_some()
}

/// Says that no more comes. A command waits a moment until the last spans are sent: who runs it in a container takes that
/// away when it ends. A collector that takes longer does not get them.
pub fn finish() {
    let Some(tracing) = TRACING.get() else {
        return;
    };
    tracing.passing.end();
    if tracing.service != Service::Command {
        return;
    }
    let exporter = tracing.exporter.lock();
    let mut exporter = exporter.unwrap_or_else(PoisonError::into_inner);
    let end = Instant::now() + PATIENCE;
    while matches!(exporter.try_wait(), Ok(None)) && Instant::now() < end {
        std::thread::sleep(LOOK);
    }
}

pub(crate) fn tracer() -> Option<&'static SdkTracer> {
    TRACING.get().map(|tracing| &tracing.tracer)
}

fn is_wanted() -> bool {
    let of = |name: &str| env::var(name).unwrap_or_default();
    let is_disabled = of("OTEL_SDK_DISABLED").eq_ignore_ascii_case("true");
    let by_otlp = matches!(of("OTEL_TRACES_EXPORTER").as_str(), "" | "otlp");
    let mut endpoints = [
        OTEL_EXPORTER_OTLP_ENDPOINT,
        OTEL_EXPORTER_OTLP_TRACES_ENDPOINT,
    ]
    .into_iter();
    !is_disabled && by_otlp && endpoints.any(|name| !of(name).is_empty())
}

fn tracing(service: Service) -> Result<Tracing, String> {
    let (passing, read) = Passing::pair().map_err(|e| e.to_string())?;
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(passing.clone())
        .build()
        .map_err(|e| e.to_string())?;
    let provider = SdkTracerProvider::builder()
        .with_simple_exporter(exporter)
        .with_resource(resource(service))
        .build();
    let is_quiet = service.level() > log::max_level();
    let exporter = spawn(read, is_quiet).map_err(|e| e.to_string())?;
    Ok(Tracing {
        service,
        tracer: provider.tracer("sealdisk"),
        passing,
        exporter: Mutex::new(exporter),
    })
}

/// What all spans of this process have in common. What the environment says counts.
fn resource(service: Service) -> Resource {
    let name = env::var("OTEL_SERVICE_NAME").ok().filter(|n| !n.is_empty());
    let host = uname().nodename().to_string_lossy().into_owned();
    let resource = Resource::builder_empty()
        .with_service_name(service.name())
        .with_attributes([
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("host.name", host),
            KeyValue::new("process.pid", i64::from(std::process::id())),
        ])
        .with_detector(Box::new(EnvResourceDetector::new()));
    match name {
        Some(name) => resource.with_service_name(name),
        None => resource,
    }
    .build()
}
