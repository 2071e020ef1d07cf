//! Servers of hosts that share a catalog.

use installation::catalog::{OperationRecord, OperationState, Touch};
use installation::{CatalogAt, Installation, Place};
use serde_json::{Value, json};
use test_support::Host;
use test_support::postgres::PostgresServer;
use time::OffsetDateTime;
use uuid::Uuid;

use super::client::Managed;

/// An operation of the owner about a disk, as a server that was killed leaves it.
fn noted(managed: &Managed, installation: &Installation, disk: &str) -> Uuid {
    let subscription = managed.subscription();
    let target =
        format!("{subscription}/resourceGroups/default/providers/Microsoft.Compute/disks/{disk}");
    let record = OperationRecord {
        id: Uuid::new_v4(),
        deployment: None,
        target,
        state: OperationState::Running,
        started: Touch {
            at: OffsetDateTime::now_utc(),
            by: managed.admin.object_id.parse().unwrap(),
        },
        changed: OffsetDateTime::now_utc(),
        request: json!({}),
        answer: json!({}),
    };
    installation.catalog().put_operation(&record).unwrap();
    record.id
}

#[test]
fn a_server_goes_on_with_what_its_own_host_has_begun() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    let (mut host, url) = (Host::that_attaches(), server.new_schema());
    host.set_env("SEALDISK_CATALOG", &url);
    let mut managed = Managed::on(host);
    let place = Place {
        state_dir: managed.host.state(),
        catalog: CatalogAt::given(Some(&url)).unwrap(),
    };
    let installation = Installation::open(&place).unwrap();
    let [own, anothers] = ["a", "b"].map(|disk| noted(&managed, &installation, disk));
    let (_, schema) = url.rsplit_once("%3D").unwrap();
    server.sql(&format!(
        "UPDATE {schema}.operations SET host = '0123456789abcdef' WHERE id = '{anothers}'"
    ));
    managed.serve_again();
    let client = managed.client(&managed.admin);
    let status = |id: Uuid| -> Value {
        let told = client.ok(&format!("GET ~/operationStatuses/{id}"), None);
        told["status"].clone()
    };
    // One that nobody can go on with ends.
    assert_eq!(status(own), "Failed");
    assert_eq!(status(anothers), "InProgress");
    // This host lives, by its server alone.
    let hosts = managed.host.json("host list");
    assert_eq!(hosts[0]["state"], "Alive", "{hosts}");
}
