//! How a token is reached.

use std::path::PathBuf;

/// How a token is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HsmToken {
    /// The PKCS#11 library, an absolute path.
    pub module: PathBuf,
    /// The token's label.
    pub label: String,
    /// The file (mode 0600) with the PIN of the token's user.
    pub pin_file: Option<PathBuf>,
    /// The systemd credential that stands in for the file.
    pub credential: String,
}
