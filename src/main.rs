//! The `sealdisk` command.

use std::alloc::System;
use std::process::ExitCode;

use zeroizing_alloc::ZeroAlloc;

/// Freed memory is wiped: libraries that a key passes through (TLS, JSON, RSA) put copies of it on
/// the heap, and after a revocation none may be left in the process.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<System> = ZeroAlloc(System);

fn main() -> ExitCode {
    sealdisk::cli::main()
}
