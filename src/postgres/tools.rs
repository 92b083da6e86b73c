//! The server's own tools: where they are, and running one as a child whose verdict is its exit code and its stderr.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;

use crate::cluster::PgMajor;

use super::control_data::ControlData;
use super::{Login, PostgresError};

/// Where the tools of one major are, and how its children log in.
#[derive(Debug)]
pub struct Toolbox {
    folder: PathBuf,
    major: PgMajor,
    login: Login,
    /// `.pgpass` in the container's memory, where there is a password. Removed with the toolbox.
    passfile: Option<tempfile::TempPath>,
}

impl Toolbox {
    /// Finds the tools of `major`: Debian's folder, the official image's, Bitnami's, then `PATH`. A tool in `PATH` counts only
    /// if it says it is of that major, because Debian's wrapper of the same name picks a version by rules of its own.
    pub fn find(major: PgMajor, login: &Login) -> Result<Self, PostgresError> {
        let mut folders: Vec<PathBuf> = vec![
            format!("/usr/lib/postgresql/{major}/bin").into(),
            format!("/usr/libexec/postgresql{major}").into(),
            format!("/usr/pgsql-{major}/bin").into(),
            "/usr/local/bin".into(),
            "/usr/local/pgsql/bin".into(),
            "/opt/bitnami/postgresql/bin".into(),
        ];
        if let Some(path) = std::env::var_os("PATH") {
            folders.extend(std::env::split_paths(&path));
        }
        let wanted = |folder: &PathBuf| {
            version_of(&folder.join("pg_dump")).is_some_and(|version| major_in(&version) == Some(major))
        };
        let Some(folder) = folders.iter().find(|folder| wanted(folder)).cloned() else {
            return Err(PostgresError::ToolMissing {
                tool: "pg_dump".to_owned(),
                major: major.to_string(),
                looked_in: folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", "),
            });
        };
        let passfile = match &login.password {
            None => None,
            Some(password) => Some(
                write_passfile(password.reveal())
                    .map_err(|source| PostgresError::ToolNotRun { tool: "pg_dump".to_owned(), source })?,
            ),
        };
        Ok(Self { folder, major, login: login.clone(), passfile })
    }

    /// Where `tool` is.
    pub fn path(&self, tool: &str) -> PathBuf {
        self.folder.join(tool)
    }

    /// What `tool --version` prints.
    pub fn version(&self, tool: &str) -> Option<String> {
        version_of(&self.folder.join(tool))
    }

    /// What the control file of the data directory `pgdata` says, whose server is of this major.
    pub fn control_data(&self, pgdata: &Path) -> Result<ControlData, PostgresError> {
        let tool = "pg_controldata";
        let failed = |error| PostgresError::ToolNotRun { tool: tool.to_owned(), source: std::io::Error::other(error) };
        ControlData::parse(&self.print(tool, pgdata.as_os_str())?).map_err(failed)
    }

    /// What `tool` prints when it is called with `argument`. An error has its own words.
    pub fn print(&self, tool: &str, argument: impl AsRef<OsStr>) -> Result<String, PostgresError> {
        let failed = |source| PostgresError::ToolNotRun { tool: tool.to_owned(), source };
        let output = self.command(tool).arg(argument).stdout(Stdio::piped()).output().map_err(failed)?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(failed(std::io::Error::other(said)));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// `tool` with the login in its environment (never the password: that is in a file) and nothing else of ours.
    pub fn command(&self, tool: &str) -> Command {
        let mut command = Command::new(self.folder.join(tool));
        command
            .env_clear()
            .env("PATH", &self.folder)
            .env("LC_ALL", "C")
            .env("LANG", "C")
            .env("HOME", "/tmp")
            .env("PGHOST", &self.login.host)
            .env("PGPORT", self.login.port.to_string())
            .env("PGUSER", self.login.user.as_str())
            .env("PGCONNECT_TIMEOUT", "15")
            .env("PGAPPNAME", "pglife")
            .env("PGOPTIONS", session_options(self.major))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        if let Some(passfile) = &self.passfile {
            command.env("PGPASSFILE", passfile);
        }
        command
    }
}

/// Settings for every session of a tool. They win over those of a database or role, which may be meant for an application
/// and would break a dump or a restore: a read-only default, a short time limit, `array_nulls` off (which would turn NULL
/// elements into the text "NULL").
pub(crate) fn session_options(major: PgMajor) -> String {
    let mut options = String::from(
        "-c lc_messages=C -c statement_timeout=0 -c lock_timeout=0 -c default_transaction_read_only=off -c array_nulls=on \
         -c role=none",
    );
    if major.is_at_least(10) {
        options.push_str(" -c idle_in_transaction_session_timeout=0");
    }
    if major.is_at_least(14) {
        // The end of a tool that is killed is seen even while its session waits for a lock.
        options.push_str(" -c client_connection_check_interval=1s");
    }
    options
}

fn write_passfile(password: &str) -> std::io::Result<tempfile::TempPath> {
    let path = tempfile::Builder::new().prefix(".pgpass-").tempfile()?.into_temp_path();
    let mut file = std::fs::OpenOptions::new().write(true).truncate(true).mode(0o600).open(&path)?;
    writeln!(file, "*:*:*:*:{}", password.replace('\\', r"\\").replace(':', r"\:"))?;
    Ok(path)
}

fn version_of(tool: &Path) -> Option<String> {
    let output = Command::new(tool).arg("--version").env("LC_ALL", "C").stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

/// The major in a line such as `pg_dump (PostgreSQL) 17.6 (Debian 17.6-1)` or `pg_dump (PostgreSQL) 9.4.26`.
fn major_in(version: &str) -> Option<PgMajor> {
    let number = version.split_once("(PostgreSQL) ")?.1.split_whitespace().next()?;
    let digits = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>();
    let mut parts = number.split('.');
    let first = digits(parts.next()?);
    if first.parse::<u16>().ok()? >= 10 {
        first.parse().ok()
    } else {
        format!("{first}.{}", digits(parts.next()?)).parse().ok()
    }
}

/// How long a tool that is asked to end may take to tell the server.
const GRACE: std::time::Duration = std::time::Duration::from_secs(2);

/// A running tool, with the end of its stderr kept.
#[derive(Debug)]
pub struct Tool {
    name: String,
    child: Child,
    stderr: Option<JoinHandle<Complaints>>,
}

/// The last lines a tool wrote to stderr.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Complaints {
    lines: VecDeque<String>,
    dropped: u64,
}

impl Complaints {
    /// Lines kept; older ones are counted only.
    const KEPT: usize = 40;
    /// Characters kept of one line.
    const LINE: usize = 1_000;

    fn push(&mut self, line: &str) {
        if self.lines.len() == Self::KEPT {
            self.lines.pop_front();
            self.dropped += 1;
        }
        self.lines.push_back(line.chars().take(Self::LINE).collect());
    }

    /// The lines, oldest first.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }

    /// True when the tool said nothing.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// The lines as one text.
    pub fn text(&self) -> String {
        let mut text = if self.dropped > 0 { format!("[{} earlier lines]\n", self.dropped) } else { String::new() };
        text.push_str(&self.lines().collect::<Vec<_>>().join("\n"));
        text
    }
}

/// How a tool ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// The tool's name.
    pub tool: String,
    /// Its exit status.
    pub status: ExitStatus,
    /// What it said on stderr.
    pub complaints: Complaints,
}

impl Ending {
    /// The tool ended by itself with exit code 0.
    pub fn succeeded(&self) -> bool {
        self.status.success()
    }

    /// What happened, in the tool's own words.
    pub fn describe(&self) -> String {
        let how = match (self.status.code(), self.status.signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("killed by signal {signal}"),
            (None, None) => "ended in an unknown way".to_owned(),
        };
        if self.complaints.is_empty() {
            format!("{}: {how}", self.tool)
        } else {
            format!("{}: {how}: {}", self.tool, self.complaints.text())
        }
    }
}

impl Tool {
    /// Starts `command`, whose stderr must be piped.
    pub fn start(name: &str, mut command: Command) -> Result<Self, PostgresError> {
        let failed = |source| PostgresError::ToolNotRun { tool: name.to_owned(), source };
        let mut child = command.spawn().map_err(failed)?;
        let stderr = child.stderr.take().map(|stderr| std::thread::spawn(move || drain(stderr)));
        Ok(Self { name: name.to_owned(), child, stderr })
    }

    /// The child's process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The child's stdout, where it was piped.
    pub fn stdout(&mut self) -> Option<std::process::ChildStdout> {
        self.child.stdout.take()
    }

    /// The child's stdin, where it was piped.
    pub fn stdin(&mut self) -> Option<std::process::ChildStdin> {
        self.child.stdin.take()
    }

    /// True once the child has ended; [`Tool::wait`] then returns at once.
    pub fn has_ended(&mut self) -> bool {
        // An error means that there is nothing to wait for.
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Ends the child; what it wrote so far is worthless.
    ///
    /// It is asked first: on SIGTERM `pg_dump` and `pg_restore` cancel what the server does for them. A session whose client
    /// is just gone goes on waiting for a lock, in front of everybody who comes after it.
    pub fn kill(&mut self) {
        let asked = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        // It may have ended by itself just now.
        if asked.is_some_and(|child| rustix::process::kill_process(child, rustix::process::Signal::TERM).is_ok()) {
            let deadline = std::time::Instant::now() + GRACE;
            while !self.has_ended() && std::time::Instant::now() < deadline {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
        self.child.kill().ok();
    }

    /// Waits for the end. The caller has read stdout to its end, or does not care.
    pub fn wait(mut self) -> Result<Ending, PostgresError> {
        let status =
            self.child.wait().map_err(|source| PostgresError::ToolNotRun { tool: self.name.clone(), source })?;
        let complaints = match self.stderr.take() {
            Some(thread) => thread.join().unwrap_or_default(),
            None => Complaints::default(),
        };
        Ok(Ending { tool: std::mem::take(&mut self.name), status, complaints })
    }
}

impl Drop for Tool {
    /// A tool that nobody waited for is ended: nothing may go on reading the database.
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.kill();
            self.child.wait().ok();
        }
    }
}

fn drain(stderr: ChildStderr) -> Complaints {
    let mut complaints = Complaints::default();
    let mut reader = BufReader::new(stderr);
    let mut line = Vec::new();
    loop {
        line.clear();
        match reader.read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return complaints,
            Ok(_) => complaints.push(String::from_utf8_lossy(&line).trim_end()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn majors_are_read_from_version_lines() {
        for (line, major) in [
            ("pg_dump (PostgreSQL) 17.6 (Debian 17.6-0+deb13u1)", "17"),
            ("pg_dump (PostgreSQL) 9.4.26", "9.4"),
            ("pg_dump (PostgreSQL) 18beta2", "18"),
        ] {
            assert_eq!(major_in(line), Some(major.parse().expect("a major")), "{line}");
        }
        assert_eq!(major_in("pg_dump 17"), None);
    }

    #[test]
    fn the_end_of_stderr_is_kept() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "for i in $(seq 100); do echo line $i >&2; done; exit 3"]).stderr(Stdio::piped());
        let ending = Tool::start("sh", command).expect("started").wait().expect("waited");
        assert_eq!(ending.status.code(), Some(3));
        assert_eq!(ending.complaints.lines().last(), Some("line 100"));
        assert!(
            ending.describe().starts_with("sh: exit code 3: [60 earlier lines]\nline 61\n"),
            "{}",
            ending.describe()
        );
    }

    #[test]
    fn a_killed_tool_is_not_a_success() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "kill -9 $$"]).stderr(Stdio::piped());
        let ending = Tool::start("sh", command).expect("started").wait().expect("waited");
        assert!(!ending.succeeded());
        assert_eq!(ending.describe(), "sh: killed by signal 9");
    }
}
