//! `--query`: a JMESPath expression that chooses what of a result is printed.

use std::collections::HashMap;

use jmespath::ast::Ast;
use jmespath::{DEFAULT_RUNTIME, ErrorReason, Expression, JmespathError, parse};
use serde_json::{Map, Value};

use crate::cli::CliError;

/// Characters of an expression at most.
const MAX_LENGTH: usize = 16 * 1024;
/// Operators and brackets of an expression that may nest at most: the library parses, and this looks, by recursion.
const MAX_OPERATORS: usize = 128;

/// An expression that is well-formed.
#[derive(Debug, Clone)]
pub(in crate::cli) struct Query {
    text: String,
    ast: Ast,
}

impl Query {
    /// Takes an expression, before anything is done of whose result it is asked.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub(in crate::cli) fn parse(text: &str) -> Result<Self, String> {
        limited(text)?;
        let ast = parse(text).map_err(|error| wrong(&error))?;
        if let Some((name, offset)) = unknown_function(&ast) {
            return Err(format!(
                "there is no function {name} (at character {})",
                offset + 1
            ));
        }
        Ok(Self {
            text: text.into(),
            ast,
        })
    }

    /// What the expression finds in `value`; null for nothing.
    ///
    /// # Errors
    /// When it asks a function for something that this cannot do with the value. It is no usage error: what was
    /// asked of the command is done.
    pub(super) fn find(&self, value: &Value) -> Result<Value, CliError> {
        let expression = Expression::new(self.text.as_str(), self.ast.clone(), &DEFAULT_RUNTIME);
        let found = expression.search(value).map_err(|error| {
            CliError::new(
                "OutputError",
                format!(
                    "the command is done, but its result cannot be queried: {}",
                    wrong(&error)
                ),
            )
        })?;
        let mut found = serde_json::to_value(&*found)
            .map_err(|e| CliError::new("OutputError", format!("cannot form the result: {e}")))?;
        let mut orders = Orders::default();
        orders.add_objects(value);
        orders.add_hashes(&self.ast);
        orders.restore(&mut found);
        Ok(found)
    }
}

/// Refuses what would take more of the stack than there is.
fn limited(text: &str) -> Result<(), String> {
    if text.len() > MAX_LENGTH {
        return Err(format!(
            "it is {} bytes long, and {MAX_LENGTH} are taken at most",
            text.len()
        ));
    }
    let operators = operators(text);
    if operators > MAX_OPERATORS {
        return Err(format!(
            "it has {operators} operators and brackets, and {MAX_OPERATORS} are taken at most"
        ));
    }
    Ok(())
}

/// How many characters outside of quotes may nest what follows them.
fn operators(text: &str) -> usize {
    let (mut count, mut quote, mut is_escaped) = (0, None, false);
    for c in text.chars() {
        match quote {
            Some(_) if is_escaped => is_escaped = false,
            Some(_) if c == '\\' => is_escaped = true,
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if "'\"`".contains(c) => quote = Some(c),
            None if "[({.!&|*?<>=".contains(c) => count += 1,
            None => {}
        }
    }
    count
}

/// In one line.
fn wrong(error: &JmespathError) -> String {
    let what = match &error.reason {
        ErrorReason::Parse(what) => plainly(what, &error.expression, error.offset),
        ErrorReason::Runtime(error) => error.to_string(),
    };
    format!("{what} (at character {})", error.offset + 1)
}

/// What only who knows parsers understands of what the library says.
const JARGON: [&str; 4] = ["nud token", "led token", "parts[0]", "Did not parse"];

/// What the library's parser says, without its names for what it has found.
fn plainly(what: &str, expression: &str, offset: usize) -> String {
    let Some((expected, found)) = what.split_once(" -- found ") else {
        return what.into();
    };
    let there = expression
        .get(offset..)
        .and_then(|rest| rest.chars().next());
    let there = match there {
        Some(c) if found != "Eof" => format!("{c:?} does not belong there"),
        _ => "it ends too early".into(),
    };
    match JARGON.iter().any(|word| expected.contains(word)) {
        true => there,
        false => format!("{there}: {}", expected.replacen("Expected", "expected", 1)),
    }
}

/// The first function that is not one of JMESPath, and where it is.
fn unknown_function(ast: &Ast) -> Option<(&str, usize)> {
    if let Ast::Function { name, offset, .. } = ast
        && DEFAULT_RUNTIME.get_function(name).is_none()
    {
        return Some((name, *offset));
    }
    parts(ast).into_iter().find_map(unknown_function)
}

/// What an expression is made of.
fn parts(ast: &Ast) -> Vec<&Ast> {
    match ast {
        Ast::MultiHash { elements, .. } => elements.iter().map(|pair| &pair.value).collect(),
        Ast::MultiList { elements: all, .. } | Ast::Function { args: all, .. } => {
            all.iter().collect()
        }
        Ast::Comparison { lhs, rhs, .. }
        | Ast::Projection { lhs, rhs, .. }
        | Ast::And { lhs, rhs, .. }
        | Ast::Or { lhs, rhs, .. }
        | Ast::Subexpr { lhs, rhs, .. }
        | Ast::Condition {
            predicate: lhs,
            then: rhs,
            ..
        } => vec![lhs, rhs],
        Ast::Expref { ast: node, .. }
        | Ast::Flatten { node, .. }
        | Ast::Not { node, .. }
        | Ast::ObjectValues { node, .. } => vec![node],
        Ast::Identity { .. }
        | Ast::Field { .. }
        | Ast::Index { .. }
        | Ast::Literal { .. }
        | Ast::Slice { .. } => Vec::new(),
    }
}

/// In which order the fields of objects were. The library has them in the order of the alphabet, in which nobody
/// has asked for them; in a table and between tabs the order is all there is.
#[derive(Default)]
struct Orders(HashMap<Vec<String>, Vec<String>>);

impl Orders {
    fn add(&mut self, names: Vec<String>) {
        let mut sorted = names.clone();
        sorted.sort();
        self.0.insert(sorted, names);
    }

    /// Those of the result.
    fn add_objects(&mut self, value: &Value) {
        match value {
            Value::Object(fields) => {
                self.add(fields.keys().cloned().collect());
                fields.values().for_each(|value| self.add_objects(value));
            }
            Value::Array(items) => items.iter().for_each(|item| self.add_objects(item)),
            _ => {}
        }
    }

    /// Those that the expression makes: `{name: …, size: …}`.
    fn add_hashes(&mut self, ast: &Ast) {
        if let Ast::MultiHash { elements, .. } = ast {
            self.add(elements.iter().map(|pair| pair.key.clone()).collect());
        }
        parts(ast).into_iter().for_each(|ast| self.add_hashes(ast));
    }

    fn restore(&self, value: &mut Value) {
        match value {
            Value::Object(fields) => {
                let mut sorted: Vec<String> = fields.keys().cloned().collect();
                sorted.sort();
                if let Some(order) = self.0.get(&sorted) {
                    let mut ordered = Map::new();
                    for name in order {
                        ordered.extend(fields.remove_entry(name));
                    }
                    *fields = ordered;
                }
                fields.values_mut().for_each(|value| self.restore(value));
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.restore(item)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn found(expression: &str) -> String {
        let value = json!([
            {"name": "web", "diskSizeBytes": 18_446_744_073_709_551_615_u64, "layers": [{"id": "b", "data": 1}]},
            {"name": "db", "diskSizeBytes": 5, "layers": []},
        ]);
        let query = Query::parse(expression).unwrap();
        query.find(&value).unwrap().to_string()
    }

    #[test]
    fn fields_come_in_the_order_in_which_they_were_or_are_asked_for() {
        for (expression, expected) in [
            ("[].name", r#"["web","db"]"#),
            ("[0].layers", r#"[{"id":"b","data":1}]"#),
            (
                "[?name=='db'].{size: diskSizeBytes, name: name}",
                r#"[{"size":5,"name":"db"}]"#,
            ),
            ("[0].diskSizeBytes", "18446744073709551615"),
            ("sort_by(@, &diskSizeBytes)[0].name", r#""db""#),
            ("length(@)", "2"),
            ("[0].nothing", "null"),
        ] {
            assert_eq!(found(expression), expected, "{expression}");
        }
    }

    #[test]
    fn what_is_wrong_is_one_line() {
        for bad in ["[].{", "", "[?name='x']", "a b", "nofunction(@)", "'"] {
            let wrong = match Query::parse(bad) {
                Err(wrong) => wrong,
                Ok(query) => query.find(&json!([])).unwrap_err().message,
            };
            assert!(wrong.contains("at character"), "{bad}: {wrong}");
            for bad_word in ["\n", "token", "Eof", "found", "Identifier"] {
                assert!(!wrong.contains(bad_word), "{bad}: {wrong}");
            }
        }
        let wrong = |bad: &str| Query::parse(bad).unwrap_err();
        assert!(wrong("[?").contains("it ends too early"), "{}", wrong("[?"));
        let two = wrong("a b");
        assert!(two.contains("'b' does not belong there"), "{two}");
        let error = Query::parse("abs(@)").unwrap().find(&json!("x"));
        assert_eq!(error.unwrap_err().status, 1);
    }

    /// In a thread with the stack of one that is started without a size, in a build without optimisation.
    #[test]
    fn what_nests_deeply_is_refused_and_not_a_crash() {
        for deep in [
            "[", "!", "(", "a.", "a|", "a&&", "[*]", "{a:", "&", "[?", "`[`", "a[]",
        ] {
            for times in [127, 60_000] {
                let wrong = Query::parse(&deep.repeat(times)).unwrap_err();
                assert!(!wrong.contains('\n'), "{deep}: {wrong}");
            }
        }
        let long = format!("a{}", ".a".repeat(MAX_OPERATORS));
        let query = Query::parse(&long).unwrap();
        assert_eq!(query.find(&json!({"a": 1})).unwrap(), Value::Null);
        let list = format!(
            "{}a{}",
            "[".repeat(MAX_OPERATORS),
            "]".repeat(MAX_OPERATORS)
        );
        let query = Query::parse(&list).unwrap();
        query.find(&json!({"a": 1})).unwrap();
        assert!(Query::parse(&format!("'{}'", "[".repeat(5000))).is_ok());
        assert!(Query::parse(&format!("`{}`", "[".repeat(5000))).is_err());
    }
}
