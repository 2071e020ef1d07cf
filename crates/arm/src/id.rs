//! Paths of the management API, and ids of resources, which are such paths.
//!
//! ```text
//! /subscriptions/S/resourceGroups/G/providers/Microsoft.Compute/disks/D
//! /subscriptions/S/resourceGroups/G/providers/NS/TYPE/NAME/providers/Microsoft.Authorization/roleAssignments/A
//! ```
//!
//! Clients send words in any case, double slashes and percent-encode what need not be. Words compare
//! without case; the case of a name is kept.

use std::fmt;

use thiserror::Error;

/// Longest path that is looked at.
const MAX_PATH: usize = 4096;

/// Why a path is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PathError {
    /// It is too long.
    #[error("the path is longer than {MAX_PATH} bytes")]
    TooLong,
    /// An escape stands for nothing.
    #[error("the path has a '%' that is not followed by the two hexadecimal digits of a character")]
    Escape,
    /// A part of it has a character that no name has.
    #[error("a part of the path has a slash or a control character in it")]
    Character,
    /// A resource has no type or no name.
    #[error("the id does not name one resource by its type and name")]
    NoResource,
}

/// A path, taken apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ArmPath {
    /// The subscription.
    pub subscription: Option<String>,
    /// The resource group.
    pub group: Option<String>,
    /// What follows each `providers`: a resource, or resources of a type, and perhaps what extends it.
    pub typed: Vec<Typed>,
    /// What follows, where that is no `providers`.
    pub words: Vec<String>,
}

/// What follows `providers`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Typed {
    /// The namespace.
    pub provider: String,
    /// The types, the outermost first.
    pub types: Vec<String>,
    /// The names: as many as types, or one less, when the last word is a type or an action.
    pub names: Vec<String>,
}

impl Typed {
    /// Whether it is of that provider and these types.
    pub fn is(&self, provider: &str, types: &[&str]) -> bool {
        self.provider.eq_ignore_ascii_case(provider)
            && self.types.len() == types.len()
            && self
                .types
                .iter()
                .zip(types)
                .all(|(found, wanted)| found.eq_ignore_ascii_case(wanted))
    }

    /// `Microsoft.Compute/disks`, as the client has it.
    pub fn full_type(&self) -> String {
        format!("{}/{}", self.provider, self.types.join("/"))
    }

    /// Whether it names one resource.
    pub fn is_resource(&self) -> bool {
        !self.types.is_empty() && self.types.len() == self.names.len()
    }
}

impl ArmPath {
    /// Takes a path apart, without its query.
    ///
    /// # Errors
    /// [`PathError`].
    pub fn parse(path: &str) -> Result<Self, PathError> {
        let mut words = segments(path)?.into_iter().peekable();
        let mut found = Self::default();
        if words.peek().is_some_and(|word| is(word, "subscriptions")) {
            words.next();
            match words.next() {
                Some(subscription) => found.subscription = Some(subscription),
                None => {
                    found.words.push("subscriptions".into());
                    return Ok(found);
                }
            }
            if words.peek().is_some_and(|word| is(word, "resourceGroups")) {
                words.next();
                match words.next() {
                    Some(group) => found.group = Some(group),
                    None => {
                        found.words.push("resourceGroups".into());
                        return Ok(found);
                    }
                }
            }
        }
        while words.peek().is_some_and(|word| is(word, "providers")) {
            words.next();
            let Some(provider) = words.next() else {
                found.words.push("providers".into());
                return Ok(found);
            };
            let mut typed = Typed {
                provider,
                ..Typed::default()
            };
            while words.peek().is_some_and(|word| !is(word, "providers")) {
                typed.types.extend(words.next());
                typed.names.extend(words.next());
            }
            found.typed.push(typed);
        }
        found.words.extend(words);
        Ok(found)
    }

    /// Whether it is a subscription or a group and these words.
    pub fn is_words(&self, words: &[&str]) -> bool {
        self.typed.is_empty()
            && self.words.len() == words.len()
            && self
                .words
                .iter()
                .zip(words)
                .all(|(found, wanted)| is(found, wanted))
    }
}

/// Writes it as a path again, percent-encoding nothing: names that would need it name nothing.
impl fmt::Display for ArmPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(subscription) = &self.subscription {
            write!(f, "/subscriptions/{subscription}")?;
        }
        if let Some(group) = &self.group {
            write!(f, "/resourceGroups/{group}")?;
        }
        for typed in &self.typed {
            write!(f, "/providers/{}", typed.provider)?;
            let mut names = typed.names.iter();
            for kind in &typed.types {
                write!(f, "/{kind}")?;
                if let Some(name) = names.next() {
                    write!(f, "/{name}")?;
                }
            }
        }
        self.words.iter().try_for_each(|word| write!(f, "/{word}"))
    }
}

/// The id of one resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResourceId {
    /// The subscription.
    pub subscription: String,
    /// The resource group.
    pub group: String,
    /// Provider, types and names.
    pub typed: Typed,
}

impl ResourceId {
    /// Takes an id apart that a client has put into a body.
    ///
    /// # Errors
    /// [`PathError`].
    pub fn parse(id: &str) -> Result<Self, PathError> {
        let path = ArmPath::parse(id)?;
        let (Some(subscription), Some(group)) = (path.subscription, path.group) else {
            return Err(PathError::NoResource);
        };
        let mut typed = path.typed.into_iter();
        match (typed.next(), typed.next()) {
            (Some(typed), None) if typed.is_resource() && path.words.is_empty() => Ok(Self {
                subscription,
                group,
                typed,
            }),
            _ => Err(PathError::NoResource),
        }
    }

    /// The name of the resource itself.
    pub fn name(&self) -> &str {
        self.typed.names.last().map_or("", String::as_str)
    }
}

/// Whether a scope is at or below another: both are ids, compared without case.
pub fn is_within(scope: &str, outer: &str) -> bool {
    let outer = outer.trim_end_matches('/');
    let scope = scope.trim_end_matches('/');
    match (scope.get(..outer.len()), scope.get(outer.len()..)) {
        (Some(begin), Some(rest)) => {
            begin.eq_ignore_ascii_case(outer) && (rest.is_empty() || rest.starts_with('/'))
        }
        _ => false,
    }
}

fn is(word: &str, wanted: &str) -> bool {
    word.eq_ignore_ascii_case(wanted)
}

/// The parts of a path, decoded. An encoded slash would be one thing for whoever checks a scope, and
/// another for whoever looks for a name.
pub fn segments(path: &str) -> Result<Vec<String>, PathError> {
    if path.len() > MAX_PATH {
        return Err(PathError::TooLong);
    }
    path.split('/')
        .filter(|part| !part.is_empty())
        .map(decoded)
        .collect()
}

fn decoded(part: &str) -> Result<String, PathError> {
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        if byte != b'%' {
            bytes.push(byte);
            rest = after;
            continue;
        }
        let digit = |at: usize| after.get(at).and_then(|b| char::from(*b).to_digit(16));
        let (Some(high), Some(low)) = (digit(0), digit(1)) else {
            return Err(PathError::Escape);
        };
        bytes.push(u8::try_from(high * 16 + low).map_err(|_| PathError::Escape)?);
        rest = &after[2..];
    }
    let text = String::from_utf8(bytes).map_err(|_| PathError::Escape)?;
    let wrong = |c: char| c.is_control() || matches!(c, '/' | '\\');
    match text.contains(wrong) || text == "." || text == ".." {
        true => Err(PathError::Character),
        false => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_known_in_any_case_and_names_keep_theirs() {
        let path =
            "/SUBSCRIPTIONS/s//resourcegroups/Rg-1/Providers/microsoft.keyvault//vaults/Kv%2D1/";
        let found = ArmPath::parse(path).unwrap();
        assert_eq!(found.subscription.as_deref(), Some("s"));
        assert_eq!(found.group.as_deref(), Some("Rg-1"));
        assert!(found.typed[0].is("Microsoft.KeyVault", &["vaults"]));
        assert_eq!(found.typed[0].names, ["Kv-1"]);
        assert!(found.typed[0].is_resource());
        assert_eq!(
            found.to_string(),
            "/subscriptions/s/resourceGroups/Rg-1/providers/microsoft.keyvault/vaults/Kv-1"
        );
    }

    #[test]
    fn collections_actions_and_extensions() {
        let of = |path: &str| ArmPath::parse(path).unwrap();
        let list = of("/subscriptions/s/providers/Microsoft.Compute/disks");
        assert_eq!((list.group, list.typed[0].names.len()), (None, 0));
        let action = of("/subscriptions/s/resourceGroups/g/providers/N/disks/d/beginGetAccess");
        assert!(action.typed[0].is("n", &["disks", "begingetaccess"]));
        assert!(!action.typed[0].is_resource());
        let role = of("/subscriptions/s/providers/Microsoft.Authorization/roleAssignments/a");
        assert!(role.typed[0].is_resource());
        let extension =
            of("/subscriptions/s/resourceGroups/g/providers/N/disks/providers/providers/M/roles/a");
        assert_eq!(
            extension.typed[0].names,
            ["providers"],
            "a name may be any word"
        );
        assert!(extension.typed[1].is("m", &["roles"]));
        assert!(of("/subscriptions/s/resources").is_words(&["resources"]));
        assert!(of("/subscriptions/s/resourceGroups").is_words(&["resourcegroups"]));
        assert!(of("/subscriptions").is_words(&["subscriptions"]));
        assert!(of("/").is_words(&[]));
        assert!(of("/subscriptions/s/providers").is_words(&["providers"]));
    }

    #[test]
    fn what_hides_a_slash_or_is_no_escape_is_refused() {
        for (path, why) in [
            ("/a%2Fb", PathError::Character),
            ("/a%2f..", PathError::Character),
            ("/a%5Cb", PathError::Character),
            ("/a/../b", PathError::Character),
            ("/a%00", PathError::Character),
            ("/a%0d%0a", PathError::Character),
            ("/a%", PathError::Escape),
            ("/a%2", PathError::Escape),
            ("/a%zz", PathError::Escape),
            ("/a%ff", PathError::Escape),
        ] {
            assert_eq!(ArmPath::parse(path), Err(why), "{path}");
        }
        let long = format!("/{}", "a".repeat(MAX_PATH));
        assert_eq!(ArmPath::parse(&long), Err(PathError::TooLong));
    }

    #[test]
    fn an_id_names_one_resource() {
        let id =
            ResourceId::parse("/subscriptions/s/resourceGroups/g/providers/N/disks/D").unwrap();
        assert_eq!((id.group.as_str(), id.name()), ("g", "D"));
        for bad in [
            "D",
            "",
            "/subscriptions/s/providers/N/disks/D",
            "/subscriptions/s/resourceGroups/g/providers/N/disks",
            "/subscriptions/s/resourceGroups/g/providers/N/disks/D/providers/M/roles/a",
            "/subscriptions/s/resourceGroups/g",
        ] {
            assert_eq!(ResourceId::parse(bad), Err(PathError::NoResource), "{bad}");
        }
    }

    #[test]
    fn a_scope_has_what_is_below_it_and_nothing_beside() {
        let group = "/subscriptions/s/resourceGroups/rg";
        assert!(is_within(
            "/SUBSCRIPTIONS/s/resourcegroups/RG/providers/x",
            group
        ));
        assert!(is_within(group, group) && is_within(group, "/"));
        assert!(!is_within("/subscriptions/s/resourceGroups/rg2", group));
        assert!(!is_within("/subscriptions/s", group));
    }
}
