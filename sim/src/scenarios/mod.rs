//! The stories of SAFETY.md, each played out: a small cluster, a script, an assertion.

mod detection;
mod end_of_the_log;
mod fencing;
mod group;
mod identities;
mod leases;
mod recovery;
mod replication;
mod stage;

use ramkeep_wire::mutants::Mutant;

use crate::run::Plant;
use crate::trace::Lines;

pub use stage::Stage;

/// What went otherwise than it should.
pub type Outcome = Result<(), String>;

/// A story.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Its name: the rule that it is about and what must hold.
    pub name: &'static str,
    play: fn(Lines) -> Outcome,
}

/// All of them.
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "safety_01_a_zombie_that_wakes_up_answers_nothing",
        play: leases::a_zombie_that_wakes_up,
    },
    Scenario {
        name: "safety_01_a_master_cut_off_from_all_but_a_client_stops_answering",
        play: leases::cut_off_from_all_but_a_client,
    },
    Scenario {
        name: "safety_01_a_grant_that_comes_late_counts_from_when_it_was_asked_for",
        play: leases::a_grant_that_comes_late,
    },
    Scenario {
        name: "safety_01_old_and_new_head_are_needed_while_the_log_rolls_over",
        play: leases::old_and_new_head,
    },
    Scenario {
        name: "safety_02_a_miss_waits_for_the_removal_that_it_saw",
        play: replication::a_miss_waits,
    },
    Scenario {
        name: "safety_03_stale_copy_of_a_tried_epoch_is_never_the_end",
        play: replication::stale_copy_of_a_tried_epoch,
    },
    Scenario {
        name: "safety_03_nothing_is_acknowledged_before_the_epoch_is_recorded",
        play: replication::nothing_before_the_record,
    },
    Scenario {
        name: "safety_03_late_bytes_of_an_older_epoch_change_nothing",
        play: replication::late_bytes_of_an_older_epoch,
    },
    Scenario {
        name: "safety_03_a_record_that_comes_late_is_refused",
        play: replication::a_record_that_comes_late,
    },
    Scenario {
        name: "safety_03_old_and_new_backups_are_needed_while_a_change_is_under_way",
        play: leases::old_and_new_backups,
    },
    Scenario {
        name: "safety_04_nothing_is_taken_from_the_dead",
        play: fencing::nothing_from_the_dead,
    },
    Scenario {
        name: "safety_05_a_backup_waits_out_its_grant",
        play: leases::a_backup_waits_out_its_grant,
    },
    Scenario {
        name: "safety_06_a_restarted_backup_is_not_the_one_before",
        play: fencing::a_restarted_backup,
    },
    Scenario {
        name: "safety_06_a_restarted_backup_waits_for_what_it_has_forgotten",
        play: leases::a_restarted_backup_waits,
    },
    Scenario {
        name: "safety_07_clock_rates_at_the_bound_change_nothing",
        play: leases::clocks_at_the_bound,
    },
    Scenario {
        name: "safety_07_without_backups_the_coordinator_grants",
        play: leases::without_backups,
    },
    Scenario {
        name: "safety_08_without_a_coordinator_everything_goes_on",
        play: leases::without_a_coordinator,
    },
    Scenario {
        name: "safety_09_with_one_backup_too_few_reads_go_on_and_writes_are_refused",
        play: replication::one_backup_too_few,
    },
    Scenario {
        name: "safety_10_suspicion_is_bounded",
        play: replication::suspicion_is_bounded,
    },
    Scenario {
        name: "safety_10_a_lost_backup_is_not_seen_by_readers",
        play: leases::a_lost_backup_is_not_seen_by_readers,
    },
    Scenario {
        name: "safety_11_no_third_head_and_nothing_acknowledged_before_the_old_one_closes",
        play: end_of_the_log::roll_over,
    },
    Scenario {
        name: "safety_12_the_end_can_be_chosen_at_every_moment",
        play: end_of_the_log::at_every_moment,
    },
    Scenario {
        name: "safety_13_open_replicas_below_the_floor_never_count",
        play: end_of_the_log::below_the_floor,
    },
    Scenario {
        name: "safety_14_pages_from_before_a_reboot_are_no_evidence",
        play: end_of_the_log::before_a_reboot,
    },
    Scenario {
        name: "safety_15_a_kill_at_any_byte_leaves_what_was_acknowledged",
        play: end_of_the_log::a_kill_at_any_byte,
    },
    Scenario {
        name: "safety_05_what_a_zombie_writes_is_not_taken",
        play: recovery::a_zombie_is_not_heard,
    },
    Scenario {
        name: "safety_12_an_old_shorter_copy_takes_nothing_away",
        play: recovery::an_old_copy_takes_nothing_away,
    },
    Scenario {
        name: "safety_12_a_missing_segment_keeps_the_tablets_down",
        play: recovery::a_missing_segment_keeps_tablets_down,
    },
    Scenario {
        name: "safety_14_old_pages_are_not_served",
        play: recovery::old_pages_are_not_served,
    },
    Scenario {
        name: "safety_16_one_honest_copy_of_each_segment_is_enough",
        play: recovery::one_honest_copy_is_enough,
    },
    Scenario {
        name: "safety_16_a_damaged_copy_of_a_living_master_is_replaced",
        play: recovery::a_damaged_copy_is_replaced,
    },
    Scenario {
        name: "safety_17_what_a_recovery_master_owns_is_durable",
        play: recovery::what_is_owned_is_durable,
    },
    Scenario {
        name: "safety_18_a_plan_outlives_leaders",
        play: recovery::the_plan_outlives_leaders,
    },
    Scenario {
        name: "safety_19_a_loss_is_accepted_only_as_a_whole",
        play: recovery::a_loss_is_accepted_whole,
    },
    Scenario {
        name: "safety_20_what_an_abandoned_try_left_does_not_count",
        play: recovery::an_abandoned_try_does_not_count,
    },
    Scenario {
        name: "safety_27_damage_is_named_and_tried_once",
        play: recovery::damage_is_named_and_tried_once,
    },
    Scenario {
        name: "safety_21_what_was_removed_stays_removed_over_two_recoveries",
        play: recovery::removed_over_two_recoveries,
    },
    Scenario {
        name: "safety_22_a_master_gets_tablets_only_with_an_open_head",
        play: recovery::no_tablets_without_a_head,
    },
    Scenario {
        name: "safety_23_everything_can_be_removed_from_a_full_master",
        play: recovery::a_full_master_can_remove,
    },
    Scenario {
        name: "safety_24_frames_are_kept_for_recovery",
        play: recovery::frames_are_kept_for_recovery,
    },
    Scenario {
        name: "safety_08_nobody_is_dead_for_silence_while_there_was_no_leader",
        play: group::a_long_outage,
    },
    Scenario {
        name: "safety_08_a_group_that_was_cut_off_declares_nobody_dead",
        play: group::cut_off_together,
    },
    Scenario {
        name: "group_another_leader_goes_on_with_an_epoch_change",
        play: group::killed_in_an_epoch_change,
    },
    Scenario {
        name: "group_a_leader_that_wakes_up_answers_nothing_stale",
        play: group::a_leader_that_sleeps,
    },
    Scenario {
        name: "group_a_wiped_coordinator_is_taken_in_again",
        play: group::a_wiped_coordinator,
    },
    Scenario {
        name: "group_a_retried_drop_does_not_hit_the_table_made_since",
        play: group::a_retried_drop,
    },
    Scenario {
        name: "group_orders_under_a_lower_ballot_are_refused",
        play: group::a_late_order,
    },
    Scenario {
        name: "detection_a_cut_between_two_servers_kills_neither",
        play: detection::a_cut_between_two_servers,
    },
    Scenario {
        name: "detection_a_backup_that_only_its_master_cannot_reach_is_not_dead",
        play: detection::a_master_cut_off_from_a_backup,
    },
    Scenario {
        name: "detection_one_that_hangs_is_told_of_by_others_and_dies_by_the_leaders_probes",
        play: detection::one_that_hangs_is_told_of,
    },
    Scenario {
        name: "detection_one_that_is_killed_is_dead_within_half_a_second",
        play: detection::one_that_is_killed,
    },
    Scenario {
        name: "safety_28_coordinators_that_took_the_places_of_others_are_found",
        play: identities::members_at_new_addresses,
    },
    Scenario {
        name: "safety_28_a_moved_coordinator_is_found_once_one_other_was_told",
        play: identities::a_moved_coordinator,
    },
    Scenario {
        name: "safety_30_a_copy_of_a_coordinators_directory_takes_part_in_nothing",
        play: identities::a_coordinators_copy,
    },
    Scenario {
        name: "safety_30_copies_of_a_servers_directory_kill_nobody",
        play: identities::a_servers_copies,
    },
];

impl Scenario {
    /// The scenario of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        ALL.iter().copied().find(|scenario| scenario.name == name)
    }

    /// Plays it.
    pub fn play(&self, mutant: Option<Mutant>, lines: Lines) -> Outcome {
        let planted = Plant::new(mutant);
        let outcome = (self.play)(lines);
        planted.pull_out();
        outcome
    }
}
