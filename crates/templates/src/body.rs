//! A part of a template with its expressions read: which functions they call, and whether they may, is known before
//! anything is evaluated.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;

use crate::error::shortened;
use crate::flaw::Flaw;
use crate::functions;
use crate::node::{Kind, Node, Position};
use crate::syntax::{Call, Expr, Text, parse};
use crate::value::{Measured, Shared};

/// JSON whose strings may be expressions.
#[derive(Debug, Clone)]
pub(crate) struct Body {
    pub at: Position,
    pub form: Form,
}

#[derive(Debug, Clone)]
pub(crate) enum Form {
    Value(Shared),
    Expression(Expr),
    Array(Vec<Body>),
    Object(Vec<(Key, Body)>),
    /// An array that a `copy` makes.
    Repeat(Box<Repeat>),
}

/// A property's name: those of user-assigned identities and tags are expressions.
#[derive(Debug, Clone)]
pub(crate) enum Key {
    Plain(String),
    Expression(Expr),
}

/// A loop, one element for each index.
#[derive(Debug, Clone)]
pub(crate) struct Repeat {
    pub name: String,
    pub count: Body,
    pub input: Body,
}

/// Where an expression stands, which decides what it may call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// The default value of a parameter.
    Default,
    Variable,
    /// The output of a user-defined function.
    Function,
    /// What must be known before anything is made: the name of a resource, its condition.
    Head,
    /// What may depend on what was made.
    Properties,
}

/// Reads the parts of a template that stand at one place.
pub(crate) struct Compiler<'a> {
    /// How many parameters each user-defined function has, by its name in small letters.
    pub functions: &'a HashMap<String, usize>,
    pub place: Place,
}

const AT_THIS_PLACE: &str = "Please see https://aka.ms/arm-functions for usage details.";

impl Compiler<'_> {
    pub fn body(&self, node: &Node) -> Result<Body, Flaw> {
        let form = match &node.kind {
            Kind::Text(text) => match self.text(text, node.at)? {
                Text::Plain(text) => Form::Value(shared(Value::String(text))),
                Text::Expression(expr) => Form::Expression(expr),
            },
            Kind::Array(elements) => {
                let elements = elements.iter().map(|element| self.body(element));
                Form::Array(elements.collect::<Result<_, _>>()?)
            }
            Kind::Object(entries) => Form::Object(self.entries(entries)?),
            _ => Form::Value(shared(node.to_value())),
        };
        Ok(Body { at: node.at, form })
    }

    /// The properties of an object, those that its `copy` makes among them.
    pub fn entries(&self, entries: &[(String, Node)]) -> Result<Vec<(Key, Body)>, Flaw> {
        let mut compiled = Vec::with_capacity(entries.len());
        for (name, node) in entries {
            match loops(name, node) {
                Some(loops) => {
                    for repeat in loops {
                        let (name, body) = self.repeat(repeat)?;
                        compiled.push((Key::Plain(name), body));
                    }
                }
                None => compiled.push((self.key(name, node.at)?, self.body(node)?)),
            }
        }
        Ok(compiled)
    }

    /// One loop of a `copy`, with the name of the property that it makes.
    fn repeat(&self, node: &Node) -> Result<(String, Body), Flaw> {
        let flaw = |what: &str| Flaw {
            at: node.at,
            message: format!("the copy loop has no {what}"),
        };
        let name = node.get("name").and_then(Node::text);
        let name = name.ok_or_else(|| flaw("name"))?.to_owned();
        let count = node.get("count").ok_or_else(|| flaw("count"))?;
        let input = node.get("input").ok_or_else(|| flaw("input"))?;
        let repeat = self.of_loop(name.clone(), count, input)?;
        Ok((name, repeat))
    }

    /// An array of `input`, once for each index.
    pub fn of_loop(&self, name: String, count: &Node, input: &Node) -> Result<Body, Flaw> {
        let head = Compiler {
            functions: self.functions,
            place: match self.place {
                Place::Properties => Place::Head,
                other => other,
            },
        };
        let repeat = Repeat {
            name,
            count: head.body(count)?,
            input: self.body(input)?,
        };
        Ok(Body {
            at: count.at,
            form: Form::Repeat(Box::new(repeat)),
        })
    }

    fn key(&self, name: &str, at: Position) -> Result<Key, Flaw> {
        Ok(match self.text(name, at)? {
            Text::Plain(name) => Key::Plain(name),
            Text::Expression(expr) => Key::Expression(expr),
        })
    }

    fn text(&self, text: &str, at: Position) -> Result<Text, Flaw> {
        let flaw = |message| Flaw { at, message };
        let text = parse(text).map_err(flaw)?;
        if let Text::Expression(expr) = &text {
            self.check(expr).map_err(flaw)?;
        }
        Ok(text)
    }

    /// Whether all functions exist, may be called here, and have as many arguments as they take.
    fn check(&self, expr: &Expr) -> Result<(), String> {
        match expr {
            Expr::Literal(_) => Ok(()),
            Expr::Access(base, accessors) => {
                self.check(base)?;
                accessors.iter().try_for_each(|it| self.check(&it.key))
            }
            Expr::Call(call) => {
                self.check_call(call)?;
                call.args.iter().try_for_each(|arg| self.check(arg))
            }
        }
    }

    fn check_call(&self, call: &Call) -> Result<(), String> {
        let (name, given) = (shortened(&call.name), call.args.len());
        let (min, max) = match functions::arity(&call.key) {
            Some(arity) => arity,
            None => match self.functions.get(&call.key) {
                Some(parameters) => (*parameters, *parameters),
                None => return Err(self.unknown(call)),
            },
        };
        if !self.place.allows(&call.key) {
            return Err(format!(
                "The template function '{name}' is not expected at this location. {AT_THIS_PLACE}"
            ));
        }
        if given < min || given > max {
            let takes = match (min, max) {
                (min, max) if min == max => format!("'{min}'"),
                (min, usize::MAX) => format!("'{min}' or more"),
                (min, max) => format!("'{min}' to '{max}'"),
            };
            return Err(format!(
                "Unable to evaluate template language function '{name}': function requires {takes} argument(s) while '{given}' were provided. {AT_THIS_PLACE}"
            ));
        }
        Ok(())
    }

    fn unknown(&self, call: &Call) -> String {
        let name = shortened(&call.name);
        if call.key.starts_with("list") && !call.key.contains('.') {
            return format!(
                "The template function '{name}' is not supported: no resource here has a list operation."
            );
        }
        format!("The template function '{name}' is not valid. {AT_THIS_PLACE}")
    }
}

impl Place {
    fn allows(self, key: &str) -> bool {
        match key {
            "newguid" | "utcnow" => self == Self::Default,
            "variables" => !matches!(self, Self::Default | Self::Function),
            "reference" | "references" => self == Self::Properties,
            "copyindex" => !matches!(self, Self::Default | Self::Function),
            _ => self != Self::Function || !key.contains('.'),
        }
    }
}

/// The loops of a property `copy`; of one that is none, nothing.
pub(crate) fn loops<'a>(name: &str, node: &'a Node) -> Option<&'a [Node]> {
    let elements = node.elements()?;
    let is_loop = |node: &Node| node.get("count").is_some() && node.get("input").is_some();
    let is_copy = name.eq_ignore_ascii_case("copy") && !elements.is_empty();
    (is_copy && elements.iter().all(is_loop)).then_some(elements)
}

fn shared(value: Value) -> Shared {
    Arc::new(Measured::new(value))
}
