//! A template: its sections, read and checked, and nothing evaluated.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::body::{Body, Compiler, Key, Place};
use crate::declaration::{self, ResourceDecl};
use crate::error::TemplateError;
use crate::flaw::{Flaw, flawed, within};
use crate::limits::{MAX_OUTPUTS, MAX_PARAMETERS, MAX_VARIABLES};
use crate::node::{Node, Position};
use crate::parameters::{Parameter, ParameterKind};

#[derive(Debug)]
pub(crate) struct Template {
    /// What `deployment()` tells of it.
    pub header: Value,
    pub parameters: Vec<Parameter>,
    /// By the name in small letters.
    pub variables: HashMap<String, (String, Body)>,
    /// By the name in small letters, with the namespace.
    pub functions: HashMap<String, UserFunction>,
    pub resources: Vec<Arc<ResourceDecl>>,
    pub outputs: Vec<Output>,
}

#[derive(Debug)]
pub(crate) struct UserFunction {
    pub parameters: Vec<String>,
    pub output: Body,
}

#[derive(Debug)]
pub(crate) struct Output {
    pub name: String,
    pub at: Position,
    pub kind: ParameterKind,
    pub condition: Option<Body>,
    pub value: Body,
}

impl Template {
    pub fn new(node: &Node) -> Result<Self, TemplateError> {
        if !node.is_object() {
            return Err(TemplateError::invalid("The template is no JSON object"));
        }
        for section in ["definitions", "imports", "extensions"] {
            if node.get(section).is_some() {
                return Err(TemplateError::unsupported(&format!(
                    "The section '{section}' of templates is not supported: write it out where it is used."
                )));
            }
        }
        let (functions, counts) = user_functions(node)?;
        let compiler = |place| Compiler {
            functions: &counts,
            place,
        };
        let resources = node.get("resources");
        Ok(Self {
            header: header(node),
            parameters: parameters(node, &compiler(Place::Default))?,
            variables: variables(node, &compiler(Place::Variable))?,
            functions,
            resources: match resources {
                Some(resources) => declaration::resources(resources, &counts)?,
                None => Vec::new(),
            },
            outputs: outputs(node, &counts)?,
        })
    }

    /// A parameter by its name in any case.
    pub fn parameter(&self, name: &str) -> Option<&Parameter> {
        let mut all = self.parameters.iter();
        all.find(|it| it.name.eq_ignore_ascii_case(name))
    }
}

fn header(node: &Node) -> Value {
    let text = |name| node.get(name).and_then(Node::text).unwrap_or_default();
    json!({
        "$schema": text("$schema"),
        "contentVersion": text("contentVersion"),
    })
}

/// The properties of a section that is an object.
fn section<'a>(node: &'a Node, name: &str) -> Result<&'a [(String, Node)], TemplateError> {
    match node.get(name) {
        None => Ok(&[]),
        Some(section) if section.is_object() => Ok(section.entries()),
        Some(section) => Err(TemplateError::invalid(&format!(
            "The template section '{name}' at line '{}' and column '{}' is no JSON object",
            section.at.line, section.at.column
        ))),
    }
}

fn parameters(node: &Node, compiler: &Compiler<'_>) -> Result<Vec<Parameter>, TemplateError> {
    let entries = section(node, "parameters")?;
    within("parameters", entries.len(), MAX_PARAMETERS)?;
    let read = |(name, node): &(String, Node)| {
        Parameter::read(name, node, compiler).map_err(|flaw| flawed("parameter", name, &flaw))
    };
    entries.iter().map(read).collect()
}

fn variables(
    node: &Node,
    compiler: &Compiler<'_>,
) -> Result<HashMap<String, (String, Body)>, TemplateError> {
    let mut variables = HashMap::new();
    for entry in section(node, "variables")? {
        let compiled = compiler.entries(std::slice::from_ref(entry));
        for (key, body) in compiled.map_err(|flaw| flawed("variable", &entry.0, &flaw))? {
            // A variable's name is no expression, whatever it looks like.
            let name = match key {
                Key::Plain(name) => name,
                Key::Expression(_) => entry.0.clone(),
            };
            variables.insert(name.to_ascii_lowercase(), (name, body));
        }
    }
    within("variables", variables.len(), MAX_VARIABLES)?;
    Ok(variables)
}

type Functions = (HashMap<String, UserFunction>, HashMap<String, usize>);

/// The user-defined functions, and how many parameters each has.
fn user_functions(node: &Node) -> Result<Functions, TemplateError> {
    let mut functions = HashMap::new();
    let none = HashMap::new();
    let compiler = Compiler {
        functions: &none,
        place: Place::Function,
    };
    let spaces = node.get("functions").and_then(Node::elements);
    for space in spaces.unwrap_or_default() {
        let name = space
            .get("namespace")
            .and_then(Node::text)
            .unwrap_or_default();
        let members = space.get("members").map_or(&[][..], Node::entries);
        for (member, node) in members {
            let name = format!("{name}.{member}");
            let function = user_function(node, &compiler);
            let function = function.map_err(|flaw| flawed("function", &name, &flaw))?;
            functions.insert(name.to_ascii_lowercase(), function);
        }
    }
    let count =
        |(name, function): (&String, &UserFunction)| (name.clone(), function.parameters.len());
    let counts = functions.iter().map(count).collect();
    Ok((functions, counts))
}

fn user_function(node: &Node, compiler: &Compiler<'_>) -> Result<UserFunction, Flaw> {
    let flaw = |message: &str| Flaw {
        at: node.at,
        message: message.to_owned(),
    };
    let parameters = node.get("parameters").and_then(Node::elements);
    let names = parameters.unwrap_or_default().iter().map(|parameter| {
        let name = parameter.get("name").and_then(Node::text);
        name.map(str::to_ascii_lowercase)
            .ok_or_else(|| flaw("a parameter of the function has no name"))
    });
    let value = node.get("output").and_then(|output| output.get("value"));
    Ok(UserFunction {
        parameters: names.collect::<Result<_, _>>()?,
        output: compiler.body(value.ok_or_else(|| flaw("the function has no output value"))?)?,
    })
}

fn outputs(node: &Node, functions: &HashMap<String, usize>) -> Result<Vec<Output>, TemplateError> {
    let entries = section(node, "outputs")?;
    within("outputs", entries.len(), MAX_OUTPUTS)?;
    let read = |(name, node): &(String, Node)| {
        output(name, node, functions).map_err(|flaw| flawed("output", name, &flaw))
    };
    entries.iter().map(read).collect()
}

fn output(name: &str, node: &Node, functions: &HashMap<String, usize>) -> Result<Output, Flaw> {
    let flaw = |message: &str| Flaw {
        at: node.at,
        message: message.to_owned(),
    };
    let compiler = |place| Compiler { functions, place };
    let kind = node.get("type").and_then(Node::text);
    let kind = kind.and_then(ParameterKind::parse);
    let condition = node.get("condition");
    let value = match (node.get("value"), node.get("copy")) {
        (Some(value), _) => compiler(Place::Properties).body(value)?,
        (None, Some(copy)) => {
            let count = copy.get("count");
            let count = count.ok_or_else(|| flaw("the copy loop has no count"))?;
            let input = copy.get("input");
            let input = input.ok_or_else(|| flaw("the copy loop has no input"))?;
            compiler(Place::Properties).of_loop(name.to_owned(), count, input)?
        }
        (None, None) => return Err(flaw("the output has neither a value nor a copy loop")),
    };
    Ok(Output {
        name: name.to_owned(),
        at: node.at,
        kind: kind.ok_or_else(|| flaw(ParameterKind::EXPECTED))?,
        condition: condition
            .map(|condition| compiler(Place::Properties).body(condition))
            .transpose()?,
        value,
    })
}
