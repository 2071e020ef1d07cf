//! Confining the data plane before the first byte of a guest is read.
//!
//! Whatever a guest can make this process do, it can do only with the descriptors and the memory that it has. It is
//! confined in three steps, each as soon as it can be. At its start it moves to namespaces of its own
//! ([`Confinement::begin`]). Once its rings are made, which takes privileges, it leaves its root directory and its
//! user, and gives up all capabilities and all paths ([`Confinement::leave_host`]), and then what else it does not need
//! ([`Confinement::finish`]): so the maps of a disk, which a writer may have changed, are read without any.

use std::io::Write;

use rustix::process::{Pid, Resource};

use keys::QUEUE_STACK;
use keys::units::MAX_LAYERS;
use protocol::Setup;
use sandbox::landlock::{Keeps, restrict};
use sandbox::{
    Isolated, Launch, Missing, NAMESPACES, Privileges, Rule, User, calls, empty_root, isolate,
    limit, raise,
};
use volume::store::{RING_OPERATIONS, RING_REGISTRATIONS, RingRule, locked_memory_limit};
use volume::{MAX_DISK_SIZE, share_maps_up_to};

use crate::DataplaneError;
use crate::disk::memory::{most_workers, needed_files};
use crate::disk::rings::{SIGNAL_OPERATIONS, SIGNAL_REGISTRATIONS, rings_for};

use super::calls::allowed;

/// As the attach process calls it.
const PROCESS: &str = "data plane";

/// Bytes of locked memory of a data plane: some for the process, and for each queue its stack and, for each layer,
/// the schedule of a cipher.
const LOCKED: u64 = 1 << 20;
const LOCKED_PER_LAYER: u64 = 16 << 10;
/// Bytes of maps of frozen layers that it may lock, which are pages of files: the maps of 16 TiB. Of a process
/// that has each chunk of 64 KiB locked by itself the kernel has half as many mappings then as it allows.
const SHARED_MAPS: u64 = 1 << 30;

/// Threads beside those of the queues, and threads of the kernel beside those that have a limit of their own.
const OTHER_THREADS: u64 = 64;

/// A process that is being confined.
pub(crate) struct Confinement {
    launch: Launch,
    isolated: Isolated,
    missing: Missing,
}

impl Confinement {
    /// Goes on in namespaces of its own: in a child, whose id this process tells on its standard output. It must
    /// have one thread.
    ///
    /// # Errors
    /// [`DataplaneError::Sandbox`].
    pub(crate) fn begin(launch: Launch) -> Result<Self, DataplaneError> {
        let mut missing = Missing::default();
        let isolated = isolate(&mut missing, tell)?;
        close_standard_output()?;
        Ok(Self {
            launch,
            isolated,
            missing,
        })
    }

    /// Leaves the host's files, its users and its privileges behind. What it will lock of memory is to be allowed
    /// before, since locked memory counts for the user.
    pub(crate) fn leave_host(&mut self, queues: u16) {
        raise(Resource::Memlock, locked_memory(queues) + SHARED_MAPS);
        if self.isolated.has_mounts() {
            self.missing
                .or_note("an empty root directory", empty_root());
        }
        let user = self.launch.user;
        if user.is_none() && rustix::process::geteuid().is_root() {
            self.missing
                .note("a user of its own", "it runs as root, and none was named");
        }
        Privileges { user }.give_up(&mut self.missing);
        restrict(Keeps::All, [], &mut self.missing);
    }

    /// Gives up all other system calls and resources. It must still have one thread: those that are started later
    /// inherit everything.
    ///
    /// # Errors
    /// [`DataplaneError::Sandbox`]: it is not confined as it must be, and no guest must be served.
    pub(crate) fn finish(mut self, queues: u16) -> Result<(), DataplaneError> {
        for (resource, name, most) in limits(queues) {
            let holds = match resource {
                // Where other processes of the user count as well, it would keep this one from starting threads.
                Resource::Nproc => self.counts_alone(),
                // Where buffers count, they have as much as the user may.
                Resource::Memlock => locked_memory_limit().is_none(),
                _ => true,
            };
            if !holds {
                continue;
            }
            self.missing
                .or_note(&format!("a limit ({name})"), limit(resource, most));
        }
        self.missing
            .or_note("a filter of system calls", calls::allow(&allowed()));
        Ok(self.missing.settle(self.launch.sandbox, PROCESS)?)
    }

    /// Whether no process outside counts as one of its user's.
    fn counts_alone(&self) -> bool {
        self.isolated.counts_alone() || self.launch.user.is_some_and(User::is_nobody_elses)
    }
}

fn tell(id: Pid) {
    // Who started it learns of a failure by the end of the process.
    let _ = std::io::stdout().write_all(&id.as_raw_pid().to_le_bytes());
    let _ = std::io::stdout().flush();
}

/// Whoever waits for the id waits no more. What stands in its place is what standard input is.
fn close_standard_output() -> Result<(), DataplaneError> {
    let nothing = std::io::stdin();
    rustix::stdio::dup2_stdout(nothing).map_err(|source| DataplaneError::Io {
        what: "close standard output",
        source: source.into(),
    })
}

/// Lets the maps of frozen layers have what this process may lock and needs for nothing else: queues, the threads that help
/// them, and requests under way, for whose buffers and rings twice their budget is kept.
pub(super) fn share_maps(setup: &Setup) {
    let queues = setup.num_queues;
    let of_a_helper = QUEUE_STACK as u64 + u64::from(queues) * MAX_LAYERS as u64 * LOCKED_PER_LAYER;
    let helpers = u64::from(setup.crypto_threads) * of_a_helper;
    let requests = setup.memory.saturating_mul(2);
    let left = match locked_memory_limit() {
        None => SHARED_MAPS.saturating_sub(helpers),
        Some(most) => most
            .saturating_sub(locked_memory(queues) + helpers)
            .saturating_sub(requests),
    };
    share_maps_up_to(left.min(SHARED_MAPS));
}

/// Threads that help to encrypt and decrypt, and of how many layers at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Help {
    pub(super) threads: u16,
    pub(super) layers: usize,
}

/// How much of the help that was asked for this process can have: one CPU is left for the queues, and what it may lock
/// must do for all queues at the most layers first, or a snapshot could end the data plane.
pub(super) fn help(setup: &Setup) -> Help {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let wanted = setup.crypto_threads;
    let help = help_within(wanted, cpus, setup.num_queues, locked_memory_limit());
    if help.threads < wanted && help.layers > 0 {
        log::warn!(
            "{} threads help to encrypt, and not {wanted}: there are {cpus} CPUs",
            help.threads
        );
    } else if wanted > 0 && help.layers < MAX_LAYERS {
        let most = locked_memory_limit().unwrap_or_default() / 1024;
        log::warn!(
            "threads help to encrypt disks of at most {} layers: this process may lock {most} KiB; raise \
             RLIMIT_MEMLOCK (LimitMEMLOCK= of the unit)",
            help.layers
        );
    }
    help
}

fn help_within(wanted: u16, cpus: usize, queues: u16, most: Option<u64>) -> Help {
    let threads = wanted.min(u16::try_from(cpus.saturating_sub(1)).unwrap_or(u16::MAX));
    let layers = match most {
        None => MAX_LAYERS,
        Some(most) => {
            let stacks = u64::from(threads) * QUEUE_STACK as u64;
            let left = most.saturating_sub(locked_memory(queues) + stacks);
            // Twice: those of the layers before are there until a queue has those of the layers after.
            let of_a_layer = 2 * u64::from(threads) * u64::from(queues) * LOCKED_PER_LAYER;
            left.checked_div(of_a_layer)
                .unwrap_or(0)
                .min(MAX_LAYERS as u64) as usize
        }
    };
    match threads > 0 && layers > 0 {
        true => Help { threads, layers },
        false => Help {
            threads: 0,
            layers: 0,
        },
    }
}

/// Bytes that a data plane with so many queues locks besides maps of frozen layers.
fn locked_memory(queues: u16) -> u64 {
    let of_a_queue = QUEUE_STACK as u64 + MAX_LAYERS as u64 * LOCKED_PER_LAYER;
    LOCKED + u64::from(queues) * of_a_queue
}

/// What a data plane with so many queues may take.
fn limits(queues: u16) -> [(Resource, &'static str, u64); 5] {
    // A thread of each queue, and in the kernel one at least for each ring.
    let threads = u64::from(queues) + rings_for(queues) as u64 + u64::from(most_workers());
    [
        (Resource::Nofile, "RLIMIT_NOFILE", needed_files(queues)),
        (Resource::Nproc, "RLIMIT_NPROC", threads + OTHER_THREADS),
        (Resource::Fsize, "RLIMIT_FSIZE", MAX_DISK_SIZE),
        (
            Resource::Memlock,
            "RLIMIT_MEMLOCK",
            locked_memory(queues) + SHARED_MAPS,
        ),
        (Resource::Core, "RLIMIT_CORE", 0),
    ]
}

/// What the data plane may do, and what is kept from it, with the reasons.
pub(crate) fn rules() -> Vec<Rule> {
    let mut rules = Vec::new();
    let mut add = |by, what: &str, allowed: String, why: &str| {
        rules.push(Rule {
            process: PROCESS,
            by,
            what: what.to_owned().into(),
            allowed: allowed.into(),
            why: why.to_owned().into(),
        });
    };
    for (_, name, why) in NAMESPACES {
        add("namespaces", name, "its own".into(), why);
    }
    let user = "processes and files of other users are out of reach; for an ordinary user it stays that user";
    add("user", "user and group", "its own".into(), user);
    let capabilities = "no privilege is left, and none can be had again";
    add(
        "user",
        "capabilities",
        "none, in any set".into(),
        capabilities,
    );
    add(
        "user",
        "no_new_privs",
        "yes".into(),
        "no program gives it a privilege",
    );
    let landlock = "no path can be opened, made, renamed or removed; no TCP port, no abstract socket, no signal \
        reaches beyond it";
    add(
        "Landlock",
        "files, networks, scopes",
        "nothing".into(),
        landlock,
    );
    for (resource, name, _) in limits(1) {
        add(
            "limits",
            name,
            limit_in_words(resource).into(),
            limit_reason(resource),
        );
    }
    for call in allowed() {
        let arguments = call.arguments();
        let allowed = if arguments.is_empty() {
            "yes".into()
        } else {
            arguments
        };
        add("seccomp", call.name, allowed, call.why);
    }

    let rings: [(&str, &str, &[RingRule]); 4] = [
        ("io_uring (disk)", "on registered files", RING_OPERATIONS),
        ("io_uring (disk)", "yes", RING_REGISTRATIONS),
        ("io_uring (signals)", "yes", SIGNAL_OPERATIONS),
        ("io_uring (signals)", "yes", SIGNAL_REGISTRATIONS),
    ];
    for (by, allowed, listed) in rings {
        for rule in listed {
            add(by, rule.name, allowed.into(), rule.why);
        }
    }
    rules
}

fn limit_in_words(resource: Resource) -> &'static str {
    match resource {
        Resource::Core => "none",
        Resource::Fsize => "the largest disk",
        _ => "what its queues need",
    }
}

fn limit_reason(resource: Resource) -> &'static str {
    match resource {
        Resource::Core => "a core dump would have the key",
        Resource::Fsize => "a file of the disk is no longer than the largest disk",
        Resource::Memlock => {
            "memory that cannot be swapped out, once rings and buffers are registered; and pages of map files, which \
             disks share"
        }
        Resource::Nproc => "threads, and threads of the kernel for its I/O",
        _ => "descriptors of the disk and of a frontend",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_leaves_a_cpu_and_what_all_queues_lock_at_the_most_layers() {
        let help = |wanted, cpus, queues, most| {
            let Help { threads, layers } = help_within(wanted, cpus, queues, most);
            (threads, layers)
        };
        assert_eq!(help(0, 8, 4, None), (0, 0));
        assert_eq!(help(4, 8, 4, None), (4, MAX_LAYERS));
        assert_eq!(help(16, 2, 4, None), (1, MAX_LAYERS));
        assert_eq!(help(16, 1, 4, None), (0, 0));
        let queues = locked_memory(16);
        assert_eq!(help(2, 8, 16, Some(8 << 20)), (0, 0), "not even the queues");
        assert_eq!(help(2, 8, 16, Some(queues)), (0, 0));
        let of_a_layer = 2 * 2 * 16 * LOCKED_PER_LAYER;
        let stacks = 2 * QUEUE_STACK as u64;
        assert_eq!(help(2, 8, 16, Some(queues + stacks + of_a_layer)), (2, 1));
        assert_eq!(help(2, 8, 16, Some(u64::MAX)), (2, MAX_LAYERS));
    }
}
