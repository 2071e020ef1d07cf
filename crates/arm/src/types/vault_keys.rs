//! `Microsoft.KeyVault/vaults/keys`: keys as resources, so that a template can make one. The vault's REST API does
//! everything else with them.
//!
//! As in Azure this makes the first version of a key, and leaves one that is there as it is; and who may write the
//! vault's keys as resources need have no right to use them.

use serde_json::{Value, json};
use server::FrontReply;
use time::OffsetDateTime;

use super::bodies::{one_of, optional_bool, refuse_unknown};

use crate::audit::recorded;
use crate::call::Call;
use crate::error::ArmError;
use crate::reply::{item, list};
use installation::catalog::PlacementRecord;
use vault::{
    AttributeChange, EmbeddedVault, KeyBundle, KeyOps, KeySize, KeyType, KeyUrl, NewKey,
    VaultErrorCode,
};

const TYPE: &str = "Microsoft.KeyVault/vaults/keys";
const KNOWN: &[&str] = &["kty", "keySize", "keyOps", "attributes"];
const IGNORED: &[&str] = &["keyUri", "keyUriWithVersion"];

/// `…/vaults/{vault}/keys[/{name}]`
///
/// # Errors
/// 403, 404, and what is wrong with a body.
pub fn answer(
    call: &Call<'_>,
    placed: &PlacementRecord,
    vault_id: &str,
    name: Option<&str>,
) -> Result<FrontReply, ArmError> {
    let vault = call.installation().vault(&placed.name)?;
    let keys = Keys {
        call,
        vault,
        id: format!("{vault_id}/keys"),
        placed,
    };
    let require = |verb: &str| {
        let scope = name.map_or_else(|| vault_id.to_owned(), |name| format!("{}/{name}", keys.id));
        call.require(&format!("{TYPE}/{verb}"), &scope)
    };
    match (call.head.method.as_str(), name) {
        ("GET", None) => {
            require("read")?;
            let all = keys.vault.keys(&call.installation().operator())?;
            Ok(list(all.iter().map(|key| keys.view(key)).collect(), None))
        }
        ("GET", Some(name)) => {
            require("read")?;
            let found = keys.find(name)?;
            let found = found.ok_or_else(|| ArmError::no_resource(TYPE, name, &placed.group))?;
            Ok(item(keys.view(&found)))
        }
        ("PUT", Some(name)) => {
            require("write")?;
            keys.put(name)
        }
        _ => Err(ArmError::new(
            405,
            "MethodNotAllowed",
            "A key of a vault is read and made here; the vault itself does the rest.",
        )),
    }
}

struct Keys<'a> {
    call: &'a Call<'a>,
    vault: EmbeddedVault,
    id: String,
    placed: &'a PlacementRecord,
}

impl Keys<'_> {
    /// The latest version of a key.
    fn find(&self, name: &str) -> Result<Option<KeyBundle>, ArmError> {
        let operator = self.call.installation().operator();
        match self.vault.key_versions(&operator, name) {
            Ok(mut versions) => Ok(versions.pop()),
            Err(error) if error.code == VaultErrorCode::KeyNotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn put(&self, name: &str) -> Result<FrontReply, ArmError> {
        let new = wanted(&self.call.body, self.vault.key_type())?;
        let id = format!("{}/{name}", self.id);
        let _lock = self.call.changes.lock(&id, self.call.what())?;
        if let Some(found) = self.find(name)? {
            return Ok(item(self.view(&found)));
        }
        let operator = self.call.installation().operator();
        let made = recorded(self.call, "ResourceWrite", &id, || {
            let made = self.vault.create_key(&operator, name, &new);
            made.map_err(|error| match error.code {
                VaultErrorCode::KeyDeleted => ArmError::conflict(error.message),
                _ => error.into(),
            })
        })?;
        Ok(item(self.view(&made)))
    }

    fn view(&self, bundle: &KeyBundle) -> Value {
        let (key, attributes) = (&bundle.key, &bundle.attributes);
        let url = key.kid.parse::<KeyUrl>().map(|url| KeyUrl {
            vault_url: self.call.names.vault_url(&self.placed.name),
            ..url
        });
        let with_version = url.map_or_else(|_| key.kid.clone(), |url| url.to_string());
        let (uri, _) = with_version.rsplit_once('/').unwrap_or_default();
        let name = uri.rsplit('/').next().unwrap_or_default();
        let seconds = |time: Option<OffsetDateTime>| time.map(OffsetDateTime::unix_timestamp);
        let mut shown = json!({
            "enabled": attributes.enabled,
            "created": attributes.created.unix_timestamp(),
            "updated": attributes.updated.unix_timestamp(),
            "recoveryLevel": attributes.recovery_level,
            "exportable": false,
        });
        for (field, time) in [("nbf", attributes.not_before), ("exp", attributes.expires)] {
            if let Some(seconds) = seconds(time) {
                shown[field] = json!(seconds);
            }
        }
        json!({
            "id": format!("{}/{name}", self.id),
            "name": name,
            "type": TYPE,
            "location": self.placed.location,
            "tags": bundle.tags,
            "properties": {
                "attributes": shown,
                "kty": key.kty,
                "keyOps": key.key_ops,
                "keyUri": uri,
                "keyUriWithVersion": with_version,
            },
        })
    }
}

/// The key that a body describes.
fn wanted(body: &Value, of_vault: KeyType) -> Result<NewKey, ArmError> {
    refuse_unknown(body, KNOWN, IGNORED)?;
    let kind = one_of(body, "/properties/kty", &["RSA", "RSA-HSM", "EC", "EC-HSM"])?;
    match (kind, of_vault) {
        (None | Some("RSA"), _) | (Some("RSA-HSM"), KeyType::RsaHsm) => {}
        (Some(other), _) => {
            let what = format!("keys of the type '{other}' in this vault");
            return Err(ArmError::not_offered("properties.kty", &what));
        }
    }
    let invalid = |field: &str, why: &str| {
        let target = format!("properties.{field}");
        let why = format!("The value of parameter {target} is invalid: {why}.");
        ArmError::parameter(&target, why)
    };
    let given = |field: &str| {
        let value = body.pointer(&format!("/properties/{field}"));
        value.filter(|value| !value.is_null())
    };
    let size = match given("keySize").map(|size| size.as_u64().unwrap_or_default()) {
        None | Some(2048) => KeySize::Rsa2048,
        Some(3072) => KeySize::Rsa3072,
        Some(4096) => KeySize::Rsa4096,
        Some(_) => return Err(invalid("keySize", "it has to be 2048, 3072 or 4096")),
    };
    let mut new = NewKey::new(size);
    if let Some(ops) = given("keyOps") {
        let names = ops
            .as_array()
            .ok_or_else(|| invalid("keyOps", "it is no list"))?;
        let names: Option<Vec<&str>> = names.iter().map(Value::as_str).collect();
        new.key_ops =
            KeyOps::from_names(names.ok_or_else(|| invalid("keyOps", "it has no texts"))?)?;
    }
    if optional_bool(body, "/properties/attributes/exportable")? == Some(true) {
        let target = "properties.attributes.exportable";
        return Err(ArmError::not_offered(target, "keys that leave their vault"));
    }
    let moment = |field: &str| {
        let Some(value) = given(&format!("attributes/{field}")) else {
            return Ok(None);
        };
        let time = value
            .as_i64()
            .and_then(|it| OffsetDateTime::from_unix_timestamp(it).ok());
        let why = "it is no time in Unix seconds";
        time.map(|time| Some(Some(time)))
            .ok_or_else(|| invalid(&format!("attributes.{field}"), why))
    };
    new.attributes = AttributeChange {
        enabled: optional_bool(body, "/properties/attributes/enabled")?,
        not_before: moment("nbf")?,
        expires: moment("exp")?,
    };
    if let Some(tags) = crate::places::tags(body)? {
        new.tags = tags.into_iter().collect();
    }
    Ok(new)
}
