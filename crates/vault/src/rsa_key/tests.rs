use super::*;
use rsa::pkcs1::EncodeRsaPrivateKey;
use rsa::pkcs8::LineEnding;
use sha2::Sha256;

const OAEP: EncryptionAlgorithm = EncryptionAlgorithm::RsaOaep256;
const SHA1: EncryptionAlgorithm = EncryptionAlgorithm::RsaOaep;

fn reference(key: &RsaKey) -> PrivateKey {
    PrivateKey::from_pkcs8_der(key.der()).unwrap()
}

#[test]
fn wraps_and_unwraps_and_every_bad_input_gives_the_same_error() {
    let key = RsaKey::generate(KeySize::Rsa2048).unwrap();
    let (n, e) = key.public_parts();
    let wrapped = encrypt(n, e, OAEP, &[5; 64]).unwrap();
    assert_eq!(wrapped.len(), 256);
    let other = encrypt(n, e, OAEP, &[5; 64]).unwrap();
    assert_ne!(wrapped, other, "OAEP is randomised");
    let opened = DecryptingKey::from_der(key.der()).unwrap();
    let secret = opened.decrypt(OAEP, &wrapped).unwrap();
    assert_eq!(secret.as_slice(), &[5; 64]);

    let mut changed = wrapped.clone();
    changed[100] ^= 1;
    let bad = [
        changed,
        wrapped[1..].to_vec(),
        [&[0], wrapped.as_slice()].concat(),
        vec![0; 256],
        vec![0xff; 256],
        Vec::new(),
        encrypt(n, e, SHA1, &[5; 64]).unwrap(),
    ];
    let messages: std::collections::BTreeSet<String> = bad
        .iter()
        .map(|b| {
            let error = opened.decrypt(OAEP, b).err().unwrap();
            assert_eq!(error.code, VaultErrorCode::UnwrapFailed);
            assert!(error.source.is_none());
            error.message
        })
        .collect();
    assert_eq!(messages.len(), 1, "{messages:?}");
    for (algorithm, limit) in [(OAEP, 190), (SHA1, 214)] {
        let error = encrypt(n, e, algorithm, &vec![0; limit + 1]).unwrap_err();
        assert_eq!(error.code, VaultErrorCode::BadParameter);
        encrypt(n, e, algorithm, &vec![0; limit]).unwrap();
    }
}

#[test]
fn both_libraries_read_what_the_other_wrote() {
    for size in [KeySize::Rsa2048, KeySize::Rsa3072, KeySize::Rsa4096] {
        let key = RsaKey::generate(size).unwrap();
        let (n, e) = key.public_parts();
        let reference = reference(&key);
        assert_eq!(reference.n().bit_width_vartime(), size.bits());
        let ours = DecryptingKey::from_der(key.der()).unwrap();
        for len in [0, 1, 64, 190] {
            let secret = vec![0x5a; len];
            let wrapped = encrypt(n, e, OAEP, &secret).unwrap();
            assert_eq!(reference.oaep_decrypt::<Sha256>(&wrapped).unwrap(), secret);
            let public = reference.as_public_key();
            let theirs = public.oaep_encrypt::<Sha256>(&secret).unwrap();
            assert_eq!(ours.decrypt(OAEP, &theirs).unwrap().as_slice(), secret);
        }
    }
}

#[test]
fn imports_both_pem_forms_and_refuses_what_is_not_one() {
    let key = RsaKey::generate(KeySize::Rsa2048).unwrap();
    let pkcs8 = reference(&key).to_pkcs8_pem(LineEnding::LF).unwrap();
    let pkcs1 = reference(&key).to_pkcs1_pem(LineEnding::LF).unwrap();
    let with_text = format!("Bag Attributes\n  x: y\n{}", *pkcs8);
    for pem in [pkcs8.as_str(), pkcs1.as_str(), &with_text] {
        let imported = RsaKey::from_pem(pem).unwrap();
        assert_eq!(imported.public_parts(), key.public_parts());
    }
    let refused = |pem: &str, why: &str| {
        let error = RsaKey::from_pem(pem).err().unwrap();
        assert_eq!(error.code, VaultErrorCode::BadParameter);
        assert!(error.message.contains(why), "{error} for {why}");
    };
    refused("", "no PEM");
    refused(&pkcs8[..pkcs8.len() / 2], "malformed");
    let label = |label: &str| pkcs8.replace("PRIVATE KEY", label);
    refused(&label("ENCRYPTED PRIVATE KEY"), "password");
    refused(&label("CERTIFICATE"), "'CERTIFICATE'");
    refused(&label("EC PRIVATE KEY"), "'EC PRIVATE KEY'");
}

fn jwk(components: &RsaComponents) -> serde_json::Value {
    let number = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    serde_json::json!({
        "kty": "RSA",
        "n": number(&components.n),
        "e": number(&components.e),
        "d": number(&components.d),
        "p": number(&components.p),
        "q": number(&components.q),
        "dp": number(&components.dp),
        "dq": number(&components.dq),
        "qi": number(&components.qi),
        "key_ops": ["wrapKey"],
    })
}

fn from_json(value: &serde_json::Value) -> Result<RsaKey, VaultError> {
    let jwk: PrivateJwk = serde_json::from_value(value.clone()).unwrap();
    RsaKey::read(&KeyMaterial::Jwk(&jwk))
}

#[test]
fn imports_json_web_keys_and_refuses_what_is_not_one() {
    let key = RsaKey::generate(KeySize::Rsa2048).unwrap();
    let valid = jwk(&key.components().unwrap());
    let imported = from_json(&valid).unwrap();
    assert_eq!(imported.public_parts(), key.public_parts());
    let (n, e) = key.public_parts();
    let wrapped = encrypt(n, e, OAEP, &[7; 64]).unwrap();
    let opened = DecryptingKey::from_der(imported.der()).unwrap();
    assert_eq!(opened.decrypt(OAEP, &wrapped).unwrap().as_slice(), [7; 64]);

    let without_primes = serde_json::json!({
        "kty": "RSA", "n": valid["n"], "e": valid["e"], "d": valid["d"],
    });
    let imported = from_json(&without_primes).unwrap();
    assert_eq!(imported.public_parts(), key.public_parts());

    let other = jwk(&RsaKey::generate(KeySize::Rsa2048)
        .unwrap()
        .components()
        .unwrap());
    for (field, value) in [
        ("kty", "EC".into()),
        ("n", other["n"].clone()),
        ("n", "".into()),
        ("e", "".into()),
        ("e", "AA".into()),
        ("d", other["d"].clone()),
        ("d", "!".into()),
        ("p", other["p"].clone()),
        ("q", "".into()),
        ("n", "A".repeat(1000).into()),
    ] {
        let mut changed = valid.clone();
        changed[field] = value;
        let error = from_json(&changed).err().unwrap();
        assert_eq!(error.code, VaultErrorCode::BadParameter, "{field}: {error}");
        let d = valid["d"].as_str().unwrap();
        assert!(!error.message.contains(d), "a secret in a message");
    }
}

#[test]
fn a_small_key_is_refused() {
    let small = PrivateKey::new(&mut getrandom::SysRng, 1024).unwrap();
    let pem = small.to_pkcs8_pem(LineEnding::LF).unwrap();
    let error = RsaKey::from_pem(&pem).err().unwrap();
    assert!(error.message.contains("1024 bits"), "{error}");
}

/// Not asked about RSA-OAEP: the module does not have it as a service.
#[test]
#[cfg(feature = "fips")]
fn the_validated_module_approves() {
    let generate = || RsaKey::generate(KeySize::Rsa2048).unwrap();
    assert!(keys::is_approved(generate));
}
