//! What is asked of an attached disk through its control socket, and how it answers: a line of JSON each.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::Refusal;
use disks::LayerOp;
use protocol::Limits;

/// Bytes of a line at most.
pub(crate) const MAX_LINE: u64 = 16 * 1024;
/// How long the other end may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// What a client may ask for.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Request {
    /// These limits, instead of those that the disk has.
    Limits(Limits),
    /// A change of its layers.
    ApplyLayerOp(LayerOp),
    /// To be served by another program, by that one which is now where the attach process was started from if none is
    /// named.
    Upgrade { program: Option<PathBuf> },
    /// What the guard knows of the key, and what is being done to the layers.
    Status,
    /// That, and what the disk counts. Older versions do not know it.
    Metrics,
    /// The events so far, and with `follow` those to come.
    Events { follow: bool },
    /// One of the others, as a part of what its client does ([`Span::traceparent`](traces::Span::traceparent)). Older
    /// versions do not know it.
    Traced {
        traceparent: String,
        request: Box<Self>,
    },
}

impl Request {
    /// Without what it is a part of.
    pub(crate) fn untraced(self) -> (Self, Option<String>) {
        match self {
            Self::Traced {
                traceparent,
                request,
            } => (request.untraced().0, Some(traceparent)),
            request => (request, None),
        }
    }

    /// As traces call it, if it changes something; nobody wants to see of each look that there was one.
    pub(crate) fn span(&self) -> Option<&'static str> {
        match self {
            Self::Limits(_) => Some("change limits"),
            Self::ApplyLayerOp(op) => Some(op.name()),
            Self::Upgrade { .. } => Some("upgrade"),
            Self::Status | Self::Metrics | Self::Events { .. } | Self::Traced { .. } => None,
        }
    }
}

/// The answer to a request that is not for events. Every version has said [`Reply::Error`] of a request that it
/// does not know.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Reply<T> {
    Ok(T),
    /// The operation was not applied.
    Refused(Refusal),
    /// The disk goes on with the program that serves it.
    NotUpgraded(String),
    Error(String),
}
