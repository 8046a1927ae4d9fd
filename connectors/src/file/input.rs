//! The bytes of a file, decompressed when its name ends in `.gz` or `.zst`.
//!
//! **Units**: all offsets count uncompressed bytes. A plain file is sought in; a compressed one has no index, so going
//! to an offset decompresses everything before it.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};

use flate2::read::MultiGzDecoder;
use millstream_runtime::error::{Error, Result};

/// Compressed bytes asked of the operating system at once.
const READ_AHEAD: usize = 256 << 10;

/// zstd's largest window; its own default refuses files made with `zstd --long`.
const ZSTD_WINDOW_LOG_MAX: u32 = 31;

/// An open file.
pub(super) enum Input {
    /// Bytes as they are on disk.
    Plain(File),
    /// Bytes that come out of a decompressor.
    Packed(Box<dyn Read + Send>),
}

impl Input {
    /// Opens the file at `path`.
    pub(super) fn open(path: &str) -> Result<Input> {
        let failed = |e: io::Error| Error::external(format!("file `{path}` cannot be opened")).because(e);
        let length = check(path)?;
        let file = File::open(path).map_err(failed)?;
        // A compressed file of no bytes at all is not a valid archive, but there is no record in it either.
        if length == 0 {
            return Ok(Input::Plain(file));
        }
        if path.ends_with(".gz") {
            let reader = BufReader::with_capacity(READ_AHEAD, file);
            Ok(Input::Packed(Box::new(MultiGzDecoder::new(reader))))
        } else if path.ends_with(".zst") {
            let reader = BufReader::with_capacity(READ_AHEAD, file);
            let mut decoder = zstd::Decoder::with_buffer(reader).map_err(failed)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(failed)?;
            Ok(Input::Packed(Box::new(decoder)))
        } else {
            Ok(Input::Plain(file))
        }
    }

    /// Seeks to `byte` in a plain file that has that many; `false` where that is impossible.
    pub(super) fn seek(&mut self, byte: u64) -> io::Result<bool> {
        match self {
            Input::Plain(file) if file.metadata()?.len() >= byte => {
                file.seek(SeekFrom::Start(byte))?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Input::Plain(file) => file.read(buffer),
            Input::Packed(decoder) => decoder.read(buffer),
        }
    }
}

/// Makes sure that `path` is a file that can be read again after a crash, and returns its length on disk.
pub(super) fn check(path: &str) -> Result<u64> {
    let metadata = std::fs::metadata(path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => {
            let here = std::env::current_dir().map_or_else(|_| "?".into(), |dir| dir.display().to_string());
            Error::config(format!("file `{path}` does not exist")).hint(format!("looked for it from `{here}`"))
        }
        _ => Error::external(format!("file `{path}` cannot be read")).because(e),
    })?;
    if metadata.is_dir() {
        return Err(
            Error::config(format!("`{path}` is a directory, not a file")).hint("name the files in it one by one")
        );
    }
    if !metadata.is_file() {
        return Err(Error::config(format!("`{path}` is a pipe or device, which cannot be read again after a crash"))
            .hint("copy it to a file first, or read it in the program and send the records through a channel"));
    }
    Ok(metadata.len())
}
