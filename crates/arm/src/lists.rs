//! Lists of resources, by pages.

use std::num::NonZero;

use serde_json::Value;
use server::FrontReply;

use crate::call::{Call, ResourceType, Wanted};
use crate::error::ArmError;
use crate::filter::Term;
use crate::id::is_within;
use crate::placed::placed;
use crate::places::{body_with, summary};
use crate::reply::list;
use installation::catalog::PlacementRecord;

/// How many resources are read at once at least: filters may keep few of them.
const MIN_READ: usize = 100;
/// How many threads read a page at most.
const MAX_READERS: usize = 4;

/// `GET` of all of a type, in a group or everywhere, as far as whoever asks may see them.
///
/// # Errors
/// 404 for a group that there is not; 403 for who may not know that.
pub fn list_type(
    call: &Call<'_>,
    kind: &'static dyn ResourceType,
    group: Option<&str>,
) -> Result<FrontReply, ArmError> {
    if let Some(group) = group {
        check_group(call, group)?;
    }
    let page = page(call, &[kind], group, |_| true)?;
    Ok(list(bodies(call, kind, &page.items)?, page.next))
}

/// Refuses a group that there is not. Whoever has a role neither in it nor above it is not told which there are.
fn check_group(call: &Call<'_>, group: &str) -> Result<(), ArmError> {
    let scope = call.names.group_id(group);
    let mut scopes = call.roles.iter().map(|role| role.scope.as_str());
    if !scopes.any(|other| is_within(other, &scope) || is_within(&scope, other)) {
        call.require(
            "Microsoft.Resources/subscriptions/resourceGroups/read",
            &scope,
        )?;
    }
    match call.catalog().group(group)? {
        Some(_) => Ok(()),
        None => Err(ArmError::no_group(group)),
    }
}

/// The bodies of a page, each of which takes a file to be read: by several threads where there are many. What was
/// deleted meanwhile is not there; what cannot be read is told by its own GET.
fn bodies(
    call: &Call<'_>,
    kind: &'static dyn ResourceType,
    items: &[PlacementRecord],
) -> Result<Vec<Value>, ArmError> {
    let read = |part: &[PlacementRecord]| -> Result<Vec<Value>, ArmError> {
        let shown = part.iter().zip(kind.show_many(call, part)?);
        Ok(shown
            .filter_map(|(placed, shown)| Some(body_with(call, kind, placed, shown?)))
            .collect())
    };
    let cpus = std::thread::available_parallelism().map_or(1, NonZero::get);
    let share = items.len().div_ceil(cpus.min(MAX_READERS)).max(MIN_READ);
    if items.len() <= share {
        return read(items);
    }
    std::thread::scope(|scope| {
        let parts = items
            .chunks(share)
            .map(|part| scope.spawn(move || read(part)));
        let parts: Vec<_> = parts.collect();
        let mut bodies = Vec::with_capacity(items.len());
        for part in parts {
            match part.join() {
                Ok(read) => bodies.extend(read?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(bodies)
    })
}

/// `GET …/resources`: of all types, with a filter.
///
/// # Errors
/// 400 for a filter of what resources do not have; as [`list_type`].
pub fn list_all(call: &Call<'_>, group: Option<&str>) -> Result<FrontReply, ArmError> {
    if let Some(group) = group {
        check_group(call, group)?;
    }
    let mut tag_name = None;
    for term in &call.query.filter.terms {
        let field = match term {
            Term::Is(field, _)
            | Term::IsNot(field, _)
            | Term::Contains(field, _)
            | Term::StartsWith(field, _) => field.as_str(),
            Term::Any(..) | Term::Call(..) => "",
        };
        let known = [
            "resourceType",
            "name",
            "resourceGroup",
            "location",
            "tagName",
            "tagValue",
        ];
        if !known.iter().any(|known| known.eq_ignore_ascii_case(field)) {
            let message =
                format!("Invalid $filter in the query: resources are not chosen by '{field}'.");
            return Err(ArmError::new(400, "InvalidFilterInQueryString", message));
        }
        if let Term::Is(field, value) = term
            && field.eq_ignore_ascii_case("tagName")
        {
            tag_name = Some(value.clone());
        }
    }
    let keep = |placed: &PlacementRecord| {
        let mut terms = call.query.filter.terms.iter();
        terms.all(|term| holds(call, term, placed, tag_name.as_deref()))
    };
    let page = page(call, call.types, group, keep)?;
    let items = page.items.iter().filter_map(|placed| {
        let kind = call.type_of_kind(placed.kind)?;
        Some(summary(call, kind, placed))
    });
    Ok(list(items.collect(), page.next))
}

fn holds(call: &Call<'_>, term: &Term, placed: &PlacementRecord, tag_name: Option<&str>) -> bool {
    let of = |field: &str| match field.to_ascii_lowercase().as_str() {
        "resourcetype" => call.full_type(placed.kind),
        "name" => placed.name.clone(),
        "resourcegroup" => placed.group.clone(),
        "location" => placed.location.clone(),
        _ => String::new(),
    };
    match term {
        Term::Is(field, value) if field.eq_ignore_ascii_case("tagName") => placed
            .tags
            .keys()
            .any(|name| name.eq_ignore_ascii_case(value)),
        Term::Is(field, value) if field.eq_ignore_ascii_case("tagValue") => {
            placed.tags.iter().any(|(name, tag)| {
                tag == value && tag_name.is_none_or(|wanted| name.eq_ignore_ascii_case(wanted))
            })
        }
        Term::Is(field, value) => of(field).eq_ignore_ascii_case(value),
        Term::IsNot(field, value) => !of(field).eq_ignore_ascii_case(value),
        Term::StartsWith(field, value) => of(field)
            .to_ascii_lowercase()
            .starts_with(&value.to_ascii_lowercase()),
        Term::Contains(field, value) => of(field)
            .to_ascii_lowercase()
            .contains(&value.to_ascii_lowercase()),
        Term::Any(..) | Term::Call(..) => false,
    }
}

struct Page {
    items: Vec<PlacementRecord>,
    next: Option<String>,
}

/// The key of an item in all lists, by which they are sorted.
fn key(placed: &PlacementRecord) -> String {
    format!("{}/{}", placed.kind.as_str(), placed.name)
}

/// A page of those of these types that are in a group, that whoever asks may see, and that a filter keeps. What comes
/// before it is not read, and of what comes after it little.
fn page(
    call: &Call<'_>,
    kinds: &[&'static dyn ResourceType],
    group: Option<&str>,
    keep: impl Fn(&PlacementRecord) -> bool,
) -> Result<Page, ArmError> {
    let top = call.query.top;
    let visible = |placed: &PlacementRecord| {
        let action = format!("{}/read", call.full_type(placed.kind));
        call.may(&action, &call.id(placed))
    };
    let mut kinds = kinds.to_vec();
    kinds.sort_by_key(|kind| format!("{}/", kind.kind().as_str()));
    let mut items = Vec::new();
    for kind in kinds {
        let prefix = format!("{}/", kind.kind().as_str());
        let mut after = match call.query.after.as_deref() {
            Some(last) if !last.starts_with(&prefix) && *last > *prefix => continue,
            Some(last) => last.strip_prefix(&prefix).map(str::to_owned),
            None => None,
        };
        while items.len() <= top {
            let limit = (top + 1 - items.len()).max(MIN_READ);
            let wanted = Wanted {
                group,
                after: after.as_deref(),
                limit,
            };
            let found = placed(call, kind, &wanted)?;
            let is_last = found.len() < limit;
            after = found.last().map(|placed| placed.name.clone());
            items.extend(
                found
                    .into_iter()
                    .filter(|placed| visible(placed) && keep(placed)),
            );
            if is_last {
                break;
            }
        }
    }
    let more = items.len() > top;
    items.truncate(top);
    let next = items.last().filter(|_| more).map(|last| {
        let query = call.query.next(&key(last));
        format!("{}{}?{query}", call.names.base, call.head.path)
    });
    Ok(Page { items, next })
}
