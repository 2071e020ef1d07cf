//! Why operations have failed.

use serde_json::json;

use crate::error::{ArmError, text};
use installation::catalog::{OperationRecord, OperationState};

/// Why an operation has failed.
pub fn failure(record: &OperationRecord) -> ArmError {
    let error = &record.answer["error"];
    let status = record.answer["status"].as_u64();
    let of = |pointer: &str| text(error, pointer).unwrap_or_default().to_owned();
    let (code, message) = (of("/details/0/code"), of("/details/0/message"));
    ArmError {
        target: text(error, "/target").map(str::to_owned),
        detail: (!code.is_empty()).then(|| Box::new((code, message))),
        ..ArmError::new(
            status.and_then(|it| u16::try_from(it).ok()).unwrap_or(409),
            &of("/code"),
            of("/message"),
        )
    }
}

/// Why work ends with the server.
pub fn cut_off() -> ArmError {
    ArmError::new(
        409,
        "OperationInterrupted",
        "The server ended while the operation went on, which cannot be gone on with. Ask for it again.",
    )
}

/// An operation that has ended for something else about its resource.
pub fn preempted(record: &mut OperationRecord, why: &str) -> OperationState {
    record.answer["error"] = json!({"code": "OperationPreempted", "message": why});
    OperationState::Canceled
}
