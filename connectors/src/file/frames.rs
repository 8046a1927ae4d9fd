//! Cuts a stream of bytes into records without looking into them.
//!
//! A record ends at a line feed; with quotes (CSV) only at one outside quotes. A carriage return before that line feed
//! belongs to the line ending; one anywhere else is text. Where a quote begins, doubles or ends follows the `csv` crate,
//! so both agree on where records end.
//!
//! **Units**: bytes (uncompressed) counted from 0, lines counted from 1.

use std::io::{self, Read};

use memchr::{memchr, memchr_iter, memchr2};

use super::input::Input;

/// The longest record that is still read.
pub(super) const MAX_RECORD: usize = 16 << 20;

/// How much of a longer one is kept to be shown.
const HEAD: usize = 4_000;

/// The buffer's length at first; it grows when a record does not fit.
const BUFFER: usize = 256 << 10;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The bytes of one record, without its line ending.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    /// The bytes, or the first of them when there is a defect.
    pub(super) bytes: &'a [u8],
    /// The line on which the record begins.
    pub(super) line: u64,
    /// Why the bytes cannot be taken for a record.
    pub(super) defect: Option<&'static str>,
}

/// Reads frames from a file.
pub(super) struct Frames {
    input: Input,
    quotes: bool,
    buffer: Vec<u8>,
    /// What of the buffer is read and not yet taken.
    start: usize,
    end: usize,
    /// The first bytes of a record that is too long, while they are no longer in the buffer.
    head: Vec<u8>,
    /// Offset of `start` in the file.
    byte: u64,
    line: u64,
    /// Where in the buffer the last record is.
    last: std::ops::Range<usize>,
}

impl Frames {
    /// Frames from the start of `input`; `quotes` when quoted fields may contain line feeds.
    pub(super) fn new(input: Input, quotes: bool) -> Frames {
        Frames {
            input,
            quotes,
            buffer: vec![0; BUFFER],
            start: 0,
            end: 0,
            head: Vec::new(),
            byte: 0,
            line: 1,
            last: 0..0,
        }
    }

    /// Offset behind the last frame.
    pub(super) fn byte(&self) -> u64 {
        self.byte
    }

    /// The last frame with its line ending, until the next one is asked for; `None` before the first and after the last.
    pub(super) fn last(&self) -> Option<&[u8]> {
        let bytes = self.buffer.get(self.last.clone()).filter(|bytes| !bytes.is_empty())?;
        let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        Some(bytes.strip_suffix(b"\r").unwrap_or(bytes))
    }

    /// The line that begins there.
    pub(super) fn line(&self) -> u64 {
        self.line
    }

    /// Goes on at the record that begins at `byte` and `line`, as [`byte`](Self::byte) and [`line`](Self::line) told
    /// earlier. Otherwise says what the file does there instead: it has fewer bytes, or no record that begins there.
    pub(super) fn skip_to(&mut self, byte: u64, line: u64) -> io::Result<Result<(), &'static str>> {
        // The byte before is looked at.
        let before = byte.saturating_sub(1);
        if before > self.byte && self.input.seek(before)? {
            (self.start, self.end, self.byte) = (0, 0, before);
        }
        let mut last = b'\n';
        while self.byte < byte {
            if self.start == self.end && !self.fill()? {
                return Ok(Err("ends before"));
            }
            let take = (self.end - self.start).min(usize::try_from(byte - self.byte).unwrap_or(usize::MAX));
            self.start += take;
            self.byte += take as u64;
            last = self.buffer[self.start - 1];
        }
        // The last record of a file may end without a line feed, which comes when the file goes on.
        if last != b'\n' && (self.start < self.end || self.fill()?) && !matches!(self.buffer[self.start], b'\n' | b'\r')
        {
            return Ok(Err("has no beginning of a record at"));
        }
        self.line = line.max(self.line);
        Ok(Ok(()))
    }

    /// Gives file and buffer up; the place stays known.
    pub(super) fn close(&mut self) {
        self.input = Input::Packed(Box::new(io::empty()));
        self.buffer = Vec::new();
        (self.start, self.end) = (0, 0);
    }

    /// The next record, empty ones included; `None` at the end.
    pub(super) fn next(&mut self) -> io::Result<Option<Frame<'_>>> {
        let line = self.line;
        let mut scan = Scan { at: 0, state: State::FieldStart };
        let mut too_long = false;
        if self.byte == 0 {
            self.skip_byte_order_mark()?;
        }
        let (length, terminated) = loop {
            if let Some(length) = scan.record(&self.buffer[self.start..self.end], self.quotes) {
                break (length, true);
            }
            if self.end - self.start > MAX_RECORD {
                self.keep_head(&mut too_long);
                self.consume(self.end - self.start);
                scan.at = 0;
            }
            if !self.fill()? {
                if self.start == self.end && !too_long {
                    self.last = 0..0;
                    return Ok(None);
                }
                break (self.end - self.start, false);
            }
        };
        if length > MAX_RECORD {
            self.keep_head(&mut too_long);
        }
        let from = self.start;
        self.last = from..from + length;
        self.consume(length);
        let defect = match scan.state {
            State::Quoted => Some("a quoted field is never closed"),
            _ if too_long => Some("the record is longer than 16 MiB"),
            _ => None,
        };
        if too_long {
            return Ok(Some(Frame { bytes: &self.head, line, defect }));
        }
        let mut bytes = &self.buffer[from..from + length];
        if terminated {
            bytes = &bytes[..length - 1];
        }
        if scan.state != State::Quoted {
            bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
        }
        Ok(Some(Frame { bytes, line, defect }))
    }

    fn keep_head(&mut self, too_long: &mut bool) {
        if !*too_long {
            let head = self.start..self.end.min(self.start + HEAD);
            self.head.clear();
            self.head.extend_from_slice(&self.buffer[head]);
            *too_long = true;
        }
    }

    fn skip_byte_order_mark(&mut self) -> io::Result<()> {
        while self.end < BYTE_ORDER_MARK.len() && self.fill()? {}
        if self.buffer[..self.end].starts_with(BYTE_ORDER_MARK) {
            self.consume(BYTE_ORDER_MARK.len());
        }
        Ok(())
    }

    fn consume(&mut self, length: usize) {
        let taken = &self.buffer[self.start..self.start + length];
        self.line += memchr_iter(b'\n', taken).count() as u64;
        self.start += length;
        self.byte += length as u64;
    }

    /// Reads more; `false` at the end of the file.
    fn fill(&mut self) -> io::Result<bool> {
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        if self.end == self.buffer.len() {
            self.buffer.resize(self.end * 2, 0);
        }
        loop {
            match self.input.read(&mut self.buffer[self.end..]) {
                Ok(0) => return Ok(false),
                Ok(n) => {
                    self.end += n;
                    return Ok(true);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

/// Where a scan for the end of a record stands in the record's syntax.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    FieldStart,
    Unquoted,
    Quoted,
    /// Behind a quote inside quotes: the end of the field, or half of a doubled quote.
    QuoteInQuoted,
}

/// A search for the end of one record, which goes on where it stopped when more bytes have come.
struct Scan {
    at: usize,
    state: State,
}

impl Scan {
    /// The length of the record that begins at `bytes[0]`, with its line feed, if that is there.
    fn record(&mut self, bytes: &[u8], quotes: bool) -> Option<usize> {
        if !quotes {
            return self.jump(bytes, memchr(b'\n', &bytes[self.at..]));
        }
        if self.state == State::FieldStart && self.at == 0 {
            // Most records have no quote at all; those need no closer look.
            match memchr2(b'\n', b'"', bytes) {
                Some(end) if bytes[end] == b'\n' => return Some(end + 1),
                Some(_) => {}
                None => {
                    self.at = bytes.len();
                    if bytes.last().is_some_and(|&last| last != b',') {
                        self.state = State::Unquoted;
                    }
                    return None;
                }
            }
        }
        while self.at < bytes.len() {
            match self.state {
                State::Quoted => {
                    self.jump(bytes, memchr(b'"', &bytes[self.at..]))?;
                    self.state = State::QuoteInQuoted;
                    continue;
                }
                State::Unquoted => {
                    self.jump(bytes, memchr2(b'\n', b',', &bytes[self.at..]))?;
                    self.at -= 1;
                }
                State::FieldStart | State::QuoteInQuoted => {}
            }
            let byte = bytes[self.at];
            self.at += 1;
            self.state = match byte {
                b'\n' => {
                    self.state = State::FieldStart;
                    return Some(self.at);
                }
                b',' => State::FieldStart,
                b'"' => State::Quoted,
                _ => State::Unquoted,
            };
        }
        None
    }

    /// Moves behind `found`, an index from `self.at` on, or to the end.
    fn jump(&mut self, bytes: &[u8], found: Option<usize>) -> Option<usize> {
        self.at = found.map_or(bytes.len(), |index| self.at + index + 1);
        found.map(|_| self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hands out its bytes in pieces of the given length.
    struct Pieces(Vec<u8>, usize);

    impl Read for Pieces {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let n = self.1.min(self.0.len()).min(buffer.len());
            buffer[..n].copy_from_slice(&self.0[..n]);
            self.0.drain(..n);
            Ok(n)
        }
    }

    fn frames(bytes: &[u8], piece: usize, quotes: bool) -> Frames {
        Frames::new(Input::Packed(Box::new(Pieces(bytes.to_vec(), piece))), quotes)
    }

    fn all(bytes: &[u8], piece: usize, quotes: bool) -> Vec<(String, u64)> {
        let mut frames = frames(bytes, piece, quotes);
        let mut all = Vec::new();
        while let Some(frame) = frames.next().unwrap() {
            all.push((String::from_utf8_lossy(frame.bytes).into_owned(), frame.line));
        }
        assert_eq!(frames.byte(), bytes.len() as u64);
        all
    }

    #[test]
    fn line_feeds_end_records_but_not_inside_quotes() {
        let text = b"a,b\r\n\"x\ny\",\"say \"\"hi\n\"\"\"\n\n5\" tall,\"\"\nend";
        for piece in [1, 2, 3, 7, 100] {
            let found = all(text, piece, true);
            let expected =
                [("a,b", 1), ("\"x\ny\",\"say \"\"hi\n\"\"\"", 2), ("", 5), ("5\" tall,\"\"", 6), ("end", 7)];
            assert_eq!(found, expected.map(|(text, line)| (text.to_string(), line)));
            assert_eq!(all(text, piece, false).len(), 7);
        }
    }

    #[test]
    fn a_byte_order_mark_is_not_part_of_the_first_record() {
        for piece in [1, 100] {
            assert_eq!(all(b"\xef\xbb\xbfa\nb", piece, true), [("a".to_string(), 1), ("b".to_string(), 2)]);
        }
        assert_eq!(all(b"", 1, true), []);
    }

    #[test]
    fn an_unclosed_quote_is_a_defect() {
        let mut frames = frames(b"a\nb,\"c\nd\n", 3, true);
        assert_eq!(frames.next().unwrap().unwrap().defect, None);
        let frame = frames.next().unwrap().unwrap();
        assert_eq!((frame.line, frame.bytes), (2, &b"b,\"c\nd\n"[..]));
        assert!(frame.defect.unwrap().contains("never closed"));
        assert!(frames.next().unwrap().is_none());
    }

    #[test]
    fn a_record_of_over_16_mib_is_passed_over() {
        for extra in [1, 40 << 20] {
            let mut text = b"first\n".to_vec();
            text.resize(text.len() + MAX_RECORD + extra, b'x');
            text.extend_from_slice(b",\"\n\"\nlast\n");
            let mut frames = Frames::new(Input::Packed(Box::new(io::Cursor::new(text))), true);
            assert_eq!(frames.next().unwrap().unwrap().bytes, b"first");
            let frame = frames.next().unwrap().unwrap();
            assert_eq!((frame.line, frame.bytes.len()), (2, HEAD));
            assert!(frame.defect.unwrap().contains("16 MiB"));
            let last = Frame { bytes: b"last", line: 4, defect: None };
            assert_eq!(frames.next().unwrap(), Some(last));
        }
    }

    #[test]
    fn skipping_needs_the_bytes_to_be_there() {
        let mut short = frames(b"a\nb\n", 1, false);
        assert_eq!(short.skip_to(5, 3).unwrap(), Err("ends before"));
        let mut enough = frames(b"a\nb\n", 1, false);
        assert_eq!(enough.skip_to(2, 2).unwrap(), Ok(()));
        assert_eq!(enough.next().unwrap(), Some(Frame { bytes: b"b", line: 2, defect: None }));
    }
}
