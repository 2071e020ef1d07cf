//! Who may connect to whom.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;

use super::*;

/// What the client has in files.
struct Files(TempDir);

impl Files {
    fn put(&self, name: &str, content: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    }
}

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A certificate and its key, for a name that a host or a user has.
fn certificate(name: &str, by: &Authority) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![name.into()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    let signed = params.signed_by(&key, by).unwrap();
    (signed.pem(), key.serialize_pem())
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

#[test]
fn a_server_shows_who_it_is_and_lets_in_whom_it_knows() {
    let port = free_port();
    let settings = [format!("port={port}"), "listen_addresses=localhost".into()];
    let settings = settings.each_ref().map(String::as_str);
    let Some(server) = PostgresServer::start(&settings) else {
        return;
    };
    let authority = authority();
    let (shown, key) = certificate("localhost", &authority);
    for (setting, content) in [
        ("ssl_cert_file", shown),
        ("ssl_key_file", key),
        ("ssl_ca_file", authority.pem()),
    ] {
        let path = server.put(setting, &content);
        server.sql(&format!(
            "ALTER SYSTEM SET {setting} = '{}'",
            path.display()
        ));
    }
    server.put(
        "data/pg_hba.conf",
        "local all all trust\nhostssl all byname all cert\nhostssl all bypassword all scram-sha-256\n",
    );
    server.sql("ALTER SYSTEM SET ssl = on");
    server.sql(
        "CREATE ROLE byname LOGIN SUPERUSER; CREATE ROLE bypassword LOGIN SUPERUSER PASSWORD 'it''s:\\\\';
         SELECT pg_reload_conf();",
    );
    let files = Files(tempfile::tempdir().unwrap());
    let root = files
        .put("root.pem", &authority.pem())
        .display()
        .to_string();
    let other = self::authority().pem();
    let other = files.put("other.pem", &other).display().to_string();
    let (shown, key) = certificate("byname", &authority);
    let shown = files.put("cert.pem", &shown).display().to_string();
    let key = files.put("key.pem", &key).display().to_string();
    let right = format!("localhost:{port}:*:bypassword:it's\\:\\\\\\\\\n");
    let right = files.put("right", &right).display().to_string();
    let wrong = files.put("wrong", "*:*:*:*:wrong\n").display().to_string();
    let connect = |at: &str, options: &str| {
        let url = format!("postgres://{at}:{port}/postgres?{options}");
        open(&url, &SCHEMA)
    };
    // The server takes a moment to read its new settings.
    let mut patience = crate::patience::Patience::of(Duration::from_secs(30));
    let by_password = format!("sslrootcert={root}&passfile={right}");
    let db = loop {
        match connect("bypassword@localhost", &by_password) {
            Err(error) => assert!(patience.wait(), "{error}"),
            Ok(db) => break db,
        }
    };
    let is_encrypted = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    assert!(db.the_value::<bool>(is_encrypted, &[]).unwrap());
    let by_name = format!("sslmode=verify-full&sslrootcert={root}&sslcert={shown}&sslkey={key}");
    let db = connect("byname@localhost", &by_name).unwrap();
    assert!(db.the_value::<bool>(is_encrypted, &[]).unwrap());

    for (at, options, why) in [
        // Another name, another authority, none of the system's.
        (
            "bypassword@127.0.0.1",
            by_password.clone(),
            "not valid for name",
        ),
        (
            "bypassword@localhost",
            format!("sslrootcert={other}&passfile={right}"),
            "invalid peer certificate",
        ),
        (
            "bypassword@localhost",
            format!("passfile={right}"),
            "invalid peer certificate",
        ),
        (
            "bypassword@localhost",
            format!("sslmode=disable&passfile={right}"),
            "no pg_hba.conf entry",
        ),
        (
            "bypassword@localhost",
            format!("sslrootcert={root}&passfile={wrong}"),
            "password authentication failed",
        ),
        (
            "byname@localhost",
            format!("sslrootcert={root}"),
            "certificate",
        ),
    ] {
        let refused = connect(at, &options).err().unwrap().to_string();
        assert!(refused.contains(why), "{at} {options}: {refused}");
    }
}

#[test]
fn what_is_wrong_with_an_address_is_told() {
    let files = Files(tempfile::tempdir().unwrap());
    let empty = files.put("empty", "").display().to_string();
    let readable = files.put("readable", "*:*:*:*:p\n");
    std::fs::set_permissions(&readable, std::fs::Permissions::from_mode(0o644)).unwrap();
    let readable = readable.display().to_string();
    let (shown, key) = certificate("me", &authority());
    let shown = files.put("cert.pem", &shown).display().to_string();
    let key = files.put("key.pem", &key).display().to_string();
    for (url, why) in [
        ("mysql://h/d".to_owned(), "does not begin with postgres://"),
        ("postgres://me:secret@h/d".into(), "has a password in it"),
        (
            "postgres://me@h/d?password=secret".into(),
            "has a password in it",
        ),
        (
            "postgres://me@h/d?sslmode=require".into(),
            "sslmode=require does not make sure",
        ),
        ("postgres://me@h/d?sslmode=prefer".into(), "use verify-full"),
        ("postgres://me@h/d?color=red".into(), "color"),
        ("postgres://me@h/d?sslmode".into(), "has no value"),
        ("postgres:///d".into(), "names no host"),
        ("postgres://me@h,%2Frun/d".into(), "name either"),
        (
            format!("postgres://me@h/d?passfile={readable}"),
            "chmod 600",
        ),
        (
            format!("postgres://me@h/d?passfile={empty}.not"),
            "cannot read",
        ),
        (
            format!("postgres://me@h/d?sslrootcert={empty}"),
            "no certificate in it",
        ),
        (
            format!("postgres://me@h/d?sslcert={shown}"),
            "belong together",
        ),
        (
            format!("postgres://me@h/d?sslcert={shown}&sslkey={readable}"),
            "chmod 600",
        ),
        (
            format!("postgres://me@h/d?sslcert={shown}&sslkey={shown}"),
            "cannot be used",
        ),
    ] {
        let error = open(&url, &SCHEMA).err().unwrap().to_string();
        assert!(error.contains(why), "{url}: {error}");
        assert!(
            error.starts_with("the address of the test database is wrong: "),
            "{error}"
        );
        assert!(!error.contains("secret"), "{error}");
    }
    for url in [
        format!("postgres://me@h1,h2:5433/d?passfile={empty}&sslcert={shown}&sslkey={key}"),
        format!("postgresql://me@h1,h2:5433/d?sslmode=disable&passfile={empty}&connect_timeout=1"),
    ] {
        let address = Address::parse(&url).unwrap();
        assert_eq!(address.place, "postgres://h1,h2:5433/d");
        assert_eq!(address.tls.is_some(), url.contains("sslcert"));
    }
    let refused = open("postgres://me@127.0.0.1:1/d?sslmode=disable", &SCHEMA);
    let refused = refused.err().unwrap().to_string();
    let expected = "cannot open the test database postgres://127.0.0.1:1/d: ";
    assert!(
        refused.starts_with(expected) && refused.contains("refused"),
        "{refused}"
    );
}
