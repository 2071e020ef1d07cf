//! From a request's method and path to what it asks for: the routes of Azure's key vault REST API.

use std::borrow::Cow;

/// A request to the keys of a vault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// `POST /keys/{name}/create`
    Create(String),
    /// `PUT /keys/{name}`
    Import(String),
    /// `GET /keys/{name}[/{version}]`
    Get(String, Option<String>),
    /// `PATCH /keys/{name}[/{version}]`
    Update(String, Option<String>),
    /// `POST /keys/{name}[/{version}]/{wrapkey|unwrapkey|encrypt|decrypt}`
    Crypt(String, Option<String>, Crypt),
    /// `GET /keys/{name}/versions`
    ListVersions(String),
    /// `GET /keys`
    List,
    /// `DELETE /keys/{name}`
    Delete(String),
    /// `POST /keys/{name}/rotate`
    Rotate(String),
    /// `GET /keys/{name}/rotationpolicy`
    GetRotationPolicy(String),
    /// `PUT /keys/{name}/rotationpolicy`
    SetRotationPolicy(String),
    /// `POST /keys/{name}/backup`
    Backup(String),
    /// `POST /keys/restore`
    Restore,
    /// `POST /rng`
    Random,
    /// `GET /deletedkeys`
    ListDeleted,
    /// `GET /deletedkeys/{name}`
    GetDeleted(String),
    /// `DELETE /deletedkeys/{name}`
    Purge(String),
    /// `POST /deletedkeys/{name}/recover`
    Recover(String),
}

/// What is done with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crypt {
    /// Encrypt a secret.
    Wrap,
    /// Decrypt a wrapped secret.
    Unwrap,
    /// Encrypt data.
    Encrypt,
    /// Decrypt data.
    Decrypt,
}

/// Why a path leads nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoRoute {
    /// There is nothing of that path.
    Path,
    /// There is, but not with that method.
    Method,
}

impl Route {
    /// As traces call it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Create(_) => "vault create key",
            Self::Import(_) => "vault import key",
            Self::Get(..) => "vault get key",
            Self::Update(..) => "vault update key",
            Self::Crypt(_, _, Crypt::Wrap) => "vault wrap",
            Self::Crypt(_, _, Crypt::Unwrap) => "vault unwrap",
            Self::Crypt(_, _, Crypt::Encrypt) => "vault encrypt",
            Self::Crypt(_, _, Crypt::Decrypt) => "vault decrypt",
            Self::ListVersions(_) => "vault list key versions",
            Self::List => "vault list keys",
            Self::Delete(_) => "vault delete key",
            Self::Rotate(_) => "vault rotate key",
            Self::GetRotationPolicy(_) => "vault get rotation policy",
            Self::SetRotationPolicy(_) => "vault set rotation policy",
            Self::Backup(_) => "vault back up key",
            Self::Restore => "vault restore key",
            Self::Random => "vault random bytes",
            Self::ListDeleted => "vault list deleted keys",
            Self::GetDeleted(_) => "vault get deleted key",
            Self::Purge(_) => "vault purge key",
            Self::Recover(_) => "vault recover key",
        }
    }

    /// Finds the route, in whatever case. Empty segments are passed over, as clients double slashes and add one at
    /// the end; a segment may be percent-encoded.
    ///
    /// # Errors
    /// [`NoRoute`].
    pub fn find(method: &str, path: &str) -> Result<Self, NoRoute> {
        let segments = segments(path).ok_or(NoRoute::Path)?;
        // Azure's paths are case-insensitive: only the name of a key keeps the case that it has.
        let is_name = |at: usize| at == 1 && !segments[at].eq_ignore_ascii_case("restore");
        let cased: Vec<Cow<'_, str>> = segments
            .iter()
            .enumerate()
            .map(|(at, segment)| match is_name(at) {
                true => segment.as_ref().into(),
                false => segment.to_ascii_lowercase().into(),
            })
            .collect();
        let segments: Vec<&str> = cased.iter().map(AsRef::as_ref).collect();
        match segments.as_slice() {
            ["keys", rest @ ..] => Self::of_keys(method, rest),
            ["deletedkeys", rest @ ..] => Self::of_deleted_keys(method, rest),
            ["rng"] if method == "POST" => Ok(Self::Random),
            ["rng"] => Err(NoRoute::Method),
            _ => Err(NoRoute::Path),
        }
    }

    fn of_keys(method: &str, segments: &[&str]) -> Result<Self, NoRoute> {
        let own = |name: &&str| (*name).to_owned();
        Ok(match (method, segments) {
            ("GET", []) => Self::List,
            ("POST", ["restore"]) => Self::Restore,
            ("PUT", [name]) => Self::Import(own(name)),
            ("GET", [name]) => Self::Get(own(name), None),
            ("PATCH", [name]) => Self::Update(own(name), None),
            ("DELETE", [name]) => Self::Delete(own(name)),
            ("GET", [name, "versions"]) => Self::ListVersions(own(name)),
            ("GET", [name, "rotationpolicy"]) => Self::GetRotationPolicy(own(name)),
            ("PUT", [name, "rotationpolicy"]) => Self::SetRotationPolicy(own(name)),
            ("POST", [name, "create"]) => Self::Create(own(name)),
            ("POST", [name, "rotate"]) => Self::Rotate(own(name)),
            ("POST", [name, "backup"]) => Self::Backup(own(name)),
            ("POST", [name, operation]) => Self::Crypt(own(name), None, crypt(operation)?),
            ("POST", [name, version, operation]) => {
                Self::Crypt(own(name), Some(own(version)), crypt(operation)?)
            }
            ("GET", [name, version]) => Self::Get(own(name), Some(own(version))),
            ("PATCH", [name, version]) => Self::Update(own(name), Some(own(version))),
            (_, [] | [_] | [_, _]) => return Err(NoRoute::Method),
            (_, [_, _, operation]) if crypt(operation).is_ok() => return Err(NoRoute::Method),
            _ => return Err(NoRoute::Path),
        })
    }

    fn of_deleted_keys(method: &str, segments: &[&str]) -> Result<Self, NoRoute> {
        Ok(match (method, segments) {
            ("GET", []) => Self::ListDeleted,
            ("GET", [name]) => Self::GetDeleted((*name).into()),
            ("DELETE", [name]) => Self::Purge((*name).into()),
            ("POST", [name, "recover"]) => Self::Recover((*name).into()),
            (_, [] | [_] | [_, "recover"]) => return Err(NoRoute::Method),
            _ => return Err(NoRoute::Path),
        })
    }
}

fn crypt(operation: &str) -> Result<Crypt, NoRoute> {
    Ok(match operation {
        "wrapkey" => Crypt::Wrap,
        "unwrapkey" => Crypt::Unwrap,
        "encrypt" => Crypt::Encrypt,
        "decrypt" => Crypt::Decrypt,
        _ => return Err(NoRoute::Path),
    })
}

/// The segments of a path that are not empty, decoded; `None` when one is no UTF-8 or its encoding
/// is broken.
pub(super) fn segments(path: &str) -> Option<Vec<Cow<'_, str>>> {
    path.split('/')
        .filter(|segment| !segment.is_empty())
        .map(decode)
        .collect()
}

/// RFC 3986 §2.1.
fn decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(text.into());
    }
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => digit(bytes.next()?)? << 4 | digit(bytes.next()?)?,
            byte => byte,
        });
    }
    String::from_utf8(decoded).ok().map(Cow::Owned)
}

fn digit(byte: u8) -> Option<u8> {
    let value = char::from(byte).to_digit(16)?;
    u8::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(line: &str) -> Result<Route, NoRoute> {
        let (method, path) = line.split_once(' ').unwrap();
        Route::find(method, path)
    }

    #[test]
    fn every_route_of_the_api() {
        let n = || "n".to_owned();
        let v = || Some("v".to_owned());
        for (line, route) in [
            ("POST /keys/n/create", Route::Create(n())),
            ("POST /keys/n/rotate", Route::Rotate(n())),
            ("PUT /keys/n", Route::Import(n())),
            ("GET /keys/n", Route::Get(n(), None)),
            ("GET /keys/n/v", Route::Get(n(), v())),
            ("PATCH /keys/n", Route::Update(n(), None)),
            ("PATCH /keys/n/v", Route::Update(n(), v())),
            ("GET /keys/n/versions", Route::ListVersions(n())),
            ("GET /keys", Route::List),
            ("DELETE /keys/n", Route::Delete(n())),
            (
                "POST /keys/n/v/wrapkey",
                Route::Crypt(n(), v(), Crypt::Wrap),
            ),
            (
                "POST /keys/n/v/unwrapkey",
                Route::Crypt(n(), v(), Crypt::Unwrap),
            ),
            (
                "POST /keys/n/v/encrypt",
                Route::Crypt(n(), v(), Crypt::Encrypt),
            ),
            (
                "POST /keys/n/v/decrypt",
                Route::Crypt(n(), v(), Crypt::Decrypt),
            ),
            (
                "POST /keys/n//wrapkey",
                Route::Crypt(n(), None, Crypt::Wrap),
            ),
            ("POST /keys/n/backup", Route::Backup(n())),
            ("POST /keys/restore", Route::Restore),
            ("GET /keys/n/rotationpolicy", Route::GetRotationPolicy(n())),
            ("PUT /keys/n/rotationpolicy", Route::SetRotationPolicy(n())),
            ("POST /rng", Route::Random),
            ("GET /deletedkeys", Route::ListDeleted),
            ("GET /deletedkeys/n", Route::GetDeleted(n())),
            ("DELETE /deletedkeys/n", Route::Purge(n())),
            ("POST /deletedkeys/n/recover", Route::Recover(n())),
        ] {
            assert_eq!(find(line), Ok(route), "{line}");
        }
    }

    #[test]
    fn paths_have_any_case_and_the_names_of_keys_keep_theirs() {
        let n = || "MyKey".to_owned();
        for (line, route) in [
            ("GET /Keys/MyKey", Route::Get(n(), None)),
            ("GET /KEYS/MyKey/Versions", Route::ListVersions(n())),
            (
                "POST /Keys/MyKey/V/WrapKey",
                Route::Crypt(n(), Some("v".into()), Crypt::Wrap),
            ),
            ("POST /keys/Restore", Route::Restore),
            ("DELETE /DeletedKeys/MyKey", Route::Purge(n())),
            ("POST /Rng", Route::Random),
        ] {
            assert_eq!(find(line), Ok(route), "{line}");
        }
    }

    #[test]
    fn empty_segments_and_percent_encoding() {
        assert_eq!(find("GET //keys//n/"), Ok(Route::Get("n".into(), None)));
        assert_eq!(
            find("GET /%6Beys/a%2Fb"),
            Ok(Route::Get("a/b".into(), None))
        );
        for broken in [
            "GET /keys/%",
            "GET /keys/%4",
            "GET /keys/%zz",
            "GET /keys/%ff",
        ] {
            assert_eq!(find(broken), Err(NoRoute::Path), "{broken}");
        }
    }

    #[test]
    fn a_wrong_method_is_told_from_a_wrong_path() {
        for line in [
            "POST /keys",
            "POST /keys/n",
            "PUT /keys/n/create",
            "GET /rng",
            "GET /keys/n/v/wrapkey",
            "PUT /deletedkeys/n",
            "GET /deletedkeys/n/recover",
        ] {
            assert_eq!(find(line), Err(NoRoute::Method), "{line}");
        }
        for line in [
            "GET /",
            "GET /secrets/n",
            "POST /keys/n/v/sign",
            "GET /keys/n/v/w/x",
            "GET /deletedkeys/n/v",
        ] {
            assert_eq!(find(line), Err(NoRoute::Path), "{line}");
        }
    }
}
