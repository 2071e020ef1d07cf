//! In what a resource differs from what a template says of it.

use serde_json::{Map, Value, json};

/// A property that would change.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// Where it is: names with dots, or the place in an array.
    path: String,
    /// Azure's word for what becomes of it.
    kind: &'static str,
    before: Option<Value>,
    after: Option<Value>,
    children: Vec<Difference>,
}

impl Difference {
    fn new(path: &str, kind: &'static str, before: Option<&Value>, after: Option<&Value>) -> Self {
        Self {
            path: path.to_owned(),
            kind,
            before: before.cloned(),
            after: after.cloned(),
            children: Vec::new(),
        }
    }

    /// As the API has it.
    pub fn view(&self) -> Value {
        let children: Vec<Value> = self.children.iter().map(Self::view).collect();
        json!({
            "path": self.path,
            "propertyChangeType": self.kind,
            "before": self.before,
            "after": self.after,
            "children": if children.is_empty() { Value::Null } else { children.into() },
        })
    }
}

/// What of a resource a template would change. What the template leaves out or has as null stays; its tags are all that
/// there are to be.
pub fn differences(before: &Value, wanted: &Value) -> Vec<Difference> {
    let mut found = Vec::new();
    if let Value::Object(wanted) = wanted {
        of_object("", before, wanted, &mut found);
    }
    if let (Some(before), Some(wanted)) = (tags(before), tags(wanted)) {
        for (name, value) in before
            .iter()
            .filter(|(name, _)| !wanted.contains_key(*name))
        {
            found.push(Difference::new(
                &format!("tags.{name}"),
                "Delete",
                Some(value),
                None,
            ));
        }
    }
    found
}

/// Whether what is wanted at a path changes nothing of what is there.
pub fn is_no_change(path: &str, before: Option<&Value>, wanted: &Value) -> bool {
    let mut found = Vec::new();
    of_value(path, before, wanted, &mut found);
    found.is_empty()
}

fn tags(body: &Value) -> Option<&Map<String, Value>> {
    body.get("tags").and_then(Value::as_object)
}

fn of_object(path: &str, before: &Value, wanted: &Map<String, Value>, found: &mut Vec<Difference>) {
    for (name, value) in wanted {
        let inner = match path {
            "" => name.clone(),
            path => format!("{path}.{name}"),
        };
        of_value(&inner, before.get(name), value, found);
    }
}

fn of_value(path: &str, before: Option<&Value>, wanted: &Value, found: &mut Vec<Difference>) {
    match (before, wanted) {
        (_, Value::Null) => {}
        (None | Some(Value::Null), wanted) if is_nothing(wanted) => {}
        (None | Some(Value::Null), wanted) => {
            found.push(Difference::new(path, "Create", None, Some(wanted)));
        }
        (Some(before @ Value::Object(_)), Value::Object(wanted)) => {
            of_object(path, before, wanted, found);
        }
        (Some(Value::Array(before)), Value::Array(wanted)) => {
            found.extend(of_arrays(path, before, wanted));
        }
        (Some(before), wanted) if is_same(path, before, wanted) => {}
        (Some(before), wanted) => {
            found.push(Difference::new(path, "Modify", Some(before), Some(wanted)));
        }
    }
}

fn of_arrays(path: &str, before: &[Value], wanted: &[Value]) -> Option<Difference> {
    let mut children = Vec::new();
    for at in 0..before.len().max(wanted.len()) {
        let place = at.to_string();
        match (before.get(at), wanted.get(at)) {
            (Some(before), Some(wanted)) => {
                let mut inner = Vec::new();
                match wanted {
                    Value::Object(fields) if before.is_object() => {
                        of_object("", before, fields, &mut inner);
                    }
                    _ => of_value("", Some(before), wanted, &mut inner),
                }
                if inner.is_empty() {
                    continue;
                }
                let mut child = Difference::new(&place, "Modify", Some(before), Some(wanted));
                if wanted.is_object() {
                    child.children = inner;
                }
                children.push(child);
            }
            (Some(before), None) => {
                children.push(Difference::new(&place, "Delete", Some(before), None));
            }
            (None, wanted) => children.push(Difference::new(&place, "Create", None, wanted)),
        }
    }
    if children.is_empty() {
        return None;
    }
    let [before, wanted] = [before, wanted].map(|array| Value::from(array.to_vec()));
    Some(Difference {
        children,
        ..Difference::new(path, "Array", Some(&before), Some(&wanted))
    })
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Object(fields) => fields.is_empty(),
        Value::Array(elements) => elements.is_empty(),
        _ => false,
    }
}

/// Ids, locations and words are the same in any case; the values of tags are not.
fn is_same(path: &str, before: &Value, wanted: &Value) -> bool {
    match (before, wanted) {
        (Value::String(before), Value::String(wanted)) if !path.starts_with("tags.") => {
            before.eq_ignore_ascii_case(wanted)
        }
        _ => before == wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(before: &Value, wanted: &Value) -> Vec<(String, &'static str)> {
        let found = differences(before, wanted).into_iter();
        found.map(|it| (it.path, it.kind)).collect()
    }

    #[test]
    fn only_what_the_template_says_is_a_change() {
        let before = json!({
            "id": "/subscriptions/s", "location": "local", "tags": {"a": "1", "b": "2"},
            "properties": {"size": 1, "state": "Unattached", "inner": {"x": "Y"}, "list": ["a", {"k": 1}]},
        });
        for same in [
            json!({}),
            json!({"location": "LOCAL", "properties": {"size": 1, "inner": {"x": "y"}, "new": null, "none": []}}),
            json!({"tags": {"a": "1", "b": "2"}, "properties": {"list": ["A", {"k": 1}]}}),
        ] {
            assert!(told(&before, &same).is_empty(), "{same}");
        }
        let wanted = json!({
            "tags": {"a": "x"},
            "properties": {"size": 2, "new": true, "list": ["a", {"k": 2}, "c"]},
        });
        let mut found = told(&before, &wanted);
        found.sort();
        let expected = [
            ("properties.list", "Array"),
            ("properties.new", "Create"),
            ("properties.size", "Modify"),
            ("tags.a", "Modify"),
            ("tags.b", "Delete"),
        ];
        assert_eq!(found, expected.map(|(path, kind)| (path.to_owned(), kind)));
        let list = json!({"properties": {"list": ["a", {"k": 2}, "c"]}});
        let view = differences(&before, &list)[0].view();
        assert_eq!(
            view["children"],
            json!([
                {"path": "1", "propertyChangeType": "Modify", "before": {"k": 1}, "after": {"k": 2}, "children": [
                    {"path": "k", "propertyChangeType": "Modify", "before": 1, "after": 2, "children": null},
                ]},
                {"path": "2", "propertyChangeType": "Create", "before": null, "after": "c", "children": null},
            ])
        );
    }
}
