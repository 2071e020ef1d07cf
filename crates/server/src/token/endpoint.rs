//! What the two managed-identity endpoints are asked and answer. Each SDK needs another subset of
//! the answer, so all of it is always there, and numbers are strings as Azure's endpoints have them.

use serde_json::{Value, json};
use url::form_urlencoded;
use uuid::Uuid;

use super::issued::Issued;
use crate::ApiError;
use installation::catalog::IdentityRecord;

/// Which protocol is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// The instance metadata service of a virtual machine.
    Imds,
    /// `IDENTITY_ENDPOINT` with `IDENTITY_HEADER`, as of App Service.
    IdentityEndpoint,
}

/// A request for a token.
#[derive(Debug, PartialEq, Eq)]
pub struct TokenRequest {
    /// For which service.
    pub resource: String,
    client_id: Option<Uuid>,
    object_id: Option<Uuid>,
}

impl TokenRequest {
    /// Parses the query of a request.
    ///
    /// # Errors
    /// 400, naming the parameter.
    pub fn parse(flavour: Flavour, query: &str) -> Result<Self, ApiError> {
        let mut resource = None;
        let mut version = None;
        let mut client_id = None;
        let mut object_id = None;
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match name.as_ref() {
                "resource" => resource = Some(value.into_owned()),
                "api-version" => version = Some(value.into_owned()),
                "client_id" | "clientid" => client_id = Some(id(&name, &value)?),
                "object_id" | "principal_id" => object_id = Some(id(&name, &value)?),
                "msi_res_id" | "mi_res_id" => {
                    return Err(bad("identities have no resource id here; use client_id"));
                }
                _ => {}
            }
        }
        // Later versions of IMDS differ in nothing that concerns tokens.
        let known = match flavour {
            Flavour::Imds => "2018-02-01",
            Flavour::IdentityEndpoint => "2019-08-01",
        };
        if version.is_none_or(|version| version.as_str() < known || version.len() != known.len()) {
            return Err(bad(format!("api-version has to be {known} or later")));
        }
        Ok(Self {
            resource: resource.ok_or_else(|| bad("the parameter resource is missing"))?,
            client_id,
            object_id,
        })
    }

    /// Whether the request is for that identity, or for whichever there is.
    pub fn means(&self, identity: &IdentityRecord) -> bool {
        self.client_id.is_none_or(|id| id == identity.client_id)
            && self.object_id.is_none_or(|id| id == identity.object_id)
    }

    /// Whether the request names no identity.
    pub fn is_open(&self) -> bool {
        self.client_id.is_none() && self.object_id.is_none()
    }

    /// The answer.
    pub fn answer(&self, identity: &IdentityRecord, issued: &Issued) -> Value {
        let not_before = issued.expires_on.saturating_sub_unsigned(issued.expires_in);
        json!({
            "access_token": issued.token,
            "client_id": identity.client_id,
            "expires_in": issued.expires_in.to_string(),
            "expires_on": issued.expires_on.to_string(),
            "ext_expires_in": issued.expires_in.to_string(),
            "not_before": not_before.to_string(),
            "resource": self.resource,
            "token_type": "Bearer",
        })
    }
}

fn id(name: &str, value: &str) -> Result<Uuid, ApiError> {
    Uuid::parse_str(value).map_err(|_| bad(format!("the parameter {name} is no UUID")))
}

pub(crate) fn bad(message: impl Into<String>) -> ApiError {
    ApiError::new(
        axum::http::StatusCode::BAD_REQUEST,
        "invalid_request",
        message,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_a_resource_and_perhaps_an_identity() {
        let id = Uuid::from_u128(7);
        let query = format!("api-version=2018-02-01&resource=https%3A%2F%2Fr&client_id={id}");
        let request = TokenRequest::parse(Flavour::Imds, &query).unwrap();
        assert_eq!(request.resource, "https://r");
        assert_eq!(request.client_id, Some(id));
        assert!(!request.is_open());
        let query = "resource=r&api-version=2019-08-01";
        let request = TokenRequest::parse(Flavour::IdentityEndpoint, query).unwrap();
        assert!(request.is_open());
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        for (query, why) in [
            ("resource=r", "api-version"),
            ("resource=r&api-version=2017-01-01", "api-version"),
            ("api-version=2018-02-01", "resource"),
            ("api-version=2018-02-01&resource=r&client_id=x", "client_id"),
            (
                "api-version=2018-02-01&resource=r&msi_res_id=x",
                "resource id",
            ),
        ] {
            let error = TokenRequest::parse(Flavour::Imds, query).unwrap_err();
            assert_eq!(error.code, "invalid_request");
            assert!(error.message.contains(why), "{query}: {}", error.message);
        }
    }
}
