//! The job as described: nodes and edges, with nothing running.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

use crate::dataflow::RegionFactory;
use crate::driver::{CallsFactory, KeyedFactory, SinkFactory, SourceFactory, StatelessFactory};
use crate::error::{Error, Result};

/// One output of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Port {
    pub node: usize,
    pub output: usize,
}

/// What a node does, ready to be made once for every worker.
pub(crate) enum Body {
    Source(Box<dyn SourceFactory>),
    Stateless(Box<dyn StatelessFactory>),
    Union,
    Calls(Box<dyn CallsFactory>),
    /// What differential runs: a reduction or a join of collections that change.
    Region(Box<dyn RegionFactory>),
    Keyed(Box<dyn KeyedFactory>),
    Sink(Box<dyn SinkFactory>),
}

pub(crate) struct Node {
    /// Given by the user; more than one is a mistake.
    given: Vec<String>,
    /// Such as `map` or `window`.
    pub kind: String,
    /// For plans: what exactly.
    pub detail: String,
    pub inputs: Vec<Port>,
    /// Names of the outputs, for plans.
    pub outputs: &'static [&'static str],
    pub body: Body,
}

impl Node {
    /// Whether the user gave it a name.
    pub(crate) fn is_named(&self) -> bool {
        !self.given.is_empty()
    }
}

/// How far a sink's output up to a checkpoint is the same in every run over the same input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Repeats {
    /// All of it.
    Always,
    /// What is before the watermark: later windows may have been fired before the checkpoint or after it.
    ToWatermark,
    /// None of it, for this reason.
    Never(String),
}

/// See the module.
#[derive(Default)]
pub(crate) struct Graph {
    pub nodes: Vec<Node>,
    /// Whether some operator asks for the positions of records.
    pub positions: bool,
}

impl Graph {
    pub(crate) fn add(
        &mut self,
        kind: impl Into<String>,
        detail: String,
        inputs: Vec<Port>,
        outputs: &'static [&'static str],
        body: Body,
    ) -> usize {
        self.nodes.push(Node { given: Vec::new(), kind: kind.into(), detail, inputs, outputs, body });
        self.nodes.len() - 1
    }

    pub(crate) fn rename(&mut self, node: usize, name: String) {
        self.nodes[node].given.push(name);
    }

    /// The name of every node: as given, else the kind with a number per kind.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut numbers: HashMap<&str, usize> = HashMap::new();
        let mut names = Vec::new();
        for node in &self.nodes {
            let number = numbers.entry(node.kind.as_str()).or_default();
            *number += 1;
            names.push(
                node.given.last().cloned().unwrap_or_else(|| format!("{}-{number}", node.kind.replace(' ', "-"))),
            );
        }
        names
    }

    /// How many consumers each output has.
    pub(crate) fn consumers(&self) -> HashMap<Port, usize> {
        let mut consumers = HashMap::new();
        for input in self.nodes.iter().flat_map(|node| &node.inputs) {
            *consumers.entry(*input).or_default() += 1;
        }
        consumers
    }

    /// Which nodes up to `node` it gets records from, directly or through others, itself among them.
    fn upstream(&self, node: usize) -> Vec<bool> {
        let mut upstream = vec![false; node + 1];
        upstream[node] = true;
        // Nodes stand behind those that they read from.
        for reader in (0..=node).rev() {
            if upstream[reader] {
                self.nodes[reader].inputs.iter().for_each(|input| upstream[input.node] = true);
            }
        }
        upstream
    }

    /// All sources.
    pub(crate) fn sources(&self) -> impl Iterator<Item = usize> {
        (0..self.nodes.len()).filter(|node| matches!(self.nodes[*node].body, Body::Source(_)))
    }

    /// The sources from which `node` gets records, directly or through others.
    pub(crate) fn sources_of(&self, node: usize) -> Vec<usize> {
        let upstream = self.upstream(node);
        self.sources().take_while(|source| *source <= node).filter(|source| upstream[*source]).collect()
    }

    /// Name and kind of a source that cannot be read a second time.
    pub(crate) fn source_that_is_read_once(&self) -> Option<(String, &'static str)> {
        self.nodes.iter().zip(self.names()).find_map(|(node, name)| match &node.body {
            Body::Source(source) if !source.replayable() => Some((name, source.kind())),
            _ => None,
        })
    }

    /// Whether results of an operator with state reach `node`.
    pub(crate) fn is_behind_state(&self, node: usize) -> bool {
        let upstream = self.upstream(node);
        (0..node).any(|other| upstream[other] && matches!(self.nodes[other].body, Body::Keyed(_)))
    }

    /// How far a sink's output is the same in every run over the same input.
    pub(crate) fn repeats(&self, sink: usize) -> Repeats {
        let names = self.names();
        let mut repeats = Repeats::Always;
        let mut seen = HashSet::new();
        let mut todo = self.nodes[sink].inputs.clone();
        while let Some(port) = todo.pop() {
            if !seen.insert(port) {
                continue;
            }
            let (node, name) = (&self.nodes[port.node], &names[port.node]);
            match (&node.body, port.output) {
                (Body::Source(_), 1) => {
                    return Repeats::Never(format!("bad records of `{name}` get times that depend on batches"));
                }
                (Body::Source(source), _) if source.may_idle() => {
                    return Repeats::Never(format!("which splits of `{name}` are idle depends on when records come"));
                }
                (Body::Keyed(keyed), 0) if keyed.depends_on_order() => {
                    return Repeats::Never(format!(
                        "`{name}` ({}) depends on the order in which records meet",
                        node.kind
                    ));
                }
                (Body::Calls(_), _) => {
                    return Repeats::Never(format!("what `{name}` ({}) is told from outside may change", node.kind));
                }
                (Body::Region(_), _) => {
                    return Repeats::Never(format!(
                        "when `{name}` ({}) tells of a change depends on batches",
                        node.kind
                    ));
                }
                (Body::Keyed(_), 0) => repeats = Repeats::ToWatermark,
                _ => {}
            }
            todo.extend(&node.inputs);
        }
        repeats
    }

    /// Checks what can be checked before anything runs.
    pub(crate) fn validate(&self) -> Result<()> {
        if let Some(twice) = self.nodes.iter().find(|node| node.given.len() > 1) {
            return Err(Error::config(format!("one operator was given several names: `{}`", twice.given.join("`, `")))
                .hint("all outputs of an operator share its name: name it once, at any one of them"));
        }
        let mut seen = HashSet::new();
        for name in self.names() {
            check_name("operator", &name)?;
            if !seen.insert(name.clone()) {
                return Err(Error::config(format!("two operators of this job are called `{name}`"))
                    .hint("state is found by name in checkpoints; give each its own with `.name(\"…\")`"));
            }
        }
        if self.sources().next().is_none() {
            return Err(Error::config("the job has no source").hint("begin with `job.source(…)`"));
        }
        if !self.nodes.iter().any(|node| matches!(node.body, Body::Sink(_))) {
            return Err(Error::config("the job has no sink, so nobody would see what it does")
                .hint("end a stream with `.sink(…)`, for example `.sink(stdout())`"));
        }
        Ok(())
    }

    /// Chains of stateless nodes that run as one, each listed by its nodes in order. A node is in the same chain as the
    /// one before it when nobody else reads what is between them.
    pub(crate) fn chains(&self) -> Vec<Vec<usize>> {
        let consumers = self.consumers();
        let mut chains: Vec<Vec<usize>> = Vec::new();
        let mut chain_ending_at: HashMap<usize, usize> = HashMap::new();
        for (index, node) in self.nodes.iter().enumerate() {
            if !matches!(node.body, Body::Stateless(_)) {
                continue;
            }
            let input = node.inputs[0];
            let before = (consumers[&input] == 1 && self.nodes[input.node].outputs.len() == 1)
                .then(|| chain_ending_at.remove(&input.node))
                .flatten();
            let chain = before.unwrap_or_else(|| {
                chains.push(Vec::new());
                chains.len() - 1
            });
            chains[chain].push(index);
            chain_ending_at.insert(index, chain);
        }
        chains
    }

    /// The dataflow as a Mermaid flowchart.
    pub(crate) fn mermaid(&self) -> String {
        let mut text = String::from("flowchart LR\n");
        for (index, (node, name)) in self.nodes.iter().zip(self.names()).enumerate() {
            let label = label(node, &name).replace('"', "#quot;").replace('\n', "<br/>");
            let (open, close) = match node.body {
                Body::Source(_) => ("([", "])"),
                Body::Sink(_) => ("[/", "/]"),
                Body::Keyed(_) => ("[(", ")]"),
                _ => ("[", "]"),
            };
            let _ = writeln!(text, "  n{index}{open}\"{label}\"{close}");
        }
        self.edges(|from, to, output| {
            let _ = match output {
                Some(output) => writeln!(text, "  n{from} -->|{output}| n{to}"),
                None => writeln!(text, "  n{from} --> n{to}"),
            };
        });
        text
    }

    /// The dataflow in Graphviz' DOT language.
    pub(crate) fn dot(&self, job: &str) -> String {
        let quote =
            |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"));
        let mut text = format!("digraph {} {{\n  rankdir=LR;\n  node [shape=box];\n", quote(job));
        for (index, (node, name)) in self.nodes.iter().zip(self.names()).enumerate() {
            let shape = match node.body {
                Body::Source(_) => " shape=oval",
                Body::Sink(_) => " shape=parallelogram",
                Body::Keyed(_) => " shape=cylinder",
                _ => "",
            };
            let _ = writeln!(text, "  n{index} [label={}{shape}];", quote(&label(node, &name)));
        }
        self.edges(|from, to, output| {
            let _ = match output {
                Some(output) => writeln!(text, "  n{from} -> n{to} [label={}];", quote(output)),
                None => writeln!(text, "  n{from} -> n{to};"),
            };
        });
        text.push_str("}\n");
        text
    }

    fn edges(&self, mut each: impl FnMut(usize, usize, Option<&str>)) {
        for (index, node) in self.nodes.iter().enumerate() {
            for input in &node.inputs {
                let outputs = self.nodes[input.node].outputs;
                each(input.node, index, (outputs.len() > 1).then(|| outputs[input.output]));
            }
        }
    }
}

fn label(node: &Node, name: &str) -> String {
    match (name.starts_with(&node.kind), node.detail.is_empty()) {
        (true, true) => name.to_string(),
        (true, false) => format!("{name}\n{}", node.detail),
        (false, true) => format!("{name}\n{}", node.kind),
        (false, false) => format!("{name}\n{}: {}", node.kind, node.detail),
    }
}

/// Names stand in manifests, messages and metrics: short, and without surprises.
pub(crate) fn check_name(what: &str, name: &str) -> Result<()> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.len() > 64 || !name.chars().all(fine) || name.starts_with('.') {
        return Err(Error::config(
            format!("`{name}` cannot be the name of {what}")
                .replace("of job", "of a job")
                .replace("of operator", "of an operator"),
        )
        .hint("names are 1 to 64 letters, digits, `-`, `_` or `.`, and do not begin with `.`"));
    }
    Ok(())
}
