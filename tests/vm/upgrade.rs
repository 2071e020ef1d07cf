//! A guest under load whose back-end becomes another program, again and again: it sees a stall, and nothing else.

use std::thread;
use std::time::Duration;

use test_support::rng::Rng;
use test_support::times;

use crate::backend::CustomerHost;
use crate::images;
use crate::qemu::{Disk, Firmware, Machine};
use crate::survive::{LOAD, assert_unharmed};

/// How often another program takes over.
fn upgrades() -> u32 {
    times("SEALDISK_UPGRADES", 5)
}

#[test]
fn a_guest_does_not_notice_upgrades_of_its_back_end() {
    let host = CustomerHost::new();
    host.create_disk("data", "128MiB", &[]);
    let daemon = host.attach("data");
    let mut guest = Machine::new(Firmware::Direct(images::initramfs_with_fio()), LOAD)
        .disk(Disk::VhostUser {
            socket: daemon.socket().to_owned(),
            device_options: "num-queues=2".to_owned(),
            // Nothing is to be connected again.
            reconnect: false,
        })
        .start();
    guest.wait_for("SEALDISK-STEP started");
    let mut rng = Rng::new(1);
    let mut stalls = Vec::new();
    for _ in 0..upgrades() {
        thread::sleep(Duration::from_millis(rng.within(500..2000)));
        assert_unharmed(&guest, &daemon);
        let upgraded = host.json("upgrade data");
        assert_eq!(upgraded[0].get("attachKept"), None, "{upgraded}");
        stalls.push(upgraded[0]["stallMs"].as_u64().expect("a stall"));
    }
    // What was written last is verified to the end.
    guest.plug_sign();
    let console = guest.finish();
    let rounds = console
        .lines()
        .filter(|line| line.starts_with("SEALDISK-ROUND"));
    rounds.for_each(|round| eprintln!("{}", round.trim()));
    eprintln!("stalls of {stalls:?} ms");
    let serving = host.json("disk show data")["serving"].take();
    assert_eq!(serving["restarts"], 0, "{serving}");
    daemon.stop();
}
