//! What names mean while an expression is evaluated: loops, parameters of functions, variables of lambdas.

use std::collections::HashMap;

use crate::value::Shared;

/// One iteration of a loop.
#[derive(Debug, Clone)]
pub(crate) struct Iteration {
    name: String,
    index: u64,
    /// Of a resource, and not of a property or variable.
    of_resource: bool,
}

impl Iteration {
    pub fn of_resource(name: &str, index: u64) -> Self {
        Self {
            name: name.to_owned(),
            index,
            of_resource: true,
        }
    }

    pub fn of_value(name: &str, index: u64) -> Self {
        Self {
            name: name.to_owned(),
            index,
            of_resource: false,
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Scope {
    /// From the outermost.
    pub loops: Vec<Iteration>,
    /// The parameters of the user-defined function that is evaluated, by their names in small letters.
    pub locals: Option<HashMap<String, Shared>>,
    /// From the outermost.
    pub lambdas: Vec<(String, Shared)>,
}

impl Scope {
    pub fn of_function(locals: HashMap<String, Shared>) -> Self {
        Self {
            locals: Some(locals),
            ..Self::default()
        }
    }

    pub fn lambda(&self, name: &str) -> Option<Shared> {
        let mut all = self.lambdas.iter().rev();
        all.find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.clone())
    }

    /// `copyIndex([loop], [offset])`: without a name that of the resource, if it is of a loop.
    pub fn copy_index(&self, args: &[Shared]) -> Result<i64, String> {
        let name = args.first().and_then(|arg| arg.value.as_str());
        let offset = args.get(usize::from(name.is_some()));
        let offset = offset.map_or(Some(0), |offset| offset.value.as_i64());
        let mut inner = self.loops.iter().rev();
        let found = match name {
            Some(name) => inner.find(|it| it.name.eq_ignore_ascii_case(name)),
            None => inner
                .clone()
                .find(|it| it.of_resource)
                .or_else(|| inner.next()),
        };
        let Some(found) = found else {
            let name = crate::error::shortened(name.unwrap_or_default());
            return Err(format!(
                "The template function 'copyIndex' is not expected at this location. The function can only be used in a resource with copy specified, or within the copy loop '{name}'. Please see https://aka.ms/arm-copy for usage details."
            ));
        };
        let index = i64::try_from(found.index).ok();
        index
            .zip(offset)
            .and_then(|(index, offset)| index.checked_add(offset))
            .ok_or_else(|| "The offset of 'copyIndex' is to be an integer.".to_owned())
    }
}
