//! YAML.

use serde_json::Value;

use crate::cli::CliError;

/// The fields of a value, as its JSON has them.
pub(super) fn text(value: &Value) -> Result<String, CliError> {
    serde_saphyr::to_string(value)
        .map_err(|e| CliError::new("OutputError", format!("cannot form the result: {e}")))
}
