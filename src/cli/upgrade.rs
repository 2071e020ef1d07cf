//! `sealdisk upgrade`: another version of this program serves disks that are attached.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::{CliError, Context, Tabular};
use attach::{AttachError, Upgraded};
use disks::DiskView;
use installation::envelope::ResourceKind;
use installation::runtime_dir;

/// Arguments of `upgrade`.
#[derive(Args)]
#[command(after_help = "Examples:
  sealdisk upgrade mydisk
  sealdisk upgrade --all
  sealdisk upgrade mydisk --binary /opt/sealdisk-1.1/bin/sealdisk

The new program is started beside the old one and tested before anything stops. If it is not ready in
time, or does not work, the old one goes on. An older version is taken up in the same way.

What an old one cannot read any more once the new program has used it, a key vault's database say, it
cannot ask: a disk that is left with it stops when its --key-grace is over, if this version has another
format. Upgrade it before.")]
pub struct UpgradeArgs {
    /// Attached disks
    #[arg(value_name = "DISK", required_unless_present = "all")]
    disks: Vec<String>,
    /// All disks that are attached with this --runtime-dir
    #[arg(long, conflicts_with = "disks")]
    all: bool,
    /// The program that is to serve them [default: what is now at the path from which each was attached]
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
}

/// A disk that another program serves.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct UpgradedView {
    name: String,
    #[serde(flatten)]
    upgraded: Upgraded,
}

impl Tabular for UpgradedView {
    const COLUMNS: &'static [&'static str] = &["name", "from", "to", "stallMs"];

    const FIELDS: &'static [&'static str] = &["name", "from", "to", "stallMs", "attachKept"];

    fn cells(&self) -> Vec<String> {
        let Upgraded {
            from, to, stall_ms, ..
        } = &self.upgraded;
        vec![
            self.name.clone(),
            from.clone(),
            to.clone(),
            stall_ms.to_string(),
        ]
    }
}

pub(super) fn run(context: &Context, args: UpgradeArgs) -> Result<(), CliError> {
    let program = args.binary.map(|path| {
        // The attach process has another working directory.
        path.canonicalize().map_err(|error| {
            let path = path.display();
            CliError::usage(format!("--binary {path} cannot be found: {error}"))
        })
    });
    let program = program.transpose()?;
    let installation = context.installation()?;
    let runtime_dir = runtime_dir(context.runtime_dir.as_deref());
    let disks = match args.all {
        true => {
            let here = attach::attached_here(&runtime_dir).unwrap_or_default();
            let here: Vec<_> = here.iter().map(|here| here.disk).collect();
            disks::list_here(&installation, ResourceKind::Disk, &here)?
        }
        false => args
            .disks
            .iter()
            .map(|name| disks::show(&installation, ResourceKind::Disk, name))
            .collect::<Result<_, _>>()?,
    };
    let asked = disks.len();
    let (mut done, mut failed) = (Vec::new(), Vec::new());
    for DiskView {
        name, unique_id, ..
    } in disks
    {
        match attach::upgrade(&runtime_dir, unique_id, program.clone()) {
            Ok(upgraded) => {
                if let Some(why) = &upgraded.attach_kept {
                    let error = AttachError::NotReplaced {
                        version: upgraded.to.clone(),
                        why: why.clone(),
                    };
                    failed.push((name.clone(), error));
                }
                done.push(UpgradedView { name, upgraded });
            }
            Err(AttachError::NotAttached { .. }) if args.all => {}
            Err(error) => failed.push((name, error)),
        }
    }
    if !done.is_empty() || failed.is_empty() {
        context.output.list(&done)?;
    }
    let several = asked > 1;
    match (failed.pop(), several) {
        (None, _) => Ok(()),
        (Some((_, error)), false) => Err(error.into()),
        (Some(last), true) => {
            failed.push(last);
            Err(CliError::new("NotUpgraded", not_upgraded(&failed)))
        }
    }
}

/// Why disks are served by the version before, and what comes of that.
fn not_upgraded(failed: &[(String, AttachError)]) -> String {
    let each: Vec<_> = failed
        .iter()
        .map(|(name, error)| format!("{name}: {error}"))
        .collect();
    format!(
        "{}; where this version has brought a key vault up to date that the version before cannot read, such a disk \
         stops when its --key-grace is over: upgrade or detach it before",
        each.join("; ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_left_behind_is_told_for_how_long_its_disk_is_served() {
        let error = AttachError::NotReplaced {
            version: "2".into(),
            why: "no room".into(),
        };
        let said = not_upgraded(&[("web".into(), error)]);
        assert!(
            said.starts_with("web: ") && said.contains("--key-grace"),
            "{said}"
        );
    }
}
