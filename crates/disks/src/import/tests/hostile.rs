//! Images that want more of the host than a disk's bytes are worth.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::import::confined::Most;
use crate::import::feeder::Progress;
use crate::import::helper::Unfinished;
use crate::import::open::open_within;
use crate::import::qemu::Bounds;
use crate::import::{confined, helper};

fn open_within_bounds(path: &Path, bounds: Bounds) -> String {
    let opened = open_within(&spec(path, None), &Cancel::default(), bounds);
    match opened {
        Ok(_) => panic!("{} was not refused", path.display()),
        Err(e) => e.to_string(),
    }
}

/// A VDI whose table of blocks takes 2 GiB of memory, in a file that takes none of the storage.
#[test]
fn a_table_that_is_larger_than_all_sound_ones_is_refused() {
    let s = setup();
    let path = s.path("huge.vdi");
    qemu_img(
        s.dir.path(),
        &["create", "-q", "-f", "vdi", "huge.vdi", "24M"],
    );
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    let blocks: u32 = 0x1fff_ff80;
    file.write_all_at(&(u64::from(blocks) << 20).to_le_bytes(), 368)
        .unwrap();
    file.write_all_at(&blocks.to_le_bytes(), 384).unwrap();
    let table = u64::from(blocks) * 4;
    file.write_all_at(&((0x200 + table) as u32).to_le_bytes(), 344)
        .unwrap();
    file.set_len(0x200 + table + (1 << 20)).unwrap();
    let refusal = open_within_bounds(&path, Bounds::default());
    assert!(refusal.contains("cannot read the image"), "{refusal}");
    assert!(refusal.contains("memory"), "{refusal}");
}

#[test]
fn a_program_that_gets_too_little_memory_is_an_error() {
    let s = setup();
    let path = s.converted("disk.qcow2", "qcow2", &[]);
    let bounds = Bounds {
        memory: 32 << 20,
        ..Bounds::default()
    };
    let refusal = open_within_bounds(&path, bounds);
    assert!(refusal.contains("cannot read the image"), "{refusal}");
}

/// A confined program with arguments.
fn confined_child(program: &str, arguments: &[&str]) -> Child {
    let most = Most {
        memory: 1 << 30,
        cpu_seconds: 1,
    };
    confined::command(Path::new(program), Vec::new(), most)
        .unwrap()
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn a_program_that_does_nothing_or_computes_for_ever_is_ended() {
    let feeder = Arc::new(Progress::default());
    let stall = |after| Some((Duration::from_secs(after), feeder.clone()));
    let idle = confined_child("/usr/bin/sleep", &["1000"]);
    let ended = helper::output(idle, &Cancel::default(), stall(1));
    assert!(matches!(ended, Err(Unfinished::Stalled(_))));
    let busy = confined_child("/bin/sh", &["-c", "while :; do :; done"]);
    let output = helper::output(busy, &Cancel::default(), stall(300))
        .ok()
        .unwrap();
    // The hard limit, which is the same, kills.
    let signal = output.status.signal();
    assert!(
        matches!(signal, Some(libc::SIGXCPU | libc::SIGKILL)),
        "{output:?}"
    );
}

#[test]
fn a_confined_program_dies_with_the_thread_that_started_it() {
    let start = || confined_child("/usr/bin/sleep", &["1000"]);
    let child = std::thread::spawn(start).join().unwrap();
    let output = helper::output(child, &Cancel::default(), None)
        .ok()
        .unwrap();
    assert_eq!(output.status.signal(), Some(libc::SIGKILL));
}

/// What a program tries that was taken over by the image that it reads; says what it could do.
const INTRUDER: &str = r#"
use Socket;
my ($dir, $port, $parent) = @ARGV;
$| = 1;
print "uid=$< $> gid=$(\n";
sub did { print "did: $_[0]\n" }
open(my $f, '<', "$dir/secret") and did("read");
open(my $f, '+<', "$dir/secret") and did("open to write");
open(my $f, '>>', "$dir/secret") and did("append");
open(my $f, '>', "$dir/made") and did("make a file");
open(my $f, '<', "/etc/passwd") and did("read /etc");
open(my $f, '<', "/proc/$parent/environ") and did("read /proc");
mkdir("$dir/made") and did("make a directory");
link("$dir/secret", "$dir/made") and did("link");
symlink("$dir/secret", "$dir/made") and did("make a symbolic link");
rename("$dir/secret", "$dir/made") and did("rename");
chmod(0777, "$dir/secret") and did("chmod");
truncate("$dir/secret", 0) and did("truncate");
unlink("$dir/secret") and did("remove");
opendir(my $d, $dir) and did("list");
socket(my $s, AF_INET, SOCK_STREAM, 0) and did("make a TCP socket");
$s and connect($s, pack_sockaddr_in($port, inet_aton("127.0.0.1"))) and did("connect by TCP");
socket(my $u, AF_UNIX, SOCK_STREAM, 0) and did("make a Unix socket");
$u and connect($u, pack_sockaddr_un("$dir/socket")) and did("connect to a Unix socket");
kill(0, $parent) and did("signal");
my $pid = fork();
exit(0) if defined $pid and $pid == 0;
defined $pid and did("fork");
for my $fd (3 .. 20) { open(my $f, "<&=", $fd) and did("inherit $fd") }
my $much = "x" x (1 << 20);
eval { $much x= 1100; did("take memory") };
"#;

#[test]
fn a_confined_program_reaches_nothing() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let (secret, socket) = (dir.path().join("secret"), dir.path().join("socket"));
    fs::write(&secret, "plaintext of another image").unwrap();
    let _unix = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    for open_to_all in [dir.path(), &secret, &socket] {
        fs::set_permissions(open_to_all, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = tcp.local_addr().unwrap().port().to_string();
    let parent = std::process::id().to_string();
    let arguments = ["-e", INTRUDER, dir.path().to_str().unwrap(), &port, &parent];
    let child = confined_child("/usr/bin/perl", &arguments);
    let output = helper::output(child, &Cancel::default(), None)
        .ok()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let (who, did) = stdout
        .split_once('\n')
        .unwrap_or_else(|| panic!("{stderr}"));
    if rustix::process::geteuid().is_root() {
        assert!(who.starts_with("uid=65534 65534 gid=65534"), "{who}");
    }
    assert_eq!(did, "", "{stderr}");
    assert!(stderr.contains("Out of memory"), "{stderr}");
    assert_eq!(fs::read(&secret).unwrap(), b"plaintext of another image");
}
