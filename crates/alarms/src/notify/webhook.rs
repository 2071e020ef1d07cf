//! Sending an event to an address.

use std::io;
use std::time::Duration;

use reqwest::header::CONTENT_TYPE;
use reqwest::{Client, StatusCode, redirect, tls};
use tokio::runtime::{Builder, Runtime};
use url::{Host, Url};

use super::not_taken::NotTaken;

/// How long a connection may take to come about.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// Sends events to an address. No answer is read, and no redirection followed: the address is the operator's.
pub(super) struct Webhook {
    url: Url,
    client: Client,
    runtime: Runtime,
}

impl Webhook {
    pub(super) fn new(url: Url) -> io::Result<Self> {
        let mut builder = Client::builder()
            .connect_timeout(CONNECT_LIMIT)
            // Between two events the other end may close it.
            .pool_max_idle_per_host(0)
            .redirect(redirect::Policy::none())
            .tls_version_min(tls::Version::TLS_1_2)
            .user_agent(concat!("sealdisk/", env!("CARGO_PKG_VERSION")))
            .referer(false);
        if is_this_machine(&url) {
            builder = builder.no_proxy();
        }
        Ok(Self {
            client: builder.build().map_err(io::Error::other)?,
            runtime: Builder::new_current_thread().enable_all().build()?,
            url,
        })
    }

    /// Sends an event once.
    pub(super) fn post(&self, event: &str, limit: Duration) -> Result<(), NotTaken> {
        let request = self
            .client
            .post(self.url.clone())
            .header(CONTENT_TYPE, "application/json")
            .timeout(limit)
            .body(event.to_owned());
        let answer = async { Ok(request.send().await?.status()) };
        let status = self.runtime.block_on(answer).map_err(failed)?;
        match status.is_success() {
            true => Ok(()),
            false => Err(NotTaken {
                why: format!("the answer is {status}"),
                again: may_change(status),
            }),
        }
    }
}

/// Whether another try may have another answer.
fn may_change(status: StatusCode) -> bool {
    status.is_server_error()
        || [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS].contains(&status)
}

/// What went wrong, without the address, which may have a secret.
fn failed(error: reqwest::Error) -> NotTaken {
    let error = error.without_url();
    let mut why = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        why = format!("{why}: {cause}");
        source = cause.source();
    }
    NotTaken { why, again: true }
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
