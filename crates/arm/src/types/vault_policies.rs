//! The access policies of a vault, as bodies have them.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::error::ArmError;
use vault::Permissions;

/// By object id, what it may do with keys.
pub type Policies = BTreeMap<Uuid, Permissions>;

/// The policies of a body. One identity may be there several times, as in Azure with several
/// applications: it may do all of that.
///
/// # Errors
/// 400, naming what is wrong.
pub fn parse(list: &Value, tenant: Uuid) -> Result<Policies, ArmError> {
    let mut found = named(list, tenant)?;
    // To Azure, who may do nothing has a policy all the same; to a vault here, none.
    found.retain(|_, permissions| !permissions.is_empty());
    Ok(found)
}

/// As [`parse`], with who may do nothing: whom a body names to take away what they have.
///
/// # Errors
/// As [`parse`].
pub fn named(list: &Value, tenant: Uuid) -> Result<Policies, ArmError> {
    let target = "properties.accessPolicies";
    let wrong =
        |why: String| ArmError::parameter(target, format!("An access policy is invalid: {why}."));
    let Some(list) = list.as_array() else {
        return Err(wrong("they are no list".into()));
    };
    let mut found = Policies::new();
    for policy in list {
        let id = |name: &str| {
            let text = policy[name].as_str().unwrap_or_default();
            Uuid::try_parse(text).map_err(|_| wrong(format!("'{text}' is no {name}")))
        };
        if id("tenantId")? != tenant {
            return Err(wrong(
                "identities of other tenants are not known here".into(),
            ));
        }
        let words = match &policy["permissions"]["keys"] {
            Value::Null => Vec::new(),
            Value::Array(words) => words.iter().filter_map(Value::as_str).collect(),
            _ => return Err(wrong("permissions.keys is no list".into())),
        };
        let permissions: Permissions = words.join(" ").parse()?;
        let so_far = found.entry(id("objectId")?).or_default();
        *so_far = so_far.union(&permissions);
    }
    Ok(found)
}

/// The policies for an answer.
pub fn view(policies: &Policies, tenant: Uuid) -> Value {
    policies
        .iter()
        .map(|(object_id, permissions)| {
            json!({
                "tenantId": tenant,
                "objectId": object_id,
                "permissions": {
                    "keys": permissions.names(),
                    "secrets": [],
                    "certificates": [],
                    "storage": [],
                },
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read_and_shown_as_azure_has_them() {
        let (tenant, id) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let policy = |keys: Value| json!([{"tenantId": tenant, "objectId": id, "permissions": {"keys": keys, "secrets": ["all"]}}]);
        let all = parse(&policy(json!(["All"])), tenant).unwrap();
        assert_eq!(all[&id], Permissions::all());
        let disks = parse(&policy(json!(["wrapKey", "unwrapKey", "get"])), tenant).unwrap();
        assert_eq!(disks[&id], Permissions::for_disks());
        assert_eq!(
            view(&disks, tenant)[0]["permissions"]["keys"],
            json!(["get", "wrapKey", "unwrapKey"])
        );
        assert!(parse(&policy(json!([])), tenant).unwrap().is_empty());
        assert_eq!(named(&policy(json!([])), tenant).unwrap().len(), 1);
        for (list, why) in [
            (policy(json!(["fly"])), "'fly'"),
            (policy(json!("all")), "no list"),
            (json!({}), "no list"),
            (
                json!([{"tenantId": tenant, "objectId": "x"}]),
                "no objectId",
            ),
            (json!([{"tenantId": id, "objectId": id}]), "other tenants"),
        ] {
            let error = parse(&list, tenant).unwrap_err();
            assert!(error.message.contains(why), "{why}: {}", error.message);
        }
    }
}
