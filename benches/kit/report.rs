//! Where figures go: into a file as JSON as soon as they are known, and into tables that are printed at the end.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use serde_json::Value;

/// All figures of a run.
pub struct Report {
    json: Option<File>,
    tables: Vec<Table>,
}

struct Table {
    title: &'static str,
    header: &'static [&'static str],
    rows: Vec<Vec<String>>,
}

impl Report {
    /// `json`: the file to append to, if any.
    pub fn new(json: Option<&Path>) -> std::io::Result<Self> {
        let open = |path| File::options().create(true).append(true).open(path);
        Ok(Report { json: json.map(open).transpose()?, tables: Vec::new() })
    }

    /// A line of the table of that title.
    pub fn row(&mut self, title: &'static str, header: &'static [&'static str], row: Vec<String>) {
        let at = self.tables.iter().position(|table| table.title == title).unwrap_or_else(|| {
            self.tables.push(Table { title, header, rows: Vec::new() });
            self.tables.len() - 1
        });
        self.tables[at].rows.push(row);
    }

    /// A figure for programs.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn json(&mut self, figure: &Value) {
        if let Some(file) = &mut self.json {
            writeln!(file, "{figure}").expect("the figure is written");
        }
    }

    pub fn print(&self) {
        self.tables.iter().for_each(Table::print);
    }
}

impl Table {
    /// Markdown, so that it can be copied into a document: text to the left, numbers to the right.
    fn print(&self) {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells.chain([self.header[column].len()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.header.len()).map(width).collect();
        let numeric = |column: usize| {
            let number = |cell: &String| cell.starts_with(|c: char| c.is_ascii_digit());
            self.rows.iter().any(|row| number(&row[column]))
                && self.rows.iter().all(|row| row[column].is_empty() || number(&row[column]))
        };
        let line = |cells: &mut dyn Iterator<Item = &str>| {
            let cell = |(column, cell): (usize, &str)| {
                if numeric(column) {
                    format!(" {cell:>width$} |", width = widths[column])
                } else {
                    format!(" {cell:<width$} |", width = widths[column])
                }
            };
            println!("|{}", cells.enumerate().map(cell).collect::<String>());
        };
        println!("\n{}\n", self.title);
        line(&mut self.header.iter().copied());
        let rule = |column: usize| if numeric(column) { "-:|" } else { "--|" };
        println!(
            "|{}",
            widths
                .iter()
                .enumerate()
                .map(|(c, width)| format!("{}{}", "-".repeat(*width), rule(c)))
                .collect::<String>()
        );
        for row in &self.rows {
            line(&mut row.iter().map(String::as_str));
        }
    }
}

/// Median, least and greatest of several runs.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// # Panics
    /// When there is no value.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        Spread { median: values[values.len() / 2], min: values[0], max: values[values.len() - 1] }
    }
}
