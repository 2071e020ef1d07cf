//! Opening all that an attach needs.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use crate::begin::data_plane::{DataPlane, START_PATIENCE, process};
use crate::begin::request::AttachRequest;
use crate::begin::setup::setup;
use crate::begin::socket::Socket;
use crate::begin::take::{Claimed, TakeOptions, Taken, claim};
use crate::error::AttachError;
use crate::serve::control_socket::ControlSocket;
use crate::serve::keeping::Keeping;
use disks::{Awaiting, Disk, DiskError};
use installation::Installation;
use installation::envelope::HeaderPayload;
use protocol::{Commands, KeepSocket, Setup};
use sandbox::Launcher;
use traces::Span;
use uuid::Uuid;

/// How long a disk that is in use is waited for.
const CLAIM_PATIENCE: Duration = Duration::from_secs(2);

/// Everything that the data plane is given.
pub(crate) struct Opened {
    pub(crate) setup: Setup,
    /// What the header says; only a disk that is taken has an authentic one.
    pub(crate) header: HeaderPayload,
    pub(crate) disk: DiskOf,
    /// Names this attach in its events.
    pub(crate) id: Uuid,
    pub(crate) socket: Socket,
    /// Where others ask and tell this attach something.
    pub(crate) control: ControlSocket,
    /// The process, which waits for all this.
    pub(crate) data_plane: DataPlane,
    /// Through which it has things kept, and where they are.
    pub(crate) keep: KeepSocket,
    pub(crate) keeping: Keeping,
    pub(crate) commands: Arc<Commands>,
}

/// Whose the disk is.
pub(crate) enum DiskOf {
    This(Box<Taken>),
    /// Another attach's: this one waits for it.
    Another(Awaiting),
}

/// Opens the socket, and the disk too unless it is to be waited for, and stamps the header.
///
/// # Errors
/// [`AttachError`]; the disk is as before.
pub(crate) fn open(
    installation: &Installation,
    disk: &Disk,
    request: &AttachRequest,
    launcher: Arc<Launcher>,
) -> Result<Opened, AttachError> {
    let id = Uuid::new_v4();
    let first = match request.incoming {
        true => First::Waits(disk.await_it()?),
        false => {
            // Before readers who hold it are waited for.
            disk.refuse_granted(installation)?;
            let span = Span::begin("claim disk");
            let claimed = claim(disk, CLAIM_PATIENCE, || true);
            let claimed = claimed.map_err(|error| disk.in_use_where(installation, error));
            let claimed = span.came_to(claimed, |error| error.code())?;
            drop(span);
            let span = Span::begin("open layers");
            let _entered = span.enter();
            let opened = Claimed::open(installation, disk, claimed, None);
            First::Has(Box::new(span.came_to(opened, |error| error.code())?))
        }
    };
    let socket = Socket::open(&request.socket)?;
    let control = match first {
        First::Waits(_) => ControlSocket::bind_waiting(&request.runtime_dir, disk.id(), id)?,
        First::Has(_) => ControlSocket::bind(&request.runtime_dir, disk.id(), id)?,
    };
    let keeping = Keeping::new(request.num_queues);
    let keeping = keeping.map_err(process("make the memory that outlives the data plane"))?;
    let region = keeping.region().as_fd().try_clone_to_owned();
    let region = region.map_err(process("start the data plane"))?;
    let starting = Span::begin("start data plane");
    let (data_plane, keep) =
        DataPlane::spawn(launcher, socket.duplicate()?, region, START_PATIENCE)?;
    let commands = Arc::new(data_plane.commands()?);
    drop(starting);
    let (header, disk) = match first {
        First::Has(claimed) => {
            let _span = Span::begin("begin session");
            let taken = claimed.begin(installation, disk, &TakeOptions::of(request))?;
            (taken.header.clone(), DiskOf::This(Box::new(taken)))
        }
        First::Waits(awaiting) => {
            let header = disk.header_file()?.read().map_err(DiskError::from)?;
            (header.claims().clone(), DiskOf::Another(awaiting))
        }
    };
    Ok(Opened {
        setup: setup(request, &header, socket.is_listening())?,
        header,
        disk,
        id,
        socket,
        control,
        data_plane,
        keep,
        keeping,
        commands,
    })
}

/// What is done before anything else is opened.
enum First {
    Has(Box<Claimed>),
    Waits(Awaiting),
}
