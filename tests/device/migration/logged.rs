//! The dirty log of a guest that is migrated while data planes die.

use std::time::Duration;

use test_support::frontend::device::Setup;
use test_support::frontend::dirty_log::LOG_PAGE;
use test_support::frontend::queue::Seg;
use test_support::rng::Rng;
use test_support::{Disk, data_plane_of, kill};

use super::{MIB_8, is_qsd};

/// Reads that a data plane dies over are done by the next one, which notes every page that either has written.
#[test]
fn every_page_is_logged_whoever_writes_it() {
    if is_qsd() {
        return;
    }
    let mut rng = Rng::new(5);
    let disk = Disk::new(MIB_8);
    // A limit keeps requests in flight.
    let daemon = disk.attach_with("disk", &["--iops", "400", "--iops-burst", "8"]);
    let mut frontend = daemon.connect_with(&Setup::default().with_inflight());
    let content = rng.bytes(1 << 20);
    frontend.queues[0].write(0, &content).unwrap();
    let log = frontend.log_all();
    for _ in 0..4 {
        log.take();
        let queue = &mut frontend.queues[0];
        queue.arena.reset();
        let reads: Vec<_> = (0..32)
            .map(|at: u64| {
                let (header, status) = (queue.arena.alloc(16, 4096), queue.arena.alloc(1, 4096));
                let data = queue.arena.alloc(8192, 4096);
                let mut request = [0; 16];
                request[8..].copy_from_slice(&(at * 16).to_le_bytes());
                queue.mem.write(header, &request);
                queue.mem.fill(data, 0x55, 8192);
                let segs = [
                    Seg::out(header, 16),
                    Seg::into(data, 8192),
                    Seg::into(status, 1),
                ];
                (at, data, status, queue.submit(&segs))
            })
            .collect();
        std::thread::sleep(Duration::from_millis(rng.within(0..60)));
        // There is none while the next one waits for its start.
        if let Some(data_plane) = data_plane_of(daemon.pid()) {
            kill(data_plane);
        }
        let heads: Vec<_> = reads.iter().map(|(.., head)| u32::from(*head)).collect();
        for _ in &reads {
            let used = queue.next_used();
            assert!(heads.contains(&used.id));
        }
        let pages = log.take();
        let is_logged = |gpa: u64| pages.contains(&(gpa / LOG_PAGE));
        assert!(is_logged(queue.used), "the used ring");
        for (at, data, status, _) in reads {
            let start = (at * 8192) as usize;
            assert!(queue.mem.read(data, 8192) == content[start..start + 8192]);
            assert_eq!(queue.mem.read(status, 1), [0]);
            for gpa in [data, data + 4096, status] {
                assert!(is_logged(gpa), "page {:#x} of read {at}", gpa / LOG_PAGE);
            }
        }
    }
}
