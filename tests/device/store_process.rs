//! A store process as a data plane uses it: a disk whose I/O goes through its lanes.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use keys::{Dek, DekStack, LockedBytes};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use store_process::{CONTROL_FD, StoreProcess};
use store_ring::{CHUNK_LEN, ClientLane, LaneBells, LaneMemory, Layout, Operation, Target};
use test_support::{alive, await_end, kill, noise, program};
use uuid::Uuid;
use volume::pipeline::DiskIo;
use volume::store::{
    BareRing, BufferBudget, BufferPool, DiskLane, LaneFiles, LaneStore, LayerFile, StackFiles,
};
use volume::{Geometry, LayerMap, LayerPaths, Volume, create_layer};
use xts::{CipherStack, DataUnit};

use super::MIB;

const SIZE: u64 = 16 * MIB;

const LAYOUT: Layout = Layout {
    lanes: 2,
    small: 4,
    chunks: 4,
};

/// A disk of one layer in a directory, and a store process that works on it.
struct Served {
    directory: tempfile::TempDir,
    geometry: Geometry,
    process: StoreProcess,
    /// The process itself.
    id: u32,
    first: Child,
}

impl Served {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let geometry = Geometry {
            disk: Uuid::new_v4(),
            layer: Uuid::new_v4(),
            size: SIZE,
            data_unit: DataUnit::B4096,
        };
        create_layer(&paths(directory.path()), &geometry).unwrap();
        let (process, id, first) = start(directory.path());
        Self {
            directory,
            geometry,
            process,
            id,
            first,
        }
    }

    fn volume(&self) -> Arc<Volume> {
        let map = File::open(paths(self.directory.path()).map).unwrap();
        let top = LayerMap::new(self.geometry.clone(), map);
        Arc::new(Volume::open_private(top, vec![]).unwrap())
    }

    /// The disk through lanes that are served from now on; the first lane is left to the test.
    fn attach(&self) -> (DiskIo, ClientLane) {
        let memory = LaneMemory::make(LAYOUT).unwrap();
        let bells: Vec<_> = (0..LAYOUT.lanes)
            .map(|_| LaneBells::make().unwrap())
            .collect();
        self.process.serve(LAYOUT, &memory, &bells).unwrap();
        let mapped = LaneMemory::map(&memory, LAYOUT).unwrap();
        let lanes = (0..).zip(bells);
        let lanes = lanes.map(|(number, bells)| ClientLane::new(mapped.clone(), number, bells));
        let mut lanes: Vec<_> = lanes.map(Result::unwrap).collect();
        let files = LaneFiles {
            layers: 1,
            alignment: 512,
            writes_durably: false,
        };
        let ring = BareRing::for_one_thread().unwrap();
        let store = LaneStore::on(ring, DiskLane::new(lanes.pop().unwrap()), files).unwrap();
        let ciphers = CipherStack::new(&deks(), &[DataUnit::B4096]).unwrap();
        let budget = BufferBudget::new(4 * CHUNK_LEN, mapped);
        let pool = BufferPool::new(4, &budget).unwrap();
        let io = DiskIo::on(store, self.volume(), Some(ciphers), pool).unwrap();
        (io, lanes.pop().unwrap())
    }

    /// The disk by its files, as any other.
    fn by_files(&self) -> DiskIo {
        let paths = paths(self.directory.path());
        let data = LayerFile::open(&paths.data).unwrap();
        let map = File::options().read(true).write(true).open(&paths.map);
        let map = LayerFile::from_file(map.unwrap()).unwrap();
        let files = StackFiles::new(data, map, vec![]);
        DiskIo::open(self.volume(), files, &deks()).unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if alive(self.id) {
            kill(self.id);
        }
        let _ = self.first.wait();
    }
}

fn deks() -> DekStack {
    let mut bytes = LockedBytes::zeroed(64).unwrap();
    for (byte, i) in bytes.as_mut_slice().iter_mut().zip(0..) {
        *byte = i;
    }
    Dek::from_locked(bytes).unwrap().into()
}

fn paths(directory: &Path) -> LayerPaths {
    LayerPaths {
        data: directory.join("data"),
        map: directory.join("map"),
    }
}

/// Starts a store process on the files of a directory, with its id.
fn start(directory: &Path) -> (StoreProcess, u32, Child) {
    let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
    let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, flags, None).unwrap();
    let mut command = Command::new(program());
    command
        .args(["store-process", "--sandbox", "best-effort"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    inherit(&mut command, theirs);
    let mut first = command.spawn().unwrap();
    let open = |name: &str| {
        let mut options = File::options();
        options.read(true).write(true);
        options.open(directory.join(name)).unwrap()
    };
    let process = StoreProcess::at(ours, &[open("data")], &open("map"), false).unwrap();
    let mut id = [0; 4];
    first.stdout.take().unwrap().read_exact(&mut id).unwrap();
    (process, u32::from_le_bytes(id), first)
}

/// Gives the program a descriptor under the number that it expects.
fn inherit(command: &mut Command, fd: OwnedFd) {
    // SAFETY: between fork and exec it makes one call that may be made there.
    unsafe {
        command.pre_exec(move || match libc::dup2(fd.as_raw_fd(), CONTROL_FD) {
            -1 => Err(std::io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
}

#[test]
fn what_is_written_through_a_store_process_is_in_the_files() {
    let served = Served::new();
    let mut content = vec![0; (4 * MIB) as usize];
    noise(&mut content);
    let (mut io, _) = served.attach();
    io.write_at(MIB, &content).unwrap();
    io.write_at(12 * MIB + 512, &[7; 1024]).unwrap();
    io.flush().unwrap();
    let mut found = vec![0; content.len()];
    io.read_at(MIB, &mut found).unwrap();
    assert!(found == content);
    io.discard(2 * MIB, MIB).unwrap();
    io.flush_and_release(false, std::time::Duration::from_secs(60))
        .unwrap();
    drop(io);
    served.process.drain().unwrap();
    let mut by_files = served.by_files();
    let mut found = vec![0xee; content.len()];
    by_files.read_at(MIB, &mut found).unwrap();
    let (first, rest) = content.split_at(MIB as usize);
    let (discarded, rest) = rest.split_at(MIB as usize);
    let end = discarded.len() + first.len();
    assert!(found[..first.len()] == *first && found[end..] == *rest);
    assert!(found[first.len()..end].iter().all(|byte| *byte == 0));
    let mut sectors = [0xee; 4096];
    by_files.read_at(12 * MIB, &mut sectors).unwrap();
    assert!(sectors[..512].iter().all(|byte| *byte == 0));
    assert!(sectors[512..1536].iter().all(|byte| *byte == 7));
    assert!(sectors[1536..].iter().all(|byte| *byte == 0));
}

#[test]
fn one_data_plane_after_another_goes_on_with_the_disk() {
    let served = Served::new();
    for round in 0..4u8 {
        let (mut io, _) = served.attach();
        let mut found = [0xee; 4096];
        io.read_at(u64::from(round.saturating_sub(1)) * MIB, &mut found)
            .unwrap();
        assert_eq!(found, [round; 4096], "what the last one flushed");
        io.write_at(u64::from(round) * MIB, &[round + 1; 4096])
            .unwrap();
        io.flush().unwrap();
    }
    assert_eq!(served.process.state().unwrap().waits_ms, None);
}

#[test]
fn a_data_plane_that_breaks_the_rules_ends_its_store_process() {
    let served = Served::new();
    let (_io, mut lane) = served.attach();
    let target = Target::TOP;
    // One slot for two operations.
    for _ in 0..2 {
        lane.submit(1, &Operation::Sync { target });
    }
    lane.publish().unwrap();
    await_end(served.id);
    assert!(served.process.state().is_err());
}

#[test]
fn a_store_process_has_no_privilege_and_no_network() {
    let served = Served::new();
    let status = std::fs::read_to_string(format!("/proc/{}/status", served.id)).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_whitespace().nth(1))
            .unwrap_or_default()
            .to_owned()
    };
    assert_eq!(field("CapEff:"), "0000000000000000");
    assert_eq!(field("CapPrm:"), "0000000000000000");
    assert_eq!(
        (field("NoNewPrivs:"), field("Seccomp:")),
        ("1".into(), "2".into())
    );
    let network = |id: &str| std::fs::read_link(format!("/proc/{id}/ns/net")).ok();
    if rustix::process::geteuid().is_root() {
        assert_ne!(network(&served.id.to_string()), network("self"));
    }
}

#[test]
fn a_store_process_ends_with_whoever_has_started_it() {
    let mut served = Served::new();
    let (process, id, first) = start(served.directory.path());
    let id = std::mem::replace(&mut served.id, id);
    let mut first = std::mem::replace(&mut served.first, first);
    assert!(alive(id));
    drop(std::mem::replace(&mut served.process, process));
    await_end(id);
    let _ = first.wait();
}
