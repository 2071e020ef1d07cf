//! What is wrong with a template, in Azure's words.

use crate::error::TemplateError;
use crate::node::Position;

/// What is wrong with a part, and where.
#[derive(Debug)]
pub(crate) struct Flaw {
    pub at: Position,
    pub message: String,
}

/// What is wrong with a named part of a template, in Azure's words.
pub(crate) fn flawed(part: &str, name: &str, flaw: &Flaw) -> TemplateError {
    let name = crate::error::shortened(name);
    let Position { line, column } = flaw.at;
    TemplateError::invalid(&format!(
        "The template {part} '{name}' at line '{line}' and column '{column}' is not valid: {}",
        flaw.message
    ))
}

/// How many parts there may be, in Azure's words.
pub(crate) fn within(what: &str, count: usize, limit: usize) -> Result<(), TemplateError> {
    if count <= limit {
        return Ok(());
    }
    Err(TemplateError::invalid(&format!(
        "The number of template {what} limit exceeded. Limit: '{limit}' and actual: '{count}'. Please see https://aka.ms/arm-template-limits for usage details"
    )))
}
