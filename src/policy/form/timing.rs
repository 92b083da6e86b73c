//! The keys that say when, which every section with a schedule has.

use schemars::JsonSchema;
use serde::Serialize;

use super::super::schedule::{OnMissed, Schedule, Zone};
use super::DURATION;

/// When something happens by itself.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct TimingKeys {
    /// Five cron fields (minute hour day month weekday) or @hourly, @daily, @weekly, @monthly, @yearly. Default: by
    /// hand only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// The IANA time zone the schedule is read in. Default: that of the dumps; UTC for dumps, whose zone is also that of
    /// the days which retention counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
    /// What happens to a run that could not start in time. Default: `run_once`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_missed: Option<OnMissedForm>,
    /// With `run_once`: the longest delay after which the run still makes sense. Default: 12h.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = DURATION))]
    pub max_lateness: Option<String>,
    /// The width over which clusters with the same schedule spread their starts. Default: 0s.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = DURATION))]
    pub splay: Option<String>,
}

/// What happens to a run that could not start in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnMissedForm {
    /// Run once, as soon as possible.
    RunOnce,
    /// Wait for the next time.
    Skip,
}

impl TimingKeys {
    /// As a file would say it.
    pub(super) fn of(schedule: Option<&Schedule>, timezone: &Zone) -> Self {
        Self {
            schedule: schedule.map(|schedule| schedule.cron.to_string()),
            timezone: Some(timezone.to_string()),
            on_missed: schedule.map(on_missed),
            max_lateness: schedule.and_then(max_lateness),
            splay: schedule.map(|schedule| schedule.splay.to_string()),
        }
    }
}

fn on_missed(schedule: &Schedule) -> OnMissedForm {
    match schedule.on_missed {
        OnMissed::RunOnce { .. } => OnMissedForm::RunOnce,
        OnMissed::Skip => OnMissedForm::Skip,
    }
}

fn max_lateness(schedule: &Schedule) -> Option<String> {
    match schedule.on_missed {
        OnMissed::RunOnce { max_lateness } => Some(max_lateness.to_string()),
        OnMissed::Skip => None,
    }
}
