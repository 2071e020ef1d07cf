//! Evaluates expressions. What it may use up is bounded for a whole deployment.

mod lambdas;
mod marking;
mod untold;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::body::{Body, Form, Key, Repeat};
use crate::deployment::Context;
use crate::error::{HIDDEN, shortened};
use crate::functions;
use crate::limits::{MAX_EVALUATION_DEPTH, MAX_ITERATIONS};
use crate::marks::Marks;
use crate::node::Position;
use crate::request::{Mode, Request};
use crate::scope::{Iteration, Scope};
use crate::states::States;
use crate::syntax::{Accessor, Call, Expr};
use crate::targets::Targets;
use crate::template::Template;
use crate::value::{Budget, Shared, property, type_name};

/// Why an expression has no value.
#[derive(Debug)]
pub(crate) enum Problem {
    /// It never will.
    Fault {
        message: String,
        at: Option<Position>,
    },
    /// It will, once the state of a resource is known.
    Needs { id: String, api_version: String },
    /// It refers to a resource that does not exist.
    Missing { id: String },
}

impl From<String> for Problem {
    fn from(message: String) -> Self {
        Self::Fault { message, at: None }
    }
}

impl Problem {
    /// Says where it is, unless that was said more exactly.
    fn at(self, place: Position) -> Self {
        match self {
            Self::Fault { message, at: None } => Self::Fault {
                message,
                at: Some(place),
            },
            other => other,
        }
    }
}

pub(crate) type Outcome<T> = Result<T, Problem>;

fn fault<T>(message: String) -> Outcome<T> {
    Err(message.into())
}

/// Evaluates the expressions of one deployment.
#[derive(Debug)]
pub(crate) struct Evaluator {
    pub template: Arc<Template>,
    pub context: Context,
    mode: Mode,
    pub budget: Budget,
    /// The resources of the template, once their names are known.
    pub targets: Arc<Targets>,
    pub states: States,
    pub scope: Scope,
    /// Values of parameters and variables, by their names in small letters.
    pub parameters: HashMap<String, Shared>,
    pub variables: HashMap<String, Shared>,
    /// What is being evaluated right now, which must not need itself.
    busy: HashSet<String>,
    /// Whether the value of a secure parameter was used, since somebody has last looked.
    pub secret: bool,
    /// The parameters and variables in whose values one was used, as in `busy`.
    secrets: HashSet<String>,
    /// Where one was used in the body that is evaluated, where somebody asks.
    marks: Option<Marks>,
    depth: usize,
    guids: u32,
}

impl Evaluator {
    pub fn new(request: &Request, context: Context) -> Self {
        Self {
            template: Arc::clone(&request.template),
            context,
            mode: request.mode,
            budget: Budget::new(),
            targets: Arc::default(),
            states: States::default(),
            scope: Scope::default(),
            parameters: HashMap::new(),
            variables: HashMap::new(),
            busy: HashSet::new(),
            secret: false,
            secrets: HashSet::new(),
            marks: None,
            depth: 0,
            guids: 0,
        }
    }

    /// The value of a part of the template.
    pub fn body(&mut self, body: &Body) -> Outcome<Shared> {
        let value = match &body.form {
            Form::Value(value) => return Ok(Arc::clone(value)),
            Form::Expression(expr) => {
                let value = self.quietly(|this| this.marking(|this| this.expr(expr)));
                return value.map_err(|p| p.at(body.at));
            }
            _ => self.tree(body)?,
        };
        Ok(self.budget.admit(value)?)
    }

    fn tree(&mut self, body: &Body) -> Outcome<Value> {
        self.deeper(|this| this.branch(body))
    }

    fn branch(&mut self, body: &Body) -> Outcome<Value> {
        match &body.form {
            Form::Value(value) => self.copied(value),
            Form::Expression(expr) => {
                let value = self.quietly(|this| this.marking(|this| this.expr(expr)));
                self.copied(&value.map_err(|p| p.at(body.at))?)
            }
            Form::Array(elements) => {
                let elements = elements.iter().enumerate();
                let elements = elements.map(|(at, it)| self.inside(at, |this| this.tree(it)));
                elements.collect()
            }
            Form::Object(entries) => {
                let mut map = Map::with_capacity(entries.len());
                for (key, body) in entries {
                    let key = self.quietly(|this| this.marking(|this| this.key(key)));
                    let key = key.map_err(|p| p.at(body.at))?;
                    let value = self.inside(&key, |this| this.tree(body))?;
                    map.insert(key, value);
                }
                Ok(Value::Object(map))
            }
            Form::Repeat(repeat) => self.repeat(repeat),
        }
    }

    /// A copy, which is paid for.
    fn copied(&mut self, value: &Shared) -> Outcome<Value> {
        self.budget.bytes(value.size)?;
        Ok(value.value.clone())
    }

    fn key(&mut self, key: &Key) -> Outcome<String> {
        match key {
            Key::Plain(name) => Ok(name.clone()),
            Key::Expression(expr) => match &self.expr(expr)?.value {
                Value::String(name) => Ok(name.clone()),
                other => fault(format!(
                    "The name of a property is an expression of type '{}', and is to be a string.",
                    type_name(other)
                )),
            },
        }
    }

    fn repeat(&mut self, repeat: &Repeat) -> Outcome<Value> {
        let count = self.marking(|this| this.count(&repeat.count, MAX_ITERATIONS))?;
        let mut elements = Vec::new();
        for index in 0..count {
            let value = self.iteration(Iteration::of_value(&repeat.name, index), |this| {
                this.inside(index, |this| this.tree(&repeat.input))
            });
            elements.push(value?);
        }
        Ok(Value::Array(elements))
    }

    /// How often a loop is gone through.
    pub fn count(&mut self, body: &Body, limit: u64) -> Outcome<u64> {
        let (value, is_secret) = self.traced(body)?;
        let shown = match is_secret {
            true => HIDDEN.to_owned(),
            false => shortened(&value.value.to_string()),
        };
        match value.value.as_u64() {
            Some(count) if count <= limit => Ok(count),
            _ => Err(Problem::from(format!(
                "The copy loop's count '{shown}' is to be an integer between '0' and '{limit}'. Please see https://aka.ms/arm-copy for usage details."
            ))
            .at(body.at)),
        }
    }

    /// Does something within one iteration of a loop.
    pub fn iteration<T>(
        &mut self,
        iteration: Iteration,
        act: impl FnOnce(&mut Self) -> Outcome<T>,
    ) -> Outcome<T> {
        self.scope.loops.push(iteration);
        let outcome = act(self);
        self.scope.loops.pop();
        outcome
    }

    /// Does something that may do the same again within itself.
    fn deeper<T>(&mut self, act: impl FnOnce(&mut Self) -> Outcome<T>) -> Outcome<T> {
        self.budget.steps(1)?;
        if self.depth >= MAX_EVALUATION_DEPTH {
            return fault(format!(
                "The template has more than {MAX_EVALUATION_DEPTH} values and expressions within each other, through variables, parameters and functions."
            ));
        }
        self.depth += 1;
        let outcome = act(self);
        self.depth -= 1;
        outcome
    }

    /// The value of an expression.
    pub fn expr(&mut self, expr: &Expr) -> Outcome<Shared> {
        self.deeper(|this| match expr {
            Expr::Literal(value) => Ok(Arc::clone(value)),
            Expr::Call(call) => this.call(call),
            Expr::Access(base, accessors) => this.access(base, accessors),
        })
    }

    fn access(&mut self, base: &Expr, accessors: &[Accessor]) -> Outcome<Shared> {
        let base = self.expr(base)?;
        let mut keys = Vec::with_capacity(accessors.len());
        for accessor in accessors {
            keys.push((self.expr(&accessor.key)?, accessor.safe));
        }
        let mut at = &base.value;
        for (key, safe) in &keys {
            // A name in another case is looked for among all of them.
            if let (Value::Object(map), Value::String(name)) = (at, &key.value)
                && !map.contains_key(name)
            {
                self.budget.steps(map.len())?;
            }
            match step(at, &key.value) {
                Ok(Some(value)) => at = value,
                Ok(None) | Err(_) if *safe => return Ok(self.budget.admit(Value::Null)?),
                Ok(None) => return fault(nothing_there(at, &key.value)),
                Err(message) => return fault(message),
            }
        }
        Ok(self.budget.admit(at.clone())?)
    }

    fn call(&mut self, call: &Call) -> Outcome<Shared> {
        match call.key.as_str() {
            "if" => return self.choose(call),
            "filter" | "map" | "reduce" | "toobject" => return self.each(call),
            "reference" | "references" => return self.refer(call),
            "lambda" => {
                return fault(
                    "The template function 'lambda' is not expected at this location.".to_owned(),
                );
            }
            _ => {}
        }
        let mut args = Vec::with_capacity(call.args.len());
        for arg in &call.args {
            args.push(self.expr(arg)?);
        }
        let size = args.iter().map(|arg| arg.size / SCANNED).sum::<usize>();
        self.budget.steps(size)?;
        match functions::call(&call.key, &args) {
            Some(value) => Ok(self.budget.admit(value?)?),
            None => self.in_context(call, &args),
        }
    }

    /// Only the branch that is taken is evaluated.
    fn choose(&mut self, call: &Call) -> Outcome<Shared> {
        let [condition, yes, no] = call.args.as_slice() else {
            return fault(wrong_arguments(call));
        };
        match &self.expr(condition)?.value {
            Value::Bool(true) => self.expr(yes),
            Value::Bool(false) => self.expr(no),
            other => fault(format!(
                "The template language function 'if' expects its parameter to be a boolean. The provided value is of type '{}'.",
                type_name(other)
            )),
        }
    }

    /// The functions that depend on more than their arguments.
    fn in_context(&mut self, call: &Call, args: &[Shared]) -> Outcome<Shared> {
        let value = match call.key.as_str() {
            "parameters" => return self.parameter(name_in(call, args)?),
            "variables" => return self.variable(name_in(call, args)?),
            "lambdavariables" => {
                let name = name_in(call, args)?;
                let found = self.scope.lambda(name);
                return found.map_or_else(|| fault(not_found("lambda variable", name)), Ok);
            }
            "copyindex" => self.scope.copy_index(args)?.into(),
            "resourcegroup" => self.context.group(),
            "subscription" => self.context.subscription(),
            "tenant" => self.context.tenant(),
            "environment" => self.context.environment.clone(),
            "deployment" => self.deployment(),
            "resourceid" | "subscriptionresourceid" => self.resource_id(call, args)?.into(),
            "newguid" => {
                self.guids += 1;
                self.context.guid(self.guids - 1).to_string().into()
            }
            "utcnow" => {
                let format = args.first().and_then(|format| format.value.as_str());
                functions::format_date(self.context.now, format)?.into()
            }
            _ => return self.user_function(call, args),
        };
        Ok(self.budget.admit(value)?)
    }

    fn deployment(&self) -> Value {
        json!({
            "name": self.context.deployment_name,
            "properties": {
                "mode": self.mode.name(),
                "provisioningState": "Accepted",
                "template": self.template.header,
            },
        })
    }

    /// `resourceId([subscription], [group], type, name…)`, and the same for a subscription.
    fn resource_id(&self, call: &Call, args: &[Shared]) -> Outcome<String> {
        let unable = |why: &str| {
            format!(
                "Unable to evaluate template language function '{}': {why}. Please see https://aka.ms/arm-resource-functions/#resourceid for usage details.",
                call.name
            )
        };
        let texts: Option<Vec<_>> = args.iter().map(|arg| arg.value.as_str()).collect();
        let texts = texts.ok_or_else(|| unable("all function arguments must be strings"))?;
        let of_group = call.key == "resourceid";
        let most_before = if of_group { 2 } else { 1 };
        let at = texts.iter().position(|text| text.contains('/'));
        let at = at.filter(|at| *at <= most_before);
        let at = at.ok_or_else(|| unable("no argument is a resource type"))?;
        let relative = functions::resource_id(texts[at], &texts[at + 1..]);
        let relative = relative.map_err(|why| unable(&why))?;
        let mut path = self.context.subscription_path();
        if at == most_before {
            path = format!("/subscriptions/{}", texts[0]);
        }
        if of_group {
            let group = self.context.resource_group.name.as_str();
            let group = if at > 0 { texts[at - 1] } else { group };
            path = format!("{path}/resourceGroups/{group}");
        }
        Ok(format!("{path}/providers/{relative}"))
    }

    /// The value of a parameter: in a user-defined function one of its own.
    pub fn parameter(&mut self, name: &str) -> Outcome<Shared> {
        let key = name.to_ascii_lowercase();
        if let Some(locals) = &self.scope.locals {
            let found = locals.get(&key).cloned();
            return found.map_or_else(|| fault(not_found("parameter", name)), Ok);
        }
        let template = Arc::clone(&self.template);
        let Some(parameter) = template.parameter(name) else {
            return fault(not_found("parameter", name));
        };
        self.secret |= parameter.kind.is_secure() || self.is_secret("parameter", name);
        if let Some(value) = self.parameters.get(&key) {
            return Ok(Arc::clone(value));
        }
        let value = match &parameter.default {
            Some(default) => self.once("parameter", name, |this| this.body(default))?,
            None => self.budget.admit(Value::Null)?,
        };
        if let Err(why) = parameter.check(&value.value) {
            // Its default may have been made with the value of a secure one.
            return fault(match self.is_secret("parameter", name) {
                true => format!(
                    "The default value of the template parameter '{}' is not valid.",
                    shortened(name)
                ),
                false => why,
            });
        }
        self.parameters.insert(key, Arc::clone(&value));
        Ok(value)
    }

    pub fn variable(&mut self, name: &str) -> Outcome<Shared> {
        let key = name.to_ascii_lowercase();
        if let Some(value) = self.variables.get(&key) {
            self.secret |= self.is_secret("variable", name);
            return Ok(Arc::clone(value));
        }
        let template = Arc::clone(&self.template);
        let Some((_, body)) = template.variables.get(&key) else {
            return fault(not_found("variable", name));
        };
        let value = self.once("variable", name, |this| this.body(body))?;
        self.variables.insert(key, Arc::clone(&value));
        Ok(value)
    }

    /// Whether the value of a parameter or variable was made with that of a secure parameter.
    pub fn is_secret(&self, what: &str, name: &str) -> bool {
        self.secrets.contains(&key_of(what, name))
    }

    /// Evaluates a named part outside of all loops, unless its evaluation goes on already.
    fn once(
        &mut self,
        what: &str,
        name: &str,
        act: impl FnOnce(&mut Self) -> Outcome<Shared>,
    ) -> Outcome<Shared> {
        let key = key_of(what, name);
        if !self.busy.insert(key.clone()) {
            return fault(format!(
                "Circular reference detected: the template {what} '{}' needs itself.",
                shortened(name)
            ));
        }
        let outer = std::mem::take(&mut self.scope);
        let before = std::mem::take(&mut self.secret);
        let outcome = act(self);
        self.scope = outer;
        self.busy.remove(&key);
        if self.secret {
            self.secrets.insert(key);
        }
        self.secret |= before;
        outcome
    }

    fn user_function(&mut self, call: &Call, args: &[Shared]) -> Outcome<Shared> {
        let template = Arc::clone(&self.template);
        let Some(function) = template.functions.get(&call.key) else {
            return fault(format!(
                "The template function '{}' is not valid.",
                shortened(&call.name)
            ));
        };
        let names = function.parameters.iter().cloned();
        let locals = names.zip(args.iter().cloned()).collect();
        let outer = std::mem::replace(&mut self.scope, Scope::of_function(locals));
        let outcome = self.body(&function.output);
        self.scope = outer;
        outcome
    }

    /// `reference(resource, [apiVersion], ['full'])`.
    fn reference(&mut self, call: &Call, args: &[Shared]) -> Outcome<Shared> {
        let name = name_in(call, args)?;
        let api_version = args.get(1).and_then(|arg| arg.value.as_str());
        let full = args.get(2).and_then(|arg| arg.value.as_str());
        let full = full.is_some_and(|full| full.eq_ignore_ascii_case("full"));
        let target = self.targets.one(name)?;
        let target = target.and_then(|at| self.targets.get(at));
        let (id, api_version) = match (target, api_version) {
            (Some(target), version) => (&target.id, version.unwrap_or(&target.api_version)),
            (None, _) if !functions::is_id(name) => return fault(no_such_reference(name)),
            (None, Some(version)) => (&name.to_owned(), version),
            (None, None) => {
                return fault(format!(
                    "The template reference '{}' is not valid: the resource is not in the template, so the API version must be given. Please see https://aka.ms/arm-function-reference for usage details.",
                    shortened(name)
                ));
            }
        };
        match self.states.get(id, full) {
            Some(Some(state)) => Ok(state),
            Some(None) => Err(Problem::Missing { id: id.clone() }),
            None => Err(Problem::Needs {
                id: id.clone(),
                api_version: api_version.to_owned(),
            }),
        }
    }

    /// `references(loop, ['full'])`: the states of all resources of a loop.
    fn references(&mut self, call: &Call, args: &[Shared]) -> Outcome<Shared> {
        let name = name_in(call, args)?;
        let full = args.get(1).and_then(|arg| arg.value.as_str());
        let full = full.is_some_and(|full| full.eq_ignore_ascii_case("full"));
        let targets = Arc::clone(&self.targets);
        let all = targets.all(name);
        if all.is_empty() {
            return fault(no_such_reference(name));
        }
        let mut list = Vec::with_capacity(all.len());
        for target in all.iter().filter_map(|at| targets.get(*at)) {
            match self.states.get(&target.id, full) {
                Some(Some(state)) => list.push(self.copied(&state)?),
                Some(None) => {
                    let id = target.id.clone();
                    return Err(Problem::Missing { id });
                }
                None => {
                    return Err(Problem::Needs {
                        id: target.id.clone(),
                        api_version: target.api_version.clone(),
                    });
                }
            }
        }
        Ok(self.budget.admit(Value::Array(list))?)
    }
}

/// What tells a parameter from a variable of the same name.
fn key_of(what: &str, name: &str) -> String {
    format!("{what} {}", name.to_ascii_lowercase())
}

/// So many bytes of an argument are looked at in one step.
const SCANNED: usize = 32;

/// What a name or an index leads to.
fn step<'a>(at: &'a Value, key: &Value) -> Result<Option<&'a Value>, String> {
    match (at, key) {
        (Value::Object(map), Value::String(name)) => Ok(property(map, name)),
        (Value::Array(elements), Value::Number(number)) => {
            let index = number
                .as_u64()
                .and_then(|index| usize::try_from(index).ok());
            Ok(index.and_then(|index| elements.get(index)))
        }
        (at, key) => Err(format!(
            "The language expression property '{}' can't be evaluated: the value is of type '{}'.",
            shortened(&crate::value::display(key)),
            type_name(at)
        )),
    }
}

fn nothing_there(at: &Value, key: &Value) -> String {
    let key = shortened(&crate::value::display(key));
    match at {
        Value::Object(map) => {
            let names: Vec<_> = map.keys().take(50).map(String::as_str).collect();
            format!(
                "The language expression property '{key}' doesn't exist, available properties are '{}'.",
                shortened(&names.join(", "))
            )
        }
        _ => format!("The language expression property array index '{key}' is out of bounds."),
    }
}

fn no_such_reference(name: &str) -> String {
    format!(
        "The template reference '{}' is not valid: could not find template resource or resource copy with this name. Please see https://aka.ms/arm-function-reference for usage details.",
        shortened(name)
    )
}

fn not_found(what: &str, name: &str) -> String {
    format!(
        "The template {what} '{}' is not found. Please see https://aka.ms/arm-syntax for usage details.",
        shortened(name)
    )
}

fn wrong_arguments(call: &Call) -> String {
    let name = &call.name;
    format!("Unable to evaluate template language function '{name}': its arguments are not valid.")
}

/// The first argument, as a string.
fn name_in<'a>(call: &Call, args: &'a [Shared]) -> Outcome<&'a str> {
    let name = args.first().and_then(|arg| arg.value.as_str());
    name.ok_or_else(|| wrong_arguments(call).into())
}
