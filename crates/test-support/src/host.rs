//! An installation and the program that works on it.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::{expect_success, program, scratch, text};

/// An installation in temporary directories of its own, which go with it.
pub struct Host {
    dir: TempDir,
    /// On tmpfs. Without it commands have the default, or what they are told.
    runtime: Option<TempDir>,
    environment: Vec<(&'static str, OsString)>,
    /// Who runs its commands, if that is not who runs the tests.
    user: Option<u32>,
}

impl Host {
    /// An installation with nothing in it yet.
    pub fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            runtime: None,
            environment: Vec::new(),
            user: None,
        }
    }

    /// One that can attach disks: with a runtime directory, and on a file system like those of hosts, with holes
    /// and `O_DIRECT`.
    pub fn that_attaches() -> Self {
        Self {
            dir: TempDir::new_in(scratch()).unwrap(),
            runtime: Some(TempDir::new_in("/dev/shm").unwrap()),
            environment: Vec::new(),
            user: None,
        }
    }

    /// Gives all of it to another user, who runs its commands from now on. That takes root.
    pub fn give_to(&mut self, user: u32) {
        let all = [self.dir.path()].into_iter();
        for path in all.chain(self.runtime.as_ref().map(TempDir::path)) {
            let chown = Command::new("chown")
                .arg("-R")
                .arg(format!("{user}:{user}"))
                .arg(path)
                .status();
            assert!(chown.unwrap().success());
        }
        self.user = Some(user);
    }

    /// A path for this test's own files.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// As [`Host::path`], for a command line.
    pub fn file(&self, name: &str) -> String {
        text(&self.path(name)).to_owned()
    }

    /// Where its vaults, keys and ciphertext are.
    pub fn state(&self) -> PathBuf {
        self.path("state")
    }

    /// Where its disks are.
    pub fn disks(&self) -> PathBuf {
        self.state().join("disks")
    }

    /// Where its control sockets are.
    ///
    /// # Panics
    /// When it was not made by [`Host::that_attaches`].
    pub fn runtime(&self) -> &Path {
        let runtime = self.runtime.as_ref();
        runtime.expect("this host attaches no disks").path()
    }

    /// Sets a variable in the environment of each command from now on.
    pub fn set_env(&mut self, name: &'static str, value: &str) {
        self.environment.push((name, value.into()));
    }

    /// `sealdisk` on this installation, with nothing of the environment of the tests that it would heed.
    pub fn command(&self, words: impl Words) -> Command {
        let mut command = Command::new(program());
        self.prepare(&mut command);
        command.args(words.words());
        command
    }

    /// Prepares a command that starts `sealdisk` on this installation.
    pub fn prepare(&self, command: &mut Command) {
        command
            .env("SEALDISK_STATE_DIR", self.state())
            // Backups work with `fips` too, if told.
            .env("SEALDISK_ALLOW_NON_FIPS", "1")
            .env_remove("SEALDISK_CATALOG")
            .env_remove("PGPASSFILE")
            .env_remove("CREDENTIALS_DIRECTORY")
            .env_remove("NOTIFY_SOCKET")
            .env_remove("RUST_LOG")
            .env_remove("SEALDISK_LOG_FORMAT")
            .env_remove("SEALDISK_HOST")
            .env_remove("JOURNAL_STREAM")
            .stdin(Stdio::null());
        if let Some(runtime) = &self.runtime {
            command.env("SEALDISK_RUNTIME_DIR", runtime.path());
        }
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
    }

    /// Runs a command to its end.
    pub fn run(&self, words: impl Words) -> Output {
        self.command(words).output().unwrap()
    }

    /// Runs a command that must succeed and returns its standard output.
    pub fn ok(&self, words: impl Words) -> Vec<u8> {
        expect_success(&mut self.command(words)).stdout
    }

    /// The same as text.
    pub fn text(&self, words: impl Words) -> String {
        String::from_utf8(self.ok(words)).unwrap()
    }

    /// The JSON that a command prints that must succeed; null when it prints nothing.
    pub fn json(&self, words: impl Words) -> Value {
        let output = expect_success(&mut self.in_json(words)).stdout;
        if output.is_empty() {
            return Value::Null;
        }
        serde_json::from_slice(&output).unwrap()
    }

    /// Runs a command that must be refused: with a status that is not 0, and one line on stderr,
    /// which is returned.
    pub fn refused(&self, words: impl Words) -> String {
        one_line(&self.run(words))
    }

    /// As [`Host::refused`], with a code in the JSON form, whose message is returned.
    pub fn refused_with(&self, code: &str, words: impl Words) -> String {
        let line = one_line(&self.in_json(words).output().unwrap());
        let value: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert_eq!(value["code"], code, "{line}");
        value["message"].as_str().unwrap().to_owned()
    }

    fn in_json(&self, words: impl Words) -> Command {
        let mut command = self.command(words);
        command.args(["-o", "json"]);
        command
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

/// The only line on stderr of a command that was refused.
///
/// # Panics
/// When it was not refused, or said more.
pub fn one_line(output: &Output) -> String {
    assert!(!output.status.success(), "{output:?}");
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    let line = stderr.strip_suffix('\n').unwrap_or(&stderr);
    assert!(!line.is_empty() && !line.contains('\n'), "{stderr:?}");
    line.to_owned()
}

/// The words of a command line.
pub trait Words {
    /// Each as the program gets it.
    fn words(self) -> Vec<String>;
}

impl Words for &[&str] {
    fn words(self) -> Vec<String> {
        self.iter().map(|word| (*word).to_owned()).collect()
    }
}

impl<const N: usize> Words for &[&str; N] {
    fn words(self) -> Vec<String> {
        self.as_slice().words()
    }
}

impl Words for &Vec<&str> {
    fn words(self) -> Vec<String> {
        self.as_slice().words()
    }
}

/// A line is split at its spaces; a space within a word is written as one that does not break.
impl Words for &str {
    fn words(self) -> Vec<String> {
        let words = self.split_ascii_whitespace();
        words.map(|word| word.replace('\u{a0}', " ")).collect()
    }
}

impl Words for &String {
    fn words(self) -> Vec<String> {
        self.as_str().words()
    }
}
