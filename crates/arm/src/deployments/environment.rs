//! Where and when templates are deployed, and how large what is kept of them may be.

use serde_json::json;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::login::endpoints;
use crate::names::Names;
use installation::catalog::GroupRecord;
use templates::{Context, ResourceGroup};

/// Bytes of parameters, and of outputs, that are kept of a deployment.
pub const MAX_ANSWER: usize = 1 << 20;

/// Where and when a template is deployed.
pub fn context(
    names: &Names,
    group: &GroupRecord,
    name: &str,
    now: OffsetDateTime,
    seed: Uuid,
) -> Context {
    let tags = group.tags.iter();
    Context {
        subscription_id: names.subscription.to_string(),
        subscription_name: "Sealdisk".into(),
        tenant_id: names.tenant.to_string(),
        resource_group: ResourceGroup {
            name: group.name.clone(),
            location: group.location.clone(),
            tags: tags
                .map(|(name, value)| (name.clone(), json!(value)))
                .collect(),
        },
        deployment_name: name.into(),
        environment: endpoints(names),
        now,
        guid_seed: seed,
    }
}
