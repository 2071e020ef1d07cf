//! Single blocks of AES-256 under key 2: by RustCrypto's `aes`, whose instructions are inlined, or, with
//! the feature `fips`, by the validated module, outside of which no cipher may be then.

#[cfg(not(feature = "fips"))]
pub(super) use rust_crypto::BlockKey;
#[cfg(feature = "fips")]
pub(super) use validated::BlockKey;

#[cfg(not(feature = "fips"))]
mod rust_crypto {
    use aes::Aes256;
    use aes::cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
    use zeroize::Zeroize;

    use keys::{Dek, DekHalf, Locked};

    use super::super::CipherError;

    /// One half of a DEK, expanded, in locked memory.
    pub(in super::super) struct BlockKey(Locked<Aes256>);

    impl BlockKey {
        /// Expands one half of `dek` and wipes the stack that it passed over.
        pub(in super::super) fn new(dek: &Dek, half: DekHalf) -> Result<Self, CipherError> {
            let mut key = [0; 32];
            key.copy_from_slice(dek.half(half));
            let expanded = Locked::new_with(|| Aes256::new((&key).into()));
            key.zeroize();
            Ok(Self(expanded?))
        }

        pub(in super::super) fn encrypt(&self, block: [u8; 16]) -> [u8; 16] {
            let mut value = Array(block);
            self.0.encrypt_block(&mut value);
            value.0
        }

        pub(in super::super) fn decrypt(&self, block: [u8; 16]) -> [u8; 16] {
            let mut value = Array(block);
            self.0.decrypt_block(&mut value);
            value.0
        }
    }
}

#[cfg(feature = "fips")]
mod validated {
    use aws_lc_fips_sys::{
        AES_KEY, AES_decrypt, AES_encrypt, AES_set_decrypt_key, AES_set_encrypt_key,
    };
    use zeroize::Zeroize;

    use keys::{Dek, DekHalf, Locked};

    use super::super::CipherError;

    /// The key schedules of both directions. They hold the key, so they are wiped when dropped.
    struct Schedules {
        encrypt: AES_KEY,
        decrypt: AES_KEY,
    }

    impl Schedules {
        /// With `None` for a key that the module refuses.
        fn expand(key: &[u8]) -> Option<Self> {
            let blank = AES_KEY {
                rd_key: [0; 60],
                rounds: 0,
            };
            let mut this = Self {
                encrypt: blank,
                decrypt: blank,
            };
            let bits = u32::try_from(key.len() * 8).ok()?;
            // SAFETY: the module reads `bits` bits of the key and writes the schedule, which is ours.
            let encrypt = unsafe { AES_set_encrypt_key(key.as_ptr(), bits, &mut this.encrypt) };
            // SAFETY: as above.
            let decrypt = unsafe { AES_set_decrypt_key(key.as_ptr(), bits, &mut this.decrypt) };
            (encrypt == 0 && decrypt == 0).then_some(this)
        }
    }

    impl Drop for Schedules {
        fn drop(&mut self) {
            self.encrypt.rd_key.zeroize();
            self.decrypt.rd_key.zeroize();
        }
    }

    /// One half of a DEK, expanded, in locked memory.
    pub(in super::super) struct BlockKey(Locked<Option<Schedules>>);

    impl BlockKey {
        /// Expands one half of `dek` and wipes the stack that it passed over.
        pub(in super::super) fn new(dek: &Dek, half: DekHalf) -> Result<Self, CipherError> {
            let expanded = Locked::new_with(|| Schedules::expand(dek.half(half)))?;
            match *expanded {
                Some(_) => Ok(Self(expanded)),
                None => Err(CipherError::AwsLc),
            }
        }

        pub(in super::super) fn encrypt(&self, block: [u8; 16]) -> [u8; 16] {
            let mut out = [0; 16];
            if let Some(schedules) = &*self.0 {
                // SAFETY: both ranges have 16 bytes, and the schedule is a whole one.
                unsafe { AES_encrypt(block.as_ptr(), out.as_mut_ptr(), &schedules.encrypt) };
            }
            out
        }

        pub(in super::super) fn decrypt(&self, block: [u8; 16]) -> [u8; 16] {
            let mut out = [0; 16];
            if let Some(schedules) = &*self.0 {
                // SAFETY: both ranges have 16 bytes, and the schedule is a whole one.
                unsafe { AES_decrypt(block.as_ptr(), out.as_mut_ptr(), &schedules.decrypt) };
            }
            out
        }
    }
}
