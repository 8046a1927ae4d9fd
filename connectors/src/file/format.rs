//! From the bytes of one record to a value: CSV and JSON.

use std::marker::PhantomData;

use csv::StringRecord;
use millstream_runtime::record::Data;
use serde::de::DeserializeOwned;

/// A text format of one record after another, for [`FileSource`](crate::FileSource).
///
/// The source finds where records begin and end; a format turns the bytes of one into a value. Errors are reasons,
/// without the record's place or text: the source adds those.
pub trait FileFormat: Default + Send + 'static {
    /// What a record becomes.
    type Item: Data;
    /// A word or two for plans and logs.
    const KIND: &'static str;
    /// Whether line feeds inside `"quotes"` belong to a record, and the first record names the fields.
    const TABLE: bool;

    /// Takes the names of the fields; called for each file of a [`TABLE`](Self::TABLE), before its records.
    ///
    /// # Errors
    /// A reason when it is not a header.
    fn header(&mut self, _bytes: &[u8]) -> Result<(), String> {
        Ok(())
    }

    /// The value in `bytes`, or `None` for a blank record.
    ///
    /// # Errors
    /// A reason when there is no such value in it.
    fn decode(&mut self, bytes: &[u8]) -> Result<Option<Self::Item>, String>;
}

/// CSV with a header: fields go by their names into `T` by serde. Records with more or fewer fields than the header are
/// bad; empty lines are none.
#[derive(Debug)]
pub struct Csv<T> {
    header: StringRecord,
    record: StringRecord,
    field: String,
    to: PhantomData<fn() -> T>,
}

impl<T> Default for Csv<T> {
    fn default() -> Self {
        let (header, record) = Default::default();
        Csv { header, record, field: String::new(), to: PhantomData }
    }
}

impl<T: DeserializeOwned + Data> FileFormat for Csv<T> {
    type Item = T;
    const KIND: &'static str = "csv files";
    const TABLE: bool = true;

    fn header(&mut self, bytes: &[u8]) -> Result<(), String> {
        split_fields(text(bytes)?, &mut self.field, &mut self.header);
        Ok(())
    }

    fn decode(&mut self, bytes: &[u8]) -> Result<Option<T>, String> {
        if bytes.is_empty() {
            return Ok(None);
        }
        split_fields(text(bytes)?, &mut self.field, &mut self.record);
        if self.record.len() != self.header.len() {
            return Err(format!("{} fields where the header has {}", self.record.len(), self.header.len()));
        }
        self.record.deserialize(Some(&self.header)).map(Some).map_err(|e| self.reason(&e))
    }
}

impl<T> Csv<T> {
    fn reason(&self, error: &csv::Error) -> String {
        let csv::ErrorKind::Deserialize { err, .. } = error.kind() else {
            return error.to_string();
        };
        let name = err.field().and_then(|index| self.header.get(usize::try_from(index).ok()?));
        let reason = err.kind().to_string();
        match name {
            Some(name) => format!("field `{name}`: {reason}"),
            None if reason.starts_with("missing field") => {
                let names: Vec<String> = self.header.iter().map(|name| format!("`{name}`")).collect();
                format!("{reason}: the header has {}", names.join(", "))
            }
            None => reason,
        }
    }
}

/// One JSON value a line. Blank lines are passed over.
#[derive(Debug)]
pub struct Json<T>(PhantomData<fn() -> T>);

impl<T> Default for Json<T> {
    fn default() -> Self {
        Json(PhantomData)
    }
}

impl<T: DeserializeOwned + Data> FileFormat for Json<T> {
    type Item = T;
    const KIND: &'static str = "json lines";
    const TABLE: bool = false;

    fn decode(&mut self, bytes: &[u8]) -> Result<Option<T>, String> {
        if bytes.trim_ascii().is_empty() {
            return Ok(None);
        }
        serde_json::from_slice(bytes).map(Some).map_err(|e| {
            // Its line is always 1 here, and would be mistaken for the file's.
            let (message, column) = (e.to_string(), e.column());
            let place = format!(" at line {} column {column}", e.line());
            format!("{} (column {column})", message.trim_end_matches(&place))
        })
    }
}

fn text(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|e| format!("not valid UTF-8 from byte {} of the record", e.valid_up_to()))
}

/// Splits a record, which has no line ending any more, into its fields. `field` is scratch space.
///
/// Reads quotes as the `csv` crate does: they count at the start of a field only, and what follows the closing one is
/// added to the field.
fn split_fields(record: &str, field: &mut String, fields: &mut StringRecord) {
    fields.clear();
    if memchr::memchr(b'"', record.as_bytes()).is_none() {
        // Most records: one pass over all of it is much faster than a search per field.
        let mut start = 0;
        for comma in memchr::memchr_iter(b',', record.as_bytes()) {
            fields.push_field(&record[start..comma]);
            start = comma + 1;
        }
        return fields.push_field(&record[start..]);
    }
    let mut rest = record;
    loop {
        if !rest.starts_with('"') {
            match memchr::memchr(b',', rest.as_bytes()) {
                None => return fields.push_field(rest),
                Some(comma) => {
                    fields.push_field(&rest[..comma]);
                    rest = &rest[comma + 1..];
                    continue;
                }
            }
        }
        field.clear();
        rest = &rest[1..];
        // Inside quotes; a quote ends them unless another follows.
        while let Some(quote) = memchr::memchr(b'"', rest.as_bytes()) {
            field.push_str(&rest[..quote]);
            rest = &rest[quote + 1..];
            if !rest.starts_with('"') {
                break;
            }
            field.push('"');
            rest = &rest[1..];
        }
        let end = memchr::memchr(b',', rest.as_bytes());
        field.push_str(&rest[..end.unwrap_or(rest.len())]);
        fields.push_field(field);
        match end {
            None => return,
            Some(comma) => rest = &rest[comma + 1..],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::frames::Frames;
    use super::super::input::Input;
    use super::*;
    use serde::Deserialize;

    #[derive(Clone, Debug, PartialEq, Deserialize)]
    struct Row {
        name: String,
        n: i32,
    }

    /// Numbers that look random, the same ones in every run.
    fn next_random(state: &mut u64) -> u64 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    }

    #[test]
    fn when_text_is_random_then_records_are_those_of_the_csv_crate() {
        let mut state = 0x9e37_79b9_7f4a_7c15;
        let (mut field, mut ours) = (String::new(), StringRecord::new());
        for _ in 0..20_000 {
            let length = 1 + next_random(&mut state) % 20;
            let text: String = (0..length)
                .map(|_| ["\"", "\"", ",", "a", "é", " ", "\n", "\r\n"][(next_random(&mut state) % 8) as usize])
                .collect();
            let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(text.as_bytes());
            let mut theirs = reader.records();
            let mut frames = Frames::new(Input::Packed(Box::new(std::io::Cursor::new(text.clone()))), true);
            while let Some(frame) = frames.next().unwrap() {
                if frame.defect.is_some() {
                    break;
                }
                if !frame.bytes.is_empty() {
                    split_fields(std::str::from_utf8(frame.bytes).unwrap(), &mut field, &mut ours);
                    assert_eq!(ours, theirs.next().unwrap().unwrap(), "{text:?}");
                }
            }
        }
    }

    #[test]
    fn csv_goes_by_the_names_of_the_fields() {
        let mut csv = Csv::<Row>::default();
        csv.header(b"n,more,\"name\"").unwrap();
        let row = Row { name: "a, \"b\"\nc".to_string(), n: -3 };
        assert_eq!(csv.decode(b"-3,,\"a, \"\"b\"\"\nc\""), Ok(Some(row)));
        assert_eq!(csv.decode(b""), Ok(None));
    }

    #[test]
    fn reasons_name_the_field() {
        let mut csv = Csv::<Row>::default();
        csv.header(b"name,n").unwrap();
        assert_eq!(csv.decode(b"a,b").unwrap_err(), "field `n`: invalid digit found in string");
        assert_eq!(csv.decode(b"a").unwrap_err(), "1 fields where the header has 2");
        assert_eq!(csv.decode(b"a\xff,1").unwrap_err(), "not valid UTF-8 from byte 1 of the record");
        csv.header(b"name,m").unwrap();
        assert_eq!(csv.decode(b"a,1").unwrap_err(), "missing field `n`: the header has `name`, `m`");
        let mut json = Json::<Row>::default();
        assert_eq!(
            json.decode(b"{\"name\": 3}").unwrap_err(),
            "invalid type: integer `3`, expected a string (column 10)"
        );
        assert_eq!(json.decode(b" \t").unwrap(), None);
    }
}
