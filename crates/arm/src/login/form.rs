//! What a request for a token says.

use url::form_urlencoded;

use super::refusal::Refusal;

/// The fields of a request for a token.
pub(super) struct Form<'a>(&'a [u8]);

impl<'a> Form<'a> {
    pub fn new(body: &'a [u8]) -> Self {
        Self(body)
    }

    pub fn field(&self, name: &str) -> Option<String> {
        let mut fields = form_urlencoded::parse(self.0);
        let found = fields.find(|(key, _)| key == name);
        found.map(|(_, value)| value.into_owned())
    }

    pub fn required(&self, name: &str) -> Result<String, Refusal> {
        let found = self.field(name).filter(|value| !value.is_empty());
        found.ok_or_else(|| {
            let message =
                format!("The request body must contain the following parameter: '{name}'.");
            Refusal::new(400, "invalid_request", 900144, message)
        })
    }

    /// For which service a token is wanted.
    pub fn resource(&self) -> Result<String, Refusal> {
        match self.field("resource") {
            Some(resource) => Ok(resource),
            None => Ok(resource_of(&self.required("scope")?)),
        }
    }
}

/// The resource of which a scope is: az doubles the slash before `.default`.
fn resource_of(scope: &str) -> String {
    let first = scope.split_whitespace().next().unwrap_or_default();
    first.strip_suffix("/.default").unwrap_or(first).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_is_a_resource_with_a_word_behind_it() {
        assert_eq!(resource_of("https://h:1//.default"), "https://h:1/");
        assert_eq!(
            resource_of("https://h/.default offline_access"),
            "https://h"
        );
        assert_eq!(resource_of(""), "");
    }
}
