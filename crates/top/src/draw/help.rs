//! The keys, and what the columns mean.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::Line;

use super::text::scrolled;
use crate::app::App;
use crate::look::Look;

/// Lines of it; those without a space at the beginning are headings.
const TEXT: &str = "\
Keys
  up down PgUp PgDn Home End, k j g G   select a disk, or scroll
  Enter              the selected disk by itself: latencies, key, layers, events
  < >                sort by the column beside
  N I D W M L Q K J  sort by name, IOPS, read, write, p50, p99, queue, key, job
  r                  the other way round
  /                  filter: name, key, state or job; Enter keeps it, Esc cancels
  Esc                remove the filter; back to the table
  p                  pause: show what was seen last
  + -                look half as often, or twice as often
  q                  back, and from the table the end; Ctrl-C ends at once
  Ctrl-L Ctrl-Z      draw everything anew; stop until the shell's `fg`
Columns
  IOPS               reads and writes a second
  rMB/s wMB/s        millions of bytes read and written a second
  P50 P99            what 50 % and 99 % of reads and writes did not exceed, from
                     the taking of a request to its answer
  QUEUE              requests taken and not answered
  KEY                active; unreach: the vault cannot be asked, and the grace
                     period runs; revoked: the disk is stopped
  JOB, STATE         rotate-dek, flatten or merge with its progress; silent: the
                     attach process does not answer; space full: requests wait;
                     stalled: requests are under way, and none ends;
                     awaited, let go: another attach has the disk
  -                  not known, or nothing happened since the look before
Colours
  red is what stops a disk, yellow what will; each is said in a word, too";

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, app: &mut App, look: Look) {
    let line = |text: &'static str| match text.starts_with(' ') {
        true => Line::raw(text),
        false => Line::styled(text, look.heading()),
    };
    let lines = TEXT.lines().map(line).collect();
    let keys = ("q back", look);
    scrolled(
        frame,
        area,
        (&mut app.first, &mut app.height),
        &[lines],
        keys,
    );
}
