//! The only place that prints: data on stdout, everything else on stderr.
//!
//! When the reader of stdout is gone (`pglife backups list | head -1`) the rest is dropped in silence: the reader has
//! what it wanted.

use std::io::{self, Write as _};

use clap::ValueEnum;
use comfy_table::{Table, presets};
use serde::Serialize;

use super::Failure;
use crate::exit::Exit;

/// How the answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// Columns for people.
    #[default]
    Table,
    /// More columns.
    Wide,
    /// One document.
    Json,
    /// One item a line.
    Jsonl,
    /// One document.
    Yaml,
}

impl Format {
    /// True for the formats that programs read.
    pub fn is_for_programs(self) -> bool {
        match self {
            Self::Table | Self::Wide => false,
            Self::Json | Self::Jsonl | Self::Yaml => true,
        }
    }
}

/// Prints.
#[derive(Debug, Clone)]
pub struct Output {
    format: Format,
    quiet: bool,
}

/// The frame of every JSON and YAML answer.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a, T> {
    api_version: &'static str,
    kind: &'a str,
    items: &'a [T],
}

const API_VERSION: &str = "pglife/v1";

impl Output {
    /// Prints in `format`; notes are dropped when `quiet`.
    pub fn new(format: Format, quiet: bool) -> Self {
        Self { format, quiet }
    }

    /// The format that was asked for.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Prints the answer: `items` for programs, or the table made by `table`, which is told whether it may be wide.
    /// `kind` names the list: `BackupList`.
    pub fn items<T: Serialize>(
        &self,
        kind: &str,
        items: &[T],
        table: impl FnOnce(bool) -> Table,
    ) -> Result<(), Failure> {
        self.data(&self.render(kind, items, table)?)
    }

    fn render<T: Serialize>(
        &self,
        kind: &str,
        items: &[T],
        table: impl FnOnce(bool) -> Table,
    ) -> Result<String, Failure> {
        let unwritable =
            |error: anyhow::Error| Failure::new(Exit::Failed, error.context("the answer cannot be written"));
        let document = Document { api_version: API_VERSION, kind, items };
        let mut text = match self.format {
            Format::Table | Format::Wide => show(&table(self.format == Format::Wide)),
            Format::Json => serde_json::to_string_pretty(&document).map_err(|error| unwritable(error.into()))?,
            Format::Jsonl => {
                let lines: Result<Vec<String>, _> = items.iter().map(serde_json::to_string).collect();
                lines.map_err(|error| unwritable(error.into()))?.join("\n")
            }
            Format::Yaml => serde_norway::to_string(&document).map_err(|error| unwritable(error.into()))?,
        };
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        Ok(text)
    }

    /// Prints data that has a format of its own: a script, a schema, a file.
    pub fn data(&self, text: &str) -> Result<(), Failure> {
        self.bytes(text.as_bytes())
    }

    /// Prints bytes as they are.
    pub fn bytes(&self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Failure::new(Exit::Failed, anyhow::Error::new(error).context("stdout cannot be written")))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Tells the operator something that is not the answer.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            complain(text);
        }
    }

    /// One line about how far it is.
    pub fn progress(&self, line: &str) {
        complain(line);
    }

    /// Tells why the command failed; for programs the last line is JSON.
    pub fn failure(&self, failure: &Failure) {
        complain(&failure.to_string());
        if let Format::Json | Format::Jsonl = self.format {
            complain(&exit_error(failure));
        }
    }
}

/// Asks a question on stderr, without ending the line.
pub(super) fn prompt(question: &str) -> Result<(), Failure> {
    let mut stderr = io::stderr().lock();
    let asked = stderr.write_all(question.as_bytes()).and_then(|()| stderr.flush());
    asked.map_err(|error| Failure::new(Exit::Refused, anyhow::Error::new(error).context("nobody can be asked")))
}

/// The last line on stderr of a command that failed, for programs.
#[derive(Serialize)]
struct ExitError<'a> {
    message_type: &'static str,
    code: u8,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<&'a str>,
}

fn exit_error(failure: &Failure) -> String {
    let line = ExitError {
        message_type: "exit_error",
        code: failure.exit.code(),
        message: failure.chain().join(": "),
        next: failure.next.as_deref(),
    };
    serde_json::to_string(&line).unwrap_or_default()
}

/// One line or more to stderr. There is nobody left to tell when that fails.
fn complain(text: &str) {
    let mut stderr = io::stderr().lock();
    writeln!(stderr, "{text}").ok();
}

/// A table with these column heads: no borders, two spaces between columns.
pub fn table(heads: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(heads.iter().copied());
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

fn show(table: &Table) -> String {
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Item {
        name: &'static str,
        bytes: u64,
    }

    fn rendered(format: Format, items: &[Item]) -> String {
        let output = Output::new(format, false);
        let text = output.render("ItemList", items, |wide| {
            let mut table = table(if wide { &["NAME", "BYTES"] } else { &["NAME"] });
            for item in items {
                let mut row = vec![item.name.to_owned()];
                row.extend(wide.then(|| item.bytes.to_string()));
                table.add_row(row);
            }
            table
        });
        text.expect("it renders")
    }

    #[test]
    fn every_format_shows_the_items() {
        let items = [Item { name: "a long name", bytes: 7 }, Item { name: "b", bytes: 8 }];
        let all = [Format::Table, Format::Wide, Format::Json, Format::Jsonl, Format::Yaml]
            .map(|format| format!("-- {format:?}\n{}", rendered(format, &items)));
        insta::assert_snapshot!(all.concat(), @r#"
        -- Table
        NAME
        a long name
        b
        -- Wide
        NAME         BYTES
        a long name  7
        b            8
        -- Json
        {
          "apiVersion": "pglife/v1",
          "kind": "ItemList",
          "items": [
            {
              "name": "a long name",
              "bytes": 7
            },
            {
              "name": "b",
              "bytes": 8
            }
          ]
        }
        -- Jsonl
        {"name":"a long name","bytes":7}
        {"name":"b","bytes":8}
        -- Yaml
        apiVersion: pglife/v1
        kind: ItemList
        items:
        - name: a long name
          bytes: 7
        - name: b
          bytes: 8
        "#);
    }

    #[test]
    fn no_items_are_an_answer_too() {
        let all = [Format::Table, Format::Json, Format::Jsonl, Format::Yaml]
            .map(|format| format!("-- {format:?}\n{}", rendered(format, &[])));
        insta::assert_snapshot!(all.concat(), @r#"
        -- Table
        NAME
        -- Json
        {
          "apiVersion": "pglife/v1",
          "kind": "ItemList",
          "items": []
        }
        -- Jsonl
        -- Yaml
        apiVersion: pglife/v1
        kind: ItemList
        items: []
        "#);
    }

    #[test]
    fn programs_are_told_the_exit_code() {
        let failure = Failure::message(Exit::LockBusy, "the lock of chado is held").context("backup of chado failed");
        insta::assert_snapshot!(exit_error(&failure), @r#"{"message_type":"exit_error","code":11,"message":"backup of chado failed: the lock of chado is held"}"#);
    }
}
