//! A terminal: tmux, whose panes can be typed into and read.

use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use test_support::{PATIENCE, text};

/// What the shell says when it waits for a command.
pub const PROMPT: &str = "ready$";

/// A server of tmux with one pane, which is ended when the test lets go of it.
pub struct Tmux {
    dir: TempDir,
}

impl Tmux {
    /// Whether there is a tmux; else it is said that something is skipped.
    pub fn is_there() -> bool {
        let found = Command::new("tmux").arg("-V").output().is_ok();
        if !found {
            eprintln!("skipped: there is no tmux (apt-get install tmux)");
        }
        found
    }

    /// A pane of that size in which a shell runs.
    pub fn start((width, height): (u16, u16)) -> Self {
        // Paths of sockets are short.
        let tmux = Self {
            dir: TempDir::new_in("/dev/shm").unwrap(),
        };
        let (width, height) = (width.to_string(), height.to_string());
        tmux.ok(&[
            "-f",
            "/dev/null",
            "new-session",
            "-d",
            "-x",
            &width,
            "-y",
            &height,
            "env",
            &format!("PS1={PROMPT}"),
            "sh",
        ]);
        // Without its own line the pane has all of the terminal.
        tmux.ok(&["set-option", "-g", "status", "off"]);
        tmux.resize((width.parse().unwrap(), height.parse().unwrap()));
        tmux.until(|screen| screen.contains(PROMPT));
        tmux
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let socket = self.dir.path().join("tmux");
        let mut command = Command::new("tmux");
        command.args(["-S", text(&socket)]).args(arguments);
        // What the test is run with is not what it tests.
        command.env_remove("NO_COLOR").env_remove("TMUX");
        command.env("LC_ALL", "C.UTF-8").output().unwrap()
    }

    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "tmux {arguments:?}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Gives the terminal another size.
    pub fn resize(&self, (width, height): (u16, u16)) {
        let (width, height) = (width.to_string(), height.to_string());
        self.ok(&["resize-window", "-x", &width, "-y", &height]);
    }

    /// Types text.
    pub fn text(&self, text: &str) {
        self.ok(&["send-keys", "-l", text]);
    }

    /// Presses a key, by tmux's name for it.
    pub fn key(&self, key: &str) {
        self.ok(&["send-keys", key]);
    }

    /// Types a command of the shell, and Enter.
    pub fn command(&self, command: &str) {
        self.text(command);
        self.key("Enter");
    }

    /// What is on the screen.
    pub fn screen(&self) -> String {
        self.ok(&["capture-pane", "-p"])
    }

    /// The same with what sets colours.
    pub fn coloured(&self) -> String {
        self.ok(&["capture-pane", "-p", "-e"])
    }

    /// Waits until the screen is as wanted.
    pub fn until(&self, wanted: impl Fn(&str) -> bool) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let screen = self.screen();
            if wanted(&screen) {
                return screen;
            }
            assert!(Instant::now() < end, "the screen is\n{screen}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until a line of the screen begins so and has all of that.
    pub fn until_line(&self, begin: &str, has: &[&str]) -> String {
        self.until(|screen| {
            let mut lines = screen.lines();
            lines.any(|line| line.starts_with(begin) && has.iter().all(|part| line.contains(part)))
        })
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        // It may not have been started.
        let _ = self.run(&["kill-server"]);
    }
}
