//! The functions of expressions that need nothing but their arguments: each gives the same for the same, and no more
//! than may be made.

mod args;
mod collections;
mod dates;
mod format;
mod ids;
mod logic;
mod numbers;
mod text;

use serde_json::Value;

use crate::value::{Shared, room};

use args::Args;
pub(crate) use dates::format_date;
pub(crate) use ids::{is_id, resource_id};

const ANY: usize = usize::MAX;

/// What calls a function: its name in small letters, and its arguments.
pub(crate) type Body = fn(&Args<'_>) -> Result<Value, String>;

/// The functions that depend on nothing but their arguments.
const PURE: &[(&str, usize, usize, Body)] = &[
    ("add", 2, 2, numbers::add),
    ("and", 2, ANY, logic::and),
    ("array", 1, 1, collections::array),
    ("base64", 1, 1, text::base64),
    ("base64ToJson", 1, 1, text::base64_to_json),
    ("base64ToString", 1, 1, text::base64_to_string),
    ("bool", 1, 1, logic::bool),
    ("coalesce", 1, ANY, logic::coalesce),
    ("concat", 1, ANY, text::concat),
    ("contains", 2, 2, collections::contains),
    ("createArray", 0, ANY, collections::create_array),
    ("createObject", 0, ANY, collections::create_object),
    ("dataUri", 1, 1, text::data_uri),
    ("dateTimeAdd", 2, 3, dates::date_time_add),
    ("dateTimeFromEpoch", 1, 1, dates::date_time_from_epoch),
    ("dateTimeToEpoch", 1, 1, dates::date_time_to_epoch),
    ("div", 2, 2, numbers::div),
    ("empty", 1, 1, collections::empty),
    ("endsWith", 2, 2, text::ends_with),
    ("equals", 2, 2, logic::equals),
    ("extensionResourceId", 3, ANY, ids::extension_resource_id),
    ("false", 0, 0, logic::no),
    ("first", 1, 1, collections::first),
    ("flatten", 1, 1, collections::flatten),
    ("format", 1, ANY, format::format),
    ("greater", 2, 2, logic::greater),
    ("greaterOrEquals", 2, 2, logic::greater_or_equals),
    ("guid", 1, ANY, ids::guid),
    ("indexFromEnd", 2, 2, collections::index_from_end),
    ("indexOf", 2, 2, collections::index_of),
    ("int", 1, 1, numbers::int),
    ("intersection", 2, ANY, collections::intersection),
    ("items", 1, 1, collections::items),
    ("join", 2, 2, text::join),
    ("json", 1, 1, text::json),
    ("last", 1, 1, collections::last),
    ("lastIndexOf", 2, 2, collections::last_index_of),
    ("length", 1, 1, collections::length),
    ("less", 2, 2, logic::less),
    ("lessOrEquals", 2, 2, logic::less_or_equals),
    ("max", 1, ANY, numbers::max),
    ("min", 1, ANY, numbers::min),
    ("mod", 2, 2, numbers::modulo),
    ("mul", 2, 2, numbers::mul),
    ("not", 1, 1, logic::not),
    ("null", 0, 0, logic::null),
    ("objectKeys", 1, 1, collections::object_keys),
    ("or", 2, ANY, logic::or),
    ("padLeft", 2, 3, text::pad_left),
    ("range", 2, 2, collections::range),
    ("replace", 3, 3, text::replace),
    ("shallowMerge", 1, 1, collections::shallow_merge),
    ("skip", 2, 2, collections::skip),
    ("split", 2, 2, text::split),
    ("startsWith", 2, 2, text::starts_with),
    ("string", 1, 1, text::string),
    ("sub", 2, 2, numbers::sub),
    ("substring", 2, 3, text::substring),
    ("take", 2, 2, collections::take),
    ("tenantResourceId", 2, ANY, ids::tenant_resource_id),
    ("toLower", 1, 1, text::to_lower),
    ("toUpper", 1, 1, text::to_upper),
    ("trim", 1, 1, text::trim),
    ("true", 0, 0, logic::yes),
    ("tryGet", 2, ANY, collections::try_get),
    ("tryIndexFromEnd", 2, 2, collections::try_index_from_end),
    ("union", 1, ANY, collections::union),
    ("uniqueString", 1, ANY, ids::unique_string),
    ("uri", 2, 2, text::uri),
    ("uriComponent", 1, 1, text::uri_component),
    ("uriComponentToString", 1, 1, text::uri_component_to_string),
];

/// The functions that need to know where, in what and when they are called. The evaluator has them.
const IN_CONTEXT: &[(&str, usize, usize)] = &[
    ("copyIndex", 0, 2),
    ("deployment", 0, 0),
    ("environment", 0, 0),
    ("filter", 2, 2),
    ("if", 3, 3),
    ("lambda", 1, 4),
    ("lambdaVariables", 1, 1),
    ("map", 2, 2),
    ("newGuid", 0, 0),
    ("parameters", 1, 1),
    ("reduce", 3, 3),
    ("reference", 1, 3),
    ("references", 1, 2),
    ("resourceGroup", 0, 0),
    ("resourceId", 2, ANY),
    ("subscription", 0, 0),
    ("subscriptionResourceId", 2, ANY),
    ("tenant", 0, 0),
    ("toObject", 2, 3),
    ("utcNow", 0, 1),
    ("variables", 1, 1),
];

fn pure(key: &str) -> Option<&'static (&'static str, usize, usize, Body)> {
    PURE.iter()
        .find(|(name, ..)| name.eq_ignore_ascii_case(key))
}

/// How few and how many arguments a function takes, by its name in any case; nothing if there is none of this name.
pub(crate) fn arity(key: &str) -> Option<(usize, usize)> {
    if let Some((_, min, max, _)) = pure(key) {
        return Some((*min, *max));
    }
    let mut all = IN_CONTEXT.iter();
    all.find(|(name, ..)| name.eq_ignore_ascii_case(key))
        .map(|(_, min, max)| (*min, *max))
}

/// Calls a function that depends on nothing but its arguments; nothing if there is none of this name.
pub(crate) fn call(key: &str, args: &[Shared]) -> Option<Result<Value, String>> {
    let (name, _, _, body) = pure(key)?;
    let size = args
        .iter()
        .fold(0_usize, |sum, arg| sum.saturating_add(arg.size));
    Some(room(size).and_then(|()| body(&Args { name, list: args })))
}
