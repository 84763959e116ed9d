//! The stories of SAFETY.md, one test each.

use sim::scenarios::{ALL, Scenario};
use sim::trace::Lines;

fn play(name: &str) {
    let scenario = Scenario::named(name).expect("the list below names scenarios that exist");
    assert_eq!(scenario.play(None, Lines::No), Ok(()), "{name}");
}

macro_rules! stories {
    ($($name:ident),+ $(,)?) => {
        $(#[test] fn $name() { play(stringify!($name)); })+

        #[test]
        fn every_scenario_is_a_test_here() {
            let mut here = vec![$(stringify!($name)),+];
            let mut there: Vec<_> = ALL.iter().map(|scenario| scenario.name).collect();
            here.sort_unstable();
            there.sort_unstable();
            assert_eq!(here, there);
        }
    };
}

stories! {
    safety_01_a_zombie_that_wakes_up_answers_nothing,
    safety_01_a_master_cut_off_from_all_but_a_client_stops_answering,
    safety_01_a_grant_that_comes_late_counts_from_when_it_was_asked_for,
    safety_01_old_and_new_head_are_needed_while_the_log_rolls_over,
    safety_02_a_miss_waits_for_the_removal_that_it_saw,
    safety_03_stale_copy_of_a_tried_epoch_is_never_the_end,
    safety_03_nothing_is_acknowledged_before_the_epoch_is_recorded,
    safety_03_late_bytes_of_an_older_epoch_change_nothing,
    safety_03_a_record_that_comes_late_is_refused,
    safety_03_old_and_new_backups_are_needed_while_a_change_is_under_way,
    safety_04_nothing_is_taken_from_the_dead,
    safety_05_a_backup_waits_out_its_grant,
    safety_06_a_restarted_backup_is_not_the_one_before,
    safety_06_a_restarted_backup_waits_for_what_it_has_forgotten,
    safety_07_clock_rates_at_the_bound_change_nothing,
    safety_07_without_backups_the_coordinator_grants,
    safety_08_without_a_coordinator_everything_goes_on,
    safety_09_with_one_backup_too_few_reads_go_on_and_writes_are_refused,
    safety_10_suspicion_is_bounded,
    safety_10_a_lost_backup_is_not_seen_by_readers,
    safety_11_no_third_head_and_nothing_acknowledged_before_the_old_one_closes,
    safety_12_the_end_can_be_chosen_at_every_moment,
    safety_13_open_replicas_below_the_floor_never_count,
    safety_14_pages_from_before_a_reboot_are_no_evidence,
    safety_15_a_kill_at_any_byte_leaves_what_was_acknowledged,
    safety_05_what_a_zombie_writes_is_not_taken,
    safety_12_an_old_shorter_copy_takes_nothing_away,
    safety_12_a_missing_segment_keeps_the_tablets_down,
    safety_14_old_pages_are_not_served,
    safety_16_one_honest_copy_of_each_segment_is_enough,
    safety_16_a_damaged_copy_of_a_living_master_is_replaced,
    safety_17_what_a_recovery_master_owns_is_durable,
    safety_18_a_plan_outlives_leaders,
    safety_19_a_loss_is_accepted_only_as_a_whole,
    safety_20_what_an_abandoned_try_left_does_not_count,
    safety_27_damage_is_named_and_tried_once,
    safety_21_what_was_removed_stays_removed_over_two_recoveries,
    safety_22_a_master_gets_tablets_only_with_an_open_head,
    safety_23_everything_can_be_removed_from_a_full_master,
    safety_24_frames_are_kept_for_recovery,
    safety_08_nobody_is_dead_for_silence_while_there_was_no_leader,
    safety_08_a_group_that_was_cut_off_declares_nobody_dead,
    group_another_leader_goes_on_with_an_epoch_change,
    group_a_leader_that_wakes_up_answers_nothing_stale,
    group_a_wiped_coordinator_is_taken_in_again,
    group_a_retried_drop_does_not_hit_the_table_made_since,
    group_orders_under_a_lower_ballot_are_refused,
    detection_a_cut_between_two_servers_kills_neither,
    detection_a_backup_that_only_its_master_cannot_reach_is_not_dead,
    detection_one_that_hangs_is_told_of_by_others_and_dies_by_the_leaders_probes,
    detection_one_that_is_killed_is_dead_within_half_a_second,
    safety_28_coordinators_that_took_the_places_of_others_are_found,
    safety_28_a_moved_coordinator_is_found_once_one_other_was_told,
    safety_30_a_copy_of_a_coordinators_directory_takes_part_in_nothing,
    safety_30_copies_of_a_servers_directory_kill_nobody,
}
