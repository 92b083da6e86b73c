//! Makes a data directory that came from another image one that pglife's image serves: with its settings, open to workers by the
//! socket, owned by its `postgres`. What the cluster's own files say stays, beside that.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::{Path, PathBuf};

use crate::worker::{Failure, SettleIn, Trouble};

use super::super::files::replace;

/// What the image needs, before and after what the cluster's own file says. Text and bytes before it must be kept: encodings of
/// settings files are anybody's.
const DEFAULTS: &str = "include_if_exists '/etc/pglife/defaults.conf'";
const CONFIG: &str = "include_if_exists '/etc/pglife/config.conf'";

/// The user map of `pg_ident.conf` by which workers enter.
const MAP: &str = "map=pglife";

/// Settles the data directory in. `users` is the text of `/etc/passwd`; `volume` holds everything that the server owns.
pub(super) fn settle_in(job: &SettleIn, volume: &Path, users: &str) -> Result<(), Failure> {
    let pgdata = Path::new(&job.pgdata);
    let failed = |error: io::Error| {
        Failure::from_error(Trouble::Other, &format!("making {} one of this image's failed", job.pgdata), &error)
    };
    let (uid, gid) = server_user(users)
        .ok_or_else(|| Failure::new(Trouble::Request, "the image has no user postgres in /etc/passwd"))?;
    let owner = fs::metadata(pgdata).map_err(failed)?;
    if (owner.uid(), owner.gid()) != (uid, gid) {
        give(volume, (owner.uid(), owner.gid()), (uid, gid)).map_err(failed)?;
    }
    for (name, change) in [
        ("postgresql.conf", settings as fn(&str, &SettleIn) -> Additions),
        ("pg_hba.conf", access_rules),
        ("pg_ident.conf", user_map),
    ] {
        let path = pgdata.join(name);
        let own = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            other => other.map_err(failed)?,
        };
        let additions = change(&String::from_utf8_lossy(&own), job);
        replace(&path, &additions.around(&own)).map_err(failed)?;
    }
    Ok(())
}

/// User and group of the server, of `/etc/passwd`.
fn server_user(users: &str) -> Option<(u32, u32)> {
    let line = users.lines().find(|line| line.starts_with("postgres:"))?;
    let mut fields = line.split(':').skip(2);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// Gives what belongs to user or group `from` in `folder` to those of `to`. Links are not followed.
fn give(folder: &Path, from: (u32, u32), to: (u32, u32)) -> io::Result<()> {
    let mut folders = vec![PathBuf::from(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let metadata = fs::symlink_metadata(&path)?;
            let (user, group) = (metadata.uid() == from.0, metadata.gid() == from.1);
            if user || group {
                lchown(&path, user.then_some(to.0), group.then_some(to.1))?;
            }
            if metadata.is_dir() {
                folders.push(path);
            }
        }
    }
    Ok(())
}

/// Text that is put before and after what a file has.
#[derive(Debug, Default, PartialEq, Eq)]
struct Additions {
    before: String,
    after: String,
}

impl Additions {
    fn around(&self, own: &[u8]) -> Vec<u8> {
        let ended = own.is_empty() || own.ends_with(b"\n");
        [self.before.as_bytes(), own, if ended { b"" } else { b"\n" }, self.after.as_bytes()].concat()
    }
}

/// What `postgresql.conf` gets.
fn settings(own: &str, job: &SettleIn) -> Additions {
    if own.lines().any(|line| line.trim() == CONFIG) {
        return Additions::default(); // it is of pglife's image
    }
    let mut after = "\n# Added by pglife when it restored this data directory, which another image had served from:\n# where clients and workers look for the server.\n\
        port = 5432\nunix_socket_directories = '/var/run/postgresql,/data/run'\n"
        .to_owned();
    if job.own_access_rules {
        after
            .push_str("# The access rules that were used lay outside the data directory, and are not in the backup.\n");
        for (name, file) in [("hba_file", "pg_hba.conf"), ("ident_file", "pg_ident.conf")] {
            after.push_str(&format!("{name} = '{}/{file}'\n", job.pgdata));
        }
    }
    after.push_str(&format!("# /config/*.conf: keep this the last line.\n{CONFIG}\n"));
    Additions { before: format!("# The image's defaults; anything below wins.\n{DEFAULTS}\n\n"), after }
}

/// What `pg_hba.conf` gets: the first rule that fits is the one that counts.
fn access_rules(own: &str, job: &SettleIn) -> Additions {
    if own.contains(MAP) {
        return Additions::default();
    }
    let role = quoted(job.role.as_str());
    let before = format!(
        "# Added by pglife when it restored this data directory: its workers enter by the socket (pg_ident.conf).\n\
         local all {role} peer {MAP}\nlocal replication {role} peer {MAP}\n\n"
    );
    Additions { before, after: String::new() }
}

/// What `pg_ident.conf` gets.
fn user_map(own: &str, job: &SettleIn) -> Additions {
    if own.lines().any(|line| line.split_whitespace().next() == Some("pglife")) {
        return Additions::default();
    }
    let role = quoted(job.role.as_str());
    Additions { before: String::new(), after: format!("pglife postgres {role}\npglife root {role}\n") }
}

/// A name in an access file: a quote in it is written twice (`next_token` in `hba.c`).
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::RoleName;

    fn job(role: &str, own_access_rules: bool) -> SettleIn {
        SettleIn { pgdata: "/data/17".to_owned(), role: RoleName::new(role).expect("a role"), own_access_rules }
    }

    #[test]
    fn what_the_cluster_says_stays() {
        let own = b"work_mem = 5MB # gr\xFC\xDF\nport = 6000";
        let text = settings(&String::from_utf8_lossy(own), &job("postgres", true)).around(own);
        let at = |part: &[u8]| text.windows(part.len()).position(|window| window == part);
        let order =
            [b"defaults.conf".as_slice(), own, b"\nport = 5432", b"hba_file = '/data/17/pg_hba.conf'", b"config.conf"];
        let places: Vec<Option<usize>> = order.iter().map(|part| at(part)).collect();
        assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{places:?}");
        assert!(at(b"/data/run").is_some());
        assert!(!settings("", &job("postgres", false)).after.contains("hba_file"));
    }

    #[test]
    fn workers_enter_whatever_the_role_is_called() {
        let rules = access_rules("local all all scram-sha-256\n", &job("shop \"keeper\"", false)).before;
        assert!(rules.contains("local all \"shop \"\"keeper\"\"\" peer map=pglife\n"), "{rules}");
        let map = user_map("# MAP\n", &job("shop", false)).after;
        assert_eq!(map, "pglife postgres \"shop\"\npglife root \"shop\"\n");
    }

    #[test]
    fn it_is_done_once() {
        for (change, own) in [
            (settings as fn(&str, &SettleIn) -> Additions, "port = 6000\n"),
            (access_rules, "host all all all md5\n"),
            (user_map, ""),
        ] {
            let once = change(own, &job("postgres", true)).around(own.as_bytes());
            let text = String::from_utf8(once).expect("text");
            assert_eq!(change(&text, &job("postgres", true)), Additions::default(), "{text}");
        }
    }

    #[test]
    fn the_server_is_the_user_postgres() {
        let users = "root:x:0:0:root:/root:/bin/sh\nxpostgres:x:1:1::/:/bin/sh\npostgres:x:70:71:Linux User,,,:/var/lib/postgresql:/bin/sh\n";
        assert_eq!(server_user(users), Some((70, 71)));
        assert_eq!(server_user("root:x:0:0::/root:/bin/sh\n"), None);
    }
}
