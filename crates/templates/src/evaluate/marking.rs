//! Marking where in a body values of secure parameters were used, so that what is told of it has nothing there: whatever
//! was done to such a value might be undone.

use super::{Evaluator, Outcome};
use crate::body::Body;
use crate::marks::{Marks, Place};
use crate::value::Shared;

impl Evaluator {
    /// The value of a body, and where values of secure parameters were used for it.
    pub fn marked_body(&mut self, body: &Body) -> Outcome<(Shared, Vec<Place>)> {
        self.marks = Some(Marks::default());
        let value = self.body(body);
        let marks = self.marks.take().unwrap_or_default();
        Ok((value?, marks.found))
    }

    /// Evaluates what the value at this place is made of, and marks the place if a secure parameter was used.
    pub(super) fn marking<T>(&mut self, act: impl FnOnce(&mut Self) -> Outcome<T>) -> Outcome<T> {
        // What an expression has evaluated, the value of a variable say, is at other places of its own.
        let Some(mut marks) = self.marks.take() else {
            return act(self);
        };
        let before = std::mem::replace(&mut self.secret, false);
        let outcome = act(self);
        let mut paid = Ok(());
        if self.secret {
            let size = marks.at.iter().map(|part| size_of::<String>() + part.len());
            paid = self.budget.bytes(size.sum());
            marks.found.push(marks.at.clone());
        }
        self.secret |= before;
        self.marks = Some(marks);
        paid?;
        outcome
    }

    /// Evaluates a property or an element of the value at this place.
    pub(super) fn inside<T>(
        &mut self,
        part: impl ToString,
        act: impl FnOnce(&mut Self) -> Outcome<T>,
    ) -> Outcome<T> {
        if let Some(marks) = &mut self.marks {
            marks.at.push(part.to_string());
        }
        let outcome = act(self);
        if let Some(marks) = &mut self.marks {
            marks.at.pop();
        }
        outcome
    }
}
