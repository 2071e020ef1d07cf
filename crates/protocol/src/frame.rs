//! Frames: how a message travels.
//!
//! A frame is the length of a message in [`LEN_DIGITS`] decimal digits, a space, the message as JSON, and a
//! newline. The length lets the data plane read a command whole and not one byte of the keys that may
//! follow it. The newline lets the attach process find the next frame after anything that a data plane
//! says which a guest has taken over. No message is longer than [`MAX_MESSAGE_LEN`].

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Line, ProtocolError};

/// Bytes of a message at most, in both directions. The longest by far are a disk of 32 layers (5 KiB) and
/// a guest's memory of 512 regions (30 KiB).
pub const MAX_MESSAGE_LEN: usize = 64 * 1024;
/// Digits of the length.
const LEN_DIGITS: usize = 5;
/// Bytes of a frame before the message.
pub(crate) const HEAD_LEN: usize = LEN_DIGITS + 1;
/// Bytes of the longest frame.
pub(crate) const MAX_FRAME_LEN: usize = HEAD_LEN + MAX_MESSAGE_LEN + 1;

/// The frame of a message.
///
/// # Errors
/// [`ProtocolError::TooLong`].
pub fn encode(message: &impl Serialize) -> Result<Vec<u8>, ProtocolError> {
    let json = serde_json::to_vec(message).map_err(|e| ProtocolError::malformed(&e))?;
    if json.len() > MAX_MESSAGE_LEN {
        return Err(ProtocolError::TooLong(json.len()));
    }
    let mut frame = format!("{:0LEN_DIGITS$} ", json.len()).into_bytes();
    frame.extend(json);
    frame.push(b'\n');
    Ok(frame)
}

/// The message of a whole frame.
///
/// # Errors
/// [`ProtocolError::TooLong`], and [`ProtocolError::Malformed`], which names what is not known.
pub fn decode<T: DeserializeOwned>(frame: &[u8]) -> Result<T, ProtocolError> {
    let Some((head, rest)) = frame.split_first_chunk() else {
        return Err(ProtocolError::NoFrame);
    };
    let len = message_len(head)?;
    match rest.split_last() {
        Some((b'\n', json)) if json.len() == len => {
            serde_json::from_slice(json).map_err(|e| ProtocolError::malformed(&e))
        }
        _ => Err(ProtocolError::NoFrame),
    }
}

/// The length that the beginning of a frame says.
///
/// # Errors
/// [`ProtocolError::NoFrame`], which says nothing of the bytes: they can be a key's. And
/// [`ProtocolError::TooLong`].
pub(crate) fn message_len(head: &[u8; HEAD_LEN]) -> Result<usize, ProtocolError> {
    let [digits @ .., b' '] = head else {
        return Err(ProtocolError::NoFrame);
    };
    let mut len = 0;
    for digit in digits {
        match digit {
            b'0'..=b'9' => len = 10 * len + usize::from(digit - b'0'),
            _ => return Err(ProtocolError::NoFrame),
        }
    }
    match len <= MAX_MESSAGE_LEN {
        true => Ok(len),
        false => Err(ProtocolError::TooLong(len)),
    }
}

impl ProtocolError {
    pub(crate) fn malformed(error: &serde_json::Error) -> Self {
        Self::Malformed(Line::from(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_frame_is_one_line_of_known_length() {
        let frame = encode(&"two\nlines").unwrap();
        assert_eq!(frame, b"00012 \"two\\nlines\"\n");
        assert_eq!(decode::<String>(&frame).unwrap(), "two\nlines");
    }

    #[test]
    fn a_frame_that_is_cut_off_is_none() {
        let frame = encode(&"text").unwrap();
        for len in 0..frame.len() {
            let cut = decode::<String>(&frame[..len]);
            assert!(matches!(cut, Err(ProtocolError::NoFrame)), "{len}");
        }
        for other in [
            "00006 \"text\" ",
            "0006 \"text\"\n",
            "00005 \"text\"\n",
            "+0006 \"text\"\n",
        ] {
            let other = decode::<String>(other.as_bytes());
            assert!(matches!(other, Err(ProtocolError::NoFrame)));
        }
    }

    #[test]
    fn a_frame_that_is_too_long_is_neither_made_nor_taken() {
        let text = "x".repeat(MAX_MESSAGE_LEN - 2);
        let frame = encode(&text).unwrap();
        assert_eq!(frame.len(), MAX_FRAME_LEN);
        assert_eq!(decode::<String>(&frame).unwrap(), text);
        let text = text + "x";
        assert!(matches!(encode(&text), Err(ProtocolError::TooLong(65537))));
        let frame = format!("65537 \"{text}\"\n");
        let taken = decode::<String>(frame.as_bytes());
        assert!(matches!(taken, Err(ProtocolError::TooLong(65537))));
    }

    proptest! {
        #[test]
        fn any_text_is_one_line_and_comes_back(text in ".{0,200}") {
            let frame = encode(&text).unwrap();
            prop_assert_eq!(frame.iter().filter(|b| **b == b'\n').count(), 1);
            prop_assert_eq!(decode::<String>(&frame).unwrap(), text);
        }

        #[test]
        fn any_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = decode::<crate::Request>(&bytes);
            let _ = decode::<crate::Message>(&bytes);
        }
    }
}
