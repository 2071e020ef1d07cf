//! What is asked of an attached disk through its control socket, and how it answers: a line of JSON each.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::Refusal;
use disks::LayerOp;
use protocol::Limits;

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
