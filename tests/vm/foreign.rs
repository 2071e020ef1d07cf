//! Firmware and drivers that nobody here wrote, on machines of other kinds: U-Boot, SLOF, and AAVMF
//! with an arm64 Linux. Each has its own driver of virtio-blk, from old virtio over
//! MMIO with a queue of 1024 to virtio 1 over PCI, on little- and big-endian processors.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use test_support::{Daemon, program, text};

use crate::backend::CustomerHost;
use crate::images;

/// A limit ends a hang and measures nothing: emulators on a busy machine are slow.
const PATIENCE: Duration = Duration::from_secs(300);

/// An emulated machine, of any kind, whose serial console the test reads and types on.
struct Board {
    child: Child,
    keyboard: ChildStdin,
    dir: TempDir,
    /// Bytes of the console that a wait went past already.
    seen: usize,
}

impl Board {
    /// `program` with `arguments`, 512 MiB of shared memory and a disk for each socket, with the options
    /// of its device.
    fn start(program: &str, arguments: &[&str], disks: &[(&Daemon, &str)]) -> Self {
        let dir = TempDir::new_in("/dev/shm").expect("a temporary directory");
        let mut command = Command::new(program);
        command
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-accel", "tcg,thread=multi", "-m", "512M", "-object"])
            .arg("memory-backend-memfd,id=mem,size=512M,share=on")
            .args(["-serial", "stdio"])
            .args(arguments);
        for (n, (daemon, device)) in disks.iter().enumerate() {
            let socket = text(daemon.socket());
            command
                .args(["-chardev", &format!("socket,id=c{n},path={socket}")])
                .args(["-device", &format!("{device},chardev=c{n}")]);
        }
        let output = |name| fs::File::create(dir.path().join(name)).expect("a file on tmpfs");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(output("console"))
            .stderr(output("stderr"))
            .spawn()
            .unwrap_or_else(|e| panic!("{program}: {e}: run scripts/setup full"));
        let keyboard = child.stdin.take().expect("stdin is a pipe");
        Self {
            child,
            keyboard,
            dir,
            seen: 0,
        }
    }

    fn console(&self) -> String {
        let bytes = fs::read(self.dir.path().join("console")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits for `marker` after what the last wait found; gives what comes before it.
    fn wait_for(&mut self, marker: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ended = self.child.try_wait().expect("QEMU can be waited for");
            let console = self.console();
            let rest = console.get(self.seen..).unwrap_or_default();
            if let Some(at) = rest.find(marker) {
                self.seen += at + marker.len();
                return rest[..at].to_owned();
            }
            let errors = fs::read_to_string(self.dir.path().join("stderr")).unwrap_or_default();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "no {marker:?} ({ended:?})\n--- QEMU\n{errors}\n--- console\n{console}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Types, not faster than a serial port without flow control takes it.
    fn type_in(&mut self, text: &str) {
        for byte in text.bytes() {
            self.keyboard.write_all(&[byte]).expect("QEMU reads stdin");
            self.keyboard.flush().expect("QEMU reads stdin");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A host with an empty disk of 64 MiB, `disk`.
fn host() -> CustomerHost {
    let host = CustomerHost::new();
    host.create_disk("disk", "64MiB", &[]);
    host
}

/// U-Boot writes a pattern to the disk and reads it back, and it is there afterwards. `memory` is an
/// address that is free on the machine.
fn u_boot(program: &str, arguments: &[&str], device: &str, memory: u64) {
    let host = host();
    let daemon = host.attach("disk");
    let mut board = Board::start(program, arguments, &[(&daemon, device)]);
    board.wait_for("Hit any key to stop autoboot");
    board.type_in(" ");
    board.wait_for("=> ");
    let mut run = |command: &str| {
        board.type_in(&format!("{command}\r"));
        // The command comes back as an echo, then its output, then the prompt.
        board.wait_for("\n");
        board.wait_for("=> ")
    };
    // On the x86 board PCI devices are looked for only when that is asked.
    run("pci enum");
    run("virtio scan");
    let info = run("virtio info");
    assert!(info.contains("131072 x 512"), "{info}");
    let there = memory + (1 << 20);
    run(&format!("mw.l {memory:x} 5ea1d15c 1000"));
    let written = run(&format!("virtio write {memory:x} 8 20"));
    assert!(written.contains("32 blocks written: OK"), "{written}");
    run(&format!("mw.b {there:x} 0 4000"));
    let read = run(&format!("virtio read {there:x} 8 20"));
    assert!(read.contains("32 blocks read: OK"), "{read}");
    let same = run(&format!("cmp.b {memory:x} {there:x} 4000"));
    assert!(same.contains("16384 byte(s) were the same"), "{same}");
    drop(board);
    daemon.stop();
    let image = host.runtime().join("image");
    let export = ["disk", "export", "disk", "--format", "raw", "--file"];
    host.ok(&[&export[..], &[text(&image)]].concat());
    let image = fs::read(image).expect("the image can be read");
    assert!(image[..4096].iter().all(|byte| *byte == 0));
    let pattern = 0x5ea1_d15c_u32.to_le_bytes();
    assert!(image[4096..20_480].chunks(4).all(|word| word == pattern));
    assert!(image[20_480..].iter().all(|byte| *byte == 0));
}

const ARM: [&str; 6] = [
    "-M",
    "virt,memory-backend=mem",
    "-cpu",
    "cortex-a57",
    "-bios",
    "/usr/lib/u-boot/qemu_arm64/u-boot.bin",
];
const RISCV: [&str; 4] = [
    "-M",
    "virt,memory-backend=mem",
    "-kernel",
    "/usr/lib/u-boot/qemu-riscv64_smode/uboot.elf",
];
const PCI: &str = "vhost-user-blk-pci";
const MODERN_PCI: &str = "vhost-user-blk-pci,disable-legacy=on";
const MMIO: &str = "vhost-user-blk";

#[test]
#[ignore = "needs emulators of other machines: scripts/test --full runs it"]
fn u_boot_on_x86_over_pci() {
    let bios = "/usr/lib/u-boot/qemu-x86/u-boot.rom";
    let machine = ["-M", "pc,memory-backend=mem", "-bios", bios];
    u_boot("qemu-system-i386", &machine, PCI, 0x100_0000);
}

#[test]
#[ignore = "needs emulators of other machines: scripts/test --full runs it"]
fn u_boot_on_arm64_over_pci() {
    u_boot("qemu-system-aarch64", &ARM, PCI, 0x5000_0000);
}

#[test]
#[ignore = "needs emulators of other machines: scripts/test --full runs it"]
fn u_boot_on_arm64_over_mmio() {
    u_boot("qemu-system-aarch64", &ARM, MMIO, 0x5000_0000);
}

#[test]
#[ignore = "needs emulators of other machines: scripts/test --full runs it"]
fn u_boot_on_riscv64_over_modern_pci() {
    u_boot("qemu-system-riscv64", &RISCV, MODERN_PCI, 0x9000_0000);
}

#[test]
#[ignore = "needs emulators of other machines: scripts/test --full runs it"]
fn u_boot_on_riscv64_over_mmio() {
    u_boot("qemu-system-riscv64", &RISCV, MMIO, 0x9000_0000);
}

/// SLOF, which sets the legacy barrier flag in each request, boots a program from a PReP partition.
#[test]
#[ignore = "needs emulators of other machines: scripts/test --full runs it"]
fn slof_boots_a_pseries_machine() {
    let host = CustomerHost::new();
    let image = host.runtime().join("prep");
    fs::write(&image, prep_disk()).expect("a file on tmpfs");
    host.import_disk("disk", &image);
    let daemon = host.attach("disk");
    let machine = ["-M", "pseries,memory-backend=mem"];
    let device = "vhost-user-blk-pci,bootindex=1";
    let mut board = Board::start("qemu-system-ppc64", &machine, &[(&daemon, device)]);
    board.wait_for("Trying to load:");
    let loading = board.wait_for("SEALDISK-SLOF");
    assert!(!loading.contains("failed"), "{loading}");
    drop(board);
    daemon.stop();
}

/// A disk with one partition, PowerPC PReP boot, in which is an ELF program that has Open Firmware
/// interpret a line of Forth (IEEE 1275, client interface: a pointer to the arguments in r3, the entry
/// in r5).
fn prep_disk() -> Vec<u8> {
    const BASE: u32 = 0x10_0000;
    const CODE: usize = 0x100;
    const ARGUMENTS: usize = 0x140;
    const SERVICE: usize = 0x180;
    const LINE: usize = 0x1a0;
    const LEN: usize = 0x400;
    const PARTITION: u32 = 2048;
    let mut program = vec![0; LEN];
    let mut put = |at: usize, bytes: &[u8]| program[at..at + bytes.len()].copy_from_slice(bytes);
    let words = |words: &[u32]| -> Vec<u8> { words.iter().flat_map(|w| w.to_be_bytes()).collect() };
    let base = |at: usize| BASE + at as u32;
    // ELF header: 32 bits, big-endian, an executable for PowerPC with one program header.
    put(0, b"\x7fELF\x01\x02\x01");
    put(16, &words(&[0x0002_0014, 1, base(CODE), 52, 0, 0]));
    put(40, &words(&[0x0034_0020, 0x0001_0000]));
    let len = LEN as u32;
    put(52, &words(&[1, 0, BASE, BASE, len, len, 7, 0x1000]));
    // lis r3; ori r3; mtctr r5; bctrl; b .
    let arguments = 0x6063_0000 | ARGUMENTS as u32;
    let load = 0x3c60_0000 | BASE >> 16;
    put(
        CODE,
        &words(&[load, arguments, 0x7ca9_03a6, 0x4e80_0421, 0x4800_0000]),
    );
    put(ARGUMENTS, &words(&[base(SERVICE), 1, 1, base(LINE), 0]));
    put(SERVICE, b"interpret\0");
    // In two parts, so that it is not what the source says.
    put(LINE, b".\" SEALDISK-\" .\" SLOF\" cr\0");

    let mut disk = vec![0; 4 << 20];
    disk[446] = 0x80;
    disk[450] = 0x41;
    disk[454..458].copy_from_slice(&PARTITION.to_le_bytes());
    disk[458..462].copy_from_slice(&64u32.to_le_bytes());
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    let at = PARTITION as usize * 512;
    disk[at..at + LEN].copy_from_slice(&program);
    disk
}

/// AAVMF starts Debian's arm64 kernel from a disk over PCI, and its driver uses another over MMIO.
#[test]
#[ignore = "needs emulators of other machines: scripts/test --full runs it"]
fn an_arm64_linux_boots_through_aavmf() {
    let host = host();
    host.import_disk("boot", &images::arm64_disk());
    let (boot, data) = (host.attach("boot"), host.attach("disk"));
    let variables = host.runtime().join("AAVMF_VARS.fd");
    fs::copy("/usr/share/AAVMF/AAVMF_VARS.fd", &variables).expect("AAVMF is there");
    let code = "if=pflash,format=raw,readonly=on,file=/usr/share/AAVMF/AAVMF_CODE.fd";
    let variables = format!("if=pflash,format=raw,file={}", text(&variables));
    let machine = [
        &ARM[..4],
        &["-smp", "2", "-drive", code, "-drive", &variables],
    ]
    .concat();
    let boot_device = "vhost-user-blk-pci,bootindex=1";
    let disks = [(&boot, boot_device), (&data, MMIO)];
    let mut board = Board::start("qemu-system-aarch64", &machine, &disks);
    board.wait_for("SEALDISK-UP machine=aarch64");
    board.wait_for("SEALDISK-EXIT ");
    assert_eq!(board.wait_for("\n").trim(), "0", "{}", board.console());
    drop(board);
    boot.stop();
    data.stop();
}

/// What QEMU makes of memory that it does not share: SeaBIOS would wait for ever.
fn assert_told_to_share(memory: &str) {
    let host = host();
    let daemon = host.attach("disk");
    let mut command = Command::new("qemu-system-x86_64");
    let socket = format!("socket,id=c0,path={}", text(daemon.socket()));
    let mut qemu = command
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        .args(["-M", "q35,memory-backend=mem", "-m", "256M"])
        .args(["-accel", "tcg", "-object", memory, "-chardev", &socket])
        .args(["-device", "vhost-user-blk-pci,chardev=c0,bootindex=1"])
        .stdin(Stdio::null())
        .spawn()
        .expect("qemu-system-x86_64 can be started");
    let deadline = Instant::now() + PATIENCE;
    let told = || daemon.log().contains("share=on");
    while !told() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    let events = host.text(&["disk", "events", "disk"]);
    // Both fail only when it has ended already.
    let _ = qemu.kill();
    let _ = qemu.wait();
    assert!(told(), "{memory}: {}", daemon.log());
    assert!(events.contains("MemoryNotShared"), "{memory}: {events}");
    daemon.stop();
}

#[test]
fn qemu_with_private_memory_is_told_to_share_it() {
    assert_told_to_share("memory-backend-memfd,id=mem,size=256M,share=off");
}

#[test]
fn qemu_with_anonymous_memory_is_told_to_share_it() {
    assert_told_to_share("memory-backend-ram,id=mem,size=256M");
}

/// QEMU's own tests of vhost-user-blk, see qtests.sh.
#[test]
#[ignore = "builds QEMU's tests: scripts/test --full runs it"]
fn qemus_own_tests_of_vhost_user_blk_pass() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vm/qtests.sh");
    let output = Command::new(script)
        .arg(program())
        .stdin(Stdio::null())
        .output()
        .expect("qtests.sh can be started");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    let passed = text.lines().filter(|line| line.starts_with("ok ")).count();
    assert!(passed >= 6, "{text}\n{errors}");
    assert!(
        !text.contains("not ok") && !text.contains("# SKIP"),
        "{text}"
    );
}
