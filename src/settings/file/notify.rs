//! Reads `[[notify]]`.

use std::path::Path;

use super::super::notify::{Channel, ChannelKind, Pattern, Place};
use super::read_path;
use crate::document::{Entry, Table};
use crate::policy::Task;

const HELP: &str = "a list of tables: [[notify]] name = \"oncall\" type = \"webhook\" url_file = \"oncall.url\"";
const TYPE_HELP: &str = "\"webhook\", \"slack\" or \"healthchecks\"";

pub(super) fn read(root: &Table<'_>, folder: &Path) -> Vec<Channel> {
    let items = root.get("notify").and_then(|entry| entry.list(HELP)).unwrap_or_default();
    let mut channels: Vec<Channel> = Vec::new();
    for item in &items {
        let Some(channel) = item.item(|table| channel(table, item, folder)).flatten() else { continue };
        if channels.iter().any(|other| other.name == channel.name) {
            item.problem(format!("there are two called {:?}", channel.name), "give each a name of its own");
        }
        channels.push(channel);
    }
    channels
}

fn channel(table: &Table<'_>, item: &Entry<'_>, folder: &Path) -> Option<Channel> {
    let required = |key: &str, help: &str| {
        let entry = table.get(key);
        if entry.is_none() {
            table.missing(key, format!("{key} is missing"), help);
        }
        entry
    };
    let name =
        required("name", "what it is called in events").and_then(|entry| entry.text("a name").map(str::to_owned));
    let kind = required("type", TYPE_HELP).and_then(|entry| entry.parse::<ChannelKind>(TYPE_HELP));
    let url = match (table.get("url"), read_path(table, "url_file", folder)) {
        (Some(entry), None) => {
            let help = "https://…; where it is a secret, in a file: url_file";
            entry.text(help).and_then(|text| {
                if text.starts_with("https://") || text.starts_with("http://") {
                    return Some(Place::Written(text.to_owned()));
                }
                // It is not repeated: it may hold a secret.
                entry.problem("this is no URL", help);
                None
            })
        }
        (None, Some(file)) => Some(Place::File(file)),
        (Some(_), Some(_)) => {
            item.problem("both url and url_file are given", "keep one of them");
            None
        }
        (None, None) => {
            table.missing("url", "url is missing", "url = \"https://…\", or url_file = \"FILE\" where it is a secret");
            None
        }
    };
    let secret_file = read_path(table, "secret_file", folder);
    if secret_file.is_some() && kind.is_some_and(|kind| kind != ChannelKind::Webhook) {
        item.problem("secret_file has no effect: only webhooks are signed", "remove the key");
    }
    let clusters = list(table, "clusters", "a list of clusters: [\"chado\"]");
    let on = list::<Pattern>(table, "on", "a list such as [\"check.*\", \"run.failed\"]");
    let tasks = table.get("tasks").and_then(|entry| {
        let help = "a list of \"dump\", \"volume\", \"drill\", \"verify\"";
        let known = [Task::Dump, Task::Volume, Task::Drill, Task::Rehearsal, Task::Verify].map(Task::as_str);
        let items = entry.list(help)?;
        let words = items.iter().filter_map(|item| {
            let word = item.text(help)?;
            if !known.contains(&word) {
                item.problem(format!("{word:?} is not known"), help);
            }
            Some(word.to_owned())
        });
        Some(words.collect())
    });
    Some(Channel {
        name: name?,
        kind: kind?,
        url: url?,
        secret_file,
        clusters,
        on: if on.is_empty() { vec![Pattern::everything()] } else { on },
        tasks: tasks.unwrap_or_else(|| vec![Task::Dump.as_str().to_owned()]),
    })
}

fn list<T: std::str::FromStr>(table: &Table<'_>, key: &str, help: &str) -> Vec<T>
where
    T::Err: std::fmt::Display,
{
    let items = table.get(key).and_then(|entry| entry.list(help)).unwrap_or_default();
    items.iter().filter_map(|item| item.parse(help)).collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::settings::Settings;

    fn read(text: &str) -> (Option<Settings>, String) {
        let outcome = super::super::read(Path::new("pglife.toml"), text, Path::new("/etc/pglife"), None);
        let problems: String =
            outcome.problems.iter().map(|problem| format!("{problem}\n")).collect::<Vec<_>>().concat();
        (outcome.value, problems)
    }

    #[test]
    fn what_is_told_and_where_is_read() {
        let (settings, problems) = read(
            "[[notify]]\nname = 'oncall'\ntype = 'webhook'\nurl_file = 'oncall.url'\nsecret_file = 'oncall.key'\non = \
             ['check.critical', 'run.*']\nclusters = ['chado']\n[[notify]]\nname = 'ping'\ntype = 'healthchecks'\nurl = \
             'https://hc.example.org/ping/0'\n",
        );
        assert_eq!(problems, "");
        let channels = settings.expect("settings").notify;
        assert_eq!(channels[0].url, Place::File(PathBuf::from("/etc/pglife/oncall.url")));
        let chado = "chado".parse().expect("a name");
        let other = "other".parse().expect("a name");
        assert!(channels[0].hears("run.failed", Some(&chado)) && channels[0].hears("check.critical", Some(&chado)));
        assert!(!channels[0].hears("check.warning", Some(&chado)) && !channels[0].hears("run.failed", Some(&other)));
        assert!(channels[1].hears("daemon.failed", None));
        assert_eq!(channels[1].tasks, ["dump"]);
        assert!(!format!("{channels:?}").contains("hc.example.org"), "a URL may be a secret");
    }

    #[test]
    fn every_problem_is_told_and_no_secret_repeated() {
        let (_, problems) = read(
            "[[notify]]\ntype = 'pager'\nurl = 'hooks.example.org/secret'\non = ['Run']\n[[notify]]\nname = 'a'\ntype = \
             'slack'\nurl = 'http://x'\nurl_file = 'x'\nsecret_file = 'x'\ntasks = ['nap']\nsound = 'loud'\n",
        );
        for told in [
            "name is missing",
            "\"pager\" is not known",
            "this is no URL",
            "\"Run\" is no kind of news",
            "both url and url_file",
            "only webhooks are signed",
            "\"nap\" is not known",
            "sound: unknown key",
        ] {
            assert!(problems.contains(told), "{told:?} is not in\n{problems}");
        }
        assert!(!problems.contains("hooks.example.org"), "{problems}");
    }
}
