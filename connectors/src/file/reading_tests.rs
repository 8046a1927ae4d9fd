//! Files read through all layers: resumed behind every record, in every format and compression, and with bad input.

use std::io::Write;
use std::path::Path;

use millstream_runtime::error::{ErrorKind, Result};
use millstream_runtime::source::{Batch, OnBadRecord, Read, Source, SplitReader, Waker};
use serde::{Deserialize, Serialize};

use super::{CsvFiles, FileFormat, FilePosition, FileReader, FileSource, JsonLines};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Row {
    name: String,
    n: i64,
}

fn rows() -> Vec<Row> {
    let names = ["plain", "two\nlines", "win\r\ndows\r\n", "say \"hi\"", "", "a,b", "Zürich 東京", "\"", "\n", "last"];
    (0..40).map(|n| Row { name: names[n as usize % names.len()].to_string(), n }).collect()
}

/// Writes `text` in the compression that the name asks for, in two members.
fn write(path: &Path, text: &[u8]) {
    let mut file = std::fs::File::create(path).unwrap();
    for half in [&text[..text.len() / 2], &text[text.len() / 2..]] {
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("gz") => {
                let mut encoder = flate2::write::GzEncoder::new(&mut file, flate2::Compression::default());
                encoder.write_all(half).unwrap();
                encoder.finish().unwrap();
            }
            Some("zst") => zstd::stream::copy_encode(half, &mut file, 3).unwrap(),
            _ => file.write_all(half).unwrap(),
        }
    }
}

fn csv_text(rows: &[Row], line_end: csv::Terminator) -> Vec<u8> {
    let mut writer = csv::WriterBuilder::new().terminator(line_end).from_writer(Vec::new());
    rows.iter().for_each(|row| writer.serialize(row).unwrap());
    writer.into_inner().unwrap()
}

fn json_text(rows: &[Row], line_end: &str) -> Vec<u8> {
    rows.iter()
        .flat_map(|row| format!("{}{line_end}", serde_json::to_string(row).unwrap()).into_bytes())
        .collect()
}

fn waker() -> Waker {
    Waker::new(|| {})
}

fn open<F: FileFormat>(source: &FileSource<F>, from: Option<FilePosition>) -> Result<FileReader<F>> {
    source.open(&source.splits()?[0], from, waker())
}

/// Reads to the end in pieces of the lengths that `piece` yields.
fn read_all<F: FileFormat>(reader: &mut FileReader<F>, mut piece: impl FnMut() -> usize) -> Result<Batch<F::Item>> {
    let mut all = Batch::default();
    loop {
        let mut batch = Batch::default();
        let max = piece();
        let read = reader.read(max, &mut batch)?;
        assert!(batch.records.len() + batch.bad.len() <= max);
        all.records.append(&mut batch.records);
        all.bad.append(&mut batch.bad);
        if read == Read::Ended {
            return Ok(all);
        }
    }
}

/// Reads everything, and then again from the position behind every record, sent through JSON as a checkpoint would.
fn check_resumes<F: FileFormat<Item = Row>>(source: &FileSource<F>, expected: &[Row]) {
    let mut state = 7_u64;
    let random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        1 + (state >> 60) as usize
    };
    assert_eq!(read_all(&mut open(source, None).unwrap(), random).unwrap().records, expected);

    let mut reader = open(source, None).unwrap();
    let mut taken = 0;
    loop {
        let position = serde_json::to_string(&reader.position()).unwrap();
        let position: FilePosition = serde_json::from_str(&position).unwrap();
        let mut resumed = open(source, Some(position.clone())).unwrap();
        assert!(resumed.position().byte >= position.byte);
        assert_eq!(read_all(&mut resumed, || 3).unwrap().records, expected[taken..], "from {position:?}");
        let mut batch = Batch::default();
        let read = reader.read(1, &mut batch).unwrap();
        taken += batch.records.len();
        if read == Read::Ended {
            break;
        }
    }
    assert_eq!(taken, expected.len());
}

#[test]
fn when_resumed_behind_any_record_then_the_rest_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let rows = rows();
    for packing in ["", ".gz", ".zst"] {
        for (line_end, text_end) in [(csv::Terminator::Any(b'\n'), "\n"), (csv::Terminator::CRLF, "\r\n")] {
            let path = dir.path().join(format!("rows.csv{packing}"));
            write(&path, &csv_text(&rows, line_end));
            check_resumes(&CsvFiles::<Row>::new([path]), &rows);
            let path = dir.path().join(format!("rows.jsonl{packing}"));
            write(&path, &json_text(&rows, text_end));
            check_resumes(&JsonLines::<Row>::new([path]), &rows);
        }
    }
}

#[test]
fn when_a_file_is_longer_than_the_buffer_then_nothing_changes() {
    let dir = tempfile::tempdir().unwrap();
    let rows: Vec<Row> = (0..1_500).flat_map(|_| rows()).collect();
    for packing in ["", ".gz", ".zst"] {
        let path = dir.path().join(format!("rows.csv{packing}"));
        write(&path, &csv_text(&rows, csv::Terminator::CRLF));
        let source = CsvFiles::<Row>::new([path]);
        let mut reader = open(&source, None).unwrap();
        let mut taken = 0;
        loop {
            let mut batch = Batch::default();
            let read = reader.read(4_999, &mut batch).unwrap();
            assert_eq!(batch.records, rows[taken..][..batch.records.len()]);
            taken += batch.records.len();
            let mut resumed = open(&source, Some(reader.position())).unwrap();
            assert_eq!(resumed.position(), reader.position());
            assert_eq!(read_all(&mut resumed, || 777).unwrap().records, rows[taken..]);
            if read == Read::Ended {
                break;
            }
        }
        assert_eq!(taken, rows.len());
    }
}

/// Whatever is in a file: the bad records, too, are the same after a resume, and nothing panics.
#[test]
fn when_bytes_are_random_then_resuming_agrees() {
    fn check<F: FileFormat<Item = Row>>(source: &FileSource<F>) {
        let Ok(mut reader) = open(source, None) else { return };
        let all = read_all(&mut open(source, None).unwrap(), || 2).unwrap();
        let (mut records, mut bad) = (0, 0);
        loop {
            let rest = read_all(&mut open(source, Some(reader.position())).unwrap(), || 3).unwrap();
            assert_eq!((&rest.records[..], &rest.bad[..]), (&all.records[records..], &all.bad[bad..]));
            let mut batch = Batch::default();
            let read = reader.read(1, &mut batch).unwrap();
            (records, bad) = (records + batch.records.len(), bad + batch.bad.len());
            if read == Read::Ended {
                break;
            }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows");
    let pieces: [&[u8]; 12] =
        [b"\n", b"\n", b"\r\n", b"\r", b"\"", b"\"", b",", b",", b"a", b"1", b"\xff", b"{\"name\":\"b\",\"n\":2}"];
    let mut state = 3_u64;
    for _ in 0..300 {
        let mut text = b"name,n\n".to_vec();
        for _ in 0..40 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            text.extend_from_slice(pieces[(state >> 33) as usize % pieces.len()]);
        }
        write(&path, &text);
        check(&CsvFiles::<Row>::new([&path]).keep_bad_records());
        check(&JsonLines::<Row>::new([&path]).keep_bad_records());
    }
}

#[test]
fn a_series_is_read_in_the_order_of_names_and_resumed_in_any_file() {
    let dir = tempfile::tempdir().unwrap();
    let rows = rows();
    let paths: Vec<_> = ["c.csv.gz", "a.csv", "empty.csv", "b.csv.zst"].map(|name| dir.path().join(name)).into();
    for (path, part) in paths.iter().zip([&rows[20..], &rows[..5], &[], &rows[5..20]]) {
        write(path, &csv_text(part, csv::Terminator::CRLF));
    }
    let source = CsvFiles::<Row>::new(paths.clone()).series();
    assert_eq!(source.splits().unwrap(), ["series(a.csv … empty.csv, 4 files)"]);
    let reversed = CsvFiles::<Row>::new(paths.into_iter().rev()).series();
    assert_eq!(reversed.splits().unwrap(), source.splits().unwrap());
    check_resumes(&source, &rows);

    let elsewhere = FilePosition { file: "x.csv".to_string(), byte: 0, line: 1 };
    let error = open(&source, Some(elsewhere)).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::State);
    assert!(error.to_string().contains("x.csv"), "{error}");
}

#[test]
fn files_are_splits_by_their_paths() {
    let dir = tempfile::tempdir().unwrap();
    let paths = ["b.csv", "a.csv"].map(|name| dir.path().join(name));
    let source = CsvFiles::<Row>::new(paths.clone());
    write(&paths[1], b"n,name\n1,a\n");
    let error = source.splits().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("b.csv` does not exist"), "{error}");
    write(&paths[0], b"name,n\nb,2\n");
    assert_eq!(source.splits().unwrap(), paths.clone().map(|path| path.to_str().unwrap().to_string()));
    let mut second = source.open(paths[1].to_str().unwrap(), None, waker()).unwrap();
    assert_eq!(read_all(&mut second, || 10).unwrap().records, [Row { name: "a".to_string(), n: 1 }]);

    for wrong in [CsvFiles::<Row>::new([dir.path()]), CsvFiles::new([&paths[0], &paths[0]]), CsvFiles::new([""; 0])] {
        assert_eq!(wrong.splits().unwrap_err().kind(), ErrorKind::Config);
    }
}

#[test]
fn bad_records_are_reported_with_their_lines_and_reading_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let csv = dir.path().join("rows.csv");
    let mut text = b"name,n\r\n\"two\nlines\",1\nbad,x\n\nb,2,3\nc\xff,3\n\"d\n\",y\ne,5\n".to_vec();
    text.extend(format!("f,{}\ng,7\n\"never,8\nclosed\n", "9".repeat(2_000)).into_bytes());
    write(&csv, &text);
    let source = CsvFiles::<Row>::new([&csv]).keep_bad_records();
    let all = read_all(&mut open(&source, None).unwrap(), || 1).unwrap();
    assert_eq!(all.records.iter().map(|row| row.n).collect::<Vec<_>>(), [1, 5, 7]);
    assert_eq!(all.bad.iter().map(|bad| bad.line).collect::<Vec<_>>(), [4, 6, 7, 8, 11, 13]);
    assert_eq!(all.bad[0].text, "bad,x");
    assert_eq!(all.bad[0].split, csv.to_str().unwrap());
    assert_eq!(all.bad[4].text.len(), 1_000);
    assert!(all.bad[5].reason.contains("never closed"));

    let json = dir.path().join("rows.jsonl");
    write(&json, b"{\"name\":\"a\",\"n\":1}\n\n  \n{\"name\":\n{\"name\":\"\xff\",\"n\":1}\n{\"name\":\"b\",\"n\":2}");
    let source = JsonLines::<Row>::new([&json]).on_bad_record(OnBadRecord::Drop);
    let all = read_all(&mut open(&source, None).unwrap(), || 2).unwrap();
    assert_eq!(all.records.iter().map(|row| row.n).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(all.bad.iter().map(|bad| bad.line).collect::<Vec<_>>(), [4, 5]);

    let source = CsvFiles::<Row>::new([&csv]);
    let error = read_all(&mut open(&source, None).unwrap(), || 10).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data);
    assert!(error.to_string().contains("rows.csv:4: field `n`"), "{error}");
    assert!(error.to_string().contains("OnBadRecord::Drop"), "{error}");
}

#[test]
fn when_resumed_then_bad_records_have_the_same_lines() {
    let dir = tempfile::tempdir().unwrap();
    for packing in ["", ".gz"] {
        let path = dir.path().join(format!("rows.csv{packing}"));
        write(&path, b"name,n\na,1\n\"b\n\",2\nbad,x\nc,3\n");
        let source = CsvFiles::<Row>::new([&path]).keep_bad_records();
        let mut reader = open(&source, None).unwrap();
        reader.read(2, &mut Batch::default()).unwrap();
        let mut resumed = open(&source, Some(reader.position())).unwrap();
        assert_eq!(read_all(&mut resumed, || 1).unwrap().bad[0].line, 5);
    }
}

#[test]
fn a_compressed_file_that_is_cut_off_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    for packing in ["gz", "zst"] {
        let path = dir.path().join(format!("rows.csv.{packing}"));
        write(&path, &csv_text(&rows(), csv::Terminator::CRLF));
        let bytes = std::fs::read(&path).unwrap();
        for length in [bytes.len() - 1, bytes.len() / 2 + 10, 4] {
            std::fs::write(&path, &bytes[..length]).unwrap();
            let source = CsvFiles::<Row>::new([&path]).keep_bad_records();
            let error = open(&source, None).and_then(|mut reader| read_all(&mut reader, || 5)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::External, "{error}");
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        }
    }
}

#[test]
fn empty_files_have_no_records() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a.csv", "a.csv.gz", "a.csv.zst"] {
        let path = dir.path().join(name);
        for text in ["", "name,n", "\n\nname,n\n\n"] {
            write(&path, text.as_bytes());
            if text.is_empty() {
                std::fs::write(&path, "").unwrap();
            }
            let all = read_all(&mut open(&CsvFiles::<Row>::new([&path]), None).unwrap(), || 5).unwrap();
            assert_eq!((all.records.len(), all.bad.len()), (0, 0));
        }
    }
}

#[test]
fn when_a_file_became_shorter_then_its_position_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for packing in ["", ".gz", ".zst"] {
        let path = dir.path().join(format!("rows.csv{packing}"));
        write(&path, b"name,n\na,1\n");
        let position = FilePosition { file: path.to_str().unwrap().to_string(), byte: 12, line: 3 };
        let error = open(&CsvFiles::<Row>::new([&path]), Some(position)).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::State, "{error}");
    }
}

/// A row was taken out, or made longer, above where a checkpoint stands. A last row without a line feed may get one later.
#[test]
fn when_a_position_is_in_the_midst_of_a_row_then_it_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for packing in ["", ".gz", ".zst"] {
        let path = dir.path().join(format!("rows.csv{packing}"));
        let opened = |text: &str, byte: u64| {
            write(&path, text.as_bytes());
            let position = FilePosition { file: path.to_str().unwrap().to_string(), byte, line: 3 };
            open(&CsvFiles::<Row>::new([&path]), Some(position))
        };
        for byte in [8, 9, 12, 13] {
            let error = opened("name,n\na,1\nb,2\n", byte).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::State, "{error}");
            assert!(error.to_string().contains("has no beginning of a record at byte"), "{error}");
        }
        for (text, byte, rows) in [
            ("name,n\na,1\nb,2\n", 11, 1),
            ("name,n\na,1", 10, 0),
            ("name,n\na,1\nb,2\n", 10, 1),
            ("name,n\na,1\r\nb,2", 10, 1),
        ] {
            let all = read_all(&mut opened(text, byte).unwrap(), || 5).unwrap();
            assert_eq!((all.records.len(), all.bad.len()), (rows, 0), "{text:?} from {byte}");
        }
        let error = opened("name,n\na,12\n", 10).err().unwrap();
        assert!(error.to_string().contains("was changed since"), "{error}");
    }
}
