//! Integers of 64 bits.

use serde_json::Value;

use super::args::Args;

type Outcome = Result<Value, String>;

pub(super) fn add(args: &Args<'_>) -> Outcome {
    combine(args, i64::checked_add)
}

pub(super) fn sub(args: &Args<'_>) -> Outcome {
    combine(args, i64::checked_sub)
}

pub(super) fn mul(args: &Args<'_>) -> Outcome {
    combine(args, i64::checked_mul)
}

pub(super) fn div(args: &Args<'_>) -> Outcome {
    combine(args, i64::checked_div)
}

pub(super) fn modulo(args: &Args<'_>) -> Outcome {
    combine(args, i64::checked_rem)
}

fn combine(args: &Args<'_>, operation: fn(i64, i64) -> Option<i64>) -> Outcome {
    let (left, right) = (args.int(0)?, args.int(1)?);
    let result = operation(left, right);
    result.map(Value::from).ok_or_else(|| {
        args.refuses(&format!(
            "the operands '{left}' and '{right}' have no result of 64 bits"
        ))
    })
}

pub(super) fn int(args: &Args<'_>) -> Outcome {
    match args.value(0) {
        Value::String(text) => text.trim().parse::<i64>().map(Value::from).map_err(|_| {
            let short = crate::error::shortened(text);
            args.refuses(&format!("'{short}' is no integer of 64 bits"))
        }),
        Value::Number(number) => {
            // A float loses its fraction, and its excess.
            let rounded = number.as_f64().map(|float| float as i64);
            let int = number.as_i64().or(rounded);
            int.map(Value::from)
                .ok_or_else(|| args.expects("an integer", args.value(0)))
        }
        other => Err(args.expects("a string or an integer", other)),
    }
}

pub(super) fn min(args: &Args<'_>) -> Outcome {
    let all = integers(args)?;
    all.into_iter()
        .min()
        .map(Value::from)
        .ok_or_else(|| args.refuses("there is no integer"))
}

pub(super) fn max(args: &Args<'_>) -> Outcome {
    let all = integers(args)?;
    all.into_iter()
        .max()
        .map(Value::from)
        .ok_or_else(|| args.refuses("there is no integer"))
}

/// An array of integers, or all arguments.
fn integers(args: &Args<'_>) -> Result<Vec<i64>, String> {
    if let (1, Value::Array(elements)) = (args.len(), args.value(0)) {
        let all = elements.iter().map(|element| {
            element
                .as_i64()
                .ok_or_else(|| args.expects("an array of integers", element))
        });
        return all.collect();
    }
    (0..args.len()).map(|at| args.int(at)).collect()
}
