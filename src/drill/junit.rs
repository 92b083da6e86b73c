//! A drill as JUnit XML, for CI: one test case a stage and check. A *failure* is a bad backup, an *error* is everything that kept
//! the drill from a verdict; the two are never mixed up. Pure.

use std::time::Duration;

use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite, XmlString};

use crate::backup_set::certificate::Outcome;
use crate::control::OperationError;

use super::{Drilled, Judgement};

/// The XML of a drill of `cluster` that ended so.
pub fn xml(cluster: &str, ended: &Result<Drilled, OperationError>) -> String {
    let mut suite = TestSuite::new(format!("drill {cluster}"));
    let class = format!("pglife.drill.{cluster}");
    let case = |name: &str, status: TestCaseStatus, seconds: f64| {
        let mut case = TestCase::new(name, status);
        case.set_classname(class.as_str()).set_time(Duration::from_secs_f64(seconds.max(0.0)));
        case
    };
    let unsuccessful = |kind, message: &str, words: &str| {
        let mut status = TestCaseStatus::non_success(kind);
        status.set_message(XmlString::new(message)).set_description(XmlString::new(words));
        status
    };
    match ended {
        Err(error) => {
            let words = match &error.next {
                Some(next) => format!("{}\nnext: {next}", error.chain()),
                None => error.chain(),
            };
            suite.add_test_case(case("drill", unsuccessful(NonSuccessKind::Error, "not judged", &words), 0.0));
        }
        Ok(drilled) => {
            let certificate = &drilled.certificate;
            suite.add_property(("started_at", certificate.started_at.to_string().as_str()));
            for check in &certificate.checks {
                let words = check.found.join("\n");
                let status = match check.outcome {
                    Outcome::Passed => TestCaseStatus::success(),
                    Outcome::Failed => unsuccessful(NonSuccessKind::Failure, "the backup is bad", &words),
                    Outcome::Unknown => unsuccessful(NonSuccessKind::Error, "could not be checked", &words),
                };
                suite.add_test_case(case(&check.name, status, check.seconds));
            }
            if let Judgement::Unknown(open) = &drilled.judgement {
                for name in open.iter().filter(|name| !certificate.checks.iter().any(|check| check.name == **name)) {
                    let status =
                        unsuccessful(NonSuccessKind::Error, "could not be checked", "the drill did not get to it");
                    suite.add_test_case(case(name, status, 0.0));
                }
            }
            suite.add_property(("backup", certificate.set.to_string().as_str()));
            suite.add_property(("verdict", drilled.judgement.to_string().as_str()));
            suite.add_property(("rto_seconds", format!("{:.3}", certificate.rto_seconds).as_str()));
            for stage in &certificate.stages {
                suite.add_property((
                    format!("seconds.{}", stage.name).as_str(),
                    format!("{:.3}", stage.seconds).as_str(),
                ));
            }
        }
    }
    let mut report = Report::new("pglife drill");
    report.add_test_suite(suite);
    report.to_string().unwrap_or_else(|error| format!("<!-- the report cannot be written: {error} -->\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup_set::certificate::{Check, tests::example};
    use crate::exit::Exit;

    fn drilled(outcome: Outcome, judgement: Judgement) -> Drilled {
        let mut certificate = example();
        let found = vec!["table public.feature: 1,204,331 rows backed up, 1,204,330 restored <&>".to_owned()];
        certificate.checks = vec![Check { name: "facts".to_owned(), outcome, found, seconds: 1.5 }];
        Drilled { certificate, judgement, rehearsal: false, certified: vec![], warnings: vec![], kept: None }
    }

    #[test]
    fn a_failure_is_a_bad_backup_and_an_error_is_not() {
        let bad = xml("chado", &Ok(drilled(Outcome::Failed, Judgement::Bad)));
        assert!(bad.contains("failures=\"1\" errors=\"0\"") && bad.contains("<failure"), "{bad}");
        assert!(bad.contains("1,204,330 restored &lt;&amp;&gt;"), "{bad}");
        let open = Judgement::Unknown(vec!["facts".to_owned(), "databases".to_owned()]);
        let unknown = xml("chado", &Ok(drilled(Outcome::Unknown, open)));
        assert!(unknown.contains("failures=\"0\" errors=\"2\"") && !unknown.contains("<failure"), "{unknown}");
        let docker = xml("chado", &Err(OperationError::new(Exit::Docker, "no engine").next("start it")));
        assert!(docker.contains("errors=\"1\"") && docker.contains("next: start it"), "{docker}");
        let good = xml("chado", &Ok(drilled(Outcome::Passed, Judgement::Proven)));
        assert!(good.contains("failures=\"0\" errors=\"0\"") && good.contains("tests=\"1\""), "{good}");
    }
}
