//! What is told of a deployment, without the values of its secure parameters.

use serde_json::Value;

/// What stands where one was.
pub const HIDDEN: &str = "*****";
/// A shorter text is hidden where it is all there is: it stands in others by chance.
const SHORT: usize = 4;

/// The texts of secure parameters, in small letters: names and locations are written in any case.
pub struct Secrets {
    texts: Vec<String>,
}

impl Secrets {
    /// Those that are not empty; the longest first, since one may be in another.
    pub fn new(mut texts: Vec<String>) -> Self {
        texts.retain(|text| !text.is_empty());
        texts
            .iter_mut()
            .for_each(|text| text.make_ascii_lowercase());
        texts.sort_by_key(|text| std::cmp::Reverse(text.len()));
        Self { texts }
    }

    /// Hides them in all texts of a value.
    pub fn hide(&self, value: &mut Value) {
        if self.texts.is_empty() {
            return;
        }
        match value {
            Value::Null | Value::Bool(_) => {}
            Value::Number(number) => {
                if self.texts.contains(&number.to_string()) {
                    *value = Value::from(HIDDEN);
                }
            }
            Value::String(text) => self.hide_in(text),
            Value::Array(elements) => elements.iter_mut().for_each(|element| self.hide(element)),
            Value::Object(map) => {
                for (mut name, mut value) in std::mem::take(map) {
                    self.hide_in(&mut name);
                    self.hide(&mut value);
                    map.insert(name, value);
                }
            }
        }
    }

    fn hide_in(&self, text: &mut String) {
        for secret in &self.texts {
            let small = text.to_ascii_lowercase();
            if small == *secret {
                *text = HIDDEN.into();
            } else if secret.chars().count() >= SHORT && small.contains(secret) {
                let mut shown = String::with_capacity(text.len());
                let mut from = 0;
                for (at, found) in small.match_indices(secret.as_str()) {
                    shown.push_str(&text[from..at]);
                    shown.push_str(HIDDEN);
                    from = at + found.len();
                }
                shown.push_str(&text[from..]);
                *text = shown;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn no_text_has_a_secret_in_it() {
        let texts = ["Hush", "hush-hush", "ab", "", "23"].map(str::to_owned);
        let secrets = Secrets::new(texts.to_vec());
        let mut value = json!({
            "a": ["x HUSH-hush y hush", "hush", "ab", "about"], "hush": 23, "b": 234, "c": null,
        });
        secrets.hide(&mut value);
        assert_eq!(
            value,
            json!({
                "a": ["x ***** y *****", "*****", "*****", "about"], "*****": "*****", "b": 234, "c": null,
            })
        );
    }
}
