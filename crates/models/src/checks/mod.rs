//! What must be true, whatever the order of the steps of some threads.

mod bell;
mod flushes;
mod map;
mod marks;
mod meeting;
mod writes;

pub use bell::who_waits_for_entries_is_woken_and_sees_them;
pub use flushes::{a_flush_covers_what_came_before_it_was_asked_for, no_wake_up_is_lost};
pub use map::{
    nothing_is_called_durable_that_is_not, two_that_load_a_chunk_see_all_of_it,
    what_a_dead_process_changed_is_flushed_by_the_next, what_another_changes_is_flushed,
    what_is_changed_is_flushed,
};
pub use marks::{
    a_block_that_is_wanted_is_had_in_the_end, a_failed_mark_gives_all_back,
    all_who_want_blocks_get_them, marks_exclude_each_other, nobody_who_gives_up_keeps_others_out,
};
pub use meeting::helpers_use_a_job_only_while_it_is_there;
pub use writes::a_flush_knows_how_durable_writes_before_it_ended;

use loom::model::Builder;

/// Goes through all orders in which threads take turns at most so often where they need not.
///
/// Without a limit a check of some dozen steps takes hours; what is wrong shows with one or two, mostly.
/// `SEALDISK_MODEL_TURNS` is another limit.
fn check(turns: usize, model: impl Fn() + Send + Sync + 'static) {
    let given = std::env::var("SEALDISK_MODEL_TURNS").ok();
    let mut builder = Builder::new();
    // Threads that try again until they have something take more steps than loom expects of a model.
    builder.max_branches = 20_000;
    builder.preemption_bound = given.and_then(|turns| turns.parse().ok()).or(Some(turns));
    builder.check(model);
}
