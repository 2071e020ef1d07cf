//! Looks for a DEK and for what is made of it in the memory of another process.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::key_schedule::{for_decryption, round_keys};

/// Something to look for.
pub struct Needle {
    what: String,
    bytes: Vec<u8>,
}

/// The DEK, as it is and in base64url; its halves, as they are and as the words of SHA-256, in which
/// it is hashed; and every round key, for both directions.
pub fn needles(dek: &[u8]) -> Vec<Needle> {
    assert_eq!(dek.len(), 64);
    let needle = |what: String, bytes: &[u8]| Needle {
        what,
        bytes: bytes.to_vec(),
    };
    let mut needles = vec![needle("the DEK".into(), dek)];
    // As a vault over HTTPS sends it; the last characters depend on what follows.
    let text = URL_SAFE_NO_PAD.encode(&dek[..63]);
    for part in text.as_bytes().chunks(42) {
        needles.push(needle("base64url of the DEK".into(), part));
    }
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
pub fn search(pid: u32, needles: &[Needle]) -> Vec<String> {
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
                    let place = address(start) + at as u64;
                    found.push(format!("{} at {place:#x}", needle.what));
                }
            }
        }
    }
    found
}

/// How often what is found is looked for again, and the time between two looks.
const LOOKS: (usize, Duration) = (10, Duration::from_millis(37));

/// The needles that stay in a process's memory: each look finds them at the same place. A check of the
/// key unwraps the DEK, so it may be in the attach process while a check is under way.
pub fn search_what_stays(pid: u32, needles: &[Needle]) -> Vec<String> {
    let mut staying = search(pid, needles);
    for _ in 1..LOOKS.0 {
        if staying.is_empty() {
            break;
        }
        thread::sleep(LOOKS.1);
        let found = search(pid, needles);
        staying.retain(|place| found.contains(place));
    }
    staying
}

/// Whether the tests may read the memory of these processes, which say that nobody but root may.
pub fn may_read_memory() -> bool {
    let may = rustix::process::geteuid().is_root();
    if !may {
        eprintln!("not tested: only root may read the memory of these processes");
    }
    may
}
