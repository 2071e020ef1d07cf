//! JSON that knows where in the template it stands.

use serde_json::{Map, Number, Value};

/// A place in a text, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Position {
    pub line: u32,
    pub column: u32,
}

#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub at: Position,
    pub kind: Kind,
}

#[derive(Debug, Clone)]
pub(crate) enum Kind {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    Array(Vec<Node>),
    Object(Vec<(String, Node)>),
}

impl Node {
    /// A property by its name in any case; null counts as missing, as it does in Azure.
    pub fn get(&self, name: &str) -> Option<&Node> {
        let found = self
            .entries()
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name));
        found
            .map(|(_, node)| node)
            .filter(|node| !matches!(node.kind, Kind::Null))
    }

    /// The properties of an object; of anything else none.
    pub fn entries(&self) -> &[(String, Node)] {
        match &self.kind {
            Kind::Object(entries) => entries,
            _ => &[],
        }
    }

    /// The elements of an array.
    pub fn elements(&self) -> Option<&[Node]> {
        match &self.kind {
            Kind::Array(elements) => Some(elements),
            _ => None,
        }
    }

    pub fn text(&self) -> Option<&str> {
        match &self.kind {
            Kind::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn is_object(&self) -> bool {
        matches!(self.kind, Kind::Object(_))
    }

    /// The same without places.
    pub fn to_value(&self) -> Value {
        match &self.kind {
            Kind::Null => Value::Null,
            Kind::Bool(bool) => Value::Bool(*bool),
            Kind::Number(number) => Value::Number(number.clone()),
            Kind::Text(text) => Value::String(text.clone()),
            Kind::Array(elements) => Value::Array(elements.iter().map(Node::to_value).collect()),
            Kind::Object(entries) => {
                let entries = entries.iter();
                let map: Map<_, _> = entries
                    .map(|(key, node)| (key.clone(), node.to_value()))
                    .collect();
                Value::Object(map)
            }
        }
    }
}
