//! A schema as one line, as it stands in manifests: `struct(Order,cents=i64,lines=seq(tuple(string,u32)))`.
//!
//! Short enough to be read by people, and without the depth that the JSON around it may not have. Names that hold anything
//! that has a meaning here are in quotes, like those of JSON.

use std::fmt::{self, Write};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Field, Schema};

/// How deep a schema may be that is read: it comes from disk.
pub(crate) const MOST_DEPTH: usize = 150;

const LEAVES: [(&str, Schema); 17] = [
    ("unit", Schema::Unit),
    ("bool", Schema::Bool),
    ("i8", Schema::I8),
    ("i16", Schema::I16),
    ("i32", Schema::I32),
    ("i64", Schema::I64),
    ("i128", Schema::I128),
    ("u8", Schema::U8),
    ("u16", Schema::U16),
    ("u32", Schema::U32),
    ("u64", Schema::U64),
    ("u128", Schema::U128),
    ("f32", Schema::F32),
    ("f64", Schema::F64),
    ("char", Schema::Char),
    ("string", Schema::Str),
    ("bytes", Schema::Bytes),
];

/// Whether a name needs no quotes.
fn is_bare(name: &str) -> bool {
    !name.is_empty() && !name.contains(|c: char| "()=,\"\\".contains(c) || c.is_whitespace() || c.is_control())
}

fn write_name(name: &str, out: &mut String) {
    match serde_json::to_string(name) {
        Ok(quoted) if !is_bare(name) => out.push_str(&quoted),
        _ => out.push_str(name),
    }
}

impl Schema {
    /// The line.
    pub(crate) fn to_text(&self) -> String {
        let mut out = String::new();
        self.write_text(&mut out);
        out
    }

    fn write_text(&self, out: &mut String) {
        if let Some((word, _)) = LEAVES.iter().find(|(_, leaf)| leaf == self) {
            return out.push_str(word);
        }
        out.push_str(match self {
            Schema::Named { .. } => "named",
            Schema::Version { .. } => "version",
            Schema::Back(_) => "back",
            other => other.word(),
        });
        out.push('(');
        let start = out.len();
        match self {
            Schema::Struct { name, .. } | Schema::Enum { name, .. } | Schema::Named { name, .. } => {
                write_name(name, out)
            }
            Schema::Version { name, version, .. } => {
                write_name(name, out);
                let _ = write!(out, ",{version}");
            }
            Schema::Array(_, count) => drop(write!(out, "{count}")),
            Schema::Back(levels) => drop(write!(out, "{levels}")),
            Schema::Opaque { name, why } => {
                write_name(name, out);
                out.push(',');
                write_name(why, out);
            }
            _ => {}
        }
        for (name, of) in self.labelled() {
            if out.len() > start {
                out.push(',');
            }
            if let Some(name) = name {
                write_name(name, out);
                out.push('=');
            }
            of.write_text(out);
        }
        out.push(')');
    }
}

/// A text that is no schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoSchema(String);

impl fmt::Display for NoSchema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NoSchema {}

impl FromStr for Schema {
    type Err = NoSchema;

    fn from_str(text: &str) -> Result<Self, NoSchema> {
        let mut parser = Parser { rest: text, depth: 0 };
        match parser.schema() {
            Some(schema) if parser.rest.is_empty() => Ok(schema),
            _ => Err(NoSchema(format!("no schema from byte {} of `{text}`", text.len() - parser.rest.len()))),
        }
    }
}

struct Parser<'t> {
    rest: &'t str,
    depth: usize,
}

impl Parser<'_> {
    fn eat(&mut self, what: char) -> Option<()> {
        self.rest = self.rest.strip_prefix(what)?;
        Some(())
    }

    fn name(&mut self) -> Option<String> {
        if self.rest.starts_with('"') {
            let mut quoted = serde_json::Deserializer::from_str(self.rest).into_iter::<String>();
            let name = quoted.next()?.ok()?;
            self.rest = self.rest.get(quoted.byte_offset()..)?;
            return Some(name);
        }
        let end = self.rest.find(|c: char| !is_bare(c.encode_utf8(&mut [0; 4]))).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest;
        is_bare(name).then(|| name.to_string())
    }

    fn number<N: FromStr>(&mut self) -> Option<N> {
        self.name()?.parse().ok()
    }

    fn schema(&mut self) -> Option<Schema> {
        if self.depth == MOST_DEPTH {
            return None;
        }
        self.depth += 1;
        let schema = self.inner();
        self.depth -= 1;
        schema
    }

    fn boxed(&mut self) -> Option<Box<Schema>> {
        self.schema().map(Box::new)
    }

    fn inner(&mut self) -> Option<Schema> {
        let word = self.name()?;
        if let Some((_, leaf)) = LEAVES.iter().find(|(leaf, _)| *leaf == word) {
            return Some(leaf.clone());
        }
        self.eat('(')?;
        let schema = match word.as_str() {
            "option" => Schema::Option(self.boxed()?),
            "seq" => Schema::Seq(self.boxed()?),
            "map" => {
                let key = self.boxed()?;
                self.eat(',')?;
                Schema::Map(key, self.boxed()?)
            }
            "tuple" => {
                let mut of = Vec::new();
                while !self.rest.starts_with(')') {
                    if !of.is_empty() {
                        self.eat(',')?;
                    }
                    of.push(self.schema()?);
                }
                Schema::Tuple(of)
            }
            "array" => {
                let count = self.number()?;
                self.eat(',')?;
                Schema::Array(self.boxed()?, count)
            }
            "struct" => Schema::Struct { name: self.name()?, fields: self.fields()? },
            "enum" => Schema::Enum { name: self.name()?, variants: self.fields()? },
            "named" => {
                let name = self.name()?;
                self.eat(',')?;
                Schema::Named { name, of: self.boxed()? }
            }
            "version" => {
                let name = self.name()?;
                self.eat(',')?;
                let version = self.number()?;
                self.eat(',')?;
                Schema::Version { name, version, of: self.boxed()? }
            }
            "back" => Schema::Back(self.number()?),
            "opaque" => {
                let name = self.name()?;
                self.eat(',')?;
                Schema::Opaque { name, why: self.name()? }
            }
            _ => return None,
        };
        self.eat(')')?;
        Some(schema)
    }

    /// What follows the name of a type, up to the end.
    fn fields(&mut self) -> Option<Vec<Field>> {
        let mut fields = Vec::new();
        while !self.rest.starts_with(')') {
            self.eat(',')?;
            let name = self.name()?;
            self.eat('=')?;
            fields.push(Field { name, of: self.schema()? });
        }
        Some(fields)
    }
}

impl Serialize for Schema {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.to_text())
    }
}

impl<'de> Deserialize<'de> for Schema {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_never_change() {
        let line = "struct(Order,cents=i64,lines=seq(tuple(string,named(shop::Id,u32),tuple())),\
                    kind=version(Kind,3,enum(Kind,None=unit,Some=struct(Some,\"a b\"=option(back(2)))))\
                    ,rest=map(char,array(20,u8)),any=opaque(\"serde_json::Value (it)\",why))";
        assert_eq!(line.parse::<Schema>().expect("parses").to_text(), line);
    }

    fn name() -> impl Strategy<Value = String> {
        prop_oneof!["[a-z_]{1,4}", ".{0,4}", "[(),=\"\\\\ :]{0,3}"]
    }

    fn any_schema() -> impl Strategy<Value = Schema> {
        let leaf = prop_oneof![
            4 => prop::sample::select(LEAVES.map(|(_, leaf)| leaf).to_vec()),
            1 => any::<u32>().prop_map(Schema::Back),
            1 => (name(), name()).prop_map(|(name, why)| Schema::Opaque { name, why }),
        ];
        leaf.prop_recursive(4, 30, 4, |inner| {
            let boxed = || inner.clone().prop_map(Box::new);
            let fields = || {
                let field = (name(), inner.clone()).prop_map(|(name, of)| Field { name, of });
                prop::collection::vec(field, 0..4)
            };
            prop_oneof![
                boxed().prop_map(Schema::Option),
                boxed().prop_map(Schema::Seq),
                (boxed(), boxed()).prop_map(|(key, value)| Schema::Map(key, value)),
                prop::collection::vec(inner.clone(), 0..4).prop_map(Schema::Tuple),
                (boxed(), any::<u64>()).prop_map(|(of, count)| Schema::Array(of, count)),
                (name(), fields()).prop_map(|(name, fields)| Schema::Struct { name, fields }),
                (name(), fields()).prop_map(|(name, variants)| Schema::Enum { name, variants }),
                (name(), boxed()).prop_map(|(name, of)| Schema::Named { name, of }),
                (name(), any::<u32>(), boxed()).prop_map(|(name, version, of)| Schema::Version { name, version, of }),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(schema in any_schema()) {
            let json = serde_json::to_string(&schema).expect("writes");
            prop_assert_eq!(serde_json::from_str::<Schema>(&json).expect("reads"), schema);
        }

        #[test]
        fn damaged_lines_are_refused_or_read(schema in any_schema(), cut in any::<prop::sample::Index>(), put in "[a-z(),=\"]{0,3}") {
            let text = schema.to_text();
            let places: Vec<usize> = text.char_indices().map(|(place, _)| place).collect();
            let (head, tail) = text.split_at(places[cut.index(places.len())]);
            for damaged in [format!("{head}{put}{tail}"), format!("{head}{put}"), format!("{put}{tail}")] {
                if let Ok(read) = damaged.parse::<Schema>() {
                    prop_assert_eq!(read.to_text().parse::<Schema>(), Ok(read));
                }
            }
        }
    }

    #[test]
    fn depth_has_an_end() {
        let deep = |levels: usize| format!("{}u8{}", "seq(".repeat(levels), ")".repeat(levels));
        assert!(deep(MOST_DEPTH - 1).parse::<Schema>().is_ok());
        let error = deep(100_000).parse::<Schema>().expect_err("too deep").to_string();
        assert!(error.starts_with("no schema from byte "), "{}", &error[..50]);
    }
}
