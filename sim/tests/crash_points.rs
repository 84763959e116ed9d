//! In every named moment of a recovery somebody dies, and nothing is found.

use sim::crash_points::CrashPoint;
use sim::run::{Options, Report, run};
use sim::trace::Lines;

/// The fixed range of seeds; of each moment as many are run as it takes until it is hit.
const SEEDS: u64 = 30;

fn play(seed: u64, point: CrashPoint) -> Report {
    run(Options {
        seed,
        mutant: None,
        crash_at: Some(point),
        lines: Lines::No,
    })
}

#[test]
fn each_moment_of_a_recovery_is_hit_by_a_death() {
    for point in CrashPoint::ALL {
        let hit = (0..SEEDS).find(|seed| {
            let report = play(*seed, *point);
            assert_eq!(
                report.findings,
                Vec::<String>::new(),
                "seed {seed}, {point:?}"
            );
            report.struck.keys().any(|(struck, _)| struck == point)
        });
        assert!(hit.is_some(), "{point:?} was not hit by a death");
    }
}
