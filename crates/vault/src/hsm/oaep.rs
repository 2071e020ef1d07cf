//! Taking OAEP padding off a block that a token has decrypted.
//!
//! Some tokens do RSA but not RSA-OAEP with SHA-256: they give back the padded block, and no library
//! in use here takes a block apart that it has not decrypted itself. This does, in time that depends
//! on the block's length and on success alone.

use aws_lc_rs::digest::{self, Algorithm};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};
use zeroize::Zeroizing;

use keys::{KeyError, LockedBytes};

/// EME-OAEP decoding (RFC 8017 §7.1.2, step 3) of `block`, which is as long as the modulus, with an
/// empty label. `None` for whatever is wrong with it: which of the checks failed must not show
/// (the note in step 3g).
///
/// # Errors
/// [`KeyError::Lock`].
pub(super) fn decode(
    block: &[u8],
    hash: &'static Algorithm,
) -> Result<Option<LockedBytes>, KeyError> {
    let h = hash.output_len();
    if block.len() < 2 * h + 2 {
        return Ok(None);
    }
    let (first, masked) = block.split_at(1);
    let (masked_seed, masked_db) = masked.split_at(h);
    let mut seed = Zeroizing::new(masked_seed.to_vec());
    unmask(&mut seed, masked_db, hash);
    let mut db = LockedBytes::zeroed(masked_db.len())?;
    db.as_mut_slice().copy_from_slice(masked_db);
    unmask(db.as_mut_slice(), &seed, hash);

    let (label_hash, rest) = db.as_slice().split_at(h);
    let mut good = first[0].ct_eq(&0) & label_hash.ct_eq(digest::digest(hash, b"").as_ref());
    // Zeros, a one, and the message: every byte is looked at, wherever the one is.
    let mut searching = Choice::from(1);
    let mut start = 0u64;
    for (at, byte) in (0u64..).zip(rest) {
        let is_one = byte.ct_eq(&1);
        let is_zero = byte.ct_eq(&0);
        good &= !searching | is_zero | is_one;
        start.conditional_assign(&(at + 1), searching & is_one);
        searching &= !is_one;
    }
    good &= !searching;
    if !bool::from(good) {
        return Ok(None);
    }
    // From here on the padding is known to be right, and its length is no secret.
    let message = &rest[usize::try_from(start).unwrap_or(rest.len())..];
    let mut secret = LockedBytes::zeroed(message.len())?;
    secret.as_mut_slice().copy_from_slice(message);
    Ok(Some(secret))
}

/// Takes the mask MGF1(`seed`) (RFC 8017 §B.2.1) off `data`.
fn unmask(data: &mut [u8], seed: &[u8], hash: &'static Algorithm) {
    for (counter, chunk) in (0u32..).zip(data.chunks_mut(hash.output_len())) {
        let mut context = digest::Context::new(hash);
        context.update(seed);
        context.update(&counter.to_be_bytes());
        for (byte, mask) in chunk.iter_mut().zip(context.finish().as_ref()) {
            *byte ^= mask;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256};
    use proptest::prelude::*;

    fn taken(block: &[u8], hash: &'static Algorithm) -> Option<Vec<u8>> {
        decode(block, hash).unwrap().map(|m| m.as_slice().to_vec())
    }

    /// EME-OAEP encoding, step 2 of RFC 8017 §7.1.1. That other libraries pad so is seen in
    /// `tests/vaults/hsm`, where they wrap and a token unwraps.
    fn pad(message: &[u8], seed: [u8; 32], k: usize) -> Vec<u8> {
        let mut db = digest::digest(&SHA256, b"").as_ref().to_vec();
        db.resize(k - 33 - message.len() - 1, 0);
        db.push(1);
        db.extend(message);
        unmask(&mut db, &seed, &SHA256);
        let mut masked_seed = seed.to_vec();
        unmask(&mut masked_seed, &db, &SHA256);
        [&[0][..], &masked_seed, &db].concat()
    }

    proptest! {
        #[test]
        fn a_padded_block_gives_its_message_and_a_changed_one_nothing(
            message in prop::collection::vec(any::<u8>(), 0..=190),
            seed: [u8; 32],
            bit in 0usize..256 * 8,
        ) {
            let block = pad(&message, seed, 256);
            prop_assert_eq!(taken(&block, &SHA256), Some(message));
            prop_assert_eq!(taken(&block, &SHA1_FOR_LEGACY_USE_ONLY), None);
            let mut changed = block.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(taken(&changed, &SHA256), None);
        }

        #[test]
        fn noise_gives_nothing(block in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(taken(&block, &SHA256), None);
        }
    }

    #[test]
    fn wrong_padding_inside_is_found() {
        let seed = [9; 32];
        let build = |db_tail: &[u8]| {
            let mut db = digest::digest(&SHA256, b"").as_ref().to_vec();
            db.extend(db_tail);
            unmask(&mut db, &seed, &SHA256);
            let mut masked_seed = seed.to_vec();
            unmask(&mut masked_seed, &db, &SHA256);
            [&[0][..], &masked_seed, &db].concat()
        };
        assert_eq!(taken(&build(&[0, 0, 1, 7]), &SHA256), Some(vec![7]));
        assert_eq!(
            taken(&build(&[0, 2, 1, 7]), &SHA256),
            None,
            "a byte before the one"
        );
        assert_eq!(taken(&build(&[0, 0, 0, 0]), &SHA256), None, "no one at all");
        assert_eq!(taken(&build(&[1, 2, 0, 1]), &SHA256), Some(vec![2, 0, 1]));
    }
}
