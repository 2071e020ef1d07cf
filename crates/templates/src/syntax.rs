//! The syntax of expressions: what stands between `[` and `]` in a string of a template.

use std::sync::Arc;

use serde_json::Value;

use crate::error::shortened;
use crate::limits::{MAX_EXPRESSION, MAX_EXPRESSION_DEPTH};
use crate::value::{Measured, Shared};

#[derive(Debug, Clone)]
pub(crate) enum Expr {
    Literal(Shared),
    Call(Call),
    /// `base.name`, `base[index]`, one after the other.
    Access(Box<Expr>, Vec<Accessor>),
}

#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// As it is written; of a user-defined function with its namespace.
    pub name: String,
    /// The same in small letters.
    pub key: String,
    pub args: Vec<Expr>,
}

#[derive(Debug, Clone)]
pub(crate) struct Accessor {
    pub key: Expr,
    /// `.?name` and `[?index]` give null where there is nothing.
    pub safe: bool,
}

/// What a string of a template is.
#[derive(Debug, Clone)]
pub(crate) enum Text {
    Plain(String),
    Expression(Expr),
}

/// Reads a string: an expression in brackets, or a text, whose first of two opening brackets is dropped.
pub(crate) fn parse(text: &str) -> Result<Text, String> {
    let Some(inner) = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    else {
        return Ok(Text::Plain(text.to_owned()));
    };
    if inner.starts_with('[') {
        return Ok(Text::Plain(text[1..].to_owned()));
    }
    let characters = text.chars().count();
    if characters > MAX_EXPRESSION {
        return Err(format!(
            "The language expression length limit exceeded. Limit: '{MAX_EXPRESSION}' and actual: '{characters}'."
        ));
    }
    let mut parser = Parser {
        text,
        at: 1,
        depth: 0,
    };
    let expr = parser.expression()?;
    parser.blanks();
    if parser.at + 1 != text.len() {
        return Err(parser.unexpected());
    }
    Ok(Text::Expression(expr))
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

impl Parser<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn blanks(&mut self) {
        while self.peek().is_some_and(|byte| byte.is_ascii_whitespace()) {
            self.at += 1;
        }
    }

    /// Takes a character, and the blanks before it.
    fn take(&mut self, byte: u8) -> bool {
        self.blanks();
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, byte: u8) -> Result<(), String> {
        if self.take(byte) {
            Ok(())
        } else {
            Err(self.unexpected())
        }
    }

    fn unexpected(&self) -> String {
        let text = shortened(self.text);
        match self
            .text
            .get(self.at..)
            .and_then(|rest| rest.chars().next())
        {
            Some(c) if self.at + 1 < self.text.len() => format!(
                "The language expression '{text}' is not valid: the string character '{c}' at position '{}' is not expected.",
                self.at
            ),
            _ => format!("The language expression '{text}' is not valid: it ends too early."),
        }
    }

    fn expression(&mut self) -> Result<Expr, String> {
        self.depth += 1;
        if self.depth > MAX_EXPRESSION_DEPTH {
            return Err(format!(
                "The language expression '{}' is not valid: it has more than {MAX_EXPRESSION_DEPTH} calls within each other.",
                shortened(self.text)
            ));
        }
        let base = self.primary()?;
        let accessors = self.accessors()?;
        self.depth -= 1;
        Ok(if accessors.is_empty() {
            base
        } else {
            Expr::Access(Box::new(base), accessors)
        })
    }

    fn primary(&mut self) -> Result<Expr, String> {
        self.blanks();
        match self.peek() {
            Some(b'\'') => self.string(),
            Some(byte) if byte.is_ascii_digit() || byte == b'-' || byte == b'+' => self.integer(),
            Some(byte) if byte.is_ascii_alphabetic() || byte == b'_' => self.call(),
            _ => Err(self.unexpected()),
        }
    }

    /// A string in single quotes; two of them stand for one.
    fn string(&mut self) -> Result<Expr, String> {
        let mut value = String::new();
        self.at += 1;
        loop {
            let rest = &self.text[self.at..];
            let Some(end) = rest.find('\'') else {
                self.at = self.text.len();
                return Err(self.unexpected());
            };
            value.push_str(&rest[..end]);
            self.at += end + 1;
            if self.peek() != Some(b'\'') {
                return Ok(Expr::Literal(literal(Value::String(value))));
            }
            value.push('\'');
            self.at += 1;
        }
    }

    fn integer(&mut self) -> Result<Expr, String> {
        let begin = self.at;
        self.at += 1;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        let number: i64 = self.text[begin..self.at].parse().map_err(|_| {
            self.at = begin;
            self.unexpected()
        })?;
        Ok(Expr::Literal(literal(Value::from(number))))
    }

    fn name(&mut self) -> Result<String, String> {
        self.blanks();
        let begin = self.at;
        let of_a_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        while self.peek().is_some_and(of_a_name) {
            self.at += 1;
        }
        let name = &self.text[begin..self.at];
        if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
            self.at = begin;
            return Err(self.unexpected());
        }
        Ok(name.to_owned())
    }

    fn call(&mut self) -> Result<Expr, String> {
        let mut name = self.name()?;
        if self.take(b'.') {
            name = format!("{name}.{}", self.name()?);
        }
        self.expect(b'(')?;
        let mut args = Vec::new();
        if !self.take(b')') {
            loop {
                args.push(self.expression()?);
                if self.take(b')') {
                    break;
                }
                self.expect(b',')?;
            }
        }
        let key = name.to_ascii_lowercase();
        Ok(Expr::Call(Call { name, key, args }))
    }

    fn accessors(&mut self) -> Result<Vec<Accessor>, String> {
        let mut found = Vec::new();
        loop {
            if self.take(b'.') {
                let safe = self.take(b'?');
                let key = Expr::Literal(literal(Value::String(self.name()?)));
                found.push(Accessor { key, safe });
            } else if self.at + 1 < self.text.len() && self.take(b'[') {
                let safe = self.take(b'?');
                let key = self.expression()?;
                self.expect(b']')?;
                found.push(Accessor { key, safe });
            } else {
                return Ok(found);
            }
        }
    }
}

fn literal(value: Value) -> Shared {
    Arc::new(Measured::new(value))
}
