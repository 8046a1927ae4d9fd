//! The shape of what is kept: a [`Schema`] says which bytes a key or value consists of, with the names of its fields.
//!
//! It stands in the manifest, beside the state, so that a program whose types have changed is told so before anything is
//! decoded, and so that old bytes can be walked without the old type. It is made by tracing a type's `Deserialize`
//! ([`trace`](crate::trace)), so users do nothing for it.
//!
//! **Equal** are two schemas that agree in the form of the bytes and in the names of fields and variants. Names of types are for
//! messages only: a type may be moved or renamed, or be given a wrapper (`struct Cents(i64)`), without any change.

mod text;

use std::fmt;

pub(crate) use text::MOST_DEPTH;
pub use text::NoSchema;

use crate::hash::hash_key;

/// Which bytes a value consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Schema {
    /// No bytes at all.
    Unit,
    /// One byte, 0 or 1.
    Bool,
    /// A number of this width, little-endian, as the next ones.
    I8,
    /// See [`I8`](Self::I8).
    I16,
    /// See [`I8`](Self::I8).
    I32,
    /// See [`I8`](Self::I8).
    I64,
    /// See [`I8`](Self::I8).
    I128,
    /// See [`I8`](Self::I8).
    U8,
    /// See [`I8`](Self::I8).
    U16,
    /// See [`I8`](Self::I8).
    U32,
    /// See [`I8`](Self::I8).
    U64,
    /// See [`I8`](Self::I8).
    U128,
    /// See [`I8`](Self::I8).
    F32,
    /// See [`I8`](Self::I8).
    F64,
    /// One character in UTF-8, without its length.
    Char,
    /// A length (8 bytes), then UTF-8.
    Str,
    /// A length (8 bytes), then bytes.
    Bytes,
    /// One byte, 0 or 1, then what is there if it is 1.
    Option(Box<Schema>),
    /// A length (8 bytes), then so many of these.
    Seq(Box<Schema>),
    /// A length (8 bytes), then so many keys, each with its value.
    Map(Box<Schema>, Box<Schema>),
    /// These, one after the other.
    Tuple(Vec<Schema>),
    /// So many of these, for more than a tuple may have.
    Array(Box<Schema>, u64),
    /// These, one after the other.
    Struct {
        /// The name of the type, or of the variant.
        name: String,
        /// In the order in which they are written.
        fields: Vec<Field>,
    },
    /// The variant's number (4 bytes), then what it has.
    Enum {
        /// The name of the type.
        name: String,
        /// In the order of their numbers.
        variants: Vec<Field>,
    },
    /// A type without names for its fields: `struct Cents(i64)`.
    Named {
        /// The name of the type.
        name: String,
        /// What it consists of.
        of: Box<Schema>,
    },
    /// A type with versions; see [`Evolve`](crate::evolve::Evolve).
    Version {
        /// The name of the type, with its path.
        name: String,
        /// The version.
        version: u32,
        /// What it consists of.
        of: Box<Schema>,
    },
    /// A type that contains itself: the schema so many levels further out, 0 being the nearest around it. A version is no level.
    Back(u32),
    /// A type that cannot be traced. It is known by its name alone.
    Opaque {
        /// The name of the type, with its path.
        name: String,
        /// Why it cannot be traced.
        why: String,
    },
}

/// A field of a struct, or a variant of an enum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// What it consists of.
    pub of: Schema,
}

impl Schema {
    /// A number for the form of the bytes and the names in it, the same wherever and whenever it is asked for.
    pub fn fingerprint(&self) -> u64 {
        hash_key(&self.canonical(false))
    }

    /// The schema as one line that is equal for equal schemas; with the versions of types, or without.
    pub(crate) fn canonical(&self, versions: bool) -> String {
        let mut line = String::new();
        self.write_canonical(versions, &mut line);
        line
    }

    fn write_canonical(&self, versions: bool, line: &mut String) {
        match self {
            Schema::Named { of, .. } => return of.write_canonical(versions, line),
            Schema::Version { of, version, .. } => {
                if versions {
                    line.push_str(&format!("version{version}:"));
                }
                return of.write_canonical(versions, line);
            }
            Schema::Back(levels) => return line.push_str(&format!("back{levels}")),
            Schema::Opaque { name, .. } => return line.push_str(&format!("opaque{name:?}")),
            Schema::Array(_, count) => line.push_str(&format!("array{count}")),
            other => line.push_str(other.word()),
        }
        if self.is_leaf() {
            return;
        }
        line.push('(');
        for (name, of) in self.labelled() {
            if let Some(name) = name {
                line.push_str(&format!("{name:?}:"));
            }
            of.write_canonical(versions, line);
            line.push(',');
        }
        line.push(')');
    }

    fn is_leaf(&self) -> bool {
        !matches!(self, Schema::Tuple(_) | Schema::Struct { .. } | Schema::Enum { .. }) && self.labelled().is_empty()
    }

    /// A leaf in words, or the kind of what is none.
    fn word(&self) -> &'static str {
        match self {
            Schema::Unit => "()",
            Schema::Bool => "bool",
            Schema::I8 => "i8",
            Schema::I16 => "i16",
            Schema::I32 => "i32",
            Schema::I64 => "i64",
            Schema::I128 => "i128",
            Schema::U8 => "u8",
            Schema::U16 => "u16",
            Schema::U32 => "u32",
            Schema::U64 => "u64",
            Schema::U128 => "u128",
            Schema::F32 => "f32",
            Schema::F64 => "f64",
            Schema::Char => "char",
            Schema::Str => "string",
            Schema::Bytes => "bytes",
            Schema::Option(_) => "option",
            Schema::Seq(_) => "seq",
            Schema::Map(..) => "map",
            Schema::Tuple(_) => "tuple",
            Schema::Array(..) => "array",
            Schema::Struct { .. } => "struct",
            Schema::Enum { .. } => "enum",
            Schema::Named { .. } | Schema::Version { .. } => "named",
            Schema::Back(_) => "itself",
            Schema::Opaque { .. } => "opaque",
        }
    }

    /// Without what makes no difference to the bytes.
    pub(crate) fn bare(&self) -> &Schema {
        match self {
            Schema::Named { of, .. } | Schema::Version { of, .. } => of.bare(),
            other => other,
        }
    }

    /// What it directly consists of.
    pub(crate) fn parts(&self) -> Vec<&Schema> {
        self.labelled().into_iter().map(|(_, of)| of).collect()
    }

    /// The same, with the names of fields and variants.
    fn labelled(&self) -> Vec<(Option<&str>, &Schema)> {
        match self {
            Schema::Option(of) | Schema::Seq(of) | Schema::Array(of, _) => vec![(None, of)],
            Schema::Named { of, .. } | Schema::Version { of, .. } => vec![(None, of)],
            Schema::Map(key, value) => vec![(None, key), (None, value)],
            Schema::Tuple(of) => of.iter().map(|of| (None, of)).collect(),
            Schema::Struct { fields, .. } | Schema::Enum { variants: fields, .. } => {
                fields.iter().map(|field| (Some(field.name.as_str()), &field.of)).collect()
            }
            _ => Vec::new(),
        }
    }

    /// The newest version of a type in it; 0, if none has versions.
    pub(crate) fn newest_version(&self) -> u32 {
        let own = if let Schema::Version { version, .. } = self { *version } else { 0 };
        self.parts().into_iter().map(Schema::newest_version).max().unwrap_or(0).max(own)
    }

    /// Why some type in it could not be traced.
    pub fn opaque(&self) -> Option<(&str, &str)> {
        match self {
            Schema::Opaque { name, why } => Some((name, why)),
            _ => self.parts().into_iter().find_map(Schema::opaque),
        }
    }

    /// Whether it goes back to something that is more than `levels` further out.
    pub(crate) fn escapes(&self, levels: u32) -> bool {
        match self {
            Schema::Back(back) => *back >= levels,
            Schema::Version { of, .. } => of.escapes(levels),
            _ => self.parts().into_iter().any(|of| of.escapes(levels + 1)),
        }
    }

    /// Whether a type with named fields or variants is in it.
    fn has_names(&self) -> bool {
        matches!(self, Schema::Struct { .. } | Schema::Enum { .. }) || self.parts().into_iter().any(Schema::has_names)
    }
}

/// As a type is written in Rust, by short names.
impl fmt::Display for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Schema::Option(of) => write!(f, "Option<{of}>"),
            Schema::Seq(of) => write!(f, "list of {of}"),
            Schema::Map(key, value) => write!(f, "map from {key} to {value}"),
            Schema::Tuple(of) => {
                let of: Vec<String> = of.iter().map(ToString::to_string).collect();
                write!(f, "({})", of.join(", "))
            }
            Schema::Array(of, count) => write!(f, "[{of}; {count}]"),
            Schema::Struct { name, .. } => write!(f, "struct {name}"),
            Schema::Enum { name, .. } => write!(f, "enum {name}"),
            Schema::Named { name, of } if matches!(**of, Schema::Tuple(_)) => write!(f, "{name}{of}"),
            Schema::Named { name, of } => write!(f, "{name}({of})"),
            Schema::Version { of, .. } => of.fmt(f),
            Schema::Back(_) => f.write_str("(itself)"),
            Schema::Opaque { name, .. } => f.write_str(name),
            leaf => f.write_str(leaf.word()),
        }
    }
}

/// A type's name without its path.
pub(crate) fn short(name: &str) -> &str {
    let end = name.find('<').unwrap_or(name.len());
    let start = name[..end].rfind("::").map_or(0, |path| path + 2);
    &name[start..end]
}

/// The name of the type whose own form differs.
pub(crate) fn changed_type(old: &Schema, new: &Schema) -> Option<String> {
    let differs = |(old, new): &(&Schema, &Schema)| old.canonical(true) != new.canonical(true);
    let inside = |was: &[&Schema], is: &[&Schema]| {
        let pairs = was.iter().copied().zip(is.iter().copied());
        pairs.filter(differs).find_map(|(old, new)| changed_type(old, new))
    };
    match (old.bare(), new.bare()) {
        (Schema::Struct { fields: was, .. }, Schema::Struct { name, fields: is })
        | (Schema::Enum { variants: was, .. }, Schema::Enum { name, variants: is }) => {
            let names = |all: &[Field]| all.iter().map(|field| field.name.clone()).collect::<Vec<_>>();
            let deeper = inside(&old.bare().parts(), &new.bare().parts());
            deeper.filter(|_| names(was) == names(is)).or_else(|| Some(name.clone()))
        }
        (old, new) => inside(&old.parts(), &new.parts()),
    }
}

/// In which way `new` differs from `old`, down to the field; `place` says where they stand, such as `the key`.
pub(crate) fn differences(old: &Schema, new: &Schema, place: &str) -> Vec<String> {
    let mut found = Vec::new();
    compare(old, new, place, &mut found);
    found
}

fn compare(old: &Schema, new: &Schema, place: &str, found: &mut Vec<String>) {
    if old.canonical(false) == new.canonical(false) {
        return;
    }
    let other = |found: &mut Vec<String>| found.push(format!("{place} was {old} and is now {new}"));
    match (old.bare(), new.bare()) {
        (Schema::Struct { fields: was, .. }, Schema::Struct { name, fields: is }) => {
            compare_named("field", was, is, name, found);
        }
        (Schema::Enum { variants: was, .. }, Schema::Enum { name, variants: is }) => {
            compare_named("variant", was, is, name, found);
        }
        (old_bare, new_bare) if old_bare.has_names() && new_bare.has_names() => match (old_bare, new_bare) {
            (Schema::Option(old), Schema::Option(new)) | (Schema::Seq(old), Schema::Seq(new)) => {
                compare(old, new, place, found);
            }
            (Schema::Array(old, was), Schema::Array(new, is)) if was == is => compare(old, new, place, found),
            (Schema::Map(old_key, old), Schema::Map(new_key, new)) => {
                compare(old_key, new_key, &format!("a key in {place}"), found);
                compare(old, new, &format!("a value in {place}"), found);
            }
            (Schema::Tuple(was), Schema::Tuple(is)) if was.len() == is.len() => {
                for (number, (old, new)) in was.iter().zip(is).enumerate() {
                    compare(old, new, &format!("part {} of {place}", number + 1), found);
                }
            }
            _ => other(found),
        },
        _ => other(found),
    }
}

/// Fields or variants by their names.
fn compare_named(what: &str, was: &[Field], is: &[Field], name: &str, found: &mut Vec<String>) {
    let before = found.len();
    let find = |all: &'_ [Field], name: &str| all.iter().position(|field| field.name == name);
    let full = |field: &Field| match what {
        "field" => format!("field `{}` of `{name}`", field.name),
        _ => format!("variant `{name}::{}`", field.name),
    };
    let of = |field: &Field| if field.of == Schema::Unit { String::new() } else { format!(" ({})", field.of) };
    found.extend(
        was.iter()
            .filter(|field| find(is, &field.name).is_none())
            .map(|f| format!("{}{} is gone", full(f), of(f))),
    );
    for field in is {
        match find(was, &field.name) {
            None => found.push(format!("{}{} is new", full(field), of(field))),
            Some(old) => match (&was[old].of, &field.of) {
                // A variant with fields is spoken of as `Payment::Card`.
                (Schema::Struct { fields: was, .. }, Schema::Struct { fields: is, .. }) if what == "variant" => {
                    compare_named("field", was, is, &format!("{name}::{}", field.name), found);
                }
                (old, new) => compare(old, new, &full(field), found),
            },
        }
    }
    if found.len() == before {
        let names = |all: &[Field]| all.iter().map(|field| field.name.clone()).collect::<Vec<_>>().join(", ");
        found.push(format!("the {what}s of `{name}` were {}, and are now {}", names(was), names(is)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(name: &str, of: Schema) -> Field {
        Field { name: name.into(), of }
    }

    fn order(fields: Vec<Field>) -> Schema {
        Schema::Struct { name: "Order".into(), fields }
    }

    fn found(old: &Schema, new: &Schema) -> Vec<String> {
        differences(old, new, "the value")
    }

    #[test]
    fn names_of_types_do_not_count_and_names_of_fields_do() {
        let old = order(vec![field("cents", Schema::I64)]);
        let wrapped = Schema::Named { name: "Cents".into(), of: Box::new(Schema::I64) };
        let moved = Schema::Struct { name: "Purchase".into(), fields: vec![field("cents", wrapped)] };
        assert_eq!((old.fingerprint(), found(&old, &moved)), (moved.fingerprint(), vec![]));
        assert_ne!(old.fingerprint(), order(vec![field("euros", Schema::I64)]).fingerprint());
    }

    /// It stands in manifests: people and tools compare it.
    #[test]
    fn fingerprints_never_change() {
        let schema = order(vec![field("at", Schema::I64), field("lines", Schema::Seq(Box::new(Schema::Str)))]);
        assert_eq!(schema.canonical(false), r#"struct("at":i64,"lines":seq(string,),)"#);
        assert_eq!(schema.fingerprint(), hash_key(r#"struct("at":i64,"lines":seq(string,),)"#));
    }

    #[test]
    fn differences_name_the_field() {
        let old = order(vec![field("at", Schema::I64), field("cents", Schema::I64), field("note", Schema::Str)]);
        let new = order(vec![
            field("at", Schema::I64),
            field("cents", Schema::U64),
            field("tags", Schema::Seq(Box::new(Schema::Str))),
        ]);
        let expected = [
            "field `note` of `Order` (string) is gone",
            "field `cents` of `Order` was i64 and is now u64",
            "field `tags` of `Order` (list of string) is new",
        ];
        assert_eq!(found(&old, &new), expected);
        let inside = |of| Schema::Tuple(vec![Schema::U64, Schema::Option(Box::new(of))]);
        assert_eq!(found(&inside(old), &inside(new)), expected);
    }

    #[test]
    fn orders_variants_and_other_types_are_named() {
        let two = |a: &str, b: &str| order(vec![field(a, Schema::I64), field(b, Schema::I64)]);
        assert_eq!(found(&two("a", "b"), &two("b", "a")), ["the fields of `Order` were a, b, and are now b, a"]);
        let kind = |variants| Schema::Enum { name: "Kind".into(), variants };
        let paid = |of| Schema::Struct { name: "Paid".into(), fields: vec![field("cents", of)] };
        let old = kind(vec![field("Free", Schema::Unit), field("Paid", paid(Schema::I64))]);
        let new = kind(vec![field("Paid", paid(Schema::I32)), field("Gift", Schema::Unit)]);
        let expected = [
            "variant `Kind::Free` is gone",
            "field `cents` of `Kind::Paid` was i64 and is now i32",
            "variant `Kind::Gift` is new",
        ];
        assert_eq!(found(&old, &new), expected);
        assert_eq!(found(&old, &Schema::Str), ["the value was enum Kind and is now string"]);
        let pair = |of| Schema::Tuple(vec![Schema::U64, of]);
        assert_eq!(found(&pair(Schema::I64), &pair(Schema::F64)), ["the value was (u64, i64) and is now (u64, f64)"]);
    }

    #[test]
    fn what_goes_back_too_far_escapes() {
        let list = Schema::Option(Box::new(Schema::Tuple(vec![Schema::I64, Schema::Back(1)])));
        assert!(!list.escapes(0));
        let Schema::Option(of) = &list else { panic!("an option") };
        assert!(of.escapes(0));
    }

    #[test]
    fn short_names_have_no_path() {
        assert_eq!(short("shop::order::Order"), "Order");
        assert_eq!(short("shop::Pair<shop::A, shop::B>"), "Pair");
        assert_eq!(short("u64"), "u64");
    }
}
