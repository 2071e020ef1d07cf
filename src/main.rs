//! The `sealdisk` command: server-side encryption for VM disks.
//!
//! A vhost-user daemon serves virtio-blk queues straight from guest memory and encrypts each
//! request with the disk's data encryption key (DEK, AES-256-XTS). DEKs are stored only wrapped
//! (RSA-OAEP-256) by a key in a key vault. `docs/architecture.md` is the living picture.
//!
//! This package is the command line; the work is done by the crates below `crates/`.

mod cli;

use std::alloc::System;
use std::process::ExitCode;

use zeroizing_alloc::ZeroAlloc;

/// Freed memory is wiped: libraries that a key passes through (TLS, JSON, RSA) put copies of it on
/// the heap, and after a revocation none may be left in the process.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<System> = ZeroAlloc(System);

fn main() -> ExitCode {
    cli::main()
}
