//! A QEMU process without KVM: made, watched through its serial console, steered over QMP.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::images::Initramfs;

/// How long a guest may take for one thing that a test waits for. A whole Debian under emulation
/// on a busy machine takes a minute or two; a limit is there to end a hang, not to measure.
const PATIENCE: Duration = Duration::from_secs(300);

/// The kernel's self-tests of its ciphers take time of each boot, and on a busy machine one of
/// them has locked up an emulated CPU for good.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 quiet loglevel=3 panic=-1 cryptomgr.notests";

/// What starts the guest.
pub enum Firmware {
    /// QEMU loads kernel and initramfs itself.
    Direct(Initramfs),
    SeaBios,
    Ovmf,
}

/// One disk of the guest, in the order of `/dev/vda`, `/dev/vdb`, …
pub enum Disk {
    /// A vhost-user back-end at a socket, with further options of `vhost-user-blk-pci`.
    VhostUser {
        socket: PathBuf,
        device_options: String,
        /// QEMU connects anew, after a second, when the back-end went away.
        reconnect: bool,
    },
    /// A file that QEMU itself serves, read-only and as it is.
    File(PathBuf),
}

impl Disk {
    /// With QEMU's own defaults.
    pub fn vhost_user(socket: &Path) -> Self {
        Self::vhost_user_with(socket, "")
    }

    /// With options such as `disable-legacy=on,num-queues=2`.
    pub fn vhost_user_with(socket: &Path, device_options: &str) -> Self {
        Self::VhostUser {
            socket: socket.to_owned(),
            device_options: device_options.to_owned(),
            reconnect: false,
        }
    }
}

/// What QEMU is to be started with.
pub struct Machine {
    pub firmware: Firmware,
    pub disks: Vec<Disk>,
    /// The shell script that the guest runs.
    pub job: String,
    /// A further fw_cfg item, `opt/sealdisk/secret`.
    pub secret: Option<Vec<u8>>,
    pub vcpus: u32,
    pub memory_mib: u32,
    /// The user and the group that QEMU runs as, instead of those of the test.
    pub user: Option<(u32, u32)>,
    /// Where the guest of another QEMU comes from, instead of one that boots.
    pub incoming: Option<String>,
}

impl Machine {
    pub fn new(firmware: Firmware, job: &str) -> Self {
        Self {
            firmware,
            disks: Vec::new(),
            job: job.to_owned(),
            secret: None,
            vcpus: 2,
            memory_mib: 512,
            user: None,
            incoming: None,
        }
    }

    /// Has QEMU wait for a guest that another one sends there.
    pub fn incoming(mut self, uri: String) -> Self {
        self.incoming = Some(uri);
        self
    }

    /// Has QEMU run as somebody else, with no other group: as libvirt does.
    pub fn user(mut self, user: u32, group: u32) -> Self {
        self.user = Some((user, group));
        self
    }

    pub fn disk(mut self, disk: Disk) -> Self {
        self.disks.push(disk);
        self
    }

    pub fn secret(mut self, secret: &[u8]) -> Self {
        self.secret = Some(secret.to_owned());
        self
    }

    pub fn vcpus(mut self, vcpus: u32) -> Self {
        self.vcpus = vcpus;
        self
    }

    pub fn memory_mib(mut self, memory_mib: u32) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    /// Starts it, runs the job to its end and gives what the guest printed. The job must end
    /// with status 0.
    pub fn run(self) -> String {
        self.start().finish()
    }

    pub fn start(self) -> Qemu {
        // On tmpfs: a secret among the files must not reach a disk.
        let dir = TempDir::new_in("/dev/shm").expect("a temporary directory");
        let mut command = match self.user {
            None => Command::new("qemu-system-x86_64"),
            Some((user, group)) => {
                std::os::unix::fs::chown(dir.path(), Some(user), Some(group))
                    .expect("the test may give its files away");
                let mut command = Command::new("setpriv");
                command
                    .args(["--reuid", &user.to_string(), "--regid", &group.to_string()])
                    .args(["--clear-groups", "qemu-system-x86_64"]);
                command
            }
        };
        command
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-M", "q35,memory-backend=mem", "-cpu", "max"])
            // A precaution: guests of QEMU 7.2 hung at boot and after migrations with a thread for each vCPU. That
            // QEMU damages the memory of guests that it migrates, also without Sealdisk; whether threads matter is open.
            .args(["-accel", "tcg,thread=single"])
            .args(["-smp", &self.vcpus.to_string()])
            .args(["-m", &format!("{}M", self.memory_mib)])
            .arg("-object")
            .arg(format!(
                "memory-backend-memfd,id=mem,size={}M,share=on",
                self.memory_mib
            ))
            // A port for hot-plug.
            .args(["-device", "pcie-root-port,id=hotplug-slot,chassis=1,slot=1"]);
        self.console(&mut command, dir.path());
        self.fw_cfg(&mut command, dir.path());
        self.boot(&mut command, dir.path());
        for (n, disk) in self.disks.iter().enumerate() {
            add_disk(&mut command, n, disk);
        }
        if let Some(uri) = &self.incoming {
            command.args(["-incoming", uri]);
        }
        let started = Instant::now();
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(dir.path().join("stderr")).expect("a log file"))
            .spawn()
            .expect("qemu-system-x86_64 can be started");
        Qemu {
            child,
            dir,
            started,
            seen: 0,
        }
    }

    fn console(&self, command: &mut Command, dir: &Path) {
        command
            .arg("-serial")
            .arg(format!("file:{}", dir.join("serial").display()))
            .arg("-qmp")
            .arg(format!(
                "unix:{},server=on,wait=off",
                dir.join("qmp").display()
            ));
    }

    fn fw_cfg(&self, command: &mut Command, dir: &Path) {
        let items = [
            ("job", Some(self.job.as_bytes())),
            ("secret", self.secret.as_deref()),
        ];
        for (name, content) in items {
            let Some(content) = content else { continue };
            let path = dir.join(name);
            fs::write(&path, content).expect("a file on tmpfs");
            command
                .arg("-fw_cfg")
                .arg(format!("name=opt/sealdisk/{name},file={}", path.display()));
        }
    }

    fn boot(&self, command: &mut Command, dir: &Path) {
        match &self.firmware {
            Firmware::Direct(Initramfs { kernel, initrd }) => {
                command
                    .arg("-kernel")
                    .arg(kernel)
                    .arg("-initrd")
                    .arg(initrd)
                    .args(["-append", KERNEL_ARGUMENTS]);
            }
            Firmware::SeaBios => {}
            Firmware::Ovmf => {
                let variables = dir.join("OVMF_VARS.fd");
                fs::copy("/usr/share/OVMF/OVMF_VARS_4M.fd", &variables).expect("OVMF is there");
                command
                    .arg("-drive")
                    .arg("if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd")
                    .arg("-drive")
                    .arg(format!("if=pflash,format=raw,file={}", variables.display()));
            }
        }
    }
}

/// How this QEMU is told to connect anew after a second: `reconnect` is gone in QEMU 10.2, and
/// `reconnect-ms` came with 9.2.
fn reconnect_option() -> &'static str {
    let output = Command::new("qemu-system-x86_64").arg("--version").output();
    let text = String::from_utf8(output.expect("QEMU tells its version").stdout);
    let text = text.expect("its version is text");
    let version = text.split_whitespace().nth(3).unwrap_or_default();
    let mut numbers = version.split('.').map(|n| n.parse::<u32>().unwrap_or(0));
    match (numbers.next(), numbers.next()) >= (Some(9), Some(2)) {
        true => ",reconnect-ms=1000",
        false => ",reconnect=1",
    }
}

fn add_disk(command: &mut Command, n: usize, disk: &Disk) {
    match disk {
        Disk::VhostUser {
            socket,
            device_options,
            reconnect,
        } => {
            let reconnect = if *reconnect { reconnect_option() } else { "" };
            let comma = if device_options.is_empty() { "" } else { "," };
            command
                .arg("-chardev")
                .arg(format!(
                    "socket,id=c{n},path={}{reconnect}",
                    socket.display()
                ))
                .arg("-device")
                .arg(format!(
                    "vhost-user-blk-pci,id=d{n},chardev=c{n},bootindex={}{comma}{device_options}",
                    // Index 0 is taken by a kernel that QEMU loads itself.
                    n + 1
                ));
        }
        Disk::File(path) => {
            command
                .arg("-drive")
                .arg(format!(
                    "if=none,id=f{n},format=raw,readonly=on,file={}",
                    path.display()
                ))
                .args(["-device", &format!("virtio-blk-pci,id=d{n},drive=f{n}")]);
        }
    }
}

/// A running guest. It is ended when the test lets go of it.
pub struct Qemu {
    child: Child,
    dir: TempDir,
    started: Instant,
    /// Bytes of the console that a wait went past already.
    seen: usize,
}

impl Qemu {
    /// All that the console has shown so far.
    pub fn console(&self) -> String {
        let bytes = fs::read(self.dir.path().join("serial")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits for `marker` on the console, after what the last wait found, and gives the rest of
    /// its line.
    pub fn wait_for(&mut self, marker: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ended = self.child.try_wait().expect("QEMU can be waited for");
            let console = self.console();
            let rest = console.get(self.seen..).unwrap_or_default();
            if let Some(at) = rest.find(marker) {
                let line = &rest[at + marker.len()..];
                if let Some(end) = line.find('\n') {
                    self.seen += at + marker.len() + end;
                    return line[..end].trim().to_owned();
                }
            }
            if ended.is_some() || Instant::now() > deadline {
                let how = ended.map_or("went on without".to_owned(), |status| {
                    format!("ended ({status}) before")
                });
                panic!("the guest {how} {marker:?}\n{}", self.report());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for the job's end, which must be a success, and for QEMU's own.
    pub fn finish(mut self) -> String {
        let status = self.wait_for("SEALDISK-EXIT ");
        assert_eq!(status, "0", "the guest's job failed\n{}", self.report());
        self.wait_for_exit();
        eprintln!("guest: {:.1} s", self.started.elapsed().as_secs_f32());
        self.console()
    }

    /// Waits until QEMU has ended by itself.
    pub fn wait_for_exit(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self
            .child
            .try_wait()
            .expect("QEMU can be waited for")
            .is_none()
        {
            assert!(
                Instant::now() < deadline,
                "QEMU did not end\n{}",
                self.report()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it at once, as a power cut would end a guest.
    pub fn kill(mut self) {
        self.end();
    }

    /// One QMP command; what it returns.
    pub fn qmp(&self, command: &str, arguments: Value) -> Value {
        let stream = match UnixStream::connect(self.dir.path().join("qmp")) {
            Ok(stream) => stream,
            Err(error) => panic!("QEMU has ended: {error}\n{}", self.report()),
        };
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .expect("a timeout can be set");
        let mut reader = BufReader::new(stream.try_clone().expect("a socket can be cloned"));
        let mut writer = stream;
        let (mut line, mut returned) = (String::new(), Value::Null);
        reader.read_line(&mut line).expect("QMP greets");
        let commands = [
            json!({"execute": "qmp_capabilities"}),
            json!({"execute": command, "arguments": arguments}),
        ];
        for command in commands {
            writeln!(writer, "{command}").expect("QMP reads");
            loop {
                line.clear();
                reader.read_line(&mut line).expect("QMP answers");
                let answer: Value = serde_json::from_str(&line).expect("QMP speaks JSON");
                if answer.get("event").is_none() {
                    let value = answer.get("return");
                    returned = value
                        .unwrap_or_else(|| panic!("{command}: {answer}"))
                        .clone();
                    break;
                }
            }
        }
        returned
    }

    /// Plugs a vhost-user disk into the running guest.
    pub fn hot_plug(&self, socket: &Path) {
        self.qmp(
            "chardev-add",
            json!({"id": "hot", "backend": {"type": "socket", "data": {
                "addr": {"type": "unix", "data": {"path": socket}}, "server": false}}}),
        );
        self.qmp(
            "device_add",
            json!({"driver": "vhost-user-blk-pci", "id": "hotdisk", "chardev": "hot",
                   "bus": "hotplug-slot"}),
        );
    }

    /// Takes that disk out again.
    pub fn unplug(&self) {
        self.qmp("device_del", json!({"id": "hotdisk"}));
    }

    /// Plugs an empty disk of QEMU's own into the running guest: a sign to its job.
    pub fn plug_sign(&self) {
        self.qmp(
            "blockdev-add",
            json!({"driver": "null-co", "node-name": "sign", "size": 1 << 20}),
        );
        self.qmp(
            "device_add",
            json!({"driver": "virtio-blk-pci", "id": "sign", "drive": "sign", "bus": "hotplug-slot"}),
        );
    }

    fn report(&self) -> String {
        let stderr = fs::read_to_string(self.dir.path().join("stderr")).unwrap_or_default();
        let console = self.console();
        let lines: Vec<&str> = console.lines().collect();
        let tail = lines[lines.len().saturating_sub(80)..].join("\n");
        format!("--- QEMU\n{stderr}\n--- console\n{tail}")
    }

    fn end(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.end();
    }
}
