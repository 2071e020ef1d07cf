//! Programs that are no good data planes: this very test program, which does something wrong when it is started as one.
//! What that is, the name of its file says.

use std::ffi::OsString;
use std::io::Write;
use std::os::fd::FromRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::exit;
use std::time::Duration;

use tempfile::TempDir;

use protocol::{
    COMMAND_FD, Command, DataPlaneEnd, Event, Hello, Line, ProtocolError, Reply, Versions, encode,
};
use sandbox::Launch;
use test_support::program;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Its launcher does nothing.
    LauncherHangs,
    /// It reads nothing that an attach process tells.
    ReadsNothing,
    /// It reads another version of it.
    ReadsOther,
    /// It ends at its start.
    Ends,
    /// It never says anything.
    Silent,
    /// It says what no data plane does.
    Babbles,
    /// It speaks a version that nobody knows.
    Version,
    /// It cannot do what it needs.
    Unprepared,
    /// It is prepared, and then ends.
    EndsPrepared,
    /// It is given the disk, and then ends.
    EndsWithDisk,
    /// It is given the disk, and says that it cannot serve it.
    RefusesDisk,
    /// It is given the disk, and does nothing.
    HangsWithDisk,
}

const FAULTS: [Fault; 12] = [
    Fault::LauncherHangs,
    Fault::ReadsNothing,
    Fault::ReadsOther,
    Fault::Ends,
    Fault::Silent,
    Fault::Babbles,
    Fault::Version,
    Fault::Unprepared,
    Fault::EndsPrepared,
    Fault::EndsWithDisk,
    Fault::RefusesDisk,
    Fault::HangsWithDisk,
];

/// A program with a fault, in a directory of its own.
pub struct Impostor {
    _directory: TempDir,
    path: PathBuf,
}

impl Impostor {
    pub fn new(fault: Fault) -> Self {
        let directory = beside_the_program();
        let path = directory.path().join(format!("{fault:?}"));
        // The same file: a copy that was just written could be open for writing in another process for a moment.
        std::fs::hard_link(std::env::current_exe().unwrap(), &path).unwrap();
        Self {
            _directory: directory,
            path,
        }
    }

    pub fn path(&self) -> &std::path::Path {
        &self.path
    }
}

/// Where the attach process may start programs.
pub fn beside_the_program() -> TempDir {
    TempDir::new_in(program().parent().unwrap()).unwrap()
}

/// Runs before the tests do, and instead of them if this process is to be a launcher or a data plane.
#[used]
#[unsafe(link_section = ".init_array")]
static BEGIN: extern "C" fn() = begin;

extern "C" fn begin() {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let Some(job) = arguments.get(1).and_then(|job| job.to_str()) else {
        return;
    };
    let jobs = ["data-plane-launcher", "data-plane", "attach-versions"];
    if !jobs.contains(&job) {
        return;
    }
    let program = std::env::current_exe().unwrap();
    let name = program.file_name().and_then(|name| name.to_str());
    let fault = FAULTS
        .into_iter()
        .find(|fault| name == Some(&format!("{fault:?}")));
    match (job, fault) {
        (_, None) | ("attach-versions", Some(Fault::ReadsNothing)) => exit(1),
        ("attach-versions", Some(fault)) => {
            let version = if fault == Fault::ReadsOther { 7 } else { 1 };
            println!(r#"{{"lowest":{version},"highest":{version}}}"#);
            exit(0)
        }
        ("data-plane-launcher", Some(Fault::LauncherHangs)) => hang(),
        ("data-plane-launcher", _) => launch(),
        (_, Some(fault)) => {
            serve(fault);
            exit(1)
        }
    }
}

fn hang() -> ! {
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

fn launch() -> ! {
    let launch = Launch {
        sandbox: sandbox::Sandbox::BestEffort,
        user: None,
    };
    let _ = sandbox::run_launcher("data-plane", launch, Vec::new());
    exit(0)
}

fn serve(fault: Fault) {
    if fault == Fault::Ends {
        return;
    }
    let id = std::process::id().to_le_bytes();
    std::io::stdout().write_all(&id).unwrap();
    std::io::stdout().flush().unwrap();
    // SAFETY: who starts a data plane leaves this open for it, and nothing else here knows the number.
    let mut stream = unsafe { UnixStream::from_raw_fd(COMMAND_FD) };
    match fault {
        Fault::Silent => hang(),
        Fault::Babbles => {
            let _ = stream.write_all(b"hello, who is there?\n");
            hang()
        }
        Fault::Version => {
            let hello = Versions {
                lowest: 900,
                highest: 901,
            };
            let _ = stream.write_all(&encode(&Hello { hello }).unwrap());
            hang()
        }
        _ => {}
    }
    if let Err(error) = with_a_disk(fault, stream) {
        eprintln!("the impostor {fault:?}: {error}");
    }
}

/// What goes wrong only after what was right.
fn with_a_disk(fault: Fault, stream: UnixStream) -> Result<(), ProtocolError> {
    let control = DataPlaneEnd::open(stream)?;
    let Some(prepare) = control.receive()? else {
        return Ok(());
    };
    assert!(matches!(prepare.command, Command::Prepare { .. }));
    if fault == Fault::Unprepared {
        let why = Line::from("it lacks what it needs");
        return control.tell(Event::Failed { why });
    }
    let program = Line::from("9.9.9");
    control.reply(prepare.number, Reply::Prepared { program })?;
    if fault == Fault::EndsPrepared {
        return Ok(());
    }
    let Some(served) = control.receive()? else {
        return Ok(());
    };
    match fault {
        Fault::RefusesDisk => {
            control.reply(served.number, Reply::refused(&"it does not like the disk"))?;
            hang()
        }
        Fault::HangsWithDisk => hang(),
        _ => Ok(()),
    }
}
