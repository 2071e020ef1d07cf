//! Rows of an answer, whose columns have the types that are asked for or say which one has not.

use std::sync::Arc;

use crate::error::{Error, ErrorKind};
use crate::value::Value;

/// What the rows of an answer have in common.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) sql: String,
    pub(crate) columns: Vec<String>,
}

/// A row of an answer.
#[derive(Debug)]
pub struct Row {
    pub(crate) head: Arc<Head>,
    /// Which one it is of the answer, from 1.
    pub(crate) number: u64,
    pub(crate) values: Vec<Value<'static>>,
}

impl Row {
    /// A column, by its number from 0 or by its name.
    ///
    /// # Errors
    /// [`ErrorKind::Column`] when there is none, or it is of another type.
    pub fn get<T: FromValue>(&self, column: impl Column) -> Result<T, Error> {
        let value = self.value(&column)?;
        T::from_value(value).ok_or_else(|| self.mistyped(&column, value, T::WHAT))
    }

    /// As [`Row::get`] of a text, which stays where it is.
    ///
    /// # Errors
    /// As [`Row::get`].
    pub fn text(&self, column: impl Column) -> Result<&str, Error> {
        match self.value(&column)? {
            Value::Text(text) => Ok(text),
            value => Err(self.mistyped(&column, value, String::WHAT)),
        }
    }

    fn value(&self, column: &impl Column) -> Result<&Value<'static>, Error> {
        let at = column.at(&self.head.columns);
        at.and_then(|at| self.values.get(at)).ok_or_else(|| {
            let what = format!("there is no column {} in", column.said(&self.head.columns));
            self.error(&what)
        })
    }

    fn mistyped(&self, column: &impl Column, value: &Value<'_>, expected: &str) -> Error {
        let column = column.said(&self.head.columns);
        let found = value.what();
        self.error(&format!(
            "the column {column} is {found} and not {expected} in"
        ))
    }

    fn error(&self, what: &str) -> Error {
        let (number, sql) = (self.number, &self.head.sql);
        Error::new(
            ErrorKind::Column,
            format!("{what} row {number} of the answer to: {sql}"),
        )
    }
}

/// What names a column.
pub trait Column {
    /// Its number from 0.
    fn at(&self, columns: &[String]) -> Option<usize>;

    /// For a message.
    fn said(&self, columns: &[String]) -> String;
}

impl Column for usize {
    fn at(&self, _columns: &[String]) -> Option<usize> {
        Some(*self)
    }

    fn said(&self, columns: &[String]) -> String {
        match columns.get(*self) {
            Some(name) => name.said(columns),
            None => self.to_string(),
        }
    }
}

impl Column for &str {
    fn at(&self, columns: &[String]) -> Option<usize> {
        columns.iter().position(|column| column == self)
    }

    fn said(&self, _columns: &[String]) -> String {
        format!("'{self}'")
    }
}

impl Column for String {
    fn at(&self, columns: &[String]) -> Option<usize> {
        self.as_str().at(columns)
    }

    fn said(&self, columns: &[String]) -> String {
        self.as_str().said(columns)
    }
}

/// What a column can be read as.
pub trait FromValue: Sized {
    /// What a column has to be for it.
    const WHAT: &'static str;

    /// The value as that; `None` when it is of another type.
    fn from_value(value: &Value<'_>) -> Option<Self>;
}

impl FromValue for i64 {
    const WHAT: &'static str = "an integer";

    fn from_value(value: &Value<'_>) -> Option<Self> {
        match value {
            Value::Integer(number) => Some(*number),
            _ => None,
        }
    }
}

impl FromValue for bool {
    const WHAT: &'static str = i64::WHAT;

    fn from_value(value: &Value<'_>) -> Option<Self> {
        i64::from_value(value).map(|number| number != 0)
    }
}

impl FromValue for String {
    const WHAT: &'static str = "a text";

    fn from_value(value: &Value<'_>) -> Option<Self> {
        match value {
            Value::Text(text) => Some(text.clone().into_owned()),
            _ => None,
        }
    }
}

impl FromValue for Vec<u8> {
    const WHAT: &'static str = "a blob";

    fn from_value(value: &Value<'_>) -> Option<Self> {
        match value {
            Value::Blob(bytes) => Some(bytes.clone().into_owned()),
            _ => None,
        }
    }
}

impl FromValue for [u8; 32] {
    const WHAT: &'static str = "a blob of 32 bytes";

    fn from_value(value: &Value<'_>) -> Option<Self> {
        match value {
            Value::Blob(bytes) => bytes.as_ref().try_into().ok(),
            _ => None,
        }
    }
}

/// Whatever it is.
impl FromValue for Value<'static> {
    const WHAT: &'static str = "a value";

    fn from_value(value: &Value<'_>) -> Option<Self> {
        Some(value.owned())
    }
}

impl<T: FromValue> FromValue for Option<T> {
    const WHAT: &'static str = T::WHAT;

    fn from_value(value: &Value<'_>) -> Option<Self> {
        match value {
            Value::Null => Some(None),
            value => T::from_value(value).map(Some),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_that_is_missing_or_of_another_type_is_named() {
        let row = Row {
            head: Arc::new(Head {
                sql: "SELECT a, b FROM t".into(),
                columns: vec!["a".into(), "b".into()],
            }),
            number: 3,
            values: vec![Value::Integer(7), Value::Null],
        };
        assert_eq!(row.get::<i64>("a").unwrap(), 7);
        assert!(row.get::<bool>(0).unwrap());
        assert_eq!(row.get::<Option<String>>("b").unwrap(), None);
        for (error, said) in [
            (
                row.text("a").unwrap_err(),
                "the column 'a' is an integer and not a text in row 3 of the answer to: SELECT a, b FROM t",
            ),
            (
                row.get::<i64>(1).unwrap_err(),
                "the column 'b' is null and not an integer in row 3 of the answer to: SELECT a, b FROM t",
            ),
            (
                row.get::<i64>("c").unwrap_err(),
                "there is no column 'c' in row 3 of the answer to: SELECT a, b FROM t",
            ),
            (
                row.get::<i64>(2).unwrap_err(),
                "there is no column 2 in row 3 of the answer to: SELECT a, b FROM t",
            ),
        ] {
            assert_eq!(error.to_string(), said);
            assert_eq!(error.kind(), ErrorKind::Column);
        }
    }
}
