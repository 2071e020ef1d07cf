//! The JSON of requests and answers. Times are Unix seconds, binary is base64url without padding.

use serde::Deserialize;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use super::ApiError;
use super::base64url::to_base64url;
use super::host::VaultHost;
use super::protection::Protection;
use super::shortened::shortened;
use vault::{
    AttributeChange, DeletedKey, KeyBundle, KeyChange, KeyOps, KeySize, NewKey, PrivateJwk,
    RotationPolicy, Tags,
};

/// Attributes of a request.
#[derive(Default, Deserialize)]
struct AttributesBody {
    enabled: Option<bool>,
    nbf: Option<i64>,
    exp: Option<i64>,
    exportable: Option<bool>,
}

/// `POST /keys/{name}/create`
#[derive(Deserialize)]
pub(super) struct CreateBody {
    kty: String,
    key_size: Option<u32>,
    public_exponent: Option<u64>,
    key_ops: Option<Vec<String>>,
    attributes: Option<AttributesBody>,
    tags: Option<Tags>,
}

/// `PUT /keys/{name}`
#[derive(Deserialize)]
pub(super) struct ImportBody {
    key: Box<PrivateJwk>,
    #[serde(rename = "Hsm", alias = "hsm")]
    hardware: Option<bool>,
    attributes: Option<AttributesBody>,
    tags: Option<Tags>,
}

/// `PATCH /keys/{name}/{version}`
#[derive(Deserialize)]
pub(super) struct UpdateBody {
    key_ops: Option<Vec<String>>,
    attributes: Option<AttributesBody>,
    tags: Option<Tags>,
}

/// `POST /keys/{name}/{version}/wrapkey` and its like.
#[derive(Deserialize)]
pub(super) struct CryptBody {
    pub alg: String,
    pub value: String,
}

/// `POST /keys/restore`
#[derive(Deserialize)]
pub(super) struct RestoreBody {
    pub value: String,
}

/// `POST /rng`
#[derive(Deserialize)]
pub(super) struct RandomBody {
    pub count: usize,
}

impl AttributesBody {
    fn change(&self) -> Result<AttributeChange, ApiError> {
        if self.exportable == Some(true) {
            return Err(ApiError::bad("keys of this vault are not exportable"));
        }
        Ok(AttributeChange {
            enabled: self.enabled,
            not_before: self
                .nbf
                .map(|nbf| moment("nbf", nbf).map(Some))
                .transpose()?,
            expires: self
                .exp
                .map(|exp| moment("exp", exp).map(Some))
                .transpose()?,
        })
    }
}

fn attributes(body: Option<&AttributesBody>) -> Result<AttributeChange, ApiError> {
    body.map_or_else(|| Ok(AttributeChange::default()), AttributesBody::change)
}

fn moment(field: &str, seconds: i64) -> Result<OffsetDateTime, ApiError> {
    OffsetDateTime::from_unix_timestamp(seconds)
        .map_err(|_| ApiError::bad(format!("'{field}' is no time in Unix seconds")))
}

fn key_ops(names: Option<&[String]>) -> Result<Option<KeyOps>, ApiError> {
    let names = names.map(|names| KeyOps::from_names(names.iter().map(String::as_str)));
    Ok(names.transpose()?)
}

impl CreateBody {
    pub(super) fn new_key(&self) -> Result<(NewKey, Protection), ApiError> {
        let protection = match self.kty.as_str() {
            "RSA" => Protection::Any,
            "RSA-HSM" => Protection::Hardware,
            other => {
                return Err(ApiError::bad(format!(
                    "the key type '{}' is not supported, use RSA",
                    shortened(other)
                )));
            }
        };
        if self.public_exponent.is_some_and(|e| e != 65537) {
            return Err(ApiError::bad("public_exponent has to be 65537"));
        }
        let size = match self.key_size {
            None | Some(2048) => KeySize::Rsa2048,
            Some(3072) => KeySize::Rsa3072,
            Some(4096) => KeySize::Rsa4096,
            Some(other) => {
                return Err(ApiError::bad(format!(
                    "key_size {other} is not supported, use 2048, 3072 or 4096"
                )));
            }
        };
        let mut new = NewKey::new(size);
        new.attributes = attributes(self.attributes.as_ref())?;
        if let Some(ops) = key_ops(self.key_ops.as_deref())? {
            new.key_ops = ops;
        }
        new.tags = self.tags.clone().unwrap_or_default();
        Ok((new, protection))
    }
}

impl ImportBody {
    pub(super) fn parts(self) -> Result<(Box<PrivateJwk>, KeyChange, Protection), ApiError> {
        let change = KeyChange {
            attributes: attributes(self.attributes.as_ref())?,
            key_ops: key_ops(self.key.key_ops())?,
            tags: self.tags,
        };
        let protection = match self.hardware == Some(true) || self.key.is_for_hardware() {
            true => Protection::Hardware,
            false => Protection::Any,
        };
        Ok((self.key, change, protection))
    }
}

impl UpdateBody {
    pub(super) fn change(self) -> Result<KeyChange, ApiError> {
        Ok(KeyChange {
            attributes: attributes(self.attributes.as_ref())?,
            key_ops: key_ops(self.key_ops.as_deref())?,
            tags: self.tags,
        })
    }
}

/// Keys as a client sees them: under the host name that it uses.
pub(super) struct View<'a> {
    vault_url: &'a str,
    host: &'a VaultHost,
}

impl<'a> View<'a> {
    pub(super) fn new(vault_url: &'a str, host: &'a VaultHost) -> Self {
        Self { vault_url, host }
    }

    pub(super) fn bundle(&self, bundle: &KeyBundle) -> Value {
        let key = &bundle.key;
        let mut body = json!({
            "key": {
                "kid": self.own(&key.kid),
                "kty": key.kty,
                "key_ops": key.key_ops,
                "n": key.n,
                "e": key.e,
            },
            "attributes": attributes_view(bundle),
        });
        if !bundle.tags.is_empty() {
            body["tags"] = json!(bundle.tags);
        }
        body
    }

    /// An entry of a list; the entry of a key, not of one of its versions, has no version.
    pub(super) fn item(&self, bundle: &KeyBundle, with_version: bool) -> Value {
        let kid = self.own(&bundle.key.kid);
        let kid = match with_version {
            true => kid.as_str(),
            false => kid.rsplit_once('/').map_or(kid.as_str(), |(key, _)| key),
        };
        let mut body = json!({"kid": kid, "attributes": attributes_view(bundle)});
        if !bundle.tags.is_empty() {
            body["tags"] = json!(bundle.tags);
        }
        body
    }

    pub(super) fn deleted(&self, key: &DeletedKey) -> Value {
        let mut body = self.bundle(&key.bundle);
        self.add_deletion(&mut body, key);
        body
    }

    pub(super) fn deleted_item(&self, key: &DeletedKey) -> Value {
        let mut body = self.item(&key.bundle, false);
        self.add_deletion(&mut body, key);
        body
    }

    pub(super) fn operation(&self, name: &str, version: &str, value: &[u8]) -> Value {
        json!({
            "kid": format!("{}/keys/{name}/{version}", self.host.url()),
            "value": to_base64url(value),
        })
    }

    pub(super) fn rotation_policy(
        &self,
        name: &str,
        policy: &RotationPolicy,
    ) -> Result<Value, ApiError> {
        let mut body = Map::new();
        let id = format!("{}/keys/{name}/rotationpolicy", self.host.url());
        body.insert("id".into(), id.into());
        match serde_json::to_value(policy).map_err(ApiError::internal)? {
            Value::Object(fields) => body.extend(fields),
            _ => return Err(ApiError::internal("a rotation policy is no JSON object")),
        }
        Ok(Value::Object(body))
    }

    fn add_deletion(&self, body: &mut Value, key: &DeletedKey) {
        let kid = &key.bundle.key.kid;
        let path = kid.strip_prefix(self.vault_url).unwrap_or(kid);
        let name = path.trim_start_matches("/keys/").split('/').next();
        let name = name.unwrap_or_default();
        body["recoveryId"] = format!("{}/deletedkeys/{name}", self.host.url()).into();
        body["deletedDate"] = key.deleted.unix_timestamp().into();
        body["scheduledPurgeDate"] = key.scheduled_purge.unix_timestamp().into();
    }

    /// The URL of a key with the host that the client used.
    fn own(&self, url: &str) -> String {
        let path = url.strip_prefix(self.vault_url).unwrap_or(url);
        format!("{}{path}", self.host.url())
    }
}

fn attributes_view(bundle: &KeyBundle) -> Value {
    let attributes = &bundle.attributes;
    let mut body = json!({"enabled": attributes.enabled});
    if let Some(nbf) = attributes.not_before {
        body["nbf"] = nbf.unix_timestamp().into();
    }
    if let Some(exp) = attributes.expires {
        body["exp"] = exp.unix_timestamp().into();
    }
    body["created"] = attributes.created.unix_timestamp().into();
    body["updated"] = attributes.updated.unix_timestamp().into();
    if let Some(days) = attributes.recoverable_days {
        body["recoverableDays"] = days.into();
    }
    if let Some(level) = &attributes.recovery_level {
        body["recoveryLevel"] = level.as_str().into();
    }
    body["exportable"] = false.into();
    body
}

/// `{"value": BYTES}`
pub(super) fn value(bytes: &[u8]) -> Value {
    json!({"value": to_base64url(bytes)})
}

/// A page of a list.
pub(super) fn list(items: Vec<Value>, next: Option<String>) -> Value {
    json!({"value": items, "nextLink": next})
}
