//! Ids of Azure Resource Manager in place of names: `/subscriptions/S/resourceGroups/G/providers/P/TYPE/NAME`.
//!
//! Commands know names only. A command line that has an id where a disk, a snapshot, an image or a disk encryption set
//! is named is rewritten into one with the name before it is taken apart, once it is known that the id is that of such
//! a resource of this installation: in its subscription, in that group, and of that type.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgMatches, Command};

use super::global::catalog_at;
use super::{CliError, named};
use arm::id::ResourceId;
use arm::{subscription, type_of};
use installation::catalog::{DEFAULT_GROUP, Kind};
use installation::{Installation, default_state_dir};

/// Where an id may stand: the command, an argument of it, and of what kinds the resource may be.
type Place = (&'static [&'static str], &'static str, &'static [Kind]);

const DISK: &[Kind] = &[Kind::Disk];
const SET: &[Kind] = &[Kind::DiskEncryptionSet];
const PLACES: &[Place] = &[
    (&["attach"], "disk", DISK),
    (&["attach"], "blk_file", DISK),
    (&["enable"], "name", DISK),
    (&["disable"], "name", DISK),
    (&["disk"], "name", DISK),
    (&["disk"], "disk_encryption_set", SET),
    (
        &["disk", "create"],
        "source",
        &[Kind::Snapshot, Kind::Image, Kind::Disk],
    ),
    (&["disk", "revert"], "snapshot", &[Kind::Snapshot]),
    (&["snapshot"], "name", &[Kind::Snapshot]),
    (&["snapshot"], "disk_encryption_set", SET),
    (&["snapshot", "create"], "source", DISK),
    (&["image"], "name", &[Kind::Image]),
    (&["image"], "disk_encryption_set", SET),
    (
        &["image", "create"],
        "source",
        &[Kind::Disk, Kind::Snapshot],
    ),
    (&["disk-encryption-set"], "name", SET),
    (
        &["disk-encryption-set"],
        "mi_user_assigned",
        &[Kind::Identity],
    ),
    (&["identity"], "name", &[Kind::Identity]),
];

/// The command line with names in place of ids; one that makes no sense is left as it is.
///
/// # Errors
/// What is wrong with an id, and an installation that cannot be opened.
pub(super) fn by_name(
    commands: Command,
    arguments: Vec<OsString>,
) -> Result<Vec<OsString>, CliError> {
    let any = |argument: &OsString| argument.to_str().is_some_and(has_id);
    if !arguments.iter().any(any) {
        return Ok(arguments);
    }
    let parsed = named::positional(named::with_option(commands.clone()), &arguments);
    let parsed = parsed.and_then(|line| Ok((commands.try_get_matches_from(&line)?, line)));
    let Ok((matches, mut rewritten)) = parsed else {
        return Ok(arguments);
    };
    let Some((leaf, path)) = named::leaf(&matches) else {
        return Ok(arguments);
    };
    for (command, argument, kinds) in PLACES {
        let is_here = path.len() >= command.len() && path.iter().zip(*command).all(|(a, b)| a == b);
        let given = leaf.try_get_one::<String>(argument).ok().flatten();
        let Some(id) = given.filter(|given| is_here && is_id(given)) else {
            continue;
        };
        let (kind, name) = resource(&installation(leaf)?, id, kinds)?;
        // A source may be of several kinds, and a file.
        let name = match kinds {
            [_] => name,
            _ => format!("{}:{name}", kind.as_str()),
        };
        replace(&mut rewritten, id, &name);
    }
    Ok(rewritten)
}

/// Whether a text is meant as an id.
fn is_id(text: &str) -> bool {
    let mut words = text.split('/').filter(|word| !word.is_empty());
    let is = |word: Option<&str>, wanted: &str| {
        word.is_some_and(|word| word.eq_ignore_ascii_case(wanted))
    };
    text.starts_with('/') && is(words.next(), "subscriptions") && is(words.nth(1), "resourceGroups")
}

/// Whether an argument is an id, or an option with one.
fn has_id(argument: &str) -> bool {
    is_id(argument)
        || argument
            .split_once('=')
            .is_some_and(|(_, value)| is_id(value))
}

fn installation(matches: &ArgMatches) -> Result<Installation, CliError> {
    let given = matches.try_get_one::<PathBuf>("state_dir").ok().flatten();
    let state_dir = match given {
        Some(dir) => dir.clone(),
        None => default_state_dir()?,
    };
    let catalog = matches.try_get_one::<String>("catalog").ok().flatten();
    let place = installation::Place {
        state_dir,
        catalog: catalog_at(catalog.map(String::as_str))?,
    };
    Ok(Installation::open_existing(place)?)
}

/// The resource of an id: what it is, and its name as it is written.
fn resource(
    installation: &Installation,
    id: &str,
    kinds: &[Kind],
) -> Result<(Kind, String), CliError> {
    let parsed = ResourceId::parse(id)
        .map_err(|error| CliError::usage(format!("'{id}' is no id of a resource: {error}")))?;
    if !parsed
        .subscription
        .eq_ignore_ascii_case(&subscription(installation).to_string())
    {
        return Err(CliError::new(
            "SubscriptionNotFound",
            format!(
                "the subscription '{}' is not that of this installation, {}: use its state directory, on its host",
                parsed.subscription,
                subscription(installation)
            ),
        ));
    }
    let kind = type_of(&parsed.typed).filter(|kind| kinds.contains(kind));
    let Some(kind) = kind else {
        let wanted: Vec<String> = kinds.iter().map(ToString::to_string).collect();
        return Err(CliError::usage(format!(
            "'{id}' is the id of no {}",
            wanted.join(" or ")
        )));
    };
    let catalog = installation.catalog();
    let found = catalog.name_of(kind, parsed.name())?;
    let group = match &found {
        Some(name) => catalog.placement(kind, name)?.map(|placed| placed.group),
        None => None,
    };
    let group = group.unwrap_or_else(|| DEFAULT_GROUP.into());
    match found {
        Some(name) if group.eq_ignore_ascii_case(&parsed.group) => Ok((kind, name)),
        _ => Err(CliError::new(
            "ResourceNotFound",
            format!(
                "there is no {kind} '{}' in the resource group '{}'; `az resource list` shows what there is",
                parsed.name(),
                parsed.group
            ),
        )),
    }
}

/// Puts the name where the id is, alone or behind the `=` of an option.
fn replace(arguments: &mut [OsString], id: &str, name: &str) {
    for argument in arguments {
        let Some(text) = argument.to_str() else {
            continue;
        };
        if text == id {
            *argument = name.into();
        } else if let Some((option, value)) = text.split_once('=')
            && value == id
        {
            *argument = format!("{option}={name}").into();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_no_path() {
        for id in [
            "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/disks/d",
            "//SUBSCRIPTIONS/s//resourcegroups/g",
        ] {
            assert!(is_id(id) && has_id(&format!("--source={id}")), "{id}");
        }
        for other in [
            "d",
            "/var/lib/d",
            "/subscriptions/s",
            "subscriptions/s/resourceGroups/g",
            "/subscriptions/s/x/resourceGroups",
            "--x=/y",
        ] {
            assert!(!has_id(other), "{other}");
        }
    }

    #[test]
    fn the_name_takes_the_place_of_the_id() {
        let mut line: Vec<OsString> = ["a", "/i", "--s=/i", "--t=/ix", "/ix"]
            .map(OsString::from)
            .to_vec();
        replace(&mut line, "/i", "n");
        assert_eq!(line, ["a", "n", "--s=n", "--t=/ix", "/ix"]);
    }
}
