//! Sending an event to an address.

use std::io;
use std::time::Duration;

use reqwest::header::CONTENT_TYPE;
use reqwest::{Client, StatusCode};
use tokio::runtime::{Builder, Runtime};
use traces::outgoing;
use url::Url;

use super::not_taken::NotTaken;

/// Sends events to an address. No answer is read, and no redirection followed: the address is the operator's.
pub(super) struct Webhook {
    url: Url,
    client: Client,
    runtime: Runtime,
}

impl Webhook {
    pub(super) fn new(url: Url) -> io::Result<Self> {
        // Between two events the other end may close it.
        let builder = outgoing::client(&url).pool_max_idle_per_host(0);
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

fn failed(error: reqwest::Error) -> NotTaken {
    let why = outgoing::reason(error);
    NotTaken { why, again: true }
}
