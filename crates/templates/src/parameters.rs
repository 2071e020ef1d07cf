//! Parameters: what a template declares, and whether a value is one that it takes.

use serde_json::Value;

use crate::body::{Body, Compiler};
use crate::error::shortened;
use crate::flaw::Flaw;
use crate::node::{Node, Position};
use crate::value::type_name;

#[derive(Debug)]
pub(crate) struct Parameter {
    pub name: String,
    pub at: Position,
    pub kind: ParameterKind,
    pub default: Option<Body>,
    /// May be left out, and is null then.
    pub nullable: bool,
    allowed: Option<Vec<Value>>,
    lengths: (Option<i64>, Option<i64>),
    values: (Option<i64>, Option<i64>),
}

/// The type of a parameter or of an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ParameterKind {
    String,
    SecureString,
    Int,
    Bool,
    Object,
    SecureObject,
    Array,
}

impl ParameterKind {
    pub const EXPECTED: &str =
        "its type is to be one of string, securestring, int, bool, object, secureObject and array";

    pub fn parse(text: &str) -> Option<Self> {
        let all = [
            Self::String,
            Self::SecureString,
            Self::Int,
            Self::Bool,
            Self::Object,
            Self::SecureObject,
            Self::Array,
        ];
        all.into_iter()
            .find(|kind| kind.name().eq_ignore_ascii_case(text))
    }

    /// As Azure's answers write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::String => "String",
            Self::SecureString => "SecureString",
            Self::Int => "Int",
            Self::Bool => "Bool",
            Self::Object => "Object",
            Self::SecureObject => "SecureObject",
            Self::Array => "Array",
        }
    }

    /// Whether its values are told to nobody.
    pub fn is_secure(self) -> bool {
        matches!(self, Self::SecureString | Self::SecureObject)
    }

    /// Whether a value is of this type; otherwise what Azure calls the type.
    pub fn check(self, value: &Value) -> Result<(), &'static str> {
        let (fits, name) = match self {
            Self::String | Self::SecureString => (value.is_string(), "String"),
            Self::Int => (value.is_i64() || value.is_u64(), "Integer"),
            Self::Bool => (value.is_boolean(), "Boolean"),
            Self::Object | Self::SecureObject => (value.is_object(), "Object"),
            Self::Array => (value.is_array(), "Array"),
        };
        if fits { Ok(()) } else { Err(name) }
    }
}

/// Whether a declaration says of a part of its values that it is secure: of a property or an element.
fn has_secure_part(declaration: &Value) -> bool {
    const PARTS: [&str; 4] = ["properties", "additionalProperties", "items", "prefixItems"];
    let is_secure = |part: &Value| {
        let kind = field(part, "type").and_then(Value::as_str);
        kind.and_then(ParameterKind::parse)
            .is_some_and(ParameterKind::is_secure)
    };
    let is_so = |part: &Value| is_secure(part) || has_secure_part(part);
    PARTS.iter().any(|name| match field(declaration, name) {
        Some(Value::Array(parts)) => parts.iter().any(is_so),
        // The properties by their names, or one declaration.
        Some(Value::Object(parts)) => {
            parts.values().any(is_so) || field(declaration, name).is_some_and(is_so)
        }
        _ => false,
    })
}

/// A field of an object, whose name is in any case.
fn field<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    let mut fields = object.as_object()?.iter();
    fields
        .find(|(known, _)| known.eq_ignore_ascii_case(name))
        .map(|(_, value)| value)
}

impl Parameter {
    pub fn read(name: &str, node: &Node, compiler: &Compiler<'_>) -> Result<Self, Flaw> {
        let flaw = |message: &str| Flaw {
            at: node.at,
            message: message.to_owned(),
        };
        let kind = node.get("type").and_then(Node::text);
        let kind = kind.and_then(ParameterKind::parse);
        let number = |name: &str| match node.get(name).map(Node::to_value) {
            None => Ok(None),
            Some(value) => match value.as_i64() {
                Some(number) => Ok(Some(number)),
                None => Err(flaw(&format!("its {name} is no integer"))),
            },
        };
        let allowed = node.get("allowedValues");
        let allowed = allowed.map(|allowed| match allowed.elements() {
            Some(elements) => Ok(elements.iter().map(Node::to_value).collect()),
            None => Err(flaw("its allowedValues are no array")),
        });
        if !kind.is_some_and(ParameterKind::is_secure) && has_secure_part(&node.to_value()) {
            return Err(flaw(
                "a part of it is secure, which is not offered: have all of it secure (secureObject)",
            ));
        }
        let default = node.get("defaultValue");
        let nullable = node.get("nullable").map(Node::to_value);
        Ok(Self {
            name: name.to_owned(),
            at: node.at,
            kind: kind.ok_or_else(|| flaw(ParameterKind::EXPECTED))?,
            default: default.map(|default| compiler.body(default)).transpose()?,
            nullable: nullable == Some(Value::Bool(true)),
            allowed: allowed.transpose()?,
            lengths: (number("minLength")?, number("maxLength")?),
            values: (number("minValue")?, number("maxValue")?),
        })
    }

    /// Why a value is refused. Values of secure parameters are not told.
    pub fn check(&self, value: &Value) -> Result<(), String> {
        if self.nullable && value.is_null() {
            return Ok(());
        }
        if let Err(expected) = self.kind.check(value) {
            return Err(self.refuses(&format!(
                "Expected a value of type '{expected}', but received a value of type '{}'",
                type_name(value)
            )));
        }
        self.check_allowed(value)?;
        let length = match value {
            Value::String(text) => Some(text.chars().count()),
            Value::Array(elements) => Some(elements.len()),
            _ => None,
        };
        let (at_least, at_most) = ("greater than or equal", "less than or equal");
        if let Some(length) = length.and_then(|length| i64::try_from(length).ok()) {
            if let Some(min) = self.lengths.0.filter(|min| length < *min) {
                return Err(self.refuses(&format!(
                    "Length of the value should be {at_least} to '{min}'"
                )));
            }
            if let Some(max) = self.lengths.1.filter(|max| length > *max) {
                return Err(self.refuses(&format!(
                    "Length of the value should be {at_most} to '{max}'"
                )));
            }
        }
        let Some(number) = value.as_i64() else {
            return Ok(());
        };
        if let Some(min) = self.values.0.filter(|min| number < *min) {
            return Err(self.refuses(&format!("The value should be {at_least} to '{min}'")));
        }
        if let Some(max) = self.values.1.filter(|max| number > *max) {
            return Err(self.refuses(&format!("The value should be {at_most} to '{max}'")));
        }
        Ok(())
    }

    /// An array may also be one of allowed elements alone.
    fn check_allowed(&self, value: &Value) -> Result<(), String> {
        let Some(allowed) = &self.allowed else {
            return Ok(());
        };
        let of_elements = |elements: &Vec<Value>| elements.iter().all(|it| allowed.contains(it));
        if allowed.contains(value) || value.as_array().is_some_and(of_elements) {
            return Ok(());
        }
        let names: Vec<_> = allowed.iter().map(crate::value::display).collect();
        let names = shortened(&names.join(","));
        let Position { line, column } = self.at;
        let shown = if self.kind.is_secure() {
            String::new()
        } else {
            format!(" '{}'", shortened(&crate::value::display(value)))
        };
        Err(format!(
            "The provided value{shown} for the template parameter '{}' at line '{line}' and column '{column}' is not valid. The parameter value is not part of the allowed value(s): '{names}'.",
            shortened(&self.name)
        ))
    }

    fn refuses(&self, why: &str) -> String {
        let Position { line, column } = self.at;
        format!(
            "The provided value for the template parameter '{}' at line '{line}' and column '{column}' is not valid. {why}. Please see https://aka.ms/arm-syntax-parameters for usage details.",
            shortened(&self.name)
        )
    }
}
