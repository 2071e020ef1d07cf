//! The options of a vault whose private keys are in a token.

use std::path::PathBuf;

use clap::Args;

use crate::cli::CliError;
use crate::cli::files::absolute;
use installation::catalog::HsmSettings;

/// The token in which a new vault's private keys will be.
#[derive(Args)]
pub(super) struct HsmOptions {
    /// Keep the private keys in a hardware security module: its PKCS#11 library
    #[arg(long, value_name = "FILE", requires = "hsm_token")]
    hsm_module: Option<PathBuf>,
    /// The token's label
    #[arg(long, value_name = "LABEL", requires = "hsm_module")]
    hsm_token: Option<String>,
    /// A file (mode 0600) with the token's user PIN [default: the systemd credential sealdisk-hsm-NAME]
    #[arg(long, value_name = "FILE", requires = "hsm_module")]
    hsm_pin_file: Option<PathBuf>,
}

impl HsmOptions {
    /// `None` for a vault that keeps its private keys itself.
    pub(super) fn settings(self) -> Result<Option<HsmSettings>, CliError> {
        let (Some(module), Some(token)) = (self.hsm_module, self.hsm_token) else {
            return Ok(None);
        };
        Ok(Some(HsmSettings {
            module: absolute("--hsm-module", &module)?,
            token,
            pin_file: self
                .hsm_pin_file
                .map(|path| absolute("--hsm-pin-file", &path))
                .transpose()?,
        }))
    }
}
