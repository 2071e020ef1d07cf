//! How the dashboard is served.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use url::Url;

use installation::Place;
use web::Listen;

/// How the dashboard is served.
#[derive(Debug)]
pub struct DashboardOptions {
    /// Where.
    pub listen: Listen,
    /// Whether that may be an address that other hosts reach.
    pub allow_remote: bool,
    /// Where a proxy serves it.
    pub public_url: Option<PublicUrl>,
    /// The file with the token; it is made when it is not there.
    pub token_file: PathBuf,
    /// An export of audit logs that was kept elsewhere, to compare the logs with.
    pub checkpoint: Option<PathBuf>,
    /// Where the control sockets of attached disks are.
    pub runtime_dir: PathBuf,
    /// The installation.
    pub place: Place,
    /// How often disks, keys and vaults are looked at.
    pub period: Duration,
}

/// Where a proxy serves the dashboard: a scheme, a name and maybe a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicUrl {
    /// As browsers name it in `Origin`.
    pub(crate) origin: String,
    /// As they name it in `Host`.
    pub(crate) authority: String,
    /// Whether the proxy speaks TLS.
    pub(crate) is_secure: bool,
}

impl FromStr for PublicUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let example = "it is no URL such as https://dashboard.example.com";
        let url: Url = text.parse().map_err(|_| example.to_owned())?;
        let is_plain = url.path() == "/"
            && url.query().is_none()
            && url.fragment().is_none()
            && url.username().is_empty()
            && url.password().is_none();
        let host = url.host_str().filter(|_| is_plain);
        let is_web = ["http", "https"].contains(&url.scheme());
        let host = host.filter(|_| is_web).ok_or(example)?;
        let authority = match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        };
        Ok(Self {
            origin: format!("{}://{authority}", url.scheme()),
            is_secure: url.scheme() == "https",
            authority,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_public_url_is_an_origin() {
        let url: PublicUrl = "https://Dash.example.com/".parse().unwrap();
        assert_eq!(url.origin, "https://dash.example.com");
        assert_eq!(
            (url.authority.as_str(), url.is_secure),
            ("dash.example.com", true)
        );
        let url: PublicUrl = "http://[::1]:8080".parse().unwrap();
        assert_eq!(url.authority, "[::1]:8080");
        for wrong in [
            "",
            "dash.example.com",
            "ftp://dash.example.com",
            "https://dash.example.com/path",
            "https://user@dash.example.com",
            "https://dash.example.com?x",
        ] {
            assert!(wrong.parse::<PublicUrl>().is_err(), "{wrong}");
        }
    }
}
