//! From declarations to resources: loops are gone through, and names, conditions and dependencies evaluated.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::Value;

use crate::body::{Body, Form, Key};
use crate::declaration::ResourceDecl;
use crate::error::{HIDDEN, TemplateError, shortened};
use crate::evaluate::{Evaluator, Outcome, Problem};
use crate::flaw::{Flaw, flawed, within};
use crate::limits::MAX_RESOURCES;
use crate::scope::Iteration;
use crate::syntax::{Call, Expr};
use crate::targets::{Target, Targets};
use crate::value::Shared;

/// A resource of a template whose name is known.
#[derive(Debug)]
pub(crate) struct Instance {
    pub decl: Arc<ResourceDecl>,
    pub target: Target,
    /// The iteration that it is of, for `copyIndex`.
    pub iteration: Option<Iteration>,
    /// Whether it is made.
    pub made: bool,
    /// What its `dependsOn` names.
    depends_on: Vec<String>,
    /// The resource that it is declared in.
    parent: Option<usize>,
}

/// What is wrong with a resource before anything is made.
pub(crate) fn refused(decl: &ResourceDecl, problem: Problem) -> TemplateError {
    let (message, at) = match problem {
        Problem::Fault { message, at } => (message, at),
        // Nothing that is evaluated this early may refer to states.
        Problem::Needs { id, .. } | Problem::Missing { id } => {
            (format!("it needs the state of '{id}' too early"), None)
        }
    };
    let at = at.unwrap_or(decl.at);
    flawed("resource", &decl.label, &Flaw { at, message })
}

/// All resources of the template, and makes them known to the evaluator.
pub(crate) fn instances(evaluator: &mut Evaluator) -> Result<Vec<Instance>, TemplateError> {
    let template = Arc::clone(&evaluator.template);
    let mut found = Vec::new();
    for decl in &template.resources {
        match &decl.copy {
            None => add(evaluator, decl, None, None, &mut found)?,
            Some(copy) => {
                let count = evaluator.count(&copy.count, MAX_RESOURCES as u64);
                for index in 0..count.map_err(|problem| refused(decl, problem))? {
                    let iteration = Iteration::of_resource(&copy.name, index);
                    let group = Some((copy.name.clone(), index));
                    add(evaluator, decl, Some((iteration, group)), None, &mut found)?;
                }
            }
        }
    }
    refuse_doubles(&found)?;
    let targets = found.iter().map(|it| it.target.clone()).collect();
    evaluator.targets = Arc::new(Targets::new(targets));
    Ok(found)
}

type Loop = (Iteration, Option<(String, u64)>);

/// Adds a resource, and those that are declared in it.
fn add(
    evaluator: &mut Evaluator,
    decl: &Arc<ResourceDecl>,
    of_loop: Option<Loop>,
    parent: Option<usize>,
    found: &mut Vec<Instance>,
) -> Result<(), TemplateError> {
    within("resources", found.len() + 1, MAX_RESOURCES)?;
    let above = parent.map(|at| (found[at].target.clone(), found[at].made));
    let iteration = of_loop.as_ref().map(|(iteration, _)| iteration.clone());
    let head = |evaluator: &mut Evaluator| head(evaluator, decl, above.as_ref().map(|it| &it.0));
    let head = match iteration.clone() {
        Some(iteration) => evaluator.iteration(iteration, head),
        None => head(evaluator),
    };
    let mut head = head.map_err(|problem| refused(decl, problem))?;
    head.target.group = of_loop.as_ref().and_then(|(_, group)| group.clone());
    let parent_made = above.is_none_or(|(_, made)| made);
    found.push(Instance {
        decl: Arc::clone(decl),
        target: head.target,
        iteration,
        made: head.condition && !decl.existing && parent_made,
        depends_on: head.depends_on,
        parent,
    });
    let at = found.len() - 1;
    for child in &decl.children {
        add(evaluator, child, of_loop.clone(), Some(at), found)?;
    }
    Ok(())
}

struct Head {
    target: Target,
    condition: bool,
    depends_on: Vec<String>,
}

/// What must be known of a resource before anything is made.
fn head(evaluator: &mut Evaluator, decl: &ResourceDecl, above: Option<&Target>) -> Outcome<Head> {
    let mut kind = text(evaluator, &decl.kind, "type")?;
    let mut name = text(evaluator, &decl.name, "name")?;
    if let Some(above) = above {
        kind = format!("{}/{kind}", above.kind);
        name = format!("{}/{name}", above.name);
    }
    let condition = match &decl.condition {
        None => true,
        Some(condition) => {
            let (value, is_secret) = evaluator.traced(condition)?;
            match &value.value {
                Value::Bool(condition) => *condition,
                other => {
                    let shown = match is_secret {
                        true => HIDDEN.to_owned(),
                        false => shortened(&other.to_string()),
                    };
                    return Err(format!("The condition '{shown}' is no boolean").into());
                }
            }
        }
    };
    let mut depends_on = Vec::new();
    for body in &decl.depends_on {
        match &open(evaluator, body, "dependsOn")?.value {
            Value::String(name) => depends_on.push(name.clone()),
            Value::Array(names) => {
                depends_on.extend(names.iter().filter_map(Value::as_str).map(str::to_owned));
            }
            other => {
                let shown = shortened(&other.to_string());
                return Err(format!("The dependency '{shown}' is no string").into());
            }
        }
    }
    let scope = match &decl.scope {
        Some(scope) => Some(text(evaluator, scope, "scope")?),
        None => None,
    };
    let target = Target {
        id: id(evaluator, &kind, &name, scope.as_deref())?,
        name,
        kind,
        api_version: text(evaluator, &decl.api_version, "apiVersion")?,
        symbol: decl.symbol.clone(),
        group: None,
    };
    Ok(Head {
        target,
        condition,
        depends_on,
    })
}

fn text(evaluator: &mut Evaluator, body: &Body, what: &str) -> Outcome<String> {
    match &open(evaluator, body, what)?.value {
        Value::String(text) if !text.is_empty() => Ok(text.clone()),
        _ => Err(format!("The {what} property is to be a string that is not empty").into()),
    }
}

/// The value of a part that names resources. These names are told to everybody who may read, and kept in logs.
fn open(evaluator: &mut Evaluator, body: &Body, what: &str) -> Outcome<Shared> {
    match evaluator.traced(body)? {
        (value, false) => Ok(value),
        (_, true) => Err(format!(
            "The {what} property is made with the value of a secure parameter, and is told to whoever may read: use a parameter of the type 'string'"
        )
        .into()),
    }
}

/// The id of a resource in the resource group, or in the scope of another one.
fn id(
    evaluator: &Evaluator,
    kind: &str,
    name: &str,
    scope: Option<&str>,
) -> Result<String, String> {
    let names: Vec<_> = name.split('/').collect();
    if names.iter().any(|name| name.is_empty()) || kind.split('/').any(str::is_empty) {
        return Err("its type or name has an empty segment".to_owned());
    }
    let relative = crate::functions::resource_id(kind, &names).map_err(|_| {
        format!(
            "its name has incorrect segment lengths for the type '{}'. A nested resource type must have identical number of segments as its resource name. A root resource type must have segment length one greater than its resource name. Please see https://aka.ms/arm-syntax-resources for usage details.",
            shortened(kind)
        )
    })?;
    let group = evaluator.context.group_path();
    let base = match scope.map(|scope| scope.trim_end_matches('/')) {
        None => group,
        Some("") => String::new(),
        Some(scope) if crate::functions::is_id(scope) => scope.to_owned(),
        Some(scope) => format!("{group}/providers/{scope}"),
    };
    Ok(format!("{base}/providers/{relative}"))
}

fn refuse_doubles(instances: &[Instance]) -> Result<(), TemplateError> {
    let mut seen = BTreeSet::new();
    for instance in instances {
        // Two of which one is made are a choice.
        if instance.made && !seen.insert(instance.target.id.to_ascii_lowercase()) {
            let Target { kind, name, .. } = &instance.target;
            let at = instance.decl.at;
            return Err(TemplateError::invalid(&format!(
                "The resource '{}' at line '{}' and column '{}' is defined multiple times in a template. Please see https://aka.ms/arm-syntax-resources for usage details.",
                shortened(&format!("{kind}/{name}")),
                at.line,
                at.column
            )));
        }
    }
    Ok(())
}

/// What each resource must wait for: what it names in `dependsOn`, what it refers to, and what it is declared in.
pub(crate) fn dependencies(
    evaluator: &mut Evaluator,
    instances: &[Instance],
) -> Result<Vec<BTreeSet<usize>>, TemplateError> {
    let mut all = Vec::with_capacity(instances.len());
    for (at, instance) in instances.iter().enumerate() {
        let mut found: BTreeSet<usize> = instance.parent.into_iter().collect();
        for name in &instance.depends_on {
            found.extend(named(evaluator, instance, at, name)?);
        }
        let mut finder = Finder {
            evaluator,
            found: Vec::new(),
        };
        let outcome = finder.resource(instance);
        let referred = finder.found;
        outcome.map_err(|problem| refused(&instance.decl, problem))?;
        if referred.contains(&at) {
            let name = shortened(&instance.target.name);
            return Err(TemplateError::invalid(&format!(
                "The template resource '{name}' cannot reference itself. Please see https://aka.ms/arm-function-reference for usage details."
            )));
        }
        found.extend(referred);
        all.push(found);
    }
    Ok(all)
}

/// The resources that `dependsOn` means by a name.
fn named(
    evaluator: &mut Evaluator,
    instance: &Instance,
    at: usize,
    name: &str,
) -> Result<Vec<usize>, TemplateError> {
    let targets = Arc::clone(&evaluator.targets);
    let all = targets.all(name);
    let steps = evaluator.budget.steps(all.len());
    steps.map_err(|message| refused(&instance.decl, message.into()))?;
    let is_loop = |at: &usize| {
        targets
            .get(*at)
            .is_some_and(|target| target.group.is_some())
    };
    match all {
        [] => Err(TemplateError::invalid(&format!(
            "The resource '{}' is not defined in the template. Please see https://aka.ms/arm-syntax for usage details.",
            shortened(name)
        ))),
        [only] => Ok(vec![*only]),
        all if all.iter().all(is_loop) => Ok(all.to_vec()),
        // A name that several have is that of another one.
        all => {
            let others: Vec<_> = all.iter().copied().filter(|other| *other != at).collect();
            if others.len() == 1 {
                return Ok(others);
            }
            Err(TemplateError::invalid(&format!(
                "The resource name '{}' that '{}' depends on is that of several resources. Please use fully qualified resourceId.",
                shortened(name),
                shortened(&instance.target.name)
            )))
        }
    }
}

/// Finds the resources of the template that a part refers to. What can be told only later is passed over: then the
/// template has to say it with `dependsOn`.
struct Finder<'a> {
    evaluator: &'a mut Evaluator,
    found: Vec<usize>,
}

impl Finder<'_> {
    fn resource(&mut self, instance: &Instance) -> Outcome<()> {
        let Some(iteration) = instance.iteration.clone() else {
            return self.body(&instance.decl.rest);
        };
        self.evaluator.scope.loops.push(iteration);
        let outcome = self.body(&instance.decl.rest);
        self.evaluator.scope.loops.pop();
        outcome
    }

    fn body(&mut self, body: &Body) -> Outcome<()> {
        self.evaluator.budget.steps(1)?;
        match &body.form {
            Form::Value(_) => Ok(()),
            Form::Expression(expr) => self.expr(expr),
            Form::Array(elements) => elements.iter().try_for_each(|it| self.body(it)),
            Form::Object(entries) => entries.iter().try_for_each(|(key, body)| {
                if let Key::Expression(expr) = key {
                    self.expr(expr)?;
                }
                self.body(body)
            }),
            Form::Repeat(repeat) => {
                let limit = crate::limits::MAX_ITERATIONS;
                let count = self.evaluator.count(&repeat.count, limit)?;
                for index in 0..count {
                    let iteration = Iteration::of_value(&repeat.name, index);
                    self.evaluator.scope.loops.push(iteration);
                    let outcome = self.body(&repeat.input);
                    self.evaluator.scope.loops.pop();
                    outcome?;
                }
                Ok(())
            }
        }
    }

    fn expr(&mut self, expr: &Expr) -> Outcome<()> {
        self.evaluator.budget.steps(1)?;
        match expr {
            Expr::Literal(_) => Ok(()),
            Expr::Access(base, accessors) => {
                self.expr(base)?;
                accessors.iter().try_for_each(|it| self.expr(&it.key))
            }
            Expr::Call(call) => {
                if matches!(call.key.as_str(), "reference" | "references") {
                    self.reference(call)?;
                }
                call.args.iter().try_for_each(|arg| self.expr(arg))
            }
        }
    }

    fn reference(&mut self, call: &Call) -> Outcome<()> {
        let name = call.args.first().map(|arg| self.evaluator.expr(arg));
        let Some(Ok(name)) = name else {
            return Ok(());
        };
        let Some(name) = name.value.as_str() else {
            return Ok(());
        };
        let targets = Arc::clone(&self.evaluator.targets);
        let all = targets.all(name);
        self.evaluator.budget.steps(all.len())?;
        self.found.extend(all);
        Ok(())
    }
}
