//! The global options, and what they mean for every command.

use std::path::PathBuf;

use clap::{ArgAction, Args};

use installation::{
    CATALOG_VARIABLE, CatalogAt, Installation, Place, check_host_name, default_state_dir,
};

use super::logging::LogFormat;
use super::output::Query;
use super::{CliError, Output, OutputFormat};

#[derive(Args)]
#[command(next_help_heading = "Global options")]
pub(super) struct GlobalArgs {
    /// The directory of the catalog, the vaults and the disks [default: /var/lib/sealdisk for root,
    /// else $XDG_STATE_HOME/sealdisk]
    #[arg(long, global = true, env = "SEALDISK_STATE_DIR", value_name = "DIR")]
    pub(super) state_dir: Option<PathBuf>,
    /// The PostgreSQL database of the catalog, which hosts may share, as postgres://USER@HOST/DATABASE; a password is in
    /// a password file, never here [default: a file in the state directory]
    #[arg(long, global = true, env = CATALOG_VARIABLE, hide_env_values = true, value_name = "URL")]
    pub(super) catalog: Option<String>,
    /// A directory on tmpfs for the control sockets and runtime maps of attached disks [default:
    /// /run/sealdisk for root, else $XDG_RUNTIME_DIR/sealdisk]
    #[arg(long, global = true, env = "SEALDISK_RUNTIME_DIR", value_name = "DIR")]
    pub(super) runtime_dir: Option<PathBuf>,
    /// The name of this host, by which the disks that it attaches say on storage of several hosts where they are
    /// attached [default: made of its machine id]
    #[arg(
        long,
        global = true,
        env = "SEALDISK_HOST",
        value_name = "NAME",
        value_parser = check_host_name
    )]
    pub(super) host_name: Option<String>,
    /// Output format of results; with json and jsonc, of errors too
    #[arg(long, short, global = true, value_enum, default_value_t = OutputFormat::Table)]
    pub(super) output: OutputFormat,
    /// Print only what this JMESPath expression finds in the result, whose fields are those of -o json
    #[arg(long, global = true, value_name = "JMESPATH", value_parser = Query::parse)]
    pub(super) query: Option<Query>,
    /// Form of the log on stderr
    #[arg(long, global = true, value_enum, env = "SEALDISK_LOG_FORMAT", default_value_t = LogFormat::Text)]
    pub(super) log_format: LogFormat,
    /// Log more to stderr: -v info, -vv debug, -vvv trace (RUST_LOG overrides it)
    #[arg(long, short, global = true, action = ArgAction::Count)]
    pub(super) verbose: u8,
}

/// What the global options say, for every command.
pub struct Context {
    /// Prints results in the wanted form.
    pub output: Output,
    /// `--runtime-dir`, when it was given.
    pub runtime_dir: Option<PathBuf>,
    pub(super) state_dir: Option<PathBuf>,
    /// `--catalog`, as it was given.
    pub(super) catalog: Option<String>,
}

impl Context {
    /// Opens the installation that `--state-dir` and `--catalog` name.
    ///
    /// # Errors
    /// See [`Installation::open`].
    pub fn installation(&self) -> Result<Installation, CliError> {
        Ok(Installation::open(self.place()?)?)
    }

    /// Opens the installation that `--state-dir` and `--catalog` name, to look at it: none is made.
    ///
    /// # Errors
    /// See [`Installation::open_existing`].
    pub fn existing_installation(&self) -> Result<Installation, CliError> {
        Ok(Installation::open_existing(self.place()?)?)
    }

    /// Where the installation is, as `--state-dir` and `--catalog` say.
    pub(super) fn place(&self) -> Result<Place, CliError> {
        Ok(Place {
            state_dir: self.state_dir()?,
            catalog: catalog_at(self.catalog.as_deref())?,
        })
    }

    /// The directory that `--state-dir` names, or the default.
    pub(super) fn state_dir(&self) -> Result<PathBuf, CliError> {
        match &self.state_dir {
            Some(dir) => Ok(dir.clone()),
            None => Ok(default_state_dir()?),
        }
    }
}

/// Where a catalog is, by what was given of it.
pub(super) fn catalog_at(given: Option<&str>) -> Result<CatalogAt, CliError> {
    // What was given may be a secret, and is not repeated.
    CatalogAt::given(given)
        .map_err(|why| CliError::usage(format!("the address of the catalog is wrong: {why}")))
}
