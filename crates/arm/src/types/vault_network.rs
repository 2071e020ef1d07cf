//! The network rules of vaults: `networkAcls` and `publicNetworkAccess`.

use serde_json::{Value, json};

use super::bodies::one_of;

use crate::error::ArmError;
use vault::{IpRule, NetworkRules};

const ACLS: &str = "/properties/networkAcls";
const IP_RULES: &str = "properties.networkAcls.ipRules";

/// The rules that a body wants; what it leaves out stays as it is, the lists of `networkAcls` only as a whole.
///
/// # Errors
/// 400 for what is none, and for virtual networks, of which there are none.
pub fn wanted(body: &Value, now: &NetworkRules) -> Result<NetworkRules, ArmError> {
    let mut wanted = now.clone();
    let access = &["Enabled", "Disabled", "SecuredByPerimeter"];
    match one_of(body, "/properties/publicNetworkAccess", access)? {
        None => {}
        Some("SecuredByPerimeter") => {
            let target = "properties.publicNetworkAccess";
            return Err(ArmError::not_offered(target, "network security perimeters"));
        }
        Some(access) => wanted.public_access = access == "Enabled",
    }
    match body.pointer(ACLS) {
        None | Some(Value::Null) => return Ok(wanted),
        Some(Value::Object(_)) => {}
        Some(_) => {
            let target = "properties.networkAcls";
            let why = format!("The value of parameter {target} is no object.");
            return Err(ArmError::parameter(target, why));
        }
    }
    let action = one_of(body, &format!("{ACLS}/defaultAction"), &["Allow", "Deny"])?;
    wanted.allow_by_default = action != Some("Deny");
    let bypass = one_of(body, &format!("{ACLS}/bypass"), &["AzureServices", "None"])?;
    wanted.bypass_services = bypass != Some("None");
    wanted.ip_rules = ip_rules(body)?;
    let networks = body.pointer(&format!("{ACLS}/virtualNetworkRules"));
    let networks = networks.filter(|networks| !networks.is_null());
    if networks.is_some_and(|networks| networks.as_array().is_none_or(|list| !list.is_empty())) {
        let target = "properties.networkAcls.virtualNetworkRules";
        return Err(ArmError::not_offered(target, "virtual networks"));
    }
    wanted.check()?;
    Ok(wanted)
}

fn ip_rules(body: &Value) -> Result<Vec<IpRule>, ArmError> {
    let wrong = |why: String| ArmError::parameter(IP_RULES, why);
    let given = match body.pointer(&format!("{ACLS}/ipRules")) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(given)) => given,
        Some(_) => {
            return Err(wrong(format!(
                "The value of parameter {IP_RULES} is no list."
            )));
        }
    };
    let rule = |rule: &Value| {
        let text = rule["value"].as_str();
        let text = text.ok_or_else(|| wrong("A rule has an address as its 'value'.".into()))?;
        text.parse::<IpRule>().map_err(|error| wrong(error.message))
    };
    given.iter().map(rule).collect()
}

/// What an answer says of them, into its `properties`.
pub fn show(rules: &NetworkRules, properties: &mut Value) {
    let addresses = rules.ip_rules.iter();
    let addresses: Vec<Value> = addresses
        .map(|rule| json!({"value": rule.to_string()}))
        .collect();
    properties["networkAcls"] = json!({
        "bypass": if rules.bypass_services { "AzureServices" } else { "None" },
        "defaultAction": if rules.allow_by_default { "Allow" } else { "Deny" },
        "ipRules": addresses,
        "virtualNetworkRules": [],
    });
    properties["publicNetworkAccess"] = json!(if rules.public_access {
        "Enabled"
    } else {
        "Disabled"
    });
}
