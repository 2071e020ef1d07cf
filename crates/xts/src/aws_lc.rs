//! The fast engine: AWS-LC's `EVP_aes_256_xts`, with VAES and AVX-512 where the CPU has them.
//!
//! It reads from one place and writes to another, so that the cipher is the copy. A context holds
//! the expanded key of one direction and is made once; a run only sets the tweak anew.

use std::ptr::{self, NonNull};

#[cfg(feature = "fips")]
use aws_lc_fips_sys as aws_lc;
#[cfg(not(feature = "fips"))]
use aws_lc_sys as aws_lc;

use aws_lc::{
    EVP_CIPHER_CTX, EVP_CIPHER_CTX_free, EVP_CIPHER_CTX_new, EVP_Cipher, EVP_CipherInit_ex,
    EVP_aes_256_xts,
};

use keys::{Dek, PageLock};

use super::CipherError;
use super::engine::{Direction, XtsEngine};
use super::tweak::TweakValue;

/// Bytes of the two expanded keys (`AES_KEY`, 244 bytes each) that AWS-LC's XTS state starts with.
const KEYS_LEN: usize = 2 * 244;

/// One direction's context.
struct Context {
    ctx: NonNull<EVP_CIPHER_CTX>,
    /// On the state that `ctx` has on the heap; let go after the context is freed.
    lock: Option<PageLock>,
}

// SAFETY: a context is only used through `&mut`, and AWS-LC ties it to no thread.
unsafe impl Send for Context {}

impl Context {
    fn new(dek: &Dek, direction: Direction) -> Result<Self, CipherError> {
        // SAFETY: allocates, or returns null.
        let ctx = NonNull::new(unsafe { EVP_CIPHER_CTX_new() }).ok_or(CipherError::AwsLc)?;
        let mut this = Self { ctx, lock: None };
        let encrypt = i32::from(direction == Direction::Encrypt);
        // SAFETY: `ctx` is a fresh context; the cipher is a static of the library. Without key and
        // tweak this only allocates the state.
        let allocated = unsafe {
            let cipher = EVP_aes_256_xts();
            EVP_CipherInit_ex(
                ctx.as_ptr(),
                cipher,
                ptr::null_mut(),
                ptr::null(),
                ptr::null(),
                encrypt,
            )
        };
        if allocated != 1 {
            return Err(CipherError::AwsLc);
        }
        // SAFETY: `cipher_data` is the state, allocated just now; reading the pointer is no more.
        let state = NonNull::new(unsafe { (*ctx.as_ptr()).cipher_data }.cast::<u8>());
        // The library puts the expanded key on the heap: its pages are locked before it comes there.
        this.lock = Some(PageLock::new(state.ok_or(CipherError::AwsLc)?, KEYS_LEN)?);
        let key = dek.expose();
        // SAFETY: the key has the 64 bytes that AES-256-XTS reads, key 1 first.
        let keyed = unsafe {
            let key = key.as_ptr();
            EVP_CipherInit_ex(
                ctx.as_ptr(),
                ptr::null(),
                ptr::null_mut(),
                key,
                ptr::null(),
                -1,
            )
        };
        if keyed == 1 {
            Ok(this)
        } else {
            Err(CipherError::AwsLc)
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the context came from `EVP_CIPHER_CTX_new`; freeing it also wipes the state.
        unsafe { EVP_CIPHER_CTX_free(self.ctx.as_ptr()) };
    }
}

/// AES-256-XTS by AWS-LC.
pub struct AwsLcEngine {
    encrypt: Context,
    decrypt: Context,
}

impl AwsLcEngine {
    /// Expands `dek` for this engine.
    ///
    /// # Errors
    /// [`CipherError::Key`] when memory cannot be locked, [`CipherError::AwsLc`] when there is none.
    pub fn new(dek: &Dek) -> Result<Self, CipherError> {
        Ok(Self {
            encrypt: Context::new(dek, Direction::Encrypt)?,
            decrypt: Context::new(dek, Direction::Decrypt)?,
        })
    }
}

impl XtsEngine for AwsLcEngine {
    fn name(&self) -> &'static str {
        if cfg!(feature = "fips") {
            "AWS-LC (FIPS module)"
        } else {
            "AWS-LC"
        }
    }

    unsafe fn run(
        &mut self,
        direction: Direction,
        tweak: &TweakValue,
        src: *const u8,
        dst: *mut u8,
        len: usize,
    ) {
        let ctx = match direction {
            Direction::Encrypt => self.encrypt.ctx.as_ptr(),
            Direction::Decrypt => self.decrypt.ctx.as_ptr(),
        };
        // SAFETY: the context has a key; without a new one this only sets the 16 bytes of the tweak.
        let set = unsafe {
            let iv = tweak.0.as_ptr();
            EVP_CipherInit_ex(ctx, ptr::null(), ptr::null_mut(), ptr::null(), iv, -1)
        };
        // SAFETY: the caller promises `src` and `dst` for `len` bytes, apart from each other.
        let done = unsafe { EVP_Cipher(ctx, dst, src, len) };
        // Panics: never. Both only fail for a missing key or a length below 16 or beyond 2^20 blocks, none of which
        // can be. Going on would leave the destination as it was, so it is not even thought of.
        assert!(set == 1 && done >= 0, "AWS-LC refused a run of {len} bytes");
    }
}
