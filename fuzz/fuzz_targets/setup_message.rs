//! What the data plane process reads from its control socket: a setup, descriptors and DEKs.
#![no_main]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::LazyLock;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use protocol::{Discard, Limits, OnFull, Setup, Stack, StackLayer, receive_setup, send_setup};
use sealdisk_fuzz::{Edit, edited};
use uuid::Uuid;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// More than a socket's buffer may not take, and nobody reads meanwhile.
const MOST_BYTES: usize = 64 * 1024;

static SOME_FILE: LazyLock<File> = LazyLock::new(|| tempfile::tempfile().unwrap());

#[derive(Debug, Arbitrary)]
enum Input {
    Raw(Vec<u8>),
    Edited {
        layers: u8,
        edits: Vec<Edit>,
        claimed_len: Option<u32>,
        files: u8,
        keys: Vec<u8>,
    },
}

fn setup(layers: u8) -> Setup {
    let layer = |id: u8| StackLayer {
        id: Uuid::from_u128(id.into()),
        origin: Uuid::from_u128(1),
        size: 4096,
        data_unit: 512,
    };
    Setup {
        stack: Stack {
            disk: Uuid::from_u128(1),
            layers: (0..layers).map(layer).collect(),
        },
        read_only: false,
        discard: Discard::Punch,
        on_full: OnFull::Pause,
        logical_sector_size: 512,
        num_queues: 2,
        queue_size: 64,
        memory: 1 << 20,
        huge_pages: false,
        poll_us: 32,
        limits: Limits::default(),
        serial: "disk".into(),
        write_through: false,
        listening: true,
    }
}

impl Input {
    /// The bytes, and how many descriptors come with them.
    fn message(self) -> (Vec<u8>, usize) {
        match self {
            Self::Raw(bytes) => (bytes, 3),
            Self::Edited {
                layers,
                edits,
                claimed_len,
                files,
                keys,
            } => {
                let json = serde_json::to_vec(&setup(layers % 6)).unwrap();
                let json = edited(&json, &edits);
                let len = claimed_len.unwrap_or(json.len() as u32);
                (
                    [&len.to_le_bytes(), json.as_slice(), &keys].concat(),
                    usize::from(files % 16),
                )
            }
        }
    }
}

/// The other end of a socket into which all of it was sent.
fn sent(bytes: &[u8], files: usize) -> UnixStream {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let numbers: Vec<RawFd> = vec![SOME_FILE.as_raw_fd(); files];
    let first = bytes.len().min(4);
    let sent = ours.send_with_fds(&[&bytes[..first]], &numbers).unwrap();
    ours.write_all(&bytes[sent..]).unwrap();
    theirs
}

fuzz_target!(|input: Input| {
    let (bytes, files) = input.message();
    if bytes.is_empty() || bytes.len() > MOST_BYTES {
        return;
    }
    let mut theirs = sent(&bytes, files);
    let Ok((setup, files, deks)) = receive_setup(&mut theirs) else {
        return;
    };
    let mut rest = Vec::new();
    theirs.read_to_end(&mut rest).unwrap();
    let layers = setup.stack.layers.len();
    let keys = &bytes[bytes.len() - rest.len() - 64 * layers..bytes.len() - rest.len()];
    for (index, key) in keys.chunks(64).enumerate() {
        let dek = deks.get(index).unwrap();
        assert_eq!(dek.expose()[..], *key);
        assert!(key[..32] != key[32..], "halves that are alike");
    }
    assert_eq!(files.files.layers(), layers);
    for layer in &setup.stack.layers {
        if let Ok(geometry) = layer.geometry()
            && geometry.check().is_ok()
        {
            assert!(geometry.data_len() >= layer.size);
        }
    }
    let (mut ours, mut theirs) = UnixStream::pair().unwrap();
    send_setup(&mut ours, &setup, &files, &deks).unwrap();
    let (same, _, _) = receive_setup(&mut theirs).unwrap();
    assert_eq!(same, setup);
});
