//! What becomes of a catalog on a server when others use it, and when the server dies.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use test_support::postgres::PostgresServer;

use super::*;
use crate::catalog::contract::Place;

#[test]
fn of_those_who_change_one_record_one_is_first() {
    on_each(|place| {
        let catalog = place.catalog();
        catalog.insert_des(&des("s")).unwrap();
        catalog.insert_disk(&disk("d", Some("s"))).unwrap();
        let changed = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let catalog = place.catalog();
                    for _ in 0..10 {
                        let Stored { rev, mut record } = catalog.disk("d").unwrap();
                        record.size += 512;
                        record.layers.push(record.layers[0].clone());
                        match catalog.update_disk(rev, &record) {
                            Ok(_) => drop(changed.fetch_add(1, Ordering::Relaxed)),
                            Err(error) => {
                                assert!(matches!(error, CatalogError::Changed { .. }), "{error}");
                            }
                        }
                    }
                });
            }
        });
        let changes = usize::try_from(changed.into_inner()).unwrap();
        let record = catalog.disk("d").unwrap().record;
        assert!(changes >= 10, "{changes}");
        assert_eq!(record.size, (10 << 30) + 512 * changes as u64);
        assert_eq!(record.layers.len(), 1 + changes);
    });
}

/// The server is killed again and again while disks are made, changed and deleted.
#[test]
fn what_was_answered_counts_and_nothing_is_half_done_when_the_server_dies() {
    let Some(server) = PostgresServer::start(&[]) else {
        return;
    };
    let place = Place::on(&server);
    let is_over = AtomicBool::new(false);
    let done = std::thread::scope(|scope| {
        let worker = |name: &'static str| {
            let (catalog, is_over) = (place.catalog(), &is_over);
            move || {
                let mut rounds = 0;
                while !is_over.load(Ordering::Relaxed) {
                    rounds += 1;
                    // Whatever is run again must not meet what it has done itself.
                    let rev = catalog.insert_disk(&disk(name, None)).unwrap();
                    let mut record = catalog.disk(name).unwrap().record;
                    record.layers.push(record.layers[0].clone());
                    let rev = catalog.update_disk(rev, &record).unwrap();
                    assert_eq!(catalog.disk(name).unwrap().record, record);
                    let departed = DepartedRecord::new(&record, None, Departure::Unregistered);
                    catalog.depart_disk(&record, rev, &departed).unwrap();
                    assert!(catalog.forget_departed(record.id).unwrap());
                }
                rounds
            }
        };
        let workers = ["a", "b"].map(|name| scope.spawn(worker(name)));
        for _ in 0..test_support::deaths(5) {
            std::thread::sleep(std::time::Duration::from_millis(150));
            server.kill();
            server.run();
        }
        is_over.store(true, Ordering::Relaxed);
        workers.map(|worker| worker.join().unwrap())
    });
    assert!(done.iter().all(|rounds| *rounds > 1), "{done:?}");
    let catalog = place.catalog();
    assert!(catalog.resources().unwrap().is_empty());
    assert!(catalog.departed().unwrap().is_empty());
}
