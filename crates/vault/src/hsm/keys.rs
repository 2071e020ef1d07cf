//! The private keys of a vault that are in a token.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{
    Attribute, AttributeType, KeyType as ObjectKeyType, ObjectClass, ObjectHandle,
};
use cryptoki::session::Session;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::error::{HsmError, decryption};
use super::module::{Module, Operation};
use super::token::HsmToken;
use crate::private_keys::{NewPrivateKey, PrivateKey, PrivateKeyId, PrivateKeys};
use crate::rsa_key::RsaKey;
use crate::{EncryptionAlgorithm, KeySize, KeyType, VaultError};
use keys::LockedBytes;

/// The private keys of a vault that are in a token.
pub struct HsmKeys(Arc<Shared>);

struct Shared {
    token: HsmToken,
    module: Arc<Module>,
    /// The token has shown that it has no RSA-OAEP with SHA-256.
    raw_only: AtomicBool,
}

/// How long a token may take for a use of a key, or for destroying one. As long as the check of an
/// attached disk may take.
const USUAL_LIMIT: Duration = Duration::from_secs(5);

/// How long it may take for making a key, or taking one in: it looks for primes.
const MAKING_LIMIT: Duration = Duration::from_secs(60);

/// What stands before the `CKA_ID` in a key's material, so that it cannot be taken for a key.
const MATERIAL: &[u8] = b"pkcs11 id\0";

impl HsmKeys {
    /// The keys in `token`; nothing is asked of it yet.
    pub fn new(token: HsmToken) -> Self {
        Self(Arc::new(Shared {
            module: Module::at(&token.module),
            token,
            raw_only: AtomicBool::new(false),
        }))
    }

    /// Logs in, to say at once that the token is not there or refuses the PIN.
    ///
    /// # Errors
    /// [`VaultErrorCode::Unreachable`](crate::VaultErrorCode::Unreachable),
    /// [`VaultErrorCode::HsmAccess`](crate::VaultErrorCode::HsmAccess).
    pub fn check(&self) -> Result<(), VaultError> {
        self.0.with_session(|_| Ok(()))
    }
}

impl Shared {
    fn with_session<T: Send + 'static>(
        &self,
        operation: impl Operation<T>,
    ) -> Result<T, VaultError> {
        self.module
            .with_session(&self.token, USUAL_LIMIT, operation, |_, _| {})
            .map_err(|e| e.into_vault_error(&self.token))
    }

    /// Has the object `object` made. One that is made when nobody waits for it any more is destroyed.
    fn make<T: Send + 'static>(
        &self,
        object: Uuid,
        operation: impl Operation<T>,
    ) -> Result<T, VaultError> {
        let token = self.token.clone();
        let late = move |module: &Module, _: T| {
            if let Err(e) = module.run(&token, &|session| destroy(session, object)) {
                log::warn!(
                    "the token '{}' has a key that was made in vain, {object}: {e}",
                    token.label
                );
            }
        };
        self.module
            .with_session(&self.token, MAKING_LIMIT, operation, late)
            .map_err(|e| e.into_vault_error(&self.token))
    }
}

impl PrivateKeys for HsmKeys {
    fn key_type(&self) -> KeyType {
        KeyType::RsaHsm
    }

    fn generate(&self, id: &PrivateKeyId<'_>, size: KeySize) -> Result<NewPrivateKey, VaultError> {
        let object = Uuid::new_v4();
        let public = [
            Attribute::Token(false),
            Attribute::ModulusBits(u64::from(size.bits()).into()),
            Attribute::PublicExponent(vec![1, 0, 1]),
            Attribute::Encrypt(true),
        ];
        let mut private = private_template(id, object);
        // What the token sets by itself for a key that it makes.
        private.retain(|a| !matches!(a, Attribute::Class(_) | Attribute::KeyType(_)));
        self.0.make(object, move |session| {
            let mechanism = Mechanism::RsaPkcsKeyPairGen;
            let (public, private) = session.generate_key_pair(&mechanism, &public, &private)?;
            let made = checked(session, private).and_then(|()| public_parts(session, public));
            // It was made for this session only, which lives on in the pool.
            session.destroy_object(public)?;
            if made.is_err() {
                session.destroy_object(private)?;
            }
            let (n, e) = made?;
            Ok(NewPrivateKey {
                n,
                e,
                material: material(object),
            })
        })
    }

    fn import(&self, id: &PrivateKeyId<'_>, key: &RsaKey) -> Result<NewPrivateKey, VaultError> {
        let object = Uuid::new_v4();
        let parts = key.components()?;
        let (n, e) = (parts.n.to_vec(), parts.e.to_vec());
        let mut template = private_template(id, object);
        template.extend([
            Attribute::Modulus(n.clone()),
            Attribute::PublicExponent(e.clone()),
            Attribute::PrivateExponent(parts.d.to_vec()),
            Attribute::Prime1(parts.p.to_vec()),
            Attribute::Prime2(parts.q.to_vec()),
            Attribute::Exponent1(parts.dp.to_vec()),
            Attribute::Exponent2(parts.dq.to_vec()),
            Attribute::Coefficient(parts.qi.to_vec()),
        ]);
        self.0.make(object, move |session| {
            let private = session.create_object(&template)?;
            if let Err(e) = checked(session, private) {
                session.destroy_object(private)?;
                return Err(e);
            }
            Ok(())
        })?;
        Ok(NewPrivateKey {
            n,
            e,
            material: material(object),
        })
    }

    fn open(&self, material: &[u8]) -> Result<Arc<dyn PrivateKey>, VaultError> {
        Ok(Arc::new(HsmKey {
            shared: self.0.clone(),
            object: self.object(material)?,
        }))
    }

    fn delete(&self, material: &[u8]) -> Result<(), VaultError> {
        let object = self.object(material)?;
        self.0.with_session(move |session| destroy(session, object))
    }
}

impl HsmKeys {
    fn object(&self, material: &[u8]) -> Result<Uuid, VaultError> {
        material
            .strip_prefix(MATERIAL)
            .and_then(|id| Uuid::from_slice(id).ok())
            .ok_or_else(|| {
                HsmError::Senseless("object: the vault's key was not made in a token")
                    .into_vault_error(&self.0.token)
            })
    }
}

/// A key in a token, found by its `CKA_ID` at every use: whoever has the token may have taken it out.
struct HsmKey {
    shared: Arc<Shared>,
    object: Uuid,
}

impl PrivateKey for HsmKey {
    fn decrypt(
        &self,
        algorithm: EncryptionAlgorithm,
        ciphertext: &[u8],
    ) -> Result<LockedBytes, VaultError> {
        let (shared, object) = (Arc::clone(&self.shared), self.object);
        let ciphertext = ciphertext.to_vec();
        self.shared.with_session(move |session| {
            let key = find(session, object)?.ok_or(HsmError::Gone)?;
            if !shared.raw_only.load(Ordering::Relaxed) {
                match session.decrypt(&oaep(algorithm), key, &ciphertext) {
                    // SoftHSM has OAEP with SHA-1 only, and says so in this way.
                    Err(Error::Pkcs11(RvError::ArgumentsBad, _)) => {
                        shared.raw_only.store(true, Ordering::Relaxed);
                    }
                    outcome => {
                        let plain = outcome.map(Zeroizing::new).map_err(decryption)?;
                        return locked(&plain);
                    }
                }
            }
            raw_decrypt(session, key, algorithm, &ciphertext)
        })
    }
}

/// Raw RSA (`CKM_RSA_X_509`), for a token that has no RSA-OAEP with the wanted hash.
fn raw_decrypt(
    session: &Session,
    key: ObjectHandle,
    algorithm: EncryptionAlgorithm,
    ciphertext: &[u8],
) -> Result<LockedBytes, HsmError> {
    let block = session
        .decrypt(&Mechanism::RsaX509, key, ciphertext)
        .map(Zeroizing::new)
        .map_err(decryption)?;
    // A token may leave zeros out that a block begins with.
    let mut whole = Zeroizing::new(vec![0; ciphertext.len().max(block.len())]);
    let zeros = whole.len() - block.len();
    whole[zeros..].copy_from_slice(&block);
    let hash = match algorithm {
        EncryptionAlgorithm::RsaOaep256 => &SHA256,
        EncryptionAlgorithm::RsaOaep => &SHA1_FOR_LEGACY_USE_ONLY,
    };
    super::oaep::decode(&whole, hash)?.ok_or(HsmError::Ciphertext)
}

fn oaep(algorithm: EncryptionAlgorithm) -> Mechanism<'static> {
    let (hash, mgf) = match algorithm {
        EncryptionAlgorithm::RsaOaep256 => (MechanismType::SHA256, PkcsMgfType::MGF1_SHA256),
        EncryptionAlgorithm::RsaOaep => (MechanismType::SHA1, PkcsMgfType::MGF1_SHA1),
    };
    Mechanism::RsaPkcsOaep(PkcsOaepParams::new(hash, mgf, PkcsOaepSource::empty()))
}

fn locked(plain: &[u8]) -> Result<LockedBytes, HsmError> {
    let mut secret = LockedBytes::zeroed(plain.len())?;
    secret.as_mut_slice().copy_from_slice(plain);
    Ok(secret)
}

fn material(object: Uuid) -> Zeroizing<Vec<u8>> {
    Zeroizing::new([MATERIAL, object.as_bytes()].concat())
}

/// A private key that only decrypts, and that nobody gets out of the token.
fn private_template(id: &PrivateKeyId<'_>, object: Uuid) -> Vec<Attribute> {
    let label = format!("sealdisk {} {} {}", id.vault, id.key, id.version);
    vec![
        Attribute::Class(ObjectClass::PRIVATE_KEY),
        Attribute::KeyType(ObjectKeyType::RSA),
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Decrypt(true),
        Attribute::Unwrap(false),
        Attribute::Sign(false),
        Attribute::Id(object.as_bytes().to_vec()),
        Attribute::Label(label.into_bytes()),
    ]
}

fn find(session: &Session, object: Uuid) -> Result<Option<ObjectHandle>, HsmError> {
    let template = [
        Attribute::Class(ObjectClass::PRIVATE_KEY),
        Attribute::Id(object.as_bytes().to_vec()),
    ];
    Ok(session.find_objects(&template)?.first().copied())
}

/// Destroys an object. One that is gone already is no error.
fn destroy(session: &Session, object: Uuid) -> Result<(), HsmError> {
    match find(session, object)? {
        Some(handle) => session.destroy_object(handle).map_err(HsmError::from),
        None => Ok(()),
    }
}

/// Holds the token to what it was asked for.
fn checked(session: &Session, private: ObjectHandle) -> Result<(), HsmError> {
    let wanted = [AttributeType::Sensitive, AttributeType::Extractable];
    let found = session.get_attributes(private, &wanted)?;
    let safe = found.contains(&Attribute::Sensitive(true))
        && found.contains(&Attribute::Extractable(false));
    match safe {
        true => Ok(()),
        false => Err(HsmError::Extractable),
    }
}

/// Modulus and public exponent.
fn public_parts(session: &Session, public: ObjectHandle) -> Result<(Vec<u8>, Vec<u8>), HsmError> {
    let wanted = [AttributeType::Modulus, AttributeType::PublicExponent];
    let (mut n, mut e) = (None, None);
    for attribute in session.get_attributes(public, &wanted)? {
        match attribute {
            Attribute::Modulus(bytes) => n = Some(bytes),
            Attribute::PublicExponent(bytes) => e = Some(bytes),
            _ => {}
        }
    }
    Ok((
        n.ok_or(HsmError::Senseless("modulus"))?,
        e.ok_or(HsmError::Senseless("public exponent"))?,
    ))
}
