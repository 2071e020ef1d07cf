//! Other libraries, which this program neither has nor needs: those that are installed are loaded by name.

use std::ffi::{c_int, c_uint, c_void};
use std::ptr;

use keys::Dek;
use libloading::Library;
use xts::{Direction, TweakValue, XtsEngine};

/// How a library transforms a run: direction, tweak, source, destination, length.
type Run = Box<dyn FnMut(Direction, &TweakValue, *const u8, *mut u8, usize) + Send>;

/// An engine of another library.
struct Other {
    name: &'static str,
    run: Run,
}

impl XtsEngine for Other {
    fn name(&self) -> &'static str {
        self.name
    }

    unsafe fn run(
        &mut self,
        direction: Direction,
        tweak: &TweakValue,
        src: *const u8,
        dst: *mut u8,
        len: usize,
    ) {
        (self.run)(direction, tweak, src, dst, len);
    }
}

/// What of a library is on the heap; it is used by one thread at a time.
struct Handle(*mut c_void);

// SAFETY: none of these libraries ties a context to a thread.
unsafe impl Send for Handle {}

impl Handle {
    fn get(&self) -> *mut c_void {
        self.0
    }
}

/// A function of a library, of the type that its header gives it.
macro_rules! function {
    ($library:ident, $name:literal, $type:ty) => {
        // SAFETY: the type is that of the library's header, and the library is never unloaded.
        *unsafe { $library.get::<$type>($name) }.ok()?
    };
}

/// All that are there.
pub fn installed(dek: &Dek) -> Vec<Box<dyn XtsEngine>> {
    type Load = fn(&'static Library, &Dek) -> Option<Run>;
    let known: [(&str, &'static str, Load); 3] = [
        ("libcrypto.so.3", "OpenSSL", openssl),
        ("libgcrypt.so.20", "libgcrypt", libgcrypt),
        ("libnettle.so.8", "nettle", nettle),
    ];
    let mut all: Vec<Box<dyn XtsEngine>> = Vec::new();
    for (file, name, load) in known {
        // SAFETY: these libraries do nothing when they are loaded that could harm this program.
        let library = unsafe { Library::new(file) }.ok();
        let library: Option<&'static Library> =
            library.map(|library| &*Box::leak(Box::new(library)));
        match library.and_then(|library| load(library, dek)) {
            Some(run) => all.push(Box::new(Other { name, run })),
            None => println!("{name} is not installed ({file})"),
        }
    }
    all
}

fn openssl(library: &'static Library, dek: &Dek) -> Option<Run> {
    type Init = unsafe extern "C" fn(
        *mut c_void,
        *const c_void,
        *mut c_void,
        *const u8,
        *const u8,
        c_int,
    ) -> c_int;
    type Update = unsafe extern "C" fn(*mut c_void, *mut u8, *mut c_int, *const u8, c_int) -> c_int;
    let new = function!(
        library,
        b"EVP_CIPHER_CTX_new",
        unsafe extern "C" fn() -> *mut c_void
    );
    let cipher = function!(
        library,
        b"EVP_aes_256_xts",
        unsafe extern "C" fn() -> *const c_void
    );
    let init = function!(library, b"EVP_CipherInit_ex", Init);
    let update = function!(library, b"EVP_CipherUpdate", Update);
    let context = |encrypt: c_int| {
        // SAFETY: as its manual says; the key has the 64 bytes that the cipher reads.
        unsafe {
            let context = new();
            let key = dek.expose().as_ptr();
            assert_eq!(
                init(
                    context,
                    cipher(),
                    ptr::null_mut(),
                    key,
                    ptr::null(),
                    encrypt
                ),
                1
            );
            Handle(context)
        }
    };
    let (encrypt, decrypt) = (context(1), context(0));
    Some(Box::new(move |direction, tweak, src, dst, len| {
        let context = match direction {
            Direction::Encrypt => encrypt.get(),
            Direction::Decrypt => decrypt.get(),
        };
        let mut done = 0;
        // SAFETY: as its manual says; the caller has `len` bytes at both places.
        unsafe {
            let tweak = tweak.0.as_ptr();
            init(
                context,
                ptr::null(),
                ptr::null_mut(),
                ptr::null(),
                tweak,
                -1,
            );
            update(context, dst, &raw mut done, src, len as c_int);
        }
        assert_eq!(done as usize, len);
    }))
}

fn libgcrypt(library: &'static Library, dek: &Dek) -> Option<Run> {
    const AES256: c_int = 9;
    const XTS: c_int = 13;
    type Open = unsafe extern "C" fn(*mut *mut c_void, c_int, c_int, c_uint) -> c_uint;
    type Set = unsafe extern "C" fn(*mut c_void, *const u8, usize) -> c_uint;
    type Crypt = unsafe extern "C" fn(*mut c_void, *mut u8, usize, *const u8, usize) -> c_uint;
    let check = function!(
        library,
        b"gcry_check_version",
        unsafe extern "C" fn(*const u8) -> *const u8
    );
    let open = function!(library, b"gcry_cipher_open", Open);
    let set_key = function!(library, b"gcry_cipher_setkey", Set);
    let set_iv = function!(library, b"gcry_cipher_setiv", Set);
    let encrypt = function!(library, b"gcry_cipher_encrypt", Crypt);
    let decrypt = function!(library, b"gcry_cipher_decrypt", Crypt);
    let mut context = ptr::null_mut();
    // SAFETY: as its manual says; the key has 64 bytes.
    unsafe {
        check(ptr::null());
        let key = dek.expose();
        if open(&raw mut context, AES256, XTS, 0) != 0
            || set_key(context, key.as_ptr(), key.len()) != 0
        {
            return None;
        }
    }
    let context = Handle(context);
    Some(Box::new(move |direction, tweak, src, dst, len| {
        let crypt = match direction {
            Direction::Encrypt => encrypt,
            Direction::Decrypt => decrypt,
        };
        // SAFETY: as its manual says; the caller has `len` bytes at both places.
        let failed = unsafe {
            set_iv(context.get(), tweak.0.as_ptr(), 16) | crypt(context.get(), dst, len, src, len)
        };
        assert_eq!(failed, 0);
    }))
}

fn nettle(library: &'static Library, dek: &Dek) -> Option<Run> {
    /// `struct xts_aes256_key`: two schedules of 15 round keys.
    #[repr(C, align(16))]
    struct Key([u8; 2 * 240]);
    type SetKey = unsafe extern "C" fn(*mut Key, *const u8);
    type Crypt = unsafe extern "C" fn(*const Key, *const u8, usize, *mut u8, *const u8);
    let set_encrypt = function!(library, b"nettle_xts_aes256_set_encrypt_key", SetKey);
    let set_decrypt = function!(library, b"nettle_xts_aes256_set_decrypt_key", SetKey);
    let encrypt = function!(library, b"nettle_xts_aes256_encrypt_message", Crypt);
    let decrypt = function!(library, b"nettle_xts_aes256_decrypt_message", Crypt);
    let expanded = |set: SetKey| {
        let mut key = Box::new(Key([0; 2 * 240]));
        // SAFETY: the key has 64 bytes, and the place is as large as the library's type.
        unsafe { set(&raw mut *key, dek.expose().as_ptr()) };
        key
    };
    let (encrypt_key, decrypt_key) = (expanded(set_encrypt), expanded(set_decrypt));
    Some(Box::new(move |direction, tweak, src, dst, len| {
        let (crypt, key) = match direction {
            Direction::Encrypt => (encrypt, &encrypt_key),
            Direction::Decrypt => (decrypt, &decrypt_key),
        };
        // SAFETY: as its manual says; the caller has `len` bytes at both places.
        unsafe { crypt(&raw const **key, tweak.0.as_ptr(), len, dst, src) };
    }))
}
