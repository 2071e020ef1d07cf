//! What must be completed: dropping it instead ends the process.
//!
//! A guest waits for every request for ever, and a block that stays marked keeps out every later request. So
//! losing one of them must not be silent. A thread that takes one on holds a [`MustComplete`] for it, and the only
//! ways to get rid of that are [`MustComplete::complete`], which is called where the waiting ends, and to drop
//! it, which says what was lost and ends the process. The supervisor then starts another data plane, and the
//! guest goes on. The token costs nothing while it is passed on: it is what it names, and nothing else.
//!
//! This shows a mistake of this program. No guest and no peer may be able to cause it.

use std::fmt::Display;

/// The exit status of a process that has lost something that it had to complete: `EX_SOFTWARE` of sysexits.h.
pub const EXIT_STATUS: i32 = 70;

/// A promise to complete what `T` names.
#[must_use = "dropping it ends the process"]
#[derive(Debug)]
pub struct MustComplete<T: Display + Copy>(T);

impl<T: Display + Copy> MustComplete<T> {
    /// Promises to complete `what`.
    pub fn new(what: T) -> Self {
        Self(what)
    }

    /// What is to be completed.
    pub fn get(&self) -> &T {
        &self.0
    }

    /// The same, to say more of it.
    pub fn get_mut(&mut self) -> &mut T {
        &mut self.0
    }

    /// It is complete, or its end is someone else's by now.
    pub fn complete(self) -> T {
        let what = self.0;
        std::mem::forget(self);
        what
    }
}

impl<T: Display + Copy> Drop for MustComplete<T> {
    fn drop(&mut self) {
        // A panic has its own message, and the data plane aborts at one.
        if !std::thread::panicking() {
            lost(&self.0);
        }
    }
}

/// Says that `what` was dropped before it was complete, and ends the process.
#[cold]
pub fn lost(what: &dyn Display) -> ! {
    let thread = std::thread::current();
    let message = format!(
        "internal error: {what} was dropped before it was complete (thread {}); the process ends, so that \
         it is started again instead of leaving a guest waiting",
        thread.name().unwrap_or("without a name")
    );
    // Before the logger is there, the message must be seen too.
    match log::log_enabled!(log::Level::Error) {
        true => log::error!("{message}"),
        false => eprintln!("{message}"),
    }
    std::process::exit(EXIT_STATUS);
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Output};

    use super::*;

    /// Says to a child of this test which way to go.
    const WAY: &str = "SEALDISK_TEST_MUST_COMPLETE";

    fn child(way: &str) -> Output {
        let (_, module) = module_path!().split_once("::").unwrap();
        let test = format!("{module}::what_is_dropped_ends_the_process");
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &test, "--nocapture"])
            .env(WAY, way)
            .output()
            .unwrap()
    }

    #[test]
    fn what_is_dropped_ends_the_process() {
        let promise = || MustComplete::new("request 17");
        match std::env::var(WAY).as_deref() {
            Ok("complete") => assert_eq!(promise().complete(), "request 17"),
            Ok("drop") => drop(promise()),
            Ok(_) => {
                let _promise = promise();
                panic!("something else");
            }
            Err(_) => {
                assert!(child("complete").status.success());
                let dropped = child("drop");
                let said = String::from_utf8_lossy(&dropped.stderr);
                assert_eq!(dropped.status.code(), Some(EXIT_STATUS), "{said}");
                assert!(said.contains("request 17 was dropped"), "{said}");
                let panicked = child("panic");
                let said = String::from_utf8_lossy(&panicked.stderr);
                assert_eq!(panicked.status.code(), Some(101), "{said}");
                assert!(!said.contains("request 17"), "{said}");
            }
        }
    }
}
