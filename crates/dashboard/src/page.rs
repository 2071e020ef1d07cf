//! The page, and the form to log in with: each is one file with all that belongs to it.
//!
//! The policy of a page (Content-Security-Policy) names the hashes of its script and its style: nothing else runs,
//! whatever the name of a disk may be, and nothing is loaded from anywhere. With `require-trusted-types-for` no text
//! becomes HTML at all.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::StatusCode;
use hyper::body::Bytes;
use hyper::header::{CONTENT_SECURITY_POLICY, HeaderValue};
use web::{Answer, answer};

use keys::sha256;

const HTML: &str = "text/html; charset=utf-8";

const STYLE: &str = concat!(
    include_str!("page/style/base.css"),
    include_str!("page/style/layout.css"),
    include_str!("page/style/parts.css"),
    include_str!("page/style/picture.css"),
);
/// The parts of the script share one scope, in this order.
const SCRIPT: &str = concat!(
    "(() => {\n\"use strict\";\n",
    include_str!("page/script/words.js"),
    include_str!("page/script/dom.js"),
    include_str!("page/script/model.js"),
    include_str!("page/script/plots.js"),
    include_str!("page/script/list.js"),
    include_str!("page/script/overview.js"),
    include_str!("page/script/picture.js"),
    include_str!("page/script/what_if.js"),
    include_str!("page/script/disks.js"),
    include_str!("page/script/timeline.js"),
    include_str!("page/script/capacity.js"),
    include_str!("page/script/main.js"),
    "})();\n",
);
const MAIN: &str = include_str!("page/main.html");
const LOGIN: &str = include_str!("page/login.html");
const LOGIN_STYLE: &str = concat!(
    include_str!("page/style/base.css"),
    include_str!("page/style/login.css"),
);

/// Where style, script and a word of why stand in the files.
const STYLE_MARK: &str = "/* style */";
const SCRIPT_MARK: &str = "/* script */";
const WHY_MARK: &str = "<!-- why -->";

/// The pages.
#[derive(Debug)]
pub(crate) struct Pages {
    /// For who has logged in.
    pub(crate) main: Page,
    /// For everybody else.
    pub(crate) login: Page,
}

/// A page with its policy.
#[derive(Debug)]
pub(crate) struct Page {
    html: Bytes,
    policy: HeaderValue,
}

impl Pages {
    pub(crate) fn new() -> Self {
        let main = MAIN.replace(STYLE_MARK, STYLE).replace(SCRIPT_MARK, SCRIPT);
        Self {
            main: Page {
                html: main.into(),
                policy: policy(STYLE, Some(SCRIPT)),
            },
            login: login(""),
        }
    }

    /// The form, after a token that was not taken.
    pub(crate) fn refused(&self, why: &'static str) -> Page {
        login(&format!("<p class=\"why\" role=\"alert\">{why}</p>"))
    }
}

fn login(why: &str) -> Page {
    let html = LOGIN
        .replace(STYLE_MARK, LOGIN_STYLE)
        .replace(WHY_MARK, why);
    Page {
        html: html.into(),
        policy: policy(LOGIN_STYLE, None),
    }
}

impl Page {
    pub(crate) fn answer(&self, status: StatusCode) -> Answer {
        let mut page = answer(status, HTML, self.html.clone());
        let headers = page.headers_mut();
        headers.insert(CONTENT_SECURITY_POLICY, self.policy.clone());
        page
    }
}

fn policy(style: &str, script: Option<&str>) -> HeaderValue {
    let hash = |text: &str| STANDARD.encode(sha256(text.as_bytes()));
    let script = script.map_or_else(String::new, |script| {
        format!("script-src 'sha256-{}'; connect-src 'self'; ", hash(script))
    });
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{}'; {script}img-src data:; form-action 'self'; base-uri 'none'; \
         frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
        hash(style)
    );
    // Base64 and the words above are what a header may have.
    HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static("default-src 'none'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(page: &Page) -> &str {
        std::str::from_utf8(&page.html).unwrap()
    }

    #[test]
    fn a_page_is_small_and_has_all_that_belongs_to_it() {
        let pages = Pages::new();
        let main = text(&pages.main);
        println!("the page weighs {} bytes", main.len());
        assert!(main.len() < 300_000, "{}", main.len());
        for page in [main, text(&pages.login), text(&pages.refused("no"))] {
            for mark in [STYLE_MARK, SCRIPT_MARK, WHY_MARK] {
                assert!(!page.contains(mark), "{mark}");
            }
            for loaded in ["src=", "@import", "url(", "<link rel=\"stylesheet\""] {
                assert!(!page.contains(loaded), "{loaded}");
            }
        }
        assert!(text(&pages.refused("no")).contains("role=\"alert\">no<"));
    }

    /// What would be refused by the policy, or would make HTML of a name, in a browser that knows no trusted types.
    #[test]
    fn nothing_makes_html_of_text() {
        for forbidden in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "DOMParser",
            "eval(",
            "new Function",
            "setAttribute(\"style\"",
            "javascript:",
        ] {
            assert!(!SCRIPT.contains(forbidden), "{forbidden}");
        }
        for page in [MAIN, LOGIN] {
            assert!(!page.contains("style="), "a style of an element");
            let handler = |word: &str| word.starts_with("on") && word.contains('=');
            assert!(!page.split_whitespace().any(handler), "a handler");
        }
    }

    #[test]
    fn the_policy_names_the_hashes_of_what_is_between_the_tags() {
        let pages = Pages::new();
        let main = text(&pages.main);
        for (tag, directive) in [("style", "style-src"), ("script", "script-src")] {
            let (_, rest) = main.split_once(&format!("<{tag}>")).unwrap();
            let (inside, _) = rest.split_once(&format!("</{tag}>")).unwrap();
            let hash = STANDARD.encode(sha256(inside.as_bytes()));
            let named = format!("{directive} 'sha256-{hash}'");
            let policy = pages.main.policy.to_str().unwrap();
            assert!(policy.contains(&named), "{named} in {policy}");
        }
        let policy = pages.login.policy.to_str().unwrap();
        assert!(!policy.contains("script-src"), "{policy}");
    }
}
