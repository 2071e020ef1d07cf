//! `Microsoft.Compute/diskEncryptionSets`.

use serde_json::{Value, json};
use server::FrontReply;
use uuid::Uuid;

use super::bodies::{one_of, optional_bool, optional_text, refuse_unknown};
use super::set_identity::{identity_view, wanted_identity};
use super::sources::{BOTH, CUSTOMER, Linked, id_of};

use crate::call::{Call, Put, ResourceType};
use crate::error::ArmError;
use crate::names::{Names, time_text};
use crate::reply::list;
use disks::des::{self, DesChange, NewDes, UpdatedDes};
use installation::PLATFORM_VAULT;
use installation::catalog::{
    DesIdentity, DiskEncryptionSetRecord, DiskRecord, EncryptionType, Kind, PlacementRecord,
};
use vault::{KeyUrl, embedded_vault_name, same_key_url, vault_url};

const KNOWN: &[&str] = &[
    "encryptionType",
    "activeKey",
    "rotationToLatestKeyVersionEnabled",
    "federatedClientId",
];
const IGNORED: &[&str] = &[
    "provisioningState",
    "previousKeys",
    "lastKeyRotationTimestamp",
    "autoKeyRotationError",
];
const KEY_URL: &str = "/properties/activeKey/keyUrl";
const SOURCE_VAULT: &str = "/properties/activeKey/sourceVault/id";
/// What whoever makes a set does with the vault.
const DEPLOY: &str = "deploy/action";

/// Disk encryption sets.
pub struct Sets;

impl ResourceType for Sets {
    fn kind(&self) -> Kind {
        Kind::DiskEncryptionSet
    }

    fn provider(&self) -> &'static str {
        "Microsoft.Compute"
    }

    fn name(&self) -> &'static str {
        "diskEncryptionSets"
    }

    fn all(&self, call: &Call<'_>) -> Result<Vec<String>, ArmError> {
        let all = call.catalog().all_des()?.into_iter();
        Ok(all.map(|row| row.record.name).collect())
    }

    fn show(&self, call: &Call<'_>, placed: &PlacementRecord) -> Result<Value, ArmError> {
        let record = call.catalog().des(&placed.name)?.record;
        let active = des::active_key(call.installation(), &record)?;
        let previous: Vec<_> = record
            .previous_keys
            .iter()
            .map(|url| key_view(call, url))
            .collect();
        let mut body = json!({
            "identity": identity_view(call, &record)?,
            "properties": {
                "encryptionType": record.encryption_type.as_str(),
                "activeKey": key_view(call, &active),
                "previousKeys": previous,
                "rotationToLatestKeyVersionEnabled": record.auto_rotation,
                "provisioningState": "Succeeded",
            },
        });
        if let DesIdentity::UserAssigned {
            federated_client_id: Some(id),
            ..
        } = record.identity
        {
            body["properties"]["federatedClientId"] = json!(id);
        }
        if let Some(at) = record.last_rotation {
            body["properties"]["lastKeyRotationTimestamp"] = json!(time_text(at));
        }
        let left = des::left_behind(call.installation(), &record)?;
        if let Some(first) = left.first() {
            let message = still(first, left.len()) + " under another key than the set's.";
            body["properties"]["autoKeyRotationError"] =
                json!({"code": "KeyRotationIncomplete", "message": message});
        }
        Ok(body)
    }

    fn settings(&self, call: &Call<'_>, put: &Put<'_>) -> Result<Value, ArmError> {
        refuse_unknown(put.body, KNOWN, IGNORED)?;
        if let Some(wanted) = encryption_type(put.body)?
            && put.exists
            && call.catalog().des(&put.placed.name)?.record.encryption_type != wanted
        {
            let target = "properties.encryptionType";
            let why = format!("Changing property '{target}' is not allowed.");
            return Err(ArmError::parameter(target, why));
        }
        let identity = wanted_identity(call, put)?;
        optional_bool(put.body, "/properties/rotationToLatestKeyVersionEnabled")?;
        match key_url(call, put.body)? {
            Some(url) => {
                check_remote(call, put, identity, Some(&url))?;
                check_source_vault(call, put.body, &url)?;
            }
            None if put.exists => check_remote(call, put, identity, None)?,
            None => {
                let target = "properties.activeKey.keyUrl";
                let why = format!("Required parameter '{target}' is missing (null).");
                return Err(ArmError::parameter(target, why));
            }
        }
        Ok(json!({}))
    }

    fn apply(&self, call: &Call<'_>, put: &Put<'_>) -> Result<Option<Uuid>, ArmError> {
        let url = key_url(call, put.body)?;
        let follow = optional_bool(put.body, "/properties/rotationToLatestKeyVersionEnabled")?;
        let (installation, name) = (call.installation(), put.placed.name.as_str());
        match (put.exists, url) {
            (false, Some(url)) => {
                let wanted = wanted_identity(call, put)?;
                let of_user = |id: &&DesIdentity| matches!(id, DesIdentity::UserAssigned { .. });
                let new = NewDes {
                    name,
                    key_url: &url,
                    source_vault: None,
                    auto_rotation: follow.unwrap_or(false),
                    encryption_type: encryption_type(put.body)?.unwrap_or_default(),
                    identity: wanted.as_ref().filter(of_user).cloned(),
                };
                des::create(installation, &new)?;
                if wanted == Some(DesIdentity::None) {
                    // A set that is not as it was wanted is not there.
                    if let Err(error) = des::remove_identity(installation, name) {
                        des::delete(installation, name)?;
                        return Err(error.into());
                    }
                }
            }
            (_, url) => change(call, put, url, follow)?,
        }
        Ok(None)
    }

    fn delete(&self, call: &Call<'_>, name: &str) -> Result<(), ArmError> {
        des::delete(call.installation(), name)?;
        Ok(())
    }

    fn below(
        &self,
        call: &Call<'_>,
        placed: &PlacementRecord,
        words: &[String],
    ) -> Option<Result<FrontReply, ArmError>> {
        let [word] = words else {
            return None;
        };
        let asked = word.eq_ignore_ascii_case("associatedResources") && call.head.method == "GET";
        asked.then(|| associated(call, placed))
    }
}

fn change(
    call: &Call<'_>,
    put: &Put<'_>,
    url: Option<String>,
    follow: Option<bool>,
) -> Result<(), ArmError> {
    let (installation, name) = (call.installation(), put.placed.name.as_str());
    let now = call.catalog().des(name)?.record;
    let wanted = wanted_identity(call, put)?;
    // For the key or the identity that it has: of a PATCH the body has what else stays too.
    let asks_for_same = wanted != Some(DesIdentity::None)
        && (call.body.pointer(KEY_URL).is_some()
            || call.body.get("identity").is_some() && wanted.as_ref() == Some(&now.identity));
    let mut identity = None;
    match (wanted, &now.identity) {
        (None, _) | (Some(DesIdentity::None), DesIdentity::None) => {}
        (Some(DesIdentity::None), _) => {
            des::remove_identity(installation, name)?;
        }
        (Some(DesIdentity::SystemAssigned), DesIdentity::None) => {
            des::assign_identity(installation, name, None)?;
        }
        (Some(wanted @ DesIdentity::UserAssigned { .. }), DesIdentity::None) => {
            des::assign_identity(installation, name, Some(&wanted))?;
        }
        // From the identity of a user to one of its own, and the other way round. What the machine has stays.
        (Some(wanted @ DesIdentity::UserAssigned { .. }), _)
        | (Some(wanted), DesIdentity::UserAssigned { .. }) => {
            identity = Some(wanted).filter(|wanted| *wanted != now.identity);
        }
        (Some(_), _) => {}
    }
    // What is shown of a set that follows its key, and goes on following it, is no other key.
    let follows = now.auto_rotation && follow != Some(false);
    let shown = follows.then(|| des::active_key(installation, &now));
    let shown = shown.transpose()?;
    let is_same = |url: &str| {
        let mut known = std::iter::once(&now.key_url).chain(&shown);
        known.any(|known| same_key_url(url, known))
    };
    let url = url.filter(|url| !is_same(url));
    let follow = follow.filter(|follow| *follow != now.auto_rotation);
    if url.is_none() && follow.is_none() && identity.is_none() {
        return take_up_left(call, &now, asks_for_same);
    }
    let change = DesChange {
        key_url: url.as_deref(),
        source_vault: None,
        auto_rotation: follow,
        identity,
    };
    told(des::update(installation, name, &change)?)
}

/// Tries once more what an earlier change of the key has left under the old one. That it is still left is no failure of
/// a request that changes something else: `autoKeyRotationError` says so. It is one of the request that is repeated.
fn take_up_left(
    call: &Call<'_>,
    now: &DiskEncryptionSetRecord,
    is_asked: bool,
) -> Result<(), ArmError> {
    if des::left_behind(call.installation(), now)?.is_empty() {
        return Ok(());
    }
    let same = DesChange {
        key_url: Some(&now.key_url),
        ..DesChange::default()
    };
    let again = des::update(call.installation(), &now.name, &same);
    match again.map_err(ArmError::from).and_then(told) {
        Err(error) if !is_asked => {
            log::warn!("the set '{}': {}", now.name, error.message);
            Ok(())
        }
        again => again,
    }
}

/// The refusal where something is left under the old key, which is needed until that is mended.
fn told(updated: UpdatedDes) -> Result<(), ArmError> {
    let count = updated.left.len();
    let Some(first) = updated.left.into_iter().next() else {
        return Ok(());
    };
    let what = still(&first.record, count);
    let reason = ArmError::from(first.reason);
    let message = format!(
        "The disk encryption set is changed, but {what} wrapped by {}, which must stay enabled until this request, \
         repeated, has succeeded: {}",
        first.key_url, reason.message
    );
    log::error!("{message}");
    // It is not to be made again and again: the set is changed.
    Err(ArmError {
        message,
        retry_after: None,
        ..reason
    })
}

/// The first of so many things, as a subject.
fn still(first: &DiskRecord, count: usize) -> String {
    let (kind, name) = (first.kind, &first.name);
    match count {
        0 | 1 => format!("the {kind} '{name}' is still"),
        more => format!("the {kind} '{name}' and {} others are still", more - 1),
    }
}

/// Whose keys the disks of a set are to be under; `None` where the body does not say.
fn encryption_type(body: &Value) -> Result<Option<EncryptionType>, ArmError> {
    let target = "properties.encryptionType";
    let kinds = &[CUSTOMER, BOTH, "ConfidentialVmEncryptedWithCustomerKey"];
    match one_of(body, "/properties/encryptionType", kinds)? {
        None => Ok(None),
        Some(CUSTOMER) => Ok(Some(EncryptionType::CustomerKey)),
        Some(BOTH) => Ok(Some(EncryptionType::PlatformAndCustomerKeys)),
        Some(other) => {
            let what = format!("the encryptionType '{other}'");
            Err(ArmError::not_offered(target, &what))
        }
    }
}

/// The URL of a key as clients reach it, and its vault.
fn key_view(call: &Call<'_>, url: &str) -> Value {
    let vault = url.parse::<KeyUrl>().ok();
    let name = vault.as_ref().and_then(KeyUrl::vault_name);
    let (Some(parsed), Some(name)) = (&vault, name) else {
        return json!({"keyUrl": url});
    };
    let url = KeyUrl {
        vault_url: call.names.vault_url(name),
        key: parsed.key.clone(),
    };
    json!({
        "keyUrl": url.to_string(),
        "sourceVault": {"id": id_of(call, Kind::Vault, name)},
    })
}

/// The key's URL of a body as this installation has it: its own vaults are known by another name to
/// clients, with a port.
fn key_url(call: &Call<'_>, body: &Value) -> Result<Option<String>, ArmError> {
    let Some(text) = optional_text(body, KEY_URL)? else {
        return Ok(None);
    };
    let mut url: KeyUrl = text.parse()?;
    if let Some(name) = own_vault(&url.vault_url, &call.names, call.site.domains()) {
        url.vault_url = vault_url(&name);
    }
    if url.vault_name() == Some(PLATFORM_VAULT) {
        let why = "The key is that of the platform, which no disk encryption set has.";
        return Err(ArmError::parameter("properties.activeKey.keyUrl", why));
    }
    Ok(Some(url.to_string()))
}

/// The name of a vault of this installation with that URL, as clients reach it.
fn own_vault(url: &str, names: &Names, domains: &[String]) -> Option<String> {
    if let Some(name) = embedded_vault_name(url) {
        return Some(name.into());
    }
    let port = names.vaults.split_once(':').map(|(_, port)| port);
    let host = url.strip_prefix("https://")?;
    let host = match (host.split_once(':'), port) {
        (Some((host, theirs)), Some(port)) if theirs == port => host,
        (None, None) => host,
        _ => return None,
    };
    let name = domains
        .iter()
        .find_map(|domain| host.strip_suffix(domain.as_str())?.strip_suffix('.'))?;
    Some(name.into())
}

/// A vault elsewhere is for the identity of a user which a client there trusts: who may write sets may not have the
/// host's own identities act for them. A set that the operator has made with one of these gets another key from those
/// who may use all vaults. Nobody else is told which vaults are connected. `url` is the key's, unless it stays.
fn check_remote(
    call: &Call<'_>,
    put: &Put<'_>,
    wanted: Option<DesIdentity>,
    url: Option<&str>,
) -> Result<(), ArmError> {
    let now = match put.exists {
        true => Some(call.catalog().des(&put.placed.name)?.record),
        false => None,
    };
    let known = now.as_ref().map(|now| now.key_url.as_str());
    let Some(url) = url.or(known) else {
        return Ok(());
    };
    if url.parse::<KeyUrl>()?.vault_name().is_some() {
        return Ok(());
    }
    let active = now.as_ref();
    let active = active.map(|now| des::active_key(call.installation(), now));
    let active = active.transpose()?;
    let same_key = [known, active.as_deref()]
        .into_iter()
        .flatten()
        .any(|known| same_key_url(url, known));
    let of_host = now.as_ref().is_some_and(|now| {
        let identity = &now.identity;
        matches!(
            identity,
            DesIdentity::Imds { .. } | DesIdentity::Endpoint { .. }
        )
    });
    let identity = now.map(|now| now.identity);
    // The host's own are shown as the set's.
    let same_identity = match &wanted {
        None => identity.is_some(),
        Some(DesIdentity::SystemAssigned) => of_host,
        Some(wanted) => identity.as_ref() == Some(wanted),
    };
    match wanted.or(identity) {
        Some(DesIdentity::UserAssigned {
            federated_client_id: Some(_),
            ..
        }) => Ok(()),
        // What clients send back that change something else; nobody uses a key any more.
        Some(identity) if same_key && (same_identity || identity == DesIdentity::None) => Ok(()),
        _ if of_host && same_identity => {
            let action = format!("Microsoft.KeyVault/vaults/{DEPLOY}");
            call.require_linked(&action, &call.names.subscription_id())
        }
        _ => Err(ArmError::parameter(
            "properties.activeKey.keyUrl",
            "A key that is in no vault of this installation is used by a user-assigned identity, with a \
             'federatedClientId' that trusts it.",
        )),
    }
}

/// The vault that a body names has to be that of the key, and whoever asks allowed to use it: whoever has a set of a
/// vault's key keeps the vault from being deleted.
fn check_source_vault(call: &Call<'_>, body: &Value, url: &str) -> Result<(), ArmError> {
    let url: KeyUrl = url.parse()?;
    let Some(id) = optional_text(body, SOURCE_VAULT)? else {
        return url
            .vault_name()
            .map_or(Ok(()), |name| check_vault_of_key(call, name));
    };
    let target = "properties.activeKey.sourceVault.id";
    let linked = Linked::parse(call, target, id)?;
    let names_it = url
        .vault_name()
        .is_some_and(|name| name.eq_ignore_ascii_case(linked.name()));
    if linked.kind.kind() != Kind::Vault || !names_it {
        let why = format!(
            "The key '{}' is not in the key vault '{}'.",
            url.key.name,
            linked.name()
        );
        return Err(ArmError::parameter(target, why));
    }
    linked.find(call, DEPLOY)?;
    Ok(())
}

/// The vault of a key, of which the body does not say where it is. Whoever may not use it is not told whether it is
/// there, and so not where.
fn check_vault_of_key(call: &Call<'_>, vault: &str) -> Result<(), ArmError> {
    let action = format!("Microsoft.KeyVault/vaults/{DEPLOY}");
    let scope = match call.catalog().name_of(Kind::Vault, vault)? {
        Some(name) => id_of(call, Kind::Vault, &name),
        None => call.names.subscription_id(),
    };
    if call.may(&action, &scope) {
        return Ok(());
    }
    call.require_linked(&action, &call.names.subscription_id())
}

/// Everything that has a layer under the set.
fn associated(call: &Call<'_>, placed: &PlacementRecord) -> Result<FrontReply, ArmError> {
    let rows = call.catalog().resources_under(Some(&placed.name))?;
    let ids = rows
        .iter()
        .map(|row| json!(id_of(call, row.record.kind.into(), &row.record.name)));
    Ok(list(ids.collect(), None))
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn a_vault_of_this_installation_is_known_by_any_of_its_names() {
        let names = Names {
            subscription: Uuid::nil(),
            tenant: Uuid::nil(),
            base: "https://localhost:8443".into(),
            vaults: "vault.localhost:8443".into(),
        };
        let domains = ["vault.localhost".to_owned(), "vault.example.net".into()];
        let own = |url: &str| own_vault(url, &names, &domains);
        assert_eq!(
            own("https://kv.vault.localhost:8443").as_deref(),
            Some("kv")
        );
        assert_eq!(own("https://kv.vault.localhost").as_deref(), Some("kv"));
        assert_eq!(
            own("https://kv.vault.example.net:8443").as_deref(),
            Some("kv")
        );
        assert_eq!(own("https://kv.vault.localhost:9443"), None);
        assert_eq!(own("https://kv.vault.azure.net"), None);
        assert_eq!(own("https://vault.localhost:8443"), None);
    }
}
