//! Who may ask a listener that gives tokens in the clear: users of this host that were named.
//!
//! That a connection comes over the loopback proves little. A page in a browser reaches it under a
//! name of the page's own that resolves to 127.0.0.1 (DNS rebinding), every user of the host does,
//! and a guest does through its VMM's user networking (QEMU's slirp, passt), as the VMM's user. So the
//! `Host` has to be the listener's own, and the kernel says whose the other end of the connection is.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use axum::http::StatusCode;
use axum::http::header::HOST;
use axum::http::request::Parts;

use super::ApiError;
use super::shortened::shortened;

/// The tables of this process's network namespace. They are below /proc/self so that a unit with
/// `ProcSubset=pid` has them.
const TABLES: [&str; 2] = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];
/// `st` of a connection whose both ends are open (`TCP_ESTABLISHED`, include/net/tcp_states.h).
const ESTABLISHED: &str = "01";

/// What a listener for this host alone knows about who may ask it.
#[derive(Debug, Clone)]
pub struct LocalOnly {
    address: SocketAddr,
    users: Vec<u32>,
}

/// The other end of a connection, as the kernel's tables have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Owner {
    uid: u32,
    inode: u64,
}

impl LocalOnly {
    /// For the listener at `address`, which users with these ids may ask.
    ///
    /// # Errors
    /// When the kernel's tables cannot be read, so that nobody could ever be told from another.
    pub fn new(address: SocketAddr, users: Vec<u32>) -> io::Result<Self> {
        tables()?;
        Ok(Self { address, users })
    }

    /// Checks for whom the request was meant. Without a body of its own a browser can send no other
    /// `Host` than the name in its address bar.
    ///
    /// # Errors
    /// 421 (RFC 9110 §15.5.20).
    pub fn check_host(&self, parts: &Parts) -> Result<(), ApiError> {
        let mut headers = parts.headers.get_all(HOST).iter();
        let header = headers.next().and_then(|host| host.to_str().ok());
        // A request line with a whole URL overrides the header (RFC 9112 §3.2.2).
        let authority = parts.uri.authority().map(|authority| authority.as_str());
        let host = authority.or(header).unwrap_or_default();
        if self.is_own(host) && headers.next().is_none() {
            return Ok(());
        }
        Err(ApiError::new(
            StatusCode::MISDIRECTED_REQUEST,
            "misdirected_request",
            format!(
                "the host '{}' is not this endpoint; ask it as http://{}",
                shortened(host),
                self.address
            ),
        ))
    }

    /// Whether a `Host` is this listener: its address or `localhost`, with its port.
    fn is_own(&self, host: &str) -> bool {
        let ip = match self.address.ip() {
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("[{ip}]"),
        };
        let port = self.address.port();
        [ip.as_str(), "localhost"].iter().any(|name| {
            let rest = host
                .get(..name.len())
                .filter(|start| start.eq_ignore_ascii_case(name))
                .map(|start| &host[start.len()..]);
            match rest {
                Some("") => port == 80,
                Some(rest) => rest.strip_prefix(':') == Some(port.to_string().as_str()),
                None => false,
            }
        })
    }

    /// Checks whose the other end of a connection is, and says whose. It reads files.
    ///
    /// # Errors
    /// 403 for a user that was not named, or that cannot be told.
    pub fn check_peer(&self, peer: SocketAddr) -> Result<u32, ApiError> {
        let refuse = |who: String| {
            let message = format!(
                "{who} may not ask for tokens here; `keyvault serve --allow-user` names those who may"
            );
            Err(ApiError::new(
                StatusCode::FORBIDDEN,
                "forbidden_peer",
                message,
            ))
        };
        match owner(peer, self.address) {
            Ok(Some(uid)) if self.users.contains(&uid) => Ok(uid),
            Ok(Some(uid)) => refuse(format!("the user with uid {uid}")),
            Ok(None) => refuse(format!("who is at {peer}, whose owner is not known,")),
            Err(error) => Err(ApiError::internal(format!(
                "the owner of the connection from {peer} is not known: {error}"
            ))),
        }
    }
}

/// The uid of the process that made the socket at `peer` which is connected to `listener`; `None`
/// when there is no such socket of this host, or not any more.
///
/// The two addresses belong to one connection as long as this end of it is open, so that nobody else
/// can be found under them. An end that was closed is a danger: the kernel shows it with uid 0 (its
/// inode is gone, `sock_i_uid`). It then is neither established nor has an inode, and as it could be
/// closed between the kernel's looks at its state and at its uid, it is looked up again: an end
/// that is found twice was open in between.
fn owner(peer: SocketAddr, listener: SocketAddr) -> io::Result<Option<u32>> {
    let first = find(&tables()?, peer, listener);
    let again = find(&tables()?, peer, listener);
    Ok(first.filter(|_| first == again).map(|owner| owner.uid))
}

/// The tables, one after the other. A host without IPv6 has only the first.
fn tables() -> io::Result<String> {
    let mut text = fs::read_to_string(TABLES[0])?;
    match fs::read_to_string(TABLES[1]) {
        Ok(more) => text += &more,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(text)
}

/// The end at `local` of an open connection to `remote` in tables of the form of
/// Documentation/networking/proc_net_tcp.rst: `sl local_address rem_address st tx_queue:rx_queue
/// tr:tm->when retrnsmt uid timeout inode …`.
fn find(tables: &str, local: SocketAddr, remote: SocketAddr) -> Option<Owner> {
    tables.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let is_it = address(fields.next()?)? == local
            && address(fields.next()?)? == remote
            && fields.next()? == ESTABLISHED;
        let uid = fields.nth(3)?.parse().ok()?;
        let inode = fields.nth(1)?.parse().ok()?;
        (is_it && inode != 0).then_some(Owner { uid, inode })
    })
}

/// `0100007F:1F90` or the same with 32 digits: words of 32 bits in the byte order of the host. A
/// socket for IPv6 that speaks IPv4 has a mapped address.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| -> Option<[u8; 4]> {
        let digits = ip.get(at * 8..at * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    let ip = match ip.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?];
            let bytes: [u8; 16] = words.concat().try_into().ok()?;
            Ipv6Addr::from(bytes).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    fn parts(request: axum::http::request::Builder) -> Parts {
        request.body(()).unwrap().into_parts().0
    }

    fn only(address: &str) -> LocalOnly {
        LocalOnly::new(address.parse().unwrap(), vec![0]).unwrap()
    }

    #[test]
    fn a_host_is_the_listeners_own_or_refused() {
        let get = || axum::http::Request::get("/metadata/identity/oauth2/token");
        for (listener, host, own) in [
            ("127.0.0.1:8080", "127.0.0.1:8080", true),
            ("127.0.0.1:8080", "localhost:8080", true),
            ("127.0.0.1:8080", "LocalHost:8080", true),
            ("127.0.0.1:80", "127.0.0.1", true),
            ("127.0.0.1:80", "localhost", true),
            ("[::1]:8080", "[::1]:8080", true),
            ("127.0.0.1:8080", "rebind.evil.example:8080", false),
            ("127.0.0.1:8080", "rebind.evil.example", false),
            ("127.0.0.1:8080", "localhost", false),
            ("127.0.0.1:8080", "localhost:80", false),
            ("127.0.0.1:8080", "localhost.evil.example:8080", false),
            ("127.0.0.1:8080", "127.0.0.1:8080:8080", false),
            ("127.0.0.1:8080", "127.0.0.1.evil.example:8080", false),
            ("127.0.0.1:8080", "127.0.0.2:8080", false),
            ("127.0.0.1:8080", "10.0.2.2:8080", false),
            ("127.0.0.1:8080", "", false),
        ] {
            let request = parts(get().header(HOST, host));
            let found = only(listener).check_host(&request);
            assert_eq!(found.is_ok(), own, "{host} at {listener}");
        }
        let without = parts(get());
        assert!(only("127.0.0.1:8080").check_host(&without).is_err());
        let two = get()
            .header(HOST, "127.0.0.1:8080")
            .header(HOST, "evil.example");
        assert!(only("127.0.0.1:8080").check_host(&parts(two)).is_err());
        let whole = axum::http::Request::get("http://evil.example:8080/metadata");
        let whole = parts(whole.header(HOST, "127.0.0.1:8080"));
        assert!(only("127.0.0.1:8080").check_host(&whole).is_err());
    }

    #[test]
    fn the_owner_of_a_connection_is_told_while_it_is_open() {
        let own = rustix::process::getuid().as_raw();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = match TcpListener::bind(address) {
                Ok(listener) => listener,
                // Not every machine has IPv6.
                Err(_) => continue,
            };
            let at = listener.local_addr().unwrap();
            let mut client = TcpStream::connect(at).unwrap();
            let (server, peer) = listener.accept().unwrap();
            assert_eq!(owner(peer, at).unwrap(), Some(own));
            assert_eq!(owner(at, peer).unwrap(), Some(own), "this end is its own");
            // Who has closed its end is nobody, and not root, whatever the kernel shows.
            client.write_all(b"GET").unwrap();
            drop(client);
            assert_eq!(owner(peer, at).unwrap(), None);
            drop(server);
            assert_eq!(owner(peer, at).unwrap(), None);
        }
        let nobody: SocketAddr = "127.0.0.1:1".parse().unwrap();
        assert_eq!(owner(nobody, nobody).unwrap(), None);
    }

    #[test]
    fn only_an_open_end_with_an_inode_has_an_owner() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   \
                     uid  timeout inode\n";
        let row = |local: &str, remote: &str, st: &str, uid: &str, inode: &str| {
            format!(
                "{table}   1: {local} {remote} {st} 00000000:00000000 00:00000000 00000000  {uid}  \
                 0 {inode} 1 0000000000000000 20 4 30 10 -1\n"
            )
        };
        let word = |bytes: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(bytes));
        let ip = word([127, 0, 0, 1]);
        let zero = word([0; 4]);
        let mapped = format!("{zero}{zero}{}{ip}", word([0, 0, 0xff, 0xff]));
        let (peer, at): (SocketAddr, SocketAddr) = (
            "127.0.0.1:4660".parse().unwrap(),
            "127.0.0.1:80".parse().unwrap(),
        );
        let found = |table: &str| find(table, peer, at).map(|owner| owner.uid);
        for ip in [&ip, &mapped] {
            let (local, remote) = (format!("{ip}:1234"), format!("{ip}:0050"));
            assert_eq!(found(&row(&local, &remote, "01", "1000", "77")), Some(1000));
            assert_eq!(found(&row(&remote, &local, "01", "1000", "77")), None);
            for closed in ["04", "05", "06", "08", "0A"] {
                assert_eq!(found(&row(&local, &remote, closed, "0", "77")), None);
            }
            assert_eq!(found(&row(&local, &remote, "01", "0", "0")), None);
            assert_eq!(found(&row(&local, &remote, "01", "x", "77")), None);
            let cut = row(&local, &remote, "01", "1000", "77");
            for end in 0..cut.len() {
                // Whatever is cut off, there is no panic.
                let _ = found(&cut[..end]);
            }
        }
    }
}
