//! Where keys, nonces and secrets come from.

use super::KeyError;

/// Which cryptographic library does AES, RSA, TLS and random numbers, with the version of the validated
/// module where the program was built with one.
pub fn crypto_module() -> String {
    match aws_lc_rs::fips_version() {
        Some(version) => format!("AWS-LC FIPS module, version {version}"),
        None => "AWS-LC".into(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_validated_module_is_named_where_there_is_one() {
        assert_eq!(crypto_module().contains("FIPS"), cfg!(feature = "fips"));
    }

    #[test]
    fn two_fills_differ() {
        let mut bytes = [[0; 32]; 2];
        fill_random(&mut bytes[0]).unwrap();
        fill_random(&mut bytes[1]).unwrap();
        assert_ne!(bytes[0], bytes[1]);
    }
}
