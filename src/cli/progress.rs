//! Progress bars, and signals that end what has one.

use indicatif::{ProgressBar, ProgressStyle};

use super::CliError;
use disks::import::Cancel;

/// Shows a progress bar on stderr, if that is a terminal.
pub(super) fn show_bar(bar: &ProgressBar, size: u64) {
    let template = "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_length(size);
    bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
}

pub(super) fn cancel_on_signals() -> Result<Cancel, CliError> {
    Cancel::on_signals()
        .map_err(|e| CliError::new("InternalError", format!("cannot watch for signals: {e}")))
}
