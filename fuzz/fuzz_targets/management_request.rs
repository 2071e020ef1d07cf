//! What a client of the management API says in a path, a query and a filter: nothing of it may panic, an id
//! that is written again means the same, and no scope reaches beyond itself.

#![no_main]

use arbitrary::Arbitrary;
use arm::filter::Filter;
use arm::id::{ArmPath, PathError, ResourceId, is_within};
use arm::query::Query;
use arm::{Asked, BlobRequest, MAX_WRITTEN};
use libfuzzer_sys::fuzz_target;
use server::Head;

#[derive(Debug, Arbitrary)]
struct Input<'a> {
    path: &'a str,
    query: &'a str,
    filter: &'a str,
    scope: &'a str,
}

fuzz_target!(|input: Input<'_>| {
    if let Ok(path) = ArmPath::parse(input.path) {
        // Doubled slashes and one at the end change nothing.
        let doubled = format!("//{}/", input.path.replace('/', "//"));
        match ArmPath::parse(&doubled) {
            Err(PathError::TooLong) => {}
            parsed => assert_eq!(parsed.as_ref(), Ok(&path)),
        }
        let text = path.to_string();
        assert!(!text.contains("//"), "{text}");
        // What decodes to a percent sign would be decoded twice.
        if !text.contains('%') {
            assert_eq!(ArmPath::parse(&text).as_ref(), Ok(&path), "{text}");
        }
        assert!(is_within(&text, &text) && is_within(&text, "/"));
        if let Some(subscription) = &path.subscription {
            assert!(is_within(&text, &format!("/subscriptions/{subscription}")));
        }
    }
    if let Ok(id) = ResourceId::parse(input.path) {
        assert!(id.typed.is_resource() && !id.name().contains('/'));
    }
    if is_within(input.scope, input.path) {
        let outer = input.path.trim_end_matches('/');
        assert!(input.scope.trim_end_matches('/').len() >= outer.len());
    }
    if let Ok(query) = Query::parse(input.query) {
        assert!((1..=1000).contains(&query.top));
        // A link of the API is understood, and one to no name is none.
        let last = format!("disk/{}", input.scope);
        let is_name = (1..=255).contains(&input.scope.len()) && !input.scope.contains('/');
        match Query::parse(&query.next(&last)) {
            Ok(next) => {
                assert!(is_name);
                assert_eq!(next.after.as_deref(), Some(last.as_str()));
                assert_eq!(next.filter, query.filter);
            }
            Err(_) => assert!(!is_name),
        }
    }
    let headers = [
        ("x-ms-range", input.filter),
        ("x-ms-page-write", "update"),
        ("x-ms-previous-snapshot-url", input.scope),
    ];
    let url = format!("{}?{}", input.path, input.query);
    for method in ["GET", "PUT"] {
        let peer = ([127, 0, 0, 1], 1).into();
        let head = Head::new(method, "localhost", &url, peer).with_headers(&headers);
        if let Ok(BlobRequest {
            asked: Asked::Write(range),
            ..
        }) = BlobRequest::parse(&head)
        {
            let length = range.end - range.start;
            assert!(length > 0 && length <= MAX_WRITTEN && length % 512 == 0);
        }
    }
    match Filter::parse(input.filter) {
        Ok(filter) => assert!(filter.terms.len() <= input.filter.len()),
        Err(error) => assert!(error.at <= input.filter.len() + 1 || error.at == 4096),
    }
});
