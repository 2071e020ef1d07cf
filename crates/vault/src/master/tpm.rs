//! A master key that is sealed to the host's TPM 2.0 (TCG's *TPM 2.0 Library*, part 1, "Sealed data").
//!
//! The TPM is driven by the programs of tpm2-tools: what is secret goes through their standard input
//! and output only, and between them and the TPM under an encrypted session (salted by the primary key),
//! so that nobody reads it on the bus. Their context files are in a directory of mode 0700 on a tmpfs
//! and are removed; what the TPM gives to be kept, the sealed object, is of use to that TPM only.
//!
//! The object's parent is the TPM's primary ECC key of the owner hierarchy, which the TPM derives anew
//! each time. With PCRs the object is bound to their values at the time of sealing.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::key::unavailable;
use crate::{VaultError, VaultErrorCode};
use keys::{LockedBytes, SEALING_KEY_LEN, SealingKey};

/// Keys that this process has unsealed, by what was sealed. A TPM takes up to a second, and the vault
/// of an attached disk is opened at each check of its key.
static UNSEALED: Mutex<BTreeMap<String, SealingKey>> = Mutex::new(BTreeMap::new());

/// What a key is sealed to.
pub(super) struct Tpm2Options {
    /// PCRs as tpm2-tools name them.
    pub pcrs: Option<String>,
    /// The TPM as tpm2-tools name it.
    pub device: Option<String>,
}

/// The file beside the vault's database: what the TPM needs to unseal.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Sealed {
    format: u32,
    pcrs: Option<String>,
    device: Option<String>,
    /// `TPM2B_PUBLIC`, base64url.
    public: String,
    /// `TPM2B_PRIVATE`, base64url.
    private: String,
}

const FORMAT: u32 = 1;

/// Makes a new key, sealed in the new file `path`; the caller makes the directory entry durable.
pub(super) fn seal(path: &Path, options: Tpm2Options) -> Result<SealingKey, VaultError> {
    if let Some(pcrs) = &options.pcrs {
        check_pcrs(pcrs)?;
    }
    let key = SealingKey::generate().map_err(unavailable)?;
    let tools = Tools::new(options.device.as_deref())?;
    tools.primary()?;
    let mut create = vec!["-C", "primary", "-P", "session:session", "-i", "-"];
    create.extend(["-u", "public", "-r", "private", "-a"]);
    if let Some(pcrs) = &options.pcrs {
        tools.run("tpm2_startauthsession", &["-S", "trial"])?;
        tools.run(
            "tpm2_policypcr",
            &["-S", "trial", "-l", pcrs, "-L", "policy"],
        )?;
        tools.run("tpm2_flushcontext", &["trial"])?;
        create.extend(["fixedtpm|fixedparent|noda|adminwithpolicy", "-L", "policy"]);
    } else {
        create.push("fixedtpm|fixedparent|noda|userwithauth");
    }
    let session = ["--hmac-session", "-c", "primary", "-S", "session"];
    tools.run("tpm2_startauthsession", &session)?;
    tools.run("tpm2_sessionconfig", &["session", "--enable-decrypt"])?;
    tools.run_with("tpm2_create", &create, Some(key.expose()), None)?;
    tools.run("tpm2_flushcontext", &["session"])?;
    let sealed = Sealed {
        format: FORMAT,
        public: tools.take("public")?,
        private: tools.take("private")?,
        pcrs: options.pcrs,
        device: options.device,
    };
    let text = serde_json::to_vec_pretty(&sealed).map_err(|e| failed("write", path, e.into()))?;
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| {
            file.write_all(&text)?;
            file.sync_all()
        })
        .map_err(|e| failed("write", path, e))?;
    Ok(key)
}

/// Unseals the key in the file `path`.
pub(super) fn unseal(path: &Path) -> Result<SealingKey, VaultError> {
    let text = fs::read(path).map_err(|e| failed("read", path, e))?;
    let sealed: Sealed =
        serde_json::from_slice(&text).map_err(|e| failed("read", path, e.into()))?;
    if sealed.format != FORMAT {
        let why = io::Error::other(format!("format {} is not known", sealed.format));
        return Err(failed("read", path, why));
    }
    let mut known = UNSEALED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(key) = known.get(&sealed.private) {
        return SealingKey::from_bytes(key.expose()).map_err(unavailable);
    }
    let key = unseal_now(&sealed, path)?;
    let copy = SealingKey::from_bytes(key.expose()).map_err(unavailable)?;
    known.insert(sealed.private, copy);
    Ok(key)
}

fn unseal_now(sealed: &Sealed, path: &Path) -> Result<SealingKey, VaultError> {
    let tools = Tools::new(sealed.device.as_deref())?;
    tools.put("public", &sealed.public, path)?;
    tools.put("private", &sealed.private, path)?;
    tools.primary()?;
    let load = [
        "-C", "primary", "-u", "public", "-r", "private", "-c", "object",
    ];
    tools.run("tpm2_load", &load)?;
    let kind = match &sealed.pcrs {
        Some(_) => "--policy-session",
        None => "--hmac-session",
    };
    tools.run(
        "tpm2_startauthsession",
        &[kind, "-c", "primary", "-S", "session"],
    )?;
    tools.run("tpm2_sessionconfig", &["session", "--enable-encrypt"])?;
    if let Some(pcrs) = &sealed.pcrs {
        check_pcrs(pcrs)?;
        tools.run("tpm2_policypcr", &["-S", "session", "-l", pcrs])?;
    }
    let mut bytes = LockedBytes::zeroed(SEALING_KEY_LEN)
        .map_err(keys::SealingError::from)
        .map_err(unavailable)?;
    let arguments = ["-c", "object", "-p", "session:session"];
    let unsealed = tools.run_with("tpm2_unseal", &arguments, None, Some(&mut bytes));
    // The session is of no use any more, whatever came of it.
    let flushed = tools.run("tpm2_flushcontext", &["session"]);
    unsealed?;
    flushed?;
    SealingKey::from_bytes(bytes.as_slice()).map_err(unavailable)
}

/// The programs, in a directory for their files.
struct Tools {
    dir: PathBuf,
    device: Option<String>,
}

impl Tools {
    fn new(device: Option<&str>) -> Result<Self, VaultError> {
        // A session's file has the key of that session in it: on a tmpfs, where there is one.
        let shared = Path::new("/dev/shm");
        let base = match shared.is_dir() {
            true => shared.to_owned(),
            false => std::env::temp_dir(),
        };
        let dir = base.join(format!("sealdisk-tpm-{}", Uuid::new_v4()));
        DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .map_err(|e| failed("make", &dir, e))?;
        Ok(Self {
            dir,
            device: device.map(Into::into),
        })
    }

    /// The primary key, whose context is the file `primary` then.
    fn primary(&self) -> Result<(), VaultError> {
        self.run(
            "tpm2_createprimary",
            &["-C", "o", "-G", "ecc", "-c", "primary"],
        )
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<(), VaultError> {
        self.run_with(program, arguments, None, None)
    }

    /// Runs a program, with what it reads, and with what it has to write to its end exactly.
    fn run_with(
        &self,
        program: &str,
        arguments: &[&str],
        input: Option<&[u8]>,
        output: Option<&mut LockedBytes>,
    ) -> Result<(), VaultError> {
        let pipe = |wanted| match wanted {
            true => Stdio::piped(),
            false => Stdio::null(),
        };
        let errors = self.dir.join("errors");
        let stderr = fs::File::create(&errors).map_err(|e| failed("write", &errors, e))?;
        let mut command = Command::new(program);
        command
            .args(output.is_none().then_some("-Q"))
            .args(arguments)
            .current_dir(&self.dir)
            .stdin(pipe(input.is_some()))
            .stdout(pipe(output.is_some()))
            .stderr(stderr);
        if let Some(device) = &self.device {
            command.env("TPM2TOOLS_TCTI", device);
        }
        let mut child = command.spawn().map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => refused(format!(
                "the program {program} is not there; install the package tpm2-tools"
            )),
            _ => refused(format!("cannot run {program}: {e}")),
        })?;
        let talked = (|| {
            if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
                stdin.write_all(input)?;
            }
            if let (Some(output), Some(mut stdout)) = (output, child.stdout.take()) {
                stdout.read_exact(output.as_mut_slice())?;
                if stdout.read(&mut [0])? != 0 {
                    return Err(io::Error::other("it gave more than a key"));
                }
            }
            Ok(())
        })();
        let status = child
            .wait()
            .map_err(|e| refused(format!("cannot wait for {program}: {e}")))?;
        if status.success() {
            return talked.map_err(|e| refused(format!("{program}: {e}")));
        }
        let said = fs::read_to_string(&errors).unwrap_or_default();
        let said: Vec<&str> = said.lines().filter(|l| l.starts_with("ERROR")).collect();
        let said = said
            .last_chunk::<2>()
            .map_or(said.join("; "), |two| two.join("; "));
        Err(refused(format!("{program} failed: {said}")))
    }

    fn take(&self, name: &str) -> Result<String, VaultError> {
        let path = self.dir.join(name);
        let bytes = fs::read(&path).map_err(|e| failed("read", &path, e))?;
        Ok(URL_SAFE_NO_PAD.encode(bytes))
    }

    fn put(&self, name: &str, base64: &str, from: &Path) -> Result<(), VaultError> {
        let bytes = URL_SAFE_NO_PAD
            .decode(base64)
            .map_err(|e| failed("read", from, io::Error::other(e)))?;
        let path = self.dir.join(name);
        fs::write(&path, bytes).map_err(|e| failed("write", &path, e))
    }
}

impl Drop for Tools {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_dir_all(&self.dir) {
            log::warn!("cannot remove {}: {e}", self.dir.display());
        }
    }
}

/// `sha256:0,7`, or several banks joined by `+`.
fn check_pcrs(pcrs: &str) -> Result<(), VaultError> {
    let bank = |bank: &str| {
        bank.split_once(':').is_some_and(|(hash, numbers)| {
            matches!(hash, "sha1" | "sha256" | "sha384" | "sha512")
                && numbers
                    .split(',')
                    .all(|n| n.parse::<u8>().is_ok_and(|n| n < 24))
        })
    };
    match pcrs.split('+').all(bank) {
        true => Ok(()),
        false => Err(VaultError::new(
            VaultErrorCode::BadParameter,
            format!("'{pcrs}' names no PCRs: give for example sha256:7 or sha256:0,2,7"),
        )),
    }
}

fn refused(what: String) -> VaultError {
    VaultError::new(
        VaultErrorCode::MasterKey,
        format!("the TPM does not give the vault's master key: {what}"),
    )
}

fn failed(call: &str, path: &Path, source: io::Error) -> VaultError {
    let what = format!("cannot {call} {}", path.display());
    VaultError::caused(VaultErrorCode::MasterKey, what, source)
}
