//! What ids and URLs are made of.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use installation::Installation;
use keys::sha256;
use server::{Head, Site};

/// The names that ids and URLs are made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// The one subscription.
    pub subscription: Uuid,
    /// The installation's id, Azure's tenant.
    pub tenant: Uuid,
    /// `https://HOST[:PORT]`, as the client has it.
    pub base: String,
    /// `DOMAIN[:PORT]`, below which vaults have their names.
    pub vaults: String,
}

impl Names {
    /// For a request.
    pub fn new(site: &Site<'_>, head: &Head) -> Self {
        let port = match head.authority.rsplit_once(':') {
            Some((_, port)) if port.parse::<u16>().is_ok() => format!(":{port}"),
            _ => String::new(),
        };
        // The operator's own domain is the one that clients on other hosts know.
        let domain = site.domains().last().cloned().unwrap_or_default();
        Self {
            subscription: subscription(site.installation()),
            tenant: site.installation().id(),
            base: format!("https://{}", head.authority.to_ascii_lowercase()),
            vaults: format!("{domain}{port}"),
        }
    }

    /// `/subscriptions/S`
    pub fn subscription_id(&self) -> String {
        format!("/subscriptions/{}", self.subscription)
    }

    /// `/subscriptions/S/resourceGroups/G`
    pub fn group_id(&self, group: &str) -> String {
        format!("{}/resourceGroups/{group}", self.subscription_id())
    }

    /// The id of a resource; `full_type` is as `Microsoft.Compute/disks`.
    pub fn resource_id(&self, group: &str, full_type: &str, name: &str) -> String {
        format!("{}/providers/{full_type}/{name}", self.group_id(group))
    }

    /// The URL of a vault of this installation, as clients reach it.
    pub fn vault_url(&self, name: &str) -> String {
        format!("https://{name}.{}", self.vaults)
    }
}

/// The id of the one subscription of an installation. It is made of the installation's, so that it need
/// not be stored.
pub fn subscription(installation: &Installation) -> Uuid {
    let tenant = installation.id();
    let what = b"sealdisk subscription id v1\0".as_slice();
    let hash = sha256(&[what, tenant.as_bytes()].concat());
    let mut id = [0; 16];
    id.copy_from_slice(&hash[..16]);
    uuid::Builder::from_custom_bytes(id).into_uuid()
}

/// A time as bodies have it.
pub fn time_text(time: OffsetDateTime) -> String {
    time.format(&Rfc3339).unwrap_or_default()
}
