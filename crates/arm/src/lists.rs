//! Lists of resources, by pages.

use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::Value;
use server::FrontReply;

use crate::call::{Call, ResourceType, Wanted};
use crate::error::ArmError;
use crate::filter::Term;
use crate::id::is_within;
use crate::placed::placed;
use crate::places::{body_with, summary};
use crate::reply::{list, list_of_texts};
use crate::types::importing::{self, Imports};
use installation::catalog::{Kind, PlacementRecord};

/// How many resources are read at once at least: filters may keep few of them.
const MIN_READ: usize = 100;
/// How many are in a part of a page that one thread reads.
const PART: usize = 100;
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
    Ok(list_of_texts(&bodies(call, kind, &page)?, page.next))
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

/// The bodies of a page, as JSON, each of which takes a file to be read: by several threads where there are many. What
/// was deleted meanwhile is not there; what cannot be read is told by its own GET.
fn bodies(
    call: &Call<'_>,
    kind: &'static dyn ResourceType,
    page: &Page,
) -> Result<Vec<String>, ArmError> {
    let body = |placed: &PlacementRecord, shown: Option<Value>| match page.imports.have(placed) {
        true => Some(importing::view(call, kind, placed)),
        false => Some(body_with(call, kind, placed, shown?)),
    };
    let read = |part: &[PlacementRecord]| -> Result<Vec<String>, ArmError> {
        let shown = part.iter().zip(kind.show_many(call, part)?);
        let bodies = shown.filter_map(|(placed, shown)| body(placed, shown));
        Ok(bodies.map(|body| body.to_string()).collect())
    };
    let cpus = thread::available_parallelism().map_or(1, NonZero::get);
    in_parts(&page.items, cpus.min(MAX_READERS), read)
}

/// Has several threads read parts, each the next one that nobody has: while one reads files another has the catalog.
fn in_parts<T: Sync, R: Send>(
    items: &[T],
    readers: usize,
    read: impl Fn(&[T]) -> Result<Vec<R>, ArmError> + Sync,
) -> Result<Vec<R>, ArmError> {
    let parts: Vec<&[T]> = items.chunks(PART).collect();
    if parts.len() < 2 || readers < 2 {
        return read(items);
    }
    let next = AtomicUsize::new(0);
    let read_some = || -> Result<Vec<(usize, Vec<R>)>, ArmError> {
        let mut found = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(part) = parts.get(number) else {
                return Ok(found);
            };
            // What the others read would be told to nobody.
            let read = read(part).inspect_err(|_| next.store(parts.len(), Ordering::Relaxed))?;
            found.push((number, read));
        }
    };
    let mut found = thread::scope(|scope| -> Result<Vec<(usize, Vec<R>)>, ArmError> {
        let others: Vec<_> = (1..readers.min(parts.len()))
            .map(|_| scope.spawn(read_some))
            .collect();
        let mut found = read_some()?;
        for other in others {
            match other.join() {
                Ok(read) => found.extend(read?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(found)
    })?;
    found.sort_unstable_by_key(|(number, _)| *number);
    Ok(found.into_iter().flat_map(|(_, read)| read).collect())
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
    /// Which of them are being imported.
    imports: Imports,
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
    let imports = match kinds.iter().any(|kind| kind.kind() == Kind::Disk) {
        true => Imports::read(call)?,
        false => Imports::default(),
    };
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
            let mut found = placed(call, kind, &wanted)?;
            if kind.kind() == Kind::Disk {
                found = imports.join(&wanted, found);
            }
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
    Ok(Page {
        items,
        imports,
        next,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::time::Duration;

    use super::*;

    #[test]
    fn parts_that_several_threads_read_are_in_order() {
        let items: Vec<usize> = (0..10 * PART + 7).collect();
        for readers in [1, 2, 4, 64] {
            for count in [0, 1, PART, PART + 1, items.len()] {
                let items = &items[..count];
                let kept = |part: &[usize]| -> Vec<usize> {
                    let kept = part.iter().filter(|item| **item % 3 != 0);
                    kept.copied().collect()
                };
                let read = in_parts(items, readers, |part| {
                    assert!(part.len() <= PART || readers == 1);
                    Ok(kept(part))
                });
                assert_eq!(read.unwrap(), kept(items));
            }
        }
        let failing = |part: &[usize]| match part.contains(&(3 * PART)) {
            true => Err(ArmError::internal("not to be read")),
            false => Ok(part.to_vec()),
        };
        assert!(in_parts(&items, 2, failing).is_err());
        // One has the first part and fails when another has the second, which takes longer.
        let (begun, both) = (AtomicUsize::new(0), Barrier::new(2));
        let failing = |part: &[usize]| {
            if begun.fetch_add(1, Ordering::Relaxed) < 2 {
                both.wait();
            }
            if part.contains(&0) {
                return Err(ArmError::internal("not to be read"));
            }
            thread::sleep(Duration::from_millis(100));
            Ok(part.to_vec())
        };
        assert!(in_parts(&items, 2, failing).is_err());
        let begun = begun.into_inner();
        assert!(begun < items.len().div_ceil(PART), "{begun} parts");
    }
}
