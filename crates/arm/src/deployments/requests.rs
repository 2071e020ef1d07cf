//! Requests about deployments.

use server::{FrontReply, Head};
use uuid::Uuid;

use super::prepare::prepare;
use super::views::{self, TYPE};
use super::what_if::what_if;
use crate::audit::recorded;
use crate::call::Call;
use crate::error::ArmError;
use crate::id::{ArmPath, Typed};
use crate::operations::{self, watched};
use crate::reply::{done, item, list};
use installation::catalog::{DeploymentName, OperationRecord, OperationState};
use templates::parse_request;

/// Azure's limit of deployments that a group keeps; the oldest makes room.
const MOST: usize = 800;
/// Bytes of a page of deployments, after which the next begins.
const PAGE: usize = 4 << 20;

/// Whether what follows `providers` is deployments, or below one.
pub fn are(typed: &Typed) -> bool {
    let first = typed.types.first();
    typed.provider.eq_ignore_ascii_case("Microsoft.Resources")
        && first.is_some_and(|first| first.eq_ignore_ascii_case("deployments"))
}

/// Whether the words below a group are those of the operations of a deployment.
pub fn are_words(words: &[String]) -> bool {
    let is = |at: usize, wanted: &str| {
        words
            .get(at)
            .is_some_and(|word| word.eq_ignore_ascii_case(wanted))
    };
    is(0, "deployments") && is(2, "operations")
}

/// Whether a request is about deployments: its body need not be JSON.
pub fn is_one(head: &Head) -> bool {
    let path = ArmPath::parse(&head.path);
    path.is_ok_and(|path| path.group.is_some() && path.typed.last().is_some_and(are))
}

/// Answers what is asked of the deployments of a group; `words` are types and names in turn.
///
/// # Errors
/// Every refusal.
pub fn answer(call: &Call<'_>, group: &str, words: &[String]) -> Result<FrontReply, ArmError> {
    let words: Vec<&str> = words.iter().skip(1).map(String::as_str).collect();
    let Some((name, below)) = words.split_first() else {
        return match call.head.method.as_str() {
            "GET" => all(call, group),
            _ => Err(not_allowed()),
        };
    };
    if below.len() > 2 {
        return Err(nothing_below());
    }
    let one = One::new(call, group, name)?;
    let word = below.first().map(|word| word.to_ascii_lowercase());
    let below = (word.as_deref().unwrap_or_default(), below.get(1).copied());
    match (call.head.method.as_str(), below) {
        ("GET", ("", None)) => one.get(),
        ("HEAD", ("", None)) => one.exists(),
        ("PUT", ("", None)) => one.put(),
        ("DELETE", ("", None)) => one.delete(),
        ("POST", ("validate", None)) => one.validate(),
        ("POST", ("cancel", None)) => one.cancel(),
        ("POST", ("exporttemplate", None)) => one.export(),
        ("POST", ("whatif", None)) => one.what_if(),
        ("GET", ("operations", id)) => one.operations(id),
        ("GET", ("operationstatuses", Some(id))) => one.status(id),
        (_, ("", None)) => Err(not_allowed()),
        _ => Err(nothing_below()),
    }
}

fn nothing_below() -> ArmError {
    let message = "There is nothing of that name below a deployment.";
    ArmError::new(404, "NotFound", message)
}

fn not_allowed() -> ArmError {
    let message = "Deployments are read, put, deleted, validated and cancelled.";
    ArmError::new(405, "MethodNotAllowed", message)
}

/// `GET …/deployments`
fn all(call: &Call<'_>, group: &str) -> Result<FrontReply, ArmError> {
    let known = call.catalog().group(group)?;
    let group = known.ok_or_else(|| ArmError::no_group(group))?.name;
    call.require(&format!("{TYPE}/read"), &call.names.group_id(&group))?;
    let wanted = call.query.filter.value_of("provisioningState");
    let ids = call.catalog().deployments(&group)?;
    let before = call
        .query
        .after
        .as_deref()
        .and_then(|id| Uuid::try_parse(id).ok());
    // A page after a deployment that has gone begins anew.
    let before = ids.iter().position(|id| Some(*id) == before);
    let (mut page, mut size, mut last) = (Vec::new(), 0, None::<Uuid>);
    for id in ids.iter().skip(before.map_or(0, |at| at + 1)) {
        let is_full = page.len() >= call.query.top || size > PAGE;
        if let Some(last) = last.filter(|_| is_full) {
            let query = call.query.next(&last.to_string());
            let (base, path) = (&call.names.base, &call.head.path);
            return Ok(list(page, Some(format!("{base}{path}?{query}"))));
        }
        if let Some(record) = call.catalog().operation(*id)?
            && wanted.is_none_or(|wanted| wanted.eq_ignore_ascii_case(record.state.as_str()))
        {
            let view = views::view(&record);
            size += view.to_string().len();
            page.push(view);
        }
        last = Some(*id);
    }
    Ok(list(page, None))
}

/// A deployment that is named in a path.
struct One<'a> {
    call: &'a Call<'a>,
    /// The group, as it is written.
    group: String,
    name: &'a str,
    id: String,
}

impl<'a> One<'a> {
    fn new(call: &'a Call<'a>, group: &str, name: &'a str) -> Result<Self, ArmError> {
        let known = call.catalog().group(group)?;
        let group = known.map_or_else(|| group.to_owned(), |known| known.name);
        let allowed = |c: char| c.is_alphanumeric() || "_-.()".contains(c);
        if name.chars().count() > 64 || !name.chars().all(allowed) {
            return Err(ArmError::new(
                400,
                "InvalidDeploymentName",
                "The name of a deployment has up to 64 letters, digits, '_', '-', '.', '(' and ')'.",
            ));
        }
        Ok(Self {
            id: call.names.resource_id(&group, TYPE, name),
            call,
            group,
            name,
        })
    }

    fn require(&self, action: &str) -> Result<(), ArmError> {
        self.call.require(&format!("{TYPE}/{action}"), &self.id)
    }

    fn record(&self) -> Result<OperationRecord, ArmError> {
        if self.call.catalog().group(&self.group)?.is_none() {
            return Err(ArmError::no_group(&self.group));
        }
        let known = self.call.catalog().deployment(&self.group, self.name)?;
        known.ok_or_else(|| {
            let message = format!("Deployment '{}' could not be found.", self.name);
            ArmError::new(404, "DeploymentNotFound", message)
        })
    }

    fn get(&self) -> Result<FrontReply, ArmError> {
        self.require("read")?;
        Ok(item(views::view(&self.record()?)))
    }

    fn exists(&self) -> Result<FrontReply, ArmError> {
        self.require("read")?;
        Ok(
            match self.call.catalog().deployment(&self.group, self.name)? {
                Some(_) => done(204),
                None => done(404),
            },
        )
    }

    fn validate(&self) -> Result<FrontReply, ArmError> {
        self.require("validate/action")?;
        let deployment = prepare(self.call, &self.group, self.name)?;
        Ok(item(views::validated(
            &self.id,
            self.name,
            &deployment.answer,
        )))
    }

    fn what_if(&self) -> Result<FrontReply, ArmError> {
        self.require("whatIf/action")?;
        let deployment = prepare(self.call, &self.group, self.name)?;
        let only_ids = parse_request(self.call.raw)?.only_ids;
        let found = what_if(self.call, deployment, &self.group, only_ids)?;
        Ok(item(found))
    }

    fn put(&self) -> Result<FrontReply, ArmError> {
        self.require("write")?;
        let lock = self.call.changes.lock(&self.id, self.call.what())?;
        let before = self.call.catalog().deployment(&self.group, self.name)?;
        if let Some(before) = &before {
            self.refuse_active(before)?;
        }
        let deployment = prepare(self.call, &self.group, self.name)?;
        let answer = deployment.answer.clone();
        let record = OperationRecord {
            deployment: Some(DeploymentName {
                group: self.group.clone(),
                name: self.name.into(),
            }),
            answer,
            ..operations::new(self.call, self.id.clone(), &deployment)
        };
        let id = recorded(self.call, "DeploymentWrite", &self.id, || {
            self.make_room()?;
            operations::begin(self.call, record, Box::new(deployment))
        })?;
        drop(lock);
        let record = operations::wait(self.call, id, operations::PATIENCE)?;
        Ok(self.answered(&record, before.is_none()))
    }

    /// What has succeeded by now is the answer; else clients ask for the operation.
    fn answered(&self, record: &OperationRecord, is_new: bool) -> FrontReply {
        let below = format!(
            "resourceGroups/{}/providers/{TYPE}/{}/operationStatuses/{}",
            self.group, self.name, record.id
        );
        let reply = FrontReply {
            status: if is_new { 201 } else { 200 },
            ..item(views::view(record))
        };
        match record.state {
            OperationState::Succeeded => reply,
            _ => FrontReply {
                headers: watched(self.call, &below),
                retry_after: Some(1),
                ..reply
            },
        }
    }

    fn refuse_active(&self, record: &OperationRecord) -> Result<(), ArmError> {
        if record.state != OperationState::Running {
            return Ok(());
        }
        Err(ArmError::new(
            409,
            "DeploymentActive",
            format!(
                "The deployment with resource id '{}' cannot be saved, because this would overwrite an existing \
                 deployment which is still active. Please see https://aka.ms/arm-deploy for usage details.",
                self.id
            ),
        ))
    }

    /// Forgets the oldest deployment when the group has as many as it may.
    fn make_room(&self) -> Result<(), ArmError> {
        let catalog = self.call.catalog();
        let ids = catalog.deployments(&self.group)?;
        if ids.len() < MOST {
            return Ok(());
        }
        for id in ids.into_iter().rev() {
            let record = catalog.operation(id)?;
            if record.is_some_and(|record| record.state != OperationState::Running) {
                catalog.delete_operation(id)?;
                return Ok(());
            }
        }
        Ok(())
    }

    fn delete(&self) -> Result<FrontReply, ArmError> {
        self.require("delete")?;
        let _lock = self.call.changes.lock(&self.id, self.call.what())?;
        let Some(record) = self.call.catalog().deployment(&self.group, self.name)? else {
            return Ok(done(204));
        };
        self.refuse_active(&record)?;
        recorded(self.call, "DeploymentDelete", &self.id, || {
            Ok(self.call.catalog().delete_operation(record.id)?)
        })?;
        Ok(done(204))
    }

    fn cancel(&self) -> Result<FrontReply, ArmError> {
        self.require("cancel/action")?;
        let record = self.record()?;
        let cancelled = recorded(self.call, "DeploymentCancel", &self.id, || {
            Ok(self.call.catalog().cancel_operation(record.id)?)
        })?;
        match cancelled {
            true => Ok(done(204)),
            false => Err(ArmError::new(
                409,
                "DeploymentCannotBeCancelled",
                format!(
                    "The deployment '{}' cannot be cancelled: its provisioning state is '{}'.",
                    self.name,
                    record.state.as_str()
                ),
            )),
        }
    }

    fn export(&self) -> Result<FrontReply, ArmError> {
        self.require("exportTemplate/action")?;
        Ok(item(views::exported(&self.record()?)))
    }

    fn operations(&self, id: Option<&str>) -> Result<FrontReply, ArmError> {
        self.require("operations/read")?;
        let record = self.record()?;
        let mut steps = views::steps(&self.id, &record);
        let Some(id) = id else {
            return Ok(list(steps, None));
        };
        steps.retain(|step| step["operationId"].as_str() == Some(id));
        let found = steps.pop().ok_or_else(|| {
            ArmError::new(
                404,
                "DeploymentOperationNotFound",
                format!(
                    "The deployment '{}' has no operation of that id.",
                    self.name
                ),
            )
        })?;
        Ok(item(found))
    }

    fn status(&self, id: &str) -> Result<FrontReply, ArmError> {
        self.require("operationStatuses/read")?;
        let record = self.record()?;
        if !record.id.to_string().eq_ignore_ascii_case(id) {
            let message = "The deployment was put anew since, or has no operation of that id.";
            return Err(ArmError::new(404, "DeploymentOperationNotFound", message));
        }
        let (group, name) = (&self.group, self.name);
        let below =
            format!("resourceGroups/{group}/providers/{TYPE}/{name}/operationStatuses/{id}");
        Ok(operations::status_of(self.call, &record, &below))
    }
}
