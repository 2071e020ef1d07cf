//! The body of a request to validate or to make a deployment.

use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::error::{TemplateError, shortened};
use crate::node::Node;
use crate::parameters::ParameterKind;
use crate::relaxed;
use crate::template::Template;

/// Whether a deployment leaves what its template does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Resources that the template does not have stay.
    Incremental,
    /// They are deleted.
    Complete,
}

impl Mode {
    /// As requests and answers write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Incremental => "Incremental",
            Self::Complete => "Complete",
        }
    }
}

/// A request to validate or to make a deployment, with its template read and checked.
#[derive(Clone)]
pub struct Request {
    /// Whether the deployment leaves what its template does not have.
    pub mode: Mode,
    /// Where a deployment to a subscription keeps its metadata.
    pub location: Option<String>,
    /// The tags of the deployment.
    pub tags: Map<String, Value>,
    /// Whether only the ids of what would change are asked for.
    pub only_ids: bool,
    template_hash: String,
    /// The template as it is given, without what is secure.
    text: Value,
    /// As they are given, by name.
    pub(crate) parameters: Vec<(String, Value)>,
    pub(crate) template: Arc<Template>,
}

/// Reads the body of a request, which need not be JSON: `az` puts the file of the template into it as it is.
///
/// # Errors
///
/// Says what cannot be read, or which part of the template is not valid, and where.
pub fn parse_request(body: &[u8]) -> Result<Request, TemplateError> {
    let root = relaxed::read(body)?;
    let missing = |what: &str| {
        TemplateError::content(&format!(
            "The request content was invalid: it has no object '{what}'."
        ))
    };
    let properties = root.get("properties").filter(|node| node.is_object());
    let properties = properties.ok_or_else(|| missing("properties"))?;
    for link in ["templateLink", "parametersLink"] {
        if properties.get(link).is_some() {
            return Err(TemplateError::unsupported(&format!(
                "The property '{link}' is not supported: nothing is fetched from elsewhere. Give the content itself."
            )));
        }
    }
    let template = properties
        .get("template")
        .ok_or_else(|| missing("properties.template"))?;
    let tags = match root.get("tags").map(Node::to_value) {
        Some(Value::Object(tags)) => tags,
        _ => Map::new(),
    };
    let (text, template) = (template.to_value(), Template::new(template)?);
    let text = without_secrets(text, &template);
    Ok(Request {
        mode: mode(properties)?,
        location: root.get("location").and_then(Node::text).map(str::to_owned),
        tags,
        only_ids: only_ids(properties),
        template_hash: hash(&text),
        text,
        parameters: parameters(properties)?,
        template: Arc::new(template),
    })
}

/// Parameters may be secrets, which no log has.
impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("mode", &self.mode)
            .field("template_hash", &self.template_hash)
            .finish_non_exhaustive()
    }
}

impl Request {
    /// A number that two templates have in common if their content is the same, but for what is secure. Azure's is
    /// another.
    pub fn template_hash(&self) -> &str {
        &self.template_hash
    }

    /// Whether it has values of secure parameters, given or as defaults: then what [`kept`](Self::kept) gives makes not
    /// the same resources.
    pub fn has_secrets(&self) -> bool {
        self.template.parameters.iter().any(|parameter| {
            let mut given = self.parameters.iter();
            let is_given = given.any(|(name, _)| name.eq_ignore_ascii_case(&parameter.name));
            parameter.kind.is_secure() && (is_given || parameter.default.is_some())
        })
    }

    /// The request as it may be kept: [`parse_request`] reads it again. Values and defaults of secure parameters are not
    /// in it.
    pub fn kept(&self) -> Value {
        let is_open = |name: &str| {
            let known = self.template.parameter(name);
            known.is_some_and(|known| !known.kind.is_secure())
        };
        let open = self.parameters.iter().filter(|(name, _)| is_open(name));
        let open = open.map(|(name, value)| (name.clone(), json!({"value": value})));
        json!({
            "location": self.location,
            "tags": self.tags,
            "properties": {
                "mode": self.mode.name(),
                "parameters": open.collect::<Map<_, _>>(),
                "template": self.text,
            },
        })
    }
}

fn only_ids(properties: &Node) -> bool {
    let settings = properties.get("whatIfSettings");
    let format = settings.and_then(|settings| settings.get("resultFormat")?.text());
    format.is_some_and(|format| format.eq_ignore_ascii_case("ResourceIdOnly"))
}

/// The text of a template without what its secure parameters may be. A name that is there twice counts as secure if it
/// is so once.
fn without_secrets(mut text: Value, template: &Template) -> Value {
    let sections = text.as_object_mut().into_iter().flatten();
    let parameters = sections
        .filter(|(name, _)| name.eq_ignore_ascii_case("parameters"))
        .filter_map(|(_, section)| section.as_object_mut());
    for (name, parameter) in parameters.flatten() {
        let Some(parameter) = parameter.as_object_mut() else {
            continue;
        };
        let known = template.parameter(name).map(|known| known.kind);
        let kinds = parameter
            .iter()
            .filter(|(field, _)| field.eq_ignore_ascii_case("type"))
            .filter_map(|(_, kind)| ParameterKind::parse(kind.as_str()?));
        if known.into_iter().chain(kinds).any(ParameterKind::is_secure) {
            let tells = |field: &str| {
                let told = ["defaultValue", "allowedValues"];
                told.iter().any(|told| told.eq_ignore_ascii_case(field))
            };
            parameter.retain(|field, _| !tells(field));
        }
    }
    text
}

fn hash(template: &Value) -> String {
    let text = template.to_string();
    let (high, _) = Uuid::new_v5(&Uuid::NAMESPACE_URL, text.as_bytes()).as_u64_pair();
    high.to_string()
}

fn mode(properties: &Node) -> Result<Mode, TemplateError> {
    let mode = properties.get("mode").map(|mode| mode.text());
    match mode {
        None => Ok(Mode::Incremental),
        Some(Some(text)) if text.eq_ignore_ascii_case("incremental") => Ok(Mode::Incremental),
        Some(Some(text)) if text.eq_ignore_ascii_case("complete") => Ok(Mode::Complete),
        Some(other) => Err(TemplateError::content(&format!(
            "The request content was invalid: the mode '{}' is neither 'Incremental' nor 'Complete'.",
            shortened(other.unwrap_or_default())
        ))),
    }
}

/// The values of `{"name": {"value": …}}`.
fn parameters(properties: &Node) -> Result<Vec<(String, Value)>, TemplateError> {
    let Some(parameters) = properties.get("parameters") else {
        return Ok(Vec::new());
    };
    if !parameters.is_object() {
        return Err(TemplateError::content(
            "The request content was invalid: 'parameters' is no JSON object.",
        ));
    }
    let value = |(name, node): &(String, Node)| {
        let short = shortened(name);
        let given = node.entries().iter();
        let mut values = given.filter(|(key, _)| key.eq_ignore_ascii_case("value"));
        if let Some((_, value)) = values.next() {
            return Ok((name.clone(), value.to_value()));
        }
        if node.get("reference").is_some() {
            return Err(TemplateError::unsupported(&format!(
                "The parameter '{short}' refers to a secret of a key vault, which is not supported: give its value."
            )));
        }
        Err(TemplateError::content(&format!(
            "The request content was invalid: the parameter '{short}' has no 'value'."
        )))
    };
    parameters.entries().iter().map(value).collect()
}
