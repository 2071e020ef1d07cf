//! The URL of a vault over HTTPS, as it is recorded.

use url::Url;

use crate::{VaultError, VaultErrorCode};

/// Checks the URL of a vault over HTTPS and returns it as it is recorded: without a path, the host
/// in lower case, no port when it is 443.
///
/// # Errors
/// [`VaultErrorCode::BadParameter`].
pub fn checked_vault_url(text: &str) -> Result<String, VaultError> {
    let refuse = |why: &str| {
        let message = format!("'{text}' is no URL of a key vault: {why}");
        VaultError::new(VaultErrorCode::BadParameter, message)
    };
    let url = Url::parse(text).map_err(|e| refuse(&e.to_string()))?;
    let plain = url.username().is_empty() && url.password().is_none();
    match url.host_str() {
        _ if url.scheme() != "https" => {
            Err(refuse("it has the form https://HOST or https://HOST:PORT"))
        }
        Some(host)
            if url.path() == "/" && url.query().is_none() && url.fragment().is_none() && plain =>
        {
            let port = url
                .port()
                .map_or_else(String::new, |port| format!(":{port}"));
            Ok(format!("https://{host}{port}"))
        }
        _ => Err(refuse("only the vault's host and port belong there")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_vaults_are_recorded_in_one_form() {
        for (text, url) in [
            ("https://V.vault.azure.net/", "https://v.vault.azure.net"),
            ("https://v.vault.azure.net:443", "https://v.vault.azure.net"),
            (
                "https://v.vault.localhost:8443",
                "https://v.vault.localhost:8443",
            ),
        ] {
            assert_eq!(checked_vault_url(text).unwrap(), url);
        }
        for bad in [
            "v.vault.azure.net",
            "http://v.vault.azure.net",
            "https://v/keys/k",
            "https://u:p@v/",
            "https://v/?x",
            "https://",
        ] {
            let error = checked_vault_url(bad).unwrap_err();
            assert_eq!(error.code, VaultErrorCode::BadParameter, "{bad}");
        }
    }
}
