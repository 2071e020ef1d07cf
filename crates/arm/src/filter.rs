//! `$filter` of the management API and of Graph: as much of OData's language as their clients write.
//!
//! ```text
//! resourceType eq 'Microsoft.KeyVault/vaults' and name eq 'kv'
//! atScope() and assignedTo('OBJECT-ID')
//! servicePrincipalNames/any(c:c eq 'CLIENT-ID')
//! ```

use thiserror::Error;

/// Longest filter that is looked at.
const MAX_FILTER: usize = 4096;

/// Why a filter is none.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the filter is not understood at character {at}: {what}")]
pub struct FilterError {
    /// Where, counted from 1.
    pub at: usize,
    /// What is wrong there.
    pub what: &'static str,
}

/// A condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Term {
    /// `field eq 'value'`
    Is(String, String),
    /// `field ne 'value'`
    IsNot(String, String),
    /// `field/any(x:x eq 'value')`
    Any(String, String),
    /// `startswith(field,'value')`
    StartsWith(String, String),
    /// `substringof('value',field)`
    Contains(String, String),
    /// `name()` or `name('value')`
    Call(String, Option<String>),
}

/// Conditions that all hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// They.
    pub terms: Vec<Term>,
}

impl Filter {
    /// Parses a filter; an empty one holds for everything.
    ///
    /// # Errors
    /// [`FilterError`], also for `or` and other operators, which no client writes here.
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        if text.len() > MAX_FILTER {
            let what = "it is too long";
            return Err(FilterError {
                at: MAX_FILTER,
                what,
            });
        }
        let mut parser = Parser {
            text: text.chars().collect(),
            at: 0,
        };
        let mut terms = Vec::new();
        parser.spaces();
        while !parser.is_done() {
            if !terms.is_empty() {
                parser.word("and")?;
            }
            terms.push(parser.term()?);
            parser.spaces();
        }
        Ok(Self { terms })
    }

    /// Whether there is such a call without an argument.
    pub fn has_call(&self, name: &str) -> bool {
        let is = |term: &Term| matches!(term, Term::Call(n, None) if n.eq_ignore_ascii_case(name));
        self.terms.iter().any(is)
    }

    /// The value that a field has to have.
    pub fn value_of(&self, field: &str) -> Option<&str> {
        self.terms.iter().find_map(|term| match term {
            Term::Is(name, value) | Term::Any(name, value) if name.eq_ignore_ascii_case(field) => {
                Some(value.as_str())
            }
            _ => None,
        })
    }

    /// The argument of a call.
    pub fn argument_of(&self, name: &str) -> Option<&str> {
        self.terms.iter().find_map(|term| match term {
            Term::Call(n, Some(value)) if n.eq_ignore_ascii_case(name) => Some(value.as_str()),
            _ => None,
        })
    }
}

struct Parser {
    text: Vec<char>,
    at: usize,
}

impl Parser {
    fn term(&mut self) -> Result<Term, FilterError> {
        let name = self.name()?;
        if self.skip('(') {
            return self.call(name);
        }
        if let Some(field) = name.strip_suffix("/any") {
            return Err(self.wrong(match field.is_empty() {
                true => "any of what?",
                false => "any has an argument",
            }));
        }
        self.spaces();
        let operator = self.name()?;
        self.spaces();
        let value = self.value()?;
        match operator.to_ascii_lowercase().as_str() {
            "eq" => Ok(Term::Is(name, value)),
            "ne" => Ok(Term::IsNot(name, value)),
            _ => Err(self.wrong("only eq and ne compare here")),
        }
    }

    /// What is called `name`, after its opening parenthesis.
    fn call(&mut self, name: String) -> Result<Term, FilterError> {
        self.spaces();
        if let Some(field) = name.strip_suffix("/any") {
            let variable = self.name()?;
            self.expect(':')?;
            self.spaces();
            if self.name()? != variable {
                return Err(self.wrong("another variable"));
            }
            self.spaces();
            self.word("eq")?;
            self.spaces();
            let value = self.value()?;
            self.close()?;
            return Ok(Term::Any(field.into(), value));
        }
        let term = match name.to_ascii_lowercase().as_str() {
            "startswith" => {
                let field = self.name()?;
                self.comma()?;
                Term::StartsWith(field, self.value()?)
            }
            "substringof" => {
                let value = self.value()?;
                self.comma()?;
                Term::Contains(self.name()?, value)
            }
            _ if self.peek() == Some(')') => Term::Call(name, None),
            _ => Term::Call(name, Some(self.value()?)),
        };
        self.close()?;
        Ok(term)
    }

    fn comma(&mut self) -> Result<(), FilterError> {
        self.spaces();
        self.expect(',')?;
        self.spaces();
        Ok(())
    }

    fn close(&mut self) -> Result<(), FilterError> {
        self.spaces();
        self.expect(')')
    }

    fn name(&mut self) -> Result<String, FilterError> {
        let begin = self.at;
        let is_name = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
        while self.peek().is_some_and(is_name) {
            self.at += 1;
        }
        match self.at == begin {
            true => Err(self.wrong("a name is missing")),
            false => Ok(self.text[begin..self.at].iter().collect()),
        }
    }

    /// A text between apostrophes, of which two in it are one; or true, false, null or a number as it is.
    fn value(&mut self) -> Result<String, FilterError> {
        if !self.skip('\'') {
            return self.name();
        }
        let mut value = String::new();
        loop {
            match self.peek() {
                Some('\'') => {
                    self.at += 1;
                    if !self.skip('\'') {
                        return Ok(value);
                    }
                    value.push('\'');
                }
                Some(c) => {
                    self.at += 1;
                    value.push(c);
                }
                None => return Err(self.wrong("the text has no end")),
            }
        }
    }

    fn word(&mut self, word: &'static str) -> Result<(), FilterError> {
        let begin = self.at;
        let found = self.name()?;
        if found.eq_ignore_ascii_case(word) {
            self.spaces();
            return Ok(());
        }
        self.at = begin;
        Err(self.wrong(match word {
            "and" => "only and joins conditions here",
            _ => "only eq compares here",
        }))
    }

    fn expect(&mut self, c: char) -> Result<(), FilterError> {
        match self.skip(c) {
            true => Ok(()),
            false => Err(self.wrong("a '(', ')', ':' or ',' is missing")),
        }
    }

    fn skip(&mut self, c: char) -> bool {
        let is = self.peek() == Some(c);
        self.at += usize::from(is);
        is
    }

    fn spaces(&mut self) {
        while self.peek().is_some_and(char::is_whitespace) {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<char> {
        self.text.get(self.at).copied()
    }

    fn is_done(&self) -> bool {
        self.at >= self.text.len()
    }

    fn wrong(&self, what: &'static str) -> FilterError {
        FilterError {
            at: self.at + 1,
            what,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_write_is_understood() {
        let text = "resourceType eq 'Microsoft.KeyVault/vaults' and name eq 'it''s'";
        let filter = Filter::parse(text).unwrap();
        assert_eq!(
            filter.value_of("RESOURCETYPE"),
            Some("Microsoft.KeyVault/vaults")
        );
        assert_eq!(filter.value_of("name"), Some("it's"));
        let filter = Filter::parse("atScope() and assignedTo('x')").unwrap();
        assert!(filter.has_call("atscope"));
        assert_eq!(filter.argument_of("assignedTo"), Some("x"));
        let filter = Filter::parse("servicePrincipalNames/any(c:c eq 'id')").unwrap();
        assert_eq!(filter.value_of("servicePrincipalNames"), Some("id"));
        let filter = Filter::parse("startswith(name,'a') AND substringof('b',name)").unwrap();
        assert_eq!(filter.terms.len(), 2);
        assert_eq!(Filter::parse("  ").unwrap(), Filter::default());
    }

    #[test]
    fn nonsense_is_refused_where_it_is() {
        for (text, at) in [
            ("name", 5),
            ("name eq 'x", 11),
            ("name eq 'x' or name eq 'y'", 13),
            ("name gt 'x'", 12),
            ("(name eq 'x')", 1),
            ("a/any(c:d eq 'x')", 10),
            ("name eq 'x' and", 16),
            ("'x' eq name", 1),
        ] {
            assert_eq!(Filter::parse(text).map_err(|e| e.at), Err(at), "{text}");
        }
        assert!(Filter::parse(&"a".repeat(MAX_FILTER + 1)).is_err());
    }
}
