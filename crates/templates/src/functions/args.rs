//! Arguments of a call, each as what the function wants.

use serde_json::{Map, Value};

use crate::value::{Shared, type_name};

/// The arguments of a call. Their number is what the function takes.
pub(crate) struct Args<'a> {
    pub name: &'static str,
    pub list: &'a [Shared],
}

impl<'a> Args<'a> {
    pub fn len(&self) -> usize {
        self.list.len()
    }

    pub fn values(&self) -> impl Iterator<Item = &'a Value> + use<'a> {
        self.list.iter().map(|arg| &arg.value)
    }

    pub fn value(&self, at: usize) -> &'a Value {
        self.list.get(at).map_or(&Value::Null, |arg| &arg.value)
    }

    pub fn text(&self, at: usize) -> Result<&'a str, String> {
        match self.value(at) {
            Value::String(text) => Ok(text),
            other => Err(self.expects("a string", other)),
        }
    }

    /// All arguments from one on, as texts.
    pub fn texts(&self, from: usize) -> Result<Vec<&'a str>, String> {
        (from..self.len()).map(|at| self.text(at)).collect()
    }

    pub fn int(&self, at: usize) -> Result<i64, String> {
        let value = self.value(at);
        value
            .as_i64()
            .ok_or_else(|| self.expects("an integer", value))
    }

    pub fn bool(&self, at: usize) -> Result<bool, String> {
        let value = self.value(at);
        value
            .as_bool()
            .ok_or_else(|| self.expects("a boolean", value))
    }

    pub fn array(&self, at: usize) -> Result<&'a [Value], String> {
        match self.value(at) {
            Value::Array(elements) => Ok(elements),
            other => Err(self.expects("an array", other)),
        }
    }

    pub fn object(&self, at: usize) -> Result<&'a Map<String, Value>, String> {
        match self.value(at) {
            Value::Object(map) => Ok(map),
            other => Err(self.expects("an object", other)),
        }
    }

    /// Why a value is not taken.
    pub fn expects(&self, what: &str, value: &Value) -> String {
        let (name, found) = (self.name, type_name(value));
        self.fault(&format!(
            "The template language function '{name}' expects its parameter to be {what}. The provided value is of type '{found}'."
        ))
    }

    /// Why the arguments are not taken, by what is wrong with them.
    pub fn refuses(&self, why: &str) -> String {
        let name = self.name;
        self.fault(&format!(
            "Unable to evaluate template language function '{name}': {why}."
        ))
    }

    fn fault(&self, message: &str) -> String {
        let anchor = self.name.to_ascii_lowercase();
        format!("{message} Please see https://aka.ms/arm-functions#{anchor} for usage details.")
    }
}
