//! What is left of a DEK in the memory of the processes that had it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use crate::MIB;
use crate::customer::{Customer, FAIL, PAUSE};
use crate::frontend::daemon::Daemon;
use crate::load::Load;
use crate::schedule::{for_decryption, round_keys};

/// Something to look for.
struct Needle {
    what: String,
    bytes: Vec<u8>,
}

/// The DEK, its halves, both as they are and as the words of SHA-256 (which it is hashed in), and
/// every round key that is not a part of the key itself, for both directions.
fn needles(dek: &[u8]) -> Vec<Needle> {
    assert_eq!(dek.len(), 64);
    let needle = |what: String, bytes: &[u8]| Needle {
        what,
        bytes: bytes.to_vec(),
    };
    let mut needles = vec![needle("the DEK".into(), dek)];
    for (half, key) in [("1", &dek[..32]), ("2", &dek[32..])] {
        needles.push(needle(format!("half {half}"), key));
        let words: Vec<u8> = key
            .chunks(4)
            .flat_map(|w| w.iter().rev().copied())
            .collect();
        needles.push(needle(format!("half {half} as words"), &words[..16]));
        needles.push(needle(format!("half {half} as words"), &words[16..]));
        for (round, key) in round_keys(key).iter().enumerate() {
            needles.push(needle(format!("round key {round} of half {half}"), key));
            let inverse = for_decryption(key);
            let what = format!("inverse round key {round} of half {half}");
            needles.push(needle(what, &inverse));
        }
    }
    needles
}

/// The needles that are in a process's writable memory, each with the place.
fn search(pid: u32, needles: &[Needle]) -> Vec<String> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut starts = vec![false; 1 << 16];
    let start_of = |bytes: &[u8]| usize::from(u16::from_le_bytes([bytes[0], bytes[1]]));
    for needle in needles {
        starts[start_of(&needle.bytes)] = true;
    }
    let mut found = Vec::new();
    for line in maps.lines() {
        let mut fields = line.split(' ');
        let (range, rights) = (fields.next().unwrap(), fields.next().unwrap());
        if !rights.starts_with("rw") {
            continue;
        }
        let (start, end) = range.split_once('-').unwrap();
        let address = |text| u64::from_str_radix(text, 16).unwrap();
        let mut bytes = vec![0; (address(end) - address(start)) as usize];
        // Some mappings of devices cannot be read by anybody.
        let Ok(len) = memory.read_at(&mut bytes, address(start)) else {
            continue;
        };
        for at in 0..len.saturating_sub(1) {
            if !starts[start_of(&bytes[at..])] {
                continue;
            }
            for needle in needles {
                if bytes[at..len].starts_with(&needle.bytes) {
                    found.push(format!("{} at {at} of {line}", needle.what));
                }
            }
        }
    }
    found
}

/// Both processes, whose memory only root may read.
fn search_both(daemon: &Daemon, needles: &[Needle]) -> [Vec<String>; 2] {
    [daemon.pid(), daemon.data_plane()].map(|pid| search(pid, needles))
}

fn may_read_memory() -> bool {
    let may = rustix::process::geteuid().is_root();
    if !may {
        eprintln!("not tested: only root may read the memory of these processes");
    }
    may
}

/// Before the revocation the DEK and its schedule are in the data plane, and in the data plane only;
/// afterwards nothing of them is in either process; and the same again when it was restored.
fn no_key_is_left(mode: &'static [&'static str]) {
    if !may_read_memory() {
        return;
    }
    let customer = Customer::new(16 * MIB);
    let needles = needles(&customer.dek());
    let daemon = customer.attach(mode);
    let mut frontend = daemon.connect();
    let (first, second) = frontend.queues.split_at_mut(1);
    let queues = [&mut first[0], &mut second[0]];
    let mut loads = [0, 1].map(|n| Load::new(queues[n], n as u64 * Load::LEN, 11 + n as u64));
    for (load, queue) in loads.iter_mut().zip(queues) {
        load.run_until(queue, crate::frontend::PATIENCE, |stats| stats.done > 300);
        load.finish(queue);
    }
    let held = |found: &[String], what: &str| found.iter().any(|f| f.starts_with(what));
    for _ in 0..2 {
        customer.wait_served();
        let [control, data_plane] = search_both(&daemon, &needles);
        assert!(held(&data_plane, "the DEK"), "the search finds nothing");
        assert!(held(&data_plane, "round key 7 of half 2"), "{data_plane:?}");
        assert!(control.is_empty(), "in the control process: {control:#?}");

        customer.enable(false);
        customer.wait_stopped();
        let [control, data_plane] = search_both(&daemon, &needles);
        assert!(control.is_empty(), "in the control process: {control:#?}");
        assert!(data_plane.is_empty(), "in the data plane: {data_plane:#?}");
        customer.enable(true);
    }
    customer.wait_served();
    frontend.queues[0].assert_serves(0, 5);
}

#[test]
fn no_key_is_left_after_a_revocation() {
    no_key_is_left(FAIL);
}

#[test]
fn no_key_is_left_after_a_pause() {
    no_key_is_left(PAUSE);
}
