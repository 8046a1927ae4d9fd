//! The deserialiser that a type is shown to while it is traced: it notes what is asked for, and answers with made-up values.

use std::any::type_name;

use serde::de::value::U32Deserializer;
use serde::de::{self, DeserializeSeed, Deserializer, IntoDeserializer, Visitor};

use super::{Kind, NodeId, Stop, Traced, Tracer};
use crate::schema::Schema;

/// Reads one part.
pub(super) struct At<'t, 'm> {
    pub(super) tracer: &'t mut Tracer<'m>,
    /// Which part; none, while the smallest value of something is made up.
    pub(super) node: Option<NodeId>,
    /// The type that is asked for, where it is known before its visitor is.
    pub(super) of: Option<&'static str>,
}

impl At<'_, '_> {
    /// Whether what is read is a type with versions.
    fn note<'de, V: Visitor<'de>>(&mut self) {
        let Some(node) = self.node else { return };
        let names = self.of.into_iter().chain([type_name::<V::Value>()]);
        let migrations = self.tracer.migrations;
        if let Some(version) = names.into_iter().find_map(|name| migrations.version_of(name)) {
            self.tracer.nodes[node].version = Some(version);
        }
    }
}

/// Every integer type takes these, cut to its width.
const NUMBERS: [u64; 9] = [0, 1, 2, 7, 12, 100, 255, 2000, 1_000_000_000];

/// Texts of usual forms.
const TEXTS: [&str; 22] = [
    "",
    "a",
    "0",
    "1970-01-01T00:00:00Z",
    "1970-01-01T00:00:00",
    "1970-01-01",
    "00:00:00",
    "1970-01-01T00:00:00+00:00[UTC]",
    "PT1S",
    "1s",
    "UTC",
    "true",
    "A",
    "127.0.0.1",
    "::1",
    "127.0.0.1:80",
    "127.0.0.1/32",
    "00000000-0000-0000-0000-000000000000",
    "http://localhost/",
    "1.0.0",
    "#000000",
    "EUR",
];

/// Zeros, as many as usual types of bytes have.
const BYTES: [&[u8]; 8] = [&[], &[0], &[0; 16], &[0; 4], &[0; 8], &[0; 12], &[0; 20], &[0; 32]];

/// Methods that read one number.
macro_rules! numbers {
    ($($method:ident $visit:ident $type:ty: $schema:ident),*) => {$(
        fn $method<V: Visitor<'de>>(mut self, visitor: V) -> Traced<V::Value> {
            self.note::<V>();
            let number = self.tracer.sample::<V, _>(self.node, Schema::$schema, &NUMBERS)?;
            visitor.$visit(number as $type)
        }
    )*};
}

/// Methods that read one of these values.
macro_rules! samples {
    ($($method:ident $visit:ident $schema:ident $samples:expr, $own:expr;)*) => {$(
        fn $method<V: Visitor<'de>>(mut self, visitor: V) -> Traced<V::Value> {
            self.note::<V>();
            visitor.$visit($own(self.tracer.sample::<V, _>(self.node, Schema::$schema, $samples)?))
        }
    )*};
}

/// Methods that only formats which describe themselves can serve.
macro_rules! refused {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, _: V) -> Traced<V::Value> {
            self.tracer.give_up(
                "it can only be read from formats that describe themselves (`tag`, `untagged`, `flatten`, `serde_json::Value`)",
            )
        }
    )*};
}

impl<'de> Deserializer<'de> for At<'_, '_> {
    type Error = Stop;

    numbers!(deserialize_i8 visit_i8 i8: I8, deserialize_i16 visit_i16 i16: I16, deserialize_i32 visit_i32 i32: I32,
        deserialize_i64 visit_i64 i64: I64, deserialize_i128 visit_i128 i128: I128, deserialize_u8 visit_u8 u8: U8,
        deserialize_u16 visit_u16 u16: U16, deserialize_u32 visit_u32 u32: U32, deserialize_u64 visit_u64 u64: U64,
        deserialize_u128 visit_u128 u128: U128, deserialize_f32 visit_f32 f32: F32, deserialize_f64 visit_f64 f64: F64);

    samples! {
        deserialize_bool visit_bool Bool &[false, true], |sample| sample;
        deserialize_char visit_char Char &['a', 'A', '0', ' '], |sample| sample;
        deserialize_str visit_borrowed_str Str &TEXTS, |sample| sample;
        deserialize_string visit_string Str &TEXTS, str::to_string;
        deserialize_bytes visit_borrowed_bytes Bytes &BYTES, |sample| sample;
        deserialize_byte_buf visit_byte_buf Bytes &BYTES, <[u8]>::to_vec;
    }

    refused!(deserialize_any deserialize_identifier deserialize_ignored_any);

    fn deserialize_unit<V: Visitor<'de>>(mut self, visitor: V) -> Traced<V::Value> {
        self.note::<V>();
        if let Some(node) = self.node {
            self.tracer.nodes[node].kind = Kind::Leaf(Schema::Unit);
            self.tracer.nodes[node].done = true;
        }
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _name: &'static str, visitor: V) -> Traced<V::Value> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(mut self, visitor: V) -> Traced<V::Value> {
        self.note::<V>();
        let node = self.tracer.enter_nameless(self.node)?;
        let value = match node {
            None => visitor.visit_none(),
            Some(node) => {
                let part = self.tracer.part(node, Kind::Option);
                visitor.visit_some(At { tracer: self.tracer, node: Some(part), of: None })
            }
        }?;
        self.tracer.finish(node);
        self.tracer.leave(node);
        Ok(value)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(mut self, name: &'static str, visitor: V) -> Traced<V::Value> {
        self.note::<V>();
        let node = self.tracer.enter::<V>(self.node, 0)?;
        let part = node.map(|node| {
            let part = self.tracer.part(node, |part| Kind::Named("", part));
            self.tracer.nodes[node].kind = Kind::Named(name, part);
            part
        });
        let value = visitor.visit_newtype_struct(At { tracer: self.tracer, node: part, of: None })?;
        self.tracer.finish(node);
        self.tracer.leave(node);
        Ok(value)
    }

    fn deserialize_seq<V: Visitor<'de>>(mut self, visitor: V) -> Traced<V::Value> {
        self.note::<V>();
        let node = self.tracer.enter_nameless(self.node)?;
        let part = node.map(|node| self.tracer.part(node, Kind::Seq));
        let value = visitor.visit_seq(Elements { tracer: self.tracer, part })?;
        self.tracer.finish(node);
        self.tracer.leave(node);
        Ok(value)
    }

    fn deserialize_map<V: Visitor<'de>>(mut self, visitor: V) -> Traced<V::Value> {
        self.note::<V>();
        let node = self.tracer.enter_nameless(self.node)?;
        let parts = node.map(|node| match self.tracer.nodes[node].kind {
            Kind::Map(key, value) => (key, value),
            _ => {
                let parts = (self.tracer.add(), self.tracer.add());
                self.tracer.nodes[node].kind = Kind::Map(parts.0, parts.1);
                parts
            }
        });
        let (key, part) = parts.unzip();
        let value = visitor.visit_map(Entry { tracer: self.tracer, key, value: part })?;
        self.tracer.finish(node);
        self.tracer.leave(node);
        Ok(value)
    }

    fn deserialize_tuple<V: Visitor<'de>>(mut self, len: usize, visitor: V) -> Traced<V::Value> {
        self.note::<V>();
        let node = self.tracer.enter_nameless(self.node)?;
        let value = visitor.visit_seq(Parts::tuple(self.tracer, node, len))?;
        self.tracer.finish(node);
        self.tracer.leave(node);
        Ok(value)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        mut self,
        name: &'static str,
        len: usize,
        visitor: V,
    ) -> Traced<V::Value> {
        self.note::<V>();
        let node = self.tracer.enter::<V>(self.node, 0)?;
        let part = node.map(|node| {
            let part = self.tracer.part(node, |part| Kind::Named("", part));
            self.tracer.nodes[node].kind = Kind::Named(name, part);
            part
        });
        let value = visitor.visit_seq(Parts::tuple(self.tracer, part, len))?;
        self.tracer.finish(part);
        self.tracer.finish(node);
        self.tracer.leave(node);
        Ok(value)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        mut self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Traced<V::Value> {
        self.note::<V>();
        let node = self.tracer.enter::<V>(self.node, 0)?;
        let value = visitor.visit_seq(Parts::fields(self.tracer, node, name, fields))?;
        self.tracer.finish(node);
        self.tracer.leave(node);
        Ok(value)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        mut self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Traced<V::Value> {
        self.note::<V>();
        let node = self.tracer.enter::<V>(self.node, variants.len())?;
        if variants.is_empty() {
            return self.tracer.give_up(format!("`{name}` has no values"));
        }
        let (variant, part) = match node {
            None => (self.tracer.small_variants.get(type_name::<V>()).copied().unwrap_or(0), None),
            Some(node) => {
                if !matches!(self.tracer.nodes[node].kind, Kind::Enum(..)) {
                    let parts = variants.iter().map(|variant| (*variant, self.tracer.add())).collect();
                    self.tracer.nodes[node].kind = Kind::Enum(name, parts, 0);
                }
                let Kind::Enum(_, parts, good) = &self.tracer.nodes[node].kind else {
                    return self.tracer.give_up("it reads itself in several ways");
                };
                let next = parts.iter().position(|(_, part)| !self.tracer.nodes[*part].done).unwrap_or(*good);
                (next, Some(parts[next].1))
            }
        };
        let value =
            visitor.visit_enum(Variant { tracer: self.tracer, number: variant, name: variants[variant], part })?;
        if let Some(node) = node
            && let Kind::Enum(_, _, good) = &mut self.tracer.nodes[node].kind
        {
            *good = variant;
        }
        self.tracer.finish(node);
        self.tracer.leave(node);
        Ok(value)
    }

    /// As the codec of checkpoints is not.
    fn is_human_readable(&self) -> bool {
        false
    }
}

/// The elements of a list: one that is looked at, or none for the smallest value.
struct Elements<'t, 'm> {
    tracer: &'t mut Tracer<'m>,
    part: Option<NodeId>,
}

impl<'de> de::SeqAccess<'de> for Elements<'_, '_> {
    type Error = Stop;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Traced<Option<S::Value>> {
        let Some(part) = self.part.take() else { return Ok(None) };
        seed.deserialize(At { tracer: self.tracer, node: Some(part), of: Some(type_name::<S::Value>()) })
            .map(Some)
    }
}

/// The entries of a map: one, or none.
struct Entry<'t, 'm> {
    tracer: &'t mut Tracer<'m>,
    key: Option<NodeId>,
    value: Option<NodeId>,
}

impl<'de> de::MapAccess<'de> for Entry<'_, '_> {
    type Error = Stop;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Traced<Option<S::Value>> {
        let Some(key) = self.key.take() else { return Ok(None) };
        seed.deserialize(At { tracer: self.tracer, node: Some(key), of: Some(type_name::<S::Value>()) })
            .map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Traced<S::Value> {
        seed.deserialize(At { tracer: self.tracer, node: self.value, of: Some(type_name::<S::Value>()) })
    }
}

/// The parts of a tuple or struct, one after the other.
struct Parts<'t, 'm> {
    tracer: &'t mut Tracer<'m>,
    node: Option<NodeId>,
    /// The names of fields.
    names: Option<&'static [&'static str]>,
    read: usize,
    len: usize,
}

impl<'t, 'm> Parts<'t, 'm> {
    fn tuple(tracer: &'t mut Tracer<'m>, node: Option<NodeId>, len: usize) -> Self {
        if let Some(node) = node
            && !matches!(tracer.nodes[node].kind, Kind::Tuple(_))
        {
            tracer.nodes[node].kind = Kind::Tuple(Vec::new());
        }
        Parts { tracer, node, names: None, read: 0, len }
    }

    fn fields(tracer: &'t mut Tracer<'m>, node: Option<NodeId>, name: &str, names: &'static [&'static str]) -> Self {
        if let Some(node) = node
            && !matches!(tracer.nodes[node].kind, Kind::Struct(..))
        {
            tracer.nodes[node].kind = Kind::Struct(name.into(), Vec::new());
        }
        Parts { tracer, node, names: Some(names), read: 0, len: names.len() }
    }

    /// The next part, which is new if it was not read before.
    fn next(&mut self) -> Option<NodeId> {
        let node = self.node?;
        let known = match &self.tracer.nodes[node].kind {
            Kind::Tuple(parts) => parts.get(self.read).copied(),
            Kind::Struct(_, parts) => parts.get(self.read).map(|(_, part)| *part),
            _ => None,
        };
        let next = known.unwrap_or_else(|| {
            let part = self.tracer.add();
            match &mut self.tracer.nodes[node].kind {
                Kind::Tuple(parts) => parts.push(part),
                Kind::Struct(_, parts) => {
                    let name = self.names.and_then(|names| names.get(self.read).copied());
                    parts.push((name.unwrap_or_default(), part));
                }
                _ => {}
            }
            part
        });
        Some(next)
    }
}

impl<'de> de::SeqAccess<'de> for Parts<'_, '_> {
    type Error = Stop;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Traced<Option<S::Value>> {
        if self.read == self.len {
            return Ok(None);
        }
        let node = self.next();
        self.read += 1;
        seed.deserialize(At { tracer: self.tracer, node, of: Some(type_name::<S::Value>()) }).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.len - self.read)
    }
}

/// One variant of an enum.
struct Variant<'t, 'm> {
    tracer: &'t mut Tracer<'m>,
    number: usize,
    name: &'static str,
    part: Option<NodeId>,
}

impl<'de> de::EnumAccess<'de> for Variant<'_, '_> {
    type Error = Stop;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Traced<(S::Value, Self)> {
        let number: U32Deserializer<Stop> = (self.number as u32).into_deserializer();
        Ok((seed.deserialize(number)?, self))
    }
}

impl<'de> de::VariantAccess<'de> for Variant<'_, '_> {
    type Error = Stop;

    fn unit_variant(self) -> Traced<()> {
        if let Some(part) = self.part {
            self.tracer.nodes[part].kind = Kind::Leaf(Schema::Unit);
            self.tracer.nodes[part].done = true;
        }
        Ok(())
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Traced<S::Value> {
        let part = self.part;
        let mut parts = Parts::tuple(self.tracer, part, 1);
        let value = de::SeqAccess::next_element_seed(&mut parts, seed)?;
        self.tracer.finish(part);
        value.ok_or_else(|| Stop("a variant without its value".into()))
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Traced<V::Value> {
        let value = visitor.visit_seq(Parts::tuple(self.tracer, self.part, len))?;
        self.tracer.finish(self.part);
        Ok(value)
    }

    fn struct_variant<V: Visitor<'de>>(self, fields: &'static [&'static str], visitor: V) -> Traced<V::Value> {
        let value = visitor.visit_seq(Parts::fields(self.tracer, self.part, self.name, fields))?;
        self.tracer.finish(self.part);
        Ok(value)
    }
}
