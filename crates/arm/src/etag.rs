//! ETags: the hash of what a resource is answered with, so that a change by the command line changes it too.

use std::fmt::Write as _;

use serde_json::Value;
use server::{FrontReply, Head};

use crate::error::ArmError;
use keys::sha256;

/// An answer with the ETag of its body, as a header. Of what still changes it says when to ask again: Azure's clients
/// wait for half a minute otherwise.
pub fn with_etag(body: Value, status: u16) -> FrontReply {
    let state = body["properties"]["provisioningState"].as_str();
    FrontReply {
        status,
        headers: vec![("etag", etag(&body))],
        retry_after: matches!(state, Some("Creating" | "Updating")).then_some(1),
        body: Some(body),
        ..FrontReply::default()
    }
}

fn etag(body: &Value) -> String {
    let hash = sha256(body.to_string().as_bytes());
    let mut text = String::from("\"");
    for byte in &hash[..16] {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text + "\""
}

/// Whether a change may be made of what is there now, as the client has it.
///
/// # Errors
/// 412, also where `If-None-Match: *` wants nothing to be there.
pub fn check_etag(head: &Head, now: Option<&Value>) -> Result<(), ArmError> {
    let lists = |header: &str, wanted: &str| {
        header
            .split(',')
            .map(str::trim)
            .any(|tag| tag == "*" || tag.trim_start_matches("W/") == wanted)
    };
    let refuse = |why: &str| {
        let message = format!("The condition of the request is not met: {why}.");
        Err(ArmError::new(412, "PreconditionFailed", message))
    };
    match (head.header("if-match"), now) {
        (Some(header), Some(now)) if !lists(header, &etag(now)) => {
            return refuse("the resource was changed meanwhile");
        }
        (Some(_), None) => return refuse("the resource is not there"),
        _ => {}
    }
    match (head.header("if-none-match"), now) {
        (Some(header), Some(now)) if lists(header, &etag(now)) => refuse("the resource is there"),
        _ => Ok(()),
    }
}
