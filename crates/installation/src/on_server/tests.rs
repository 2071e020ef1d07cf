use std::path::Path;

use tempfile::TempDir;
use test_support::postgres::PostgresServer;

use crate::catalog::CatalogError;
use crate::known_server::{KnownServer, path_in};
use crate::{CatalogAt, Installation, InstallationError, Place, ServerUrl};

fn place(state_dir: &Path, url: &str) -> Place {
    Place {
        state_dir: state_dir.into(),
        catalog: CatalogAt::given(Some(url)).unwrap(),
    }
}

/// Why an installation is not opened.
fn refused(place: impl Into<Place>) -> CatalogError {
    match Installation::open(place).err().unwrap() {
        InstallationError::Catalog(error) => error,
        other => panic!("{other}"),
    }
}

fn dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn hosts_share_an_installation_and_each_knows_whose_it_is() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    let url = server.new_schema();
    let hosts = [dir(), dir()];
    let open = |host: &TempDir| Installation::open(place(host.path(), &url)).unwrap();
    let opened = std::thread::scope(|scope| {
        let open = &open;
        let opening = hosts.each_ref().map(|host| scope.spawn(move || open(host)));
        opening.map(|opening| opening.join().unwrap())
    });
    assert_eq!(opened[0].id(), opened[1].id());
    opened[0].catalog().note_purged_vault("https://v").unwrap();
    let purged = opened[1].catalog().vault_purged_at("https://v");
    assert!(purged.unwrap().is_some());
    for host in &hosts {
        let known = KnownServer::read(host.path()).unwrap().unwrap();
        assert_eq!(known.installation, opened[0].id());
        assert!(!host.path().join("catalog.db").exists());
        // Who forgets the address, or says another one, makes no second installation.
        let forgotten = refused(host.path());
        assert!(
            matches!(forgotten, CatalogError::Elsewhere { .. }),
            "{forgotten}"
        );
        assert_eq!(forgotten.code(), "CatalogElsewhere");
        let looked = Installation::open_existing(host.path()).err().unwrap();
        assert!(looked.to_string().contains("give --catalog"), "{looked}");
        let lost = refused(place(host.path(), &server.new_schema()));
        assert!(matches!(lost, CatalogError::LostOnServer { .. }), "{lost}");
        let other = server.new_schema();
        drop(Installation::open(place(dir().path(), &other)).unwrap());
        let other = refused(place(host.path(), &other));
        assert!(
            matches!(other, CatalogError::OtherInstallation { .. }),
            "{other}"
        );
    }
    opened[0].renew().unwrap();
    assert!(opened[0].is_current());
    // A connection that was let go of is made again.
    opened[0].rest();
    assert!(opened[0].catalog().vaults().unwrap().is_empty());
}

#[test]
fn to_look_makes_nothing() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    let (url, host) = (server.new_schema(), dir());
    let at = place(&host.path().join("state"), &url);
    let missing = Installation::open_existing(&at).err().unwrap();
    assert!(
        matches!(missing, InstallationError::MissingOnServer { .. }),
        "{missing}"
    );
    assert!(Installation::open_if_there(&at).unwrap().is_none());
    Installation::look(&at).unwrap_err();
    assert!(!at.state_dir.exists());
    let schema = url.rsplit_once("%3D").unwrap().1;
    let tables = format!("SELECT count(*) FROM pg_tables WHERE schemaname = '{schema}'");
    assert_eq!(server.sql(&tables), "0");
    let made = Installation::open(&at).unwrap();
    Installation::look(&at).unwrap();
    let seen = Installation::open_existing(&at).unwrap();
    assert_eq!(seen.id(), made.id());
    assert_eq!(*seen.place(), at);
}

#[test]
fn a_state_directory_of_another_catalog_is_told() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    let url = server.new_schema();
    let own = dir();
    drop(Installation::open(own.path()).unwrap());
    let in_file = refused(place(own.path(), &url));
    assert!(matches!(in_file, CatalogError::InFile { .. }), "{in_file}");
    assert!(in_file.to_string().contains("catalog migrate"), "{in_file}");
    // What is left of one whose catalog is lost.
    let left = dir();
    std::fs::create_dir_all(left.path().join("vaults/v")).unwrap();
    std::fs::write(left.path().join("vaults/v/vault.db"), "").unwrap();
    let unrelated = refused(place(left.path(), &url));
    assert!(
        matches!(unrelated, CatalogError::Unrelated { .. }),
        "{unrelated}"
    );
    // A note that is none is not taken for no note.
    let damaged = dir();
    std::fs::write(path_in(damaged.path()), "{").unwrap();
    for refused in [
        refused(place(damaged.path(), &url)),
        refused(damaged.path()),
    ] {
        assert!(matches!(refused, CatalogError::Note { .. }), "{refused}");
    }
    assert!(
        Installation::open_if_there(place(dir().path(), &url))
            .unwrap()
            .is_none()
    );
}

#[test]
fn a_database_that_cannot_be_used_is_told_and_left_alone() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    let (url, host) = (server.new_schema(), dir());
    let made = Installation::open(place(host.path(), &url)).unwrap();
    let schema = url.rsplit_once("%3D").unwrap().1;
    let said = |url: &str| refused(place(host.path(), url)).to_string();

    let read_only = format!("{url}%20-c%20default_transaction_read_only%3Don");
    let told = said(&read_only);
    assert!(
        told.starts_with("cannot open the catalog postgres://"),
        "{told}"
    );
    let version = |to: &str| {
        server.sql(&format!(
            "SET search_path = {schema}; UPDATE sealdisk_schema SET version = version {to}"
        ));
    };
    version("+ 1");
    let newer = said(&url);
    assert!(
        newer.contains("use the sealdisk version that wrote it"),
        "{newer}"
    );
    Installation::look(place(host.path(), &url)).unwrap_err();
    version("- 1");
    assert_eq!(
        Installation::open(place(host.path(), &url)).unwrap().id(),
        made.id()
    );

    // Somebody has put the catalog of another installation in its place.
    server.sql(&format!(
        "SET search_path = {schema}; UPDATE installation SET operator = gen_random_uuid()::text"
    ));
    let exchanged = made.renew().err().unwrap().to_string();
    assert!(exchanged.contains("another one than it was"), "{exchanged}");
    assert!(said(&url).contains("belongs to the installation"));

    let nobody = "postgres://me@127.0.0.1:1/d?sslmode=disable";
    assert!(said(nobody).contains("refused"), "{}", said(nobody));
    assert!(ServerUrl::parse("postgres://me:s3cret@db/d").is_err());
}
