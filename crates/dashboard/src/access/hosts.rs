//! The names of this server, and whose pages may ask it.
//!
//! A page of somebody else may have its own name lead to this host (DNS rebinding): its requests then have that name in
//! `Host`, and are answered nothing. What a browser says of where a request comes from (`Sec-Fetch-Site`, `Origin`) is
//! held against the same names.

use std::net::{IpAddr, SocketAddr};

use hyper::Request;
use hyper::header::{HOST, HeaderName, ORIGIN};

use crate::options::PublicUrl;
use web::Listen;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The names of this server.
#[derive(Debug)]
pub(crate) struct Hosts {
    /// What `Host` may be.
    authorities: Vec<String>,
    /// What `Origin` may be.
    origins: Vec<String>,
    /// Any address with that port: a name is needed for rebinding.
    any_address: Option<u16>,
}

impl Hosts {
    pub(crate) fn new(listening: &Listen, public: Option<&PublicUrl>) -> Self {
        let mut hosts = Self {
            authorities: Vec::new(),
            origins: Vec::new(),
            any_address: None,
        };
        match listening {
            Listen::Tcp(address) => hosts.add_address(*address),
            // Nothing but a proxy, or a person with a tool, comes in there.
            Listen::Unix(_) => hosts.add("localhost".into()),
        }
        if let Some(public) = public {
            hosts.authorities.push(public.authority.clone());
            hosts.origins.push(public.origin.clone());
        }
        hosts
    }

    fn add_address(&mut self, address: SocketAddr) {
        let port = address.port();
        if address.ip().is_unspecified() {
            self.any_address = Some(port);
        }
        let mut names = vec![address.to_string()];
        if address.ip().is_loopback() || address.ip().is_unspecified() {
            names.extend(["localhost", "127.0.0.1", "[::1]"].map(|name| format!("{name}:{port}")));
        }
        for name in names {
            // A browser does not name the port of its scheme.
            if let Some(name) = name.strip_suffix(":80") {
                self.add(name.to_owned());
            }
            self.add(name);
        }
    }

    fn add(&mut self, authority: String) {
        self.origins.push(format!("http://{authority}"));
        self.authorities.push(authority);
    }

    /// Whether a request is for this server.
    pub(crate) fn are_meant(&self, request: &Request<impl Sized>) -> bool {
        let mut hosts = request.headers().get_all(HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else {
            return false;
        };
        let is_ours = host.to_str().is_ok_and(|host| self.has(host));
        let uri = request.uri().authority();
        is_ours && uri.is_none_or(|uri| self.has(uri.as_str()))
    }

    fn has(&self, authority: &str) -> bool {
        let same = |name: &String| name.eq_ignore_ascii_case(authority);
        self.authorities.iter().any(same) || self.is_any_address(authority)
    }

    fn is_any_address(&self, authority: &str) -> bool {
        let Some(port) = self.any_address else {
            return false;
        };
        let with_port = authority.parse::<SocketAddr>().map(|at| at.port());
        let without = authority.parse::<IpAddr>().map(|_| 80);
        with_port.or(without) == Ok(port)
    }

    /// Whether a page of somebody else makes the request.
    pub(crate) fn is_foreign(&self, request: &Request<impl Sized>) -> bool {
        let header = |name: &HeaderName| {
            let value = request.headers().get(name)?;
            Some(value.to_str().unwrap_or("none"))
        };
        match (header(&SEC_FETCH_SITE), header(&ORIGIN)) {
            // `none` is a person's own doing. A form of a page without a referrer has the origin `null`.
            (Some("same-origin" | "none"), Some("null") | None) | (None, None) => false,
            (Some("same-origin" | "none") | None, Some(origin)) => !self.has_origin(origin),
            (Some(_), _) => true,
        }
    }

    fn has_origin(&self, origin: &str) -> bool {
        let same = |own: &String| own.eq_ignore_ascii_case(origin);
        let host = origin.strip_prefix("http://");
        self.origins.iter().any(same) || host.is_some_and(|host| self.is_any_address(host))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(headers: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::builder().uri("/api/state");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    }

    #[test]
    fn a_name_of_somebody_else_is_not_ours() {
        let listening: Listen = "127.0.0.1:9302".parse().unwrap();
        let public: PublicUrl = "https://dash.example.com".parse().unwrap();
        let hosts = Hosts::new(&listening, Some(&public));
        let meant = |host: &str| hosts.are_meant(&request(&[("host", host)]));
        for ours in [
            "127.0.0.1:9302",
            "LocalHost:9302",
            "[::1]:9302",
            "dash.example.com",
        ] {
            assert!(meant(ours), "{ours}");
        }
        for foreign in [
            "evil.example.com:9302",
            "127.0.0.1",
            "localhost:9303",
            "127.0.0.1:9302.evil.example.com",
            "dash.example.com:9302",
            "",
        ] {
            assert!(!meant(foreign), "{foreign}");
        }
        assert!(!hosts.are_meant(&request(&[])));
        let two = request(&[("host", "localhost:9302"), ("host", "evil")]);
        assert!(!hosts.are_meant(&two));
        let absolute = Request::builder().uri("http://evil/api/state");
        let absolute = absolute.header("host", "localhost:9302").body(()).unwrap();
        assert!(!hosts.are_meant(&absolute));
    }

    #[test]
    fn every_address_is_ours_where_all_are_listened_on() {
        let hosts = Hosts::new(&"0.0.0.0:80".parse().unwrap(), None);
        let meant = |host: &str| hosts.are_meant(&request(&[("host", host)]));
        assert!(meant("10.1.2.3") && meant("10.1.2.3:80") && meant("localhost"));
        assert!(!meant("10.1.2.3:81") && !meant("evil.example.com"));
    }

    #[test]
    fn pages_of_others_are_told_from_ours() {
        let hosts = Hosts::new(&"127.0.0.1:9302".parse().unwrap(), None);
        let is_foreign = |site: Option<&str>, origin: Option<&str>| {
            let site = site.map(|site| ("sec-fetch-site", site));
            let origin = origin.map(|origin| ("origin", origin));
            let headers: Vec<_> = site.into_iter().chain(origin).collect();
            hosts.is_foreign(&request(&headers))
        };
        let ours = "http://127.0.0.1:9302";
        for (site, origin) in [
            (None, None),
            (None, Some(ours)),
            (Some("none"), None),
            (Some("same-origin"), None),
            (Some("same-origin"), Some(ours)),
            (Some("same-origin"), Some("null")),
        ] {
            assert!(!is_foreign(site, origin), "{site:?} {origin:?}");
        }
        for (site, origin) in [
            (None, Some("null")),
            (None, Some("http://127.0.0.1:9303")),
            (None, Some("https://evil.example.com")),
            (Some("cross-site"), None),
            (Some("same-site"), Some(ours)),
            (Some("same-origin"), Some("https://evil.example.com")),
        ] {
            assert!(is_foreign(site, origin), "{site:?} {origin:?}");
        }
    }
}
