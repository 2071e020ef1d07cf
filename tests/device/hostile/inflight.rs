//! In-flight regions that lie: what they say of a queue is not followed, and no other queue has to do with it.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use test_support::PATIENCE;
use test_support::frontend::client::kind;
use test_support::frontend::device::{Frontend, Setup};
use test_support::frontend::eventfd::EventFd;
use test_support::frontend::inflight::{
    COUNTER, DESC_NUM, INFLIGHT, InflightRegion, LAST_BATCH_HEAD, NEXT, USED_IDX, VERSION,
};
use test_support::frontend::message::request;
use test_support::frontend::queue::{Desc, Seg};
use test_support::rng::Rng;

use super::{KEPT, Victim};

/// Long enough for what must not happen to have happened.
const A_WHILE: Duration = Duration::from_millis(50);

/// Entries of a region: more than the rings have.
const ENTRIES: u16 = 256;

/// Changes a region of which the first queue's part is in use.
type Lie = fn(&InflightRegion);

fn connect(victim: &Victim) -> Frontend {
    victim.connect_with(&Setup::default().with_inflight())
}

fn stop(frontend: &Frontend) {
    for index in 0..2 {
        frontend.stop_queue(index).unwrap();
    }
}

fn start(frontend: &Frontend) {
    for index in 0..2 {
        frontend.start_queue(index).unwrap();
    }
    frontend.barrier().unwrap();
}

/// A region that is in use, as a back-end leaves it with nothing in flight.
fn used_region() -> InflightRegion {
    let region = InflightRegion::new(2, ENTRIES);
    region.write(region.field(0, VERSION), &[1]);
    region.write(region.field(0, DESC_NUM), &ENTRIES.to_le_bytes());
    region
}

fn mark(region: &InflightRegion, head: u16) {
    region.write(region.entry(0, head, INFLIGHT), &[1]);
}

fn set_u16(region: &InflightRegion, field: u64, value: u16) {
    region.write(region.field(0, field), &value.to_le_bytes());
}

#[test]
fn a_region_that_lies_breaks_its_ring_and_only_that() {
    let lies: [(&str, Lie); 7] = [
        ("another version", |region| set_u16(region, VERSION, 2)),
        ("other entries", |region| set_u16(region, DESC_NUM, 128)),
        ("a head that the ring has not", |region| mark(region, 200)),
        ("a last head that there is not", |region| {
            mark(region, 3);
            set_u16(region, USED_IDX, 0xffff);
            set_u16(region, LAST_BATCH_HEAD, 0xffff);
        }),
        ("a head before it that there is not", |region| {
            mark(region, 3);
            set_u16(region, USED_IDX, 0xfffe);
            set_u16(region, LAST_BATCH_HEAD, 3);
            region.write(region.entry(0, 3, NEXT), &300u16.to_le_bytes());
        }),
        ("another used ring", |region| {
            mark(region, 3);
            set_u16(region, USED_IDX, 1000);
        }),
        ("something else", |region| {
            region.write(region.field(0, 0), &[0xa5; 1024]);
        }),
    ];
    let victim = Victim::new();
    for (case, lie) in lies {
        let mut frontend = connect(&victim);
        stop(&frontend);
        let region = used_region();
        lie(&region);
        frontend.set_inflight(&region).unwrap();
        frontend.queues.iter_mut().for_each(|queue| queue.reset(0));
        start(&frontend);
        let queue = &mut frontend.queues[0];
        assert!(queue.err.wait(PATIENCE), "{case}: the error fd is silent");
        let at = queue.arena.alloc(512, 16);
        queue.request(kind::IN, KEPT, &[Seg::into(at, 512)]);
        queue.kick.signal();
        std::thread::sleep(A_WHILE);
        assert_eq!(queue.used_idx(), 0, "{case}: it is served");
        frontend.queues[1].assert_serves(KEPT + 16, 2);

        // With an honest one it is served again.
        stop(&frontend);
        frontend
            .set_inflight(&InflightRegion::new(2, ENTRIES))
            .unwrap();
        frontend.queues.iter_mut().for_each(|queue| queue.reset(0));
        start(&frontend);
        frontend.queues[0].assert_serves(KEPT, 3);
        victim.assert_unharmed_after(frontend, case);
    }
}

/// Chains that were never submitted, a list that goes round, and counters at their end.
#[test]
fn what_a_region_says_of_chains_ends() {
    let victim = Victim::new();
    let mut frontend = connect(&victim);
    stop(&frontend);
    let region = used_region();
    for (head, counter) in [(5, u64::MAX), (6, u64::MAX - 1), (7, u64::MAX)] {
        mark(&region, head);
        region.write(region.entry(0, head, COUNTER), &counter.to_le_bytes());
    }
    // The last four that were returned are all the same.
    set_u16(&region, USED_IDX, 0xfffc);
    set_u16(&region, LAST_BATCH_HEAD, 7);
    region.write(region.entry(0, 7, NEXT), &7u16.to_le_bytes());
    frontend.set_inflight(&region).unwrap();
    let queue = &mut frontend.queues[0];
    queue.reset(0);
    for head in [5, 6] {
        queue.write_desc(
            head,
            Desc {
                addr: u64::MAX,
                len: u32::MAX,
                flags: 1,
                next: head,
            },
        );
        queue.push(head);
        queue.expect(head);
    }
    start(&frontend);
    let queue = &mut frontend.queues[0];
    let mut returned = [queue.next_used(), queue.next_used()].map(|used| used.id);
    returned.sort_unstable();
    assert_eq!(returned, [5, 6]);
    assert_eq!(queue.next_within(A_WHILE), None);
    queue.assert_serves(KEPT, 1);
    assert!(region.marked(0).is_empty());
    victim.assert_unharmed_after(frontend, "counters at their end");
}

#[test]
fn random_regions() {
    let victim = Victim::new();
    let mut rng = Rng::new(12);
    for round in 0..40u64 {
        let mut frontend = connect(&victim);
        stop(&frontend);
        let region = InflightRegion::new(2, ENTRIES);
        let second = region.field(1, 0) as usize;
        region.write(0, &rng.bytes(second));
        if !rng.one_in(4) {
            set_u16(&region, VERSION, 1);
            set_u16(&region, DESC_NUM, ENTRIES);
            for head in 128..ENTRIES {
                region.write(region.entry(0, head, INFLIGHT), &[0]);
            }
        }
        if rng.one_in(2) {
            set_u16(&region, USED_IDX, rng.within(0..4) as u16);
            set_u16(&region, LAST_BATCH_HEAD, rng.within(0..128) as u16);
        }
        frontend.set_inflight(&region).unwrap();
        let table = rng.bytes(16 * 128);
        let queue = &frontend.queues[0];
        queue.mem.write(queue.desc, &table);
        queue.set_avail_idx(rng.within(0..256) as u16);
        start(&frontend);
        frontend.queues[0].kick.signal();
        frontend.queues[1].assert_serves(KEPT + 16, round);
        stop(&frontend);
        drop(frontend);
        victim.assert_serving(&format!("random region {round}"));
    }
}

#[test]
fn a_region_of_another_shape_is_refused_and_ends_the_connection() {
    let victim = Victim::new();
    let honest = InflightRegion::new(2, 128);
    let (size, page) = (honest.size, 4096);
    for (said, offset, queues, entries) in [
        (0, 0, 2, 128),
        (size - 1, 0, 2, 128),
        (size + 64, 0, 2, 128),
        (size, 1, 2, 128),
        (size, page, 2, 128),
        (size, u64::MAX - 4095, 2, 128),
        (size, 0, 3, 128),
        (size, 0, 0, 128),
        (size, 0, 1000, 128),
        (size, 0, 2, 0),
        (size, 0, 2, 64),
        (size, 0, 2, 2048),
        (size, 0, 65_535, 65_535),
    ] {
        let case = format!("{said} bytes at {offset:#x} for {queues} queues of {entries}");
        let body = InflightRegion::body_of(said, offset, queues, entries);
        assert_refused(
            &victim,
            &case,
            &body,
            Some(honest.file.try_clone().unwrap().into()),
        );
    }
}

/// Refused, whether or not the frontend wants to know: it would rely on the region otherwise.
fn assert_refused(victim: &Victim, case: &str, body: &[u8], file: Option<OwnedFd>) {
    for asks in [true, false] {
        let frontend = connect(victim);
        stop(&frontend);
        let files: Vec<_> = file.iter().map(AsFd::as_fd).collect();
        if asks {
            let answer = frontend.set(request::SET_INFLIGHT_FD, body, &files);
            assert!(answer.is_err(), "{case}: it is taken");
        } else {
            let conn = &frontend.conn;
            conn.send(request::SET_INFLIGHT_FD, 0, body, &files)
                .unwrap();
        }
        assert!(frontend.conn.closed_by_peer(), "{case}: it goes on");
        victim.assert_unharmed_after(frontend, case);
    }
}

#[test]
fn a_file_that_can_be_no_region_is_refused() {
    let victim = Victim::new();
    let region = InflightRegion::new(2, 128);
    let body = region.body();
    let memfd = || memfd_create("other", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    let short = memfd();
    ftruncate(&short, region.size - 1).unwrap();
    let sealed = memfd();
    ftruncate(&sealed, region.size).unwrap();
    fcntl_add_seals(&sealed, SealFlags::WRITE).unwrap();
    let (pipe, _other_end) = std::io::pipe().unwrap();
    let eventfd = EventFd::new().as_fd().try_clone_to_owned().unwrap();
    let read_only = File::open("/proc/self/exe").unwrap();
    for (case, file) in [
        ("no file", None),
        ("a short file", Some(short)),
        ("a file that nobody may write", Some(sealed)),
        ("a pipe", Some(pipe.into())),
        ("an eventfd", Some(eventfd)),
        ("a file that is open to be read", Some(read_only.into())),
        ("/dev/zero", Some(File::open("/dev/zero").unwrap().into())),
    ] {
        assert_refused(&victim, case, &body, file);
    }
}

#[test]
fn a_region_for_a_ring_that_runs_is_refused() {
    let victim = Victim::new();
    let mut frontend = connect(&victim);
    let other = InflightRegion::new(2, 128);
    for index in 0..2 {
        assert!(frontend.set_inflight(&other).is_err());
        for queue in &mut frontend.queues[index..] {
            queue.assert_serves(KEPT + 16, 1);
        }
        frontend.stop_queue(index as u32).unwrap();
    }
    let mut content = vec![0xff; other.size as usize];
    std::os::unix::fs::FileExt::read_exact_at(&other.file, &mut content, 0).unwrap();
    assert!(content.iter().all(|byte| *byte == 0), "it was used");
    frontend.set_inflight(&other).unwrap();
    victim.assert_unharmed_after(frontend, "a region for a ring that runs");
}

#[test]
fn nobody_gets_a_region_of_a_shape_that_there_is_not() {
    let victim = Victim::new();
    for (queues, entries) in [(0, 128), (1000, 128), (2, 0), (2, 1025), (65_535, 65_535)] {
        let frontend = connect(&victim);
        assert!(frontend.get_inflight(queues, entries).is_err());
        let case = format!("a region for {queues} queues of {entries}");
        victim.assert_unharmed_after(frontend, &case);
    }
}
