//! Keeping values of secure parameters out of what others see: out of the messages of what is refused, and out of the
//! names of resources, which are in ids, logs and lists.

use super::{Evaluator, Outcome, Problem, fault};
use crate::body::Body;
use crate::syntax::Call;
use crate::value::Shared;

/// What is said of an expression that has no value.
const UNTOLD: &str = "The expression uses the value of a secure parameter, so it is not told why it cannot be evaluated";
/// What is said of one that names a resource.
const REFERS: &str = "The template function 'reference' is to name no resource with the value of a secure parameter: use a parameter of the type 'string'";

impl Evaluator {
    /// The value of a part of the template, and whether that of a secure parameter was used for it.
    pub fn traced(&mut self, body: &Body) -> Outcome<(Shared, bool)> {
        let before = std::mem::replace(&mut self.secret, false);
        let value = self.body(body);
        let used = self.secret;
        self.secret |= before;
        Ok((value?, used))
    }

    /// Evaluates an expression. Where it has used the value of a secure parameter, the message of its fault, which may
    /// have the value in it, is not told.
    pub(super) fn quietly<T>(&mut self, act: impl FnOnce(&mut Self) -> Outcome<T>) -> Outcome<T> {
        let before = std::mem::replace(&mut self.secret, false);
        let outcome = act(self);
        let used = self.secret;
        self.secret |= before;
        match outcome {
            Err(Problem::Fault { message, at }) if used && message != REFERS => {
                let message = UNTOLD.to_owned();
                Err(Problem::Fault { message, at })
            }
            outcome => outcome,
        }
    }

    /// `reference` and `references`: what they name is asked for, and asked for in the log.
    pub(super) fn refer(&mut self, call: &Call) -> Outcome<Shared> {
        let before = std::mem::replace(&mut self.secret, false);
        let args: Outcome<Vec<Shared>> = call.args.iter().map(|arg| self.expr(arg)).collect();
        let used = self.secret;
        self.secret |= before;
        let args = args?;
        if used {
            return fault(REFERS.to_owned());
        }
        match call.key.as_str() {
            "references" => self.references(call, &args),
            _ => self.reference(call, &args),
        }
    }
}
