//! Refusals as Azure Resource Manager words them: a status, and a body
//! `{"error": {"code", "message", "target", "details"}}`.

use serde_json::{Value, json};
use server::{ApiError, FrontReply};

use attach::AttachError;
use disks::DiskError;
use installation::InstallationError;
use installation::catalog::{CatalogError, Kind};
use installation::envelope::EnvelopeError;
use templates::TemplateError;
use vault::{VaultError, VaultErrorCode};

/// A refused request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArmError {
    /// The HTTP status.
    pub status: u16,
    /// The code.
    pub code: String,
    /// One line for a person.
    pub message: String,
    /// The parameter that is wrong.
    pub target: Option<String>,
    /// The code and message of what is beneath.
    pub detail: Option<Box<(String, String)>>,
    /// After how many seconds it may be tried again.
    pub retry_after: Option<u64>,
    /// Of a failure of the server: the code and message of what has failed, for the operator of the host alone.
    pub cause: Option<Box<(&'static str, String)>>,
}

impl ArmError {
    /// A refusal.
    pub fn new(status: u16, code: &str, message: impl Into<String>) -> Self {
        Self {
            status,
            code: code.into(),
            message: message.into(),
            target: None,
            detail: None,
            retry_after: None,
            cause: None,
        }
    }

    /// 400: a parameter has a value that is not possible.
    pub fn parameter(target: &str, message: impl Into<String>) -> Self {
        Self {
            target: Some(target.into()),
            ..Self::new(400, "InvalidParameter", message)
        }
    }

    /// 400: something of Azure's that is not offered here.
    pub fn not_offered(target: &str, what: &str) -> Self {
        Self {
            target: Some(target.into()),
            ..Self::new(
                400,
                "FeatureNotOffered",
                format!("Sealdisk does not offer {what}; leave '{target}' out."),
            )
        }
    }

    /// 404: there is no such resource.
    pub fn no_resource(full_type: &str, name: &str, group: &str) -> Self {
        Self::new(
            404,
            "ResourceNotFound",
            format!(
                "The Resource '{full_type}/{name}' under resource group '{group}' was not found. For more \
                 details please go to https://aka.ms/ARMResourceNotFoundFix"
            ),
        )
    }

    /// 404: there is no such group.
    pub fn no_group(group: &str) -> Self {
        let message = format!("Resource group '{group}' could not be found.");
        Self::new(404, "ResourceGroupNotFound", message)
    }

    /// 409: it cannot be done as things are.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(409, "Conflict", message)
    }

    /// 500: the server failed. What failed is in the log; a client is not told about files.
    pub fn internal(what: impl std::fmt::Display) -> Self {
        Self::failed("InternalError", what)
    }

    /// The same, of a failure that has a code.
    fn failed(code: &'static str, what: impl std::fmt::Display) -> Self {
        let message = "An internal error occurred; the server's log says more.";
        Self::new(500, "InternalServerError", message).caused_by(code, what)
    }

    /// 507: there is no room for it, or for its record in the audit log.
    fn no_space(code: &'static str, what: impl std::fmt::Display) -> Self {
        let message = "The storage of the server is full, so this is not done: its operator has to make room. What takes \
                       access, keys or data away is done all the same.";
        Self::new(507, "InsufficientStorage", message).caused_by(code, what)
    }

    fn caused_by(self, code: &'static str, what: impl std::fmt::Display) -> Self {
        let what = what.to_string();
        log::error!("{what}");
        Self {
            cause: Some(Box::new((code, what))),
            ..self
        }
    }

    /// `{"code", "message", "target", "details"}`
    pub fn view(&self) -> Value {
        let mut error = json!({"code": self.code, "message": self.message});
        if let Some(target) = &self.target {
            error["target"] = json!(target);
        }
        if let Some((code, message)) = self.detail.as_deref() {
            error["details"] = json!([{"code": code, "message": message}]);
        }
        error
    }

    /// The answer.
    pub fn reply(&self) -> FrontReply {
        FrontReply {
            status: self.status,
            body: Some(json!({"error": self.view()})),
            retry_after: self.retry_after,
            ..FrontReply::default()
        }
    }

    /// A vault's refusal of what a disk encryption set needs, as Azure words it.
    fn key_vault(code: &str, message: String) -> Self {
        Self {
            detail: Some(Box::new((code.into(), message.clone()))),
            ..Self::new(
                403,
                "KeyVaultAccessForbidden",
                format!(
                    "Unable to access key vault resource to enable encryption at rest. Please grant get, wrap and \
                     unwrap key permissions to the disk encryption set, and retry: {message}"
                ),
            )
        }
    }
}

/// Where the status of an error follows from its code.
fn status_of(code: &str) -> u16 {
    match code {
        "ResourceNotFound" | "VaultNotFound" | "NotFound" => 404,
        "InvalidArgument" | "BadParameter" | "UnusableImage" => 400,
        _ => 409,
    }
}

impl From<VaultError> for ArmError {
    fn from(error: VaultError) -> Self {
        use VaultErrorCode as Code;
        let (code, message) = (error.code.as_str(), error.message.clone());
        if error.is_no_space() {
            return Self::no_space(code, error);
        }
        if error.lacks_files() {
            log::error!("{error}");
            let message = "The files of the key vault are not to be found; the server's log says where they should be.";
            return Self::new(404, code, message);
        }
        match error.code {
            Code::Forbidden
            | Code::KeyDisabled
            | Code::KeyExpired
            | Code::KeyNotYetValid
            | Code::KeyDeleted
            | Code::KeyOperationForbidden
            | Code::VaultDeleted
            | Code::ForbiddenByFirewall
            | Code::ForbiddenByConnection
            | Code::Unauthorized
            | Code::KeyNotFound => Self::key_vault(code, message),
            Code::BadParameter | Code::UnwrapFailed => Self::new(400, "InvalidParameter", message),
            Code::VaultNotFound | Code::PolicyNotFound => Self::new(404, code, message),
            Code::Conflict | Code::KeyBeingPurged => Self::conflict(message),
            Code::ForbiddenByPolicy => Self::new(403, "MethodNotAllowed", message),
            Code::Throttled | Code::Unreachable | Code::Incomplete => Self {
                retry_after: Some(5),
                ..Self::new(503, "KeyVaultUnreachable", message)
            },
            Code::MasterKey | Code::HsmAccess | Code::Tampered | Code::Internal => {
                Self::failed(code, error)
            }
        }
    }
}

impl From<CatalogError> for ArmError {
    fn from(error: CatalogError) -> Self {
        let message = error.to_string();
        if error.is_no_space() {
            return Self::no_space(error.code(), message);
        }
        match &error {
            CatalogError::NotFound {
                kind: Kind::Group,
                name,
            } => Self::no_group(name),
            CatalogError::NotFound { .. } => Self::new(404, "ResourceNotFound", message),
            CatalogError::NoHost { .. } => Self::new(404, error.code(), message),
            CatalogError::Exists { .. } => Self::conflict(message),
            CatalogError::Changed { .. } => Self {
                retry_after: Some(1),
                ..Self::conflict(message)
            },
            CatalogError::InUse { .. }
            | CatalogError::VaultInUse { .. }
            | CatalogError::IdentityInUse { .. }
            | CatalogError::GroupInUse { .. }
            | CatalogError::HostTaken { .. }
            | CatalogError::HostLives { .. }
            | CatalogError::Locked { .. } => Self::new(409, error.code(), message),
            CatalogError::NotSystemAssigned { .. } => Self::new(400, "InvalidParameter", message),
            CatalogError::Lost { .. }
            | CatalogError::LostOnServer { .. }
            | CatalogError::Elsewhere { .. }
            | CatalogError::Moved { .. }
            | CatalogError::InFile { .. }
            | CatalogError::Unrelated { .. }
            | CatalogError::OtherInstallation { .. }
            | CatalogError::Older { .. }
            | CatalogError::Exchanged { .. }
            | CatalogError::Arriving { .. }
            | CatalogError::Damaged { .. }
            | CatalogError::Copy { .. }
            | CatalogError::Note { .. }
            | CatalogError::Open(_)
            | CatalogError::Database(_) => Self::failed(error.code(), message),
        }
    }
}

impl From<InstallationError> for ArmError {
    fn from(error: InstallationError) -> Self {
        if error.is_no_space() {
            return Self::no_space(error.code(), error);
        }
        match error {
            InstallationError::Catalog(error) => error.into(),
            InstallationError::Vault(error) => error.into(),
            InstallationError::NotConnected { .. } => {
                Self::new(404, "VaultNotFound", error.to_string())
            }
            InstallationError::RemoteVault { .. }
            | InstallationError::VaultHere { .. }
            | InstallationError::VaultUsed { .. }
            | InstallationError::Identity { .. } => Self::new(409, error.code(), error.to_string()),
            InstallationError::Directory { .. }
            | InstallationError::Exposed { .. }
            | InstallationError::KeyFile { .. }
            | InstallationError::Audit(_)
            | InstallationError::Missing { .. }
            | InstallationError::MissingOnServer { .. }
            | InstallationError::NoStateDirectory => Self::failed(error.code(), error),
        }
    }
}

/// What a client is told, which is not where something is on the server.
fn told(error: &DiskError) -> String {
    match error {
        DiskError::InUse { name, .. } => {
            format!("the disk {name} is in use: detach it, or wait for the command that uses it")
        }
        DiskError::Envelope(EnvelopeError::Busy { .. }) => {
            "another command has it; try again when that has ended".into()
        }
        DiskError::PathTaken { .. }
        | DiskError::OtherDisk { .. }
        | DiskError::Registered { .. }
        | DiskError::OtherFileSystem { .. }
        | DiskError::NoLinks { .. }
        | DiskError::RuntimeMapElsewhere { .. }
        | DiskError::RuntimeMapMissing { .. }
        | DiskError::OutputExists { .. }
        | DiskError::LeftBehind { .. }
        | DiskError::Envelope(_) => {
            log::error!("{error}");
            let code = error.code();
            format!("its files on the server are not in order ({code}); the server's log says more")
        }
        error => error.to_string(),
    }
}

impl From<DiskError> for ArmError {
    fn from(error: DiskError) -> Self {
        if error.is_no_space() {
            return Self::no_space(error.code(), error);
        }
        if let Some(why) = error.refused_size() {
            let target = "properties.diskSizeGB";
            return Self::parameter(
                target,
                format!("The size of the disk is not possible: {why}."),
            );
        }
        match error {
            DiskError::Control(error) => error.into(),
            DiskError::Envelope(EnvelopeError::Vault(error)) => error.into(),
            DiskError::Layer { source, .. } => (*source).into(),
            // Whoever has it lets go of it: another command, or a merge of what a snapshot has left.
            DiskError::InUse { .. }
            | DiskError::JobUnderWay { .. }
            | DiskError::Unfinished { .. }
            | DiskError::Envelope(EnvelopeError::Busy { .. }) => Self {
                retry_after: Some(1),
                ..Self::new(status_of(error.code()), error.code(), told(&error))
            },
            DiskError::Granted { kind, name, until } => Self::new(
                409,
                "OperationNotAllowed",
                format!(
                    "There is an active shared access signature outstanding for {kind} {name}, until {until}. Call \
                     EndGetAccess before attaching, changing or deleting the {kind}. Learn more here: \
                     aka.ms/revokeaccessapi."
                ),
            ),
            DiskError::Argument(message) => Self::new(400, "InvalidParameter", message),
            DiskError::File { .. }
            | DiskError::Volume(_)
            | DiskError::Pipeline(_)
            | DiskError::Key(_) => Self::failed(error.code(), error),
            error => Self::new(status_of(error.code()), error.code(), told(&error)),
        }
    }
}

impl From<AttachError> for ArmError {
    fn from(error: AttachError) -> Self {
        match error {
            AttachError::Disk(error) => error.into(),
            error => Self::new(status_of(error.code()), error.code(), error.to_string()),
        }
    }
}

impl From<ApiError> for ArmError {
    fn from(error: ApiError) -> Self {
        Self {
            retry_after: error.retry_after,
            ..Self::new(error.status.as_u16(), error.code, error.message)
        }
    }
}

/// In Azure every refusal of a template is one of the request.
impl From<TemplateError> for ArmError {
    fn from(error: TemplateError) -> Self {
        let status = match &error {
            TemplateError::RequestContentTooLarge(_) => 413,
            _ => 400,
        };
        Self::new(status, error.azure_code(), error.to_string())
    }
}

/// What a body has at a place, for those who build answers.
pub fn text<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    value.pointer(pointer)?.as_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_client_is_told_where_the_servers_files_are() {
        let path = std::path::PathBuf::from("/var/lib/sealdisk/disks/d");
        let name = "d".to_owned();
        for error in [
            DiskError::InUse {
                name: name.clone(),
                path: path.clone(),
            },
            DiskError::PathTaken { path: path.clone() },
            DiskError::OtherFileSystem {
                from: path.clone(),
                into: path.clone(),
            },
            DiskError::RuntimeMapElsewhere {
                name,
                directory: path.clone(),
                path: path.clone(),
            },
            DiskError::Envelope(EnvelopeError::Busy { path }),
        ] {
            let text = error.to_string();
            let error = ArmError::from(error);
            assert_eq!(error.status, 409, "{text}");
            assert!(!error.message.contains('/'), "{}", error.message);
        }
    }
}
