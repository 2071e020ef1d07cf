//! What the data plane process reads from its control socket.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use sealdisk::frontend::{receive_setup, send_setup};
use sealdisk_fuzz::{Edit, edited};

const VALID: &[u8] = br#"{"disk":"00000000-0000-0000-0000-000000000001","layer":"00000000-0000-0000-0000-000000000002","size":4096,"data_unit":512,"read_only":false,"num_queues":2,"queue_size":64,"serial":"disk","listening":true}"#;

#[derive(Debug, Arbitrary)]
enum Input {
    Raw(Vec<u8>),
    Edited {
        edits: Vec<Edit>,
        claimed_len: Option<u32>,
        key: Vec<u8>,
    },
}

impl Input {
    fn bytes(self) -> Vec<u8> {
        match self {
            Self::Raw(bytes) => bytes,
            Self::Edited {
                edits,
                claimed_len,
                key,
            } => {
                let json = edited(VALID, &edits);
                let len = claimed_len.unwrap_or(json.len() as u32);
                [&len.to_le_bytes(), json.as_slice(), &key].concat()
            }
        }
    }
}

fuzz_target!(|input: Input| {
    let bytes = input.bytes();
    let mut rest = bytes.as_slice();
    let Ok((setup, dek)) = receive_setup(&mut rest) else {
        return;
    };
    assert!(dek.expose()[..32] != dek.expose()[32..]);
    let consumed = bytes.len() - rest.len();
    assert_eq!(dek.expose(), &bytes[consumed - 64..consumed]);
    if let Ok(geometry) = setup.geometry()
        && geometry.check().is_ok()
    {
        assert!(geometry.data_len() >= setup.size);
    }
    let mut again = Vec::new();
    send_setup(&mut again, &setup, &dek).unwrap();
    let (same, _) = receive_setup(&mut again.as_slice()).unwrap();
    assert_eq!(same, setup);
});
