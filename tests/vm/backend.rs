//! A host: an installation of sealdisk in temporary folders, its disks, and the processes that
//! serve them.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rsa::pkcs8::{EncodePrivateKey, LineEnding};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use sha2::Sha256;
use tempfile::TempDir;

const SEALDISK: &str = env!("CARGO_BIN_EXE_sealdisk");

/// How long a process of the host may take for one step; ends a hang, measures nothing.
const PATIENCE: Duration = Duration::from_secs(60);

/// One installation, with a customer's vault, key and disk encryption set.
pub struct Host {
    state: TempDir,
    runtime: TempDir,
    customer_key: rsa::PrivateKey,
}

impl Host {
    /// Makes the installation and, as the documented workflow has it, key, disk encryption set
    /// and policy. The key is made here and imported, so that the test holds it as a customer
    /// does.
    pub fn new() -> Self {
        let customer_key =
            rsa::PrivateKey::new(&mut getrandom::SysRng, 2048).expect("an RSA key can be made");
        let host = Self {
            // On the file system of the build: it has holes and O_DIRECT, as a host's has.
            state: TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory"),
            runtime: TempDir::new_in("/dev/shm").expect("a temporary directory"),
            customer_key,
        };
        let pem = host
            .customer_key
            .to_pkcs8_pem(LineEnding::LF)
            .expect("the key can be encoded");
        let pem_file = host.runtime.path().join("key.pem");
        fs::write(&pem_file, pem.as_bytes()).expect("a file on tmpfs");
        host.run(&["keyvault", "create", "customer"]);
        host.run(&[
            "keyvault",
            "key",
            "import",
            "disk-key",
            "--vault-name",
            "customer",
            "--pem-file",
            path(&pem_file),
        ]);
        fs::remove_file(&pem_file).expect("the key file can be removed");
        let set = host.json(&[
            "disk-encryption-set",
            "create",
            "customer-set",
            "--key-url",
            "https://customer.vault.localhost/keys/disk-key",
        ]);
        assert!(set["identity"]["principalId"].is_string());
        host.grant();
        host
    }

    /// Object id of the disk encryption set's identity.
    pub fn identity(&self) -> String {
        let set = self.json(&["disk-encryption-set", "show", "customer-set"]);
        set["identity"]["principalId"]
            .as_str()
            .expect("the set has an identity")
            .to_owned()
    }

    /// Lets that identity use the customer's keys.
    pub fn grant(&self) {
        self.grant_to(&self.identity());
    }

    fn grant_to(&self, identity: &str) {
        self.run(&[
            "keyvault",
            "set-policy",
            "customer",
            "--object-id",
            identity,
            "--key-permissions",
            "get",
            "wrapKey",
            "unwrapKey",
        ]);
    }

    /// Makes a further disk encryption set, with a key of its own that has the same name.
    pub fn create_set(&self, name: &str) {
        let create = ["keyvault", "key", "create", name, "--size", "2048"];
        self.run(&[&create[..], &["--vault-name", "customer"]].concat());
        let key = format!("https://customer.vault.localhost/keys/{name}");
        let create = ["disk-encryption-set", "create", name, "--key-url", &key];
        let set = self.json(&create);
        let identity = set["identity"]["principalId"].as_str();
        self.grant_to(identity.expect("the set has an identity"));
    }

    /// The state directory, where ciphertext and vaults are.
    pub fn state_dir(&self) -> &Path {
        self.state.path()
    }

    /// The runtime directory on tmpfs.
    pub fn runtime_dir(&self) -> &Path {
        self.runtime.path()
    }

    /// A command that is not started yet.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(SEALDISK);
        command
            .args(args)
            .env("SEALDISK_STATE_DIR", self.state_dir())
            .env("SEALDISK_RUNTIME_DIR", self.runtime_dir())
            .stdin(Stdio::null());
        command
    }

    fn output(&self, args: &[&str]) -> Output {
        self.command(args)
            .output()
            .expect("sealdisk can be started")
    }

    /// Runs a command that must succeed; gives its stdout.
    pub fn run(&self, args: &[&str]) -> String {
        let output = self.output(args);
        assert!(
            output.status.success(),
            "sealdisk {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("output is UTF-8")
    }

    /// The same with `-o json`.
    pub fn json(&self, args: &[&str]) -> Value {
        let args = [args, &["-o", "json"]].concat();
        serde_json::from_str(&self.run(&args)).expect("-o json gives JSON")
    }

    /// Runs a command that must be refused; gives its one line of error.
    pub fn refused(&self, args: &[&str]) -> String {
        let output = self.output(args);
        let error = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        assert!(
            !output.status.success(),
            "sealdisk {} was not refused",
            args.join(" ")
        );
        assert_eq!(error.lines().count(), 1, "one line of error: {error}");
        error
    }

    /// An empty disk under the customer's key, with further options of `disk create`.
    pub fn create_disk(&self, name: &str, size: &str, options: &[&str]) {
        let args = ["disk", "create", name, "--size", size];
        let set = ["--disk-encryption-set", "customer-set"];
        self.run(&[&args[..], &set, options].concat());
    }

    /// A disk with the content of an image, under the customer's key.
    pub fn import_disk(&self, name: &str, image: &Path) {
        let args = ["disk", "create", name, "--source", path(image)];
        let set = ["--disk-encryption-set", "customer-set"];
        self.run(&[&args[..], &set].concat());
    }

    /// The folder of a disk's header, data and map.
    pub fn disk_dir(&self, name: &str) -> PathBuf {
        self.state_dir().join("disks").join(name)
    }

    /// The one ciphertext file of a disk.
    pub fn ciphertext(&self, name: &str) -> PathBuf {
        let dir = self.disk_dir(name);
        fs::read_dir(&dir)
            .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
            .map(|entry| entry.expect("the folder can be read").path())
            .find(|path| path.extension().is_some_and(|e| e == "data"))
            .expect("the disk has a data file")
    }

    /// What the newest copy of a disk's header says, read by docs/format.md and not by the
    /// program's own code.
    pub fn header(&self, name: &str) -> Value {
        const SLOT: usize = 64 << 10;
        let file = fs::read(self.disk_dir(name).join("header")).expect("the disk has a header");
        let number = |slot: &[u8], at: usize, length: usize| {
            slot[at..at + length]
                .iter()
                .rev()
                .fold(0, |n, byte| n << 8 | u64::from(*byte))
        };
        let slot = file
            .chunks(SLOT)
            .filter(|slot| slot.starts_with(b"SEALDISK"))
            .max_by_key(|slot| number(slot, 16, 8))
            .expect("one copy of the header is there");
        let length = usize::try_from(number(slot, 12, 4)).expect("a length");
        serde_json::from_slice(&slot[512..512 + length]).expect("the header is JSON")
    }

    /// What the header says about the disk's top layer.
    pub fn top_layer(&self, name: &str) -> Value {
        let mut header = self.header(name);
        let layers = header["layers"].as_array_mut();
        layers.and_then(Vec::pop).expect("the disk has a top layer")
    }

    /// Bytes that are encrypted under one tweak.
    pub fn data_unit(&self, name: &str) -> u64 {
        self.top_layer(name)["dataUnit"]
            .as_u64()
            .expect("the layer has a data unit")
    }

    /// The DEK of the disk's top layer, unwrapped with the customer's private key as the customer
    /// could.
    pub fn dek(&self, name: &str) -> Vec<u8> {
        let layer = self.top_layer(name);
        let wrapped = layer["envelope"]["wrapped"]
            .as_str()
            .expect("the layer has an envelope");
        let wrapped = URL_SAFE_NO_PAD.decode(wrapped).expect("base64url");
        let dek = self
            .customer_key
            .oaep_decrypt::<Sha256>(&wrapped)
            .expect("the customer's key unwraps the DEK");
        assert_eq!(dek.len(), 64);
        dek
    }

    /// Waits until nothing is being done to the disk's layers; gives what `disk show` says then.
    pub fn wait_for_job(&self, name: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let disk = self.json(&["disk", "show", name]);
            if disk["job"].is_null() {
                return disk;
            }
            assert!(Instant::now() < deadline, "the job goes on: {disk}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Starts `sealdisk attach` and waits until it says that it is ready.
    pub fn attach(&self, name: &str) -> Daemon {
        self.attach_with(name, &[])
    }

    /// The same with further options.
    pub fn attach_with(&self, name: &str, options: &[&str]) -> Daemon {
        let dir = TempDir::new_in("/dev/shm").expect("a temporary directory");
        self.attach_at(name, dir, options)
    }

    fn attach_at(&self, name: &str, dir: TempDir, options: &[&str]) -> Daemon {
        let socket = dir.path().join("disk.sock");
        let notify_path = dir.path().join("notify");
        let _ = fs::remove_file(&notify_path);
        let notify = UnixDatagram::bind(&notify_path).expect("a socket can be bound");
        notify
            .set_read_timeout(Some(Duration::from_millis(100)))
            .expect("a timeout can be set");
        let args = ["attach", name, "--socket-path", path(&socket), "-vv"];
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(dir.path().join("log"))
            .expect("a log file");
        let child = self
            .command(&[&args[..], options].concat())
            .env("NOTIFY_SOCKET", &notify_path)
            .current_dir(dir.path())
            .stdout(Stdio::from(log.try_clone().expect("a file can be cloned")))
            .stderr(Stdio::from(log))
            .spawn()
            .expect("sealdisk can be started");
        let mut daemon = Daemon {
            name: name.to_owned(),
            child,
            socket,
            dir: Some(dir),
        };
        daemon.wait_until_ready(&notify);
        daemon
    }

    /// Attaches again, at the same socket path, a disk whose daemon was killed.
    pub fn reattach(&self, mut killed: Daemon) -> Daemon {
        let name = killed.name.clone();
        let dir = killed.dir.take().expect("the daemon has its folder");
        self.attach_at(&name, dir, &[])
    }
}

/// A running `sealdisk attach` with its data plane. It is ended when the test lets go of it.
pub struct Daemon {
    name: String,
    child: Child,
    socket: PathBuf,
    dir: Option<TempDir>,
}

impl Daemon {
    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its working directory, where a core dump would be left.
    pub fn dir(&self) -> &Path {
        self.dir.as_ref().expect("the daemon has its folder").path()
    }

    /// All that it logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir().join("log")).unwrap_or_default()
    }

    /// The process and all its descendants, itself first.
    pub fn processes(&self) -> Vec<u32> {
        let mut found = vec![self.child.id()];
        let mut next = 0;
        while let Some(process) = found.get(next) {
            let tasks = fs::read_dir(format!("/proc/{process}/task"));
            for task in tasks.into_iter().flatten().flatten() {
                let children = fs::read_to_string(task.path().join("children"));
                let children = children.unwrap_or_default();
                found.extend(
                    children
                        .split_whitespace()
                        .filter_map(|c| c.parse::<u32>().ok()),
                );
            }
            next += 1;
        }
        found
    }

    /// Sends SIGTERM as a service manager does; the exit must be clean and the socket gone.
    pub fn stop(mut self) {
        self.signal_all(&[self.child.id()], Signal::TERM);
        let status = self.wait();
        assert!(
            status.success(),
            "after SIGTERM, attach ended with {status}\n{}",
            self.log()
        );
        assert!(!self.socket.exists(), "the socket was left behind");
    }

    /// kill -9 of every process at once; what is left is for [`Host::reattach`].
    pub fn kill(mut self) -> Self {
        let processes = self.processes();
        // The data plane first, so that nobody lives to tidy up.
        let reversed: Vec<u32> = processes.iter().rev().copied().collect();
        self.signal_all(&reversed, Signal::KILL);
        self.wait();
        self
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("attach can be waited for") {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "attach did not end\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn wait_until_ready(&mut self, notify: &UnixDatagram) {
        let deadline = Instant::now() + PATIENCE;
        let mut message = [0; 4096];
        loop {
            if let Ok(length) = notify.recv(&mut message)
                && String::from_utf8_lossy(&message[..length]).contains("READY=1")
            {
                return;
            }
            let ended = self.child.try_wait().expect("attach can be waited for");
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "attach did not become ready: {ended:?}\n{}",
                self.log()
            );
        }
    }

    /// Signals processes of this daemon.
    pub fn signal_all(&self, processes: &[u32], signal: Signal) {
        for process in processes {
            let pid = i32::try_from(*process).ok().and_then(Pid::from_raw);
            // One that has ended meanwhile needs no signal.
            let _ = kill_process(pid.expect("a process id"), signal);
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal_all(&self.processes(), Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

/// A path as an argument.
pub fn path(path: &Path) -> &str {
    path.to_str().expect("the path is UTF-8")
}
