//! What the two ends of an attach's command channel read: commands with descriptors and DEKs in the data
//! plane, and messages of a data plane that a guest has taken over.
#![no_main]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::LazyLock;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use protocol::{
    Command, Commands, DataPlaneEnd, Discard, Event, Heard, Hello, Limits, Message, Messages,
    OnFull, Received, Reply, Request, SUPPORTED, Setup, Stack, StackLayer, encode,
};
use sealdisk_fuzz::{Edit, edited};
use uuid::Uuid;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// More than a socket's buffer may not take, and nobody reads meanwhile.
const MAX_BYTES: usize = 64 * 1024;
/// Bytes of a frame before its message.
const HEAD_LEN: usize = 6;

static SOME_FILE: LazyLock<File> = LazyLock::new(|| tempfile::tempfile().unwrap());

#[derive(Debug, Arbitrary)]
enum Input {
    /// All that the attach process says, its hello too.
    Raw(Vec<u8>),
    /// A command of an attach process, with changes.
    Command {
        command: SomeCommand,
        layers: u8,
        edits: Vec<Edit>,
        claimed_len: Option<u16>,
        files: u8,
        keys: Vec<u8>,
    },
    /// Messages of a data plane, with changes, and whatever else.
    Messages {
        messages: Vec<SomeMessage>,
        edits: Vec<Edit>,
        rest: Vec<u8>,
    },
}

#[derive(Debug, Arbitrary)]
enum SomeCommand {
    Serve,
    SwapVolume,
    RestoreKey,
    Quiesce,
    Resize,
}

#[derive(Debug, Arbitrary)]
enum SomeMessage {
    Quiesced,
    Refused,
    SyncFailed,
    Text(String),
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
        crypto_threads: 0,
        cpus: Vec::new(),
        limits: Limits::default(),
        serial: "disk".into(),
        write_through: false,
        listening: true,
        revoked: None,
        restart: None,
    }
}

impl SomeCommand {
    fn command(&self, layers: u8) -> Command {
        let setup = setup(layers % 6);
        match self {
            Self::Serve => Command::Serve(setup),
            Self::SwapVolume => Command::SwapVolume(setup.stack),
            Self::RestoreKey => Command::RestoreKey {
                layers: setup.stack.layers.iter().map(|layer| layer.id).collect(),
            },
            Self::Quiesce => Command::Quiesce,
            Self::Resize => Command::Resize { size: 4096 },
        }
    }
}

impl SomeMessage {
    fn message(self) -> Message {
        let event = match self {
            Self::Quiesced => {
                return Message::Reply {
                    number: 0,
                    reply: Reply::Quiesced,
                };
            }
            Self::Refused => {
                return Message::Reply {
                    number: 1,
                    reply: Reply::refused(&"why"),
                };
            }
            Self::SyncFailed => Event::SyncFailed {
                file: protocol::SyncedFile::Map,
                why: "why".into(),
            },
            Self::Text(text) => Event::Failed { why: text.into() },
        };
        Message::Event(event)
    }
}

/// A frame whose message was edited; its length is right, unless another is claimed.
fn frame(message: &[u8], edits: &[Edit], claimed_len: Option<u16>) -> Vec<u8> {
    let json = edited(&message[HEAD_LEN..message.len() - 1], edits);
    let len = claimed_len.map_or(json.len(), usize::from);
    [format!("{len:05} ").as_bytes(), &json, b"\n"].concat()
}

/// The other end of a socket into which all of it was sent, the descriptors with its first byte.
fn sent(hello: &[u8], bytes: &[u8], files: usize) -> (UnixStream, UnixStream) {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.write_all(hello).unwrap();
    let numbers: Vec<RawFd> = vec![SOME_FILE.as_raw_fd(); files];
    let sent = match bytes.is_empty() {
        true => 0,
        false => ours.send_with_fds(&[bytes], &numbers).unwrap(),
    };
    ours.write_all(&bytes[sent..]).unwrap();
    ours.shutdown(std::net::Shutdown::Write).unwrap();
    (ours, theirs)
}

/// Receives commands until nothing more can be told apart.
fn receive_all(hello: &[u8], bytes: &[u8], files: usize) {
    let (mut ours, theirs) = sent(hello, bytes, files);
    ours.set_nonblocking(true).unwrap();
    let Ok(end) = DataPlaneEnd::open(theirs) else {
        return;
    };
    while let Ok(received) = end.receive() {
        // What it refuses must not fill the socket.
        while ours.read(&mut [0; 1024]).is_ok_and(|read| read > 0) {}
        let Some(Received { command, cargo, .. }) = received else {
            continue;
        };
        let (stack, is_serve) = match &command {
            Command::Serve(setup) => (&setup.stack, true),
            Command::SwapVolume(stack) => (stack, false),
            Command::RestoreKey { layers } => {
                assert_eq!(cargo.keys().unwrap().layers(), layers.len());
                continue;
            }
            _ => {
                assert!(cargo.keys().is_err());
                continue;
            }
        };
        for layer in &stack.layers {
            if let Ok(geometry) = layer.geometry()
                && geometry.check().is_ok()
            {
                assert!(geometry.data_len() >= layer.size);
            }
        }
        let Ok((files, deks)) = cargo.disk() else {
            continue;
        };
        assert_eq!(files.files.layers(), stack.layers.len());
        for dek in deks.iter() {
            let key = dek.expose();
            assert!(bytes.windows(64).any(|window| window == key));
            assert!(key[..32] != key[32..], "halves that are alike");
        }
        let Command::Serve(setup) = command.clone() else {
            assert!(!is_serve);
            continue;
        };
        let (ours, theirs) = UnixStream::pair().unwrap();
        let commands = Commands::new(ours).unwrap();
        commands.open().serve(setup, &files, Some(&deks)).unwrap();
        let end = DataPlaneEnd::open(theirs).unwrap();
        let prepare = end.receive().unwrap().unwrap();
        assert!(matches!(prepare.command, Command::Prepare { .. }));
        let same = end.receive().unwrap().unwrap();
        assert_eq!(same.command, command);
        assert!(same.cargo.disk().is_ok());
    }
}

/// Hears all that a data plane says.
fn hear_all(bytes: &[u8]) {
    let (_ours, theirs) = sent(&[], bytes, 0);
    let mut messages = Messages::new(theirs);
    while let Heard::Messages(heard) = messages.take() {
        for message in heard {
            let printed = match &message {
                Message::Event(Event::Failed { why } | Event::SyncFailed { why, .. })
                | Message::Reply {
                    reply: Reply::Refused { why },
                    ..
                } => why.as_str(),
                _ => "",
            };
            assert!(!printed.contains(char::is_control));
            let again: Message = protocol::decode(&encode(&message).unwrap()).unwrap();
            assert_eq!(again, message);
        }
    }
}

fuzz_target!(|input: Input| {
    let hello = encode(&Hello { hello: SUPPORTED }).unwrap();
    match input {
        Input::Raw(bytes) if bytes.len() <= MAX_BYTES => receive_all(&[], &bytes, 3),
        Input::Command {
            command,
            layers,
            edits,
            claimed_len,
            files,
            keys,
        } => {
            let request = Request {
                number: 0,
                command: command.command(layers),
            };
            let frame = frame(&encode(&request).unwrap(), &edits, claimed_len);
            let bytes = [&frame[..], &keys].concat();
            if bytes.len() <= MAX_BYTES {
                receive_all(&hello, &bytes, usize::from(files % 16));
            }
        }
        Input::Messages {
            messages,
            edits,
            rest,
        } => {
            let frames = messages.into_iter().filter_map(|message| {
                let whole = encode(&message.message()).ok()?;
                Some(frame(&whole, &edits, None))
            });
            let bytes = [frames.collect::<Vec<_>>().concat(), rest].concat();
            if bytes.len() <= MAX_BYTES {
                hear_all(&bytes);
            }
        }
        Input::Raw(_) => {}
    }
});
