//! From a type to its [`Schema`], by watching how it reads itself.
//!
//! The type is deserialised from nothing, several times: a deserialiser notes what it is asked for and answers with a made-up
//! value, each time one that shows more (the next variant of an enum), until all has been seen. So every type that can
//! be kept has a schema, those of others too, and what serde's attributes do to the bytes is seen as it is.
//!
//! * A type that refuses a value (`NonZeroU32` a zero, a date an empty text) is offered others.
//! * A type that contains itself is met again while it is being read; it then gets the smallest value it can have.
//! * A type that fits nothing of all this is known by its name, as [`Schema::Opaque`]: it can be kept, but its changes are not
//!   seen, and it cannot be migrated.
//!
//! **Source**: the idea is that of `serde-reflection`, which knows containers by their bare names: it refuses two types of
//! one name, and `Held<u64>` beside `Held<String>`. Here a type is known by the full name of the visitor that reads it.

mod reader;

use std::any::type_name;
use std::collections::HashMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use reader::At;
use serde::de::{self, DeserializeOwned, Visitor};

use crate::evolve::Migrations;
use crate::schema::{Field, MOST_DEPTH, Schema};

/// How often a type is read at most, and of how many parts it may consist.
const MOST_PASSES: usize = 10_000;
const MOST_NODES: usize = 50_000;

/// The most parts that a tuple has in serde; more of one kind are an array.
const MOST_OF_TUPLE: usize = 16;

/// The schema of `T`, in which types that `migrations` knows carry their versions.
pub fn trace<T: DeserializeOwned>(migrations: &Migrations) -> Schema {
    let traced = catch_unwind(AssertUnwindSafe(|| Tracer::new(migrations).trace::<T>()));
    let why = match traced {
        Ok(Ok(schema)) if depth(&schema) <= MOST_DEPTH => return schema,
        Ok(Ok(_)) => "it is too deep".into(),
        Ok(Err(why)) => why,
        Err(_) => "its `Deserialize` panicked".into(),
    };
    Schema::Opaque { name: type_name::<T>().into(), why }
}

/// How many levels a schema has.
fn depth(schema: &Schema) -> usize {
    1 + schema.parts().into_iter().map(depth).max().unwrap_or(0)
}

/// Why a pass ended early. The tracer knows more.
#[derive(Debug)]
struct Stop(String);

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Stop {}

impl de::Error for Stop {
    fn custom<M: fmt::Display>(message: M) -> Self {
        Stop(message.to_string())
    }
}

type Traced<T> = Result<T, Stop>;

/// A part of the type, by its number; 0 is the whole.
type NodeId = usize;

/// A place at which values are made up: a part of the type, or nowhere in particular; with the visitor that takes it.
type Place = (Option<NodeId>, &'static str);

struct Node {
    kind: Kind,
    /// Everything in it has been seen.
    done: bool,
    version: Option<(&'static str, u32)>,
}

enum Kind {
    Unknown,
    Leaf(Schema),
    Option(NodeId),
    Seq(NodeId),
    Map(NodeId, NodeId),
    Tuple(Vec<NodeId>),
    Struct(String, Vec<(&'static str, NodeId)>),
    Named(&'static str, NodeId),
    /// Its name; its variants; the one that was read last, so it can be read.
    Enum(&'static str, Vec<(&'static str, NodeId)>, usize),
    Back(NodeId),
}

struct Tracer<'m> {
    migrations: &'m Migrations,
    nodes: Vec<Node>,
    /// What is being read, from the outside in.
    outer: Vec<(&'static str, NodeId)>,
    /// What is being read of the smallest value of something that contains itself: its visitor, and its variants, if it is an enum.
    small: Vec<(&'static str, usize)>,
    /// Which variant such an enum gets.
    small_variants: HashMap<&'static str, usize>,
    /// Which of the made-up values is offered.
    samples: HashMap<Place, usize>,
    last_leaf: Option<Place>,
    /// The pass was ended for the sake of the next one.
    again: bool,
    given_up: Option<String>,
}

impl<'m> Tracer<'m> {
    fn new(migrations: &'m Migrations) -> Self {
        Tracer {
            migrations,
            nodes: Vec::new(),
            outer: Vec::new(),
            small: Vec::new(),
            small_variants: HashMap::new(),
            samples: HashMap::new(),
            last_leaf: None,
            again: false,
            given_up: None,
        }
    }

    fn trace<T: DeserializeOwned>(mut self) -> Result<Schema, String> {
        let root = self.add();
        for _ in 0..MOST_PASSES {
            self.outer.clear();
            self.small.clear();
            self.last_leaf = None;
            self.again = false;
            let read = T::deserialize(At { node: Some(root), of: Some(type_name::<T>()), tracer: &mut self });
            if let Some(why) = self.given_up {
                return Err(why);
            }
            match read {
                Ok(_) if self.nodes[root].done => return self.schema(root, &mut Vec::new()),
                Ok(_) => {}
                // Types may hide what stopped them behind an error of their own.
                Err(_) if self.again => {}
                Err(Stop(why)) => {
                    let Some(leaf) = self.last_leaf else { return Err(why) };
                    *self.samples.entry(leaf).or_default() += 1;
                }
            }
        }
        Err("it never shows all of itself".into())
    }

    fn add(&mut self) -> NodeId {
        if self.nodes.len() >= MOST_NODES {
            self.given_up.get_or_insert_with(|| format!("it has more than {MOST_NODES} parts"));
            return 0;
        }
        self.nodes.push(Node { kind: Kind::Unknown, done: false, version: None });
        self.nodes.len() - 1
    }

    fn give_up<T>(&mut self, why: impl Into<String>) -> Traced<T> {
        let why = why.into();
        self.given_up.get_or_insert_with(|| why.clone());
        Err(Stop(why))
    }

    /// Begins to read something that has parts; `variants`, if it is an enum. Returns where, if it has not been met further out.
    fn enter<'de, V: Visitor<'de>>(&mut self, at: Option<NodeId>, variants: usize) -> Traced<Option<NodeId>> {
        self.enter_as(type_name::<V>(), at, variants)
    }

    /// The same for a type without a name: only those with one are taken for what contains itself, so that a type looks the same
    /// in a list of its like and elsewhere.
    fn enter_nameless(&mut self, at: Option<NodeId>) -> Traced<Option<NodeId>> {
        self.enter_as("", at, 0)
    }

    fn enter_as(&mut self, visitor: &'static str, at: Option<NodeId>, variants: usize) -> Traced<Option<NodeId>> {
        if self.outer.len() + self.small.len() > 4 * MOST_DEPTH {
            return self.give_up("it is too deep");
        }
        let is_it = |other: &str| !visitor.is_empty() && other == visitor;
        if let Some(node) = at {
            let Some((_, met)) = self.outer.iter().rfind(|(other, _)| is_it(other)) else {
                self.outer.push((visitor, node));
                return Ok(Some(node));
            };
            self.nodes[node].kind = Kind::Back(*met);
            self.nodes[node].done = true;
        }
        if self.small.iter().any(|(other, _)| is_it(other)) {
            return self.another_variant();
        }
        self.small.push((visitor, variants));
        Ok(None)
    }

    fn leave(&mut self, at: Option<NodeId>) {
        match at {
            Some(_) => drop(self.outer.pop()),
            None => drop(self.small.pop()),
        }
    }

    /// The smallest value has no end: the innermost enum that has another variant gets that one.
    fn another_variant<T>(&mut self) -> Traced<T> {
        for (visitor, variants) in self.small.iter().rev() {
            let variant = self.small_variants.entry(visitor).or_default();
            if *variant + 1 < *variants {
                *variant += 1;
                self.again = true;
                return Err(Stop("another variant".into()));
            }
        }
        self.give_up("it contains itself without end")
    }

    /// The made-up value for a leaf, or nothing if there are no more.
    fn sample<'de, V: Visitor<'de>, S: Copy>(&mut self, at: Option<NodeId>, leaf: Schema, samples: &[S]) -> Traced<S> {
        if let Some(node) = at {
            self.nodes[node].kind = Kind::Leaf(leaf);
            self.nodes[node].done = true;
        }
        let place = (at, type_name::<V>());
        self.last_leaf = Some(place);
        let number = self.samples.get(&place).copied().unwrap_or(0);
        match samples.get(number) {
            Some(sample) => Ok(*sample),
            None => self.give_up(format!("`{}` takes none of the values that are offered", type_name::<V::Value>())),
        }
    }

    /// The only part of a node.
    fn part(&mut self, node: NodeId, kind: fn(NodeId) -> Kind) -> NodeId {
        match self.nodes[node].kind {
            Kind::Option(part) | Kind::Seq(part) | Kind::Named(_, part) => part,
            _ => {
                let part = self.add();
                self.nodes[node].kind = kind(part);
                part
            }
        }
    }

    fn finish(&mut self, node: Option<NodeId>) {
        let Some(node) = node else { return };
        let done = |part: &NodeId| self.nodes[*part].done;
        self.nodes[node].done = match &self.nodes[node].kind {
            Kind::Unknown => false,
            Kind::Leaf(_) | Kind::Back(_) => true,
            Kind::Option(part) | Kind::Seq(part) | Kind::Named(_, part) => done(part),
            Kind::Map(key, value) => done(key) && done(value),
            Kind::Tuple(parts) => parts.iter().all(done),
            Kind::Struct(_, parts) | Kind::Enum(_, parts, _) => parts.iter().all(|(_, part)| done(part)),
        };
    }

    /// What has been seen of a part; `around` are the parts that it is in.
    fn schema(&self, node: NodeId, around: &mut Vec<NodeId>) -> Result<Schema, String> {
        let Node { kind, version, .. } = &self.nodes[node];
        around.push(node);
        let boxed = |part: &NodeId, around: &mut Vec<NodeId>| self.schema(*part, around).map(Box::new);
        let fields = |parts: &[(&'static str, NodeId)], around: &mut Vec<NodeId>| {
            let field =
                |(name, part): &(&str, NodeId)| Ok(Field { name: name.to_string(), of: self.schema(*part, around)? });
            parts.iter().map(field).collect::<Result<Vec<_>, String>>()
        };
        let schema = match kind {
            Kind::Unknown => return Err("a part of it never shows itself".into()),
            Kind::Leaf(leaf) => leaf.clone(),
            Kind::Option(part) => Schema::Option(boxed(part, around)?),
            Kind::Seq(part) => Schema::Seq(boxed(part, around)?),
            Kind::Map(key, value) => Schema::Map(boxed(key, around)?, boxed(value, around)?),
            Kind::Tuple(parts) => {
                let of = parts.iter().map(|part| self.schema(*part, around)).collect::<Result<Vec<_>, _>>()?;
                match of.first() {
                    Some(first) if of.len() > MOST_OF_TUPLE && of.iter().all(|other| other == first) => {
                        Schema::Array(Box::new(first.clone()), of.len() as u64)
                    }
                    _ => Schema::Tuple(of),
                }
            }
            Kind::Struct(name, parts) => Schema::Struct { name: name.clone(), fields: fields(parts, around)? },
            Kind::Named(name, part) => Schema::Named { name: name.to_string(), of: boxed(part, around)? },
            Kind::Enum(name, parts, _) => Schema::Enum { name: name.to_string(), variants: fields(parts, around)? },
            Kind::Back(outer) => {
                let levels = around.iter().rev().skip(1).position(|other| other == outer);
                Schema::Back(levels.ok_or("a part of it is in two places")? as u32)
            }
        };
        around.pop();
        Ok(match version {
            Some((name, version)) => {
                Schema::Version { name: name.to_string(), version: *version, of: Box::new(schema) }
            }
            None => schema,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::{Deserialize, Deserializer, Serialize};
    use std::collections::{BTreeMap, BTreeSet};

    fn of<T: DeserializeOwned>() -> Schema {
        trace::<T>(&Migrations::default())
    }

    fn line<T: DeserializeOwned>() -> String {
        of::<T>().canonical(false)
    }

    #[test]
    fn plain_types() {
        assert_eq!(line::<(u8, i16, u32, i64, u128, f32, f64)>(), "tuple(u8,i16,u32,i64,u128,f32,f64,)");
        assert_eq!(line::<(i8, u16, i32, u64, i128, usize, isize)>(), "tuple(i8,u16,i32,u64,i128,u64,i64,)");
        assert_eq!(line::<(bool, char, String, ())>(), "tuple(bool,char,string,(),)");
        assert_eq!(line::<Vec<Option<Box<[u8; 3]>>>>(), "seq(option(tuple(u8,u8,u8,),),)");
        assert_eq!(line::<[u64; 32]>(), "array32(u64,)");
        assert_eq!(line::<[u64; 0]>(), "tuple()");
        assert_eq!(line::<BTreeMap<String, BTreeSet<i32>>>(), "map(string,seq(i32,),)");
        assert_eq!(line::<Result<u8, String>>(), r#"enum("Ok":tuple(u8,),"Err":tuple(string,),)"#);
        assert_eq!(line::<std::time::Duration>(), r#"struct("secs":u64,"nanos":u32,)"#);
    }

    #[test]
    fn types_that_refuse_values_are_offered_others() {
        assert_eq!(line::<(std::num::NonZeroU8, u8, std::num::NonZeroI128)>(), "tuple(u8,u8,i128,)");
        assert_eq!(line::<std::net::IpAddr>().matches("u8").count(), 4 + 16);
        #[derive(Deserialize)]
        #[serde(try_from = "u16")]
        struct Year(#[allow(dead_code)] u16);
        impl TryFrom<u16> for Year {
            type Error = String;
            fn try_from(year: u16) -> Result<Self, String> {
                if year < 1900 { Err(format!("{year} is long ago")) } else { Ok(Year(year)) }
            }
        }
        assert_eq!(line::<(u8, Year, Vec<Year>)>(), "tuple(u8,u16,seq(u16,),)");
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Held<T> {
        at: i64,
        value: T,
        #[serde(skip)]
        cache: u32,
    }

    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "kebab-case")]
    enum Kind {
        None,
        Short(u32),
        Both(u8, i8),
        Long { page_no: u32, of: Held<Option<String>> },
    }

    #[derive(Serialize, Deserialize)]
    struct Pair(u8, Cents);

    #[derive(Serialize, Deserialize)]
    struct Cents(i64);

    #[derive(Serialize, Deserialize)]
    #[serde(transparent)]
    struct Clear(Vec<Unit>);

    #[derive(Serialize, Deserialize)]
    struct Unit;

    /// One generic type with two arguments is two types; attributes of serde are seen as they are.
    #[test]
    fn structs_and_enums() {
        let held = |of: &str| format!(r#"struct("at":i64,"value":{of},)"#);
        assert_eq!(line::<(Held<u8>, Held<String>)>(), format!("tuple({},{},)", held("u8"), held("string")));
        assert_eq!(line::<Held<Held<u8>>>(), held(&held("u8")));
        let long = format!(r#"struct("page_no":u32,"of":{},)"#, held("option(string,)"));
        let kind = format!(r#"enum("none":(),"short":tuple(u32,),"both":tuple(u8,i8,),"long":{long},)"#);
        assert_eq!(line::<Kind>(), kind);
        assert_eq!(line::<BTreeMap<u8, Vec<(Kind, Kind)>>>(), format!("map(u8,seq(tuple({kind},{kind},),),)"));
        assert_eq!(line::<(Pair, Clear, Unit)>(), "tuple(tuple(u8,i64,),seq((),),(),)");
        assert_eq!(of::<Pair>().to_string(), "Pair(u8, Cents(i64))");
    }

    #[derive(Serialize, Deserialize)]
    struct Tree {
        name: String,
        children: Vec<Tree>,
    }

    #[derive(Serialize, Deserialize)]
    struct Chain {
        value: u8,
        next: Option<Box<Chain>>,
    }

    #[derive(Serialize, Deserialize)]
    enum Term {
        Sum(Box<Term>, Box<Term>),
        Not { of: Box<Term> },
        Number(i64),
        All(Vec<Term>),
    }

    #[derive(Deserialize)]
    struct Endless {
        #[allow(dead_code)]
        next: Box<Endless>,
    }

    #[test]
    fn types_that_contain_themselves_come_to_an_end() {
        assert_eq!(line::<Tree>(), r#"struct("name":string,"children":seq(back1,),)"#);
        assert_eq!(line::<Chain>(), r#"struct("value":u8,"next":option(back1,),)"#);
        let term = r#"enum("Sum":tuple(back1,back1,),"Not":struct("of":back1,),"Number":tuple(i64,),"All":tuple(seq(back2,),),)"#;
        assert_eq!(line::<Term>(), term);
        assert_eq!(line::<(u8, Vec<Term>)>(), format!("tuple(u8,seq({term},),)"));
        let (name, why) = of::<(u8, Endless)>().opaque().map(|(a, b)| (a.to_string(), b.to_string())).unwrap();
        assert!(name.contains("Endless") && why.contains("without end"), "{name}: {why}");
    }

    #[test]
    fn what_cannot_be_traced_says_so() {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Untagged {
            #[allow(dead_code)]
            A(u8),
        }
        #[derive(Deserialize)]
        #[serde(try_from = "String")]
        struct Picky;
        impl TryFrom<String> for Picky {
            type Error = String;
            fn try_from(_: String) -> Result<Self, String> {
                Err("not this one".into())
            }
        }
        struct Panics;
        impl<'de> Deserialize<'de> for Panics {
            fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
                panic!("never")
            }
        }
        for (schema, text) in [
            (of::<(u8, Untagged)>(), "describe themselves"),
            (of::<serde_json::Value>(), "describe themselves"),
            (of::<Vec<Picky>>(), "none of the values"),
            (of::<Panics>(), "panicked"),
            (of::<crate::evolve::First>(), "has no values"),
        ] {
            let Schema::Opaque { why, .. } = &schema else { panic!("{schema}") };
            assert!(why.contains(text), "{why}");
        }
    }

    /// Manifests must stay readable. Types that are much deeper are more than the compiler takes.
    #[test]
    fn deep_types_are_read_back() {
        type Deep<T> = Held<(Option<Held<Vec<T>>>, u8)>;
        type Deeper<T> = Deep<Deep<Deep<Deep<Deep<Deep<T>>>>>>;
        fn survives<T: DeserializeOwned>() -> bool {
            let schema = of::<T>();
            let json = serde_json::to_string(&schema).unwrap();
            assert_eq!(serde_json::from_str::<Schema>(&json).unwrap(), schema);
            schema.opaque().is_none()
        }
        assert!(survives::<Deeper<Deeper<u8>>>());
    }
}
