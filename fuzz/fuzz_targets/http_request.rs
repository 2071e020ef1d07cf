//! What a client of a served key vault says: nothing of it may panic, a route means what its path
//! says, and what comes out of a host name is fit for a header.

#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use server::{Flavour, Operation, Query, Route, TokenRequest, VaultHost};

#[derive(Debug, Arbitrary)]
struct Input<'a> {
    method: Method,
    path: &'a str,
    query: &'a str,
    host: &'a str,
    body: &'a [u8],
}

#[derive(Debug, Arbitrary)]
enum Method {
    Get,
    Post,
    Put,
    Patch,
    Delete,
    Other,
}

impl Method {
    fn name(&self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
            Self::Other => "OPTIONS",
        }
    }
}

fuzz_target!(|input: Input<'_>| {
    let domains = ["vault.localhost".to_owned(), "vault.example.net".to_owned()];
    if let Ok(host) = VaultHost::parse(input.host, &domains) {
        let fit = |text: &str| text.bytes().all(|b| b.is_ascii_graphic() && b != b'"');
        assert!(fit(&host.vault) && fit(&host.authority) && fit(&host.resource));
        assert!(host.authority.starts_with(&format!("{}.", host.vault)));
        // The SDKs insist on this.
        let end = host.resource.trim_start_matches("https://");
        assert!(host.url().ends_with(end));
    }
    if let Ok(query) = Query::parse(input.query) {
        assert!((1..=25).contains(&query.max_results));
        let link = query.next_link("https://v.vault.localhost/keys", input.path);
        let (_, next) = link.split_once('?').expect("a link has a query");
        let next = Query::parse(next).expect("a link of the vault is understood");
        assert_eq!(next.after.as_deref(), Some(input.path));
    }
    for flavour in [Flavour::Imds, Flavour::IdentityEndpoint] {
        let _ = TokenRequest::parse(flavour, input.query);
    }
    if let Ok(route) = Route::find(input.method.name(), input.path) {
        // A doubled slash and one at the end change nothing.
        let doubled = format!("//{}/", input.path);
        assert_eq!(
            Route::find(input.method.name(), &doubled).as_ref(),
            Ok(&route)
        );
        let _ = Operation::parse(route, input.body);
    }
});
