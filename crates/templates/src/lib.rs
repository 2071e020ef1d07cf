#![doc = include_str!("../README.md")]
//!
//! | Room | What is in it |
//! |---|---|
//! | `relaxed`, `node` | From the text of a request to JSON that knows where it stands |
//! | `request`, `deployment` | The body of a request, and where it is deployed |
//! | `template`, `declaration`, `parameters`, `body` | The sections of a template, checked and not evaluated |
//! | `syntax` | Expressions |
//! | `functions` | The functions that need nothing but their arguments |
//! | `evaluate`, `scope`, `states`, `value`, `marks` | Evaluation, what it may use up, and where it used secrets |
//! | `expand`, `targets`, `order` | From declarations to resources, their names, and who waits for whom |
//! | `plan` | A deployment, step by step |
//! | `limits`, `flaw`, `error` | What may be at most, and what is said otherwise |

mod body;
mod declaration;
mod deployment;
mod error;
mod evaluate;
mod expand;
mod flaw;
mod functions;
mod limits;
mod marks;
mod node;
mod order;
mod parameters;
mod plan;
mod relaxed;
mod request;
mod scope;
mod states;
mod syntax;
mod targets;
mod template;
mod value;

pub use deployment::{Context, ResourceGroup};
pub use error::TemplateError;
pub use plan::{Plan, PlannedResource, Resource, Step, texts};
pub use request::{Mode, Request, parse_request};
