use proptest::prelude::*;

use super::*;

/// What an old server may be like.
#[derive(Debug, Clone, Copy)]
#[expect(clippy::struct_excessive_bools, reason = "each says whether something was so")]
struct Old {
    restarts: bool,
    ran: bool,
    policy_changes: bool,
    data_container: bool,
}

/// Of an upgrade.
const SERVES: Old = Old { restarts: true, ran: true, policy_changes: true, data_container: true };

fn olds() -> impl Strategy<Value = Old> {
    any::<[bool; 4]>().prop_map(|[restarts, ran, policy_changes, data_container]| Old {
        restarts,
        ran,
        policy_changes,
        data_container,
    })
}

/// The world as it is before.
fn before(Old { restarts: had_restarts, ran, policy_changes, data_container }: Old) -> Observed {
    Observed {
        trials: false,
        database: Seat::Old { running: ran },
        data: data_container.then_some(Seat::Old { running: false }),
        database_aside: false,
        data_aside: false,
        new_volume: false,
        in_folder: false,
        // The policy for both is the new one, too.
        policy_is_new: !policy_changes,
        policy_changes,
        ran,
        restarts: had_restarts,
        had_restarts,
    }
}

/// What the engines would show after `action`.
fn after(mut world: Observed, action: Action) -> Observed {
    match action {
        Action::RemoveTrials => world.trials = false,
        Action::ForbidRestart => world.restarts = false,
        Action::StopOld => world.database = Seat::Old { running: false },
        Action::SetDatabaseAside => (world.database, world.database_aside) = (Seat::Empty, true),
        Action::SetDataAside => (world.data, world.data_aside) = (Some(Seat::Empty), true),
        Action::MakeData => world.data = Some(Seat::New { running: false }),
        Action::MakeDatabase => world.database = Seat::New { running: false },
        Action::StartNew => world.database = Seat::New { running: true },
        Action::WritePolicy => world.policy_is_new = true,
        Action::RemoveNewDatabase => world.database = Seat::Empty,
        Action::RemoveNewData => world.data = Some(Seat::Empty),
        Action::BringDataBack => (world.data, world.data_aside) = (Some(Seat::Old { running: false }), false),
        Action::BringDatabaseBack => {
            (world.database, world.database_aside) = (Seat::Old { running: false }, false);
        }
        Action::RestorePolicy => world.policy_is_new = false,
        Action::RemoveNewVolume => world.new_volume = false,
        Action::RestoreRestart => world.restarts = world.had_restarts,
        Action::StartOld => world.database = Seat::Old { running: true },
    }
    world
}

/// Two servers never run under the cluster's care at once, and no action goes from one to both.
fn drive(goal: Goal, mut world: Observed, steps: usize) -> (Observed, bool) {
    for _ in 0..steps {
        match next(goal, world) {
            Next::Do(action) => world = after(world, action),
            Next::Done => return (world, true),
            Next::Stuck(why) => panic!("stuck: {why}: {world:?}"),
        }
    }
    (world, next(goal, world) == Next::Done)
}

/// What the steps before the commit do to the world, cut anywhere.
fn opened(old: Old, steps: usize, trials: bool) -> Observed {
    let mut world = before(old);
    let script: [fn(&mut Observed); 3] = [
        |world| world.restarts = false,
        |world| world.database = Seat::Old { running: false },
        |world| world.new_volume = true,
    ];
    script.into_iter().take(steps).for_each(|step| step(&mut world));
    world.trials = trials;
    world
}

proptest! {
    #[test]
    fn cut_anywhere_before_the_commit_it_ends_as_before(old in olds(), steps in 0usize..4, trials: bool, cuts in prop::collection::vec(0usize..6, 0..5)) {
        let mut world = opened(old, steps, trials);
        for cut in cuts {
            (world, _) = drive(Goal::AsBefore, world, cut);
        }
        let (world, done) = drive(Goal::AsBefore, world, 32);
        prop_assert!(done);
        prop_assert_eq!(world, before(old));
    }

    #[test]
    fn cut_anywhere_after_the_commit_it_ends_upgraded(old in olds(), trials: bool, cuts in prop::collection::vec(0usize..6, 0..5)) {
        let mut world = opened(old, 3, trials);
        for cut in cuts {
            (world, _) = drive(Goal::Upgraded, world, cut);
        }
        let (world, done) = drive(Goal::Upgraded, world, 32);
        prop_assert!(done);
        prop_assert_eq!(world.database, Seat::New { running: true });
        prop_assert!(world.database_aside && world.data_aside == old.data_container && world.policy_is_new && !world.trials && !world.restarts);
    }

    #[test]
    fn a_rollback_from_anywhere_after_the_commit_ends_as_before(old in olds(), forward in 0usize..16, cuts in prop::collection::vec(0usize..6, 0..5)) {
        let (mut world, _) = drive(Goal::Upgraded, opened(old, 3, false), forward);
        for cut in cuts {
            (world, _) = drive(Goal::AsBefore, world, cut);
        }
        let (world, done) = drive(Goal::AsBefore, world, 32);
        prop_assert!(done);
        prop_assert_eq!(world, before(old));
    }

    #[test]
    fn the_old_server_never_starts_while_the_new_one_is_there(old in olds(), forward in 0usize..16) {
        let (mut world, _) = drive(Goal::Upgraded, opened(old, 3, false), forward);
        while let Next::Do(action) = next(Goal::AsBefore, world) {
            if action == Action::StartOld {
                let (database, data) = (world.database, world.data);
                prop_assert!(matches!(database, Seat::Old { .. }), "{:?}", database);
                prop_assert!(!matches!(data, Some(Seat::New { .. })), "{:?}", data);
            }
            world = after(world, action);
        }
    }
}

#[test]
fn strangers_are_left_alone() {
    for goal in [Goal::AsBefore, Goal::Upgraded] {
        let world = Observed { database: Seat::Stranger, ..before(SERVES) };
        assert!(matches!(next(goal, world), Next::Stuck(_)));
    }
}

#[test]
fn what_somebody_deleted_is_told() {
    let gone = Observed { new_volume: false, ..opened(SERVES, 3, false) };
    assert!(matches!(next(Goal::Upgraded, gone), Next::Stuck(_)));
    let folder = Observed { in_folder: true, data: None, ..gone };
    assert!(matches!(next(Goal::Upgraded, folder), Next::Do(_)));
    let gone = Observed { database: Seat::Empty, ..before(SERVES) };
    assert!(matches!(next(Goal::AsBefore, gone), Next::Stuck(_)));
}

#[test]
fn phases_are_read_as_they_are_written() {
    for phase in Phase::ALL {
        assert_eq!(Phase::from_word(phase.as_str()), Some(phase));
    }
    assert_eq!(Phase::from_word("half"), None);
}
