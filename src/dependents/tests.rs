//! Who follows whom, as labels and compose files say it.

use std::collections::HashMap;

use super::*;

fn container(name: &str, labels: &[(&str, &str)]) -> Container {
    Container {
        id: format!("{name}-id"),
        name: name.to_owned(),
        running: true,
        status: "running".to_owned(),
        labels: labels.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect::<HashMap<_, _>>(),
        ..Container::default()
    }
}

fn service(name: &str, project: &str, depends_on: &str) -> Container {
    let labels = [(COMPOSE_PROJECT, project), (COMPOSE_SERVICE, name), (COMPOSE_DEPENDS_ON, depends_on)];
    container(&format!("{project}-{name}-1"), &labels)
}

fn names(followers: &[Follower]) -> Vec<&str> {
    followers.iter().map(|follower| follower.name.as_str()).collect()
}

fn cluster() -> ClusterName {
    ClusterName::new("chado").expect("a name")
}

#[test]
fn labels_say_who_follows_and_how() {
    let defaults = Dependents::default();
    let all = [
        container("web", &[(label::DEPENDS_ON, "blog, chado"), (label::ORDER, "10"), (label::ON_UP, "restart")]),
        container("api", &[(label::DEPENDS_ON, "chado"), (label::ON_DOWN, "pause")]),
        container("other", &[(label::DEPENDS_ON, "chado2")]),
        container("odd", &[(label::DEPENDS_ON, "chado"), (label::ON_DOWN, "kill"), (label::ORDER, "-1")]),
        // What pglife made is nobody's dependent, whatever it says.
        container("chado-drill-db", &[(label::DEPENDS_ON, "chado"), (label::MANAGED, "true")]),
    ];
    let found = find(&cluster(), None, &all, defaults);
    assert_eq!(names(&found), ["odd", "api", "web"]);
    assert_eq!((found[1].on_down, found[1].on_up), (OnDown::Pause, OnUp::Start));
    assert_eq!((found[2].order, found[2].on_up), (10, OnUp::Restart));
    assert_eq!((&found[1].others[..], &found[2].others[..]), (&[][..], &["blog".to_owned()][..]));
    let problem = found[0].problem.as_deref().expect("a label that is not understood");
    assert!(problem.contains("pglife.on-down=kill") && found[0].on_down == OnDown::Stop, "{problem}");
}

#[test]
fn a_compose_file_says_it_through_other_services_too() {
    let database = service("db", "shop", "");
    let all = [
        database.clone(),
        service("web", "shop", "api:service_healthy:true"),
        service("api", "shop", "cache:service_started:false,db:service_healthy:true"),
        service("cache", "shop", ""),
        service("web", "blog", "db:service_healthy:true"),
        // A circle ends somewhere.
        service("left", "shop", "right:service_started:false,db:service_started:false"),
        service("right", "shop", "left:service_started:false"),
    ];
    let with = Dependents { compose: true, ..Dependents::default() };
    let found = find(&cluster(), Some(&database), &all, with);
    assert_eq!(names(&found), ["shop-api-1", "shop-left-1", "shop-right-1", "shop-web-1"]);
    assert_eq!(found.iter().map(|follower| follower.depth).collect::<Vec<_>>(), [0, 0, 1, 1]);
    assert_eq!(find(&cluster(), Some(&database), &all, Dependents::default()), []);
    assert_eq!(find(&cluster(), None, &all, with), []);
}
