//! Arrays and objects. Names of properties are compared without case.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::args::Args;
use crate::limits::{MAX_DEPTH, MAX_RANGE};
use crate::value::property;

type Outcome = Result<Value, String>;

pub(super) fn array(args: &Args<'_>) -> Outcome {
    Ok(match args.value(0) {
        Value::Array(elements) => Value::Array(elements.clone()),
        other => Value::Array(vec![other.clone()]),
    })
}

pub(super) fn create_array(args: &Args<'_>) -> Outcome {
    Ok(Value::Array(args.values().cloned().collect()))
}

pub(super) fn create_object(args: &Args<'_>) -> Outcome {
    if !args.len().is_multiple_of(2) {
        return Err(args.refuses("it takes pairs of a key and a value"));
    }
    let mut map = Map::new();
    for at in (0..args.len()).step_by(2) {
        map.insert(args.text(at)?.to_owned(), args.value(at + 1).clone());
    }
    Ok(Value::Object(map))
}

/// In a string a string, in an array an element, in an object a name.
pub(super) fn contains(args: &Args<'_>) -> Outcome {
    let found = match args.value(0) {
        Value::String(text) => match args.value(1) {
            Value::Number(number) => text.contains(&number.to_string()),
            _ => text.contains(args.text(1)?),
        },
        Value::Array(elements) => elements.contains(args.value(1)),
        Value::Object(map) => property(map, args.text(1)?).is_some(),
        other => return Err(args.expects("an array, an object or a string", other)),
    };
    Ok(found.into())
}

pub(super) fn length(args: &Args<'_>) -> Outcome {
    let length = match args.value(0) {
        Value::String(text) => text.chars().count(),
        Value::Array(elements) => elements.len(),
        Value::Object(map) => map.len(),
        other => return Err(args.expects("an array, an object or a string", other)),
    };
    Ok(length.into())
}

pub(super) fn empty(args: &Args<'_>) -> Outcome {
    let empty = match args.value(0) {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(elements) => elements.is_empty(),
        Value::Object(map) => map.is_empty(),
        other => return Err(args.expects("an array, an object or a string", other)),
    };
    Ok(empty.into())
}

/// Of an empty array null, of an empty string an empty one.
pub(super) fn first(args: &Args<'_>) -> Outcome {
    match args.value(0) {
        Value::String(text) => Ok(text.chars().take(1).collect::<String>().into()),
        Value::Array(elements) => Ok(elements.first().cloned().unwrap_or_default()),
        other => Err(args.expects("an array or a string", other)),
    }
}

pub(super) fn last(args: &Args<'_>) -> Outcome {
    match args.value(0) {
        Value::String(text) => Ok(text
            .chars()
            .next_back()
            .map(String::from)
            .unwrap_or_default()
            .into()),
        Value::Array(elements) => Ok(elements.last().cloned().unwrap_or_default()),
        other => Err(args.expects("an array or a string", other)),
    }
}

pub(super) fn skip(args: &Args<'_>) -> Outcome {
    let count = args.int(1)?.max(0) as usize;
    match args.value(0) {
        Value::String(text) => Ok(text.chars().skip(count).collect::<String>().into()),
        Value::Array(elements) => Ok(elements.iter().skip(count).cloned().collect()),
        other => Err(args.expects("an array or a string", other)),
    }
}

pub(super) fn take(args: &Args<'_>) -> Outcome {
    let count = args.int(1)?.max(0) as usize;
    match args.value(0) {
        Value::String(text) => Ok(text.chars().take(count).collect::<String>().into()),
        Value::Array(elements) => Ok(elements.iter().take(count).cloned().collect()),
        other => Err(args.expects("an array or a string", other)),
    }
}

/// In a string without case, as Azure has it; in an array with.
pub(super) fn index_of(args: &Args<'_>) -> Outcome {
    index(
        args,
        |text, part| text.find(part),
        |elements, value| elements.iter().position(|element| element == value),
    )
}

pub(super) fn last_index_of(args: &Args<'_>) -> Outcome {
    index(
        args,
        |text, part| text.rfind(part),
        |elements, value| elements.iter().rposition(|element| element == value),
    )
}

fn index(
    args: &Args<'_>,
    in_text: fn(&str, &str) -> Option<usize>,
    in_array: fn(&[Value], &Value) -> Option<usize>,
) -> Outcome {
    let found = match args.value(0) {
        Value::String(text) => {
            let (text, part) = (text.to_lowercase(), args.text(1)?.to_lowercase());
            in_text(&text, &part).map(|at| text[..at].chars().count())
        }
        Value::Array(elements) => in_array(elements, args.value(1)),
        other => return Err(args.expects("an array or a string", other)),
    };
    Ok(found.map_or(Value::from(-1), Value::from))
}

pub(super) fn range(args: &Args<'_>) -> Outcome {
    let (start, count) = (args.int(0)?, args.int(1)?);
    if !(0..=MAX_RANGE).contains(&count) {
        return Err(args.refuses(&format!(
            "the count '{count}' must be between '0' and '{MAX_RANGE}'"
        )));
    }
    match start.checked_add(count) {
        Some(end) => Ok((start..end).collect()),
        None => Err(args.refuses("the numbers are larger than 64 bits")),
    }
}

/// Of two objects' properties with one name the later counts; objects in both are united in turn.
pub(super) fn union(args: &Args<'_>) -> Outcome {
    match args.value(0) {
        Value::Array(_) => {
            let mut seen = HashSet::new();
            let mut united = Vec::new();
            for at in 0..args.len() {
                let new = args.array(at)?.iter().filter(|it| seen.insert(key_of(it)));
                united.extend(new.cloned());
            }
            Ok(Value::Array(united))
        }
        Value::Object(_) => {
            let mut united = Map::new();
            for at in 0..args.len() {
                merge(&mut united, args.object(at)?);
            }
            Ok(Value::Object(united))
        }
        other => Err(args.expects("an array or an object", other)),
    }
}

/// Values of arguments have a bounded depth.
fn merge(into: &mut Map<String, Value>, from: &Map<String, Value>) {
    for (key, value) in from {
        match (into.get_mut(key), value) {
            (Some(Value::Object(old)), Value::Object(new)) => merge(old, new),
            (Some(old), new) => *old = new.clone(),
            (None, new) => {
                into.insert(key.clone(), new.clone());
            }
        }
    }
}

/// A text that two values have in common if they are equal.
fn key_of(value: &Value) -> String {
    fn write(value: &Value, depth: usize, key: &mut String) {
        match value {
            Value::Array(elements) if depth <= MAX_DEPTH => {
                key.push('[');
                for element in elements {
                    write(element, depth + 1, key);
                    key.push(',');
                }
                key.push(']');
            }
            Value::Object(map) if depth <= MAX_DEPTH => {
                let mut entries: Vec<_> = map.iter().collect();
                entries.sort_by_key(|(name, _)| *name);
                key.push('{');
                for (name, value) in entries {
                    *key += &Value::from(name.as_str()).to_string();
                    write(value, depth + 1, key);
                    key.push(',');
                }
                key.push('}');
            }
            other => *key += &other.to_string(),
        }
    }
    let mut key = String::new();
    write(value, 0, &mut key);
    key
}

pub(super) fn intersection(args: &Args<'_>) -> Outcome {
    match args.value(0) {
        Value::Array(elements) => {
            let mut common = elements.clone();
            for at in 1..args.len() {
                let others: HashSet<_> = args.array(at)?.iter().map(key_of).collect();
                common.retain(|element| others.contains(&key_of(element)));
            }
            Ok(Value::Array(common))
        }
        Value::Object(map) => {
            let mut common = map.clone();
            for at in 1..args.len() {
                let other = args.object(at)?;
                common.retain(|name, value| other.get(name) == Some(value));
            }
            Ok(Value::Object(common))
        }
        other => Err(args.expects("an array or an object", other)),
    }
}

/// Sorted by name, as Azure does.
pub(super) fn items(args: &Args<'_>) -> Outcome {
    let mut entries: Vec<_> = args.object(0)?.iter().collect();
    entries.sort_by_key(|(name, _)| *name);
    let items = entries.into_iter();
    Ok(items
        .map(|(key, value)| json!({ "key": key, "value": value }))
        .collect())
}

pub(super) fn object_keys(args: &Args<'_>) -> Outcome {
    let mut keys: Vec<_> = args.object(0)?.keys().cloned().collect();
    keys.sort();
    Ok(keys.into())
}

pub(super) fn shallow_merge(args: &Args<'_>) -> Outcome {
    let mut merged = Map::new();
    for element in args.array(0)? {
        let Value::Object(map) = element else {
            return Err(args.expects("an array of objects", element));
        };
        merged.extend(map.clone());
    }
    Ok(Value::Object(merged))
}

pub(super) fn flatten(args: &Args<'_>) -> Outcome {
    let mut flat = Vec::new();
    for element in args.array(0)? {
        let Value::Array(inner) = element else {
            return Err(args.expects("an array of arrays", element));
        };
        flat.extend_from_slice(inner);
    }
    Ok(Value::Array(flat))
}

/// Null where there is no property or element.
pub(super) fn try_get(args: &Args<'_>) -> Outcome {
    let mut at = args.value(0);
    for key in args.values().skip(1) {
        let next = match (at, key) {
            (Value::Object(map), Value::String(name)) => property(map, name),
            (Value::Array(elements), Value::Number(number)) => number
                .as_u64()
                .and_then(|index| elements.get(usize::try_from(index).ok()?)),
            (Value::Null, _) => None,
            (_, Value::String(_) | Value::Number(_)) => None,
            (_, other) => return Err(args.expects("a string or an integer", other)),
        };
        match next {
            Some(value) => at = value,
            None => return Ok(Value::Null),
        }
    }
    Ok(at.clone())
}

pub(super) fn index_from_end(args: &Args<'_>) -> Outcome {
    from_end(args)?.ok_or_else(|| args.refuses("the index is out of bounds"))
}

pub(super) fn try_index_from_end(args: &Args<'_>) -> Outcome {
    Ok(from_end(args)?.unwrap_or_default())
}

/// Counted from 1.
fn from_end(args: &Args<'_>) -> Result<Option<Value>, String> {
    let (elements, back) = (args.array(0)?, args.int(1)?);
    let back = usize::try_from(back).ok().filter(|back| *back > 0);
    let at = back.and_then(|back| elements.len().checked_sub(back));
    Ok(at.and_then(|at| elements.get(at)).cloned())
}
