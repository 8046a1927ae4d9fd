//! Stored entries as people and programs outside of a job see them: keys and values as JSON, or typed, without restoring anything.
//!
//! A [`Reader`] knows the types of one state and nothing else. It takes blocks apart into [`Row`]s, which stay bytes until somebody
//! asks for more: to count them or to find one key, no value is decoded.
//!
//! **JSON** is for reading, and loses what JSON cannot say: infinities and "not a number" are `null`. Objects are sorted by name. A
//! value that is none in JSON (a map whose keys are structs) is shown as `{"bytes": "…"}`, its stored bytes in hexadecimal.

use std::any::{TypeId, type_name};
use std::fmt::Write as _;

use serde::Serialize;

use crate::key_group::{KeyGroup, group_of};
use crate::snapshot::{Key, StoredEntry, Value};
use crate::{Result, StateError, blocks, codec, hash, keyed, slices};

/// How the entries of a state are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// By key.
    Keyed,
    /// By slice and key.
    Sliced,
    /// By key group: a number of each.
    Marks,
    /// In a way that is not known here.
    Opaque,
}

/// One entry of a state. The order is that of its fields, so that sorted rows do not tell how they were written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    /// Which of the operator's states it belongs to.
    pub state: u8,
    /// The number of its slice, where there are slices.
    pub slice: Option<i64>,
    /// Its key as it is stored; none for marks.
    pub key: Vec<u8>,
    /// Its key group.
    pub group: KeyGroup,
    /// Its value as it is stored.
    pub value: Vec<u8>,
}

/// One of the types of a state.
#[derive(Clone, Copy)]
struct Shown {
    id: TypeId,
    name: &'static str,
    json: fn(&[u8]) -> Result<String>,
}

/// A key to look for: its group, and its bytes as they are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The group that it is in, if it is there.
    pub group: KeyGroup,
    /// Its bytes.
    pub key: Vec<u8>,
}

impl Wanted {
    /// Looks for `key`, which must serialise as the state's own keys do.
    ///
    /// # Errors
    /// When it cannot be serialised.
    pub fn new<Q: Serialize + ?Sized>(key: &Q) -> Result<Wanted> {
        Ok(Wanted { group: group_of(hash::hash_key(key)), key: codec::encode(key)? })
    }
}

/// A value of which users of the operator know only a part: what else it holds is the operator's own business.
pub trait Holds: Value {
    /// What users know.
    type Part: Value;
    /// That part, if there is one for the key.
    fn part(self) -> Option<Self::Part>;
}

/// Takes the bytes of a part out of those of a value.
pub type TakePart = fn(&[u8]) -> Result<Option<Vec<u8>>>;

/// See the module.
#[derive(Clone, Copy)]
pub struct Reader {
    form: Form,
    types: Option<(Shown, Shown)>,
    part: Option<(TypeId, TakePart)>,
    check_key: fn(KeyGroup, &[u8]) -> Result<()>,
    find: fn(&str) -> Result<Wanted>,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("form", &self.form).field("types", &self.type_names()).finish()
    }
}

impl Reader {
    /// For one value per key.
    pub fn keyed<K: Key, V: Value>() -> Reader {
        Reader {
            form: Form::Keyed,
            types: Some((shown::<K>(), shown::<V>())),
            part: None,
            check_key: check_key::<K>,
            find: find::<K>,
        }
    }

    /// As [`keyed`](Self::keyed), for values that can also be asked for as a part of them.
    pub fn keyed_with_part<K: Key, V: Holds>() -> Reader {
        let take: TakePart = |bytes| codec::decode::<V>(bytes)?.part().map(|part| codec::encode(&part)).transpose();
        Reader { part: Some((TypeId::of::<V::Part>(), take)), ..Reader::keyed::<K, V>() }
    }

    /// For one value per slice and key.
    pub fn sliced<K: Key, V: Value>() -> Reader {
        Reader { form: Form::Sliced, ..Reader::keyed::<K, V>() }
    }

    /// For a number per key group.
    pub fn marks() -> Reader {
        Reader { form: Form::Marks, ..Reader::opaque() }
    }

    /// For a state of which nothing is known: its entries can be counted and measured.
    pub fn opaque() -> Reader {
        let find = |_: &str| {
            let reason = "it has no keys that could be looked for".into();
            Err(StateError::Codec { what: "this state".into(), reason })
        };
        Reader { form: Form::Opaque, types: None, part: None, check_key: |_, _| Ok(()), find }
    }

    /// How its entries are told apart.
    pub fn form(&self) -> Form {
        self.form
    }

    /// The types of its keys and values, where it has such.
    pub fn type_names(&self) -> Option<(&'static str, &'static str)> {
        self.types.map(|(key, value)| (key.name, value.name))
    }

    /// Whether its keys and values are of these types.
    pub fn is_of<K: 'static, V: 'static>(&self) -> bool {
        self.types.is_some_and(|(key, value)| key.id == TypeId::of::<K>() && value.id == TypeId::of::<V>())
    }

    /// What takes a part of this type out of its values, where its keys are of that type and its values have such a part.
    pub fn part_of<K: 'static, P: 'static>(&self) -> Option<TakePart> {
        let keys = self.types.is_some_and(|(key, _)| key.id == TypeId::of::<K>());
        self.part.filter(|(part, _)| keys && *part == TypeId::of::<P>()).map(|(_, take)| take)
    }

    /// Adds the rows of a stored entry to `rows`; only those of one key, if one is `wanted`.
    ///
    /// # Errors
    /// When the entry is not of this form.
    pub fn rows(&self, entry: StoredEntry<'_>, wanted: Option<&[u8]>, rows: &mut Vec<Row>) -> Result<()> {
        let row = |slice, key: &[u8], value: &[u8]| Row {
            state: entry.state,
            slice,
            key: key.to_vec(),
            group: entry.group,
            value: value.to_vec(),
        };
        let slice = match self.form {
            Form::Marks | Form::Opaque => {
                rows.extend(wanted.is_none().then(|| row(None, entry.key, entry.value)));
                return Ok(());
            }
            Form::Keyed => None,
            Form::Sliced => Some(slices::number_of(entry.key)?),
        };
        self.each_row(entry, |key, value| {
            rows.extend(wanted.is_none_or(|wanted| wanted == key).then(|| row(slice, key, value)));
            Ok(())
        })
    }

    /// How many rows a stored entry has.
    ///
    /// # Errors
    /// When it is not of this form.
    pub fn count(&self, entry: StoredEntry<'_>) -> Result<u64> {
        let mut count = 0;
        match self.form {
            Form::Marks | Form::Opaque => count = 1,
            Form::Keyed | Form::Sliced => self.each_row(entry, |_, _| {
                count += 1;
                Ok(())
            })?,
        }
        Ok(count)
    }

    /// Key and value of every row of a stored entry.
    fn each_row(&self, entry: StoredEntry<'_>, each: impl FnMut(&[u8], &[u8]) -> Result<()>) -> Result<()> {
        if self.form == Form::Keyed { keyed::each_row(entry, each) } else { blocks::each_row(entry.value, each) }
    }

    /// The key of a row as JSON; nothing, where rows have no keys that can be shown.
    ///
    /// # Errors
    /// When its bytes are not a key, or one of another key group.
    pub fn key_json(&self, row: &Row) -> Result<Option<String>> {
        let Some((key, _)) = self.types else { return Ok(None) };
        (self.check_key)(row.group, &row.key)?;
        (key.json)(&row.key).map(Some)
    }

    /// The value of a row as JSON. A mark is a number.
    ///
    /// # Errors
    /// When its bytes are not a value.
    pub fn value_json(&self, row: &Row) -> Result<String> {
        match (self.form, self.types) {
            (Form::Marks, _) => Ok(self.mark(row)?.to_string()),
            (_, Some((_, value))) => (value.json)(&row.value),
            (_, None) => Ok(bytes_json(&row.value)),
        }
    }

    /// The number of a row that is a mark.
    ///
    /// # Errors
    /// When it is none.
    pub fn mark(&self, row: &Row) -> Result<i64> {
        crate::groups::mark_of(&row.value)
    }

    /// The key that a person means by `text`: JSON, or a bare word where keys are strings.
    ///
    /// # Errors
    /// When it is no key of this state.
    pub fn find(&self, text: &str) -> Result<Wanted> {
        (self.find)(text)
    }
}

fn shown<T: Value>() -> Shown {
    Shown { id: TypeId::of::<T>(), name: type_name::<T>(), json: |bytes| Ok(json(&codec::decode::<T>(bytes)?, bytes)) }
}

fn check_key<K: Key>(group: KeyGroup, bytes: &[u8]) -> Result<()> {
    StoredEntry { group, state: 0, key: &[], value: &[] }.decode_key::<K>(bytes).map(drop)
}

fn find<K: Key>(text: &str) -> Result<Wanted> {
    let json = serde_json::from_str::<K>(text);
    let key = json.or_else(|error| serde_json::from_value(text.into()).map_err(|_| error));
    let key = key.map_err(|error| StateError::Codec {
        what: format!("`{}` is not a key of type `{}`", text.escape_debug(), type_name::<K>()),
        reason: error.to_string(),
    })?;
    Wanted::new(&key)
}

/// A value as JSON. Most come by way of a `Value`, whose objects are sorted: the order in a hash map is another one in every process.
fn json<T: Serialize>(value: &T, bytes: &[u8]) -> String {
    let sorted = serde_json::to_value(value).map(|value| value.to_string());
    // Numbers of 128 bits are too large for a `Value`, but not for JSON.
    sorted.or_else(|_| serde_json::to_string(value)).unwrap_or_else(|_| bytes_json(bytes))
}

fn bytes_json(bytes: &[u8]) -> String {
    let mut text = String::from("{\"bytes\":\"");
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text + "\"}"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::hash_key;
    use crate::keyed::KeyedState;
    use crate::rocks::tests::{Disk, OPERATOR};
    use crate::slices::SliceState;
    use crate::snapshot::State;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, HashMap};

    /// All rows of a state, read from disk group by group.
    fn rows(disk: &Disk, readers: &[Reader]) -> Vec<Row> {
        let mut all = Vec::new();
        for group in 0..128 {
            let mut rows = Vec::new();
            let each = |entry: StoredEntry<'_>| readers[usize::from(entry.state)].rows(entry, None, &mut rows);
            disk.db.scan_group(OPERATOR, group, each).unwrap();
            rows.sort();
            all.extend(rows);
        }
        all
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Whatever a state went through, its reader shows what it holds: all of it, each key, and how many.
        #[test]
        fn a_reader_shows_what_the_state_holds(
            steps in prop::collection::vec((0..8u8, "[ab]{0,2}", -2..3i64, any::<u32>()), 0..80),
        ) {
            let mut disk = Disk::new();
            let mut state = (KeyedState::<String, u32>::default(), SliceState::<String, Vec<u32>>::default());
            state.track();
            let (mut keyed, mut sliced) = (BTreeMap::new(), BTreeMap::new());
            for (what, key, slice, value) in steps {
                match what {
                    0..3 => {
                        *state.0.update(hash_key(&key), &key, || 0) = value;
                        keyed.insert(key, value);
                    }
                    3..6 => {
                        state.1.update(slice, hash_key(&key), &key, Vec::new).push(value);
                        sliced.entry((slice, key)).or_insert_with(Vec::new).push(value);
                    }
                    6 => {
                        state.1.take(slice, |_, _| ());
                        sliced.retain(|(own, _), _| *own != slice);
                    }
                    _ => disk.save(&mut state),
                }
            }
            disk.save(&mut state);
            let readers = state.readers();
            let (mut found_keyed, mut found_sliced) = (BTreeMap::new(), BTreeMap::new());
            for row in rows(&disk, &readers) {
                let reader = &readers[usize::from(row.state)];
                let key: String = serde_json::from_str(&reader.key_json(&row).unwrap().unwrap()).unwrap();
                let value = reader.value_json(&row).unwrap();
                match row.slice {
                    None => prop_assert!(found_keyed.insert(key, serde_json::from_str(&value).unwrap()).is_none()),
                    Some(slice) => {
                        prop_assert!(found_sliced.insert((slice, key), serde_json::from_str(&value).unwrap()).is_none());
                    }
                }
            }
            prop_assert_eq!(&found_keyed, &keyed);
            prop_assert_eq!(&found_sliced, &sliced);
            for key in ["", "a", "ab", "bb", "none"] {
                let wanted = Wanted::new(key).unwrap();
                prop_assert_eq!(&readers[0].find(&format!("{key:?}")).unwrap(), &wanted);
                let (mut rows, mut count) = (Vec::new(), 0);
                disk.db.scan_group(OPERATOR, wanted.group, |entry| {
                    let reader = &readers[usize::from(entry.state)];
                    count += reader.count(entry)?;
                    reader.rows(entry, Some(&wanted.key), &mut rows)
                }).unwrap();
                rows.sort();
                let expected = keyed.get(key).map(|value| (None, format!("{value}")));
                let slices = sliced.iter().filter(|((_, own), _)| own == key);
                let slices = slices.map(|((slice, _), value)| (Some(*slice), format!("{value:?}").replace(' ', "")));
                let found = rows.iter().map(|row| (row.slice, readers[usize::from(row.state)].value_json(row).unwrap()));
                prop_assert_eq!(found.collect::<Vec<_>>(), expected.into_iter().chain(slices).collect::<Vec<_>>());
                let in_group = |key: &String| group_of(hash_key(key)) == wanted.group;
                let held = keyed.keys().filter(|key| in_group(key)).count() + sliced.keys().filter(|key| in_group(&key.1)).count();
                prop_assert_eq!(count, held as u64);
            }
        }
    }

    #[test]
    fn a_key_is_found_among_all_of_its_group() {
        let mut disk = Disk::new();
        let mut state = KeyedState::<u64, u64>::default();
        state.track();
        for key in 0..5_000u64 {
            *state.update(hash_key(&key), &key, || 0) = key * 7;
        }
        disk.save(&mut state);
        let reader = state.readers().remove(0);
        for key in (0..5_100u64).step_by(17) {
            let Wanted { group, key: wanted } = Wanted::new(&key).unwrap();
            let mut rows = Vec::new();
            disk.db.scan_group(OPERATOR, group, |entry| reader.rows(entry, Some(&wanted), &mut rows)).unwrap();
            let found: Vec<String> = rows.iter().map(|row| reader.value_json(row).unwrap()).collect();
            let expected = (key < 5_000).then(|| (key * 7).to_string());
            assert_eq!(found, expected.into_iter().collect::<Vec<_>>(), "{key}");
        }
    }

    #[test]
    fn keys_are_json_or_a_bare_word() {
        let strings = Reader::keyed::<String, u8>();
        for text in ["EWR", "\"EWR\""] {
            assert_eq!(strings.find(text).unwrap(), Wanted::new("EWR").unwrap());
        }
        assert_eq!(strings.find("12").unwrap(), Wanted::new("12").unwrap(), "a number can be a word");
        let pairs = Reader::keyed::<(String, u32), u8>();
        assert_eq!(pairs.find(r#"["EWR", 7]"#).unwrap(), Wanted::new(&("EWR", 7u32)).unwrap());
        let error = pairs.find("EWR").unwrap_err().to_string();
        assert!(error.contains("`EWR` is not a key of type `(alloc::string::String, u32)`"), "{error}");
        assert!(Reader::keyed::<u32, u8>().find("-1").is_err());
        assert!(Reader::marks().find("1").is_err());
    }

    #[test]
    fn values_that_json_cannot_say_are_still_shown() {
        assert_eq!(json(&u128::MAX, &[]), u128::MAX.to_string());
        assert_eq!(json(&HashMap::from([((1, 2), 3)]), &[1, 255]), r#"{"bytes":"01ff"}"#);
        let map: HashMap<u32, u32> = (0..9).map(|n| (n, n)).collect();
        assert_eq!(json(&map, &[]), r#"{"0":0,"1":1,"2":2,"3":3,"4":4,"5":5,"6":6,"7":7,"8":8}"#);
    }

    #[test]
    fn a_row_of_another_group_or_type_is_refused() {
        let reader = Reader::keyed::<u64, u64>();
        let Wanted { group, key } = Wanted::new(&5u64).unwrap();
        let row = Row { state: 0, slice: None, key, group, value: vec![1; 7] };
        assert_eq!(reader.key_json(&row).unwrap().unwrap(), "5");
        assert!(reader.key_json(&Row { group: group ^ 1, ..row.clone() }).is_err());
        assert!(reader.value_json(&row).is_err());
        assert!(reader.is_of::<u64, u64>() && !reader.is_of::<u64, i64>());
    }
}
