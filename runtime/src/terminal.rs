//! What the command line says. Nobody may be reading any more, or the disk that keeps the log is full: that is no reason for a job to die,
//! as it would of the panic of `println!` and `eprintln!`.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};

use crate::error::{Error, Result};

/// A line on standard error, if it can be written.
pub(crate) fn tell(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Lines on standard output. Somebody may stop to read them, as `head` does: then they are left out.
pub(crate) fn print(lines: impl Display) -> Result<()> {
    printed(writeln!(io::stdout(), "{lines}"))
}

/// What became of writing to standard output.
pub(crate) fn printed(written: io::Result<()>) -> Result<()> {
    match written {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Error::external("the output cannot be written").because(error))
        }
        _ => Ok(()),
    }
}
