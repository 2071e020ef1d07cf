//! Ids of resources, and names that are made of others.

use serde_json::Value;
use uuid::Uuid;

use super::args::Args;

type Outcome = Result<Value, String>;

/// The namespace of the UUIDs that `guid` gives, as Azure documents it.
const GUID_NAMESPACE: Uuid = Uuid::from_u128(0x11fb06fb_712d_4ddd_98c7_e71bbd588830);

/// The namespace of `uniqueString`, which is this project's own: Azure does not publish its algorithm.
const UNIQUE_NAMESPACE: Uuid = Uuid::from_u128(0x7d3a_54c1_0a5e_4d60_9a0b_3f27_8d9e_1b44);

pub(super) fn guid(args: &Args<'_>) -> Outcome {
    let name = args.texts(0)?.join("-");
    Ok(Uuid::new_v5(&GUID_NAMESPACE, name.as_bytes())
        .to_string()
        .into())
}

/// 13 letters and digits, as in Azure; which ones differs.
pub(super) fn unique_string(args: &Args<'_>) -> Outcome {
    const DIGITS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let name = args.texts(0)?.join("-");
    let hash = Uuid::new_v5(&UNIQUE_NAMESPACE, name.as_bytes()).as_u128();
    let digit = |at: u32| char::from(DIGITS[(hash >> (5 * at)) as usize % DIGITS.len()]);
    Ok((0..13).map(digit).collect::<String>().into())
}

pub(super) fn tenant_resource_id(args: &Args<'_>) -> Outcome {
    let relative = relative(args, args.text(0)?, &args.texts(1)?)?;
    Ok(format!("/providers/{relative}").into())
}

pub(super) fn extension_resource_id(args: &Args<'_>) -> Outcome {
    let base = args.text(0)?.trim_end_matches('/');
    let relative = relative(args, args.text(1)?, &args.texts(2)?)?;
    Ok(format!("{base}/providers/{relative}").into())
}

fn relative(args: &Args<'_>, kind: &str, names: &[&str]) -> Result<String, String> {
    resource_id(kind, names).map_err(|why| args.refuses(&why))
}

/// `Namespace/type/name/type/name…` of a type and the names of each of its parts.
pub(crate) fn resource_id(kind: &str, names: &[&str]) -> Result<String, String> {
    let mut types = kind.split('/');
    let mut id = types.next().unwrap_or_default().to_owned();
    let types: Vec<_> = types.collect();
    if types.is_empty() || types.len() != names.len() {
        let kind = crate::error::shortened(kind);
        let wanted = types.len().max(1);
        return Err(format!(
            "the type '{kind}' requires '{wanted}' resource name argument(s)"
        ));
    }
    for (kind, name) in types.iter().zip(names) {
        for part in [kind, name] {
            id.push('/');
            id += part;
        }
    }
    Ok(id)
}

/// Whether a text is the id of a resource, and no name.
pub(crate) fn is_id(text: &str) -> bool {
    let begins = |start: &str| {
        text.get(..start.len())
            .is_some_and(|begin| begin.eq_ignore_ascii_case(start))
    };
    begins("/subscriptions/") || begins("/providers/")
}
