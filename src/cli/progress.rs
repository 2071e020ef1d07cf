//! How far long work is, and signals that end it.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::CliError;
use disks::import::Cancel;

/// A progress bar on stderr, if that is a terminal. It is gone when the work is.
pub(super) struct Progress(ProgressBar);

impl Progress {
    /// Of work whose amount is not known yet, of which nothing is shown.
    pub(super) fn new() -> Self {
        Self(ProgressBar::hidden())
    }

    /// Shows the bar, for so many bytes. What is returned is to be told how many are done.
    pub(super) fn begin(&self, total: u64) -> impl Fn(u64) {
        if self.0.is_hidden() {
            let template =
                "[{bar:30}] {percent:>3} %  {bytes} of {total_bytes}  {bytes_per_sec}  {eta} left";
            if let Ok(style) = ProgressStyle::with_template(template) {
                self.0.set_style(style.progress_chars("=> "));
            }
            self.0.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.0.set_length(total);
        |done| self.0.set_position(done)
    }

    /// Shows how many of how many bytes are done.
    pub(super) fn at(&self, done: u64, total: u64) {
        self.begin(total)(done);
    }

    /// Says something, with the bar out of the way.
    pub(super) fn aside(&self, say: impl FnOnce()) {
        self.0.suspend(say);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

pub(super) fn cancel_on_signals() -> Result<Cancel, CliError> {
    Cancel::on_signals()
        .map_err(|e| CliError::new("InternalError", format!("cannot watch for signals: {e}")))
}
