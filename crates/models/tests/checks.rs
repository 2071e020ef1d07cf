//! Each check by its name.

use models::checks;

macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            checks::$name();
        })*
    };
}

tests!(
    a_block_that_is_wanted_is_had_in_the_end,
    a_failed_mark_gives_all_back,
    a_flush_covers_what_came_before_it_was_asked_for,
    a_flush_knows_how_durable_writes_before_it_ended,
    all_who_want_blocks_get_them,
    helpers_use_a_job_only_while_it_is_there,
    marks_exclude_each_other,
    no_wake_up_is_lost,
    nobody_who_gives_up_keeps_others_out,
    nothing_is_called_durable_that_is_not,
    two_that_load_a_chunk_see_all_of_it,
    what_a_dead_process_changed_is_flushed_by_the_next,
    what_another_changes_is_flushed,
    what_is_changed_is_flushed,
    who_waits_for_entries_is_woken_and_sees_them,
);
