//! Rows as tables or as lines of JSON, printed as they come.

use std::io::{self, Write};

use clap::ValueEnum;
use serde_json::Value;

use crate::error::Result;
use crate::terminal::printed;

/// How state is printed.
#[derive(ValueEnum, Clone, Copy, Debug, Default)]
pub enum Format {
    /// In columns, for people
    #[default]
    Table,
    /// An object per line, for programs
    Json,
}

/// What stands in a column.
pub(super) enum Cell<'a> {
    Value(&'a Value),
    /// JSON already.
    Json(&'a str),
}

/// So many rows of a table are looked at before its first one is printed.
const LOOK: usize = 500;

/// Prints rows as they come. Somebody may stop to read them, as `head` does: then the rest is left out.
pub(super) struct Printer {
    out: io::BufWriter<io::Stdout>,
    format: Format,
    columns: Vec<&'static str>,
    /// The first rows of a table, from which widths are taken.
    first: Vec<Vec<String>>,
    widths: Vec<usize>,
    /// Nobody reads any more, or it failed.
    closed: bool,
    failed: Option<io::Error>,
}

impl Printer {
    pub(super) fn new(format: Format) -> Self {
        let out = io::BufWriter::new(io::stdout());
        Printer { out, format, columns: Vec::new(), first: Vec::new(), widths: Vec::new(), closed: false, failed: None }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    pub(super) fn columns(&mut self, columns: &[&'static str]) {
        self.columns = columns.to_vec();
    }

    pub(super) fn row(&mut self, values: &[Value]) {
        let cells: Vec<_> = values.iter().map(Cell::Value).collect();
        self.cells(&cells);
    }

    pub(super) fn cells(&mut self, cells: &[Cell<'_>]) {
        match self.format {
            Format::Json => {
                let fields = self.columns.iter().zip(cells).map(|(column, cell)| {
                    let value = match cell {
                        Cell::Value(value) => harmless(&value.to_string()),
                        Cell::Json(text) => harmless(text),
                    };
                    format!("\"{}\":{value}", column)
                });
                let line = format!("{{{}}}", fields.collect::<Vec<_>>().join(","));
                self.line(&line);
            }
            Format::Table => {
                let text = |cell: &Cell<'_>| match cell {
                    Cell::Value(Value::Null) => String::new(),
                    Cell::Value(Value::String(text)) => harmless(text),
                    Cell::Value(value) => harmless(&value.to_string()),
                    Cell::Json(text) => harmless(text),
                };
                let row: Vec<String> = cells.iter().map(text).collect();
                if self.widths.is_empty() {
                    self.first.push(row);
                    if self.first.len() == LOOK {
                        self.begin_table();
                    }
                } else {
                    self.table_row(&row);
                }
            }
        }
    }

    /// The widths are known: prints what was kept for them.
    fn begin_table(&mut self) {
        let header: Vec<String> = self.columns.iter().map(|column| column.replace('_', " ")).collect();
        self.first.insert(0, header);
        let first = std::mem::take(&mut self.first);
        let width = |column: usize| first.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        self.widths = (0..self.columns.len()).map(width).collect();
        first.iter().for_each(|row| self.table_row(row));
    }

    fn table_row(&mut self, row: &[String]) {
        let cells = row.iter().zip(&self.widths).map(|(text, width)| format!("{text:<width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        self.line(line.trim_end());
    }

    fn line(&mut self, line: &str) {
        if !self.closed {
            let written = writeln!(self.out, "{line}");
            self.check(written);
        }
    }

    pub(super) fn end(mut self) -> Result<()> {
        if matches!(self.format, Format::Table) && self.widths.is_empty() {
            self.begin_table();
        }
        if !self.closed {
            let flushed = self.out.flush();
            self.check(flushed);
        }
        match self.failed {
            Some(error) => printed(Err(error)),
            None => Ok(()),
        }
    }

    fn check(&mut self, written: io::Result<()>) {
        if let Err(error) = written {
            self.closed = true;
            self.failed = Some(error);
        }
    }
}

/// Text without what a terminal would obey. In JSON these can only stand in strings, where this is another way to write them.
fn harmless(text: &str) -> String {
    if !text.chars().any(char::is_control) {
        return text.to_string();
    }
    let escape = |c: char| if c.is_control() { format!("\\u{:04x}", c as u32) } else { c.to_string() };
    text.chars().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_written_out() {
        assert_eq!(harmless("\"a\u{9b}2J\u{7f}\""), "\"a\\u009b2J\\u007f\"");
        let back: String = serde_json::from_str(&harmless("\"a\u{9b}2J\u{7f}\"")).unwrap();
        assert_eq!(back, "a\u{9b}2J\u{7f}");
    }
}
