//! From where a vault may be asked, as Azure's firewall of a key vault has it.
//!
//! | Who asks | What counts |
//! |---|---|
//! | A client over the network | `publicNetworkAccess`, then `ipRules`, then `defaultAction` |
//! | A disk encryption set of this installation, over the network | the same; `bypass` lets it get, wrap and unwrap |
//! | A disk encryption set or the platform on this host | `bypass` alone: it wraps and unwraps as a trusted service |
//! | The operator on this host, the vault's own rules | nothing: they come over no network |

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};

use crate::{Caller, KeyPermission, Origin, VaultError, VaultErrorCode};

/// Rules of a vault at most, as in Azure.
const MAX_IP_RULES: usize = 1000;

/// From where a vault may be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkRules {
    /// Whether clients over the network may ask at all.
    pub public_access: bool,
    /// Whether addresses may ask that no rule names.
    pub allow_by_default: bool,
    /// Whether trusted services may ask in spite of the rest.
    pub bypass_services: bool,
    /// The addresses that may ask.
    pub ip_rules: Vec<IpRule>,
}

/// Everybody may ask.
impl Default for NetworkRules {
    fn default() -> Self {
        Self {
            public_access: true,
            allow_by_default: true,
            bypass_services: true,
            ip_rules: Vec::new(),
        }
    }
}

/// An address, or a range of them (CIDR).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IpRule(IpNet);

impl FromStr for IpRule {
    type Err = VaultError;

    fn from_str(text: &str) -> Result<Self, VaultError> {
        let address = || text.parse::<IpAddr>().map(IpNet::from);
        // What is written with some address of the range means the range.
        let net = text.parse::<IpNet>().or_else(|_| address());
        net.map(|net| Self(canonical(net.trunc()))).map_err(|_| {
            let shown: String = text.chars().take(50).collect();
            let message = format!(
                "'{shown}' is no IP address and no range of them: give it as 203.0.113.7 or 203.0.113.0/24"
            );
            VaultError::new(VaultErrorCode::BadParameter, message)
        })
    }
}

/// IPv4 addresses written as IPv6 has them are what they are: peers are compared so.
fn canonical(net: IpNet) -> IpNet {
    const MAPPED: u8 = 96; // ::ffff:0:0/96
    let IpNet::V6(wide) = net else {
        return net;
    };
    let address = wide.addr().to_ipv4_mapped();
    let length = wide.prefix_len().checked_sub(MAPPED);
    let narrow = address.zip(length);
    let narrow = narrow.and_then(|(address, length)| Ipv4Net::new(address, length).ok());
    narrow.map_or(net, IpNet::V4)
}

impl TryFrom<String> for IpRule {
    type Error = VaultError;

    fn try_from(text: String) -> Result<Self, VaultError> {
        text.parse()
    }
}

impl From<IpRule> for String {
    fn from(rule: IpRule) -> Self {
        rule.to_string()
    }
}

/// As Azure has it: one address with its length too.
impl fmt::Display for IpRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl NetworkRules {
    /// Refuses more rules than a vault has.
    ///
    /// # Errors
    /// [`VaultErrorCode::BadParameter`].
    pub fn check(&self) -> Result<(), VaultError> {
        match self.ip_rules.len() {
            0..=MAX_IP_RULES => Ok(()),
            many => Err(VaultError::new(
                VaultErrorCode::BadParameter,
                format!(
                    "{many} are too many addresses for a key vault, which has {MAX_IP_RULES} at most"
                ),
            )),
        }
    }

    /// Why a caller may not ask the vault of that name for something from where it is.
    pub(crate) fn refusal(
        &self,
        vault: &str,
        caller: &Caller,
        permission: KeyPermission,
    ) -> Option<VaultError> {
        if self.public_access && self.allow_by_default {
            return None;
        }
        let uses = matches!(
            permission,
            KeyPermission::WrapKey | KeyPermission::UnwrapKey
        );
        let (address, is_service) = match &caller.origin {
            Origin::Vault => return None,
            // What the operator does with keys is something else.
            Origin::Local { .. } if !uses => return None,
            Origin::Local { .. } => (None, true),
            // A client at an IPv4 address is one, also where both kinds come to one socket.
            Origin::Remote(peer) => {
                let reads = uses || permission == KeyPermission::Get;
                (Some(peer.ip().to_canonical()), caller.is_service && reads)
            }
        };
        let is_named = |address: IpAddr| self.ip_rules.iter().any(|rule| rule.0.contains(&address));
        if is_service && self.bypass_services || self.public_access && address.is_some_and(is_named)
        {
            return None;
        }
        let from = address.map_or_else(|| "this host".into(), |address| address.to_string());
        let whose = format!(
            "Client address: {from}, caller: oid={}, vault: {vault}",
            caller.object_id
        );
        Some(match self.public_access {
            false => VaultError::new(
                VaultErrorCode::ForbiddenByConnection,
                format!(
                    "Public network access is disabled and request is not from a trusted service nor via an approved \
                     private link. {whose}"
                ),
            ),
            true => VaultError::new(
                VaultErrorCode::ForbiddenByFirewall,
                format!(
                    "Client address is not authorized and caller is not a trusted service. {whose}"
                ),
            ),
        })
    }
}

/// For the audit log.
impl fmt::Display for NetworkRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rules: Vec<String> = self.ip_rules.iter().map(ToString::to_string).collect();
        write!(
            f,
            "publicNetworkAccess={} defaultAction={} bypass={} ipRules={}",
            if self.public_access {
                "Enabled"
            } else {
                "Disabled"
            },
            if self.allow_by_default {
                "Allow"
            } else {
                "Deny"
            },
            if self.bypass_services {
                "AzureServices"
            } else {
                "None"
            },
            rules.join(",")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn rules(ip_rules: &[&str]) -> NetworkRules {
        NetworkRules {
            allow_by_default: false,
            ip_rules: ip_rules.iter().map(|rule| rule.parse().unwrap()).collect(),
            ..NetworkRules::default()
        }
    }

    fn remote(address: &str) -> Caller {
        Caller::remote(Uuid::nil(), address.parse().unwrap())
    }

    fn refused(
        rules: &NetworkRules,
        caller: &Caller,
        permission: KeyPermission,
    ) -> Option<VaultErrorCode> {
        rules
            .refusal("kv", caller, permission)
            .map(|error| error.code)
    }

    #[test]
    fn addresses_are_let_in_that_a_rule_names() {
        let (get, firewall) = (
            KeyPermission::Get,
            Some(VaultErrorCode::ForbiddenByFirewall),
        );
        let some = rules(&["203.0.113.7", "10.1.2.3/8", "2001:db8::/32"]);
        for (peer, wanted) in [
            ("203.0.113.7:9", None),
            ("[::ffff:203.0.113.7]:9", None),
            ("203.0.113.8:9", firewall),
            ("10.255.0.1:9", None),
            ("[2001:db8:1::2]:9", None),
            ("[2001:db9::1]:9", firewall),
            ("127.0.0.1:9", firewall),
            ("[::1]:9", firewall),
        ] {
            assert_eq!(refused(&some, &remote(peer), get), wanted, "{peer}");
        }
        // Written as IPv6 has them, rules of IPv4 addresses are such.
        let mapped = rules(&[
            "::ffff:203.0.113.7",
            "::ffff:10.1.2.3/104",
            "::ffff:c000:201/128",
        ]);
        for (peer, wanted) in [
            ("203.0.113.7:9", None),
            ("[::ffff:203.0.113.7]:9", None),
            ("203.0.113.8:9", firewall),
            ("10.255.0.1:9", None),
            ("11.0.0.1:9", firewall),
            ("192.0.2.1:9", None),
        ] {
            assert_eq!(refused(&mapped, &remote(peer), get), wanted, "{peer}");
        }
        let shown: Vec<_> = mapped.ip_rules.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["203.0.113.7/32", "10.0.0.0/8", "192.0.2.1/32"]);
        // All of one kind is nothing of the other.
        let all = rules(&["0.0.0.0/0"]);
        assert_eq!(refused(&all, &remote("192.0.2.1:1"), get), None);
        assert_eq!(refused(&all, &remote("[::1]:1"), get), firewall);
        assert_eq!(
            refused(&NetworkRules::default(), &remote("192.0.2.1:1"), get),
            None
        );
        let closed = NetworkRules {
            public_access: false,
            allow_by_default: true,
            ..all
        };
        let connection = Some(VaultErrorCode::ForbiddenByConnection);
        assert_eq!(refused(&closed, &remote("192.0.2.1:1"), get), connection);
    }

    #[test]
    fn trusted_services_use_keys_and_no_more() {
        let denied = Some(VaultErrorCode::ForbiddenByFirewall);
        let bypass = rules(&[]);
        let none = NetworkRules {
            bypass_services: false,
            ..rules(&[])
        };
        let service = Caller {
            is_service: true,
            ..remote("192.0.2.1:1")
        };
        let local = Caller::local(Uuid::nil());
        for (caller, permission, with, without) in [
            (&service, KeyPermission::Get, None, denied),
            (&service, KeyPermission::UnwrapKey, None, denied),
            (&service, KeyPermission::Create, denied, denied),
            (&local, KeyPermission::WrapKey, None, denied),
            (&local, KeyPermission::UnwrapKey, None, denied),
            // The operator is on no network, and cannot be locked out.
            (&local, KeyPermission::Get, None, None),
            (&local, KeyPermission::Delete, None, None),
        ] {
            assert_eq!(refused(&bypass, caller, permission), with, "{permission}");
            assert_eq!(refused(&none, caller, permission), without, "{permission}");
        }
        let vault = Caller::vault();
        assert_eq!(refused(&none, &vault, KeyPermission::Rotate), None);
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for (text, shown) in [
            ("203.0.113.7", "203.0.113.7/32"),
            ("203.0.113.7/24", "203.0.113.0/24"),
            ("2001:db8::1/32", "2001:db8::/32"),
        ] {
            assert_eq!(text.parse::<IpRule>().unwrap().to_string(), shown);
        }
        for bad in [
            "",
            "x",
            "203.0.113",
            "203.0.113.7/33",
            "1.2.3.4/-1",
            " 1.2.3.4",
            "1.2.3.4/8/8",
        ] {
            assert!(bad.parse::<IpRule>().is_err(), "{bad}");
        }
        let text = serde_json::to_string(&rules(&["10.0.0.0/8"])).unwrap();
        let read: NetworkRules = serde_json::from_str(&text).unwrap();
        assert_eq!(read, rules(&["10.0.0.0/8"]));
        let many = NetworkRules {
            ip_rules: vec!["10.0.0.1".parse().unwrap(); MAX_IP_RULES + 1],
            ..NetworkRules::default()
        };
        assert!(many.check().is_err());
    }
}
