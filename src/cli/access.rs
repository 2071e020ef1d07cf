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
    let granted = arm::grant(
        &context.installation()?,
        (kind, &args.name),
        (access, lifetime),
        endpoint,
        &runtime_dir(context.runtime_dir.as_deref()),
    )?;
    context.output.show(&GrantedView {
        access_sas: granted.url,
        expires: granted.expires,
    })
}

pub(super) fn revoke(context: &Context, kind: ResourceKind, name: &str) -> Result<(), CliError> {
    Ok(arm::revoke(&context.installation()?, kind, name)?)
}
