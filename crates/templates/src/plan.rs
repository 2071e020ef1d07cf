//! A deployment, step by step.

use std::fmt;

use serde_json::{Map, Value, json};

use crate::deployment::Context;
use crate::error::{TemplateError, clean, shortened};
use crate::evaluate::{Evaluator, Outcome, Problem};
use crate::expand::{self, Instance};
use crate::flaw::{Flaw, flawed};
use crate::limits::MAX_READS;
use crate::order::order;
use crate::parameters::Parameter;
use crate::request::Request;
use crate::template::Output;

/// The resources of a template in the order in which they are made, each evaluated when it is its turn: it may refer
/// to what those before it have become.
pub struct Plan {
    evaluator: Evaluator,
    instances: Vec<Instance>,
    resources: Vec<PlannedResource>,
    order: Vec<usize>,
    /// How many of `order` are done.
    done: usize,
    /// What the caller was asked for and has not answered.
    pending: Option<Step>,
    reads: usize,
}

/// A resource of a template, before anything of it is evaluated but its name.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedResource {
    /// Its id.
    pub id: String,
    /// `Microsoft.Compute/disks`, as the template writes it.
    pub resource_type: String,
    /// Its name; that of a child has those of its parents before it, with slashes.
    pub name: String,
    /// The version of the API that it is written for.
    pub api_version: String,
    /// Whether it is made: its condition holds, and it is not declared as existing.
    pub made: bool,
    /// The ids of the resources of this template that it waits for.
    pub depends_on: Vec<String>,
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// To read a resource that expressions refer to, and to answer with [`Plan::found`].
    Read {
        /// Its id.
        id: String,
        /// The version of the API in which it is read.
        api_version: String,
    },
    /// To make a resource, and to answer with [`Plan::made`].
    Create(Resource),
    /// Nothing: all is made, and these are the outputs as a deployment's answer has them.
    Done(Map<String, Value>),
}

/// A resource to be made.
#[derive(Clone, PartialEq)]
pub struct Resource {
    /// Its id.
    pub id: String,
    /// `Microsoft.Compute/disks`, as the template writes it.
    pub resource_type: String,
    /// Its name; that of a child has those of its parents before it, with slashes.
    pub name: String,
    /// The version of the API that it is written for.
    pub api_version: String,
    /// The body of its PUT: `location`, `properties` and whatever else the template gives it.
    pub body: Value,
    /// The places in the body, each by the names and indices that lead to it, whose values were made with that of a
    /// secure parameter.
    pub secrets: Vec<Vec<String>>,
}

/// Values may be secrets, which no log has.
impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan")
            .field("resources", &self.resources)
            .field("done", &self.done)
            .finish_non_exhaustive()
    }
}

/// Its body may have secrets, which no log has.
impl fmt::Debug for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resource")
            .field("id", &self.id)
            .field("api_version", &self.api_version)
            .finish_non_exhaustive()
    }
}

impl Plan {
    /// Checks a request as far as that is possible before anything is made, and orders its resources.
    ///
    /// # Errors
    ///
    /// Says what is wrong with a parameter or with which part of the template, or which resources wait for each
    /// other.
    pub fn new(request: &Request, context: Context) -> Result<Self, TemplateError> {
        let mut evaluator = Evaluator::new(request, context);
        give_parameters(&mut evaluator, request)?;
        evaluate_variables(&mut evaluator)?;
        let instances = expand::instances(&mut evaluator)?;
        let dependencies = expand::dependencies(&mut evaluator, &instances)?;
        let order = order(&dependencies).map_err(|circle| circular(&instances, &circle))?;
        let id = |at: &usize| instances[*at].target.id.clone();
        let planned = instances.iter().zip(&dependencies);
        let resources = planned.map(|(instance, dependencies)| PlannedResource {
            id: instance.target.id.clone(),
            resource_type: instance.target.kind.clone(),
            name: instance.target.name.clone(),
            api_version: instance.target.api_version.clone(),
            made: instance.made,
            depends_on: dependencies.iter().map(id).collect(),
        });
        let resources = resources.collect();
        evaluator.budget.pause();
        Ok(Self {
            resources,
            evaluator,
            instances,
            order,
            done: 0,
            pending: None,
            reads: 0,
        })
    }

    /// All resources of the template, in the order in which they are made.
    pub fn resources(&self) -> impl Iterator<Item = &PlannedResource> {
        self.order.iter().map(|at| &self.resources[*at])
    }

    /// The parameters as a deployment's answer has them: `{"name": {"type": …, "value": …}}`, without the values of
    /// secure ones, and of those whose defaults were made with such.
    pub fn parameters(&self) -> Map<String, Value> {
        let template = &self.evaluator.template;
        let shown = template.parameters.iter().map(|parameter| {
            let key = parameter.name.to_ascii_lowercase();
            let value = self.evaluator.parameters.get(&key);
            let value = value.map(|value| value.value.clone());
            let kind = parameter.kind;
            let is_secret =
                kind.is_secure() || self.evaluator.is_secret("parameter", &parameter.name);
            let shown = match value.filter(|_| !is_secret) {
                Some(value) => json!({ "type": kind.name(), "value": value }),
                None => json!({ "type": kind.name() }),
            };
            (parameter.name.clone(), shown)
        });
        shown.collect()
    }

    /// The texts of all secure parameters: what is told or kept of the deployment is not to have them in it.
    pub fn secrets(&self) -> Vec<String> {
        let parameters = self.evaluator.template.parameters.iter();
        let mut found = Vec::new();
        for parameter in parameters.filter(|parameter| parameter.kind.is_secure()) {
            let key = parameter.name.to_ascii_lowercase();
            if let Some(value) = self.evaluator.parameters.get(&key) {
                texts(&value.value, &mut found);
            }
        }
        found
    }

    /// What is to be done next. Until it is answered, the same.
    ///
    /// # Errors
    ///
    /// An expression cannot be evaluated, or refers to a resource that does not exist. Nothing can be done then, and
    /// each further call says so again.
    pub fn next_step(&mut self) -> Result<Step, TemplateError> {
        if let Some(step) = &self.pending {
            return Ok(step.clone());
        }
        self.evaluator.budget.resume();
        let step = self.computed_step();
        self.evaluator.budget.pause();
        step
    }

    fn computed_step(&mut self) -> Result<Step, TemplateError> {
        while let Some(at) = self.order.get(self.done).copied() {
            if self.instances[at].made {
                return self.create(at);
            }
            self.done += 1;
        }
        self.outputs()
    }

    /// Answers [`Step::Create`] with the resource as it is now, as a GET of it answers. Without such a step, nothing
    /// happens.
    ///
    /// # Errors
    ///
    /// The resource is too large to be referred to.
    pub fn made(&mut self, resource: Value) -> Result<(), TemplateError> {
        let Some(Step::Create(asked)) = self.pending.take_if(|it| matches!(it, Step::Create(_)))
        else {
            return Ok(());
        };
        self.done += 1;
        self.note(&asked.id, &asked.api_version, Some(resource))
    }

    /// Answers [`Step::Read`] with the resource, as a GET of it answers, or with nothing if it does not exist. Without
    /// such a step, nothing happens.
    ///
    /// # Errors
    ///
    /// The resource is too large to be referred to.
    pub fn found(&mut self, resource: Option<Value>) -> Result<(), TemplateError> {
        match self
            .pending
            .take_if(|step| matches!(step, Step::Read { .. }))
        {
            Some(Step::Read { id, api_version }) => self.note(&id, &api_version, resource),
            _ => Ok(()),
        }
    }

    fn note(
        &mut self,
        id: &str,
        api_version: &str,
        resource: Option<Value>,
    ) -> Result<(), TemplateError> {
        let Evaluator { states, budget, .. } = &mut self.evaluator;
        let noted = states.note(id, api_version, resource, budget);
        noted.map_err(|why| TemplateError::DeploymentFailed(clean(&why)))
    }

    fn create(&mut self, at: usize) -> Result<Step, TemplateError> {
        let instance = &self.instances[at];
        let body = match instance.iteration.clone() {
            Some(iteration) => {
                let evaluator = &mut self.evaluator;
                evaluator.iteration(iteration, |this| this.marked_body(&instance.decl.rest))
            }
            None => self.evaluator.marked_body(&instance.decl.rest),
        };
        let problem = match body {
            Ok((body, secrets)) => {
                let target = &instance.target;
                let step = Step::Create(Resource {
                    id: target.id.clone(),
                    resource_type: target.kind.clone(),
                    name: target.name.clone(),
                    api_version: target.api_version.clone(),
                    body: body.value.clone(),
                    secrets,
                });
                self.pending = Some(step.clone());
                return Ok(step);
            }
            Err(problem) => problem,
        };
        let (id, place) = (&instance.target.id, instance.decl.at);
        let (id, place) = (shortened(id), place);
        self.needs(problem, |message, at| {
            let at = at.unwrap_or(place);
            TemplateError::InvalidTemplate(clean(&format!(
                "Unable to process template language expressions for resource '{id}' at line '{}' and column '{}'. '{message}'",
                at.line, at.column
            )))
        })
    }

    /// The step that solves a problem, if there is one.
    fn needs(
        &mut self,
        problem: Problem,
        refuse: impl FnOnce(&str, Option<crate::node::Position>) -> TemplateError,
    ) -> Result<Step, TemplateError> {
        match problem {
            Problem::Fault { message, at } => Err(refuse(&message, at)),
            Problem::Missing { id } => Err(TemplateError::ResourceNotFound(clean(&format!(
                "The Resource '{}' was not found. For more details please go to https://aka.ms/ARMResourceNotFoundFix",
                shortened(&id)
            )))),
            Problem::Needs { id, .. } if self.is_yet_to_be_made(&id) => Err(refuse(
                &format!(
                    "The resource '{}' is referred to before it is made: add it to dependsOn.",
                    shortened(&id)
                ),
                None,
            )),
            Problem::Needs { .. } if self.reads >= MAX_READS => Err(refuse(
                &format!(
                    "More than {MAX_READS} resources outside of the template are referred to."
                ),
                None,
            )),
            Problem::Needs { id, api_version } => {
                self.reads += 1;
                let step = Step::Read { id, api_version };
                self.pending = Some(step.clone());
                Ok(step)
            }
        }
    }

    fn is_yet_to_be_made(&self, id: &str) -> bool {
        let mut all = self.instances.iter();
        all.any(|it| it.made && it.target.id.eq_ignore_ascii_case(id))
    }

    fn outputs(&mut self) -> Result<Step, TemplateError> {
        let template = self.evaluator.template.clone();
        let mut outputs = Map::new();
        for output in &template.outputs {
            match self.output(output) {
                Ok(Some(value)) => {
                    outputs.insert(output.name.clone(), value);
                }
                Ok(None) => {}
                Err(problem) => {
                    let (name, place) = (shortened(&output.name), output.at);
                    return self.needs(problem, |message, at| {
                        let at = at.unwrap_or(place);
                        TemplateError::DeploymentOutputEvaluationFailed(clean(&format!(
                            "Unable to evaluate template output '{name}' at line '{}' and column '{}': '{message}' Please see https://aka.ms/arm-common-errors for usage details.",
                            at.line, at.column
                        )))
                    });
                }
            }
        }
        let step = Step::Done(outputs);
        self.pending = Some(step.clone());
        Ok(step)
    }

    /// An output as the answer has it; nothing if its condition does not hold. One that was made with the value of a
    /// secure parameter has no value there: whatever was done to it might be undone.
    fn output(&mut self, output: &Output) -> Outcome<Option<Value>> {
        self.evaluator.secret = false;
        if let Some(condition) = &output.condition {
            match self.evaluator.body(condition)?.value {
                Value::Bool(true) => {}
                Value::Bool(false) => return Ok(None),
                _ => return Err("The condition is no boolean.".to_owned().into()),
            }
        }
        let value = self.evaluator.body(&output.value)?;
        let kind = output.kind;
        if let Err(expected) = kind.check(&value.value) {
            return Err(format!(
                "The template output '{}' is not valid: expected a value of type '{expected}', but received a value of type '{}'.",
                shortened(&output.name),
                crate::value::type_name(&value.value)
            )
            .into());
        }
        let name = kind.name();
        Ok(Some(if kind.is_secure() || self.evaluator.secret {
            json!({ "type": name })
        } else {
            json!({ "type": name, "value": value.value })
        }))
    }
}

/// The texts within a value; those of numbers too.
pub fn texts(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Null | Value::Bool(_) => {}
        Value::Number(number) => found.push(number.to_string()),
        Value::String(text) => found.push(text.clone()),
        Value::Array(elements) => elements.iter().for_each(|element| texts(element, found)),
        Value::Object(map) => map.values().for_each(|element| texts(element, found)),
    }
}

/// Takes the values of the request, and evaluates the defaults of what it does not give.
fn give_parameters(evaluator: &mut Evaluator, request: &Request) -> Result<(), TemplateError> {
    let template = evaluator.template.clone();
    let unknown: Vec<_> = request
        .parameters
        .iter()
        .map(|(name, _)| name.as_str())
        .filter(|name| template.parameter(name).is_none())
        .collect();
    if !unknown.is_empty() {
        let known: Vec<_> = template
            .parameters
            .iter()
            .map(|it| it.name.as_str())
            .collect();
        return Err(TemplateError::invalid(&format!(
            "The template parameters '{}' in the parameters file are not valid; they are not present in the original template and can therefore not be provided at deployment time. The only supported parameters for this template are '{}'. Please see https://aka.ms/arm-pass-parameter-values for usage details.",
            shortened(&unknown.join(", ")),
            shortened(&known.join(", "))
        )));
    }
    for (name, value) in &request.parameters {
        let Some(parameter) = template.parameter(name) else {
            continue;
        };
        // Azure takes null for a value that is not given.
        if value.is_null() {
            continue;
        }
        parameter
            .check(value)
            .map_err(|why| TemplateError::invalid(&why))?;
        let value = evaluator.budget.admit(value.clone());
        let value = value.map_err(|why| TemplateError::invalid(&why))?;
        evaluator
            .parameters
            .insert(name.to_ascii_lowercase(), value);
    }
    for parameter in &template.parameters {
        evaluate_parameter(evaluator, parameter)?;
    }
    Ok(())
}

fn evaluate_parameter(
    evaluator: &mut Evaluator,
    parameter: &Parameter,
) -> Result<(), TemplateError> {
    let key = parameter.name.to_ascii_lowercase();
    let given = evaluator.parameters.contains_key(&key);
    if !given && parameter.default.is_none() && !parameter.nullable {
        let at = parameter.at;
        return Err(TemplateError::invalid(&format!(
            "The value for the template parameter '{}' at line '{}' and column '{}' is not provided. Please see https://aka.ms/arm-create-parameter-file for usage details.",
            shortened(&parameter.name),
            at.line,
            at.column
        )));
    }
    let value = evaluator.parameter(&parameter.name);
    match value {
        Ok(_) => Ok(()),
        Err(problem) => Err(too_early(
            "parameter",
            &parameter.name,
            parameter.at,
            problem,
        )),
    }
}

/// All of them: what is wrong with one is found before anything is made.
fn evaluate_variables(evaluator: &mut Evaluator) -> Result<(), TemplateError> {
    let template = evaluator.template.clone();
    let mut all: Vec<_> = template.variables.values().collect();
    all.sort_by_key(|(_, body)| (body.at.line, body.at.column));
    for (name, body) in all {
        let value = evaluator.variable(name);
        value.map_err(|problem| too_early("variable", name, body.at, problem))?;
    }
    Ok(())
}

/// What is wrong with a part that refers to no states.
fn too_early(
    part: &str,
    name: &str,
    place: crate::node::Position,
    problem: Problem,
) -> TemplateError {
    let (message, at) = match problem {
        Problem::Fault { message, at } => (message, at.unwrap_or(place)),
        Problem::Needs { id, .. } | Problem::Missing { id } => {
            (format!("it needs the state of '{id}' too early"), place)
        }
    };
    flawed(part, name, &Flaw { at, message })
}

/// Azure names one resource of a circle; here are all.
fn circular(instances: &[Instance], circle: &[usize]) -> TemplateError {
    let name = |at: &usize| {
        let target = &instances[*at].target;
        shortened(&format!("{}/{}", target.kind, target.name))
    };
    let first = circle.first().map(|at| instances[*at].target.id.as_str());
    const SHOWN: usize = 10;
    let mut names: Vec<_> = circle.iter().take(SHOWN).map(name).collect();
    if circle.len() > SHOWN {
        names.push("...".to_owned());
    }
    names.extend(circle.first().map(name));
    TemplateError::invalid(&format!(
        "Circular dependency detected on resource: '{}' ({}). Please see https://aka.ms/arm-syntax-resources for usage details.",
        shortened(first.unwrap_or_default()),
        names.join(" -> ")
    ))
}
