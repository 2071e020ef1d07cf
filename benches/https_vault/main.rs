//! The CPU time of an unwrap that `keyvault serve` answers, next to that of the library's bare RSA.
//!
//! A rate would be no measure: the clients share the CPUs with the server. So the CPU clock of the
//! server's process is read before and after a number of requests, which has the user and system time of
//! all of its threads, those that have ended too; and that of the thread that does bare RSA. Each answer
//! is that of a durable audit record. Bare RSA and every load are measured in turn, round after round,
//! and medians count, those of the ratios within each round.
//!
//! Usage: cargo bench --bench https_vault [-- [--rounds N] [--requests N] [--bits 2048|3072|4096]
//! [--dir DIR] [--before PROGRAM]]

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::scope;

use aws_lc_rs::rsa::{
    KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, OaepPublicEncryptingKey,
    PrivateDecryptingKey,
};
use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use serde_json::{Value, json};
use server::{Connection, Server, encode};
use test_support::program;

mod server;

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// As long as the DEK of a disk.
const SECRET: [u8; 64] = [7; 64];

fn main() -> Outcome<()> {
    let options = Options::parse()?;
    for &bits in &options.bits {
        print_table(bits, &measure(&options, bits)?);
    }
    Ok(())
}

struct Options {
    rounds: usize,
    /// Of each load in each round.
    requests: usize,
    bits: Vec<u32>,
    /// Where the vaults are: on a file system where a sync is one.
    dir: PathBuf,
    /// An older program, measured in the same rounds.
    before: Option<PathBuf>,
}

impl Options {
    fn parse() -> Outcome<Self> {
        let mut options = Self {
            rounds: 9,
            requests: 256,
            bits: vec![2048, 3072, 4096],
            dir: env!("CARGO_TARGET_TMPDIR").into(),
            before: None,
        };
        let mut arguments = std::env::args().skip(1).filter(|a| a != "--bench");
        while let Some(name) = arguments.next() {
            let value = arguments.next().ok_or("an option has no value")?;
            match name.as_str() {
                "--rounds" => options.rounds = value.parse()?,
                "--requests" => options.requests = value.parse()?,
                "--bits" => options.bits = vec![value.parse()?],
                "--dir" => options.dir = value.into(),
                "--before" => options.before = Some(value.into()),
                _ => return Err(format!("unknown option {name}").into()),
            }
        }
        Ok(options)
    }
}

/// How a server is asked.
#[derive(Clone, Copy)]
enum Load {
    /// By so many connections, each of which asks again as soon as it is answered.
    KeepAlive(usize),
    /// By a new connection for each request, one at a time, with or without a session of an earlier one.
    New { resumes: bool },
}

const LOADS: [Load; 5] = [
    Load::KeepAlive(1),
    Load::KeepAlive(8),
    Load::KeepAlive(32),
    Load::New { resumes: true },
    Load::New { resumes: false },
];

impl Load {
    fn name(self) -> String {
        match self {
            Self::KeepAlive(1) => "1 connection".into(),
            Self::KeepAlive(count) => format!("{count} connections"),
            Self::New { resumes: true } => "new connection, session resumed".into(),
            Self::New { resumes: false } => "new connection, no session".into(),
        }
    }

    /// Microseconds of the server's CPU time for each request.
    fn run(self, server: &Server, wrapped: &Value, requests: usize) -> Outcome<f64> {
        let ask = |connection: &mut Connection| -> Outcome<()> {
            match connection.ask(&server.kid, "unwrapkey", wrapped)? {
                secret if secret == encode(&SECRET) => Ok(()),
                other => Err(format!("the answer is {other}").into()),
            }
        };
        let clock = clock_getcpuclockid(Pid::from_raw(server.pid()?))?;
        let connect = |resumes| -> Outcome<Connection> {
            let mut connection = server.connect(resumes)?;
            ask(&mut connection)?;
            Ok(connection)
        };
        let per_request = |micros: f64| micros / requests as f64;
        match self {
            Self::KeepAlive(count) => {
                let connections = (0..count).map(|_| connect(false));
                let connections: Vec<_> = connections.collect::<Outcome<_>>()?;
                let begun = AtomicUsize::new(0);
                let work = |mut connection: Connection| -> Outcome<Connection> {
                    while begun.fetch_add(1, Ordering::Relaxed) < requests {
                        ask(&mut connection)?;
                    }
                    Ok(connection)
                };
                micros(clock, || {
                    scope(|scope| {
                        let spawn = |connection| scope.spawn(|| work(connection));
                        let threads: Vec<_> = connections.into_iter().map(spawn).collect();
                        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
                            thread.join().map_err(|_| "a thread panicked")?
                        };
                        // They are closed when the clock has been read.
                        threads.into_iter().map(join).collect::<Outcome<Vec<_>>>()
                    })
                })
            }
            Self::New { resumes } => {
                connect(resumes)?;
                micros(clock, || {
                    (0..requests).try_for_each(|_| connect(resumes).map(drop))
                })
            }
        }
        .map(per_request)
    }
}

/// The microseconds that something takes by that clock.
fn micros<T>(clock: ClockId, work: impl FnOnce() -> Outcome<T>) -> Outcome<f64> {
    let before = clock_gettime(clock)?;
    let done = work()?;
    let after = clock_gettime(clock)?;
    drop(done);
    let taken = std::time::Duration::from(after - before);
    Ok(taken.as_secs_f64() * 1e6)
}

/// What was measured of one thing, a figure for each round.
struct Measured {
    name: String,
    micros: Vec<f64>,
}

/// Bare RSA comes first.
fn measure(options: &Options, bits: u32) -> Outcome<Vec<Measured>> {
    let bare = Bare::new(bits)?;
    let mut programs = vec![("", PathBuf::from(program()))];
    if let Some(before) = &options.before {
        programs.push((" (before)", before.clone()));
    }
    let mut servers = Vec::new();
    for (label, program) in programs {
        let dir = tempfile::tempdir_in(&options.dir)?;
        let server = Server::start(program, dir.path(), bits)?;
        let secret = json!(encode(&SECRET));
        let mut connection = server.connect(false)?;
        let wrapped = connection.ask(&server.kid, "wrapkey", &secret)?;
        servers.push((label, server, wrapped, dir));
    }
    let mut all = vec![Measured {
        name: "bare RSA".into(),
        micros: Vec::new(),
    }];
    for (label, ..) in &servers {
        all.extend(LOADS.map(|load| Measured {
            name: load.name() + label,
            micros: Vec::new(),
        }));
    }
    for _ in 0..options.rounds {
        let mut all = all.iter_mut();
        let mut put = |figure| {
            if let Some(measured) = all.next() {
                measured.micros.push(figure);
            }
        };
        put(bare.run(options.requests)?);
        for (_, server, wrapped, _) in &servers {
            for load in LOADS {
                put(load.run(server, wrapped, options.requests)?);
            }
        }
    }
    Ok(all)
}

/// A key without a server.
struct Bare {
    key: OaepPrivateDecryptingKey,
    wrapped: Vec<u8>,
}

impl Bare {
    fn new(bits: u32) -> Outcome<Self> {
        let size = match bits {
            2048 => KeySize::Rsa2048,
            3072 => KeySize::Rsa3072,
            4096 => KeySize::Rsa4096,
            _ => return Err("--bits has to be 2048, 3072 or 4096".into()),
        };
        let key = PrivateDecryptingKey::generate(size)?;
        let public = OaepPublicEncryptingKey::new(key.public_key())?;
        let mut wrapped = vec![0; public.ciphertext_size()];
        public.encrypt(&OAEP_SHA256_MGF1SHA256, &SECRET, &mut wrapped, None)?;
        let key = OaepPrivateDecryptingKey::new(key)?;
        Ok(Self { key, wrapped })
    }

    /// Microseconds of this thread's CPU time for each unwrap.
    fn run(&self, count: usize) -> Outcome<f64> {
        let mut secret = vec![0; self.key.min_output_size()];
        let taken = micros(ClockId::CLOCK_THREAD_CPUTIME_ID, || {
            for _ in 0..count {
                let oaep = &OAEP_SHA256_MGF1SHA256;
                self.key.decrypt(oaep, &self.wrapped, &mut secret, None)?;
            }
            Ok(())
        })?;
        Ok(taken / count as f64)
    }
}

fn print_table(bits: u32, all: &[Measured]) {
    println!("\n| RSA-{bits} | CPU µs | of bare RSA |\n|---|--:|--:|");
    let Some(bare) = all.first() else { return };
    for measured in all {
        let ratios = measured.micros.iter().zip(&bare.micros);
        println!(
            "| {} | {:.0} | {:.2} |",
            measured.name,
            median(measured.micros.clone()),
            median(ratios.map(|(own, bare)| own / bare).collect()),
        );
    }
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}
