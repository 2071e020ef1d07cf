//! The thread that asks the vault, which may take its time: the guard does not wait for it.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::guard::key_guard::{Finding, LayerKeys};
use crate::status::Reason;
use disks::{Disk, DiskError};
use installation::Installation;
use installation::envelope::HeaderPayload;
use keys::{ROOMY_STACK, spawn_with_keys, with_wiped_call_stack};
use vault::Verdict;

/// Asks the vault when told to.
pub(crate) struct Checker {
    asks: Sender<bool>,
    findings: Receiver<Finding>,
    readable: EventFd,
}

impl Checker {
    /// Starts the thread. `check` is told whether the DEK is wanted.
    pub(crate) fn spawn(
        mut check: impl FnMut(bool) -> Finding + Send + 'static,
    ) -> io::Result<Self> {
        let readable = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let tell = readable.try_clone()?;
        let (asks, asked) = channel();
        let (sender, findings) = channel();
        // It is never joined: a vault that does not answer must not delay the end of the attach.
        let answer = move || {
            while let Ok(with_key) = asked.recv() {
                if sender.send(check(with_key)).is_err() || tell.write(1).is_err() {
                    return;
                }
            }
        };
        spawn_with_keys("key-check".into(), ROOMY_STACK, answer).map_err(io::Error::other)?;
        Ok(Self {
            asks,
            findings,
            readable,
        })
    }

    /// Has the vault asked.
    pub(crate) fn ask(&self, with_key: bool) {
        // Should the thread have ended, the check stays unanswered, which the guard can judge.
        let _ = self.asks.send(with_key);
    }

    /// Becomes readable when there is a finding.
    pub(crate) fn readable(&self) -> &EventFd {
        &self.readable
    }

    /// The next finding, if there is one.
    pub(crate) fn take(&self) -> Option<Finding> {
        let _ = self.readable.read();
        self.findings.try_recv().ok()
    }
}

/// Unwraps DEKs of an attached disk in the name of its identities, as its header says now: one under
/// each key, or, when they are wanted, those of all layers. `top` is the top layer that is attached.
pub(crate) fn check(
    installation: &Installation,
    disk: &Disk,
    top: uuid::Uuid,
    with_key: bool,
) -> Finding {
    let unlocked = with_wiped_call_stack(|| -> Result<_, DiskError> {
        // A set or an identity that is removed is removed from the catalog that is there now.
        installation.renew()?;
        let header = disk.header_file()?.read()?;
        match with_key {
            true => {
                let (header, deks) = disk.unlock_all(installation, header)?;
                let layers = header.layers.iter().rev().map(|layer| layer.id).collect();
                Ok((header, Some(LayerKeys { layers, deks })))
            }
            false => Ok((disk.check_keys(installation, header)?, None)),
        }
    });
    match unlocked {
        // While the layers are being changed it names the top that was, beneath a new one.
        Ok((header, keys)) if header.layer(top).is_some() => Finding::Granted {
            key_url: key_url(&header),
            keys,
        },
        Ok(_) => Finding::Unknown(Reason {
            code: "UnusableHeader".into(),
            message: "the disk's header does not name the layer that is attached".into(),
        }),
        Err(error) => match error.key_verdict() {
            Verdict::Refused => Finding::Refused(reason(&error)),
            Verdict::Unknown => Finding::Unknown(reason(&error)),
        },
    }
}

/// The key version that wraps the top layer's DEK.
fn key_url(header: &HeaderPayload) -> String {
    let top = header.top().map(|top| top.envelope.key_url());
    top.unwrap_or_default()
}

/// The reason as the guard keeps it.
pub(crate) fn reason(error: &DiskError) -> Reason {
    let code = match (error.vault_error(), error.key_verdict()) {
        (Some(error), _) => error.code.as_str(),
        (None, Verdict::Refused) => "IdentityNotFound",
        (None, Verdict::Unknown) => "InternalError",
    };
    Reason {
        code: code.into(),
        message: error.to_string().replace('\n', " "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use installation::catalog::{CatalogError, Kind};
    use installation::envelope::EnvelopeError;
    use vault::{VaultError, VaultErrorCode};

    #[test]
    fn only_a_decision_about_the_key_is_a_refusal() {
        let vault = |code| DiskError::from(VaultError::new(code, "why"));
        let gone = |kind| {
            DiskError::from(CatalogError::NotFound {
                kind,
                name: "x".into(),
            })
        };
        // What is said of the key of a layer beneath the top one decides as well.
        let of_layer = |source| DiskError::Layer {
            kind: installation::envelope::ResourceKind::Disk,
            name: "d".into(),
            layer: uuid::Uuid::nil(),
            from: "the disk golden".into(),
            key_url: "https://v.vault.localhost/keys/k/1".into(),
            source: Box::new(source),
        };
        for (error, expected, code) in [
            (
                vault(VaultErrorCode::KeyDisabled),
                Verdict::Refused,
                "KeyDisabled",
            ),
            (
                EnvelopeError::Vault(VaultError::new(VaultErrorCode::Forbidden, "why")).into(),
                Verdict::Refused,
                "Forbidden",
            ),
            (
                vault(VaultErrorCode::Unreachable),
                Verdict::Unknown,
                "VaultUnreachable",
            ),
            (
                gone(Kind::DiskEncryptionSet),
                Verdict::Refused,
                "IdentityNotFound",
            ),
            (gone(Kind::Vault), Verdict::Unknown, "InternalError"),
            (
                of_layer(vault(VaultErrorCode::KeyDisabled)),
                Verdict::Refused,
                "KeyDisabled",
            ),
            (
                of_layer(gone(Kind::DiskEncryptionSet)),
                Verdict::Refused,
                "IdentityNotFound",
            ),
        ] {
            assert_eq!(error.key_verdict(), expected, "{error}");
            assert_eq!(reason(&error).code, code);
        }
    }
}
