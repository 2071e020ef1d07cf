//! Resources as a template declares them, before loops and expressions.

use std::collections::HashMap;
use std::sync::Arc;

use crate::body::{Body, Compiler, Form, Place};
use crate::error::{TemplateError, shortened};
use crate::flaw::{Flaw, flawed, within};
use crate::limits::MAX_RESOURCES;
use crate::node::{Kind, Node, Position};

#[derive(Debug)]
pub(crate) struct ResourceDecl {
    pub at: Position,
    /// The name within the template, where it has such (languageVersion 2.0).
    pub symbol: Option<String>,
    /// The name as it is written, for messages.
    pub label: String,
    pub kind: Body,
    pub name: Body,
    pub api_version: Body,
    pub condition: Option<Body>,
    pub copy: Option<Copy>,
    pub depends_on: Vec<Body>,
    pub scope: Option<Body>,
    /// Only referred to, not made.
    pub existing: bool,
    /// All that goes to the resource provider.
    pub rest: Body,
    pub children: Vec<Arc<ResourceDecl>>,
}

/// A loop over a resource.
#[derive(Debug)]
pub(crate) struct Copy {
    pub name: String,
    pub count: Body,
}

/// What a deployment takes for itself, and no resource provider sees.
const OF_THE_DEPLOYMENT: [&str; 12] = [
    "apiversion",
    "comments",
    "condition",
    "copy",
    "dependson",
    "existing",
    "metadata",
    "name",
    "resources",
    "scope",
    "type",
    "import",
];

/// How deep resources stand within each other.
const MAX_NESTING: usize = 8;

/// The resources of a template: an array, or an object of symbolic names.
pub(crate) fn resources(
    node: &Node,
    functions: &HashMap<String, usize>,
) -> Result<Vec<Arc<ResourceDecl>>, TemplateError> {
    let reader = Reader { functions };
    let resources = reader.list(node, 0)?;
    within("resources", count(&resources), MAX_RESOURCES)?;
    Ok(resources)
}

fn count(resources: &[Arc<ResourceDecl>]) -> usize {
    let with_children = |decl: &Arc<ResourceDecl>| 1 + count(&decl.children);
    resources.iter().map(with_children).sum()
}

/// Refuses what only deployments within a deployment have: a resource is made where its template is deployed.
fn refuse_elsewhere(label: &str, node: &Node) -> Result<(), TemplateError> {
    match ["resourceGroup", "subscriptionId"]
        .into_iter()
        .find(|name| node.get(name).is_some())
    {
        None => Ok(()),
        Some(name) => Err(TemplateError::invalid(&format!(
            "The template resource '{}' at line '{}' and column '{}' is not valid: the property '{name}' is supported for resources of type 'Microsoft.Resources/deployments' only.",
            shortened(label),
            node.at.line,
            node.at.column
        ))),
    }
}

struct Reader<'a> {
    functions: &'a HashMap<String, usize>,
}

impl Reader<'_> {
    fn list(&self, node: &Node, depth: usize) -> Result<Vec<Arc<ResourceDecl>>, TemplateError> {
        let named: Vec<(Option<&str>, &Node)> = match &node.kind {
            Kind::Array(elements) => elements.iter().map(|element| (None, element)).collect(),
            Kind::Object(entries) => {
                let entries = entries.iter();
                entries
                    .map(|(name, node)| (Some(name.as_str()), node))
                    .collect()
            }
            _ => {
                return Err(TemplateError::invalid(&format!(
                    "The template section 'resources' at line '{}' and column '{}' is neither an array nor a JSON object",
                    node.at.line, node.at.column
                )));
            }
        };
        let read = |(symbol, node): (Option<&str>, &Node)| {
            let label = node.get("name").and_then(Node::text).or(symbol);
            let label = label.unwrap_or_default().to_owned();
            self.one(symbol, &label, node, depth).map(Arc::new)
        };
        named.into_iter().map(read).collect()
    }

    fn one(
        &self,
        symbol: Option<&str>,
        label: &str,
        node: &Node,
        depth: usize,
    ) -> Result<ResourceDecl, TemplateError> {
        let flawed = |flaw: Flaw| flawed("resource", label, &flaw);
        if depth > MAX_NESTING {
            let message = format!("resources have more than {MAX_NESTING} levels");
            return Err(flawed(Flaw {
                at: node.at,
                message,
            }));
        }
        self.refuse_nested_deployment(label, node)?;
        refuse_elsewhere(label, node)?;
        let children = match node.get("resources") {
            Some(children) => self.list(children, depth + 1)?,
            None => Vec::new(),
        };
        self.read(symbol, label, node, children, depth > 0)
            .map_err(flawed)
    }

    fn refuse_nested_deployment(&self, label: &str, node: &Node) -> Result<(), TemplateError> {
        let kind = node.get("type").and_then(Node::text).unwrap_or_default();
        if !kind.eq_ignore_ascii_case("Microsoft.Resources/deployments") {
            return Ok(());
        }
        Err(TemplateError::unsupported(&format!(
            "The template resource '{}' at line '{}' and column '{}' is a deployment within a deployment, which is not supported: put its resources into this template, or deploy its template by itself.",
            shortened(label),
            node.at.line,
            node.at.column
        )))
    }

    fn read(
        &self,
        symbol: Option<&str>,
        label: &str,
        node: &Node,
        children: Vec<Arc<ResourceDecl>>,
        nested: bool,
    ) -> Result<ResourceDecl, Flaw> {
        let flaw = |message: &str| Flaw {
            at: node.at,
            message: message.to_owned(),
        };
        let compiler = |place| Compiler {
            functions: self.functions,
            place,
        };
        let head = compiler(Place::Head);
        let needed = |name: &str| {
            let message = format!("The {name} property cannot be null or empty");
            let node = node.get(name).ok_or_else(|| flaw(&message))?;
            head.body(node)
        };
        let optional = |name: &str| node.get(name).map(|node| head.body(node)).transpose();
        let copy = match node.get("copy") {
            Some(_) if nested => {
                return Err(flaw("a resource within a resource cannot have a copy loop"));
            }
            Some(copy) => Some(self.copy(copy)?),
            None => None,
        };
        let depends_on = match node.get("dependsOn").map(|it| (it, it.elements())) {
            Some((_, Some(names))) => names.iter().map(|name| head.body(name)).collect(),
            Some((node, None)) => head.body(node).map(|body| vec![body]),
            None => Ok(Vec::new()),
        };
        let to_the_provider = |(name, _): &&(String, Node)| {
            let name = name.to_ascii_lowercase();
            !OF_THE_DEPLOYMENT.contains(&name.as_str())
        };
        let rest = node.entries().iter().filter(to_the_provider);
        let rest: Vec<_> = rest.cloned().collect();
        let existing = node.get("existing").map(Node::to_value);
        Ok(ResourceDecl {
            at: node.at,
            symbol: symbol.map(str::to_owned),
            label: label.to_owned(),
            kind: needed("type")?,
            name: needed("name")?,
            api_version: needed("apiVersion")?,
            condition: optional("condition")?,
            copy,
            depends_on: depends_on?,
            scope: optional("scope")?,
            existing: existing.is_some_and(|existing| existing == true),
            rest: Body {
                at: node.at,
                form: Form::Object(compiler(Place::Properties).entries(&rest)?),
            },
            children,
        })
    }

    fn copy(&self, node: &Node) -> Result<Copy, Flaw> {
        let flaw = |what: &str| Flaw {
            at: node.at,
            message: format!("the copy loop has no {what}"),
        };
        let head = Compiler {
            functions: self.functions,
            place: Place::Head,
        };
        let name = node.get("name").and_then(Node::text);
        let count = node.get("count").ok_or_else(|| flaw("count"))?;
        Ok(Copy {
            name: name.ok_or_else(|| flaw("name"))?.to_owned(),
            count: head.body(count)?,
        })
    }
}
