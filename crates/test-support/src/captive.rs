//! Another process, made to do what whoever took it over would have it do: real system calls, in its own threads,
//! under its own confinement. ptrace(2) needs root, or a process that can be traced.

use std::fs::{self, File};
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::unix::fs::FileExt;
use std::ptr;

/// A thread of another process, stopped. It goes on where it was when this is dropped.
pub struct Captive {
    thread: libc::pid_t,
    memory: File,
    /// Where there is an instruction that makes a system call.
    instruction: u64,
    before: libc::user_regs_struct,
    /// A page of its own, where arguments are.
    page: u64,
    used: u64,
}

const PAGE: u64 = 4096;

impl Captive {
    /// Stops a thread.
    ///
    /// # Errors
    /// What the kernel says: it may not be traced.
    pub fn seize(process: u32, thread: u32) -> io::Result<Self> {
        let id = thread as libc::pid_t;
        trace(libc::PTRACE_SEIZE, id, 0, 0)?;
        trace(libc::PTRACE_INTERRUPT, id, 0, 0)?;
        await_stop(id)?;
        let options = File::options().read(true).write(true).to_owned();
        let memory = options.open(format!("/proc/{process}/mem"))?;
        let instruction = find_instruction(process, &memory)?;
        let mut captive = Self {
            thread: id,
            memory,
            instruction,
            before: registers(id)?,
            page: 0,
            used: 0,
        };
        let access = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let kind = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
        let page = captive.call(libc::SYS_mmap, &[0, PAGE, access, kind, u64::MAX, 0]);
        captive.page = u64::try_from(page).map_err(|_| io::Error::other("it gets no memory"))?;
        Ok(captive)
    }

    /// Makes a system call; what it returns, an error as the negative number of that.
    pub fn call(&mut self, number: i64, arguments: &[u64]) -> i64 {
        let argument = |at: usize| arguments.get(at).copied().unwrap_or(0);
        let mut registers = self.before;
        registers.rip = self.instruction;
        registers.rax = number as u64;
        // No call that was interrupted is to be begun again instead.
        registers.orig_rax = u64::MAX;
        registers.rdi = argument(0);
        registers.rsi = argument(1);
        registers.rdx = argument(2);
        registers.r10 = argument(3);
        registers.r8 = argument(4);
        registers.r9 = argument(5);
        set_registers(self.thread, &registers).unwrap();
        trace(libc::PTRACE_SINGLESTEP, self.thread, 0, 0).unwrap();
        await_stop(self.thread).unwrap();
        let after = self::registers(self.thread).unwrap();
        assert_eq!(after.rip, self.instruction + 2, "it went elsewhere");
        after.rax as i64
    }

    /// Puts bytes where an argument can point to; their address.
    pub fn put(&mut self, bytes: &[u8]) -> u64 {
        let len = bytes.len().next_multiple_of(16) as u64;
        if self.used + len > PAGE {
            self.used = 0;
        }
        let at = self.page + self.used;
        self.memory.write_all_at(bytes, at).unwrap();
        self.used += len;
        at
    }
}

impl Drop for Captive {
    fn drop(&mut self) {
        if self.page != 0 {
            self.call(libc::SYS_munmap, &[self.page, PAGE]);
        }
        // It may have been killed meanwhile.
        let _ = set_registers(self.thread, &self.before);
        let _ = trace(libc::PTRACE_DETACH, self.thread, 0, 0);
    }
}

/// An address of the instruction `syscall`: the C library has many.
fn find_instruction(process: u32, memory: &File) -> io::Result<u64> {
    const SYSCALL: [u8; 2] = [0x0f, 0x05];
    let maps = fs::read_to_string(format!("/proc/{process}/maps"))?;
    for line in maps.lines().filter(|line| line.contains("r-xp")) {
        let range = line
            .split(' ')
            .next()
            .and_then(|range| range.split_once('-'));
        let Some((start, end)) = range else { continue };
        let address = |text| u64::from_str_radix(text, 16).map_err(io::Error::other);
        let (start, end) = (address(start)?, address(end)?);
        let mut code = vec![0; (end - start) as usize];
        if memory.read_exact_at(&mut code, start).is_err() {
            continue;
        }
        if let Some(at) = code.windows(2).position(|two| two == SYSCALL) {
            return Ok(start + at as u64);
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

fn trace(
    request: libc::c_uint,
    thread: libc::pid_t,
    address: usize,
    data: usize,
) -> io::Result<()> {
    // SAFETY: these requests take numbers, or the address of what `data` names, which lives through the call.
    match unsafe { libc::ptrace(request, thread, address, data) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn await_stop(thread: libc::pid_t) -> io::Result<()> {
    let mut status = 0;
    // SAFETY: the status is a place of this function.
    match unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) } {
        -1 => Err(io::Error::last_os_error()),
        _ if libc::WIFSTOPPED(status) => Ok(()),
        _ => Err(io::Error::other("it has ended")),
    }
}

fn registers(thread: libc::pid_t) -> io::Result<libc::user_regs_struct> {
    let mut registers = MaybeUninit::<libc::user_regs_struct>::zeroed();
    let at = registers.as_mut_ptr().expose_provenance();
    trace(libc::PTRACE_GETREGS, thread, 0, at)?;
    // SAFETY: the kernel has filled them in; and all zeros are valid too.
    Ok(unsafe { registers.assume_init() })
}

fn set_registers(thread: libc::pid_t, registers: &libc::user_regs_struct) -> io::Result<()> {
    trace(
        libc::PTRACE_SETREGS,
        thread,
        0,
        ptr::from_ref(registers).expose_provenance(),
    )
}

/// A ring of io_uring of another process, whose queues this one has mapped.
pub struct ForeignRing {
    /// Its descriptor there.
    pub number: u64,
    rings: Mapping,
    entries: Mapping,
    at: Offsets,
}

/// Where things are in the memory of a ring, as `struct io_uring_params` tells.
#[derive(Default, Clone, Copy)]
#[repr(C)]
struct Params {
    sq_entries: u32,
    cq_entries: u32,
    flags: u32,
    rest: [u32; 7],
    /// Offsets of head, tail, mask, size, flags, dropped, array.
    sq: [u32; 10],
    /// Offsets of head, tail, mask, size, overflow, entries.
    cq: [u32; 10],
}

struct Offsets {
    sq_head: usize,
    sq_tail: usize,
    sq_mask: u32,
    sq_array: usize,
    cq_head: usize,
    cq_tail: usize,
    cq_mask: u32,
    cqes: usize,
}

/// An entry of a submission queue: its operation, flags, descriptor and three more fields.
pub struct Entry {
    /// The operation.
    pub code: u8,
    /// `IOSQE_…`.
    pub flags: u8,
    /// The file.
    pub fd: i32,
}

/// What no user of a ring looks for: completions of others are ignored.
const IGNORED: u64 = (1 << 63) | (1 << 62);

impl ForeignRing {
    /// Maps the ring behind a descriptor of another process, which this one has a duplicate of. `entries` is the size of
    /// its submission queue.
    pub fn map(number: u64, duplicate: &File, entries: u32) -> Self {
        let mut params = Params::default();
        // A ring of the same size has the same layout.
        // SAFETY: the structure is the one that the call takes.
        let sample = unsafe { libc::syscall(libc::SYS_io_uring_setup, entries, &raw mut params) };
        assert!(sample >= 0, "{}", io::Error::last_os_error());
        // SAFETY: a descriptor that was just made, and is nobody else's.
        unsafe { libc::close(sample as i32) };
        let (sq, cq) = (params.sq, params.cq);
        let rings_len = (sq[6] as usize + params.sq_entries as usize * 4)
            .max(cq[5] as usize + params.cq_entries as usize * 16);
        let entry_len = 64 * params.sq_entries as usize;
        Self {
            number,
            rings: Mapping::of(duplicate, rings_len, 0),
            entries: Mapping::of(duplicate, entry_len, 0x1000_0000),
            at: Offsets {
                sq_head: sq[0] as usize,
                sq_tail: sq[1] as usize,
                sq_mask: params.sq_entries - 1,
                sq_array: sq[6] as usize,
                cq_head: cq[0] as usize,
                cq_tail: cq[1] as usize,
                cq_mask: params.cq_entries - 1,
                cqes: cq[5] as usize,
            },
        }
    }

    /// Has the captive submit an entry. The result of its completion, or the error of the submission.
    pub fn submit(&self, captive: &mut Captive, entry: &Entry) -> i64 {
        let tail = self.rings.get(self.at.sq_tail);
        assert_eq!(
            tail,
            self.rings.get(self.at.sq_head),
            "it has work to submit"
        );
        let place = tail & self.at.sq_mask;
        let mut bytes = [0u8; 64];
        bytes[0] = entry.code;
        bytes[1] = entry.flags;
        bytes[4..8].copy_from_slice(&entry.fd.to_le_bytes());
        bytes[32..40].copy_from_slice(&IGNORED.to_le_bytes());
        self.entries.put(place as usize * 64, &bytes);
        self.rings.set(self.at.sq_array + place as usize * 4, place);
        let completed = self.rings.get(self.at.cq_tail);
        self.rings.set(self.at.sq_tail, tail.wrapping_add(1));
        const GETEVENTS: u64 = 1;
        let entered = captive.call(
            libc::SYS_io_uring_enter,
            &[self.number, 1, 0, GETEVENTS, 0, 0],
        );
        if entered < 0 {
            // Nobody else is to submit it.
            self.rings.set(self.at.sq_tail, tail);
            return entered;
        }
        let now = self.rings.get(self.at.cq_tail);
        // A queue is woken by its watchdog now and then, whose completion is another.
        let news = now.wrapping_sub(completed);
        let places = (0..news).map(|n| completed.wrapping_add(n) & self.at.cq_mask);
        let words = |place: u32| {
            let at = self.at.cqes + place as usize * 16;
            [0, 4, 8].map(|word| self.rings.get(at + word))
        };
        let its = [IGNORED as u32, (IGNORED >> 32) as u32];
        let done = places.map(words).find(|words| words[..2] == its);
        let [.., result] = done.expect("it has not completed");
        if news == 1 && self.rings.get(self.at.cq_head) == completed {
            // Nothing else waits to be taken, and there is little room.
            self.rings.set(self.at.cq_head, now);
        }
        (result as i32).into()
    }
}

/// Memory of a ring.
struct Mapping {
    start: *mut u8,
    len: usize,
}

impl Mapping {
    fn of(file: &File, len: usize, offset: i64) -> Self {
        use std::os::fd::AsRawFd;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                access,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                offset,
            )
        };
        assert_ne!(start, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        Self {
            start: start.cast(),
            len,
        }
    }

    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(offset + len <= self.len);
        self.start.wrapping_add(offset)
    }

    fn get(&self, offset: usize) -> u32 {
        let at = self.at(offset, size_of::<u32>()).cast::<u32>();
        // SAFETY: within the mapping (just checked) and aligned as the kernel lays it out.
        unsafe { at.read_volatile() }
    }

    fn set(&self, offset: usize, value: u32) {
        let at = self.at(offset, size_of::<u32>()).cast::<u32>();
        // SAFETY: as above.
        unsafe { at.write_volatile(value) }
    }

    fn put(&self, offset: usize, bytes: &[u8]) {
        let at = self.at(offset, bytes.len());
        // SAFETY: as above; the bytes are elsewhere.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's alone.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}
