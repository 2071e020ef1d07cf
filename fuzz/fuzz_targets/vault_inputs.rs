//! What users hand to a key vault: backups, JSON Web Keys, rotation policies, exported logs.
#![no_main]

use std::cell::LazyCell;
use std::sync::Arc;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use sealdisk_fuzz::{Edit, edited};
use tempfile::TempDir;
use uuid::Uuid;
use vault::audit::{pins, verify_export};
use vault::{
    Caller, EmbeddedVault, KeyMaterial, KeyOps, KeySize, NewKey, Period, Permissions, PrivateJwk,
    RotationPolicy, RsaKey, SystemClock, VaultErrorCode, VaultSettings,
};

const POLICY: &[u8] = br#"{"lifetimeActions":[{"trigger":{"timeAfterCreate":"P90D"},"action":{"type":"Rotate"}}],"attributes":{"expiryTime":"P1Y6M"}}"#;

#[derive(Debug, Arbitrary)]
enum Input {
    Backup(Vec<Edit>),
    RawBackup(Vec<u8>),
    Jwk(Vec<Edit>),
    Policy(Vec<Edit>),
    Export(Vec<Edit>),
    RawExport(Vec<u8>),
    Words(String),
}

/// A vault with a key, its backup, the key as a JSON Web Key, and its exported log.
struct Fixture {
    _dir: TempDir,
    vault: EmbeddedVault,
    caller: Caller,
    backup: Vec<u8>,
    jwk: Vec<u8>,
    export: Vec<u8>,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let (settings, clock) = (VaultSettings::default(), Arc::new(SystemClock));
        let vault = EmbeddedVault::create(dir.path(), "vault", &settings, clock).unwrap();
        let caller = Caller::local(Uuid::from_u128(1));
        // Each refusal counts, and there are thousands in a second.
        vault.set_operations_limit(&caller, 10_000_000).unwrap();
        vault
            .set_policy(&caller, caller.object_id, &Permissions::all())
            .unwrap();
        let new = NewKey::new(KeySize::Rsa2048);
        vault.create_key(&caller, "k", &new).unwrap();
        let backup = vault.backup_key(&caller, "k").unwrap();
        vault.delete_key(&caller, "k").unwrap();
        vault.purge_key(&caller, "k").unwrap();
        let mut export = Vec::new();
        vault
            .read_audit(|chain, db| {
                vault::audit::write_export(db, chain, "vault", true, &mut export)
            })
            .unwrap();
        Self {
            _dir: dir,
            vault,
            caller,
            backup,
            jwk: jwk(),
            export,
        }
    }

    fn restore(&self, backup: &[u8]) {
        match self.vault.restore_key(&self.caller, backup) {
            Ok(_) => assert!(backup == self.backup, "a changed backup was restored"),
            Err(e) => assert!(matches!(
                e.code,
                VaultErrorCode::BadParameter | VaultErrorCode::Conflict
            )),
        }
    }
}

fn jwk() -> Vec<u8> {
    use base64::Engine as _;
    let key = RsaKey::generate(KeySize::Rsa2048).unwrap();
    let parts = key.components().unwrap();
    let number = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
    format!(
        r#"{{"kty":"RSA","n":"{}","e":"{}","d":"{}","p":"{}","q":"{}"}}"#,
        number(&parts.n),
        number(&parts.e),
        number(&parts.d),
        number(&parts.p),
        number(&parts.q)
    )
    .into_bytes()
}

thread_local! {
    static FIXTURE: LazyCell<Fixture> = LazyCell::new(Fixture::new);
}

fuzz_target!(|input: Input| {
    FIXTURE.with(|fixture| match input {
        Input::Backup(edits) => fixture.restore(&edited(&fixture.backup, &edits)),
        Input::RawBackup(bytes) => fixture.restore(&bytes),
        Input::Jwk(edits) => {
            if let Ok(jwk) = serde_json::from_slice::<PrivateJwk>(&edited(&fixture.jwk, &edits))
                && let Ok(key) = RsaKey::read(&KeyMaterial::Jwk(&jwk))
            {
                assert!(key.public_parts().0.len() >= 256);
                key.components().unwrap();
            }
        }
        Input::Policy(edits) => {
            if let Ok(policy) = serde_json::from_slice::<RotationPolicy>(&edited(POLICY, &edits)) {
                let text = serde_json::to_vec(&policy).unwrap();
                assert!(serde_json::from_slice::<RotationPolicy>(&text).unwrap() == policy);
            }
        }
        Input::Export(edits) => {
            let export = edited(&fixture.export, &edits);
            let _ = verify_export(export.as_slice(), &[]);
            let _ = pins(export.as_slice());
        }
        Input::RawExport(bytes) => {
            let _ = verify_export(bytes.as_slice(), &[]);
        }
        Input::Words(text) => {
            let _ = text.parse::<Period>();
            let _ = text.parse::<KeyOps>();
        }
    });
});
