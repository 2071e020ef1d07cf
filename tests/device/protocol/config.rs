//! Features, protocol features and the config space.

use test_support::frontend::device::{Config, Frontend, Setup, feature, mem_region};
use test_support::frontend::message::{protocol, request, words};
use test_support::{AttachOptions, Backend, Disk, expect_success};

use super::MIB;

#[test]
fn what_is_offered_is_what_works() {
    let disk = Disk::new(4 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let frontend = daemon.connect();
    let wanted = feature::SEG_MAX
        | feature::BLK_SIZE
        | feature::FLUSH
        | feature::TOPOLOGY
        | feature::CONFIG_WCE
        | feature::MQ
        | feature::DISCARD
        | feature::WRITE_ZEROES
        | feature::LOG_ALL
        | feature::INDIRECT_DESC
        | feature::EVENT_IDX
        | feature::PROTOCOL_FEATURES
        | feature::VERSION_1;
    assert_eq!(
        frontend.offered & wanted,
        wanted,
        "features that guests need are missing"
    );
    let unserved = feature::ACCESS_PLATFORM
        | feature::RING_PACKED
        | feature::SECURE_ERASE
        | feature::LIFETIME
        | feature::RO;
    assert_eq!(
        frontend.offered & unserved,
        0,
        "features that are not served are offered"
    );
    let wanted = protocol::MQ
        | protocol::REPLY_ACK
        | protocol::CONFIG
        | protocol::CONFIGURE_MEM_SLOTS
        | protocol::LOG_SHMFD
        | protocol::RESET_DEVICE
        | protocol::BACKEND_REQ;
    assert_eq!(
        frontend.protocol_offered & wanted,
        wanted,
        "protocol features are missing"
    );
    assert_eq!(frontend.protocol_offered & protocol::STATUS, 0);
}

#[test]
fn every_config_field_of_what_is_offered_is_set() {
    let disk = Disk::new(4 * MIB);
    let daemon = disk.attach(&AttachOptions {
        queues: Some(3),
        ..Default::default()
    });
    let frontend = daemon.connect();
    let config = frontend.config();
    assert_eq!(config.capacity(), 4 * MIB / 512);
    assert_eq!(
        config.blk_size(),
        512,
        "SeaBIOS takes no other logical block size"
    );
    assert_eq!(config.physical_block_exp(), 3);
    assert!(config.seg_max() > 0);
    assert_ne!(config.min_io_size(), 0);
    assert_ne!(config.opt_io_size(), 0);
    assert_eq!(config.writeback(), 1);
    assert_eq!(config.num_queues(), 3);
    // viostor of Windows crashes on a zero in any of these.
    assert_ne!(config.max_discard_sectors(), 0);
    assert_ne!(config.max_discard_seg(), 0);
    assert_ne!(config.discard_sector_alignment(), 0);
    assert_ne!(config.max_write_zeroes_sectors(), 0);
    assert_ne!(config.max_write_zeroes_seg(), 0);
    assert_eq!(config.write_zeroes_may_unmap(), 1);
}

/// FreeBSD does not attach where a segment may have less than its `kern.maxphys`, which is 1 MiB and
/// can be raised; viostor multiplies the field by seg_max when it is not zero.
#[test]
fn no_segment_size_is_imposed() {
    let disk = Disk::new(4 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let frontend = daemon.connect();
    assert_eq!(frontend.offered & feature::SIZE_MAX, 0);
    assert_eq!(frontend.config().size_max(), 0);
}

/// A disk of 4096-byte logical blocks says so, and takes nothing but whole ones (as QEMU's own device).
#[test]
fn a_4kn_disk_takes_whole_blocks_only() {
    let disk = Disk::with(4 * MIB, &["--logical-sector-size", "4096"]);
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    let config = frontend.config();
    assert_eq!(config.capacity(), 4 * MIB / 512);
    assert_eq!(config.blk_size(), 4096);
    assert_eq!(config.physical_block_exp(), 0);
    assert_eq!(config.min_io_size(), 1);
    assert_eq!(config.opt_io_size(), 16);
    let queue = &mut frontend.queues[0];
    let data = [7; 8192];
    assert_eq!(queue.write(8, &data), Ok(()));
    assert_eq!(queue.read(8, 8192), Ok(data.to_vec()));
    for (sector, length) in [(1, 4096), (8, 512), (8, 4608), (15, 8192)] {
        assert!(
            queue.write(sector, &data[..length]).is_err(),
            "{length} at {sector}"
        );
        assert!(queue.read(sector, length).is_err(), "{length} at {sector}");
    }
    assert_eq!(queue.read(8, 8192), Ok(data.to_vec()));
    queue.assert_serves(16, 3);
}

#[test]
fn config_answers_have_the_length_that_was_asked_for() {
    let disk = Disk::new(4 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let frontend = daemon.connect();
    let whole = frontend.get_config(0, Config::BYTES).unwrap();
    for size in [1, 8, 20, 36, 40, 59, 60] {
        let prefix = frontend.get_config(0, size).unwrap();
        assert_eq!(prefix, whole[..size as usize], "a prefix of {size}");
    }
    assert_eq!(
        frontend.get_config(20, 4).unwrap(),
        whole[20..24],
        "one field in the middle"
    );
    // Later versions of the struct are longer: what isn't known reads as zeros.
    let longer = frontend.get_config(0, 96).unwrap();
    assert_eq!(longer.len(), 96);
    assert_eq!(longer[..60], whole);
    // Cloud Hypervisor reads the whole struct at offset 0x100.
    assert_eq!(frontend.get_config(0x100, Config::BYTES).unwrap(), whole);
}

#[test]
fn writeback_is_the_drivers_choice() {
    let disk = Disk::new(4 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    frontend.set_config(Config::WRITEBACK, &[0]).unwrap();
    assert_eq!(frontend.config().writeback(), 0);
    frontend.queues[0].assert_serves(0, 1);
    frontend.set_config(Config::WRITEBACK, &[1]).unwrap();
    assert_eq!(frontend.config().writeback(), 1);
    frontend.queues[0].assert_serves(0, 2);
}

/// Bytes that the durable map calls data: what is durable without a flush was written through.
fn durable_bytes(disk: &Disk) -> u64 {
    let output = expect_success(&mut disk.command(&["disk", "show", "disk", "-o", "json"]));
    let show: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    show["dataBytes"].as_u64().unwrap()
}

#[test]
fn write_through_holds_across_connections_and_processes() {
    if Backend::chosen() == Backend::Qsd {
        return;
    }
    let disk = Disk::new(4 * MIB);
    let mut daemon = disk.attach(&AttachOptions::default());
    let frontend = daemon.connect();
    frontend.set_config(Config::WRITEBACK, &[0]).unwrap();
    // Nobody says it again: QEMU reads the configuration once, when the device is made.
    let mut frontend = daemon.connect_after(frontend);
    let mut written = 0;
    let mut is_written_through = |frontend: &mut Frontend, when: &str| {
        let data = [7; 4096];
        frontend.queues[0].write(written * 8, &data).unwrap();
        written += 1;
        assert_eq!(durable_bytes(&disk), written * 4096, "{when}");
        assert_eq!(frontend.config().writeback(), 0, "{when}");
    };
    is_written_through(&mut frontend, "another connection");
    frontend.set(request::RESET_DEVICE, &[], &[]).unwrap();
    let mut frontend = daemon.connect_after(frontend);
    is_written_through(&mut frontend, "a reset device");
    daemon.kill();
    let mut daemon = disk.attach(&AttachOptions::default());
    is_written_through(&mut daemon.connect(), "after a kill");
    assert!(daemon.terminate().success());
    let mut daemon = disk.attach(&AttachOptions::default());
    is_written_through(&mut daemon.connect(), "after a detach");

    // Until the driver, or who attaches, says something else.
    daemon.kill();
    let writeback = AttachOptions {
        arguments: &["--cache", "writeback"],
        ..AttachOptions::default()
    };
    let mut daemon = disk.attach(&writeback);
    let mut frontend = daemon.connect();
    assert_eq!(frontend.config().writeback(), 1);
    frontend.queues[0].write(800, &[7; 4096]).unwrap();
    assert_eq!(durable_bytes(&disk), written * 4096);
    assert!(daemon.terminate().success());
    let daemon = disk.attach(&AttachOptions::default());
    assert_eq!(daemon.connect().config().writeback(), 1);
}

#[test]
fn a_driver_that_knows_neither_flush_nor_writeback_is_written_through() {
    if Backend::chosen() == Backend::Qsd {
        return;
    }
    let disk = Disk::new(4 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    // The one before flushed by itself, and what it left does not count for the next one.
    let before = daemon.connect();
    drop(before);
    let setup = Setup::default().without(feature::FLUSH | feature::CONFIG_WCE);
    let mut frontend = daemon.connect_with(&setup);
    frontend.queues[0].write(0, &[7; 4096]).unwrap();
    assert_eq!(durable_bytes(&disk), 4096);
}

#[test]
fn other_config_fields_are_not_the_drivers() {
    let disk = Disk::new(4 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let frontend = daemon.connect();
    let before = frontend.config().0;
    let _ = frontend.set_config(0, &[0xff; 8]);
    let frontend = daemon.connect_after(frontend);
    assert_eq!(frontend.config().0, before);
}

#[test]
fn the_number_of_queues_is_told() {
    let disk = Disk::new(4 * MIB);
    let daemon = disk.attach(&AttachOptions {
        queues: Some(5),
        ..Default::default()
    });
    let mut frontend = daemon.connect_with(&Setup {
        queues: 5,
        ..Default::default()
    });
    let told = frontend
        .conn
        .call(request::GET_QUEUE_NUM, &[], &[])
        .unwrap()
        .value();
    assert_eq!(told, 5);
    for (sector, queue) in (0..).step_by(8).zip(&mut frontend.queues) {
        queue.assert_serves(sector, 7);
    }
}

#[test]
fn many_queues_by_default() {
    let disk = Disk::new(4 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let frontend = daemon.connect();
    let told = frontend
        .conn
        .call(request::GET_QUEUE_NUM, &[], &[])
        .unwrap()
        .value();
    assert!(
        told >= 16,
        "QEMU refuses a back-end with fewer queues than vCPUs; {told} offered"
    );
}

#[test]
fn memory_slots_are_told_and_enough() {
    let disk = Disk::new(4 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let frontend = daemon.connect();
    let slots = frontend
        .conn
        .call(request::GET_MAX_MEM_SLOTS, &[], &[])
        .unwrap()
        .value();
    assert!(slots >= 8, "{slots} memory slots");
}

#[test]
fn an_unknown_region_is_not_removed_silently() {
    let disk = Disk::new(4 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let frontend = daemon.connect();
    let body = mem_region(0x5000_0000_0000, MIB, 0x1000, 0);
    assert!(frontend.set(request::REM_MEM_REG, &body, &[]).is_err());
    let mut frontend = daemon.connect_after(frontend);
    frontend.queues[0].assert_serves(0, 3);
}

#[test]
fn a_driver_that_accepts_features_never_offered_is_refused() {
    let disk = Disk::new(4 * MIB);
    let daemon = disk.attach(&AttachOptions::default());
    let frontend = daemon.connect();
    let features = frontend.features | feature::RING_PACKED;
    assert!(
        frontend
            .set(request::SET_FEATURES, &words(&[features]), &[])
            .is_err()
    );
    let mut frontend = daemon.connect_after(frontend);
    frontend.queues[0].assert_serves(0, 4);
}
