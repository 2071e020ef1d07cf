//! What a qemu-nbd that a hostile image took over may answer.
#![no_main]

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use arbitrary::Arbitrary;
use disks::import::{Cancel, NbdClient};
use libfuzzer_sys::fuzz_target;

/// The answers wait in the socket, and so do the client's requests: neither may fill it.
const MAX_BYTES: usize = 4096;
const MAX_CALLS: usize = 16;

#[derive(Debug, Arbitrary)]
enum Chunk {
    Data {
        at: u16,
        bytes: Vec<u8>,
    },
    Hole {
        at: u16,
        length: u16,
    },
    Status {
        context: Option<u32>,
        extents: Vec<(u32, u32)>,
    },
    None,
    Error {
        number: u32,
        text: Vec<u8>,
    },
    Other {
        kind: u16,
        length: Option<u32>,
        body: Vec<u8>,
    },
}

#[derive(Debug, Arbitrary)]
enum Call {
    Read {
        offset: u16,
        length: u16,
        replies: Vec<(Chunk, bool)>,
    },
    NextData {
        offset: u16,
        replies: Vec<(Chunk, bool)>,
    },
}

#[derive(Debug, Arbitrary)]
enum Server {
    Raw(Vec<u8>),
    /// Negotiates as it should, then answers each call with the right cookie.
    Negotiated {
        size: u64,
        with_context: bool,
    },
}

#[derive(Debug, Arbitrary)]
struct Input {
    server: Server,
    calls: Vec<Call>,
}

fn option_reply(into: &mut Vec<u8>, option: u32, kind: u32, body: &[u8]) {
    into.extend(0x0003_e889_0455_65a9u64.to_be_bytes());
    for number in [option, kind, body.len() as u32] {
        into.extend(number.to_be_bytes());
    }
    into.extend(body);
}

fn negotiation(size: u64, with_context: bool) -> Vec<u8> {
    let mut bytes = b"NBDMAGICIHAVEOPT\0\x03".to_vec();
    option_reply(&mut bytes, 8, 1, &[]);
    if with_context {
        option_reply(&mut bytes, 10, 4, b"\0\0\0\x07base:allocation");
    }
    option_reply(&mut bytes, 10, 1, &[]);
    let info = [&[0, 0], size.to_be_bytes().as_slice(), &[0, 1]].concat();
    option_reply(&mut bytes, 7, 3, &info);
    option_reply(&mut bytes, 7, 1, &[]);
    bytes
}

impl Chunk {
    fn append(&self, into: &mut Vec<u8>, cookie: u64, done: bool) {
        let (kind, claimed, body) = match self {
            Self::Data { at, bytes } => (
                1,
                None,
                [&u64::from(*at).to_be_bytes(), bytes.as_slice()].concat(),
            ),
            Self::Hole { at, length } => {
                let length = u32::from(*length).to_be_bytes();
                (
                    2,
                    None,
                    [u64::from(*at).to_be_bytes().as_slice(), &length].concat(),
                )
            }
            Self::Status { context, extents } => {
                let mut body = context.unwrap_or(7).to_be_bytes().to_vec();
                for (length, flags) in extents {
                    body.extend(length.to_be_bytes());
                    body.extend(flags.to_be_bytes());
                }
                (5, None, body)
            }
            Self::None => (0, None, vec![]),
            Self::Error { number, text } => {
                let length = (text.len() as u16).to_be_bytes();
                (
                    0x8001,
                    None,
                    [&number.to_be_bytes(), length.as_slice(), text].concat(),
                )
            }
            Self::Other { kind, length, body } => (*kind, *length, body.clone()),
        };
        into.extend(0x668e_33efu32.to_be_bytes());
        into.extend(u16::from(done).to_be_bytes());
        into.extend(u16::to_be_bytes(kind));
        into.extend(cookie.to_be_bytes());
        into.extend(claimed.unwrap_or(body.len() as u32).to_be_bytes());
        into.extend(body);
    }
}

fn bytes(input: &Input) -> Vec<u8> {
    let mut bytes = match &input.server {
        Server::Raw(bytes) => bytes.clone(),
        Server::Negotiated { size, with_context } => negotiation(*size, *with_context),
    };
    let mut cookie = 0;
    for call in &input.calls {
        let (Call::Read { replies, .. } | Call::NextData { replies, .. }) = call;
        cookie += 1;
        for (index, (chunk, more)) in replies.iter().enumerate() {
            let done = index + 1 == replies.len() || !more;
            chunk.append(&mut bytes, cookie, done);
            // One call may ask several times for a status.
            if done && index + 1 < replies.len() && matches!(call, Call::NextData { .. }) {
                cookie += 1;
            }
        }
    }
    bytes.truncate(MAX_BYTES);
    bytes
}

fuzz_target!(|input: Input| {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(&bytes(&input)).unwrap();
    theirs.shutdown(Shutdown::Write).unwrap();
    let Ok(mut client) = NbdClient::connect(ours, Cancel::default()) else {
        return;
    };
    for call in input.calls.iter().take(MAX_CALLS) {
        let result = match call {
            Call::Read {
                offset,
                length,
                replies,
            } => {
                let mut buffer = vec![0xa5; usize::from(*length)];
                let result = client.read_at(u64::from(*offset), &mut buffer);
                // A lone hole covers all or is refused: nothing of the buffer's old content is left.
                if result.is_ok() && matches!(replies.as_slice(), [(Chunk::Hole { .. }, _)]) {
                    assert!(
                        matches!(input.server, Server::Raw(_)) || buffer.iter().all(|b| *b == 0)
                    );
                }
                result
            }
            Call::NextData { offset, .. } => {
                let offset = u64::from(*offset);
                client.next_data(offset).map(|found| {
                    if let Some(range) = found {
                        assert!(offset <= range.start && range.start < range.end);
                        assert!(range.end <= client.size());
                    }
                })
            }
        };
        if let Err(error) = result {
            assert!(!error.to_string().contains(char::is_control));
            return;
        }
    }
});
