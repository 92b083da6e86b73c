//! `pglife backups pin|unpin`: keep a backup whatever retention says.

use std::str::FromStr;

use jiff::Timestamp;
use jiff::civil::Date;
use serde::Serialize;

use super::{Place, policy};
use crate::backup_set::{Pin, Selector, SetId};
use crate::cli::{Context, Failure, output};
use crate::cluster::{ClusterName, RepoName};
use crate::control::ControlPlane;
use crate::exit::Exit;
use crate::policy::{Duration, Zone};
use crate::prune::pins;

/// When a pin ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// At an instant.
    At(Timestamp),
    /// When a day is over, on the clock of the policy's zone.
    EndOf(Date),
    /// After a time.
    After(Duration),
}

impl FromStr for Until {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(length) = text.parse() {
            return Ok(Self::After(length));
        }
        if let Ok(at) = text.parse() {
            return Ok(Self::At(at));
        }
        match text.parse::<Date>() {
            // A date with a time is a date for jiff too; without a zone it is not one for us.
            Ok(day) if text.len() == 10 => Ok(Self::EndOf(day)),
            _ => Err(format!(
                "{text:?} is no end of a pin: use a length of time (90d), a day (2027-03-31) or an instant (2027-03-31T12:00Z)"
            )),
        }
    }
}

impl Until {
    /// The instant that is meant; nothing beyond the end of the calendar.
    fn instant(self, zone: &Zone, now: Timestamp) -> Option<Timestamp> {
        match self {
            Self::At(at) => Some(at),
            Self::EndOf(day) => zone.beginning_of(day.tomorrow().ok()?),
            Self::After(length) => now.checked_add(length.as_signed()).ok(),
        }
    }
}

#[derive(Serialize)]
struct Item<'a> {
    cluster: &'a ClusterName,
    repository: &'a RepoName,
    set: &'a SetId,
    pinned: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

pub(super) fn pin(
    control: &ControlPlane,
    place: &Place,
    backup: &Selector,
    reason: &str,
    until: Option<Until>,
    context: &Context,
) -> Result<Exit, Failure> {
    let policy = policy(control, place)?;
    let now = Timestamp::now();
    let holders = pins::holders(control, policy, place.repo.as_ref(), backup)?;
    let Some(first) = holders.first() else { return Ok(Exit::Ok) };
    let until = until.and_then(|until| until.instant(&policy.dump.timezone, now));
    let pin = Pin::new(first.commit.set.clone(), reason, now, until).map_err(|error| {
        Failure::new(Exit::Usage, error).context("the backup was not pinned").next(
            "say why it must stay, on one line: --reason \"closing of 2026, ticket 4711\"; and an end that is to come",
        )
    })?;
    for holder in &holders {
        pins::pin(control, holder, &pin)?;
    }
    let items: Vec<Item<'_>> = holders
        .iter()
        .map(|holder| Item {
            cluster: &policy.name,
            repository: &holder.name,
            set: &pin.set,
            pinned: true,
            until: pin.until,
            reason: Some(&pin.reason),
        })
        .collect();
    show(&items, context)?;
    context.output.note("prune and delete leave it alone as long as the pin holds");
    Ok(Exit::Ok)
}

pub(super) fn unpin(
    control: &ControlPlane,
    place: &Place,
    backup: &Selector,
    context: &Context,
) -> Result<Exit, Failure> {
    let policy = policy(control, place)?;
    let holders = pins::holders(control, policy, place.repo.as_ref(), backup)?;
    let mut removed = 0;
    for holder in &holders {
        removed += usize::from(pins::unpin(holder)?);
    }
    let items: Vec<Item<'_>> = holders
        .iter()
        .map(|holder| Item {
            cluster: &policy.name,
            repository: &holder.name,
            set: &holder.commit.set,
            pinned: false,
            until: None,
            reason: None,
        })
        .collect();
    show(&items, context)?;
    context.output.note(if removed == 0 {
        "it was not pinned"
    } else {
        "from now on retention decides about it; what that means is shown by: pglife prune"
    });
    Ok(Exit::Ok)
}

fn show(items: &[Item<'_>], context: &Context) -> Result<(), Failure> {
    context.output.items("PinList", items, |_| {
        let mut table = output::table(&["REPOSITORY", "BACKUP", "PINNED", "UNTIL", "REASON"]);
        for item in items {
            table.add_row([
                item.repository.to_string(),
                item.set.to_string(),
                if item.pinned { "yes" } else { "no" }.to_owned(),
                item.until.map_or("-".to_owned(), |until| until.to_string()),
                item.reason.unwrap_or("-").to_owned(),
            ]);
        }
        table
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_pins_are_read() {
        let now: Timestamp = "2026-11-22T09:00:00Z".parse().expect("a time");
        let berlin: Zone = "Europe/Berlin".parse().expect("a zone");
        for (text, end) in [
            ("90d", "2027-02-20T09:00:00Z"),
            // The day counts to its end, on the policy's clock.
            ("2027-03-31", "2027-03-31T22:00:00Z"),
            ("2027-03-31T12:00Z", "2027-03-31T12:00:00Z"),
            ("2027-03-31T12:00:00+02:00", "2027-03-31T10:00:00Z"),
        ] {
            let until: Until = text.parse().expect(text);
            assert_eq!(until.instant(&berlin, now).expect("an instant").to_string(), end, "{text}");
        }
        for text in ["", "tomorrow", "2027-03-31T12:00", "31.3.2027", "90"] {
            assert!(text.parse::<Until>().is_err(), "{text:?}");
        }
    }
}
