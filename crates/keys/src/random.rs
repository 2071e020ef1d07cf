//! Where keys, nonces and secrets come from, and which module makes and uses them.

use super::KeyError;

/// Whether this program was built with the feature `fips`: what protects a secret is the validated
/// module's then, or refused.
pub const FIPS: bool = cfg!(feature = "fips");

/// Which cryptographic library does AES, RSA, TLS and random numbers, with its release, and the version of
/// the validated module where the program was built with one.
pub fn crypto_module() -> String {
    let release = aws_lc_rs::awslc_version();
    match aws_lc_rs::fips_version() {
        Some(version) => format!("AWS-LC FIPS module, version {version}, release {release}"),
        None => format!("AWS-LC, release {release}"),
    }
}

/// Looks whether the library is the validated module where the program was built with `fips`. It is not when
/// another one was linked in its place.
///
/// # Errors
/// [`KeyError::Module`].
pub fn require_module() -> Result<(), KeyError> {
    match aws_lc_rs::try_fips_mode() {
        Err(_) if FIPS => Err(KeyError::Module),
        _ => Ok(()),
    }
}

/// Fills `bytes` by AWS-LC's deterministic random bit generator (SP 800-90A), which is seeded by the
/// operating system. With the feature `fips` it is the one of the validated module.
///
/// # Errors
/// [`KeyError::Random`].
pub fn fill_random(bytes: &mut [u8]) -> Result<(), KeyError> {
    aws_lc_rs::rand::fill(bytes).map_err(|_| KeyError::Random)
}

/// Whether the validated module itself says that an approved service did `work`: its service indicator
/// (FIPS 140-3, ISO/IEC 24759 AS02.24) counts them for each thread.
#[cfg(feature = "fips")]
pub fn is_approved<T>(work: impl FnOnce() -> T) -> bool {
    use aws_lc_fips_sys::{FIPS_service_indicator_after_call, FIPS_service_indicator_before_call};
    // SAFETY: it reads a counter of this thread.
    let before = unsafe { FIPS_service_indicator_before_call() };
    let _done = work();
    // SAFETY: as above.
    before != unsafe { FIPS_service_indicator_after_call() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_validated_module_is_named_where_there_is_one() {
        assert_eq!(crypto_module().contains("FIPS"), FIPS);
        assert_eq!(aws_lc_rs::try_fips_mode().is_ok(), FIPS);
        require_module().unwrap();
    }

    #[test]
    #[cfg(feature = "fips")]
    fn the_validated_module_approves() {
        assert!(is_approved(|| fill_random(&mut [0; 32]).unwrap()));
        assert!(is_approved(|| crate::sha256(b"")));
        assert!(!is_approved(|| ()), "nothing was done");
    }

    #[test]
    fn two_fills_differ() {
        let mut bytes = [[0; 32]; 2];
        fill_random(&mut bytes[0]).unwrap();
        fill_random(&mut bytes[1]).unwrap();
        assert_ne!(bytes[0], bytes[1]);
    }
}
