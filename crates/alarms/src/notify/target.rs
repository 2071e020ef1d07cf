//! Who is told of events.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use url::Url;

/// Who is told of events: `--on-event`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A program with its arguments, without a shell; it reads the event on its standard input.
    Command(Vec<String>),
    /// An address to which the event is sent with POST.
    Webhook(Url),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let scheme = text
            .split_once("://")
            .map(|(scheme, _)| scheme.to_ascii_lowercase());
        match scheme.as_deref() {
            Some("http" | "https") => {
                let url = Url::parse(text).map_err(|e| format!("it is no address: {e}"))?;
                Ok(Self::Webhook(url))
            }
            Some(scheme) if scheme.chars().all(|c| c.is_ascii_alphanumeric()) => {
                Err(format!("'{scheme}' is neither http nor https"))
            }
            _ => {
                let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
                match words.first() {
                    // Nobody's working directory and nobody's PATH decides what is run.
                    Some(program) if Path::new(program).is_absolute() => Ok(Self::Command(words)),
                    _ => Err(
                        "a program is named by its absolute path, a webhook by http:// or https://"
                            .into(),
                    ),
                }
            }
        }
    }
}

/// As it stands in the log: an address has secrets in its query, and perhaps in its path.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Command(words) => write!(f, "{}", words.first().map_or("", String::as_str)),
            Self::Webhook(url) => {
                let host = url.host_str().unwrap_or_default();
                write!(f, "{}://{host}", url.scheme())?;
                match url.port() {
                    Some(port) => write!(f, ":{port}/…"),
                    None => f.write_str("/…"),
                }
            }
        }
    }
}

impl Target {
    /// As it is given on a command line.
    pub fn argument(&self) -> String {
        match self {
            Self::Command(words) => words.join(" "),
            Self::Webhook(url) => url.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_program_or_an_address() {
        let command = "/usr/bin/page  --loud".parse::<Target>().unwrap();
        assert_eq!(
            command,
            Target::Command(vec!["/usr/bin/page".into(), "--loud".into()])
        );
        assert_eq!(command.argument().parse(), Ok(command));
        let webhook: Target = "https://u:p@hooks.example:8443/T0/s3cret?token=t"
            .parse()
            .unwrap();
        assert_eq!(webhook.to_string(), "https://hooks.example:8443/…");
        assert_eq!(webhook.argument().parse(), Ok(webhook));
        for bad in [
            "",
            " ",
            "page",
            "./page",
            "ftp://x/",
            "http://",
            "https://:80/",
        ] {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
    }
}
