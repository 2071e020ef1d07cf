//! How this program sends something to an address of its operator: a webhook, a collector of traces.

use std::time::Duration;

use reqwest::{Client, ClientBuilder, redirect, tls};
use url::{Host, Url};

/// How long a connection may take to come about.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// A client for one address. It follows no redirection: the address is the operator's.
pub fn client(url: &Url) -> ClientBuilder {
    let builder = Client::builder()
        .connect_timeout(CONNECT_LIMIT)
        .redirect(redirect::Policy::none())
        .tls_version_min(tls::Version::TLS_1_2)
        .user_agent(concat!("sealdisk/", env!("CARGO_PKG_VERSION")))
        .referer(false);
    match is_this_machine(url) {
        true => builder.no_proxy(),
        false => builder,
    }
}

/// What went wrong, without the address, which may have a secret.
pub fn reason(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut why = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        why = format!("{why}: {cause}");
        source = cause.source();
    }
    why
}

/// What the machine itself provides must not be asked for through a proxy.
fn is_this_machine(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}
