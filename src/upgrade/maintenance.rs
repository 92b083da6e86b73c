//! The database's services in Consul while it is upgraded: in maintenance, so that nobody is sent to a server that is going.
//!
//! * What is meant is looked up and not remembered: whoever resumes an upgrade that was cut finds the same services again.
//! * Services are pglife's own for the cluster, and registrator's for the container. A maintenance that somebody else set stays.
//! * Consul is told, not asked: what it does not do is a warning, and the upgrade goes on.

use std::collections::BTreeMap;

use super::plan::UpgradePlan;
use crate::causes;
use crate::consul::service::{Check, Service, maintenance_check};
use crate::consul::{Consul, ConsulError};

/// Puts the cluster's services into maintenance; what went wrong, if something did.
pub(super) async fn begin(consul: &Consul, plan: &UpgradePlan, run: &str) -> Option<String> {
    let reason = format!("{}{plan}, run {run}", words(plan));
    let told = async {
        let (services, checks) = (consul.services().await?, consul.checks().await?);
        let own = consul.database_service_id(&plan.cluster);
        for id in of_cluster(&services, &own, plan.container.as_str()) {
            if !checks.contains_key(&maintenance_check(&id)) {
                consul.maintain(&id, Some(&reason)).await?;
            }
        }
        Ok(())
    };
    trouble(told.await, "into")
}

/// Takes them out of it again.
pub(super) async fn end(consul: &Consul, plan: &UpgradePlan) -> Option<String> {
    let told = async {
        for id in ours(&consul.checks().await?, &words(plan)) {
            consul.maintain(&id, None).await?;
        }
        Ok(())
    };
    trouble(told.await, "out of")
}

/// What every reason begins with.
fn words(plan: &UpgradePlan) -> String {
    format!("pglife on {}: ", plan.cluster)
}

fn trouble(told: Result<(), ConsulError>, way: &str) -> Option<String> {
    let error = told.err()?;
    Some(format!(
        "the database's service could not be put {way} maintenance: {}; next: {}; consul maint shows what is in maintenance",
        causes::chain(&error),
        error.next()
    ))
}

/// The services of a cluster. Registrator's ids are `<machine>:<container>:<port>`, with `:udp` behind it or not.
fn of_cluster(services: &BTreeMap<String, Service>, own: &str, container: &str) -> Vec<String> {
    let is_of_container = |id: &str| {
        let mut parts = id.split(':');
        let (machine, name, port) = (parts.next(), parts.next(), parts.next());
        machine.is_some_and(|machine| !machine.is_empty())
            && name == Some(container)
            && port.is_some_and(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()))
    };
    services.keys().filter(|id| *id == own || is_of_container(id)).cloned().collect()
}

/// The services whose maintenance has a reason that begins so.
fn ours(checks: &BTreeMap<String, Check>, words: &str) -> Vec<String> {
    let is_ours =
        |(id, check): &(&String, &Check)| **id == maintenance_check(&check.service) && check.notes.starts_with(words);
    checks.iter().filter(is_ours).map(|(_, check)| check.service.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consul::service::Status;

    #[test]
    fn only_the_container_s_services_are_meant() {
        let service =
            Service { service: String::new(), tags: vec![], meta: BTreeMap::new(), address: String::new(), port: 0 };
        let ids = [
            "postgres-shop",
            "postgres-shop2",
            "machine:shop-db:5432",
            "machine:shop-db:5432:udp",
            "machine:shop-db2:5432",
            "machine:old-shop-db:5432",
            ":shop-db:5432",
            "machine:shop-db:",
            "shop-db",
        ];
        let services = ids.iter().map(|id| ((*id).to_owned(), service.clone())).collect();
        let found = of_cluster(&services, "postgres-shop", "shop-db");
        assert_eq!(found, ["machine:shop-db:5432", "machine:shop-db:5432:udp", "postgres-shop"]);
    }

    #[test]
    fn a_maintenance_that_somebody_else_set_stays() {
        let check = |service: &str, notes: &str| Check {
            service: service.to_owned(),
            status: Status::Critical,
            output: String::new(),
            notes: notes.to_owned(),
        };
        let checks = BTreeMap::from([
            ("_service_maintenance:a".to_owned(), check("a", "pglife on shop: upgrade")),
            ("_service_maintenance:b".to_owned(), check("b", "the disk is being changed")),
            ("_service_maintenance:c".to_owned(), check("c", "pglife on shop2: upgrade")),
            ("another".to_owned(), check("a", "pglife on shop: a check of somebody's")),
        ]);
        assert_eq!(ours(&checks, "pglife on shop: "), ["a"]);
    }
}
