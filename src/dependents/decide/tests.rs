//! A world in which databases and dependents go up and down, and somebody meddles.

use proptest::prelude::*;

use super::*;

fn at(milliseconds: i64) -> Timestamp {
    Timestamp::from_millisecond(milliseconds).expect("a time")
}

fn follower(name: &str, running: bool) -> Follower {
    Follower {
        name: name.to_owned(),
        id: format!("{name}-id"),
        order: 0,
        depth: 0,
        on_down: OnDown::Stop,
        on_up: OnUp::Start,
        running,
        paused: false,
        health: None,
        status: String::new(),
        others: vec![],
        problem: None,
    }
}

/// Does at once what is decided.
struct World {
    memory: Memory,
    database: Seen,
    followers: Vec<Follower>,
    taken: Vec<Taken>,
    now: Timestamp,
    done: Vec<String>,
}

impl World {
    fn new(names: &[&str]) -> Self {
        Self {
            memory: Memory::default(),
            database: Seen::Up { life: "1".to_owned() },
            followers: names.iter().map(|name| follower(name, true)).collect(),
            taken: vec![],
            now: at(0),
            done: vec![],
        }
    }

    fn one(&mut self, name: &str) -> &mut Follower {
        self.followers.iter_mut().find(|follower| follower.name == name).expect("it is there")
    }

    /// Takes every step until there is nothing to do before `now`.
    fn settle(&mut self) {
        for _ in 0..100 {
            let step = decide(&mut self.memory, &self.database, &self.followers, &self.taken, self.now);
            match step {
                Step::Nothing => return,
                Step::Wait(until) => {
                    assert!(until > self.now, "a wait that is over");
                    return;
                }
                Step::TakeDown { name, how, running, remember, reason } => {
                    assert!(matches!(self.database, Seen::Down(_)) || !running);
                    let id = self.one(&name).id.clone();
                    assert_eq!(running, self.one(&name).running);
                    match how {
                        TakenHow::Stopped => self.one(&name).running = false,
                        TakenHow::Paused => self.one(&name).paused = true,
                    }
                    self.taken.retain(|taken| taken.name != name);
                    if remember {
                        self.taken.push(Taken { name: name.clone(), id, how, at: self.now, reason });
                    }
                    self.done.push(format!("-{name}"));
                }
                Step::BringBack(taken) => {
                    assert!(matches!(self.database, Seen::Up { .. }));
                    self.taken.retain(|other| other.name != taken.name);
                    let follower = self.one(&taken.name);
                    (follower.running, follower.paused) = (true, false);
                    self.memory.is_back(&taken.name, self.now);
                    self.done.push(format!("+{}", taken.name));
                }
                Step::Restart(name) => {
                    assert!(self.one(&name).running);
                    self.done.push(format!("~{name}"));
                }
                Step::Forget { name, .. } => self.taken.retain(|taken| taken.name != name),
            }
        }
        panic!("it comes to no end: {:?}", self.done);
    }

    fn after(&mut self, milliseconds: i64) -> &mut Self {
        self.now += SignedDuration::from_millis(milliseconds);
        self.settle();
        self
    }

    fn down(&mut self) -> &mut Self {
        self.database = Seen::Down("its container exited with code 137".to_owned());
        self.settle();
        self
    }

    fn serves(&mut self, life: &str) -> &mut Self {
        self.database = Seen::Up { life: life.to_owned() };
        self.settle();
        self
    }
}

#[test]
fn they_go_down_last_first_and_come_back_first_first() {
    let mut world = World::new(&["api", "web"]);
    world.settle();
    world.down().after(4_900);
    assert!(world.done.is_empty(), "a short outage is none");
    world.after(200);
    assert_eq!(world.done, ["-web", "-api"]);
    world.after(60_000).serves("2");
    assert_eq!(world.done.len(), 2, "it must serve for a while");
    world.after(1_000);
    assert_eq!(world.done, ["-web", "-api", "+api", "+web"]);
    world.after(60_000);
    assert_eq!(world.done.len(), 4);
}

#[test]
fn each_is_waited_for_until_it_is_healthy_but_not_for_ever() {
    let mut world = World::new(&["api", "web"]);
    world.settle();
    world.down().after(5_000);
    world.one("api").health = Some("starting".to_owned());
    world.serves("2").after(1_000);
    assert_eq!(world.done[2..], ["+api"]);
    world.after(30_000);
    assert_eq!(world.done[2..], ["+api"]);
    world.one("api").health = Some("healthy".to_owned());
    world.after(500);
    assert_eq!(world.done[2..], ["+api", "+web"]);

    world.one("api").health = Some("starting".to_owned());
    world.down().after(5_000).serves("3").after(2_000).after(59_000);
    assert_eq!(world.done[6..], ["+api"]);
    world.after(2_000);
    assert_eq!(world.done[6..], ["+api", "+web"]);
}

#[test]
fn one_that_is_put_off_is_tried_again_soon() {
    let mut world = World::new(&["api"]);
    world.settle();
    world.down().after(5_000).serves("2");
    world.memory.put_off("api", world.now + SignedDuration::from_secs(1));
    world.after(1_000).after(4_900);
    assert_eq!(world.done, ["-api"]);
    world.after(200);
    assert_eq!(world.done, ["-api", "+api"]);
}

#[test]
fn a_restart_is_followed_by_those_who_want_it() {
    let mut world = World::new(&["api", "web"]);
    world.one("web").on_up = OnUp::Restart;
    world.settle();
    world.down().after(2_000).serves("2").after(1_000);
    assert_eq!(world.done, ["~web"]);
    world.after(60_000).serves("2").after(1_000);
    assert_eq!(world.done, ["~web"]);
}

#[test]
fn who_ended_with_the_engine_comes_back_with_it() {
    for engine in [true, false] {
        let mut world = World::new(&["api", "web", "job"]);
        world.settle();
        // One was stopped by hand, some time before.
        world.after(10_000).one("job").running = false;
        world.after(10_000).after(10_000);
        // The engine ends its containers, not in order, before it goes away.
        world.one("web").running = false;
        world.after(1_000).one("api").running = false;
        if engine {
            world.memory.engine_is_away(world.now);
        }
        world.now += SignedDuration::from_secs(60);
        world.database = Seen::Starting;
        world.settle();
        world.serves("2").after(1_000);
        let expected: &[&str] = if engine { &["-web", "-api", "+api", "+web"] } else { &[] };
        assert_eq!(world.done, expected);
        // Once: what is stopped from now on stays so.
        world.one("api").running = false;
        world.after(1_000).serves("3").after(10_000);
        assert_eq!(world.done, expected);
    }
}

#[test]
fn only_those_that_ran_and_only_what_was_asked_for() {
    let mut world = World::new(&["api", "web", "cron", "log", "job"]);
    world.one("web").running = false;
    world.one("cron").on_down = OnDown::Nothing;
    world.one("log").on_down = OnDown::Pause;
    world.one("job").on_up = OnUp::Nothing;
    world.settle();
    // It ends because its database did.
    world.database = Seen::Down("gone".to_owned());
    world.one("api").running = false;
    world.after(1).after(5_000);
    assert_eq!(world.done, ["-job", "-log", "-api"]);
    world.serves("2").after(1_000);
    assert_eq!(world.done[3..], ["+api", "+log"]);
    assert!(!world.one("web").running && !world.one("job").running);
}

#[test]
fn whoever_comes_next_goes_on() {
    let mut world = World::new(&["api", "web"]);
    world.settle();
    world.down().after(5_000);
    // Another process: it was remembered, and not touched.
    world.memory = Memory::default();
    world.one("api").running = true;
    world.after(1).after(5_000);
    assert_eq!(world.done[2..], ["-api"]);
    // And what somebody starts while it is down is theirs, even if they stop it again.
    world.one("api").running = true;
    world.after(60_000);
    assert_eq!(world.done.len(), 3);
    world.one("api").running = false;
    world.serves("2").after(1_000);
    assert_eq!(world.done[3..], ["+web"]);
    assert!(!world.one("api").running);
    // Only the next outage is a new one for it.
    world.one("api").running = true;
    world.after(1).down().after(5_000);
    assert_eq!(world.done[4..], ["-web", "-api"]);
    world.memory = Memory::default();
    world.serves("3").after(1_000);
    assert_eq!(world.done[6..], ["+api", "+web"]);
}

#[test]
fn a_database_that_flaps_is_waited_for_longer_each_time() {
    let mut world = World::new(&["api"]);
    world.settle();
    let mut waits = Vec::new();
    for life in 0..10 {
        world.down().after(5_000);
        world.serves(&format!("{life}"));
        let (before, since) = (world.done.len(), world.now);
        while world.done.len() == before {
            world.after(500);
        }
        waits.push(world.now.duration_since(since).as_secs());
    }
    assert_eq!(waits[..6], [1, 2, 4, 8, 16, 32]);
    assert!(waits.iter().all(|wait| *wait <= 300), "{waits:?}");
    assert!(world.memory.recent_downs(world.now) >= FLAPPING);
    world.after(700_000).down().after(5_000).serves("quiet").after(1_000);
    assert_eq!(world.done.last().map(String::as_str), Some("+api"));
}

#[derive(Debug, Clone)]
enum Happening {
    Down,
    Starting,
    Up,
    /// A human stops one of them.
    Stopped(usize),
    Started(usize),
    /// The daemon dies.
    Died,
    Pass(u32),
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let one = prop_oneof![
        Just(Happening::Down),
        Just(Happening::Starting),
        Just(Happening::Up),
        (0usize..3).prop_map(Happening::Stopped),
        (0usize..3).prop_map(Happening::Started),
        Just(Happening::Died),
        (1u32..20_000).prop_map(Happening::Pass),
    ];
    proptest::collection::vec(one, 0..40)
}

proptest! {
    #[test]
    fn what_was_taken_down_comes_back_and_nothing_else_is_started(all in happenings()) {
        let mut world = World::new(&["api", "web", "job"]);
        world.settle();
        let mut lives = 1;
        for happening in all {
            let started = world.done.iter().filter(|done| done.starts_with('+')).count();
            let owed = world.taken.len();
            match happening {
                Happening::Down => { world.down(); }
                Happening::Starting => { world.database = Seen::Starting; world.settle(); }
                Happening::Up => { lives += 1; world.serves(&lives.to_string()); }
                Happening::Stopped(which) => { world.followers[which].running = false; world.settle(); }
                Happening::Started(which) => { world.followers[which].running = true; world.settle(); }
                Happening::Died => { world.memory = Memory::default(); world.settle(); }
                Happening::Pass(time) => { world.after(time.into()); }
            }
            let now_started = world.done.iter().filter(|done| done.starts_with('+')).count();
            prop_assert!(now_started - started <= owed, "more was started than was taken down");
        }
        // However it went: once the database serves for good, nobody is owed anything.
        world.serves("last").after(301_000);
        prop_assert_eq!(&world.taken, &[]);
        let before = world.done.len();
        // A human's stop is respected while the database serves.
        world.followers[0].running = false;
        world.after(10_000);
        prop_assert_eq!(world.done.len(), before);
        prop_assert!(!world.followers[0].running);
    }
}
