//! Installations whose catalog is on a PostgreSQL server (`--catalog`), and those that are moved there.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use test_support::postgres::PostgresServer;
use test_support::{Host, one_line, text, threads};

/// A host whose catalog is in an empty schema of a server, and the address of that.
fn on_server(server: &PostgresServer) -> (Host, String) {
    let (mut host, url) = (Host::that_attaches(), server.new_schema());
    host.set_env("SEALDISK_CATALOG", &url);
    (host, url)
}

fn names(host: &Host, noun: &str) -> Vec<String> {
    let list = host.json(&format!("{noun} list"));
    let list = list.as_array().unwrap().iter();
    let mut names: Vec<_> = list
        .map(|item| item["name"].as_str().unwrap().to_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn commands_do_the_same_with_a_catalog_on_a_server() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    let (host, url) = on_server(server);
    host.ok("keyvault create myvault");
    host.ok("keyvault key create k --vault-name myvault --size 2048");
    let key_url = "https://myvault.vault.localhost/keys/k";
    let set = host.json(&format!("disk-encryption-set create s --key-url {key_url}"));
    let id = set["identity"]["principalId"].as_str().unwrap();
    host.ok(&format!(
        "keyvault set-policy myvault --object-id {id} --key-permissions get wrapKey unwrapKey"
    ));
    let raw = host.raw_image("disk.raw");
    let create = ["disk", "create", "d1", "--source", text(&raw)];
    host.ok(&[&create[..], &["--disk-encryption-set", "s"]].concat());
    host.ok("disk create d2 --size 1MiB");
    host.ok("snapshot create snap --source d1");
    host.ok("disk create clone --source snapshot:snap");
    host.ok("image create golden --source d1");
    assert_eq!(names(&host, "disk"), ["clone", "d1", "d2"]);
    assert_eq!(names(&host, "snapshot"), ["snap"]);
    assert_eq!(names(&host, "image"), ["golden"]);
    assert_eq!(names(&host, "disk-encryption-set"), ["s"]);
    assert_eq!(names(&host, "keyvault"), ["myvault", "platform"]);
    assert_eq!(host.json("disk show d1")["diskState"], "Unattached");
    assert!(host.ok("disk decrypt clone") == fs::read(&raw).unwrap());
    let refused = host.refused_with("ResourceNotFound", "disk show d3");
    assert!(refused.contains("did you mean"), "{refused}");
    host.refused_with("Conflict", "disk create d1 --size 1MiB");
    host.ok("disk update d2 --disk-encryption-set s");
    host.refused_with(
        "InUseDiskEncryptionSetCannotBeDeleted",
        "disk-encryption-set delete s --yes",
    );

    let secret = host.file("alice.secret");
    host.ok(&["identity", "create", "alice", "--secret-file", &secret]);
    host.ok("role assignment create --assignee alice --role Reader");
    assert_eq!(
        host.json("role assignment list").as_array().unwrap().len(),
        1
    );
    host.ok("lock create keep --lock-type CanNotDelete --resource disk:d1");
    host.refused_with("ScopeLocked", "disk delete d1 --yes");
    host.ok("lock delete keep --resource disk:d1 --yes");
    host.ok("catalog rebuild");

    // What it says of the catalog, whatever this host lacks.
    let said = host.run("doctor -o json").stdout;
    let checks: Value = serde_json::from_slice(&said).unwrap();
    let mut checks = checks.as_array().unwrap().iter();
    let catalog = checks.find(|check| check["check"] == "catalog").unwrap();
    assert_eq!(catalog["status"], "ok", "{catalog}");

    for deletion in [
        "disk delete clone --yes",
        "snapshot delete snap --yes",
        "image delete golden --yes",
        "disk delete d1 --yes",
        "disk delete d2 --yes",
        "disk-encryption-set delete s --yes",
        "identity delete alice --yes",
    ] {
        host.ok(deletion);
    }
    assert!(names(&host, "disk").is_empty() && names(&host, "identity").is_empty());
    assert_eq!(host.json("role assignment list"), Value::Array(Vec::new()));
    assert!(!host.state().join("catalog.db").exists());
    // The address, and no secret, is what the state directory is told of.
    let known = fs::read_to_string(host.state().join("catalog-server.json")).unwrap();
    assert!(!known.contains("search_path") && url.contains("search_path"));
}

#[test]
fn hosts_share_what_they_make() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    let (one, url) = on_server(server);
    let mut two = Host::new();
    two.set_env("SEALDISK_CATALOG", &url);
    let secret = one.file("secret");
    one.ok(&["identity", "create", "alice", "--secret-file", &secret]);
    assert_eq!(names(&two, "identity"), ["alice"]);
    two.ok("identity delete alice --yes");
    assert!(names(&one, "identity").is_empty());
    two.ok("keyvault connect far --url https://far.vault.localhost:8443");
    assert_eq!(names(&one, "keyvault"), ["far"]);
}

#[test]
fn a_wrong_address_is_told_and_makes_no_second_installation() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    let (host, url) = on_server(server);
    host.ok("keyvault connect far --url https://far.vault.localhost:8443");
    let list = |catalog: &str| {
        ["disk", "list", "--catalog", catalog]
            .map(str::to_owned)
            .join(" ")
    };
    // The words of a line end at spaces, of which an address has none; an empty one is the state directory.
    let empty = ["disk", "list", "--catalog", ""];
    let refused = host.refused_with("CatalogElsewhere", &empty);
    assert!(refused.contains("give --catalog"), "{refused}");
    assert!(!host.state().join("catalog.db").exists());
    let refused = host.refused_with("CatalogLost", &list(&server.new_schema()));
    assert!(refused.contains("restore the server's backup"), "{refused}");
    let (theirs, other) = on_server(server);
    theirs.ok("disk create d --size 1MiB");
    let refused = host.refused_with("CatalogElsewhere", &list(&other));
    assert!(refused.contains("belongs to the installation"), "{refused}");
    let away = "postgres://me@127.0.0.1:1/d?sslmode=disable";
    let refused = host.refused_with("CatalogError", &list(away));
    assert!(refused.contains("refused"), "{refused}");
    let refused = host.refused_with(
        "CatalogError",
        &list("postgres://me@db/d?passfile=/nonexistent/pass"),
    );
    assert!(
        refused.contains("cannot read /nonexistent/pass"),
        "{refused}"
    );
    let read_only = format!("{url}%20-c%20default_transaction_read_only%3Don");
    host.refused_with("CatalogError", &list(&read_only));

    for wrong in ["postgres://me:s3cret@db/d", "mysql://me@db/d", "/var/lib/x"] {
        let output = host.run(&list(wrong));
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let refused = one_line(&output);
        assert!(
            refused.contains("the address of the catalog is wrong"),
            "{refused}"
        );
        assert!(!refused.contains("s3cret"), "{refused}");
    }

    // An installation with a catalog of its own.
    let mut own = Host::new();
    own.ok("keyvault connect far --url https://far.vault.localhost:8443");
    own.set_env("SEALDISK_CATALOG", &server.new_schema());
    let refused = own.refused_with("CatalogElsewhere", "keyvault list");
    assert!(refused.contains("catalog migrate --to"), "{refused}");
    let refused = own.refused_with(
        "StateDirectory",
        &["status", "--watch", "--state-dir", "/nonexistent/x"],
    );
    assert!(
        refused.contains("no installation at postgres://"),
        "{refused}"
    );
    // Where there is nothing at all, nothing is made again.
    let (empty, _) = on_server(server);
    empty.refused_with("StateDirectory", "catalog rebuild");
}

/// A host with a catalog in a file that can be moved.
fn movable() -> Host {
    let host = Host::that_attaches();
    host.ok("keyvault connect far --url https://far.vault.localhost:8443");
    let installation = host.installation();
    for number in 0..20 {
        installation
            .create_identity(&format!("user{number}"))
            .unwrap();
    }
    host
}

#[test]
fn an_installation_is_moved_and_used_there_alone() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    let (mut host, to) = (movable(), server.new_schema());
    let before = host.json("identity list");
    let moved = host.json(&["catalog", "migrate", "--to", &to]);
    let tables = moved["tables"].as_array().unwrap();
    let identities = tables.iter().find(|table| table["table"] == "identities");
    assert_eq!(identities.unwrap()["rows"], 20, "{moved}");
    assert!(
        !moved["to"].as_str().unwrap().contains("search_path"),
        "{moved}"
    );
    let refused = host.refused_with("CatalogElsewhere", "identity list");
    assert!(refused.contains("give --catalog"), "{refused}");
    host.set_env("SEALDISK_CATALOG", &to);
    assert_eq!(host.json("identity list"), before);
    assert_eq!(names(&host, "keyvault"), ["far"]);
    host.ok("identity delete user3 --yes");
    // Again, which changes nothing.
    let again = host.json(&["catalog", "migrate", "--to", &to]);
    assert_eq!(again["tables"], Value::Array(Vec::new()));
    assert_eq!(names(&host, "identity").len(), 19);
    let elsewhere = server.new_schema();
    let refused = host.run(&["catalog", "migrate", "--to", &elsewhere]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
}

#[test]
fn what_cannot_be_moved_stays_as_it_is() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    let (host, to) = (Host::that_attaches(), server.new_schema());
    let migrate = ["catalog", "migrate", "--to", &to];
    host.refused_with("StateDirectory", &migrate);
    assert!(!host.state().exists());
    host.ok("disk create d --size 1MiB");
    let daemon = host.attach("d");
    let refused = host.refused_with("OperationNotAllowed", &migrate);
    assert!(
        refused.contains("are attached") && refused.contains('d'),
        "{refused}"
    );
    daemon.stop();
    let refused = host.refused_with("OperationNotAllowed", &migrate);
    assert!(refused.contains("platform"), "{refused}");
    assert_eq!(names(&host, "disk"), ["d"]);
}

/// The move is killed at any moment, again and again: no catalog is used then but a whole one, and the last run ends it.
#[test]
fn a_move_that_is_killed_at_any_moment_loses_nothing() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    let (host, to) = (movable(), server.new_schema());
    let works = |command: &mut Command| {
        let output = command.output().unwrap();
        output.status.success().then_some(output.stdout)
    };
    let in_file = || works(&mut host.command("identity list -o json"));
    let on_server = || {
        let list = ["identity", "list", "-o", "json", "--catalog", &to];
        works(&mut host.command(&list))
    };
    let before = in_file().unwrap();
    for round in 0.. {
        let mut migrate = host.command(&["catalog", "migrate", "--to", &to]);
        let migrate = migrate.stdout(Stdio::null()).stderr(Stdio::null());
        let mut migrate = migrate.spawn().unwrap();
        std::thread::sleep(Duration::from_millis(17 * round));
        migrate.kill().unwrap();
        let is_done = migrate.wait().unwrap().success();
        let (file, server) = (in_file(), on_server());
        assert!(file.is_none() || server.is_none(), "{round}: both are used");
        for found in [file, server].into_iter().flatten() {
            assert!(
                found == before,
                "{round}: {}",
                String::from_utf8_lossy(&found)
            );
        }
        if is_done {
            break;
        }
    }
    assert!(on_server().unwrap() == before && in_file().is_none());
}

#[test]
fn a_backup_names_the_catalog_as_the_servers_and_comes_back_beside_it() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    let (host, _) = on_server(server);
    host.ok("disk create d --size 1MiB");
    let passphrase = host.file("passphrase");
    let mut options = fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600);
    let mut file = file.open(&passphrase).unwrap();
    std::io::Write::write_all(&mut file, b"correct horse battery\n").unwrap();
    let backup = host.file("b.age");
    let with_passphrase = ["--passphrase-file", passphrase.as_str()];
    let create = ["backup", "create", &backup, "--with-master-key"];
    let made = host.json(&[&create[..], &with_passphrase].concat());
    let left_out = made["leftOut"].to_string();
    assert!(left_out.contains("its backups are the server's"), "{made}");
    assert!(!left_out.contains("not kept on this host"), "{made}");
    host.ok(&[&["backup", "verify", &backup][..], &with_passphrase].concat());

    let state = host.file("restored");
    let restore = ["backup", "restore", &backup, "--state-dir", &state];
    let restore = [&restore[..], &with_passphrase].concat();
    let in_file = [&restore[..], &["--catalog", ""]].concat();
    let refused = host.refused_with("BadParameter", &in_file);
    assert!(refused.contains("give --catalog"), "{refused}");
    let empty = server.new_schema();
    let elsewhere = [&restore[..], &["--catalog", &empty]].concat();
    host.refused_with("CatalogLost", &elsewhere);
    host.ok(&restore);
    let list = host.json(&["disk", "list", "--state-dir", &state]);
    assert_eq!(list[0]["name"], "d", "{list}");

    // A vault of this host whose database is lost is not left out as one of another host.
    let vaults = fs::read_dir(host.state().join("vaults")).unwrap();
    let mut databases = vaults.map(|vault| vault.unwrap().path().join("vault.db"));
    let database = databases.find(|path| path.exists()).unwrap();
    let aside = host.file("vault.db");
    fs::rename(&database, &aside).unwrap();
    let whole = host.file("whole.age");
    let create = [&["backup", "create", &whole][..], &with_passphrase].concat();
    let refused = host.refused_with("BadParameter", &create);
    assert!(refused.contains("vault.db is lost"), "{refused}");
    fs::rename(&aside, &database).unwrap();

    // One with a catalog in it is not restored beside another one.
    let own = Host::new();
    own.ok("keyvault connect far --url https://far.vault.localhost:8443");
    let other = host.file("other.age");
    own.ok(&[&["backup", "create", &other][..], &with_passphrase].concat());
    let beside = [
        "backup",
        "restore",
        &other,
        "--state-dir",
        &host.file("other"),
    ]
    .map(str::to_owned);
    let beside: Vec<_> = beside.iter().map(String::as_str).collect();
    let refused = host.refused_with("BadParameter", &[&beside[..], &with_passphrase].concat());
    assert!(refused.contains("a catalog of its own"), "{refused}");
}

/// The attach process has a connection of its own, which is confined as the rest of it is; its data plane knows of none.
#[test]
fn an_attached_disk_reaches_the_catalog_within_its_confinement() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    let (host, _) = on_server(server);
    host.ok("disk create d --size 8MiB");
    let daemon = host.attach("d");
    let pid = daemon.pid();
    let confined = || {
        let threads = threads(pid).into_iter();
        let confinement = threads.filter_map(|(thread, name)| {
            let status = fs::read_to_string(format!("/proc/{pid}/task/{thread}/status")).ok()?;
            let kept = ["CapEff:", "NoNewPrivs:", "Seccomp:", "Seccomp_filters:"];
            let lines = status.lines();
            let lines = lines.filter(|line| kept.iter().any(|kept| line.starts_with(kept)));
            Some((name, lines.map(str::to_owned).collect::<Vec<_>>()))
        });
        confinement.collect::<Vec<_>>()
    };
    for is_upgraded in [false, true] {
        if is_upgraded {
            let upgraded = host.json("upgrade d");
            assert!(upgraded[0]["attachKept"].is_null(), "{upgraded}");
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
            let mut words = words.split(|byte| *byte == 0);
            assert!(words.any(|word| word == b"--catalog"), "it goes on there");
        }
        let threads = confined();
        let has_connection = threads.iter().any(|(name, _)| name == "postgres");
        assert!(has_connection, "{threads:?}");
        let kinds: BTreeSet<_> = threads.iter().map(|(_, lines)| lines).collect();
        assert_eq!(kinds.len(), 1, "{threads:?}");
        // Another user's process cannot be looked into.
        if let Ok(environment) = fs::read(format!("/proc/{}/environ", daemon.data_plane())) {
            let environment = String::from_utf8_lossy(&environment);
            assert!(!environment.contains("CATALOG"), "{environment}");
        }
        host.ok("snapshot create s --source d");
        host.ok("snapshot delete s --yes");
    }
    assert_eq!(host.json("disk show d")["diskState"], "Attached");
    daemon.stop();
}
