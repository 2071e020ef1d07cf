//! What `sealdisk status` says.

use serde_json::Value;

use crate::Host;

/// All of it, and its exit status.
pub fn status(host: &Host) -> (Option<i32>, Value) {
    let output = host.run("status -o json");
    let text = String::from_utf8(output.stdout).unwrap();
    let view = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text:?}"));
    (output.status.code(), view)
}

/// The alarms of now with that code.
pub fn alarms(host: &Host, code: &str) -> Vec<Value> {
    let (_, view) = status(host);
    let all = view["alarms"].as_array().unwrap().clone();
    all.into_iter()
        .filter(|alarm| alarm["code"] == code)
        .collect()
}
