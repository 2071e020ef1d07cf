use crate::limits::MAX_MESSAGE;

/// Why a template is refused, under the code that Azure gives. The message is in Azure's words where they are known,
/// and has no control characters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The request is larger than 4 MiB.
    #[error("{0}")]
    RequestContentTooLarge(String),
    /// The request is no JSON, not even with what Azure forgives, or lacks what each deployment has.
    #[error("{0}")]
    InvalidRequestContent(String),
    /// The template, its parameters or one of its expressions are not valid.
    #[error("{0}")]
    InvalidTemplate(String),
    /// The template is valid, and asks for what is not offered here.
    #[error("{0}")]
    InvalidTemplateDeployment(String),
    /// A resource that `reference` names does not exist.
    #[error("{0}")]
    ResourceNotFound(String),
    /// All resources were made, and an output cannot be evaluated.
    #[error("{0}")]
    DeploymentOutputEvaluationFailed(String),
    /// Evaluation was stopped while the deployment went on.
    #[error("{0}")]
    DeploymentFailed(String),
}

impl TemplateError {
    /// The code of Azure's error body.
    pub fn azure_code(&self) -> &'static str {
        match self {
            Self::RequestContentTooLarge(_) => "RequestContentTooLarge",
            Self::InvalidRequestContent(_) => "InvalidRequestContent",
            Self::InvalidTemplate(_) => "InvalidTemplate",
            Self::InvalidTemplateDeployment(_) => "InvalidTemplateDeployment",
            Self::ResourceNotFound(_) => "ResourceNotFound",
            Self::DeploymentOutputEvaluationFailed(_) => "DeploymentOutputEvaluationFailed",
            Self::DeploymentFailed(_) => "DeploymentFailed",
        }
    }

    pub(crate) fn content(message: &str) -> Self {
        Self::InvalidRequestContent(clean(message))
    }

    /// What validation finds, in the frame that Azure puts around it.
    pub(crate) fn invalid(message: &str) -> Self {
        Self::InvalidTemplate(clean(&format!(
            "Deployment template validation failed: '{message}'."
        )))
    }

    pub(crate) fn unsupported(message: &str) -> Self {
        Self::InvalidTemplateDeployment(clean(message))
    }
}

/// What stands for the value of a secure parameter.
pub(crate) const HIDDEN: &str = "*****";

/// A message without control characters, of bounded length: names and values of a template are in it.
pub(crate) fn clean(message: &str) -> String {
    let visible = |c: char| if c.is_control() { ' ' } else { c };
    message.chars().take(MAX_MESSAGE).map(visible).collect()
}

/// The beginning of a text, for a message.
pub(crate) fn shortened(text: &str) -> String {
    const SHOWN: usize = 200;
    let mut short: String = text.chars().take(SHOWN).collect();
    if short.len() < text.len() {
        short.push_str("...");
    }
    short
}
