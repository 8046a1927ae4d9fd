//! A source of text files: which file is which split, and how they are read.
//!
//! **Shape**: one split per file, or all files as one split, a series, read in the order of their names.
//! **Errors**: `Config` for files that are not there, are no files, or are given twice; `State` for a position in a file
//! that is not part of the source; and those of `reader`.

use std::marker::PhantomData;
use std::path::PathBuf;

use millstream_runtime::error::{Error, Result};
use millstream_runtime::source::{OnBadRecord, Source, Waker};

use super::format::{Csv, FileFormat, Json};
use super::input;
use super::reader::{FilePosition, FileReader};

/// CSV files with a header as a source of `T`.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("orders.csv");
/// # std::fs::write(&path, "customer,cents\nada,250\n")?;
/// use millstream_connectors::CsvFiles;
/// use millstream_runtime::source::Source;
///
/// #[derive(Clone, serde::Deserialize)]
/// struct Order {
///     customer: String,
///     cents: i64,
/// }
///
/// let orders = CsvFiles::<Order>::new([path]);
/// assert_eq!(orders.splits()?.len(), 1);
/// # Ok(())
/// # }
/// ```
pub type CsvFiles<T> = FileSource<Csv<T>>;

/// Files of one JSON value a line as a source of `T`.
pub type JsonLines<T> = FileSource<Json<T>>;

/// Files of records in the format `F` as a source; see [`CsvFiles`] and [`JsonLines`].
///
/// Files whose names end in `.gz` or `.zst` are decompressed. Going back to a position in a plain file is a seek; in a
/// compressed one everything before it is decompressed and passed over, at roughly 400 MB (`.gz`) or 600 MB (`.zst`) of
/// uncompressed text a second. The files must not change while a job may still go back to them.
///
/// Lines end in `\n` or `\r\n`; CSV fields in quotes may contain either. A byte order mark is passed over. A record may
/// have 16 MiB.
#[derive(Debug)]
pub struct FileSource<F> {
    paths: Vec<PathBuf>,
    series: bool,
    on_bad_record: OnBadRecord,
    format: PhantomData<fn() -> F>,
}

impl<F> Clone for FileSource<F> {
    fn clone(&self) -> Self {
        FileSource { paths: self.paths.clone(), ..*self }
    }
}

impl<F: FileFormat> FileSource<F> {
    /// The files at `paths`, each as a split named by its path.
    pub fn new(paths: impl IntoIterator<Item = impl Into<PathBuf>>) -> Self {
        let paths = paths.into_iter().map(Into::into).collect();
        FileSource { paths, series: false, on_bad_record: OnBadRecord::Fail, format: PhantomData }
    }

    /// Reads all files as one split, one after another in the order of their paths: for files that continue one
    /// another, such as one a day, whose records would otherwise be far apart in event time.
    #[must_use]
    pub fn series(mut self) -> Self {
        self.series = true;
        self
    }

    /// What to do with records that cannot be read; unless told otherwise, the job fails.
    #[must_use]
    pub fn on_bad_record(mut self, choice: OnBadRecord) -> Self {
        self.on_bad_record = choice;
        self
    }

    /// Reports every bad record and fails for none of them, for a job that sends them to a side output.
    #[must_use]
    pub fn keep_bad_records(self) -> Self {
        self.on_bad_record(OnBadRecord::Drop)
    }

    /// All paths as text, in the order in which they are read.
    fn files(&self) -> Result<Vec<String>> {
        let to_text = |path: &PathBuf| {
            path.to_str().map(str::to_string).ok_or_else(|| {
                Error::config(format!("the path {path:?} is not valid UTF-8")).hint("rename the file, or link to it")
            })
        };
        let mut files = self.paths.iter().map(to_text).collect::<Result<Vec<_>>>()?;
        if files.is_empty() {
            return Err(Error::config(format!("no files were given to read {} from", F::KIND)));
        }
        let mut sorted = files.clone();
        sorted.sort_unstable();
        if let Some(twice) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::config(format!("file `{}` is given twice", twice[0])));
        }
        if self.series {
            files = sorted;
        }
        Ok(files)
    }
}

impl<F: FileFormat> Source for FileSource<F> {
    type Item = F::Item;
    type Position = FilePosition;
    type Reader = FileReader<F>;

    fn kind(&self) -> &'static str {
        F::KIND
    }

    fn splits(&self) -> Result<Vec<String>> {
        let files = self.files()?;
        files.iter().try_for_each(|file| input::check(file).map(drop))?;
        Ok(if self.series { vec![series_name(&files)] } else { files })
    }

    fn open(&self, split: &str, from: Option<FilePosition>, _waker: Waker) -> Result<FileReader<F>> {
        let mut files = self.files()?;
        if !self.series {
            files.retain(|file| file == split);
        }
        let (index, byte, line) = match &from {
            None => (0, 0, 1),
            Some(FilePosition { file, byte, line }) => {
                let index = files.iter().position(|name| name == file).ok_or_else(|| {
                    Error::state(format!("split `{split}` stands in file `{file}`, which is not one of its files"))
                        .hint("give the source the same paths as when the checkpoint was taken, or start fresh")
                })?;
                (index, *byte, *line)
            }
        };
        if files.is_empty() {
            return Err(Error::internal(format!("there is no split `{split}`")));
        }
        let fails = self.on_bad_record == OnBadRecord::Fail;
        FileReader::open(files.into_iter().skip(index).collect(), byte, line, fails)
    }
}

/// A name for all of `files` together that is the same whenever they are.
fn series_name(files: &[String]) -> String {
    let short = |file: &String| file.rsplit(['/', '\\']).next().unwrap_or(file).to_string();
    match files {
        [] => "series()".to_string(),
        [only] => format!("series({})", short(only)),
        [first, .., last] => format!("series({} … {}, {} files)", short(first), short(last), files.len()),
    }
}
