//! What `az deployment group create` sends.

use serde_json::json;
use templates::{Mode, Plan, Step, parse_request};

use crate::{GROUP, context};

/// The request as it was recorded, around a template's file.
fn request(parameters: &str, file: &str) -> String {
    format!(
        r#"{{"properties": {{"parameters": {parameters}, "mode": "Incremental", template:{file}
}}}}"#
    )
}

/// A disk encryption set, as Azure's documentation of templates has it.
const DISK_ENCRYPTION_SET: &str = r#"{
  "$schema": "https://schema.management.azure.com/schemas/2019-04-01/deploymentTemplate.json#",
  "contentVersion": "1.0.0.0",
  "parameters": {
    // What the set is called.
    "diskEncryptionSetName": { "type": "string", "metadata": { "description": "The
name" } },
    "keyVaultId": { "type": "string" },
    "keyVaultKeyUrl": { "type": "string" },
    "region": { "type": "string", "defaultValue": "[resourceGroup().location]", },
  },
  "resources": [
    {
      "type": "Microsoft.Compute/diskEncryptionSets",
      "apiVersion": "2019-11-01",
      "name": "[parameters('diskEncryptionSetName')]",
      "location": "[parameters('region')]",
      "identity": { "type": "SystemAssigned" },
      "properties": {
        "activeKey": {
          "sourceVault": { "id": "[parameters('keyVaultId')]" },
          "keyUrl": "[parameters('keyVaultKeyUrl')]"
        }
      }
    }
  ],
  /* Whom to grant the key to. */
  "outputs": {
    "principalId": {
      "type": "string",
      "value": "[reference(resourceId('Microsoft.Compute/diskEncryptionSets', parameters('diskEncryptionSetName')), '2019-11-01', 'full').identity.principalId]"
    }
  }
}"#;

const PARAMETERS: &str = r#"{
  "diskEncryptionSetName": {"value": "des1"},
  "keyVaultId": {"value": "/subscriptions/s/resourceGroups/rg1/providers/Microsoft.KeyVault/vaults/kv1"},
  "keyVaultKeyUrl": {"value": "https://kv1.vault.localhost:9444/keys/key1/1"}
}"#;

#[test]
fn the_template_of_a_disk_encryption_set_makes_one() {
    let request = parse_request(request(PARAMETERS, DISK_ENCRYPTION_SET).as_bytes()).unwrap();
    assert_eq!(request.mode, Mode::Incremental);
    let mut plan = Plan::new(&request, context()).unwrap();
    let planned: Vec<_> = plan.resources().collect();
    let id = format!("{GROUP}/providers/Microsoft.Compute/diskEncryptionSets/des1");
    assert_eq!(planned[0].id, id);
    assert!(planned[0].made);

    let Step::Create(set) = plan.next_step().unwrap() else {
        panic!("nothing is made");
    };
    assert_eq!(set.id, id);
    assert_eq!(set.resource_type, "Microsoft.Compute/diskEncryptionSets");
    assert_eq!(
        (set.name.as_str(), set.api_version.as_str()),
        ("des1", "2019-11-01")
    );
    assert_eq!(
        set.body,
        json!({
            "location": "local",
            "identity": {"type": "SystemAssigned"},
            "properties": {"activeKey": {
                "sourceVault": {"id": "/subscriptions/s/resourceGroups/rg1/providers/Microsoft.KeyVault/vaults/kv1"},
                "keyUrl": "https://kv1.vault.localhost:9444/keys/key1/1",
            }},
        })
    );
    // Asked again, it says the same again.
    assert_eq!(plan.next_step().unwrap(), Step::Create(set));
    plan.made(json!({"id": id, "identity": {"principalId": "p1"}, "properties": {}}))
        .unwrap();
    let Step::Done(outputs) = plan.next_step().unwrap() else {
        panic!("it goes on");
    };
    assert_eq!(
        outputs["principalId"],
        json!({"type": "String", "value": "p1"})
    );
    assert_eq!(
        plan.parameters()["region"],
        json!({"type": "String", "value": "local"})
    );
}

#[test]
fn line_and_column_are_those_of_the_file() {
    let file = DISK_ENCRYPTION_SET.replace("[parameters('region')]", "[region('x')]");
    let error = parse_request(request(PARAMETERS, &file).as_bytes()).unwrap_err();
    assert_eq!(error.azure_code(), "InvalidTemplate");
    assert_eq!(
        error.to_string(),
        "Deployment template validation failed: 'The template resource '[parameters('diskEncryptionSetName')]' \
         at line '17' and column '19' is not valid: The template function 'region' is not valid. \
         Please see https://aka.ms/arm-functions for usage details.'."
    );
    // On the first line, too, whatever az puts before it.
    let error = parse_request(request("{}", r#"{"variables":{"v":"[x()]"}}"#).as_bytes());
    assert!(
        error
            .unwrap_err()
            .to_string()
            .contains("at line '1' and column '19'"),
    );
}

#[test]
fn a_request_that_lacks_something_says_what() {
    for (body, said) in [
        ("", "empty"),
        ("{", "could not be deserialized"),
        ("[]", "no object 'properties'"),
        (r#"{"properties": {}}"#, "no object 'properties.template'"),
        (
            r#"{"properties": {"mode": "Both", "template": {}}}"#,
            "'Both' is neither",
        ),
        (
            r#"{"properties": {"parameters": {"a": 1}, "template": {}}}"#,
            "'a' has no 'value'",
        ),
        ("\u{0}", "could not be deserialized"),
    ] {
        let error = parse_request(body.as_bytes()).unwrap_err();
        assert_eq!(error.azure_code(), "InvalidRequestContent", "{body}");
        assert!(error.to_string().contains(said), "{body}: {error}");
    }
    let error = parse_request(b"{\"properties\": \"\xff\"}").unwrap_err();
    assert!(error.to_string().contains("not UTF-8"), "{error}");
}

#[test]
fn what_is_not_offered_is_refused_by_name() {
    for (properties, said) in [
        (r#""templateLink": {"uri": "https://x"}"#, "templateLink"),
        (
            r#""template": {}, "parameters": {"a": {"reference": {"secretName": "s"}}}"#,
            "secret of a key vault",
        ),
        (
            r#""template": {"resources": [{"type": "Microsoft.Resources/deployments", "name": "n"}]}"#,
            "deployment within a deployment",
        ),
        (r#""template": {"definitions": {}}"#, "definitions"),
    ] {
        let body = format!(r#"{{"properties": {{{properties}}}}}"#);
        let error = parse_request(body.as_bytes()).unwrap_err();
        assert_eq!(error.azure_code(), "InvalidTemplateDeployment", "{error}");
        assert!(error.to_string().contains(said), "{error}");
    }
}

#[test]
fn the_hash_is_that_of_the_content() {
    let hash = |file: &str| {
        let request = parse_request(request("{}", file).as_bytes()).unwrap();
        request.template_hash().to_owned()
    };
    assert_eq!(
        hash(r#"{"resources": []}"#),
        hash("{ resources: [ /* none */ ], }")
    );
    assert_ne!(hash(r#"{"resources": []}"#), hash(r#"{"outputs": {}}"#));
}

#[test]
fn a_deployment_knows_its_mode() {
    for mode in ["Incremental", "Complete"] {
        let body = format!(
            r#"{{properties: {{mode: "{}", template: {{variables: {{v: "[deployment().properties.mode]"}},
                outputs: {{o: {{type: "string", value: "[variables('v')]"}}}}}}}}}}"#,
            mode.to_lowercase()
        );
        let request = parse_request(body.as_bytes()).unwrap();
        assert_eq!(request.mode.name(), mode);
        let mut plan = Plan::new(&request, context()).unwrap();
        let Step::Done(outputs) = plan.next_step().unwrap() else {
            panic!("there are no resources");
        };
        assert_eq!(outputs["o"]["value"], mode);
    }
}
