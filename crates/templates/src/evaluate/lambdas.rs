//! `filter`, `map`, `reduce` and `toObject`: functions that call an expression for each element.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::{Evaluator, Outcome, SCANNED, fault, wrong_arguments};
use crate::syntax::{Call, Expr};
use crate::value::{Shared, type_name};

/// The names of a lambda's variables, and what it evaluates.
struct Lambda<'a> {
    names: Vec<&'a str>,
    body: &'a Expr,
}

impl<'a> Lambda<'a> {
    fn of(call: &'a Call, at: usize) -> Outcome<Self> {
        let wanted = || {
            format!(
                "The template language function '{}' expects a lambda as its argument '{}'.",
                call.name,
                at + 1
            )
        };
        let Some(Expr::Call(lambda)) = call.args.get(at).filter(|arg| is_lambda(arg)) else {
            return fault(wanted());
        };
        let Some((body, names)) = lambda.args.split_last() else {
            return fault(wanted());
        };
        let name = |arg: &'a Expr| match arg {
            Expr::Literal(value) => value.value.as_str(),
            _ => None,
        };
        let names: Option<Vec<_>> = names.iter().map(name).collect();
        match names {
            Some(names) if !names.is_empty() => Ok(Self { names, body }),
            _ => fault(wanted()),
        }
    }
}

fn is_lambda(expr: &Expr) -> bool {
    matches!(expr, Expr::Call(call) if call.key == "lambda")
}

impl Evaluator {
    /// Calls one of the functions that take a lambda.
    pub(super) fn each(&mut self, call: &Call) -> Outcome<Shared> {
        let Some(list) = call.args.first() else {
            return fault(wrong_arguments(call));
        };
        let list = self.expr(list)?;
        let Value::Array(elements) = &list.value else {
            return fault(format!(
                "The template language function '{}' expects its parameter to be an array. The provided value is of type '{}'.",
                call.name,
                type_name(&list.value)
            ));
        };
        match call.key.as_str() {
            "filter" => self.filter(call, elements),
            "map" => self.map(call, elements),
            "reduce" => self.reduce(call, elements),
            _ => self.object_of(call, elements),
        }
    }

    /// The value of a lambda for an element, its index, or whatever else it takes.
    fn apply(&mut self, lambda: &Lambda<'_>, values: Vec<Shared>) -> Outcome<Shared> {
        let before = self.scope.lambdas.len();
        for (name, value) in lambda.names.iter().zip(values) {
            self.scope.lambdas.push(((*name).to_owned(), value));
        }
        let outcome = self.expr(lambda.body);
        self.scope.lambdas.truncate(before);
        outcome
    }

    fn element(&mut self, element: &Value, index: usize) -> Outcome<Vec<Shared>> {
        let element = self.budget.admit(element.clone())?;
        self.budget.steps(1 + element.size / SCANNED)?;
        Ok(vec![element, self.budget.admit(index.into())?])
    }

    fn filter(&mut self, call: &Call, elements: &[Value]) -> Outcome<Shared> {
        let lambda = Lambda::of(call, 1)?;
        let mut kept = Vec::new();
        for (index, element) in elements.iter().enumerate() {
            let values = self.element(element, index)?;
            match self.apply(&lambda, values)?.value {
                Value::Bool(true) => kept.push(element.clone()),
                Value::Bool(false) => {}
                _ => return fault("The lambda of 'filter' is to give a boolean.".to_owned()),
            }
        }
        Ok(self.budget.admit(Value::Array(kept))?)
    }

    fn map(&mut self, call: &Call, elements: &[Value]) -> Outcome<Shared> {
        let lambda = Lambda::of(call, 1)?;
        let mut mapped = Vec::with_capacity(elements.len());
        for (index, element) in elements.iter().enumerate() {
            let values = self.element(element, index)?;
            let value = self.apply(&lambda, values)?;
            mapped.push(self.copied(&value)?);
        }
        Ok(self.budget.admit(Value::Array(mapped))?)
    }

    fn reduce(&mut self, call: &Call, elements: &[Value]) -> Outcome<Shared> {
        let lambda = Lambda::of(call, 2)?;
        let Some(initial) = call.args.get(1) else {
            return fault(wrong_arguments(call));
        };
        let mut reduced = self.expr(initial)?;
        for (index, element) in elements.iter().enumerate() {
            let mut values = self.element(element, index)?;
            values.insert(0, Arc::clone(&reduced));
            reduced = self.apply(&lambda, values)?;
        }
        Ok(reduced)
    }

    /// The names by one lambda, the values by another or as they are.
    fn object_of(&mut self, call: &Call, elements: &[Value]) -> Outcome<Shared> {
        let name = Lambda::of(call, 1)?;
        let value = match call.args.len() {
            0..=2 => None,
            _ => Some(Lambda::of(call, 2)?),
        };
        let mut map = Map::new();
        for (index, element) in elements.iter().enumerate() {
            let values = self.element(element, index)?;
            let key = self.apply(&name, values.clone())?;
            let Some(key) = key.value.as_str() else {
                return fault("The lambda of 'toObject' is to give a string.".to_owned());
            };
            let made = match &value {
                Some(value) => {
                    let made = self.apply(value, values)?;
                    self.copied(&made)?
                }
                None => element.clone(),
            };
            map.insert(key.to_owned(), made);
        }
        Ok(self.budget.admit(Value::Object(map))?)
    }
}
