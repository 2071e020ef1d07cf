//! RSA by itself, by each library, and what the vault makes of it: wraps and unwraps a second, each
//! checked and recorded durably, by one client and by 32 at once.

// Clippy exempts only functions with #[test], and this program has nobody to report an error to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
// `criterion_group!` makes a public function.
#![allow(missing_docs)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rsa::pkcs8::DecodePrivateKey;
use uuid::Uuid;
use vault::{
    Caller, EmbeddedVault, EncryptionAlgorithm, KeyId, KeySize, NewKey, Permissions, PrivateKeyId,
    PrivateKeys, SoftwareKeys, SystemClock, VaultSettings,
};

const OAEP: EncryptionAlgorithm = EncryptionAlgorithm::RsaOaep256;
const SECRET: [u8; 64] = [7; 64];

fn bare_rsa(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("rsa");
    group.throughput(Throughput::Elements(1));
    for (size, name) in [
        (KeySize::Rsa2048, "2048"),
        (KeySize::Rsa3072, "3072"),
        (KeySize::Rsa4096, "4096"),
    ] {
        let id = PrivateKeyId {
            vault: Uuid::nil(),
            key: "k",
            version: "v",
        };
        let key = SoftwareKeys.generate(&id, size).unwrap();
        let reference = rsa::PrivateKey::from_pkcs8_der(&key.material).unwrap();
        let public = reference.as_public_key();
        let wrapped = public.oaep_encrypt::<sha2::Sha256>(&SECRET).unwrap();
        let ready = SoftwareKeys.open(&key.material).unwrap();
        group.bench_function(format!("aws-lc-rs/{name}/unwrap"), |bencher| {
            bencher.iter(|| ready.decrypt(OAEP, &wrapped).unwrap());
        });
        group.bench_function(format!("aws-lc-rs/{name}/read and unwrap"), |bencher| {
            bencher.iter(|| {
                let key = SoftwareKeys.open(&key.material).unwrap();
                key.decrypt(OAEP, &wrapped).unwrap()
            });
        });
        group.bench_function(format!("rsa/{name}/unwrap"), |bencher| {
            bencher.iter(|| reference.oaep_decrypt::<sha2::Sha256>(&wrapped).unwrap());
        });
    }
    group.finish();
}

fn engine(criterion: &mut Criterion) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let settings = VaultSettings::default();
    let clock = Arc::new(SystemClock);
    let vault = EmbeddedVault::create(dir.path(), "vault", &settings, clock).unwrap();
    vault.cache_private_keys(4);
    let caller = Caller::local(Uuid::new_v4());
    vault
        .set_policy(&caller, caller.object_id, &Permissions::all())
        .unwrap();
    vault.set_operations_limit(&caller, 10_000_000).unwrap();
    let new = NewKey::new(KeySize::Rsa3072);
    vault.create_key(&caller, "k", &new).unwrap();
    let mut key = KeyId {
        name: "k".into(),
        version: None,
    };
    let wrapped = vault.wrap(&caller, &key, OAEP, &SECRET).unwrap();
    key.version = Some(wrapped.key_version.clone());

    let mut group = criterion.benchmark_group("vault/3072");
    group
        .sample_size(10)
        .measurement_time(Duration::from_secs(8));
    group.throughput(Throughput::Elements(1));
    for clients in [1, 32] {
        group.bench_function(format!("unwrap/{clients} clients"), |bencher| {
            bencher.iter_custom(|count| {
                shared(clients, count, || {
                    vault.unwrap(&caller, &key, OAEP, &wrapped.value).unwrap();
                })
            });
        });
        group.bench_function(format!("wrap/{clients} clients"), |bencher| {
            bencher.iter_custom(|count| {
                shared(clients, count, || {
                    vault.wrap(&caller, &key, OAEP, &SECRET).unwrap();
                })
            });
        });
    }
    group.finish();
}

/// The time that `count` operations take when `clients` share them.
fn shared(clients: u64, count: u64, operation: impl Fn() + Sync) -> Duration {
    let started = Instant::now();
    std::thread::scope(|scope| {
        for client in 0..clients {
            let own = count / clients + u64::from(client < count % clients);
            let operation = &operation;
            scope.spawn(move || (0..own).for_each(|_| operation()));
        }
    });
    started.elapsed()
}

criterion_group!(benches, bare_rsa, engine);
criterion_main!(benches);
