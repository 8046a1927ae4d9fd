//! Walks bytes by their [`Schema`], without the type that wrote them: to find where a value ends, to show it, to rewrite parts
//! of it.
//!
//! Bytes and schema come from disk. Whatever they say, a walk ends, and asks for no more memory than a few times what it is given.

use std::collections::HashSet;
use std::fmt::Write;

use crate::evolve::Migrations;
use crate::schema::Schema;
use crate::{Result, StateError, codec};

/// How deep values are nested at most.
const MOST_DEPTH: usize = 400;

/// How many values without any bytes there are in lists at most.
const MOST_EMPTY: u64 = 1 << 20;

/// How much of a value is shown.
const SHOWN: usize = 200;

/// How the bytes of one value become those of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// They stay as they are.
    Same,
    /// The parts of a struct, tuple or entry, the variants of an enum, or the one part that there is. See [`parts`](Self::parts).
    Parts(Vec<Plan>),
    /// First this, then the value is brought to each of these forms, in turn.
    Evolve(Box<Plan>, Vec<&'static str>),
}

impl Plan {
    /// Of parts; where all stay as they are, so does the whole.
    pub(crate) fn parts(parts: Vec<Plan>) -> Self {
        if parts.iter().all(|part| *part == Plan::Same) { Plan::Same } else { Plan::Parts(parts) }
    }
}

/// See the module.
pub(crate) struct Walk<'s> {
    /// What is being walked, from the outside in.
    around: Vec<&'s Schema>,
    depth: usize,
    /// How many values without any bytes were met in lists.
    empty: u64,
}

fn wrong(reason: impl Into<String>) -> StateError {
    StateError::Codec { what: "bytes of a value".into(), reason: reason.into() }
}

/// Takes so many bytes.
fn take<'b>(bytes: &mut &'b [u8], count: u64) -> Result<&'b [u8]> {
    let part = usize::try_from(count).ok().and_then(|count| bytes.split_at_checked(count));
    let (part, rest) =
        part.ok_or_else(|| wrong(format!("{count} bytes are missing where {} are left", bytes.len())))?;
    *bytes = rest;
    Ok(part)
}

fn take_array<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N]> {
    let part = take(bytes, N as u64)?;
    part.try_into().map_err(|_| wrong("a number of another width"))
}

fn take_len(bytes: &mut &[u8]) -> Result<u64> {
    take_array(bytes).map(u64::from_le_bytes)
}

fn take_str<'b>(bytes: &mut &'b [u8], len: u64) -> Result<&'b str> {
    std::str::from_utf8(take(bytes, len)?).map_err(|error| wrong(format!("a text is not UTF-8: {error}")))
}

fn take_char(bytes: &mut &[u8]) -> Result<char> {
    let len = match bytes.first() {
        Some(0xf0..) => 4,
        Some(0xe0..) => 3,
        Some(0xc0..) => 2,
        _ => 1,
    };
    take_str(bytes, len)?.chars().next().ok_or_else(|| wrong("a character is missing"))
}

/// Takes a byte that is 0 or 1.
fn take_bit(bytes: &mut &[u8]) -> Result<bool> {
    match take_array(bytes)? {
        [0] => Ok(false),
        [1] => Ok(true),
        [other] => Err(wrong(format!("{other} is neither 0 nor 1"))),
    }
}

/// The value in `bytes`, as people may read it; shortened, if it is long.
pub(crate) fn show(schema: &Schema, bytes: &[u8]) -> String {
    let mut text = String::new();
    let mut rest = bytes;
    if Walk::new().pass(schema, &mut rest, &mut Some(&mut text)).is_err() {
        text = format!("{:02x?}", &bytes[..bytes.len().min(40)]);
    }
    if let Some((end, _)) = text.char_indices().nth(SHOWN) {
        text.truncate(end);
        text.push('…');
    }
    text
}

/// `bytes`, all of which must be one value of `schema`, as `plan` says.
pub(crate) fn rewrite(schema: &Schema, plan: &Plan, migrations: &Migrations, bytes: &[u8]) -> Result<Vec<u8>> {
    let (mut rest, mut out) = (bytes, Vec::with_capacity(bytes.len() + 16));
    Walk::new().rewrite(schema, plan, migrations, &mut rest, &mut out)?;
    match rest {
        [] => Ok(out),
        rest => Err(wrong(format!("{} of {} bytes are left over", rest.len(), bytes.len()))),
    }
}

impl<'s> Walk<'s> {
    fn new() -> Self {
        Walk { around: Vec::new(), depth: 0, empty: 0 }
    }

    /// Calls `inside` with `schema` being walked.
    fn within<T>(&mut self, schema: &'s Schema, inside: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth == MOST_DEPTH {
            return Err(wrong(format!("values are nested more than {MOST_DEPTH} deep")));
        }
        self.depth += 1;
        self.around.push(schema);
        let result = inside(self);
        self.around.pop();
        self.depth -= 1;
        result
    }

    /// Calls `inside` with the schema that is `levels` further out.
    fn back<T>(&mut self, levels: u32, inside: impl FnOnce(&mut Self, &'s Schema) -> Result<T>) -> Result<T> {
        let place = self.around.len().checked_sub(1 + levels as usize);
        let place = place.ok_or_else(|| wrong("a schema goes back further than it is deep"))?;
        if self.depth == MOST_DEPTH {
            return Err(wrong(format!("values are nested more than {MOST_DEPTH} deep")));
        }
        let inner = self.around.split_off(place);
        self.depth += 1;
        let result = inside(self, inner[0]);
        self.depth -= 1;
        self.around.extend(inner);
        result
    }

    /// A damaged length of a list whose elements have no bytes would be counted through.
    fn count_empty(&mut self, empty: bool) -> Result<()> {
        self.empty += u64::from(empty);
        match self.empty > MOST_EMPTY {
            true => Err(wrong("a list is too long for what it holds")),
            false => Ok(()),
        }
    }

    /// Passes over a value, and shows it if there is a text to be written to.
    fn pass(&mut self, schema: &'s Schema, bytes: &mut &[u8], text: &mut Option<&mut String>) -> Result<()> {
        // What is cut off later need not be made.
        if text.as_ref().is_some_and(|text| text.len() > 8 * SHOWN) {
            *text = None;
        }
        /// Shows a leaf.
        macro_rules! leaf {
            ($value:expr) => {{
                let value = $value;
                if let Some(text) = text {
                    let _ = write!(text, "{value:?}");
                }
            }};
        }
        fn show(text: &mut Option<&mut String>, what: &str) {
            if let Some(text) = text {
                text.push_str(what);
            }
        }
        match schema {
            Schema::Unit => show(text, "()"),
            Schema::Bool => leaf!(take_bit(bytes)?),
            Schema::I8 => leaf!(i8::from_le_bytes(take_array(bytes)?)),
            Schema::I16 => leaf!(i16::from_le_bytes(take_array(bytes)?)),
            Schema::I32 => leaf!(i32::from_le_bytes(take_array(bytes)?)),
            Schema::I64 => leaf!(i64::from_le_bytes(take_array(bytes)?)),
            Schema::I128 => leaf!(i128::from_le_bytes(take_array(bytes)?)),
            Schema::U8 => leaf!(u8::from_le_bytes(take_array(bytes)?)),
            Schema::U16 => leaf!(u16::from_le_bytes(take_array(bytes)?)),
            Schema::U32 => leaf!(u32::from_le_bytes(take_array(bytes)?)),
            Schema::U64 => leaf!(u64::from_le_bytes(take_array(bytes)?)),
            Schema::U128 => leaf!(u128::from_le_bytes(take_array(bytes)?)),
            Schema::F32 => leaf!(f32::from_le_bytes(take_array(bytes)?)),
            Schema::F64 => leaf!(f64::from_le_bytes(take_array(bytes)?)),
            Schema::Char => leaf!(take_char(bytes)?),
            Schema::Str => {
                let len = take_len(bytes)?;
                leaf!(take_str(bytes, len)?);
            }
            Schema::Bytes => {
                let len = take_len(bytes)?;
                leaf!(take(bytes, len)?);
            }
            Schema::Option(of) => match take_bit(bytes)? {
                false => show(text, "None"),
                true => self.within(schema, |walk| walk.pass(of, bytes, text))?,
            },
            Schema::Seq(of) => {
                let len = take_len(bytes)?;
                self.within(schema, |walk| walk.pass_all(std::iter::repeat_n(&**of, 1), len, ["[", "]"], bytes, text))?;
            }
            Schema::Array(of, len) => {
                self.within(schema, |walk| {
                    walk.pass_all(std::iter::repeat_n(&**of, 1), *len, ["[", "]"], bytes, text)
                })?;
            }
            Schema::Map(key, value) => {
                let len = take_len(bytes)?;
                let entry = [&**key, &**value].into_iter();
                self.within(schema, |walk| walk.pass_all(entry, len, ["{", "}"], bytes, text))?;
            }
            Schema::Tuple(of) => self.within(schema, |walk| walk.pass_all(of.iter(), 1, ["(", ")"], bytes, text))?,
            Schema::Struct { name, fields } => self.within(schema, |walk| {
                show(text, name);
                show(text, " { ");
                for (number, field) in fields.iter().enumerate() {
                    show(text, if number > 0 { ", " } else { "" });
                    show(text, &field.name);
                    show(text, ": ");
                    walk.pass(&field.of, bytes, text)?;
                }
                show(text, " }");
                Ok(())
            })?,
            Schema::Enum { variants, .. } => {
                let variant = take_variant(bytes, variants.len())?;
                let variant = &variants[variant];
                self.within(schema, |walk| match &variant.of {
                    // Its name is that of the variant.
                    of @ Schema::Struct { .. } => walk.pass(of, bytes, text),
                    of => {
                        show(text, &variant.name);
                        if *of == Schema::Unit { Ok(()) } else { walk.pass(of, bytes, text) }
                    }
                })?;
            }
            Schema::Named { of, .. } => self.within(schema, |walk| walk.pass(of, bytes, text))?,
            Schema::Version { of, .. } => self.pass(of, bytes, text)?,
            Schema::Back(levels) => self.back(*levels, |walk, schema| walk.pass(schema, bytes, text))?,
            Schema::Opaque { name, .. } => return Err(wrong(format!("nobody knows the form of `{name}`"))),
        }
        Ok(())
    }

    /// Passes over what `parts` say, `times` times.
    fn pass_all(
        &mut self,
        parts: impl Iterator<Item = &'s Schema> + Clone,
        times: u64,
        [open, close]: [&str; 2],
        bytes: &mut &[u8],
        text: &mut Option<&mut String>,
    ) -> Result<()> {
        let show = |text: &mut Option<&mut String>, what: &str| text.iter_mut().for_each(|text| text.push_str(what));
        show(text, open);
        let mut first = true;
        for _ in 0..times {
            let before = bytes.len();
            for part in parts.clone() {
                show(text, if std::mem::take(&mut first) { "" } else { ", " });
                self.pass(part, bytes, text)?;
            }
            self.count_empty(before == bytes.len())?;
        }
        show(text, close);
        Ok(())
    }

    fn rewrite(
        &mut self,
        schema: &'s Schema,
        plan: &Plan,
        migrations: &Migrations,
        bytes: &mut &[u8],
        out: &mut Vec<u8>,
    ) -> Result<()> {
        if out.len() as u64 > codec::MAX_BYTES {
            return Err(wrong(format!("more than {} of them", codec::MAX_BYTES)));
        }
        match (plan, schema) {
            (Plan::Same, _) => {
                let all = *bytes;
                self.pass(schema, bytes, &mut None)?;
                out.extend_from_slice(&all[..all.len() - bytes.len()]);
                Ok(())
            }
            (Plan::Evolve(first, forms), _) => {
                let mut value = Vec::new();
                self.rewrite(schema, first, migrations, bytes, &mut value)?;
                for form in forms {
                    value = migrations.upgrade(form, &value)?;
                }
                out.extend_from_slice(&value);
                Ok(())
            }
            (_, Schema::Version { of, .. }) => self.rewrite(of, plan, migrations, bytes, out),
            (Plan::Parts(plans), _) => {
                self.within(schema, |walk| walk.rewrite_parts(schema, plans, migrations, bytes, out))
            }
        }
    }

    fn rewrite_parts(
        &mut self,
        schema: &'s Schema,
        plans: &[Plan],
        migrations: &Migrations,
        bytes: &mut &[u8],
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let of = schema.parts();
        if of.len() != plans.len() {
            return Err(wrong("a plan for another schema"));
        }
        let all = |walk: &mut Self, times: u64, bytes: &mut &[u8], out: &mut Vec<u8>| {
            for _ in 0..times {
                let before = bytes.len();
                for (of, plan) in of.iter().zip(plans) {
                    walk.rewrite(of, plan, migrations, bytes, out)?;
                }
                walk.count_empty(before == bytes.len())?;
            }
            Ok(())
        };
        match schema {
            Schema::Option(_) => {
                let there = take_bit(bytes)?;
                out.push(u8::from(there));
                all(self, u64::from(there), bytes, out)
            }
            Schema::Seq(_) => {
                let len = take_len(bytes)?;
                out.extend_from_slice(&len.to_le_bytes());
                all(self, len, bytes, out)
            }
            Schema::Map(key, _) => {
                let len = take_len(bytes)?;
                out.extend_from_slice(&len.to_le_bytes());
                let mut keys = HashSet::new();
                for _ in 0..len {
                    let (before, start) = (*bytes, out.len());
                    self.rewrite(of[0], &plans[0], migrations, bytes, out)?;
                    if plans[0] != Plan::Same && !keys.insert(out[start..].to_vec()) {
                        let key = show(key, before);
                        return Err(wrong(format!("key {key} of a map becomes the same as another one")));
                    }
                    self.rewrite(of[1], &plans[1], migrations, bytes, out)?;
                    self.count_empty(before.len() == bytes.len())?;
                }
                Ok(())
            }
            Schema::Array(_, len) => all(self, *len, bytes, out),
            Schema::Enum { variants, .. } => {
                let variant = take_variant(bytes, variants.len())?;
                out.extend_from_slice(&(variant as u32).to_le_bytes());
                self.rewrite(of[variant], &plans[variant], migrations, bytes, out)
            }
            _ => all(self, 1, bytes, out),
        }
    }
}

fn take_variant(bytes: &mut &[u8], variants: usize) -> Result<usize> {
    let variant = u32::from_le_bytes(take_array(bytes)?) as usize;
    match variant < variants {
        true => Ok(variant),
        false => Err(wrong(format!("there is no variant {variant} of {variants}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evolve::tests::evolves;
    use crate::schema::Field;
    use crate::trace::trace;
    use proptest::prelude::*;
    use serde::{Deserialize, Serialize};
    use std::collections::BTreeMap;

    /// A value that is written as its schema says: an oracle that knows nothing of walking.
    #[derive(Clone, Debug)]
    struct Written {
        schema: Schema,
        bytes: Vec<u8>,
    }

    fn written<T: Serialize>(schema: Schema, value: &T) -> Written {
        Written { schema, bytes: codec::encode(value).unwrap() }
    }

    fn field(name: usize, of: &Schema) -> Field {
        Field { name: format!("f{name}"), of: of.clone() }
    }

    fn together<'a>(parts: impl IntoIterator<Item = &'a Written>) -> Vec<u8> {
        parts.into_iter().flat_map(|part| part.bytes.clone()).collect()
    }

    fn leaf() -> BoxedStrategy<Written> {
        prop_oneof![
            Just(written(Schema::Unit, &())),
            any::<bool>().prop_map(|v| written(Schema::Bool, &v)),
            any::<i8>().prop_map(|v| written(Schema::I8, &v)),
            any::<u16>().prop_map(|v| written(Schema::U16, &v)),
            any::<u32>().prop_map(|v| written(Schema::U32, &v)),
            any::<i64>().prop_map(|v| written(Schema::I64, &v)),
            any::<i128>().prop_map(|v| written(Schema::I128, &v)),
            any::<f64>().prop_map(|v| written(Schema::F64, &v)),
            any::<char>().prop_map(|v| written(Schema::Char, &v)),
            ".{0,6}".prop_map(|v| written(Schema::Str, &v)),
            prop::collection::vec(any::<u8>(), 0..6).prop_map(|v| written(Schema::Bytes, &v)),
        ]
        .boxed()
    }

    /// Random schemas, each with a random value.
    fn any_value() -> impl Strategy<Value = Written> {
        leaf().prop_recursive(5, 40, 4, |inner| {
            let some = |written: Written, tag: &[u8], wrap: fn(Box<Schema>) -> Schema| Written {
                bytes: [tag, &written.bytes].concat(),
                schema: wrap(Box::new(written.schema)),
            };
            let parts = || prop::collection::vec(inner.clone(), 0..4);
            prop_oneof![
                inner.clone().prop_map(move |v| some(v, &[1], Schema::Option)),
                inner.clone().prop_map(|v| Written { schema: Schema::Option(Box::new(v.schema)), bytes: vec![0] }),
                inner.clone().prop_map(|v| Written {
                    schema: Schema::Named { name: "N".into(), of: Box::new(v.schema) },
                    bytes: v.bytes
                }),
                (inner.clone(), 0..4usize).prop_map(|(v, n)| Written {
                    schema: Schema::Seq(Box::new(v.schema)),
                    bytes: [&(n as u64).to_le_bytes()[..], &v.bytes.repeat(n)].concat(),
                }),
                (inner.clone(), 0..4u64).prop_map(|(v, n)| Written {
                    schema: Schema::Array(Box::new(v.schema), n),
                    bytes: v.bytes.repeat(n as usize),
                }),
                (inner.clone(), inner.clone(), 0..3usize).prop_map(|(k, v, n)| Written {
                    bytes: [&(n as u64).to_le_bytes()[..], &together([&k, &v]).repeat(n)].concat(),
                    schema: Schema::Map(Box::new(k.schema), Box::new(v.schema)),
                }),
                parts().prop_map(|all| Written {
                    bytes: together(&all),
                    schema: Schema::Tuple(all.into_iter().map(|part| part.schema).collect()),
                }),
                parts().prop_map(|all| Written {
                    bytes: together(&all),
                    schema: Schema::Struct {
                        name: "S".into(),
                        fields: all.iter().enumerate().map(|(n, part)| field(n, &part.schema)).collect(),
                    },
                }),
                (prop::collection::vec(inner, 1..4), any::<prop::sample::Index>()).prop_map(|(all, chosen)| {
                    let chosen = chosen.index(all.len());
                    Written {
                        bytes: [&(chosen as u32).to_le_bytes()[..], &all[chosen].bytes].concat(),
                        schema: Schema::Enum {
                            name: "E".into(),
                            variants: all.iter().enumerate().map(|(n, part)| field(n, &part.schema)).collect(),
                        },
                    }
                }),
            ]
        })
    }

    /// A plan that touches every part and changes nothing.
    fn touching(schema: &Schema) -> Plan {
        match schema {
            Schema::Version { of, .. } => touching(of),
            // The maps of these tests have the same key several times.
            Schema::Map(_, value) => Plan::Parts(vec![Plan::Same, touching(value)]),
            other if other.parts().is_empty() => Plan::Same,
            other => Plan::Parts(other.parts().into_iter().map(touching).collect()),
        }
    }

    proptest! {
        #[test]
        fn a_walk_takes_exactly_the_bytes(value in any_value(), more in prop::collection::vec(any::<u8>(), 0..4)) {
            let none = Migrations::default();
            for plan in [Plan::Same, touching(&value.schema)] {
                prop_assert_eq!(&rewrite(&value.schema, &plan, &none, &value.bytes).unwrap(), &value.bytes);
                let longer = [&value.bytes[..], &more].concat();
                prop_assert_eq!(rewrite(&value.schema, &plan, &none, &longer).is_ok(), more.is_empty());
                for end in 0..value.bytes.len() {
                    prop_assert!(rewrite(&value.schema, &plan, &none, &value.bytes[..end]).is_err());
                }
            }
            let json = serde_json::to_string(&value.schema).unwrap();
            prop_assert_eq!(serde_json::from_str::<Schema>(&json).unwrap(), value.schema);
        }

        /// Whatever the bytes and the schema, and however little they fit: an answer, and no more bytes than there were.
        #[test]
        fn damaged_bytes_and_schemas_come_to_an_end(
            value in any_value(),
            other in any_value(),
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let none = Migrations::default();
            let mut bytes = value.bytes.clone();
            for (place, byte) in flips.iter().filter(|_| !value.bytes.is_empty()) {
                bytes[place.index(value.bytes.len())] = *byte;
            }
            for schema in [&value.schema, &other.schema] {
                for plan in [Plan::Same, touching(&value.schema), touching(&other.schema)] {
                    if let Ok(same) = rewrite(schema, &plan, &none, &bytes) {
                        prop_assert_eq!(&same, &bytes);
                    }
                }
                prop_assert!(show(schema, &bytes).chars().count() <= SHOWN + 1);
            }
        }
    }

    #[test]
    fn hostile_schemas_come_to_an_end() {
        let twice = |of: Schema| Schema::Tuple(vec![of.clone(), of]);
        let all: [(Schema, &[u8]); 6] = [
            (Schema::Back(0), &[]),
            (twice(Schema::Back(0)), &[]),
            (Schema::Named { name: "N".into(), of: Box::new(Schema::Back(7)) }, &[]),
            (Schema::Seq(Box::new(Schema::Unit)), &[0xff; 8]),
            (Schema::Array(Box::new(Schema::Array(Box::new(Schema::Unit), u64::MAX)), u64::MAX), &[]),
            (Schema::Option(Box::new(Schema::Back(0))), &[1; 5000]),
        ];
        for (schema, bytes) in all {
            assert!(rewrite(&schema, &Plan::Same, &Migrations::default(), bytes).is_err(), "{schema:?}");
            assert!(rewrite(&schema, &touching(&schema), &Migrations::default(), bytes).is_err(), "{schema:?}");
        }
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Tree {
        name: String,
        children: Vec<Tree>,
        parent: Option<Box<Tree>>,
    }

    fn any_tree() -> impl Strategy<Value = Tree> {
        let leaf = "[a-c]{0,3}".prop_map(|name| Tree { name, children: vec![], parent: None });
        leaf.prop_recursive(4, 20, 3, |inner| {
            ("[a-c]{0,3}", prop::collection::vec(inner.clone(), 0..3), prop::option::of(inner.prop_map(Box::new)))
                .prop_map(|(name, children, parent)| Tree { name, children, parent })
        })
    }

    /// Two types that contain each other: what the inner one goes back to is outside of what it is met in.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Outer {
        name: String,
        inner: Vec<Inner>,
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Inner {
        next: Option<Box<Inner>>,
        outer: Option<Box<Outer>>,
        flag: bool,
    }

    /// An inner one for every name, each in the one before.
    fn nested(tree: &Tree) -> Outer {
        let inner = tree.children.iter().chain(tree.parent.as_deref()).fold(None, |next, child| {
            Some(Box::new(Inner { next, outer: Some(Box::new(nested(child))), flag: child.parent.is_some() }))
        });
        Outer { name: tree.name.clone(), inner: inner.into_iter().map(|inner| *inner).collect() }
    }

    proptest! {
        #[test]
        fn values_that_contain_themselves_are_walked(tree in any_tree()) {
            let none = Migrations::default();
            let both = [
                (trace::<Tree>(&none), codec::encode(&tree).unwrap()),
                (trace::<Outer>(&none), codec::encode(&nested(&tree)).unwrap()),
            ];
            for (schema, bytes) in both {
                prop_assert_eq!(rewrite(&schema, &Plan::Same, &none, &bytes).unwrap(), bytes);
            }
        }
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    enum Kind {
        None,
        Paid { cents: i64, by: Option<String> },
        Gift(char, (u8, bool)),
    }

    #[test]
    fn values_are_shown_as_people_may_read_them() {
        type Pair = (Kind, BTreeMap<u8, Kind>);
        let schema = trace::<Pair>(&Migrations::default());
        let paid = Kind::Paid { cents: -7, by: Some("Ann \"A\"".into()) };
        let value: Pair = (paid, [(1, Kind::None), (2, Kind::Gift('ß', (3, true)))].into());
        let shown = show(&schema, &codec::encode(&value).unwrap());
        assert_eq!(shown, r#"(Paid { cents: -7, by: "Ann \"A\"" }, {1, None, 2, Gift('ß', (3, true))})"#);
        assert_eq!(show(&Schema::U64, &[1, 2]), "[01, 02]");
        assert_eq!(show(&Schema::Str, &codec::encode(&"x".repeat(1000)).unwrap()).chars().count(), SHOWN + 1);
    }

    #[derive(Serialize, Deserialize)]
    struct Old(u8);

    #[derive(Serialize, Deserialize)]
    struct New {
        wide: u64,
    }
    evolves!(Old, 1);
    evolves!(New, 2, Old, |old: Old| if old.0 == 9 {
        Err("nine".into())
    } else {
        Ok(New { wide: u64::from(old.0) * 10 })
    });

    #[test]
    fn parts_are_evolved_where_they_are() {
        let mut migrations = Migrations::default();
        migrations.add::<New>();
        let name = std::any::type_name::<New>();
        let evolve = || Plan::Evolve(Box::new(Plan::Same), vec![name]);
        let schema = trace::<(String, Vec<Option<Old>>, u16)>(&migrations);
        let inner = Plan::Parts(vec![Plan::Parts(vec![evolve()])]);
        let plan = Plan::Parts(vec![Plan::Same, inner, Plan::Same]);
        let old = codec::encode(&("a", vec![Some(Old(3)), None, Some(Old(4))], 7u16)).unwrap();
        let new = rewrite(&schema, &plan, &migrations, &old).unwrap();
        assert_eq!(new, codec::encode(&("a", vec![Some(30u64), None, Some(40)], 7u16)).unwrap());
        let old = codec::encode(&("a", vec![Some(Old(9))], 7u16)).unwrap();
        assert!(rewrite(&schema, &plan, &migrations, &old).unwrap_err().to_string().contains("nine"));
    }

    #[derive(Serialize, Deserialize)]
    struct Digit(u8);
    evolves!(Digit, 2, Old, |old: Old| Ok(Digit(old.0 % 10)));

    /// Nothing in a map may disappear silently.
    #[test]
    fn keys_of_a_map_that_become_one_are_refused() {
        let mut migrations = Migrations::default();
        migrations.add::<Digit>();
        let plan =
            Plan::Parts(vec![Plan::Evolve(Box::new(Plan::Same), vec![std::any::type_name::<Digit>()]), Plan::Same]);
        let map = |keys: &[u8]| codec::encode(&keys.iter().map(|key| (*key, 'x')).collect::<BTreeMap<_, _>>()).unwrap();
        let schema = trace::<BTreeMap<u8, char>>(&migrations);
        assert_eq!(rewrite(&schema, &plan, &migrations, &map(&[11, 22])).unwrap(), map(&[1, 2]));
        let error = rewrite(&schema, &plan, &migrations, &map(&[11, 22, 31])).unwrap_err().to_string();
        assert!(error.contains("key 31 of a map becomes the same"), "{error}");
    }
}
