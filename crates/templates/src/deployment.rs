use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use uuid::Uuid;

/// What a template may ask about where and when it is deployed. With the same context, a request gives the same
/// resources: that is how a deployment goes on after a restart.
#[derive(Debug, Clone)]
pub struct Context {
    /// The id of the subscription, as `subscription().subscriptionId` gives it.
    pub subscription_id: String,
    /// What the subscription is called.
    pub subscription_name: String,
    /// The tenant that the subscription trusts.
    pub tenant_id: String,
    /// The resource group that is deployed to.
    pub resource_group: ResourceGroup,
    /// The name of the deployment.
    pub deployment_name: String,
    /// What `environment()` gives: the endpoints of this cloud, as `/metadata/endpoints` has them.
    pub environment: Value,
    /// When the deployment began: `utcNow()`.
    pub now: OffsetDateTime,
    /// What all of the deployment's `newGuid()` are made of; random, and kept with the deployment.
    pub guid_seed: Uuid,
}

/// A resource group.
#[derive(Debug, Clone)]
pub struct ResourceGroup {
    /// Its name, in the case in which it was made.
    pub name: String,
    /// Its location.
    pub location: String,
    /// Its tags.
    pub tags: Map<String, Value>,
}

impl Context {
    pub(crate) fn subscription_path(&self) -> String {
        format!("/subscriptions/{}", self.subscription_id)
    }

    pub(crate) fn group_path(&self) -> String {
        let group = &self.resource_group.name;
        format!("{}/resourceGroups/{group}", self.subscription_path())
    }

    pub(crate) fn subscription(&self) -> Value {
        json!({
            "id": self.subscription_path(),
            "subscriptionId": self.subscription_id,
            "tenantId": self.tenant_id,
            "displayName": self.subscription_name,
        })
    }

    pub(crate) fn group(&self) -> Value {
        json!({
            "id": self.group_path(),
            "name": self.resource_group.name,
            "type": "Microsoft.Resources/resourceGroups",
            "location": self.resource_group.location,
            "tags": self.resource_group.tags,
            "properties": { "provisioningState": "Succeeded" },
        })
    }

    pub(crate) fn tenant(&self) -> Value {
        json!({ "tenantId": self.tenant_id })
    }

    /// The nth `newGuid()`.
    pub(crate) fn guid(&self, n: u32) -> Uuid {
        match n {
            0 => self.guid_seed,
            n => Uuid::new_v5(&self.guid_seed, &n.to_be_bytes()),
        }
    }
}
