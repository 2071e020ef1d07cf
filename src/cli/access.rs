//! Access over the network to the data of disks and snapshots: `grant-access` and `revoke-access`.

use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Serialize;
use time::OffsetDateTime;

use super::{CliError, Context};
use installation::catalog::Access;
use installation::envelope::ResourceKind;
use installation::runtime_dir;

#[derive(Args)]
pub(super) struct GrantArgs {
    /// Its name
    name: String,
    /// How long access is granted, in seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    duration_in_seconds: u32,
    /// What is granted; Write only for a disk that was created to be uploaded
    #[arg(long, value_enum, ignore_case = true, default_value = "Read")]
    access_level: Level,
    /// The address of `sealdisk serve`, as clients know it
    #[arg(long, value_name = "URL", default_value = "https://localhost:8443")]
    endpoint: String,
}

/// What is granted.
#[derive(Clone, Copy, ValueEnum)]
enum Level {
    #[value(name = "Read")]
    Read,
    #[value(name = "Write")]
    Write,
}

#[derive(Serialize)]
struct GrantedView {
    #[serde(rename = "accessSAS")]
    access_sas: String,
    #[serde(with = "time::serde::rfc3339")]
    expires: OffsetDateTime,
}

pub(super) fn grant(
    context: &Context,
    kind: ResourceKind,
    args: &GrantArgs,
) -> Result<(), CliError> {
    let endpoint = args.endpoint.trim_end_matches('/');
    if !endpoint.starts_with("https://") {
        return Err(CliError::usage(
            "--endpoint is the address of `sealdisk serve`, which begins with https://",
        ));
    }
    let access = match args.access_level {
        Level::Read => Access::Read,
        Level::Write => Access::Write,
    };
    let lifetime = Duration::from_secs(args.duration_in_seconds.into());
    let installation = context.installation()?;
    will_be_printed(context)?;
    let granted = arm::grant(
        &installation,
        (kind, &args.name),
        (access, lifetime),
        endpoint,
        &runtime_dir(context.runtime_dir.as_deref()),
    )?;
    let view = GrantedView {
        access_sas: granted.url,
        expires: granted.expires,
    };
    let again = format!(
        "`sealdisk {kind} revoke-access {}` ends it, and access can be granted again",
        args.name
    );
    context.output.show_once(&view, again)
}

/// Refuses an output in which the URL would be missing: it is shown once, and keeps the disk from being attached.
fn will_be_printed(context: &Context) -> Result<(), CliError> {
    const SAMPLE: &str = "the URL";
    let view = GrantedView {
        access_sas: SAMPLE.into(),
        expires: OffsetDateTime::UNIX_EPOCH,
    };
    match context.output.has(&view, SAMPLE)? {
        true => Ok(()),
        false => Err(CliError::usage(
            "the URL is shown once, and would not be in this output: give a --query that has it, as --query accessSAS",
        )),
    }
}

pub(super) fn revoke(context: &Context, kind: ResourceKind, name: &str) -> Result<(), CliError> {
    Ok(arm::revoke(&context.installation()?, kind, name)?)
}
