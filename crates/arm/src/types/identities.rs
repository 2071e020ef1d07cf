//! `Microsoft.ManagedIdentity/userAssignedIdentities`: the identities that `sealdisk identity` shows.
//!
//! One that the API makes has no secret that anybody knows: `sealdisk identity reset-secret` gives it one.

use serde_json::{Value, json};
use uuid::Uuid;

use super::bodies::refuse_unknown;

use crate::call::{Call, Put, ResourceType};
use crate::error::ArmError;
use installation::catalog::{IdentityOwner, Kind, PlacementRecord};

/// Identities of users and programs.
pub struct Identities;

impl ResourceType for Identities {
    fn kind(&self) -> Kind {
        Kind::Identity
    }

    fn provider(&self) -> &'static str {
        "Microsoft.ManagedIdentity"
    }

    fn name(&self) -> &'static str {
        "userAssignedIdentities"
    }

    fn all(&self, call: &Call<'_>) -> Result<Vec<String>, ArmError> {
        let all = call.catalog().identities()?.into_iter();
        Ok(all
            .filter_map(|row| match row.record.owner {
                IdentityOwner::Named(name) => Some(name),
                IdentityOwner::DiskEncryptionSet(_) => None,
            })
            .collect())
    }

    fn show(&self, call: &Call<'_>, placed: &PlacementRecord) -> Result<Value, ArmError> {
        let record = call.catalog().identity(&placed.name)?.record;
        Ok(json!({"properties": {
            "principalId": record.object_id,
            "clientId": record.client_id,
            "tenantId": call.names.tenant,
        }}))
    }

    fn settings(&self, _call: &Call<'_>, put: &Put<'_>) -> Result<Value, ArmError> {
        refuse_unknown(put.body, &[], &["principalId", "clientId", "tenantId"])?;
        Ok(json!({}))
    }

    fn apply(&self, call: &Call<'_>, put: &Put<'_>) -> Result<Option<Uuid>, ArmError> {
        if !put.exists {
            call.installation().create_identity(&put.placed.name)?;
        }
        Ok(None)
    }

    fn delete(&self, call: &Call<'_>, name: &str) -> Result<(), ArmError> {
        let principal = call.catalog().identity(name)?.record.object_id;
        // Its roles go with it, which is for those who may take roles away.
        for role in call.catalog().role_assignments()? {
            if role.principal == principal {
                let action = "Microsoft.Authorization/roleAssignments/delete";
                call.require_linked(action, &role.scope)?;
            }
        }
        call.installation().delete_identity(name)?;
        Ok(())
    }

    fn created_status(&self) -> u16 {
        201
    }
}
