//! The keys themselves, in a process of its own for each test: SoftHSM finds its configuration by
//! the environment, which a process with threads must not change.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use aws_lc_rs::rsa::{
    OAEP_SHA1_MGF1SHA1, OaepPublicEncryptingKey, PublicEncryptingKey, PublicKeyComponents,
};
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::object::{Attribute, AttributeType, ObjectClass};
use cryptoki::session::UserType;
use cryptoki::types::AuthPin;
use sha2::Sha256;
use uuid::Uuid;
use vault::hsm::{HsmKeys, HsmToken};
use vault::{
    Caller, EmbeddedVault, EncryptionAlgorithm, KeySize, NewKey, Permissions, PrivateKeyId,
    PrivateKeys, SystemClock, VaultErrorCode, VaultSettings,
};

use super::token::{LABEL, PIN, Token};

/// Runs the ignored test of that name with a token of its own.
fn in_own_process(test: &str) {
    let token = Token::new();
    // The harness leaves the name of the crate out.
    let (_, module) = module_path!().split_once("::").unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--ignored",
            "--exact",
            "--nocapture",
            &format!("{module}::{test}"),
        ])
        .env("SOFTHSM2_CONF", token.conf())
        .env("TEST_PIN_FILE", token.pin_file())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn keys_of_every_size_decrypt_in_many_threads() {
    in_own_process("decrypt");
}

#[test]
fn nobody_gets_a_key_out_and_a_deleted_one_is_gone() {
    in_own_process("secrecy");
}

#[test]
fn purging_a_key_destroys_its_objects() {
    in_own_process("purge");
}

/// Where the PIN is of the token that [`in_own_process`] made; nowhere when all ignored tests are run.
fn pin_file() -> Option<PathBuf> {
    std::env::var_os("TEST_PIN_FILE").map(Into::into)
}

fn keys(pin_file: PathBuf) -> HsmKeys {
    HsmKeys::new(HsmToken {
        module: Token::module().into(),
        label: LABEL.into(),
        pin_file: Some(pin_file),
        credential: "sealdisk-hsm-test".into(),
    })
}

fn id() -> PrivateKeyId<'static> {
    PrivateKeyId {
        vault: Uuid::from_u128(1),
        key: "k",
        version: "0123",
    }
}

const OAEP_256: EncryptionAlgorithm = EncryptionAlgorithm::RsaOaep256;
const OAEP_1: EncryptionAlgorithm = EncryptionAlgorithm::RsaOaep;

fn public(n: &[u8], e: &[u8]) -> rsa::PublicKey {
    let number = rsa::BoxedUint::from_be_slice_vartime;
    rsa::PublicKey::new(number(n), number(e)).unwrap()
}

/// RSA-OAEP with SHA-1, by another library.
fn sha1_wrapped(n: &[u8], e: &[u8], secret: &[u8]) -> Vec<u8> {
    let key = PublicKeyComponents { n, e };
    let key: PublicEncryptingKey = key.try_into().unwrap();
    let key = OaepPublicEncryptingKey::new(key).unwrap();
    let mut wrapped = vec![0; key.ciphertext_size()];
    key.encrypt(&OAEP_SHA1_MGF1SHA1, secret, &mut wrapped, None)
        .unwrap();
    wrapped
}

#[test]
#[ignore = "run by keys_of_every_size_decrypt_in_many_threads"]
fn decrypt() {
    let Some(pin_file) = pin_file() else { return };
    let keys = keys(pin_file);
    for size in [KeySize::Rsa2048, KeySize::Rsa3072, KeySize::Rsa4096] {
        let made = keys.generate(&id(), size).unwrap();
        let public = public(&made.n, &made.e);
        let key = keys.open(&made.material).unwrap();
        let wrapped = public.oaep_encrypt::<Sha256>(&[5; 64]).unwrap();
        assert_eq!(wrapped.len() * 8, size.bits() as usize);
        std::thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| {
                    for _ in 0..5 {
                        let secret = key.decrypt(OAEP_256, &wrapped).unwrap();
                        assert_eq!(secret.as_slice(), [5; 64]);
                    }
                });
            }
        });
        let old = sha1_wrapped(&made.n, &made.e, &[6; 64]);
        assert_eq!(key.decrypt(OAEP_1, &old).unwrap().as_slice(), [6; 64]);
        // Whatever is wrong, it is one error.
        let mut changed = wrapped.clone();
        changed[100] ^= 1;
        let mut messages = std::collections::BTreeSet::new();
        for (algorithm, bad) in [
            (OAEP_256, changed),
            (OAEP_256, wrapped[1..].to_vec()),
            (OAEP_256, vec![0; wrapped.len()]),
            (OAEP_256, vec![0xff; wrapped.len()]),
            (OAEP_256, Vec::new()),
            (OAEP_256, old),
            (OAEP_1, wrapped.clone()),
        ] {
            let error = key.decrypt(algorithm, &bad).err().unwrap();
            assert_eq!(error.code, VaultErrorCode::UnwrapFailed, "{error}");
            messages.insert(error.message);
        }
        assert_eq!(messages.len(), 1, "{messages:?}");
    }
}

#[test]
#[ignore = "run by nobody_gets_a_key_out_and_a_deleted_one_is_gone"]
fn secrecy() {
    let Some(pin_file) = pin_file() else { return };
    let keys = keys(pin_file);
    let made = keys.generate(&id(), KeySize::Rsa2048).unwrap();
    // As another program sees the token, with the PIN.
    let library = Pkcs11::new(Path::new(Token::module())).unwrap();
    // It is initialised in this process already.
    let _ = library.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK));
    let slot = library.get_slots_with_initialized_token().unwrap()[0];
    let session = library.open_ro_session(slot).unwrap();
    let _ = session.login(UserType::User, Some(&AuthPin::from(PIN.to_owned())));
    let template = [Attribute::Class(ObjectClass::PRIVATE_KEY)];
    let objects = session.find_objects(&template).unwrap();
    assert_eq!(objects.len(), 1);
    let flags = [
        AttributeType::Sensitive,
        AttributeType::Extractable,
        AttributeType::Sign,
        AttributeType::Unwrap,
    ];
    let flags = session.get_attributes(objects[0], &flags).unwrap();
    for expected in [
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Sign(false),
        Attribute::Unwrap(false),
    ] {
        assert!(flags.contains(&expected), "{expected:?} in {flags:?}");
    }
    for secret in [AttributeType::PrivateExponent, AttributeType::Prime1] {
        let shown = session.get_attributes(objects[0], &[secret]);
        assert!(shown.map_or(true, |values| values.is_empty()));
    }
    assert_eq!(
        session.find_objects(&[]).unwrap().len(),
        1,
        "no public object is left"
    );
    drop(session);

    let wrapped = public(&made.n, &made.e)
        .oaep_encrypt::<Sha256>(&[5; 64])
        .unwrap();
    let key = keys.open(&made.material).unwrap();
    key.decrypt(OAEP_256, &wrapped).unwrap();
    keys.delete(&made.material).unwrap();
    let gone = key.decrypt(OAEP_256, &wrapped).err().unwrap();
    assert_eq!(gone.code, VaultErrorCode::KeyNotFound, "{gone}");
    // A crash may have come between this and the vault's own bookkeeping.
    keys.delete(&made.material).unwrap();
    assert!(keys.open(b"something else").is_err());
}

#[test]
#[ignore = "run by purging_a_key_destroys_its_objects"]
fn purge() {
    let Some(pin_file) = pin_file() else { return };
    let tokens = pin_file.parent().unwrap().join("tokens");
    let keys = Arc::new(keys(pin_file));
    let dir = tempfile::tempdir().unwrap();
    let (settings, clock) = (VaultSettings::default(), Arc::new(SystemClock));
    let vault = EmbeddedVault::create_with(dir.path(), "vault", &settings, clock, keys).unwrap();
    let caller = Caller::local(Uuid::from_u128(5));
    vault
        .set_policy(&caller, caller.object_id, &Permissions::all())
        .unwrap();
    let objects = || {
        let token = std::fs::read_dir(&tokens)
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path();
        let objects = std::fs::read_dir(token)
            .unwrap()
            .map(|e| e.unwrap().file_name());
        let is_key = |name: &std::ffi::OsString| {
            let name = name.to_string_lossy();
            name.ends_with(".object") && name != "token.object"
        };
        objects.filter(is_key).count()
    };
    let new = NewKey::new(KeySize::Rsa2048);
    for _ in 0..2 {
        vault.create_key(&caller, "k", &new).unwrap();
    }
    vault.create_key(&caller, "other", &new).unwrap();
    assert_eq!(objects(), 3);
    vault.delete_key(&caller, "k").unwrap();
    assert_eq!(objects(), 3, "it can still be recovered");
    vault.purge_key(&caller, "k").unwrap();
    assert_eq!(objects(), 1);
    // A backup would promise what it cannot keep: the key itself stays in the token.
    let backup = vault.backup_key(&caller, "other").unwrap_err();
    assert_eq!(backup.code, VaultErrorCode::BadParameter);
    assert!(backup.message.contains("token"), "{backup}");
}
