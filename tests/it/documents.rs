//! The documents are true: every command in README.md and docs/ runs, every exit code and every key is described.
//!
//! The convention, for those who write a page:
//!
//! * A ```` ```console ```` block has commands after `$ `, and what they print below. The commands run in order, all of a page
//!   in one shell, and must end with 0, or with the code in a comment at the line's end: `# exits 4`. A command goes on in
//!   the next line after a `\`, or while a here-document is open.
//! * A ```` ```sh ```` block is one script; it must end with 0.
//! * What commands print is not compared, except in a block opened with ```` ```console checked ````: each line shown must be
//!   printed, spaces aside; `…` stands for any text.
//! * Anything else, ```` ```text ```` and ```` ```toml ```` for example, is not run.
//! * A page with commands says where they run, in a comment: `<!-- tested: beside the cluster shop -->`, a running cluster
//!   `shop` with a database `orders` (table `item`) and one backup, PGLIFE_CONFIG set; or `<!-- tested: in an empty
//!   folder -->`.
//! * Every cluster and container is called `shop` or begins so, and nothing else has this word: it is replaced by a name of
//!   the test's own.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::house::{House, docker, executable, run, sql};

const BESIDE: &str = "<!-- tested: beside the cluster shop -->";
const EMPTY: &str = "<!-- tested: in an empty folder -->";

/// One test a page, so that they run side by side.
macro_rules! pages {
    ($($test:ident => $page:literal,)*) => {
        const PAGES: &[&str] = &[$($page),*];
        $(#[test] fn $test() { follow($page, stringify!($test)); })*
    };
}

pages! {
    readme => "README.md",
    install => "docs/install.md",
    clusters => "docs/clusters.md",
    backup => "docs/backup.md",
    volumes => "docs/volume-backup.md",
    restore => "docs/restore.md",
    verify => "docs/verify.md",
    daemon => "docs/daemon.md",
    consul => "docs/consul.md",
    dependents => "docs/dependents.md",
    environments => "docs/environment.md",
    policies_in_consul => "docs/kv.md",
    hosts => "docs/hosts.md",
    notifications => "docs/notifications.md",
    drills => "docs/drill.md",
    selftest => "docs/selftest.md",
    upgrade => "docs/upgrade.md",
    encryption => "docs/encryption.md",
    retention => "docs/retention.md",
    configuration => "docs/configuration.md",
    repositories => "docs/repositories.md",
    exit_codes => "docs/exit-codes.md",
    images => "docs/images.md",
    troubleshooting => "docs/troubleshooting.md",
    performance => "docs/performance.md",
    architecture => "docs/architecture.md",
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(page: &str) -> String {
    std::fs::read_to_string(root().join(page)).unwrap_or_else(|error| panic!("{page}: {error}"))
}

#[test]
fn every_page_is_followed() {
    let mut there: BTreeSet<String> = std::fs::read_dir(root().join("docs"))
        .expect("docs")
        .map(|entry| format!("docs/{}", entry.expect("an entry").file_name().to_string_lossy()))
        .filter(|name| name.ends_with(".md"))
        .collect();
    there.insert("README.md".to_owned());
    assert_eq!(there, PAGES.iter().map(ToString::to_string).collect());
}

#[test]
fn links_between_pages_lead_somewhere() {
    for page in PAGES {
        let text = read(page);
        let folder = root().join(page).parent().expect("a folder").to_owned();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.contains("://") || target.starts_with('#') {
                continue;
            }
            let file = target.split('#').next().expect("a part");
            assert!(folder.join(file).exists(), "{page} links to {target}, which is not there");
        }
    }
}

/// What the examples for CI run is what the page runs here, but for what a shell or a scheduler adds.
#[test]
fn the_examples_for_ci_run_tested_commands() {
    let text = read("docs/drill.md");
    let tested: Vec<String> = steps("docs/drill.md", &text).iter().map(|step| step.text.trim().to_owned()).collect();
    let section = text.split("\n## ").find(|section| section.starts_with("In CI")).expect("a section");
    let examples: Vec<&str> =
        section.split("```").skip(1).step_by(2).filter(|block| !block.starts_with("console")).collect();
    assert_eq!(examples.len(), 3, "GitHub Actions, GitLab CI, cron");
    for example in examples {
        let commands = example.lines().filter_map(|line| Some(&line[line.rfind("pglife ")?..]));
        let plain = |line: &str| {
            line.split(" --quiet").next().and_then(|line| line.split(" |").next()).expect("a part").trim().to_owned()
        };
        let commands: Vec<String> = commands.map(plain).collect();
        assert!(commands.len() >= 2, "{example}");
        for command in commands {
            assert!(tested.contains(&command), "{command:?} is in an example, but not among {tested:?}");
        }
    }
}

/// A block for each service that is named, and each is what pglife takes for a repository.
#[test]
fn the_examples_of_repositories_are_configurations() {
    let house = House::new("examples");
    let page = read("docs/repositories.md");
    let blocks = page.split("```toml\n").skip(1).map(|rest| rest.split("```").next().expect("a block"));
    let blocks: Vec<&str> = blocks.collect();
    for block in &blocks {
        house.write("pglife.toml", &format!("state_dir = \"state\"\n{block}"));
        let listed = house.items(&["repo", "list"]).remove(0);
        let kind = if block.contains("type = \"s3\"") { "s3" } else { "local" };
        assert_eq!(listed["type"], kind, "{block}");
        // No credentials are there, so that nobody is asked.
        let problem = listed["problem"].as_str().expect("none of them is here");
        assert!(kind == "local" || problem.contains("cannot be read"), "{problem}");
    }
    let named = ["aws", "minio", "r2", "garage", "seaweedfs"].map(|name| format!("[repos.{name}]"));
    assert!(named.iter().all(|name| blocks.iter().any(|block| block.starts_with(name.as_str()))), "{blocks:?}");
}

#[test]
fn every_exit_code_is_described() {
    let source = read("src/exit.rs");
    let codes: Vec<&str> = source
        .lines()
        .filter_map(|line| line.trim().strip_suffix(',')?.split_once(" = "))
        .map(|(_, code)| code)
        .filter(|code| code.parse::<u8>().is_ok())
        .collect();
    assert!(codes.len() > 15, "{codes:?}");
    let page = read("docs/exit-codes.md");
    let described: Vec<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(" |").next())
        .filter(|code| code.parse::<u8>().is_ok())
        .collect();
    assert_eq!(described, codes, "docs/exit-codes.md against src/exit.rs");
}

#[test]
fn every_key_of_a_policy_is_described_and_no_other() {
    let schema = run(command(&["policy", "schema"])).ok().stdout;
    let schema: Value = serde_json::from_str(&schema).expect("JSON");
    let mut keys = BTreeSet::new();
    collect(&schema, &schema, "", &mut keys);
    assert!(keys.len() > 25, "{keys:?}");
    // The table of policies: `| \`backup.dump.jobs\` | … |`.
    let page = read("docs/configuration.md");
    let policies = page.split("\n## ").find(|section| section.starts_with("Policies")).expect("a section on policies");
    let described: BTreeSet<String> =
        policies.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).map(str::to_owned).collect();
    assert_eq!(described, keys, "docs/configuration.md against `pglife policy schema`");
}

/// The full names of all keys that have a value of their own.
fn collect(schema: &Value, at: &Value, prefix: &str, keys: &mut BTreeSet<String>) {
    let at = match at["$ref"].as_str() {
        Some(reference) => schema.pointer(&reference[1..]).expect("a definition"),
        None => at,
    };
    match at["properties"].as_object() {
        Some(properties) => {
            for (name, below) in properties {
                let name = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                collect(schema, below, &name, keys);
            }
        }
        None => {
            keys.insert(prefix.to_owned());
        }
    }
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(executable());
    command.args(arguments).stdin(Stdio::null());
    command
}

/// A command of a page.
struct Step {
    line: usize,
    text: String,
    exit: i32,
    /// Lines it must print.
    printed: Vec<String>,
}

/// The commands of a page, in order.
fn steps(page: &str, text: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut block: Option<String> = None;
    // The line that ends the command being read: None where no command is.
    let mut until: Option<String> = None;
    for (number, line) in (1..).zip(text.lines()) {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            block = block.is_none().then(|| language.to_owned());
            until = None;
            if block.as_deref() == Some("sh") {
                steps.push(Step { line: number, text: "set -e\n".to_owned(), exit: 0, printed: vec![] });
            }
            continue;
        }
        let Some(language) = &block else { continue };
        assert!(
            matches!(language.as_str(), "sh" | "console" | "console checked" | "text" | "toml" | "json" | "yaml"),
            "{page}:{number}: what is a block of {language:?}?"
        );
        let step = steps.last_mut();
        match (language.as_str(), line.strip_prefix("$ "), step) {
            ("sh", _, Some(step)) => step.text += &format!("{line}\n"),
            ("console" | "console checked", Some(typed), _) if until.is_none() => {
                let (typed, exit) = match typed.rsplit_once("# exits ") {
                    Some((typed, code)) => (typed, code.trim().parse().expect("an exit code")),
                    None => (typed, 0),
                };
                until = goes_on(typed);
                steps.push(Step { line: number, text: format!("{typed}\n"), exit, printed: vec![] });
            }
            ("console" | "console checked", _, Some(step)) => match &until {
                Some(end) => {
                    step.text += &format!("{line}\n");
                    until = if end.is_empty() { goes_on(line) } else { Some(end.clone()).filter(|end| end != line) };
                }
                None if language.ends_with("checked") => step.printed.push(line.to_owned()),
                None => {}
            },
            _ => {}
        }
    }
    assert!(block.is_none(), "{page}: a block is not closed");
    steps
}

/// What ends a command whose first line is `line`: a here-document's word, or (empty) the first line without `\`.
fn goes_on(line: &str) -> Option<String> {
    if line.ends_with('\\') {
        return Some(String::new());
    }
    let (_, word) = line.split_once("<<")?;
    Some(word.trim_matches(['\'', '"', ' ']).to_owned())
}

/// Runs the commands of a page.
fn follow(page: &str, test: &str) {
    let text = read(page);
    let steps = steps(page, &text);
    if steps.is_empty() {
        return;
    }
    let house = House::new(test);
    let _sweep = Sweep(house.name("shop"));
    let shop = house.name("shop");
    match (text.contains(BESIDE), text.contains(EMPTY)) {
        (true, false) => {
            house.cluster("shop", "17", "");
            let container = format!("{shop}-db");
            sql(&container, "postgres", "create database orders");
            let table = "create table item as select n as id, md5(n::text) as label from generate_series(1, 1000) n";
            sql(&container, "orders", table);
            house.backup(&shop);
        }
        (false, true) => {}
        _ => panic!("{page} has commands, so it must say `{BESIDE}` or `{EMPTY}`"),
    }
    let folder = if text.contains(EMPTY) { house.path("empty") } else { house.path("") };
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::create_dir(house.path("bin")).expect("a folder");
    std::os::unix::fs::symlink(executable(), house.path("bin/pglife")).expect("a link");

    let mut script = String::from("exec 2>&1 </dev/null\n");
    for (number, step) in steps.iter().enumerate() {
        let Step { line, text, exit, .. } = step;
        let text = text.replace("shop", &shop);
        // A script of its own ends at its first error; a typed command runs in the page's shell, so that `cd` and `export` last.
        let (open, close) = if text.starts_with("set -e\n") { ("(", ")") } else { ("{", "}") };
        write!(
            script,
            "echo '@@ {number}'\n{open}\n{text}{close}\ncode=$?\n[ $code = {exit} ] || {{ echo '@@ failed'; echo \"{page}:{line}: ended with $code, {exit} was promised\"; exit 99; }}\n"
        )
        .expect("text");
    }
    house.write("page.sh", &script);
    let mut bash = Command::new("bash");
    let path = format!("{}:{}", house.path("bin").display(), std::env::var("PATH").unwrap_or_default());
    bash.arg(house.path("page.sh")).current_dir(&folder).env("PATH", path).env_remove("PGLIFE_CONFIG");
    if text.contains(BESIDE) {
        bash.env("PGLIFE_CONFIG", house.path("pglife.toml"));
    }
    let ended = run(bash);
    assert_eq!(ended.exit, 0, "{}", ended.stdout);

    let mut outputs = ended.stdout.split("@@ ").skip(1);
    for step in &steps {
        let output = words(outputs.next().expect("what it printed"));
        for line in &step.printed {
            let mut rest = output.as_str();
            for part in words(&line.replace("shop", &shop)).split('…') {
                let part = part.trim();
                let at = rest.find(part).unwrap_or_else(|| {
                    panic!("{page}:{}: `{}` does not print {line:?} but\n{output}", step.line, step.text.trim())
                });
                rest = &rest[at + part.len()..];
            }
        }
    }
}

/// Single spaces, however wide the columns are; lines stay.
fn words(text: &str) -> String {
    text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>().join("\n")
}

/// Removes containers that a page made without pglife, and their volumes, by the beginning of their names.
struct Sweep(String);

impl Drop for Sweep {
    fn drop(&mut self) {
        let named = format!("name=^/?{}", self.0);
        for id in docker(&["ps", "-aq", "--filter", &named]).lines() {
            docker(&["rm", "-f", "-v", id]);
        }
        for name in docker(&["volume", "ls", "-q", "--filter", &format!("name=^{}", self.0)]).lines() {
            docker(&["volume", "rm", "-f", name]);
        }
    }
}
