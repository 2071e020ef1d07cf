//! `sealdisk alarm`: from when on something is an alarm.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::attach::duration;
use super::files::in_file;
use super::{CliError, Context};
use alarms::{Settings, certificate_end};

/// Arguments of `alarm`.
#[derive(Args)]
pub struct AlarmArgs {
    #[command(subcommand)]
    command: AlarmCommand,
}

#[derive(Subcommand)]
enum AlarmCommand {
    /// Show from when on something is an alarm
    #[command(after_help = "Example:\n  sealdisk alarm show -o json")]
    Show,
    /// Change from when on something is an alarm; attached disks and whatever watches follow
    #[command(after_help = "Examples:
  sealdisk alarm update --key-warning 60d --key-critical 14d
  sealdisk alarm update --certificate /etc/ssl/vault.pem --backup-warning 8d --backup-critical 30d

What is not named stays as it is. docs/alarms.md has each alarm with what to do. Times are seconds, or a number with s, m, h or d.")]
    Update(Box<UpdateArgs>),
}

#[derive(Args)]
struct UpdateArgs {
    /// A key that ends within this time is a warning [at first: 30d]
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    key_warning: Option<u64>,
    /// A key that ends within this time is critical [at first: 7d]
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    key_critical: Option<u64>,
    /// A certificate that ends within this time is a warning [at first: 14d]
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    certificate_warning: Option<u64>,
    /// A certificate that ends within this time is critical [at first: 3d]
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    certificate_critical: Option<u64>,
    /// How long after a rotation a disk may be under an old key version [at first: 2d]
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    rotation_grace: Option<u64>,
    /// A file system with less room than this is a warning, in per cent of its size [at first: 10]
    #[arg(long, value_name = "PERCENT")]
    space_warning: Option<u8>,
    /// A file system with less room than this is critical, in per cent of its size [at first: 3]
    #[arg(long, value_name = "PERCENT")]
    space_critical: Option<u8>,
    /// An identity that has used this much of its vault's limit is a warning, in per cent [at first: 80]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=100))]
    quota_warning: Option<u8>,
    /// A backup that is older than this is a warning [at first: 3d]
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    backup_warning: Option<u64>,
    /// A backup that is older than this is critical [at first: 14d]
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    backup_critical: Option<u64>,
    /// So many data planes that die one after the other are a crash loop [at first: 3]
    #[arg(long, value_name = "N")]
    crash_loop_deaths: Option<u64>,
    /// How long after the last death it still is one [at first: 10m]
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    crash_loop_time: Option<u64>,
    /// A disk of which no request ends for so long, while some are under way, is stalled [at first: 30s]
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    stall_time: Option<u64>,
    /// How often attached disks, served vaults and `status --watch` are looked at [at first: 60s]
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    look_interval: Option<u64>,
    /// A certificate (PEM) to look at beside those that Sealdisk makes; these replace those that were
    /// named before
    #[arg(long, value_name = "PEM", conflicts_with = "no_certificates")]
    certificate: Vec<PathBuf>,
    /// Look at no other certificates than those that Sealdisk makes
    #[arg(long)]
    no_certificates: bool,
}

fn seconds(text: &str) -> Result<u64, String> {
    Ok(duration(text)?.as_secs())
}

pub(super) fn run(context: &Context, args: AlarmArgs) -> Result<(), CliError> {
    let installation = context.installation()?;
    let state_dir = installation.state_dir();
    match args.command {
        AlarmCommand::Show => context.output.show(&Settings::load(state_dir)?),
        AlarmCommand::Update(args) => {
            let mut settings = Settings::load(state_dir)?;
            args.apply(&mut settings)?;
            settings.save(state_dir)?;
            context.output.show(&settings)
        }
    }
}

impl UpdateArgs {
    fn apply(self, settings: &mut Settings) -> Result<(), CliError> {
        let times = [
            (&mut settings.key_warning_seconds, self.key_warning),
            (&mut settings.key_critical_seconds, self.key_critical),
            (
                &mut settings.certificate_warning_seconds,
                self.certificate_warning,
            ),
            (
                &mut settings.certificate_critical_seconds,
                self.certificate_critical,
            ),
            (&mut settings.rotation_grace_seconds, self.rotation_grace),
            (&mut settings.backup_warning_seconds, self.backup_warning),
            (&mut settings.backup_critical_seconds, self.backup_critical),
            (&mut settings.crash_loop_deaths, self.crash_loop_deaths),
            (&mut settings.crash_loop_seconds, self.crash_loop_time),
            (&mut settings.stall_seconds, self.stall_time),
            (&mut settings.look_seconds, self.look_interval),
        ];
        for (setting, given) in times {
            *setting = given.unwrap_or(*setting);
        }
        let percents = [
            (&mut settings.space_warning_percent, self.space_warning),
            (&mut settings.space_critical_percent, self.space_critical),
            (&mut settings.quota_warning_percent, self.quota_warning),
        ];
        for (setting, given) in percents {
            *setting = given.unwrap_or(*setting);
        }
        if self.no_certificates {
            settings.certificates.clear();
        }
        if !self.certificate.is_empty() {
            // What watches has another working directory.
            let certificates = self.certificate.iter().map(|path| certificate(path));
            settings.certificates = certificates.collect::<Result<_, _>>()?;
        }
        Ok(())
    }
}

/// A file of certificates, by a path that whatever watches finds: it has another working directory.
fn certificate(path: &Path) -> Result<PathBuf, CliError> {
    let absolute = path.canonicalize().map_err(|e| in_file(path, &e))?;
    match certificate_end(&absolute) {
        Ok(_) => Ok(absolute),
        Err(why) => Err(in_file(
            path,
            &format!("{why}: name a file with a certificate in PEM"),
        )),
    }
}
