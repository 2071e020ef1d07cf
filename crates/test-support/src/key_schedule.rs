//! The AES-256 key schedule (FIPS 197 §5.2), to look for in memory.

/// Multiplication in GF(2^8) modulo x^8 + x^4 + x^3 + x + 1 (§4.2).
fn multiply(mut a: u8, mut b: u8) -> u8 {
    let mut product = 0;
    while b != 0 {
        if b & 1 != 0 {
            product ^= a;
        }
        a = (a << 1) ^ if a & 0x80 != 0 { 0x1b } else { 0 };
        b >>= 1;
    }
    product
}

/// The S-box (§5.1.1): the inverse, which is the 254th power, and an affine map.
fn sub_byte(byte: u8) -> u8 {
    let inverse = (0..254).fold(1, |power, _| multiply(power, byte));
    let rotated = |n| inverse.rotate_left(n);
    inverse ^ rotated(1) ^ rotated(2) ^ rotated(3) ^ rotated(4) ^ 0x63
}

/// The 15 round keys of a 32-byte key.
pub fn round_keys(key: &[u8]) -> Vec<[u8; 16]> {
    let mut words: Vec<[u8; 4]> = key.as_chunks::<4>().0.to_vec();
    let mut round_constant = 1;
    for i in 8..60 {
        let mut word = words[i - 1];
        if i % 8 == 0 {
            word.rotate_left(1);
            word = word.map(sub_byte);
            word[0] ^= round_constant;
            round_constant = multiply(round_constant, 2);
        } else if i % 8 == 4 {
            word = word.map(sub_byte);
        }
        let before = words[i - 8];
        words.push(std::array::from_fn(|n| word[n] ^ before[n]));
    }
    let (keys, _) = words.as_flattened().as_chunks::<16>();
    keys.to_vec()
}

/// A round key as the equivalent inverse cipher has it (§5.3.5): InvMixColumns of it.
pub fn for_decryption(round_key: &[u8; 16]) -> [u8; 16] {
    let factors = [14, 11, 13, 9];
    std::array::from_fn(|at| {
        let (column, row) = (at / 4 * 4, at % 4);
        (0..4).fold(0, |sum, n| {
            sum ^ multiply(round_key[column + (row + n) % 4], factors[n])
        })
    })
}

/// FIPS 197, appendix C.3.
#[test]
fn it_is_the_standards() {
    let key: Vec<u8> = (0..32).collect();
    let keys = round_keys(&key);
    assert_eq!(keys.len(), 15);
    assert_eq!(keys[2][..4], [0xa5, 0x73, 0xc2, 0x9f]);
    assert_eq!(keys[14][12..], [0x6d, 0x68, 0xde, 0x36][..]);
    let inverse = for_decryption(&keys[13]);
    assert_eq!(inverse[..4], [0x34, 0xf1, 0xd1, 0xff]);
}
