//! The bytes of a disk, at the URL that whoever was granted access has.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use test_support::expect_success;

use super::client::{Client, Managed};

/// The disks that the command line makes.
pub const DISKS: &str = "~/resourceGroups/default/providers/Microsoft.Compute/disks";
pub const SNAPSHOTS: &str = "~/resourceGroups/default/providers/Microsoft.Compute/snapshots";
/// Bytes of a footer.
pub const FOOTER: usize = 512;

/// A URL.
#[derive(Clone)]
pub struct Blob {
    pub url: String,
    ca_file: PathBuf,
}

/// What curl got.
#[derive(Debug)]
pub struct Got {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Got {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// The status, and the code of a refusal, which the body and a header say.
    pub fn refusal(&self) -> (u16, String) {
        let code = self
            .header("x-ms-error-code")
            .unwrap_or_default()
            .to_owned();
        let body = String::from_utf8_lossy(&self.body);
        assert!(body.contains(&format!("<Code>{code}</Code>")), "{self:?}");
        (self.status, code)
    }

    /// The ranges of a list, each with whether it is a hole now.
    pub fn pages(&self) -> Vec<(bool, u64, u64)> {
        assert_eq!(self.status, 200, "{self:?}");
        let body = String::from_utf8(self.body.clone()).unwrap();
        let number = |text: &str, name: &str| -> u64 {
            let (_, rest) = text.split_once(&format!("<{name}>")).unwrap();
            rest.split_once("</").unwrap().0.parse().unwrap()
        };
        let ranges = body.split("Range><Start>").skip(1);
        let before: Vec<_> = body.split("Range><Start>").collect();
        ranges
            .enumerate()
            .map(|(at, text)| {
                let text = format!("<Start>{text}");
                let is_hole = before[at].ends_with("<Clear");
                (is_hole, number(&text, "Start"), number(&text, "End"))
            })
            .collect()
    }
}

impl Blob {
    /// A URL of a server, or one that nobody was given.
    pub fn at(managed: &Managed, url: &str) -> Self {
        Self {
            url: url.into(),
            ca_file: managed.served.ca_file.clone(),
        }
    }

    /// At another server of the same installation.
    pub fn moved_to(&self, managed: &Managed) -> Self {
        let (_, path) = self.url.split_once("/sas/").unwrap();
        Self::at(managed, &format!("{}/sas/{path}", managed.base()))
    }

    pub fn with(&self, query: &str) -> Self {
        Self {
            url: format!("{}{query}", self.url),
            ..self.clone()
        }
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--max-time", "300", "--cacert"]);
        command.arg(&self.ca_file).args(arguments).arg(&self.url);
        command
    }

    pub fn curl(&self, arguments: &[&str]) -> Got {
        let head = tempfile::NamedTempFile::new().unwrap();
        let body = tempfile::NamedTempFile::new().unwrap();
        let mut command = self.command(arguments);
        command.arg("-D").arg(head.path());
        if !arguments.contains(&"--head") {
            command.arg("-o").arg(body.path());
        }
        command.args(["-w", "%{stderr}%{http_code}"]);
        let output = expect_success(&mut command);
        let code = String::from_utf8(output.stderr).unwrap();
        Got {
            status: code.parse().unwrap(),
            head: std::fs::read_to_string(head.path()).unwrap(),
            body: std::fs::read(body.path()).unwrap(),
        }
    }

    pub fn range(&self, range: &str) -> Got {
        self.curl(&["-r", range])
    }

    pub fn put(&self, at: u64, bytes: &[u8]) -> Got {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let range = format!("x-ms-range: bytes={at}-{}", at + bytes.len() as u64 - 1);
        let data = format!("@{}", file.path().display());
        let what = "x-ms-page-write: update";
        let arguments = [
            "-X",
            "PUT",
            "-H",
            what,
            "-H",
            &range,
            "--data-binary",
            &data,
        ];
        self.with("&comp=page").curl(&arguments)
    }

    pub fn clear(&self, at: u64, length: u64) -> Got {
        let range = format!("Range: bytes={at}-{}", at + length - 1);
        let arguments = ["-X", "PUT", "-H", "x-ms-page-write: clear", "-H", &range];
        self.with("&comp=page").curl(&arguments)
    }

    /// Begins to read slowly into a file.
    pub fn slowly(&self, file: &str) -> Child {
        let arguments = ["--limit-rate", "2M", "-o", file];
        let mut command = self.command(&arguments);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    }
}

/// Asks for access; `of` is as `DISKS/d`.
pub fn access(client: &Client<'_>, of: &str, level: &str, seconds: u64) -> Blob {
    let body = asked(level, seconds);
    let given = client.ok(&format!("POST {of}/beginGetAccess"), Some(&body));
    let url = given["accessSAS"].as_str().unwrap();
    Blob::at(client.managed, url)
}

pub fn asked(level: &str, seconds: u64) -> Value {
    json!({"access": level, "durationInSeconds": seconds})
}

pub fn revoke(client: &Client<'_>, of: &str) {
    let answer = client.ask(&format!("POST {of}/endGetAccess"), None);
    assert_eq!(answer.status, 200, "{answer:?}");
}

pub fn state(client: &Client<'_>, of: &str) -> String {
    let shown = client.ok(&format!("GET {of}"), None);
    shown["properties"]["diskState"].as_str().unwrap().into()
}
