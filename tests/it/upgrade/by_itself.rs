//! What the daemon does about upgrades without being asked.

use super::{filled, killed, major, phase, seen, things};
use crate::daemon::{Daemon, events};
use crate::house::{House, wait_for, wait_for_server};

#[test]
fn what_was_cut_is_carried_to_its_end_and_the_old_server_goes_in_its_time() {
    let house = House::new("upself");
    let settings = std::fs::read_to_string(house.path("pglife.toml")).expect("read");
    house.write("pglife.toml", &format!("{settings}\n[http]\nlisten = \"off\"\n"));
    let (cluster, container) = filled(&house, "17");
    let (content, world) = (seen(&container), things(&cluster));
    let begin = ["upgrade", &cluster, "--to", "18", "--method", "dump", "--yes"];

    // Before the commit: back.
    killed(&house, &begin, "after:restore");
    let daemon = Daemon::start(&house);
    wait_for("the way back", || !events(&house, "upgrade.undone").is_empty());
    wait_for_server(&container);
    assert_eq!((major(&container), seen(&container), things(&cluster)), ("17".to_owned(), content.clone(), world));
    assert_eq!(phase(&house, &cluster), "as-before");

    // After it: forward; a daemon that works already sees it too.
    killed(&house, &begin, "after:committed");
    wait_for("the way forward", || !events(&house, "upgrade.resumed").is_empty());
    wait_for_server(&container);
    assert_eq!((major(&container), seen(&container)), ("18".to_owned(), content.clone()));
    assert_eq!(phase(&house, &cluster), "upgraded");

    // Nobody said for how long the old server is kept: it stays. Then somebody does, but nothing is proven.
    let policy = house.path(&format!("policies/{cluster}.toml"));
    let text = std::fs::read_to_string(&policy).expect("read");
    std::fs::write(&policy, format!("{text}\n[upgrade]\nkeep_old = \"1s\"\n")).expect("written");
    wait_for("a refusal", || !events(&house, "upgrade.kept").is_empty());
    let kept = &events(&house, "upgrade.kept")[0];
    assert!(
        kept.contains("no repository has a proven backup of the new server") && kept.contains("pglife drill"),
        "{kept}"
    );
    assert!(things(&cluster).iter().any(|thing| thing.contains("-pg17")), "{:?}", things(&cluster));
    assert_eq!(daemon.stop(), 0);

    house.pglife(&["drill", &cluster]).ok();
    let daemon = Daemon::start(&house);
    wait_for("the end of the old server", || !events(&house, "upgrade.finalized").is_empty());
    assert_eq!(phase(&house, &cluster), "finalized");
    assert!(things(&cluster).iter().all(|thing| !thing.contains("-pg17")), "{:?}", things(&cluster));
    assert_eq!((major(&container), seen(&container)), ("18".to_owned(), content));
    assert_eq!(events(&house, "upgrade.failed"), [""; 0]);
    assert_eq!(daemon.stop(), 0);
}
