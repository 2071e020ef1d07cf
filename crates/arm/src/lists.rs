//! Lists of resources, by pages.

use std::collections::BTreeMap;

use server::FrontReply;

use crate::call::{Call, ResourceType};
use crate::error::ArmError;
use crate::filter::Term;
use crate::places::{body, summary, unplaced};
use crate::reply::list;
use installation::catalog::PlacementRecord;

/// `GET` of all of a type, in a group or everywhere, as far as whoever asks may see them.
///
/// # Errors
/// 404 for a group that there is not.
pub fn list_type(
    call: &Call<'_>,
    kind: &'static dyn ResourceType,
    group: Option<&str>,
) -> Result<FrontReply, ArmError> {
    if let Some(group) = group
        && call.catalog().group(group)?.is_none()
    {
        return Err(ArmError::no_group(group));
    }
    let placements = placements_of(call, &[kind])?;
    let page = page(call, placements, group);
    let bodies = page.items.iter().filter_map(|placed| {
        // What was deleted meanwhile is not there; what cannot be read is told by its own GET.
        body(call, kind, placed).ok()
    });
    Ok(list(bodies.collect(), page.next))
}

/// `GET …/resources`: of all types, with a filter.
///
/// # Errors
/// 400 for a filter of what resources do not have.
pub fn list_all(call: &Call<'_>, group: Option<&str>) -> Result<FrontReply, ArmError> {
    if let Some(group) = group
        && call.catalog().group(group)?.is_none()
    {
        return Err(ArmError::no_group(group));
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
    let mut placements = placements_of(call, call.types)?;
    placements.retain(|placed| {
        let terms = &call.query.filter.terms;
        terms
            .iter()
            .all(|term| holds(call, term, placed, tag_name.as_deref()))
    });
    let page = page(call, placements, group);
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

/// Where all resources of these types are.
pub fn placements_of(
    call: &Call<'_>,
    kinds: &[&'static dyn ResourceType],
) -> Result<Vec<PlacementRecord>, ArmError> {
    let mut placed: BTreeMap<(&str, String), PlacementRecord> = BTreeMap::new();
    for record in call.catalog().placements()? {
        placed.insert(
            (record.kind.as_str(), record.name.to_ascii_lowercase()),
            record,
        );
    }
    let mut found = Vec::new();
    for kind in kinds {
        let word = kind.kind();
        for name in kind.all(call)? {
            let known = placed.remove(&(word.as_str(), name.to_ascii_lowercase()));
            let known = known.unwrap_or_else(|| unplaced(word, &name));
            found.push(PlacementRecord { name, ..known });
        }
    }
    Ok(found)
}

struct Page {
    items: Vec<PlacementRecord>,
    next: Option<String>,
}

/// A page of those that are in a group and that whoever asks may see.
fn page(call: &Call<'_>, mut all: Vec<PlacementRecord>, group: Option<&str>) -> Page {
    let key = |placed: &PlacementRecord| format!("{}/{}", placed.kind.as_str(), placed.name);
    let visible = |placed: &PlacementRecord| {
        let action = format!("{}/read", call.full_type(placed.kind));
        call.may(&action, &call.id(placed))
    };
    all.retain(|placed| group.is_none_or(|group| placed.group.eq_ignore_ascii_case(group)));
    all.retain(visible);
    all.sort_by_cached_key(key);
    if let Some(after) = &call.query.after {
        all.retain(|placed| key(placed) > *after);
    }
    let more = all.len() > call.query.top;
    all.truncate(call.query.top);
    let next = all.last().filter(|_| more).map(|last| {
        let query = call.query.next(&key(last));
        format!("{}{}?{query}", call.names.base, call.head.path)
    });
    Page { items: all, next }
}
