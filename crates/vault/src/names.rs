//! Names and URLs of vaults and keys, by Azure's rules.

use std::fmt;
use std::str::FromStr;

use super::{KeyId, VaultError, VaultErrorCode};

/// The domain below which the embedded vaults have their names. `.localhost` is reserved for this
/// host (RFC 6761 §6.3), so such a URL can never mean a vault elsewhere.
const DOMAIN: &str = "vault.localhost";

/// The URL of the embedded vault called `name`.
pub fn vault_url(name: &str) -> String {
    format!("https://{name}.{DOMAIN}")
}

/// Checks a vault's name and returns it in lower case, as host names are compared: 3 to 24 letters,
/// digits and single hyphens, a letter first, no hyphen last (Azure's rule; it is also what makes
/// the name safe as a directory).
///
/// # Errors
/// [`VaultErrorCode::BadParameter`].
pub fn normal_vault_name(name: &str) -> Result<String, VaultError> {
    let allowed = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && (3..=24).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphabetic())
        && !name.ends_with('-')
        && !name.contains("--");
    if allowed {
        return Ok(name.to_ascii_lowercase());
    }
    Err(bad(format!(
        "'{name}' is no name for a key vault: use 3 to 24 letters, digits and single hyphens, \
         beginning with a letter and not ending with a hyphen"
    )))
}

/// Checks a key's name: 1 to 127 letters, digits and hyphens (Azure's rule).
///
/// # Errors
/// [`VaultErrorCode::BadParameter`].
pub fn check_key_name(name: &str) -> Result<(), VaultError> {
    let allowed = (1..=127).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if allowed {
        return Ok(());
    }
    Err(bad(format!(
        "'{name}' is no name for a key: use 1 to 127 letters, digits and hyphens"
    )))
}

/// `https://VAULT/keys/KEY[/VERSION]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyUrl {
    /// The vault's URL, without a trailing slash.
    pub vault_url: String,
    /// The key, with a version when the URL has one.
    pub key: KeyId,
}

impl KeyUrl {
    /// The name of the embedded vault that the URL points to; `None` for any other host.
    pub fn vault_name(&self) -> Option<&str> {
        embedded_vault_name(&self.vault_url)
    }
}

/// Whether two URLs are of the same key, in the same version if they have one. Nothing in a key URL has
/// a case that counts: not the host, the key's name, nor the digits of the version. Headers and sets
/// have the case in which a vault or a user has written it.
pub fn same_key_url(one: &str, other: &str) -> bool {
    one.eq_ignore_ascii_case(other)
}

/// The name of the embedded vault with that URL; `None` for any other host.
pub fn embedded_vault_name(url: &str) -> Option<&str> {
    url.strip_prefix("https://")?
        .strip_suffix(DOMAIN)?
        .strip_suffix('.')
}

impl FromStr for KeyUrl {
    type Err = VaultError;

    fn from_str(text: &str) -> Result<Self, VaultError> {
        let refuse = || {
            bad(format!(
                "'{text}' is no key URL: it has the form \
                 https://VAULT.{DOMAIN}/keys/KEY or https://VAULT.{DOMAIN}/keys/KEY/VERSION"
            ))
        };
        // Schemes are case-insensitive (RFC 3986 §3.1), and so is Azure's path.
        let scheme = |text: &&str| text.eq_ignore_ascii_case("https://");
        text.get(..8).filter(scheme).ok_or_else(refuse)?;
        let rest = &text[8..];
        let (host, path) = rest.split_once('/').ok_or_else(refuse)?;
        // Azure's vault URLs end in a slash, so joining easily doubles one.
        let mut parts = path.split('/').filter(|part| !part.is_empty());
        // A host and perhaps a port (RFC 3986 §3.2): it is printed, and recorded in headers.
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b);
        if host.is_empty() || !host.bytes().all(plain) {
            return Err(refuse());
        }
        if !parts
            .next()
            .is_some_and(|part| part.eq_ignore_ascii_case("keys"))
        {
            return Err(refuse());
        }
        let name = parts.next().ok_or_else(refuse)?;
        let version = parts.next();
        let version_is_hex = |v: &str| v.len() == 32 && v.bytes().all(|b| b.is_ascii_hexdigit());
        if parts.next().is_some() || check_key_name(name).is_err() {
            return Err(refuse());
        }
        if version.is_some_and(|v| !version_is_hex(v)) {
            return Err(bad(format!(
                "the key version in '{text}' is not 32 hexadecimal digits"
            )));
        }
        // Host names are case-insensitive (RFC 3986 §3.2.2), and 443 is the port without one, but not
        // of an embedded vault, which has none.
        let host = host.to_ascii_lowercase();
        let plain = host.strip_suffix(":443").filter(|h| !h.ends_with(DOMAIN));
        Ok(Self {
            vault_url: format!("https://{}", plain.unwrap_or(&host)),
            key: KeyId {
                name: name.into(),
                version: version.map(str::to_ascii_lowercase),
            },
        })
    }
}

impl fmt::Display for KeyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/keys/{}", self.vault_url, self.key.name)?;
        match &self.key.version {
            Some(version) => write!(f, "/{version}"),
            None => Ok(()),
        }
    }
}

fn bad(message: String) -> VaultError {
    VaultError::new(VaultErrorCode::BadParameter, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vault_names() {
        for good in ["abc", "My-vault-1", "platform", "abcdefghijklmnopqrstuvwx"] {
            assert_eq!(normal_vault_name(good).unwrap(), good.to_lowercase());
        }
        for bad in [
            "ab",
            "1abc",
            "a--b",
            "abc-",
            "a/b",
            "../x",
            "a.b",
            "a_bc",
            "x".repeat(25).as_str(),
        ] {
            assert!(normal_vault_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn key_urls_with_and_without_a_version() {
        let version = "0123456789abcdef0123456789abcdef";
        let url: KeyUrl = "https://MyVault.vault.localhost//keys/My-Key/"
            .parse()
            .unwrap();
        assert_eq!(url.vault_url, "https://myvault.vault.localhost");
        assert_eq!(url.vault_name(), Some("myvault"));
        assert_eq!(
            (url.key.name.as_str(), url.key.version.as_deref()),
            ("My-Key", None)
        );
        let text = format!("https://v.vault.localhost/keys/k/{version}");
        let url: KeyUrl = text.parse().unwrap();
        assert_eq!(url.key.version.as_deref(), Some(version));
        assert_eq!(url.to_string(), text);
        let elsewhere: KeyUrl = "https://v.vault.example.net/keys/k".parse().unwrap();
        assert_eq!(elsewhere.vault_name(), None);
        for (text, vault_url) in [
            ("https://v.example.net:443/keys/k", "https://v.example.net"),
            (
                "https://v.example.net:8443/keys/k",
                "https://v.example.net:8443",
            ),
            (
                "https://v.vault.localhost:443/keys/k",
                "https://v.vault.localhost:443",
            ),
        ] {
            let url: KeyUrl = text.parse().unwrap();
            assert_eq!(url.vault_url, vault_url);
            assert_eq!(url.vault_name(), None);
        }
    }

    #[test]
    fn urls_of_keys_are_the_same_whatever_their_case() {
        let url = |text: &str| text.parse::<KeyUrl>().unwrap();
        let (one, other) = (
            "https://v.vault.localhost/keys/MyKey/0123456789abcdef0123456789ABCDEF",
            "https://V.vault.localhost/keys/mykey/0123456789ABCDEF0123456789abcdef",
        );
        assert_eq!(url(one), url(other));
        for odd in [
            "HTTPS://V.Vault.LocalHost/Keys/MyKey",
            "hTTps://v.vault.localhost/KEYS/mykey",
        ] {
            assert_eq!(
                url(odd),
                url("https://v.vault.localhost/keys/MyKey"),
                "{odd}"
            );
        }
        assert!(same_key_url(one, other));
        assert_eq!(url(one).key.name, "MyKey", "the case is kept");
        let another = "https://v.vault.localhost/keys/mykey2";
        assert_ne!(url(another), url("https://v.vault.localhost/keys/mykey"));
        assert!(!same_key_url(
            another,
            "https://v.vault.localhost/keys/mykey"
        ));
    }

    #[test]
    fn hosts_of_a_network_of_containers_have_underscores() {
        let url: KeyUrl = "https://key_vault:8443/keys/k".parse().unwrap();
        assert_eq!(url.to_string(), "https://key_vault:8443/keys/k");
    }

    #[test]
    fn what_is_no_key_url_is_refused() {
        for bad in [
            "http://v.vault.localhost/keys/k",
            "https://v.vault.localhost/secrets/k",
            "https://v.vault.localhost/keys/",
            "https://v.vault.localhost/keys/k/notaversion",
            "https://v.vault.localhost/keys/k/0123456789abcdef0123456789abcdef/x",
            "https:///keys/k",
            "https://v w/keys/k",
            "https://v\n/keys/k",
            "https://\u{1b}[2Jv/keys/k",
            "https://v\u{e9}/keys/k",
            "https://u@v.vault.localhost/keys/k",
            "httpſ://v.vault.localhost/keys/k",
            "https:/",
            "mykey",
        ] {
            assert!(bad.parse::<KeyUrl>().is_err(), "{bad}");
        }
    }
}
