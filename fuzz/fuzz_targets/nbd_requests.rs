//! What a qemu-nbd that a hostile image took over may ask of whoever feeds it that image.
#![no_main]

use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use arbitrary::Arbitrary;
use disks::import::feed;
use libfuzzer_sys::fuzz_target;

/// Not a multiple of a sector: the last one is filled up with zeros.
const SIZE: usize = 1000;
const PADDED: u64 = 1024;
/// The replies wait in the socket, which may not be full.
const MAX_REQUESTS: usize = 32;
const MAX_BYTES: usize = 4096;
/// The protocol's error numbers.
const EINVAL: u32 = 22;
const EOVERFLOW: u32 = 75;

#[derive(Debug, Arbitrary)]
struct Request {
    flags: u16,
    /// 0 reads, 2 ends.
    command: u8,
    cookie: u64,
    offset: u64,
    near: bool,
    length: u16,
    long: bool,
}

#[derive(Debug, Arbitrary)]
enum Input {
    Raw(Vec<u8>),
    /// An unknown option, then `NBD_OPT_GO` or `NBD_OPT_EXPORT_NAME`, then requests.
    Talk {
        no_zeroes: bool,
        other: Option<(u32, Vec<u8>)>,
        by_name: bool,
        requests: Vec<Request>,
        rest: Vec<u8>,
    },
}

thread_local! {
    static FILE: File = {
        let mut file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.write_all(&content()[..SIZE]).unwrap();
        file
    };
}

/// What the image has, and zeros up to the end of its last sector.
fn content() -> Vec<u8> {
    let byte = |i: usize| if i < SIZE { (i % 251) as u8 | 1 } else { 0 };
    (0..PADDED as usize).map(byte).collect()
}

fn option(into: &mut Vec<u8>, number: u32, body: &[u8]) {
    into.extend(b"IHAVEOPT");
    into.extend(number.to_be_bytes());
    into.extend((body.len() as u32).to_be_bytes());
    into.extend(body);
}

impl Request {
    fn offset(&self) -> u64 {
        match self.near {
            true => self.offset % (PADDED + 8),
            false => self.offset,
        }
    }

    fn length(&self) -> u32 {
        let short = u32::from(self.length % 1040);
        if self.long { u32::MAX - short } else { short }
    }

    fn append(&self, into: &mut Vec<u8>) {
        into.extend(0x2560_9513u32.to_be_bytes());
        into.extend(self.flags.to_be_bytes());
        into.extend(u16::from(self.command % 4).to_be_bytes());
        into.extend(self.cookie.to_be_bytes());
        into.extend(self.offset().to_be_bytes());
        into.extend(self.length().to_be_bytes());
    }
}

/// The answers to requests, as the protocol has them.
fn expected(requests: &[Request]) -> Vec<u8> {
    let mut replies = Vec::new();
    for request in requests {
        if request.command % 4 != 0 {
            break;
        }
        let end = request.offset().checked_add(request.length().into());
        let range = request.offset() as usize..end.unwrap_or(0) as usize;
        let error = match end {
            _ if request.length() > 32 << 20 => EOVERFLOW,
            Some(end) if end <= PADDED => 0,
            _ => EINVAL,
        };
        replies.extend(0x6744_6698u32.to_be_bytes());
        replies.extend(error.to_be_bytes());
        replies.extend(request.cookie.to_be_bytes());
        if error == 0 {
            replies.extend(&content()[range]);
        }
    }
    replies
}

/// All that is answered when `bytes` are all that is asked.
fn answers(bytes: &[u8]) -> Vec<u8> {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.write_all(bytes).unwrap();
    ours.shutdown(Shutdown::Write).unwrap();
    let file = FILE.with(|file| file.try_clone().unwrap());
    // What it says is the end of a connection.
    let _ = feed(file, SIZE as u64, theirs);
    let mut answers = Vec::new();
    // An end that was left before all was read is an error behind what was answered.
    let _ = ours.read_to_end(&mut answers);
    answers
}

fuzz_target!(|input: Input| match input {
    Input::Raw(mut bytes) => {
        bytes.truncate(MAX_BYTES);
        answers(&bytes);
    }
    Input::Talk {
        no_zeroes,
        other,
        by_name,
        mut requests,
        mut rest,
    } => {
        requests.truncate(MAX_REQUESTS);
        rest.truncate(MAX_BYTES);
        let mut bytes = (1 | u32::from(no_zeroes) << 1).to_be_bytes().to_vec();
        let known = |number: u32| matches!(number, 1 | 2 | 7);
        let other = other.filter(|(number, body)| !known(*number) && body.len() < MAX_BYTES);
        if let Some((number, body)) = &other {
            option(&mut bytes, *number, body);
        }
        option(&mut bytes, if by_name { 1 } else { 7 }, &[]);
        for request in &requests {
            request.append(&mut bytes);
        }
        bytes.extend(rest);
        let answers = answers(&bytes);
        let greeting = 18;
        let refusal = if other.is_some() { 20 } else { 0 };
        let export = match (by_name, no_zeroes) {
            (true, true) => 10,
            (true, false) => 134,
            (false, _) => 20 + 12 + 20 + 14 + 20,
        };
        let expected = expected(&requests);
        let found = &answers[greeting + refusal + export..];
        // What follows the requests may be some as well.
        assert!(found.starts_with(&expected));
    }
});
