//! Which vault a request is for: the host name that the client used.

use super::ApiError;
use super::shortened::shortened;

/// A domain below which the embedded vaults have their names, whatever else is given.
pub const DEFAULT_DOMAIN: &str = "vault.localhost";

/// The vault that a host name means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VaultHost {
    /// The vault's name, in lower case.
    pub vault: String,
    /// Host and port as the client has them, in lower case: what its key ids carry.
    pub authority: String,
    /// What a token for the vault is asked for. The SDKs insist that the vault's host ends in its
    /// host, and some of them in its port too.
    pub resource: String,
}

impl VaultHost {
    /// Takes `NAME.DOMAIN[:PORT]` apart, with one of the `domains`.
    ///
    /// # Errors
    /// 400 for any other host: without a name it is not known which vault is meant.
    pub fn parse(host: &str, domains: &[String]) -> Result<Self, ApiError> {
        let authority = host.to_ascii_lowercase();
        let (name, port) = match authority.rsplit_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (authority.as_str(), None),
        };
        // The authority is repeated in answers, so nothing may be in it but a name and a port.
        let is_port = |port: &str| port.parse::<u16>().is_ok_and(|n| n.to_string() == port);
        let vault = domains
            .iter()
            .filter(|_| port.is_none_or(is_port))
            .find_map(|domain| {
                Some((
                    name.strip_suffix(domain.as_str())?.strip_suffix('.')?,
                    domain,
                ))
            });
        let is_label = |name: &str| {
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        let Some((vault, domain)) = vault.filter(|(vault, _)| is_label(vault)) else {
            return Err(ApiError::bad(format!(
                "the host '{}' names no key vault; use NAME.{}",
                shortened(host),
                domains.first().map_or(DEFAULT_DOMAIN, String::as_str)
            )));
        };
        let port = port.map(|port| format!(":{port}")).unwrap_or_default();
        Ok(Self {
            vault: vault.into(),
            resource: format!("https://{domain}{port}"),
            authority: authority.clone(),
        })
    }

    /// The vault's URL as the client knows it.
    pub fn url(&self) -> String {
        format!("https://{}", self.authority)
    }
}

/// What a token is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// The vaults.
    Vaults,
    /// The management API, and the directory of identities at the same hosts.
    Management,
    /// The directory alone.
    Directory,
}

/// What Azure's clients ask tokens for when nobody told them better.
const AZURE_VAULTS: &str = "vault.azure.net";
/// The same for the management API.
const AZURE_MANAGEMENT: [&str; 2] = ["management.azure.com", "management.core.windows.net"];
/// The same for Microsoft Graph.
const AZURE_DIRECTORY: &str = "graph.microsoft.com";

/// What a token for `resource` is good for: for vaults below one of the `domains`, or for the management
/// API, where it is served at hosts. The port does not matter: it says how the service is reached, not
/// which it is.
pub fn audience(resource: &str, domains: &[String], management: &[String]) -> Option<Audience> {
    let host = resource.strip_prefix("https://")?.trim_end_matches('/');
    let name = match host.rsplit_once(':') {
        // An address of version 6 has colons of its own.
        Some((name, port)) if !port.ends_with(']') => {
            port.parse::<u16>().ok()?;
            name
        }
        _ => host,
    };
    let is = |known: &str| name.eq_ignore_ascii_case(known);
    let with_azure = !management.is_empty();
    if domains.iter().any(|domain| is(domain)) || with_azure && is(AZURE_VAULTS) {
        return Some(Audience::Vaults);
    }
    if with_azure && is(AZURE_DIRECTORY) {
        return Some(Audience::Directory);
    }
    let known = management.iter().any(|host| is(host));
    (known || with_azure && AZURE_MANAGEMENT.iter().any(|host| is(host)))
        .then_some(Audience::Management)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domains() -> Vec<String> {
        vec![DEFAULT_DOMAIN.into(), "vault.example.net".into()]
    }

    #[test]
    fn a_vault_is_the_first_label() {
        let host = VaultHost::parse("MyVault.vault.localhost:8443", &domains()).unwrap();
        assert_eq!(host.vault, "myvault");
        assert_eq!(host.url(), "https://myvault.vault.localhost:8443");
        assert_eq!(host.resource, "https://vault.localhost:8443");
        let host = VaultHost::parse("v1.vault.example.net", &domains()).unwrap();
        assert_eq!(host.vault, "v1");
        assert_eq!(host.resource, "https://vault.example.net");
    }

    #[test]
    fn other_hosts_are_refused() {
        for host in [
            "",
            "vault.localhost",
            ".vault.localhost",
            "a.b.vault.localhost",
            "xvault.localhost",
            "127.0.0.1:8443",
            "v.vault.localhost:",
            "v.vault.localhost:99999",
            "v.vault.localhost:08443",
            "v.vault.localhost:84:43",
            "v\"x.vault.localhost",
            "v.vault.localhost.example.com",
        ] {
            assert!(VaultHost::parse(host, &domains()).is_err(), "{host}");
        }
    }

    #[test]
    fn an_audience_is_a_domain_with_or_without_a_port() {
        let vaults = Some(Audience::Vaults);
        for (resource, expected) in [
            ("https://vault.localhost", vaults),
            ("https://vault.localhost/", vaults),
            ("https://Vault.localhost:8443", vaults),
            ("https://vault.example.net:1/", vaults),
            ("http://vault.localhost", None),
            ("https://vault.localhost:x", None),
            ("https://a.vault.localhost", None),
            ("https://vault.localhost.example.com", None),
            ("https://management.azure.com/", None),
            ("https://vault.azure.net", None),
            ("https://localhost:8443", None),
            ("", None),
        ] {
            assert_eq!(audience(resource, &domains(), &[]), expected, "{resource}");
        }
    }

    #[test]
    fn a_token_for_the_management_api_is_none_for_vaults() {
        let hosts = ["localhost".to_owned(), "[::1]".into()];
        let (vaults, management) = (Some(Audience::Vaults), Some(Audience::Management));
        for (resource, expected) in [
            ("https://localhost:8443/", management),
            ("https://localhost:8443//", management),
            ("https://LOCALHOST", management),
            ("https://[::1]:8443/", management),
            ("https://[::1]", management),
            ("https://management.azure.com", management),
            ("https://graph.microsoft.com/", Some(Audience::Directory)),
            ("https://vault.localhost:8443", vaults),
            ("https://vault.azure.net", vaults),
            ("https://localhost.example.com", None),
            ("https://[::2]", None),
        ] {
            assert_eq!(
                audience(resource, &domains(), &hosts),
                expected,
                "{resource}"
            );
        }
    }
}
