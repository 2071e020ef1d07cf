//! What requests take with 10,000 disks in the catalog. It prints, and fails for no time that anything takes:
//!
//! ```sh
//! cargo build --release --locked --bin sealdisk
//! CARGO_BIN_EXE_sealdisk=$PWD/target/release/sealdisk cargo test --locked --test vaults -- \
//!     --ignored --nocapture management::scale
//! ```
//!
//! `SEALDISK_DISKS` says how many disks there are. Without optimisations, as in the profile `quick`, all that a list does
//! between its files and its answer takes several times as long.

use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use test_support::Host;
use test_support::rng::Rng;
use uuid::Uuid;

use super::client::{Managed, serve};
use crate::azure::client::{Answer, Connection};
use crate::azure::served::user;
use disks::Disk;
use installation::catalog::{DiskRecord, GroupRecord, Kind, PlacementRecord, Touch};
use installation::envelope::{Header, HeaderFile};

const COMPUTE: &str = "resourceGroups/rg/providers/Microsoft.Compute";

/// How often each list is read.
const LISTS: usize = 5;

/// Requests of one client on one connection, as SDKs have it.
struct Asker<'a> {
    managed: &'a Managed,
    connection: Connection,
    token: String,
}

impl Asker<'_> {
    /// How long an answer took, and what it is.
    fn ask(
        &mut self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> (Duration, Answer, Vec<u8>) {
        let body = body.map(ToString::to_string).unwrap_or_default();
        // The link to a next page has it.
        let version = if path.contains('?') {
            ""
        } else {
            "?api-version=2025-01-02"
        };
        let request = format!(
            "{method} {path}{version} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\n\
             Content-Length: {}\r\n\r\n{body}",
            self.managed.authority(),
            self.token,
            body.len()
        );
        let begun = Instant::now();
        self.connection.write(request.as_bytes()).unwrap();
        let (answer, body) = self.connection.read_bytes().unwrap();
        let took = begun.elapsed();
        assert_eq!(
            answer.status,
            200,
            "{path}: {}",
            String::from_utf8_lossy(&body)
        );
        (took, answer, body)
    }

    /// How long all pages of a list took, how many these are, and how many items are in them.
    fn list(&mut self, path: &str) -> (Duration, u64, u64) {
        let mut path = path.to_owned();
        let (mut took, mut pages, mut items) = (Duration::ZERO, 0, 0);
        loop {
            let (page, _, body) = self.ask("GET", &path, None);
            let body: Value = serde_json::from_slice(&body).unwrap();
            took += page;
            pages += 1;
            items += body["value"].as_array().unwrap().len() as u64;
            let Some(next) = body["nextLink"].as_str() else {
                return (took, pages, items);
            };
            path = next.strip_prefix(&self.managed.base()).unwrap().to_owned();
        }
    }
}

fn name(number: u64) -> String {
    format!("disk-{number:05}")
}

/// Disks that are there as if each had been made: copies of one under names of their own, which share its key.
fn fill(host: &Host, count: u64) {
    host.ok(&format!("disk create {} --size 1GiB", name(0)));
    let installation = host.installation();
    let disk = Disk::find(&installation, &name(0)).unwrap();
    let found = disk.header_file().unwrap().read().unwrap();
    let (header, dek) = disk.unlock(&installation, found).unwrap();
    let row = installation.catalog().disk(&name(0)).unwrap().record;
    let touch = Touch {
        at: time::OffsetDateTime::now_utc(),
        by: Uuid::new_v4(),
    };
    for number in 1..count {
        let mut payload = (*header).clone();
        payload.disk = Uuid::new_v4();
        payload.name = name(number);
        let directory = disk.directory().with_file_name(name(number));
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .unwrap();
        for entry in fs::read_dir(disk.directory()).unwrap().flatten() {
            let to = directory.join(entry.file_name());
            match to.extension().is_some_and(|extension| extension == "data") {
                true => File::create(&to).unwrap().set_len(payload.size).unwrap(),
                false if to.ends_with("header") => {}
                false => fs::copy(entry.path(), &to).map(|_| ()).unwrap(),
            }
        }
        let record = DiskRecord {
            id: payload.disk,
            name: name(number),
            directory: directory.clone(),
            ..row.clone()
        };
        HeaderFile::create(&directory.join("header"), &Header::new(payload), &dek).unwrap();
        installation.catalog().insert_disk(&record).unwrap();
    }
    let group = GroupRecord {
        name: "rg".into(),
        location: "local".into(),
        tags: Default::default(),
        created: touch.at,
    };
    installation.catalog().put_group(&group).unwrap();
    for number in 0..count {
        let placed = PlacementRecord {
            kind: Kind::Disk,
            name: name(number),
            group: "rg".into(),
            location: "local".into(),
            tags: [("number".to_owned(), number.to_string())].into(),
            settings: json!({"creationData": {"createOption": "Empty"}, "sku": "Premium_LRS"}),
            created: touch,
            changed: touch,
        };
        installation.catalog().put_placement(&placed).unwrap();
    }
}

fn tell(what: &str, mut took: Vec<Duration>) {
    took.sort();
    let at = |share: usize| took[(took.len() - 1) * share / 100].as_secs_f64() * 1000.0;
    println!("{what}: p50 {:.2} ms, p99 {:.2} ms", at(50), at(99));
}

#[test]
#[ignore = "makes 10,000 disks, and prints what requests take"]
fn requests_with_many_disks() {
    let count = std::env::var("SEALDISK_DISKS").map_or(10_000, |text| text.parse().unwrap());
    let host = Host::that_attaches();
    let admin = user(&host, "admin");
    host.ok("role assignment create --assignee admin --role Owner");
    let begun = Instant::now();
    fill(&host, count);
    println!(
        "{count} disks were made in {:.0} s",
        begun.elapsed().as_secs_f64()
    );
    let served = serve(&host);
    let managed = Managed {
        host,
        served,
        admin,
    };
    let client = managed.client(&managed.admin);
    let mut asker = Asker {
        managed: &managed,
        connection: Connection::open(&managed.served).unwrap(),
        token: client.token.clone(),
    };
    let compute = format!("{}/{COMPUTE}", managed.subscription());
    let mut rng = Rng::new(1);

    let gets = (0..1000).map(|_| {
        let path = format!("{compute}/disks/{}", name(rng.within(0..count)));
        asker.ask("GET", &path, None).0
    });
    tell("GET disk", gets.collect());

    let body = json!({"location": "local", "sku": {"name": "Premium_LRS"}, "tags": {}, "properties": {
        "creationData": {"createOption": "Empty"}, "diskSizeGB": 1,
    }});
    let puts = (0..200).map(|number| {
        let path = format!("{compute}/disks/new-{number}");
        asker.ask("PUT", &path, Some(&body)).0
    });
    tell("PUT disk", puts.collect());

    for list in ["disks", "resources"] {
        let path = match list {
            "disks" => format!(
                "{}/providers/Microsoft.Compute/disks",
                managed.subscription()
            ),
            _ => format!("{}/resources", managed.subscription()),
        };
        let lists = (0..LISTS).map(|_| {
            let (took, pages, items) = asker.list(&path);
            assert!(items >= count + 200, "{items} in {pages} pages");
            took
        });
        tell(&format!("list of {list}"), lists.collect());
    }
}
