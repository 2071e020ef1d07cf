//! `Microsoft.KeyVault/vaults`: the vaults that are kept in this installation. That of the
//! platform-managed key is not among them: it is what Microsoft's own vault is in Azure.

use serde_json::{Value, json};
use server::FrontReply;
use uuid::Uuid;

use super::bodies::{one_of, optional_bool, optional_text, refuse_unknown};
use super::vault_keys;
use super::vault_network;
use super::vault_policies::{Policies, named, parse, view};

use crate::audit::recorded;
use crate::call::{Call, Put, ResourceType};
use crate::error::ArmError;
use crate::etag::check_etag;
use crate::names::time_text;
use crate::places::{body, placement};
use crate::reply::item;
use crate::roles::{RBAC, follow_roles, recover, set_policies, set_policy};
use installation::PLATFORM_VAULT;
use installation::catalog::{Kind, PlacementRecord};
use vault::{EmbeddedVault, NetworkRules, Permissions, VaultSettings, normal_vault_name};

const KNOWN: &[&str] = &[
    "tenantId",
    "sku",
    "accessPolicies",
    "enableRbacAuthorization",
    "enableSoftDelete",
    "enablePurgeProtection",
    "softDeleteRetentionInDays",
    "networkAcls",
    "publicNetworkAccess",
    "createMode",
];
const IGNORED: &[&str] = &[
    "vaultUri",
    "provisioningState",
    "hsmPoolResourceId",
    "privateEndpointConnections",
    // Whom Azure's own services ask for; those that there are here need nobody's leave.
    "enabledForDeployment",
    "enabledForDiskEncryption",
    "enabledForTemplateDeployment",
];
/// Where the settings have the policies of a vault that is governed by roles.
const POLICIES: &str = "accessPolicies";

/// So many identities are named in a record.
const NAMED: usize = 16;

/// Key vaults.
pub struct Vaults;

impl ResourceType for Vaults {
    fn kind(&self) -> Kind {
        Kind::Vault
    }

    fn provider(&self) -> &'static str {
        "Microsoft.KeyVault"
    }

    fn name(&self) -> &'static str {
        "vaults"
    }

    fn find(&self, call: &Call<'_>, name: &str) -> Result<Option<String>, ArmError> {
        let Some(name) = call.catalog().name_of(Kind::Vault, name)? else {
            return Ok(None);
        };
        let record = call.catalog().vault(&name)?.record;
        if record.kind.is_remote() || name == PLATFORM_VAULT {
            return Ok(None);
        }
        let is_deleted = call.installation().vault(&name)?.deletion()?.is_some();
        Ok((!is_deleted).then_some(name))
    }

    fn all(&self, call: &Call<'_>) -> Result<Vec<String>, ArmError> {
        let deleted = call.installation().deleted_vaults()?;
        let all = call.installation().vaults_here()?.into_iter();
        Ok(all
            .map(|record| record.name)
            .filter(|name| name != PLATFORM_VAULT && deleted.iter().all(|gone| gone.name != *name))
            .collect())
    }

    fn show(&self, call: &Call<'_>, placed: &PlacementRecord) -> Result<Value, ArmError> {
        let vault = call.installation().vault(&placed.name)?;
        let settings = vault.settings()?;
        let tenant = call.names.tenant;
        let by_roles = placed.settings[RBAC].as_bool() == Some(true);
        let policies = match by_roles {
            true => placed.settings[POLICIES].clone(),
            false => view(&policies(call, &vault)?, tenant),
        };
        let policies = Some(policies).filter(Value::is_array).unwrap_or(json!([]));
        let mut properties = json!({
            "tenantId": tenant,
            "sku": {"name": "standard", "family": "A"},
            "accessPolicies": policies,
            "enableRbacAuthorization": by_roles,
            "enableSoftDelete": true,
            "softDeleteRetentionInDays": settings.retention_days,
            "vaultUri": format!("{}/", call.names.vault_url(&placed.name)),
            "enabledForDeployment": false,
            "provisioningState": "Succeeded",
        });
        vault_network::show(&vault.network_rules()?, &mut properties);
        if settings.purge_protection {
            // Azure has no false here: what was never switched on is left out.
            properties["enablePurgeProtection"] = json!(true);
        }
        Ok(json!({"properties": properties}))
    }

    fn settings(&self, call: &Call<'_>, put: &Put<'_>) -> Result<Value, ArmError> {
        let body = put.body;
        if !put.exists {
            checked_name(&put.placed.name)?;
            if is_recovery(body)? {
                // As in Azure it is what it was, whatever else the body says: who may recover it need not be who may
                // decide about access to its keys.
                return Ok(put.placed.settings.clone());
            }
            refuse_deleted(call, &put.placed.name)?;
        }
        refuse_unknown(body, KNOWN, IGNORED)?;
        check_fixed(call, body)?;
        wanted_settings(put, VaultSettings::default())?;
        vault_network::wanted(body, &NetworkRules::default())?;
        is_recovery(body)?;
        let before = &put.placed.settings;
        let given = body.pointer("/properties/accessPolicies");
        let given = given.filter(|list| !list.is_null());
        let policies = match given {
            Some(list) => Some(parse(list, call.names.tenant)?),
            None => None,
        };
        let was_by_roles = before[RBAC].as_bool();
        let by_roles = match optional_bool(body, "/properties/enableRbacAuthorization")? {
            Some(by_roles) => by_roles,
            // As with Azure's latest version, unless the client sets policies.
            None => was_by_roles
                .unwrap_or(!put.exists && policies.as_ref().is_none_or(Policies::is_empty)),
        };
        // Whoever decides which of the two governs the vault gives access to its keys, as who writes roles does.
        if put.exists && by_roles != was_by_roles.unwrap_or(false) {
            let action = "Microsoft.Authorization/roleAssignments/write";
            call.require(action, &call.id(put.placed))?;
        }
        // While roles govern the vault its policies are kept here. Else the vault has them.
        let kept = match (by_roles, policies) {
            (true, Some(given)) => view(&given, call.names.tenant),
            (_, None) if was_by_roles == Some(true) => before[POLICIES].clone(),
            (true, None) if put.exists => {
                let vault = call.installation().vault(&put.placed.name)?;
                view(&self::policies(call, &vault)?, call.names.tenant)
            }
            (true, None) => json!([]),
            (false, _) => Value::Null,
        };
        Ok(json!({RBAC: by_roles, POLICIES: kept}))
    }

    fn apply(&self, call: &Call<'_>, put: &Put<'_>) -> Result<Option<Uuid>, ArmError> {
        make_or_change(call, put).map(|()| None)
    }

    fn delete(&self, call: &Call<'_>, name: &str) -> Result<(), ArmError> {
        let reconcile = disks::reconcile;
        call.installation().delete_vault(name, false, reconcile)?;
        Ok(())
    }

    fn below(
        &self,
        call: &Call<'_>,
        placed: &PlacementRecord,
        words: &[String],
    ) -> Option<Result<FrontReply, ArmError>> {
        let kind = words.first()?;
        if kind.eq_ignore_ascii_case("keys") && words.len() <= 2 {
            let (id, name) = (call.id(placed), words.get(1).map(String::as_str));
            return Some(vault_keys::answer(call, placed, &id, name));
        }
        let [_, how] = words else {
            return None;
        };
        let asked = kind.eq_ignore_ascii_case("accessPolicies") && call.head.method == "PUT";
        asked.then(|| change_policies(call, placed, how))
    }

    fn created_status(&self) -> u16 {
        201
    }
}

/// Makes a vault, brings one back that was deleted, or changes what the body says of one.
fn make_or_change(call: &Call<'_>, put: &Put<'_>) -> Result<(), ArmError> {
    let (installation, name) = (call.installation(), &put.placed.name);
    if !put.exists && is_recovery(put.body)? {
        return Ok(recover(installation, name)?);
    }
    if !put.exists {
        make(call, put)?;
    }
    let vault = installation.vault(name)?;
    let now = vault.settings()?;
    let wanted = wanted_settings(put, now)?;
    if wanted != now {
        vault.update_settings(&installation.operator(), &wanted)?;
    }
    let now = vault.network_rules()?;
    let wanted = vault_network::wanted(put.body, &now)?;
    if wanted != now {
        vault.set_network_rules(&installation.operator(), &wanted)?;
    }
    let lock = installation.lock_policies()?;
    if put.placed.settings[RBAC].as_bool() == Some(true) {
        let assignments = call.catalog().role_assignments()?;
        return Ok(follow_roles(installation, &lock, name, &assignments)?);
    }
    let given = put.body.pointer("/properties/accessPolicies");
    let kept = &put.placed.settings[POLICIES];
    match given.filter(|list| !list.is_null()).unwrap_or(kept) {
        Value::Null => Ok(()),
        list => {
            let wanted = parse(list, call.names.tenant)?;
            Ok(set_policies(installation, &lock, &vault, wanted)?)
        }
    }
}

/// Whether a body asks for a vault that was deleted.
fn is_recovery(body: &Value) -> Result<bool, ArmError> {
    let mode = one_of(body, "/properties/createMode", &["default", "recover"])?;
    Ok(mode == Some("recover"))
}

/// Refuses a vault of the name of a deleted one before anything is noted that would govern that one.
fn refuse_deleted(call: &Call<'_>, name: &str) -> Result<(), ArmError> {
    let Some(name) = call.catalog().name_of(Kind::Vault, name)? else {
        return Ok(());
    };
    if call.catalog().vault(&name)?.record.kind.is_remote() {
        return Ok(());
    }
    match call.installation().vault(&name)?.deletion()? {
        Some(deletion) => Err(deleted(&format!(
            "It is purged at {}.",
            time_text(deletion.scheduled_purge)
        ))),
        None => Ok(()),
    }
}

fn deleted(more: &str) -> ArmError {
    ArmError::new(
        409,
        "ConflictError",
        format!(
            "A vault with the same name already exists in deleted state. You need to either recover or purge existing \
             key vault. {more}"
        ),
    )
}

/// Makes a vault.
fn make(call: &Call<'_>, put: &Put<'_>) -> Result<(), ArmError> {
    let (installation, name) = (call.installation(), &put.placed.name);
    let settings = wanted_settings(put, VaultSettings::default())?;
    match installation.create_vault(name, &settings) {
        Ok(_) => Ok(()),
        Err(installation::InstallationError::Vault(error))
            if error.code == vault::VaultErrorCode::VaultDeleted =>
        {
            Err(deleted(&error.message))
        }
        Err(error) => Err(error.into()),
    }
}

/// What every vault has, and nobody can change.
fn check_fixed(call: &Call<'_>, body: &Value) -> Result<(), ArmError> {
    if let Some(tenant) = optional_text(body, "/properties/tenantId")?
        && !tenant.eq_ignore_ascii_case(&call.names.tenant.to_string())
    {
        let target = "properties.tenantId";
        return Err(ArmError::parameter(
            target,
            format!(
                "The tenant of a vault is that of its installation, {}.",
                call.names.tenant
            ),
        ));
    }
    if one_of(body, "/properties/sku/name", &["standard", "premium"])? == Some("premium") {
        return Err(ArmError::not_offered(
            "properties.sku.name",
            "vaults in hardware over this API (`sealdisk keyvault create --hsm-module` makes one)",
        ));
    }
    if optional_bool(body, "/properties/enableSoftDelete")? == Some(false) {
        let target = "properties.enableSoftDelete";
        return Err(ArmError::parameter(
            target,
            "Soft delete of a vault cannot be switched off.",
        ));
    }
    Ok(())
}

/// What a body says of deleted keys; what it leaves out stays as it is.
fn wanted_settings(put: &Put<'_>, now: VaultSettings) -> Result<VaultSettings, ArmError> {
    let days = put.body.pointer("/properties/softDeleteRetentionInDays");
    let days = match days.filter(|days| !days.is_null()) {
        None => None,
        Some(days) => Some(
            days.as_u64()
                .and_then(|days| u32::try_from(days).ok())
                .ok_or_else(|| {
                    let target = "properties.softDeleteRetentionInDays";
                    let why = format!("The value of parameter {target} is no number of days.");
                    ArmError::parameter(target, why)
                })?,
        ),
    };
    let protection = optional_bool(put.body, "/properties/enablePurgeProtection")?;
    if !put.exists && protection == Some(false) {
        let target = "properties.enablePurgeProtection";
        return Err(ArmError::parameter(
            target,
            format!("The property \"{target}\" cannot be set to false; leave it out."),
        ));
    }
    Ok(VaultSettings {
        retention_days: days.unwrap_or(now.retention_days),
        purge_protection: protection.unwrap_or(now.purge_protection),
    })
}

/// Those that clients set: the operator's is the command line's.
fn policies(call: &Call<'_>, vault: &EmbeddedVault) -> Result<Policies, ArmError> {
    let operator = call.installation().operator().object_id;
    let all = vault.policies()?.into_iter();
    Ok(all.filter(|(id, _)| *id != operator).collect())
}

/// `PUT …/accessPolicies/{add|replace|remove}`
fn change_policies(
    call: &Call<'_>,
    placed: &PlacementRecord,
    how: &str,
) -> Result<FrontReply, ArmError> {
    let scope = call
        .names
        .resource_id(&placed.group, &Vaults.full_type(), &placed.name);
    call.require("Microsoft.KeyVault/vaults/accessPolicies/write", &scope)?;
    let list = &call.body["properties"]["accessPolicies"];
    let given = named(list, call.names.tenant)?;
    let mut all = [How::Add, How::Replace, How::Remove].into_iter();
    let how = all.find(|known| known.word().eq_ignore_ascii_case(how));
    let how = how.ok_or_else(|| {
        let message = "An access policy is added, replaced or removed.";
        ArmError::new(400, "BadRequest", message)
    })?;
    let name = format!("{}/{}", Vaults.full_type(), placed.name);
    let _name = call.changes.lock(&name, call.what())?;
    // The vault's own log names all of them.
    let mut named: Vec<_> = given.keys().take(NAMED).map(Uuid::to_string).collect();
    if given.len() > NAMED {
        named.push("and others".into());
    }
    let detail = format!("{scope}: {} {}", how.word(), named.join(" "));
    let changed = recorded(call, "VaultAccessPolicyWrite", &detail, || {
        change_named(call, &placed.name, how, &given)
    })?;
    Ok(item(json!({
        "id": format!("{scope}/accessPolicies/"),
        "type": "Microsoft.KeyVault/vaults/accessPolicies",
        "properties": {"accessPolicies": view(&changed, call.names.tenant)},
    })))
}

/// What is done with the policies of those who are named.
#[derive(Clone, Copy)]
enum How {
    Add,
    Replace,
    Remove,
}

impl How {
    fn word(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Replace => "replace",
            Self::Remove => "remove",
        }
    }
}

/// Changes the policies of those who are named, and of nobody else; all that there are then.
fn change_named(
    call: &Call<'_>,
    name: &str,
    how: How,
    given: &Policies,
) -> Result<Policies, ArmError> {
    let installation = call.installation();
    let lock = installation.lock_policies()?;
    let placed = placement(call, Kind::Vault, name)?;
    if placed.settings[RBAC].as_bool() == Some(true) {
        return Err(ArmError::new(
            400,
            "BadRequest",
            "Access policies of a vault with enableRbacAuthorization have no effect; assign a role.",
        ));
    }
    if call.head.header("if-match").is_some() {
        check_etag(call.head, Some(&body(call, &Vaults, &placed)?))?;
    }
    let vault = installation.vault(name)?;
    let now = policies(call, &vault)?;
    for (identity, permissions) in given {
        let wanted = match (how, now.get(identity)) {
            (How::Add, Some(now)) => now.union(permissions),
            (How::Add, None) | (How::Replace, _) => permissions.clone(),
            (How::Remove, _) => Permissions::default(),
        };
        set_policy(installation, &lock, &vault, *identity, &wanted)?;
    }
    policies(call, &vault)
}

/// Refuses a name that no new vault can have, before anything is noted of it.
fn checked_name(name: &str) -> Result<(), ArmError> {
    match normal_vault_name(name)? == PLATFORM_VAULT {
        true => Err(ArmError::new(
            409,
            "VaultAlreadyExists",
            format!("The vault name '{name}' is already in use. Vault names are globally unique."),
        )),
        false => Ok(()),
    }
}
