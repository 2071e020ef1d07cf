//! Functions of truth values, and comparisons.

use std::cmp::Ordering;

use serde_json::Value;

use super::args::Args;

type Outcome = Result<Value, String>;

pub(super) fn yes(_: &Args<'_>) -> Outcome {
    Ok(Value::Bool(true))
}

pub(super) fn no(_: &Args<'_>) -> Outcome {
    Ok(Value::Bool(false))
}

pub(super) fn null(_: &Args<'_>) -> Outcome {
    Ok(Value::Null)
}

pub(super) fn and(args: &Args<'_>) -> Outcome {
    let all: Vec<_> = (0..args.len())
        .map(|at| args.bool(at))
        .collect::<Result<_, _>>()?;
    Ok(all.iter().all(|it| *it).into())
}

pub(super) fn or(args: &Args<'_>) -> Outcome {
    let all: Vec<_> = (0..args.len())
        .map(|at| args.bool(at))
        .collect::<Result<_, _>>()?;
    Ok(all.iter().any(|it| *it).into())
}

pub(super) fn not(args: &Args<'_>) -> Outcome {
    Ok((!args.bool(0)?).into())
}

pub(super) fn bool(args: &Args<'_>) -> Outcome {
    match args.value(0) {
        Value::Bool(bool) => Ok((*bool).into()),
        Value::Number(number) => Ok((number.as_i64() != Some(0)).into()),
        Value::String(text) if text.eq_ignore_ascii_case("true") => Ok(true.into()),
        Value::String(text) if text.eq_ignore_ascii_case("false") => Ok(false.into()),
        other => Err(args.expects("a boolean, an integer, 'true' or 'false'", other)),
    }
}

pub(super) fn coalesce(args: &Args<'_>) -> Outcome {
    let found = args.values().find(|value| !value.is_null());
    Ok(found.cloned().unwrap_or_default())
}

/// Strings are compared with their case.
pub(super) fn equals(args: &Args<'_>) -> Outcome {
    Ok((args.value(0) == args.value(1)).into())
}

pub(super) fn less(args: &Args<'_>) -> Outcome {
    Ok(order(args)?.is_lt().into())
}

pub(super) fn less_or_equals(args: &Args<'_>) -> Outcome {
    Ok(order(args)?.is_le().into())
}

pub(super) fn greater(args: &Args<'_>) -> Outcome {
    Ok(order(args)?.is_gt().into())
}

pub(super) fn greater_or_equals(args: &Args<'_>) -> Outcome {
    Ok(order(args)?.is_ge().into())
}

fn order(args: &Args<'_>) -> Result<Ordering, String> {
    match args.value(0) {
        Value::String(left) => Ok(left.as_str().cmp(args.text(1)?)),
        Value::Number(_) => Ok(args.int(0)?.cmp(&args.int(1)?)),
        other => Err(args.expects("an integer or a string", other)),
    }
}
