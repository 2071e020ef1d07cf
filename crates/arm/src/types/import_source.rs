//! What a disk is imported from: the data of another one by a URL of access which this installation has given out, or
//! a file below a directory that the operator has named. The server goes to no other address, and none of these is
//! asked for over the network.

use std::fmt;
use std::path::Path;

use serde_json::{Value, json};
use url::Url;
use uuid::Uuid;

use super::bodies::optional_text;
use crate::access::{self, Ticket};
use crate::call::Call;
use crate::error::{ArmError, text};
use disks::import::{self, Cancel, Source};
use installation::catalog::Access;
use time::OffsetDateTime;

const POINTER: &str = "/properties/creationData/sourceUri";
const TARGET: &str = "properties.creationData.sourceUri";
/// Files of the host are read for those who may make disks anywhere.
const FILE_ACTION: &str = "Microsoft.Compute/disks/write";

/// Where a disk is imported from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImportSource {
    /// The data of a disk or a snapshot, by this grant.
    Grant(Uuid),
    /// A file, by its path in the directory of imports.
    File(String),
}

/// As the audit log has it: without what proves that access was granted.
impl fmt::Display for ImportSource {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Grant(id) => write!(to, "access {id}"),
            Self::File(path) => write!(to, "file {path}"),
        }
    }
}

impl ImportSource {
    /// That of a body.
    ///
    /// # Errors
    /// 400 for what is imported from nowhere, with what to do instead; 403.
    pub fn of_body(call: &Call<'_>, body: &Value) -> Result<Self, ArmError> {
        let uri = optional_text(body, POINTER)?.ok_or_else(|| {
            let message = format!("Required parameter '{TARGET}' is missing (null).");
            ArmError::parameter(TARGET, message)
        })?;
        let parsed = Url::parse(uri).map_err(|error| {
            let message = format!("The value of parameter {TARGET} is invalid: {error}.");
            ArmError::parameter(TARGET, message)
        })?;
        match (parsed.scheme(), Ticket::of_url(uri)) {
            ("file", _) => Self::of_file(call, &parsed),
            ("https", Some(ticket)) => Self::of_ticket(call, &ticket),
            _ => Err(nothing_else("other addresses than its own")),
        }
    }

    fn of_file(call: &Call<'_>, uri: &Url) -> Result<Self, ArmError> {
        let Some(dir) = call.changes.import_dir.as_deref() else {
            return Err(nothing_else("files of its host"));
        };
        // Before it is told what there is.
        call.require(FILE_ACTION, &call.names.subscription_id())?;
        // Else another file than the one of that name would be imported.
        if uri.query().is_some() || uri.fragment().is_some() {
            let message = format!(
                "The value of parameter {TARGET} is invalid: the URI of a file has neither '?' nor '#'; where its name \
                 has one, write '%3F' or '%23'."
            );
            return Err(ArmError::parameter(TARGET, message));
        }
        let path = uri.to_file_path().ok();
        let below = path.as_ref().and_then(|path| path.strip_prefix(dir).ok());
        let below = below.and_then(Path::to_str);
        let below = below.ok_or_else(|| {
            ArmError::parameter(
                TARGET,
                format!(
                    "The value of parameter {TARGET} is invalid: the file has to be below '{}'.",
                    dir.display()
                ),
            )
        })?;
        import::open_beneath(dir, Path::new(below)).map_err(unusable)?;
        Ok(Self::File(below.into()))
    }

    fn of_ticket(call: &Call<'_>, ticket: &Ticket) -> Result<Self, ArmError> {
        let found = access::granted(call.installation(), ticket);
        let found = found.ok().filter(|grant| grant.access == Access::Read);
        let Some(grant) = found else {
            let what = format!("import from access {}", ticket.grant);
            let code = "AuthenticationFailed";
            let by = call.principal.object_id;
            call.site
                .note_refused(call.head.peer, "AccessRefused", by, code, &what);
            return Err(Self::over());
        };
        Ok(Self::Grant(grant.id))
    }

    /// That access to the source is over, or never was.
    pub fn over() -> ArmError {
        ArmError {
            target: Some(TARGET.into()),
            ..ArmError::new(
                403,
                "AuthenticationFailed",
                "The source URI is no URL of access that counts: it was not given out here to read, has expired, or \
                 was revoked.",
            )
        }
    }

    /// What the catalog keeps.
    pub fn kept(&self) -> Value {
        match self {
            Self::Grant(id) => json!({"grant": id}),
            Self::File(path) => json!({"file": path}),
        }
    }

    /// What [`ImportSource::kept`] has kept.
    pub fn again(kept: &Value) -> Option<Self> {
        match (text(kept, "/grant"), text(kept, "/file")) {
            (Some(id), _) => Uuid::try_parse(id).ok().map(Self::Grant),
            (None, Some(path)) => Some(Self::File(path.into())),
            (None, None) => None,
        }
    }

    /// Whether it may still be read.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn is_good(&self, call: &Call<'_>) -> Result<bool, ArmError> {
        match self {
            Self::File(_) => Ok(true),
            Self::Grant(id) => {
                let known = call.catalog().access(*id)?;
                Ok(known.is_some_and(|known| known.is_live(OffsetDateTime::now_utc())))
            }
        }
    }

    /// Opens it.
    ///
    /// # Errors
    /// What is wrong with it; 403 when access to it is over.
    pub fn open(&self, call: &Call<'_>, cancel: &Cancel) -> Result<Source, ArmError> {
        match self {
            Self::Grant(id) => {
                let known = call.catalog().access(*id)?;
                let grant = known.filter(|known| known.is_live(OffsetDateTime::now_utc()));
                let grant = grant.ok_or_else(Self::over)?;
                access::image(call.access, &grant)
            }
            Self::File(path) => {
                let Some(dir) = call.changes.import_dir.as_deref() else {
                    return Err(nothing_else("files of its host"));
                };
                call.require(FILE_ACTION, &call.names.subscription_id())?;
                let file = import::open_beneath(dir, Path::new(path)).map_err(unusable)?;
                import::open_file(file, &dir.join(path), cancel).map_err(unusable)
            }
        }
    }
}

fn unusable(error: import::ImportError) -> ArmError {
    ArmError {
        target: Some(TARGET.into()),
        ..ArmError::from(disks::DiskError::from(error))
    }
}

fn nothing_else(what: &str) -> ArmError {
    ArmError {
        target: Some(TARGET.into()),
        ..ArmError::new(
            400,
            "FeatureNotOffered",
            format!(
                "Sealdisk imports nothing from {what}. Upload the image (`az disk create --upload-type Upload`, \
                 `az disk grant-access --access-level Write`, then its pages to that URL), name a URL of access that this \
                 server has given out, or have its operator put the image into the directory of `sealdisk serve \
                 --import-dir`."
            ),
        )
    }
}

/// A body whose `sourceUri` says nothing by which somebody could read the source.
pub fn without_signature(body: &Value) -> Value {
    let mut body = body.clone();
    if let Some(Value::String(uri)) = body.pointer_mut(POINTER) {
        *uri = unsigned(uri);
    }
    body
}

/// Takes from all URLs in a value what somebody could read something by: a template may have one as it is, or in an
/// expression. Whether there was any.
pub fn hide_signatures(value: &mut Value) -> bool {
    match value {
        Value::String(text) => {
            let hidden = unsigned(text);
            let is_other = hidden != *text;
            *text = hidden;
            is_other
        }
        Value::Array(elements) => hide_all(elements.iter_mut()),
        Value::Object(fields) => hide_all(fields.values_mut()),
        _ => false,
    }
}

fn hide_all<'a>(values: impl Iterator<Item = &'a mut Value>) -> bool {
    let mut is_any = false;
    for value in values {
        is_any |= hide_signatures(value);
    }
    is_any
}

/// A text without the values of `sig` in queries: those of its URLs, and those that begin it or a literal of it.
fn unsigned(text: &str) -> String {
    const NAME: &str = "sig=";
    let (mut shown, mut rest) = (String::with_capacity(text.len()), text);
    loop {
        let name = rest.get(..NAME.len());
        if let Some(name) = name.filter(|name| name.eq_ignore_ascii_case(NAME)) {
            shown.push_str(name);
            rest = hide_value(&rest[NAME.len()..], &mut shown);
        }
        let Some(at) = rest.find(['?', '&', '\'']) else {
            break;
        };
        let (before, after) = rest.split_at(at + 1);
        shown.push_str(before);
        rest = after;
    }
    shown.push_str(rest);
    shown
}

/// Hides a value, also where an expression has parts of it in further literals, and returns what follows.
fn hide_value<'a>(mut rest: &'a str, shown: &mut String) -> &'a str {
    let ends = |c: char| c.is_whitespace() || "&#'\"<>()".contains(c);
    loop {
        let end = rest.find(ends).unwrap_or(rest.len());
        shown.push_str(if end > 0 { "REDACTED" } else { "" });
        rest = &rest[end..];
        let Some(literal) = next_literal(rest) else {
            return rest;
        };
        let (between, literal) = rest.split_at(rest.len() - literal.len());
        shown.push_str(between);
        rest = literal;
    }
}

/// What is in the literal that follows, and behind it, where a literal ends here.
fn next_literal(text: &str) -> Option<&str> {
    let behind = text.strip_prefix('\'')?.trim_start();
    behind.strip_prefix(',')?.trim_start().strip_prefix('\'')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_not_kept() {
        for (uri, wanted) in [
            ("https://h/sas/x.vhd", "https://h/sas/x.vhd"),
            (
                "https://h/sas/x.vhd?si=1&sig=a%2Bb&se=2",
                "https://h/sas/x.vhd?si=1&sig=REDACTED&se=2",
            ),
            (
                "https://h/x?SIG=a&sig=b",
                "https://h/x?SIG=REDACTED&sig=REDACTED",
            ),
            ("sig=a&si=1", "sig=REDACTED&si=1"),
            ("[concat(u, 'sig=a')]", "[concat(u, 'sig=REDACTED')]"),
            (
                "[concat('h?sig=', 'a',\n 'b', '&si=', 'c')]",
                "[concat('h?sig=', 'REDACTED',\n 'REDACTED', '&si=', 'c')]",
            ),
            (
                "[format('{0}?sig={1}', 'h', 'a')]",
                "[format('{0}?sig=REDACTED', 'REDACTED', 'REDACTED')]",
            ),
            ("sig=", "sig="),
            ("design='sign'", "design='sign'"),
        ] {
            assert_eq!(unsigned(uri), wanted);
            assert_eq!(unsigned(wanted), wanted, "as it is sent back");
        }
    }

    #[test]
    fn no_signature_of_a_template_is_told() {
        let mut template = json!({"resources": [
            {"sourceUri": "https://h/sas/x.vhd?si=1&sig=secret", "name": "[concat('a?sig=', u)]"},
            {"sourceUri": "[concat('HTTPS://h/x?SIG=secret&si=', parameters('id'))]"},
            "see https://h/x?si=1&sig=secret, which is told", "design=1&size=2",
        ]});
        assert!(hide_signatures(&mut template));
        let resource = &template["resources"][0];
        assert_eq!(
            resource["sourceUri"],
            "https://h/sas/x.vhd?si=1&sig=REDACTED"
        );
        assert_eq!(resource["name"], "[concat('a?sig=', u)]", "an expression");
        assert_eq!(
            template["resources"][1]["sourceUri"],
            "[concat('HTTPS://h/x?SIG=REDACTED&si=', parameters('id'))]"
        );
        assert!(!template.to_string().contains("secret"), "{template}");
        assert!(!hide_signatures(&mut template), "{template}");
    }

    #[test]
    fn a_source_is_kept_as_it_is() {
        for source in [
            ImportSource::Grant(Uuid::from_u128(7)),
            ImportSource::File("a/b.vhd".into()),
        ] {
            assert_eq!(ImportSource::again(&source.kept()), Some(source));
        }
    }
}
