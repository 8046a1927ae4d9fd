//! A measurement as files: a page to look at, figures for scripts, histograms for tools.
//!
//! | file | what is in it |
//! |---|---|
//! | `NAME.html` | one page with plots and tables; needs no network and no other file |
//! | `NAME.json` | the [`Figures`] |
//! | `NAME.hlog` | the latencies of every second, as an [HdrHistogram log](super::hlog) |
//!
//! The page holds the figures as JSON and draws them itself, so that it fits a phone as well as a wide screen. Whatever comes
//! from outside (names, settings) is data to it, never markup.
//!
//! **Errors**: `Config` for a name that is no file name; `External` when a file cannot be written.

use std::path::{Path, PathBuf};

use super::figures::Figures;
use super::hlog::hlog;
use super::measurement::Measurement;
use crate::error::{Error, Result};

const PAGE: &str = include_str!("report.html");

/// Writes the three files of a report into `dir`, which is made when it is not there; files of the same name are replaced.
/// Returns their paths, the page first.
///
/// # Errors
/// When `name` is no file name, or a file cannot be written.
pub fn write(measurement: &Measurement, dir: &Path, name: &str) -> Result<Vec<PathBuf>> {
    if name.is_empty() || name.starts_with('.') || name.contains(['/', '\\', '\0']) {
        return Err(
            Error::config(format!("`{name}` cannot be the name of a report")).hint("a file name without dots in front")
        );
    }
    let figures = Figures::new(measurement);
    let files = [
        ("html", html(&figures, &measurement.job).into_bytes()),
        ("json", figures.json(true).into_bytes()),
        ("hlog", hlog(measurement)?),
    ];
    let failed =
        |path: &Path, error: std::io::Error| Error::external(format!("cannot write {}", path.display())).because(error);
    std::fs::create_dir_all(dir).map_err(|error| failed(dir, error))?;
    let mut written = Vec::new();
    for (extension, content) in files {
        let path = dir.join(format!("{name}.{extension}"));
        std::fs::write(&path, content).map_err(|error| failed(&path, error))?;
        written.push(path);
    }
    Ok(written)
}

/// The page: the template with the figures in it.
pub fn html(figures: &Figures, title: &str) -> String {
    // The title stands in front, so what the figures hold is never taken for its place.
    PAGE.replacen("{{FIGURES}}", &in_script(&figures.json(false)), 1)
        .replacen("{{TITLE}}", &escaped(title), 1)
}

/// Text as HTML says it.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// JSON that may stand in a script element: nothing in it can end the element or begin another.
fn in_script(json: &str) -> String {
    json.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}

#[cfg(test)]
mod tests {
    use super::super::example;
    use super::*;

    #[test]
    fn three_files_are_written() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("new");
        let written = write(&example::measurement(3), &dir, "spend").unwrap();
        let names: Vec<_> = written.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["spend.html", "spend.json", "spend.hlog"]);
        assert!(written.iter().all(|path| path.metadata().unwrap().len() > 1_000));
    }

    #[test]
    fn what_comes_from_outside_is_never_markup() {
        let mut measurement = example::measurement(3);
        let evil = "</script><script>alert(1)</script>{{FIGURES}}";
        measurement.job = evil.to_string();
        measurement.operators[0].name = evil.to_string();
        let page = html(&Figures::new(&measurement), evil);
        assert!(!page.contains("alert(1)</script>"));
        assert_eq!(page.matches("<script").count(), PAGE.matches("<script").count());
        let json = page.split_once("<script type=\"application/json\" id=\"figures\">").unwrap().1;
        let json = json.split_once("</script>").unwrap().0;
        let value: serde_json::Value = serde_json::from_str(json).unwrap();
        assert_eq!((&value["job"], &value["operators"][0]["name"]), (&evil.into(), &evil.into()));
    }

    #[test]
    fn the_page_asks_for_nothing_from_the_network() {
        for outside in ["http:", "https:", "src=", "@import", "url(", "<link"] {
            // The name of the language of drawings is no address that is asked for.
            assert!(!PAGE.replace("http://www.w3.org/2000/svg", "").contains(outside), "{outside}");
        }
    }

    #[test]
    fn a_name_that_is_none_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["", "..", "a/b", ".hidden"] {
            let error = write(&Measurement::default(), dir.path(), name).unwrap_err();
            assert!(error.to_string().contains("cannot be the name"), "{error}");
        }
    }

    #[test]
    #[ignore = "writes examples to look at into the directory that PAGES names"]
    fn pages_to_look_at() {
        let dir = PathBuf::from(std::env::var("PAGES").unwrap());
        write(&example::measurement(60), &dir, "one").unwrap();
        write(&Measurement::merged((1..=5).map(|n| example::measurement(10 + n))).unwrap(), &dir, "five").unwrap();
        write(&example::measurement(4_000), &dir, "long").unwrap();
        write(&Measurement::default(), &dir, "empty").unwrap();
    }
}
