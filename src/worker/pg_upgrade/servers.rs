//! The programs of both majors at work, as the user who owns the data.

use std::fs::File;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::cluster::PgMajor;
use crate::postgres::pg_upgrade::{self, Parity, Places};
use crate::postgres::tools::{Tool, Toolbox, session_options};

use super::super::process::Line;
use super::super::upgrade::nobody;
use super::super::{Failure, Trouble};
use super::{Pair, installation};

/// How often a program is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// Lines that are told of a file that `pg_upgrade` names.
const TOLD_OF_FILE: usize = 20;

/// `what` failed because of `error`.
pub(super) fn failed_io(what: &str, error: &std::io::Error) -> Failure {
    let trouble = match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Trouble::Full,
        _ => Trouble::Other,
    };
    Failure::from_error(trouble, what, error)
}

/// The programs of one major.
#[derive(Debug)]
pub(super) struct Programs {
    pub(super) major: PgMajor,
    folder: PathBuf,
    libraries: Option<PathBuf>,
    owner: (u32, u32),
    scratch: PathBuf,
    /// Settings of every session, which a server of either major takes.
    session: String,
}

impl Programs {
    /// Those of the image that this worker runs in, as the owner of the old data.
    pub(super) fn of_image(major: PgMajor, old_data: &str) -> Result<Self, Failure> {
        let folder = folder_of_image(major)?;
        let (owner, scratch) = (owner_of(old_data)?, PathBuf::from("/tmp"));
        Ok(Self { major, folder, libraries: None, owner, scratch, session: session_options(major) })
    }

    /// One of them, with nothing of ours in its environment, as the owner of the data.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = self.plain(self.folder.join(program));
        command.uid(self.owner.0).gid(self.owner.1);
        command
    }

    /// The same as root, who is let in by a running server of ours.
    pub(super) fn command_as_root(&self, program: &str) -> Command {
        self.plain(self.folder.join(program))
    }

    fn plain(&self, program: PathBuf) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", format!("{}:/usr/local/bin:/usr/bin:/bin", self.folder.display()))
            .env("LC_ALL", "C")
            .env("HOME", "/tmp")
            .env("PGOPTIONS", &self.session)
            .current_dir(&self.scratch)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        if let Some(libraries) = &self.libraries {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        command
    }

    /// Runs it to its end; where somebody asks to stop, ends it.
    pub(super) fn run(name: &str, command: Command, line: &Line) -> Result<(), Failure> {
        let mut tool = Tool::start(name, command)?;
        while !tool.has_ended() {
            if line.stop.is_cancelled() {
                tool.kill();
                return Err(Failure::new(Trouble::Cancelled, "cancelled"));
            }
            std::thread::sleep(LOOK);
        }
        let ending = tool.wait()?;
        if ending.succeeded() { Ok(()) } else { Err(Failure::new(Trouble::Tool, ending.describe())) }
    }

    /// A folder of the owner, and the ones above it.
    pub(super) fn make_folder(&self, folder: &Path) -> Result<(), Failure> {
        let made = || -> std::io::Result<()> {
            std::fs::create_dir_all(folder)?;
            std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))?;
            chown(folder, Some(self.owner.0), Some(self.owner.1))
        };
        made().map_err(|error| failed_io(&format!("making {}", folder.display()), &error))
    }

    /// Makes a data directory as the image makes them, but like the old cluster where both must be alike.
    pub(super) fn initialise(&self, data: &Path, parity: &Parity, line: &Line) -> Result<(), Failure> {
        self.make_folder(data)?;
        let mut command = self.plain("pglife-initdb".into());
        command.uid(self.owner.0).gid(self.owner.1);
        command.arg(data).arg(parity.role.as_str()).args(parity.initdb_options(self.major));
        Self::run("initdb", command, line)?;
        if parity.checksums {
            return Ok(());
        }
        // The image makes them; before 18 no option of initdb says that they are not wanted.
        let mut command = self.command("pg_checksums");
        command.arg("--disable").arg("--pgdata").arg(data);
        Self::run("pg_checksums", command, line)
    }
}

fn folder_of_image(major: PgMajor) -> Result<PathBuf, Failure> {
    let toolbox = Toolbox::find(major, &nobody())?;
    Ok(toolbox.path("postgres").parent().map(Path::to_path_buf).unwrap_or_default())
}

/// User and group that a data directory belongs to.
fn owner_of(data: &str) -> Result<(u32, u32), Failure> {
    let data = std::fs::metadata(data).map_err(|error| failed_io(&format!("the old data directory {data}"), &error))?;
    Ok((data.uid(), data.gid()))
}

/// The programs of both majors.
#[derive(Debug)]
pub(super) struct Servers {
    pub(super) old: Programs,
    pub(super) new: Programs,
    scratch: PathBuf,
}

impl Servers {
    /// Makes the folder they work in. That the old programs run here is seen before anything is begun.
    pub(super) fn prepare(pair: &Pair) -> Result<Self, Failure> {
        let libraries = PathBuf::from(&pair.old.libraries);
        installation::keep_missing(&libraries)?;
        let scratch = PathBuf::from(&pair.scratch);
        let owner = owner_of(&pair.old_data)?;
        let of = |major, folder: PathBuf, libraries| Programs {
            major,
            folder,
            libraries,
            owner,
            scratch: scratch.clone(),
            session: session_options(pair.old.major),
        };
        let folder = folder_of_image(pair.to)?;
        let old = of(pair.old.major, PathBuf::from(&pair.old.programs), Some(libraries.clone()));
        // pg_upgrade itself runs with them, because it starts the old ones; its own are not among them.
        let new = of(pair.to, folder, Some(libraries));
        new.make_folder(&scratch)?;
        let servers = Self { old, new, scratch };
        for (name, text) in [
            ("postgresql.conf", pg_upgrade::settings(&servers.scratch, &pair.preloaded)),
            ("pg_hba.conf", "local all all trust\n".to_owned()),
            ("pg_ident.conf", String::new()),
        ] {
            let file = servers.scratch.join(name);
            std::fs::write(&file, text).map_err(|error| failed_io(&format!("writing {}", file.display()), &error))?;
        }
        servers.try_old()?;
        Ok(servers)
    }

    fn try_old(&self) -> Result<(), Failure> {
        for program in ["postgres", "pg_ctl", "pg_controldata", "pg_resetwal", "pg_dumpall", "psql"] {
            let output = self.old.command(program).arg("--version").output();
            let why = match output {
                Ok(output) if output.status.success() => continue,
                Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
                Err(error) => error.to_string(),
            };
            return Err(Failure::new(
                Trouble::ToolMissing,
                format!("{program} of PostgreSQL {} does not run in the new image: {why}", self.old.major),
            ));
        }
        Ok(())
    }

    /// What the programs say they are.
    pub(super) fn versions(&self) -> Vec<String> {
        let version = |programs: &Programs, program: &str| {
            let output = programs.command(program).arg("--version").output().ok()?;
            Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        [version(&self.new, "pg_upgrade"), version(&self.old, "postgres")].into_iter().flatten().collect()
    }

    /// Runs `pg_upgrade`; returns the file with all that it said, every file that it copied included where that is `verbose`.
    pub(super) fn upgrade(
        &self,
        (old, new): (&Path, &Path),
        pair: &Pair,
        verbose: bool,
        line: &Line,
    ) -> Result<PathBuf, Failure> {
        let output = self.scratch.join("pg_upgrade.out");
        let file =
            File::create(&output).map_err(|error| failed_io(&format!("writing {}", output.display()), &error))?;
        let places = Places { programs: (&self.old.folder, &self.new.folder), data: (old, new), folder: &self.scratch };
        let mut command = self.new.command("pg_upgrade");
        command
            .args(pg_upgrade::arguments(&places, (self.old.major, self.new.major), &pair.parity.role, pair.jobs))
            .args(verbose.then_some("--verbose"))
            .stdout(file);
        match Programs::run("pg_upgrade", command, line) {
            Ok(()) => Ok(output),
            Err(failure) if failure.trouble == Trouble::Cancelled => Err(failure),
            Err(failure) => Err(self.explain(&output, failure)),
        }
    }

    /// The failure in the words of `pg_upgrade`, and of the files that it names.
    fn explain(&self, output: &Path, failure: Failure) -> Failure {
        let Ok(said) = std::fs::read(output) else { return failure };
        let said = String::from_utf8_lossy(&said);
        let told = pg_upgrade::failure(&said);
        // On stderr it only repeats what servers warn of.
        let mut message = if told.is_empty() { failure.message } else { "pg_upgrade failed:".to_owned() };
        for text in &told {
            message.push('\n');
            message.push_str(text);
        }
        for name in pg_upgrade::files_named(&told) {
            // Older ones name it relative to where they run.
            let Ok(bytes) = std::fs::read(self.scratch.join(name)) else { continue };
            let text = String::from_utf8_lossy(&bytes);
            for text in pg_upgrade::worth_telling(&text, TOLD_OF_FILE) {
                message.push_str("\n    ");
                message.push_str(text);
            }
        }
        Failure::new(failure.trouble, message)
    }
}
