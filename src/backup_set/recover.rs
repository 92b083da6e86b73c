//! `recipe.json` and `RECOVER.md`: what was around the data, and how to bring it back with docker, `zstd` or `gzip`, `psql` and
//! `pg_restore` alone, with the real names and versions of the set.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::cluster::DatabaseName;

use super::layout::{is_sealed, plain_name};
use super::{Ancestor, Content, CopyMode, ImageReference, Kind, Manifest, Object, VolumeCopy};

/// How the containers of a cluster were made, without anything secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipe {
    /// Format version of this document.
    pub version: u32,
    /// Name of the database container.
    pub container: String,
    /// The image it ran from.
    pub image: ImageReference,
    /// Entry point and arguments.
    pub command: Vec<String>,
    /// What was mounted where.
    pub mounts: Vec<RecipeMount>,
    /// Networks it was in.
    pub networks: Vec<String>,
    /// Published ports, such as `5432/tcp` to `127.0.0.1:5433`.
    pub ports: BTreeMap<String, Vec<String>>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Names of the environment variables; values may be secret and are not kept.
    pub environment: Vec<String>,
    /// Server settings that a file or the command line gave.
    pub settings: BTreeMap<String, String>,
}

/// One mount of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecipeMount {
    /// `volume` or `bind`.
    pub kind: String,
    /// The volume's name, or the path on the host.
    pub source: String,
    /// Where the container sees it.
    pub destination: String,
    /// False where it was mounted read-only.
    pub writable: bool,
}

impl Recipe {
    /// The object's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("a recipe has only text keys");
        bytes.push(b'\n');
        bytes
    }
}

/// One word for a POSIX shell.
fn shell_word(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./:=@%+,".contains(&byte);
    if !text.is_empty() && text.bytes().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// A connection string that names a database.
fn connection_string(database: &DatabaseName) -> String {
    format!("dbname='{}'", database.as_str().replace('\\', r"\\").replace('\'', r"\'"))
}

/// What prints the content of `object`.
fn reader(object: &Object) -> String {
    reader_of(&object.name)
}

/// What prints the content of the object that is called `name`.
fn reader_of(name: &str) -> String {
    let file = shell_word(name);
    let sealed = is_sealed(name).then(|| format!("age -d -i \"$IDENTITY\" {file}"));
    match (sealed, codec_tool(name)) {
        (Some(sealed), Some(codec)) => format!("{sealed} | {codec} -dc"),
        (Some(sealed), None) => sealed,
        (None, Some(codec)) => format!("{codec} -dc {file}"),
        (None, None) => format!("cat {file}"),
    }
}

/// The program that unpacks the object that is called `name`, if it is packed.
fn codec_tool(name: &str) -> Option<&'static str> {
    match plain_name(name).rsplit_once('.')?.1 {
        "zst" => Some("zstd"),
        "gz" => Some("gzip"),
        _ => None,
    }
}

/// The programs that unpack the objects of the set, and of those that it builds on, to be told after others.
fn and_codec_tools(manifest: &Manifest) -> String {
    let names = manifest.objects.iter().map(|object| &object.name);
    let names = names.chain(manifest.ancestors().iter().map(|ancestor| &ancestor.name));
    let tools: BTreeSet<&str> = names.filter_map(|name| codec_tool(name)).collect();
    tools.into_iter().flat_map(|tool| [" and `", tool, "`"]).collect()
}

/// Where the object of a set lies that this one builds on, seen from this one's folder.
fn beside(ancestor: &Ancestor) -> String {
    format!("../{}/{}", ancestor.set, ancestor.name)
}

/// Prints the tar that a block index describes, out of files that are called after their sources.
const PUT_TOGETHER: &str = r#"open(my $index, '<', '/parts/index') or die "index: $!";
binmode(STDOUT);
my %source;
while (<$index>) {
    s/,"path".*//s;
    while (/\[(\d+),(\d+),(\d+)\]/g) {
        my ($number, $offset, $rest) = ($1, $2, $3);
        open($source{$number}, '<:raw', "/parts/$number") or die "$number: $!" unless $source{$number};
        seek($source{$number}, $offset, 0) or die "$number: $!";
        while ($rest > 0) {
            my $read = read($source{$number}, my $bytes, $rest < 1048576 ? $rest : 1048576);
            die "source $number ends early" unless $read;
            print $bytes or die "tar: $!";
            $rest -= $read;
        }
    }
}"#;

/// Checks every object of the set, as far as they are known.
fn check_block(manifest: &Manifest, line: &mut dyn FnMut(&str)) {
    line("## Check the files\n");
    line("```sh");
    line("test -s COMMIT");
    line("b3sum --check <<'SUMS'");
    for object in &manifest.objects {
        if object.content != Content::Instructions {
            line(&format!("{}  {}", object.stored.blake3, object.name));
        }
    }
    for ancestor in manifest.ancestors() {
        line(&format!("{}  {}", ancestor.stored.blake3, beside(ancestor)));
    }
    line("SUMS");
    line("```\n");
}

const NEEDS_IDENTITY: &str = ": \"${IDENTITY:?say where the key is, for example: IDENTITY=/media/usb/key.txt}\"";

/// What kind of backup a set is, in words.
fn kind_in_words(kind: Kind) -> &'static str {
    match kind {
        Kind::Dump => "logical backup",
        Kind::Volume => "copy of the volumes",
    }
}

/// The text of `RECOVER.md` for an encrypted set: how to open what [`instructions`] tells, and nothing of the content.
pub fn cover(manifest: &Manifest) -> String {
    let mut text = String::new();
    let mut line = |content: &str| {
        text.push_str(content);
        text.push('\n');
    };
    line(&format!("# Opening {} of {}\n", manifest.set, manifest.cluster));
    line(&format!(
        "This folder is an encrypted {} of the PostgreSQL cluster `{}`, taken {} by pglife {}.",
        kind_in_words(manifest.kind),
        manifest.cluster,
        manifest.started_at.strftime("%Y-%m-%d %H:%M:%S UTC"),
        manifest.pglife
    ));
    line("It is complete only if a file `COMMIT` lies beside this one. With pglife at hand, run");
    line(&format!(
        "`pglife restore {} --backup {} --into NAME --identity KEY`. Without it, all you need is here:\n",
        manifest.cluster, manifest.set
    ));
    line(&format!("* Docker, `age`{}. `b3sum` is needed for the check only.", and_codec_tools(manifest)));
    line(
        "* The secret key of *one* of these recipients: the file with the line `AGE-SECRET-KEY-1…`, or the SSH key.\n",
    );
    if let Some(recipients) = &manifest.encryption {
        for recipient in recipients.everyday() {
            line(&format!("  * `{recipient}`"));
        }
        for recipient in recipients.escrow() {
            line(&format!("  * `{recipient}` (escrow)"));
        }
        line("");
    }
    line(
        "Every file that ends in `.age` is an ordinary age file. What is in which, the server's version, its image and every",
    );
    line("command of the recovery are in `RECOVER.details.md.age`; all that is known of the backup is in");
    line("`manifest.json.age`.\n");
    line("Run the commands in this folder, in one shell, from top to bottom. Nothing here changes the backup.\n");
    check_block(manifest, &mut line);
    line("## Open the instructions\n");
    line("First say where the key is: `IDENTITY=/media/usb/key.txt`, with your own path.\n");
    line("```sh");
    line(NEEDS_IDENTITY);
    line("DETAILS=$(mktemp)");
    line("age -d -i \"$IDENTITY\" RECOVER.details.md.age >\"$DETAILS\"");
    line("echo \"go on with $DETAILS\"");
    line("```\n");
    line(
        "Read that file and run its commands, in the same shell and in this folder. Remove it afterwards: it names what the",
    );
    line("encryption hides.");
    text
}

/// How to recover the set that `manifest` describes (its objects as far as they are known): the text of `RECOVER.md`, or of
/// an encrypted set's `RECOVER.details.md`.
///
/// Every block marked `sh` is a command to run as it stands, in order, in one shell, in the folder of the set. A test
/// does just that.
pub fn instructions(manifest: &Manifest) -> String {
    let mut text = String::new();
    let mut line = |content: &str| {
        text.push_str(content);
        text.push('\n');
    };
    let name = format!("recovered-{}", manifest.cluster);
    let volume = manifest.volume();
    let role = shell_word(manifest.server.bootstrap_role.as_str());
    let image = shell_word(&manifest.image.name);
    let major = manifest.server.major;
    let encrypted = manifest.encryption.is_some();
    let recipe = manifest.naming().document("recipe.json");
    let globals = manifest.globals().map_or_else(String::new, |globals| globals.name.clone());

    line(&format!("# Recovering {} from {}\n", manifest.cluster, manifest.set));
    line(&format!(
        "This folder is a {} of the PostgreSQL {} cluster `{}`, taken {} by pglife {}.",
        kind_in_words(manifest.kind),
        manifest.server.version,
        manifest.cluster,
        manifest.started_at.strftime("%Y-%m-%d %H:%M:%S UTC"),
        manifest.pglife
    ));
    line(&format!(
        "It is complete only if a file `COMMIT` lies {}. With pglife at hand, run",
        if encrypted { "in its folder" } else { "beside this one" }
    ));
    line(&format!(
        "`pglife restore {} --backup {} --into NAME`. Without it, all you need is here:\n",
        manifest.cluster, manifest.set
    ));
    let tools = and_codec_tools(manifest);
    line(&if encrypted {
        format!("* Docker, `age`{tools}, and the key that opened this file.")
    } else {
        format!("* Docker{tools}. `b3sum` is needed for the check only.")
    });
    let or_newer = if volume.is_some() { " and `tar`" } else { " (or newer)" };
    line(&format!("* An image with PostgreSQL {major}{or_newer}. The cluster ran from `{}`,", manifest.image.name));
    line(&format!(
        "  id `{}`{}.",
        manifest.image.id,
        manifest.image.digests.iter().fold(String::new(), |text, digest| text + ", `" + digest + "`")
    ));
    let passwords = match volume {
        Some((_, copy)) if copy.volumes.iter().any(|volume| volume == "/secret") => {
            "the volumes hold everything, passwords and keys in `/secret` too".to_owned()
        }
        Some(_) => "what it mounted besides is not here".to_owned(),
        None => format!("passwords of roles are in `{globals}` as hashes only"),
    };
    line(&format!("* `{recipe}` tells how its container was made; {passwords}.\n"));
    line(&format!(
        "Run the commands in {} folder, in one shell, from top to bottom. Nothing here changes the backup.\n",
        if encrypted { "the backup's" } else { "this" }
    ));

    if encrypted {
        line("## Say where the key is\n");
        line("`IDENTITY=/media/usb/key.txt`, with your own path; in the shell of RECOVER.md that is done.\n");
        line("```sh");
        line(NEEDS_IDENTITY);
        line("```\n");
    } else {
        check_block(manifest, &mut line);
    }

    if let Some((object, copy)) = volume {
        volume_steps(manifest, object, copy, &mut line);
        return text;
    }

    line("## Start an empty server\n");
    line("Same image, a new volume. Nothing can reach it from outside until you publish a port.\n");
    line("```sh");
    line(&format!("NAME={name}"));
    line(&format!("IMAGE={image}"));
    line("docker volume create \"$NAME-data\"");
    line(&format!(
        "docker run -d --name \"$NAME\" --network none -v \"$NAME-data\":/data -e PGDATA=/data/{major} \\\n  -e POSTGRES_USER={role} -e POSTGRES_HOST_AUTH_METHOD=trust \"$IMAGE\""
    ));
    line("# What a database or role sets for its application must not disturb the restore.");
    line("OPTIONS='-c statement_timeout=0 -c lock_timeout=0 -c default_transaction_read_only=off -c array_nulls=on'");
    line("in_server() { docker exec -i -u postgres -e PGOPTIONS=\"$OPTIONS\" \"$NAME\" \"$@\"; }");
    line(&format!("until in_server psql -X -U {role} -d postgres -c 'select 1' >/dev/null 2>&1; do sleep 1; done"));
    line("sleep 2   # an image that initialises in two steps restarts its server once");
    line(&format!("until in_server psql -X -U {role} -d postgres -c 'select version()'; do sleep 1; done"));
    line("```\n");

    if !manifest.server.tablespaces.is_empty() {
        line("## Make the folders of the tablespaces\n");
        line("```sh");
        for tablespace in &manifest.server.tablespaces {
            line(&format!(
                "docker exec \"$NAME\" install -d -o postgres -g postgres -m 700 {}",
                shell_word(&tablespace.location)
            ));
        }
        line("```\n");
    }

    line("## Roles, memberships, tablespaces\n");
    line("The one error to expect is that the role made with the server \"already exists\".\n");
    line("```sh");
    if let Some(globals) = manifest.globals() {
        line(&format!("{} | in_server psql -X -q -U {role} -d postgres", reader(globals)));
    }
    line("```\n");

    line("## The databases\n");
    line(
        "`template1` and `postgres` exist in every new server, so they are dropped and made again. Add `-j` by unpacking",
    );
    line("a file first: `pg_restore -j` needs a file it can seek in.\n");
    line("```sh");
    for step in restore_order(manifest.databases().map(|(database, _)| database)) {
        let object = manifest.database_object(step.database).expect("the order names databases of the set");
        line(&format!(
            "{} | in_server pg_restore -U {role} -d {} --create{} --enable-row-security --exit-on-error",
            reader(object),
            step.connect_to,
            if step.replaces { " --clean --if-exists" } else { "" },
        ));
        if let Content::Database { afterwards, .. } = &object.content {
            for statement in afterwards {
                // A connection string, because a plain name with `=` in it would be taken for one.
                let database = shell_word(&connection_string(step.database));
                let statement = shell_word(statement);
                line(&format!("in_server psql -X -q -v ON_ERROR_STOP=1 -U {role} -d {database} -c {statement}"));
            }
        }
    }
    line("```\n");

    line("## Afterwards\n");
    line(&format!("Collect statistics, look, then give the container its ports and networks (see `{recipe}`).\n"));
    line("```sh");
    line(&format!("in_server vacuumdb -U {role} --all --analyze-in-stages --quiet"));
    line(&format!("in_server psql -X -U {role} -d postgres -l"));
    line("```");
    if !manifest.skipped.is_empty() {
        text.push_str("\n## Not in this backup\n\n");
        for skipped in &manifest.skipped {
            writeln!(text, "* `{}`: {}", skipped.database, skipped.reason).expect("text takes text");
        }
    }
    text
}

/// How the volumes are unpacked, and a server is started on them.
fn volume_steps(manifest: &Manifest, object: &Object, copy: &VolumeCopy, line: &mut dyn FnMut(&str)) {
    let role = shell_word(manifest.server.bootstrap_role.as_str());
    let name_of = |volume: &str| format!("\"$NAME-{}\"", volume.trim_start_matches('/'));
    let mounts: Vec<String> = copy.volumes.iter().map(|volume| format!("-v {}:{volume}", name_of(volume))).collect();
    let mounts = mounts.join(" ");
    line("## Unpack the volumes\n");
    if copy.incremental.is_none() {
        line("Into new ones, with the owners and modes they had. The image is needed for its `tar` only.\n");
    } else {
        line("Into new ones, with the owners and modes they had. The image is needed for its `perl` and its `tar`.");
        line("This backup holds what changed; the rest lies in earlier ones, whose folders must be beside this one.\n");
    }
    line("```sh");
    line(&format!("NAME=recovered-{}", manifest.cluster));
    line(&format!("IMAGE={}", shell_word(&manifest.image.name)));
    for volume in &copy.volumes {
        line(&format!("docker volume create {}", name_of(volume)));
    }
    if let (Some(incremental), Some(index)) = (&copy.incremental, manifest.blocks()) {
        line("# What is needed lies here unpacked for a while: it takes as much room as the databases do, and more.");
        line("WORK=$(mktemp -d)");
        line(&format!("{} > \"$WORK/index\"", reader(index)));
        line(&format!("{} > \"$WORK/0\"", reader(object)));
        for (place, ancestor) in incremental.ancestors.iter().enumerate() {
            line(&format!("{} > \"$WORK/{}\"", reader_of(&beside(ancestor)), place + 1));
        }
        line("cat > \"$WORK/tar.pl\" <<'PERL'");
        line(PUT_TOGETHER);
        line("PERL");
        line(&format!("docker run --rm --network none -u 0:0 {mounts} -v \"$WORK\":/parts:ro \\"));
        line("  --entrypoint sh \"$IMAGE\" -c 'perl /parts/tar.pl | tar -x -p --numeric-owner -C /'");
        line("rm -r \"$WORK\"");
    } else {
        line(&format!("{} | docker run --rm -i --network none -u 0:0 {mounts} \\", reader(object)));
        line("  --entrypoint tar \"$IMAGE\" -x -p --numeric-owner -C /");
    }
    line("```\n");
    line("## Start the server\n");
    if let Some(data) = copy.moved.first() {
        line(&format!(
            "Its data directory was `{}`, and is `{}` now. Files of settings and access rules that lay",
            data.from, data.to
        ));
        line("elsewhere are not in the backup: those in the data directory hold.\n");
    }
    line(
        "With another image, whose C library or ICU is of another version, text may sort otherwise: `REINDEX DATABASE` each",
    );
    line("database before anything searches in it.\n");
    match copy.mode {
        CopyMode::Hot => line(&format!(
            "It replays its WAL from {} to {} first, which is in the copy, and is consistent then. Nothing can reach it from",
            copy.start_lsn, copy.stop_lsn
        )),
        CopyMode::Cold => {
            line("The copy was made while the server was shut down: it starts at once. Nothing can reach it from");
        }
    }
    line("outside until you publish a port.\n");
    line("```sh");
    line(&format!(
        "docker run -d --name \"$NAME\" --network none {mounts} \\\n  -e PGDATA={} \"$IMAGE\"",
        shell_word(&copy.pgdata)
    ));
    line("in_server() { docker exec -i -u postgres \"$NAME\" \"$@\"; }");
    line(&format!("until in_server psql -X -U {role} -d postgres -c 'select 1' >/dev/null 2>&1; do sleep 1; done"));
    line(&format!("in_server psql -X -U {role} -d postgres -l"));
    line("```\n");
    line(
        "It is the cluster as it was when the backup ended, with its settings: look at `archive_command` and at subscriptions",
    );
    line("before you let it near what the old one still uses. `docker logs` tells why a server does not start.");
}

/// How one database of a set is restored into a new server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreStep<'a> {
    /// The database.
    pub database: &'a DatabaseName,
    /// It exists in every new server, so it is dropped and made again.
    pub replaces: bool,
    /// The database `pg_restore` connects to first.
    pub connect_to: &'static str,
}

/// The order in which databases are restored: `template1`, then `postgres`, each by way of the other, one after the other;
/// then the rest, which may go side by side.
pub fn restore_order<'a>(databases: impl Iterator<Item = &'a DatabaseName>) -> Vec<RestoreStep<'a>> {
    let mut steps: Vec<RestoreStep<'a>> = databases
        .map(|database| match database.as_str() {
            "postgres" => RestoreStep { database, replaces: true, connect_to: "template1" },
            "template1" => RestoreStep { database, replaces: true, connect_to: "postgres" },
            _ => RestoreStep { database, replaces: false, connect_to: "postgres" },
        })
        .collect();
    steps.sort_by_key(|step| match step.database.as_str() {
        "template1" => 0,
        "postgres" => 1,
        _ => 2,
    });
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup_set::manifest::tests::{encrypted_example, example};

    #[test]
    fn words_survive_the_shell() {
        assert_eq!(shell_word("db/we%20ird.dump.zst"), "db/we%20ird.dump.zst");
        assert_eq!(shell_word("it's $HOME"), r"'it'\''s $HOME'");
        assert_eq!(shell_word(""), "''");
    }

    #[test]
    fn databases_that_always_exist_come_first() {
        let manifest = example();
        let order: Vec<(&str, bool)> = restore_order(manifest.databases().map(|(name, _)| name))
            .iter()
            .map(|step| (step.database.as_str(), step.replaces))
            .collect();
        assert_eq!(order, [("template1", true), ("postgres", true), ("it's $HOME", false)]);
    }

    #[test]
    fn the_instructions_name_what_is_in_the_set() {
        let text = instructions(&example());
        for part in [
            "pglife/postgres:17",
            "'/data/table spaces/fast'",
            "db/it%27s%20%24HOME.dump.zst",
            "globals.sql.zst",
            "/data/17",
        ] {
            assert!(text.contains(part), "{part} is missing from:\n{text}");
        }
    }

    #[test]
    fn the_cover_of_an_encrypted_set_names_nothing_of_the_content() {
        let manifest = encrypted_example();
        let text = cover(&manifest);
        for part in ["age1t7rx", "(escrow)", "RECOVER.details.md.age", "db/0001.dump.zst.age", "chado"] {
            assert!(text.contains(part), "{part} is missing from:\n{text}");
        }
        for secret in ["HOME", "template1", "fast", "17", "pglife/postgres:", "sha256"] {
            let told =
                text.replace(manifest.set.as_str(), "").replace(&manifest.objects[0].stored.blake3.to_string(), "");
            assert!(!told.contains(secret), "{secret} is in:\n{text}");
        }
    }

    #[test]
    fn the_details_of_an_encrypted_set_open_its_objects() {
        let text = instructions(&encrypted_example());
        for part in [
            "age -d -i \"$IDENTITY\" globals.sql.zst.age | zstd -dc | in_server psql",
            "age -d -i \"$IDENTITY\" db/0002.dump.zst.age | zstd -dc | in_server pg_restore -U postgres -d template1",
            "recipe.json.age",
            "pglife/postgres:17",
        ] {
            assert!(text.contains(part), "{part} is missing from:\n{text}");
        }
        assert!(!instructions(&example()).contains("age -d"));
    }

    #[test]
    fn each_object_is_unpacked_with_what_it_was_packed_with() {
        let mut manifest = example();
        assert!(instructions(&manifest).contains("* Docker and `zstd`."));
        for object in &mut manifest.objects {
            object.name = object.name.replace(".zst", ".gz");
        }
        let text = instructions(&manifest);
        assert!(text.contains("* Docker and `gzip`.") && text.contains("gzip -dc globals.sql.gz |"), "{text}");
        assert!(!text.contains("zstd"), "{text}");
        let mut encrypted = encrypted_example();
        encrypted.objects[0].name = "globals.sql.gz.age".to_owned();
        assert!(cover(&encrypted).contains("* Docker, `age` and `gzip` and `zstd`."), "{}", cover(&encrypted));
        assert!(instructions(&encrypted).contains("globals.sql.gz.age | gzip -dc |"));
    }
}
