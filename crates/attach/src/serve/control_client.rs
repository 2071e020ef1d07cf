//! Asking and telling an attached disk something, through its control socket (`control_socket.rs`).

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::error::AttachError;
use crate::serve::control_name::{path_of, paths_without_disk};
use crate::serve::control_request::{MAX_LINE, PATIENCE, Reply, Request};
use crate::status::{KeyStatus, Upgraded};
use disks::{Applied, LayerOp};
use protocol::Limits;
use traces::Span;

/// How long a change of layers may take: the data plane flushes, and the vault is asked.
const CHANGE_PATIENCE: Duration = Duration::from_secs(300);
/// How long an upgrade may take.
const UPGRADE_PATIENCE: Duration = Duration::from_secs(120);

/// Changes the limits of an attached disk.
///
/// # Errors
/// [`AttachError::NotAttached`], or [`AttachError::Refused`].
pub fn set_limits(runtime_dir: &Path, disk: Uuid, limits: &Limits) -> Result<(), AttachError> {
    let answer = change(runtime_dir, disk, Request::Limits(*limits), PATIENCE)?;
    given(answer)
}

/// Has the process that has a disk attached apply an operation.
///
/// # Errors
/// [`AttachError::NotAttached`], [`AttachError::NotApplied`], [`AttachError::OtherVersion`], or
/// [`AttachError::Refused`].
pub fn send_layer_op(runtime_dir: &Path, disk: Uuid, op: &LayerOp) -> Result<Applied, AttachError> {
    let request = Request::ApplyLayerOp(op.clone());
    match change(runtime_dir, disk, request, CHANGE_PATIENCE)? {
        Some(Reply::Ok(applied)) => Ok(applied),
        Some(Reply::Refused(refusal)) => Err(AttachError::NotApplied(refusal)),
        Some(Reply::NotUpgraded(_) | Reply::Error(_)) | None => Err(AttachError::OtherVersion),
    }
}

/// Has an attached disk served by another program: by that one, or by the one that is now where its attach process was
/// started from.
///
/// # Errors
/// [`AttachError::NotAttached`], [`AttachError::WithoutDisk`], [`AttachError::NotUpgraded`],
/// [`AttachError::OtherVersion`], or [`AttachError::Refused`].
pub fn upgrade(
    runtime_dir: &Path,
    disk: Uuid,
    program: Option<PathBuf>,
) -> Result<Upgraded, AttachError> {
    let waits = || !waiting_attaches(runtime_dir, disk).is_empty();
    let request = Request::Upgrade { program };
    let answer = change(runtime_dir, disk, request, UPGRADE_PATIENCE);
    let answer = answer.map_err(|error| match error.nobody_listens() && waits() {
        true => AttachError::WithoutDisk,
        false => error,
    })?;
    match answer {
        Some(Reply::Ok(upgraded)) => Ok(upgraded),
        Some(Reply::NotUpgraded(why)) => Err(AttachError::NotUpgraded(why)),
        Some(Reply::Refused(_) | Reply::Error(_)) | None => Err(AttachError::OtherVersion),
    }
}

/// What is known of the key of an attached disk.
///
/// # Errors
/// [`AttachError::NotAttached`], or [`AttachError::Refused`].
pub fn key_status(runtime_dir: &Path, disk: Uuid) -> Result<KeyStatus, AttachError> {
    ask(runtime_dir, disk, &Request::Status)
}

/// What is known by each attach of the disk that does not have it, and answers: it waits for it, or has let go of it.
pub fn waiting_attaches(runtime_dir: &Path, disk: Uuid) -> Vec<KeyStatus> {
    let status = |path: PathBuf| {
        let socket = connect_to(&path).ok()?;
        send(&socket, &Request::Status).ok()?;
        match receive(socket) {
            Ok(Some(Reply::Ok(status))) => Some(status),
            _ => None,
        }
    };
    paths_without_disk(runtime_dir, disk)
        .into_iter()
        .filter_map(status)
        .collect()
}

/// Gives the events of an attached disk to `each`, a line of JSON at a time: those that are kept,
/// and with `follow` those that happen, until the disk is detached.
///
/// # Errors
/// [`AttachError::NotAttached`], and what `each` says.
pub fn events(
    runtime_dir: &Path,
    disk: Uuid,
    follow: bool,
    mut each: impl FnMut(&str) -> io::Result<()>,
) -> Result<(), AttachError> {
    let (socket, gone) = (connect(runtime_dir, disk)?, not_attached);
    send(&socket, &Request::Events { follow })?;
    socket.set_read_timeout(None).map_err(gone)?;
    for line in BufReader::new(socket).lines() {
        let line = line.map_err(gone)?;
        each(&line).map_err(|source| AttachError::Process {
            what: "write an event",
            source,
        })?;
    }
    Ok(())
}

fn not_attached(source: io::Error) -> AttachError {
    AttachError::NotAttached { source }
}

fn connect(runtime_dir: &Path, disk: Uuid) -> Result<UnixStream, AttachError> {
    connect_to(&path_of(runtime_dir, disk))
}

fn connect_to(path: &Path) -> Result<UnixStream, AttachError> {
    let socket = UnixStream::connect(path).map_err(not_attached)?;
    socket
        .set_read_timeout(Some(PATIENCE))
        .and_then(|()| socket.set_write_timeout(Some(PATIENCE)))
        .map_err(not_attached)?;
    Ok(socket)
}

fn send(mut socket: &UnixStream, request: &Request) -> Result<(), AttachError> {
    let json = serde_json::to_string(request).map_err(|e| AttachError::Refused(e.to_string()))?;
    writeln!(socket, "{json}").map_err(not_attached)
}

/// Has the process that has the disk change something, as a part of what this thread does.
fn change<T: DeserializeOwned>(
    runtime_dir: &Path,
    disk: Uuid,
    request: Request,
    patience: Duration,
) -> Result<Option<Reply<T>>, AttachError> {
    let span = Span::asking("ask attach process");
    span.set("sealdisk.request", request.span().unwrap_or_default());
    let once = |request: &Request| {
        let socket = connect(runtime_dir, disk)?;
        socket
            .set_read_timeout(Some(patience))
            .map_err(not_attached)?;
        send(&socket, request)?;
        receive(socket)
    };
    let Some(traceparent) = span.traceparent() else {
        return once(&request);
    };
    let traced = Request::Traced {
        traceparent,
        request: Box::new(request),
    };
    let answer = match once(&traced) {
        // As an older version says it of what it does not know, and has not done.
        Ok(Some(Reply::Error(_))) => once(&traced.untraced().0),
        answer => answer,
    };
    match &answer {
        Ok(Some(Reply::Ok(_))) => {}
        Ok(Some(Reply::Refused(refusal))) => span.failed(&refusal.code),
        Ok(Some(Reply::NotUpgraded(_) | Reply::Error(_)) | None) => span.failed("Refused"),
        Err(error) => span.failed(error.code()),
    }
    answer
}

fn ask<T: DeserializeOwned>(
    runtime_dir: &Path,
    disk: Uuid,
    request: &Request,
) -> Result<T, AttachError> {
    let socket = connect(runtime_dir, disk)?;
    send(&socket, request)?;
    given(receive(socket)?)
}

/// What was asked for, unless that was refused.
fn given<T>(answer: Option<Reply<T>>) -> Result<T, AttachError> {
    match answer {
        Some(Reply::Ok(value)) => Ok(value),
        Some(Reply::Refused(refusal)) => Err(AttachError::NotApplied(refusal)),
        Some(Reply::Error(error)) => Err(AttachError::Refused(format!(
            "the attached disk refused: {error}"
        ))),
        Some(Reply::NotUpgraded(_)) | None => Err(AttachError::OtherVersion),
    }
}

/// The answer to a request; `None` for one that this version does not know.
fn receive<T: DeserializeOwned>(socket: UnixStream) -> Result<Option<Reply<T>>, AttachError> {
    let mut answer = String::new();
    BufReader::new(socket.take(MAX_LINE))
        .read_line(&mut answer)
        .map_err(not_attached)?;
    if answer.is_empty() {
        return Err(AttachError::Refused(
            "the disk was detached before it answered; `disk show` tells what it has".into(),
        ));
    }
    Ok(serde_json::from_str(&answer).ok())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// What comes of an operation that a process answers which is not of this version.
    fn answered(answer: &'static str) -> AttachError {
        let dir = tempfile::tempdir().unwrap();
        let disk = Uuid::from_u128(1);
        let listener = UnixListener::bind(path_of(dir.path(), disk)).unwrap();
        let serve = move || {
            let (client, _) = listener.accept().unwrap();
            let mut request = String::new();
            BufReader::new(&client).read_line(&mut request).unwrap();
            (&client).write_all(answer.as_bytes()).unwrap();
        };
        let serving = std::thread::spawn(serve);
        let op = LayerOp::Flatten { rate: None };
        let error = send_layer_op(dir.path(), disk, &op).unwrap_err();
        serving.join().unwrap();
        error
    }

    #[test]
    fn an_attach_of_another_version_is_told_from_one_that_refuses() {
        // As every version says it of a request that it does not know.
        let unknown = "{\"error\":\"unknown variant `applyLayerOp`, expected one of `limits`\"}\n";
        for other in [unknown, "{\"ok\":\"somethingNew\"}\n", "nonsense\n"] {
            let error = answered(other);
            assert!(matches!(error, AttachError::OtherVersion), "{error:?}");
            assert!(error.to_string().contains("another version"), "{error}");
        }
        let refused = "{\"refused\":{\"code\":\"Conflict\",\"message\":\"why\"}}\n";
        let error = answered(refused);
        assert_eq!((error.code(), &*error.to_string()), ("Conflict", "why"));
        let error = answered("");
        assert!(error.to_string().contains("detached"), "{error}");
    }

    #[test]
    fn nobody_who_listens_was_sent_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, op) = (Uuid::from_u128(1), LayerOp::Flatten { rate: None });
        let error = send_layer_op(dir.path(), disk, &op).unwrap_err();
        assert!(error.nobody_listens(), "{error:?}");
        drop(UnixListener::bind(path_of(dir.path(), disk)).unwrap());
        let error = send_layer_op(dir.path(), disk, &op).unwrap_err();
        assert!(error.nobody_listens(), "{error:?}");
    }
}
