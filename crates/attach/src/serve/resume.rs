//! Going on as the attach process that another program was in this process (`replace.rs`).

use std::fs::File;
use std::io::Read;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use rustix::thread::set_name;
use uuid::Uuid;

use crate::begin::data_plane::{DataPlane, process};
use crate::begin::socket::Socket;
use crate::begin::take::TakeOptions;
use crate::error::AttachError;
use crate::guard::key_guard::{Guard, Moment};
use crate::serve::attach::{Beside, Served, signals};
use crate::serve::attach_state::{AttachState, SocketState};
use crate::serve::attached_disk::{AttachedDisk, Held, Now};
use crate::serve::control_socket::{ControlSocket, answer_upgrade};
use crate::serve::event_hub::EventHub;
use crate::serve::event_targets;
use crate::serve::followers::follow_again;
use crate::serve::keeping::Keeping;
use crate::serve::kept_keys::KeptKeys;
use crate::serve::passed::Passed;
use crate::serve::replace::unblock_signals;
use crate::serve::systemd::tell_systemd;
use crate::status::{EventKind, Offered, Reason};
use disks::{Disk, DiskError};
use installation::envelope::HeaderKey;
use installation::{HostLease, Installation};
use keys::{DekStack, harden_process, with_wiped_call_stack};
use protocol::{Commands, Messages};
use sandbox::Launcher;
use volume::RuntimeMap;
use volume::pipeline::PipelineError;
use volume::store::LayerFile;

/// Goes on with an attached disk, of which that descriptor says what the program before this one was at.
///
/// # Errors
/// [`AttachError`]: the disk is not served any more.
pub fn continue_attach(installation: Installation, state: RawFd) -> Result<(), AttachError> {
    // It was started by a descriptor, and is called by its number.
    let _ = set_name(c"sealdisk");
    harden_process().map_err(DiskError::Key)?;
    let fail = process("go on with what the attach process was at");
    let file = File::from(Passed::numbered(state).take().map_err(&fail)?);
    let state = AttachState::read(&file).map_err(&fail)?;
    let heard = signals().map_err(&fail)?;
    unblock_signals();
    let disk = Arc::new(Disk::find(&installation, &state.disk)?);
    let AttachState {
        descriptors: passed,
        setup,
        ..
    } = state;
    let stream = UnixStream::from(passed.commands.take().map_err(&fail)?);
    let twin = || {
        stream
            .try_clone()
            .map_err(process("duplicate the data plane's socket"))
    };
    let commands = Arc::new(Commands::adopt(twin()?, state.sent));
    let messages = Messages::adopt(twin()?, state.heard);
    let running = passed.data_plane.map(Passed::take).transpose();
    let socket = passed.launcher.take().map_err(&fail)?;
    let launcher = Launcher::adopt(socket, state.launcher, running.map_err(&fail)?)?;
    let data_plane = DataPlane::adopt(Arc::new(launcher), twin()?);
    let (deks, key) = with_wiped_call_stack(|| {
        let mut keys = UnixStream::from(passed.keys.take().map_err(&fail)?);
        received(&mut keys, state.layers.as_ref().map(Vec::len))
    })?;
    let keys = Arc::new(KeptKeys::new());
    if let (Some(layers), Some(deks)) = (state.layers, deks) {
        keys.hold(layers, &deks);
    }
    let claim = LayerFile::from_file(passed.claim.take().map_err(&fail)?.into());
    let claim = claim
        .map_err(PipelineError::from)
        .map_err(DiskError::from)?;
    let runtime = RuntimeMap::from_file(passed.runtime.take().map_err(&fail)?.into());
    let witness = passed.witness.map(Passed::take).transpose();
    let mut held = Held::of(&disk, &state.header, runtime, claim);
    if let Some(older) = witness.map_err(&fail)? {
        // It knows what was lost before.
        held.witness = Some(older.into());
    }
    let now = Now {
        top: state.top,
        size: state.size,
        key: Some(Arc::new(key)),
        held: Some(held),
        header: state.header,
        limits: state.limits,
        ends_as: Uuid::new_v4(),
        ended: None,
    };
    let (told, of) = (commands.clone(), disk.clone());
    let attached_disk = AttachedDisk::new(of, told, keys.clone(), state.runtime_path, now);
    let attached_disk = Arc::new(attached_disk);
    let region = passed.region.take().map_err(&fail)?;
    let keep = passed.keep.take().map_err(&fail)?;
    let keeping = Keeping::adopt(setup.num_queues, region, state.kept, keep.into());
    let SocketState { listening, bound } = state.socket;
    let socket = Socket::adopt(passed.socket.take().map_err(&fail)?, listening, bound);
    let control = passed.control.take().map_err(&fail)?;
    let control = ControlSocket::adopt(control, &state.control_path, state.offered.attach);
    let runtime_dir = state.control_path.parent().unwrap_or(Path::new("."));
    // The disk is served, whoever has this host's name.
    let lease = HostLease::beside(&installation, runtime_dir).unwrap_or_else(|error| {
        log::error!("this host has no lease: {error}");
        None
    });
    let served = Served {
        installation: Arc::new(installation),
        disk,
        options: state.options,
        program: state.program,
        lease: lease.map(Arc::new),
    };
    let guard = Guard::resumed(state.options, state.guard, Moment::now());
    let offered = Offered {
        // The program before may be one that does not tell it.
        installation: Some(served.installation.id()),
        ..state.offered
    };
    let event_hub = Arc::new(EventHub::new(guard.status(), offered));
    let mut supervision = served.clone().supervision(
        (guard, keys, setup),
        (data_plane, socket, keeping.map_err(&fail)?),
        Beside {
            commands: commands.clone(),
            attached_disk: attached_disk.clone(),
            control: Arc::new(control.map_err(&fail)?),
            event_hub: event_hub.clone(),
            options: TakeOptions::again(runtime_dir),
            awaiting: None,
            events_to: None,
        },
    )?;
    supervision.served = true;
    supervision.serving = true;
    supervision.restarts = state.restarts;
    supervision.failed_sync = state.failed_sync;
    event_hub.resume(state.events).map_err(&fail)?;
    follow_again(&event_hub);
    event_targets::bury_again(&event_hub).map_err(&fail)?;
    let watched = supervision.watch_from(heard, messages)?;
    served.answer_others(&supervision, &attached_disk)?;
    let end = passed.end.take().map_err(&fail)?;
    if was_told(end.into()) && commands.end().is_err() {
        log::warn!("the data plane cannot be told to end");
    }
    drop(passed.hangup.take());
    let reason = Reason {
        code: "Upgraded".into(),
        message: format!("version {} supervises it", env!("CARGO_PKG_VERSION")),
    };
    supervision.tell(EventKind::AttachProcessUpgraded, Some(reason));
    tell_systemd(&[sd_notify::NotifyState::Ready]);
    if let Some(client) = passed.client {
        let client = UnixStream::from(client.take().map_err(&fail)?);
        answer_upgrade(client, state.upgraded);
    }
    // A disk that is served has something to recover.
    served.live(supervision, watched, &attached_disk, true)
}

/// The DEKs of so many layers, if they are kept, and the key of the header.
fn received(
    from: &mut UnixStream,
    layers: Option<usize>,
) -> Result<(Option<DekStack>, HeaderKey), AttachError> {
    let key = HeaderKey::receive(from).map_err(DiskError::Key)?;
    let deks = layers.map(|layers| DekStack::receive(from, layers));
    Ok((deks.transpose().map_err(DiskError::Key)?, key))
}

/// Whether a signal came to the program before this one that it has not heard.
fn was_told(mut pipe: UnixStream) -> bool {
    pipe.set_nonblocking(true).is_ok() && pipe.read(&mut [0]).is_ok_and(|read| read > 0)
}
