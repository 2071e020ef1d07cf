//! The forms in which results are printed.

use clap::ValueEnum;

/// How results and errors are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// A table for people, with sizes as 10 GiB
    Table,
    /// JSON with the field names of the Azure API, and sizes in bytes
    Json,
    /// The same JSON, coloured on a terminal
    Jsonc,
    /// Values with tabs between them, a line for each thing, without a heading
    Tsv,
    /// The fields of the JSON as YAML
    Yaml,
    /// Nothing but errors
    None,
}

impl OutputFormat {
    /// Whether programs read it as JSON, errors too.
    pub(super) fn is_json(self) -> bool {
        matches!(self, Self::Json | Self::Jsonc)
    }
}
