//! What a server has in its logs about clients that it refuses, and how much of it.

use serde_json::{Value, json};
use test_support::Host;

use super::client::{Client, Connection, plain, token};
use super::served::host_with_vault;

/// The records of a log, each a line.
fn records(host: &Host, which: &str) -> Vec<Value> {
    let log = host.run(&format!("audit list {which} -o json"));
    let text = String::from_utf8(log.stdout).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn failed_logins_are_on_record_and_a_flood_of_them_is_a_few_records() {
    let (host, alice) = host_with_vault();
    let served = host.serve("--imds-listen 127.0.0.1:0 --imds-identity alice");
    let client = Client::new(&served, &alice);
    let resource = served.resource();
    let mut wrong = alice.secret.clone();
    wrong.truncate(wrong.len() - 4);
    for _ in 0..200 {
        assert_eq!(token(&served, &wrong, &resource).status, 401);
    }
    let stranger = format!("{}.none", uuid::Uuid::new_v4().simple());
    assert_eq!(token(&served, &stranger, &resource).status, 401);
    let (status, _) = plain(
        served.ready["imdsEndpoint"].as_str().unwrap(),
        &format!("/metadata/identity/oauth2/token?api-version=2018-02-01&resource={resource}"),
        "",
    );
    assert_eq!(status, 400);
    let forged = format!("{}x", client.token);
    let vault = served.host_of("myvault");
    for _ in 0..100 {
        let mut connection = Connection::open(&served).unwrap();
        let refused = connection.ask(&vault, &forged, "GET /keys", None).unwrap();
        assert_eq!(refused.status, 401);
    }
    host.json("identity delete alice --yes");
    let gone = client.ask("GET /keys", None);
    assert_eq!(gone.status, 401);
    let genuine = client.token.clone();
    served.terminate();
    assert!(served.wait().success());

    let own = records(&host, "--installation");
    let of = |operation: &str, part: &str| {
        let found = own.iter().filter(|record| {
            let detail = record["detail"].as_str().unwrap_or_default();
            record["operation"] == operation && detail.contains(part)
        });
        found.collect::<Vec<_>>()
    };
    let count = |records: &[&Value]| {
        let counted = records.iter().map(|record| {
            let detail = record["detail"].as_str().unwrap();
            let more = detail.rsplit("; ").next().unwrap();
            match more.split_once(" more from ") {
                Some((number, _)) => number.parse::<u64>().unwrap(),
                None => 1,
            }
        });
        counted.sum::<u64>()
    };
    let secrets = of("TokenRefused", "is not the secret of an identity");
    assert_eq!(count(&secrets), 201, "{secrets:?}");
    assert!(secrets.len() < 60, "{}", secrets.len());
    assert!(
        secrets[0]["origin"]
            .as_str()
            .unwrap()
            .starts_with("127.0.0.1:")
    );
    assert_eq!(secrets[0]["outcome"], "refused");
    assert_eq!(of("TokenRefused", "metadata header").len(), 1, "{own:?}");
    let tokens = of("LoginRefused", "key vault myvault");
    assert_eq!(count(&tokens), 101, "{tokens:?}");
    let deleted = of("LoginRefused", "was deleted");
    assert_eq!(deleted[0]["caller"], alice.object_id.as_str());
    let all = host.run("audit list -o json").stdout;
    let all = String::from_utf8(all).unwrap();
    for secret in [&wrong[33..], &genuine[..40], stranger.as_str()] {
        assert!(!all.contains(secret), "a secret is in the log");
    }
    assert!(host.run("audit verify").status.success());
}

#[test]
fn a_client_over_its_limit_is_told_so_and_others_are_served() {
    let (host, alice) = host_with_vault();
    host.json("keyvault update myvault --operations-limit 100");
    let served = host.serve("");
    let client = Client::new(&served, &alice);
    let created = client.create("k");
    let path = created.split_once("/keys/").unwrap().1.to_owned();
    // A refusal weighs as much as ten other records.
    let mut last = client.ask("GET /keys/none", None);
    for _ in 0..300 {
        if last.status == 429 {
            break;
        }
        assert_eq!(last.status, 404, "{last:?}");
        last = client.ask("GET /keys/none", None);
    }
    assert_eq!((last.status, last.code()), (429, "Throttled"), "{last:?}");
    let after: u64 = last.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=11).contains(&after), "{after}");
    // What takes something away is done all the same.
    let disable = json!({"attributes": {"enabled": false}});
    let disabled = client.ask(&format!("PATCH /keys/{path}"), Some(&disable));
    assert_eq!(disabled.status, 200, "{disabled:?}");
    // Another identity has its own limit.
    host.json("keyvault key list --vault-name myvault");
    let log = records(&host, "--vault myvault");
    let throttled: Vec<_> = log
        .iter()
        .filter(|r| r["operation"] == "Throttled")
        .collect();
    assert!((1..6).contains(&throttled.len()), "{throttled:?}");
    assert_eq!(throttled[0]["code"], "TooManyRequests");
}

#[test]
fn refusals_of_one_kind_are_counted_and_a_client_says_for_which_disk_it_asks() {
    let (host, alice) = host_with_vault();
    let served = host.serve("");
    let client = Client::new(&served, &alice);
    let created = client.create("k");
    let path = created.split_once("/keys/").unwrap().1.to_owned();
    let value = json!({"alg": "RSA-OAEP-256", "value": "AAAA"});
    let layer = uuid::Uuid::new_v4();
    let claiming = Client {
        served: &served,
        vault: client.vault.clone(),
        token: format!(
            "{}\r\nx-sealdisk-disk: web\r\nx-sealdisk-layer: {layer}",
            client.token
        ),
    };
    let wrapped = claiming.ask(&format!("POST /keys/{path}/wrapkey"), Some(&value));
    assert_eq!(wrapped.status, 200, "{wrapped:?}");
    for _ in 0..60 {
        let refused = client.ask("GET /keys/none", None);
        assert_eq!(refused.status, 404);
    }
    let log = records(&host, "--vault myvault");
    let wrap = log.iter().find(|r| r["operation"] == "KeyWrap").unwrap();
    assert_eq!(wrap["disk"], "web");
    let detail = wrap["detail"].as_str().unwrap();
    assert_eq!(detail, format!("claimed by the client: layer {layer}"));
    let refused: Vec<_> = log.iter().filter(|r| r["code"] == "KeyNotFound").collect();
    assert!(refused.len() < 40, "{}", refused.len());
    let count = refused.iter().map(|record| {
        let detail = record["detail"].as_str().unwrap_or_default();
        let more = detail.split_once(" more from ").map(|(count, _)| count);
        more.map_or(1, |count| {
            count.rsplit(' ').next().unwrap().parse::<u64>().unwrap()
        })
    });
    assert_eq!(count.sum::<u64>(), 60, "{refused:?}");
    assert!(host.run("audit verify").status.success());
}
