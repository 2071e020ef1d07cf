//! Each function, as Azure documents it.

use serde_json::{Value, json};

use crate::{GROUP, SUBSCRIPTION, value};

/// Expressions with what they give.
fn check(cases: &[(&str, Value)]) {
    for (expression, expected) in cases {
        let found = value(&format!("[{expression}]"));
        assert_eq!(found.as_ref(), Ok(expected), "{expression}");
    }
}

/// Expressions with a part of what is said of them.
fn refused(cases: &[(&str, &str)]) {
    for (expression, said) in cases {
        let error = value(&format!("[{expression}]")).unwrap_err();
        assert!(error.to_string().contains(said), "{expression}: {error}");
    }
}

#[test]
fn strings() {
    check(&[
        ("concat('a', 'b', 1, true())", json!("ab1True")),
        ("toLower('ÄB')", json!("äb")),
        ("toUpper('äb')", json!("ÄB")),
        ("trim('  a b ')", json!("a b")),
        ("replace('a-b-c', '-', '')", json!("abc")),
        (
            "split('a,b;c', createArray(',', ';'))",
            json!(["a", "b", "c"]),
        ),
        ("split('a--b', '--')", json!(["a", "b"])),
        ("split('', ',')", json!([""])),
        ("join(createArray('a', 'b', 3), '-')", json!("a-b-3")),
        ("substring('häuser', 1, 2)", json!("äu")),
        ("substring('abc', 1)", json!("bc")),
        ("startsWith('abcdef', 'AB')", json!(true)),
        ("endsWith('abcdef', 'EF')", json!(true)),
        ("endsWith('abcdef', 'e')", json!(false)),
        ("padLeft('123', 10, '0')", json!("0000000123")),
        ("padLeft(7, 3)", json!("  7")),
        ("padLeft('long', 2, '0')", json!("long")),
        ("string(createObject('a', 1))", json!(r#"{"a":1}"#)),
        ("string(false())", json!("False")),
        ("base64('one, two, three')", json!("b25lLCB0d28sIHRocmVl")),
        (
            "base64ToString('b25lLCB0d28sIHRocmVl')",
            json!("one, two, three"),
        ),
        ("base64ToJson(base64('{\"a\": 1}')).a", json!(1)),
        (
            "uri('http://contoso.org/firstpath/', 'myscript.sh')",
            json!("http://contoso.org/firstpath/myscript.sh"),
        ),
        (
            "uri('http://contoso.org/firstpath', 'myscript.sh')",
            json!("http://contoso.org/myscript.sh"),
        ),
        (
            "uriComponent('https://a/b c?d=é')",
            json!("https%3A%2F%2Fa%2Fb%20c%3Fd%3D%C3%A9"),
        ),
        ("uriComponentToString('a%20b%C3%A9')", json!("a bé")),
        (
            "dataUri('Hello')",
            json!("data:text/plain;charset=utf8;base64,SGVsbG8="),
        ),
    ]);
    refused(&[
        (
            "toLower(1)",
            "expects its parameter to be a string. The provided value is of type 'Integer'",
        ),
        (
            "substring('abc', 2, 2)",
            "must refer to a location within the string",
        ),
        ("substring('abc', 4)", "must refer to a location"),
        ("substring('abc', -1)", "must refer to a location"),
        ("padLeft('a', 3, 'xy')", "one character"),
        ("split('a', padLeft('', 65, 'a'))", "more than 64 bytes"),
        ("replace('a', '', 'b')", "is empty"),
        ("base64ToString('?')", "no base64"),
        ("uri('a', 'b')", "no absolute URI"),
        ("uriComponentToString('%ff')", "UTF-8"),
        ("json('{')", "no valid JSON"),
    ]);
}

#[test]
fn formats() {
    check(&[
        (
            "format('{0}, {1}. {2:N0}', 'Hello', 'User', 8175133)",
            json!("Hello, User. 8,175,133"),
        ),
        ("format('{{{0}}}', 1)", json!("{1}")),
        ("format('{0,5}|{0,-5}|', 'ab')", json!("   ab|ab   |")),
        (
            "format('{0:D4} {0:X} {0:x2} {0:000} {0:N}', 10)",
            json!("0010 A 0a 010 10.00"),
        ),
        ("format('{0:D3}', -5)", json!("-005")),
        ("format('{0}{1}', true(), createArray(1))", json!("True[1]")),
        ("format('none')", json!("none")),
    ]);
    refused(&[
        ("format('{1}', 'a')", "asks for the argument '1'"),
        ("format('{', 'a')", "brace without another"),
        ("format('}', 'a')", "brace without another"),
        ("format('{x}', 'a')", "index that is no number"),
        ("format('{0,x}', 'a')", "width that is no number"),
        ("format('{0:C}', 1)", "format 'C' is not supported"),
        ("format('{0:é}', 1)", "is not supported"),
        ("format('{0,9999999999999}', 1)", "takes more than"),
    ]);
}

#[test]
fn collections() {
    check(&[
        ("createArray('a', 1, createObject())", json!(["a", 1, {}])),
        (
            "createObject('a', 1, 'b', createArray())",
            json!({"a": 1, "b": []}),
        ),
        ("array('efgh')", json!(["efgh"])),
        ("array(createArray(1))", json!([1])),
        (
            "concat(createArray(1), createArray(2, 3))",
            json!([1, 2, 3]),
        ),
        ("contains('abc', 'b')", json!(true)),
        ("contains('abc', 'B')", json!(false)),
        ("contains(createArray('a'), 'a')", json!(true)),
        ("contains(createObject('Key', 1), 'kEY')", json!(true)),
        ("length('häu')", json!(3)),
        ("length(createObject('a', 1))", json!(1)),
        ("empty('')", json!(true)),
        ("empty(createArray(1))", json!(false)),
        ("empty(null())", json!(true)),
        ("first('häu')", json!("h")),
        ("last(createArray(1, 2))", json!(2)),
        ("first(createArray())", json!(null)),
        ("skip(createArray(1, 2, 3), 2)", json!([3])),
        ("skip('abc', 9)", json!("")),
        ("take('abc', 2)", json!("ab")),
        ("take(createArray(1), -1)", json!([])),
        ("indexOf('test', 'T')", json!(0)),
        ("lastIndexOf('test', 't')", json!(3)),
        ("indexOf('abcdef', 'z')", json!(-1)),
        ("indexOf(createArray('x', 'y'), 'y')", json!(1)),
        ("lastIndexOf(createArray('x', 'y', 'x'), 'x')", json!(2)),
        ("range(5, 3)", json!([5, 6, 7])),
        ("range(5, 0)", json!([])),
        (
            "union(createArray(1, 2), createArray(2, 3))",
            json!([1, 2, 3]),
        ),
        (
            "union(json('{\"a\": {\"x\": 1, \"y\": 2}, \"b\": 1}'), json('{\"a\": {\"y\": 3}, \"c\": [2]}'))",
            json!({"a": {"x": 1, "y": 3}, "b": 1, "c": [2]}),
        ),
        (
            "intersection(createArray(1, 2, 3), createArray(3, 2))",
            json!([2, 3]),
        ),
        (
            "intersection(createObject('a', 1, 'b', 2), createObject('a', 1, 'b', 3))",
            json!({"a": 1}),
        ),
        (
            "items(createObject('b', 1, 'a', 2))",
            json!([{"key": "a", "value": 2}, {"key": "b", "value": 1}]),
        ),
        (
            "objectKeys(createObject('b', 1, 'a', 2))",
            json!(["a", "b"]),
        ),
        (
            "flatten(createArray(createArray(1), createArray(2, 3)))",
            json!([1, 2, 3]),
        ),
        (
            "shallowMerge(createArray(createObject('a', 1), createObject('a', 2)))",
            json!({"a": 2}),
        ),
        (
            "tryGet(createObject('a', createArray(1, 2)), 'A', 1)",
            json!(2),
        ),
        ("tryGet(createObject('a', 1), 'b', 'c')", json!(null)),
        ("indexFromEnd(createArray(1, 2, 3), 1)", json!(3)),
        ("tryIndexFromEnd(createArray(1), 2)", json!(null)),
        (
            "json('{\"a\": [true, null, 1.5]}')",
            json!({"a": [true, null, 1.5]}),
        ),
    ]);
    refused(&[
        ("range(0, 1000000000)", "must be between '0' and '10000'"),
        ("range(9223372036854775807, 2)", "larger than 64 bits"),
        ("createObject('a')", "pairs of a key and a value"),
        ("createObject(1, 2)", "a string"),
        ("length(1)", "an array, an object or a string"),
        ("union(createArray(1), createObject())", "an array"),
        ("indexFromEnd(createArray(1), 0)", "out of bounds"),
        ("first(1)", "an array or a string"),
    ]);
}

#[test]
fn logic_and_numbers() {
    check(&[
        ("if(true(), 'a', div(1, 0))", json!("a")),
        ("if(equals(1, 2), 'a', 'b')", json!("b")),
        ("and(true(), true(), false())", json!(false)),
        ("or(false(), true())", json!(true)),
        ("not(false())", json!(true)),
        ("bool('TRUE')", json!(true)),
        ("bool(0)", json!(false)),
        ("equals('a', 'A')", json!(false)),
        (
            "equals(createObject('a', 1, 'b', 2), createObject('b', 2, 'a', 1))",
            json!(true),
        ),
        ("less(1, 2)", json!(true)),
        ("lessOrEquals('b', 'a')", json!(false)),
        ("greater('b', 'a')", json!(true)),
        ("greaterOrEquals(2, 2)", json!(true)),
        ("coalesce(null(), 'x', 'y')", json!("x")),
        ("coalesce(null())", json!(null)),
        ("add(1, -3)", json!(-2)),
        ("sub(1, 3)", json!(-2)),
        ("mul(4, 3)", json!(12)),
        ("div(8, 3)", json!(2)),
        ("mod(7, 3)", json!(1)),
        ("min(createArray(3, 1, 2))", json!(1)),
        ("max(3, 1, 2)", json!(3)),
        ("int('-42')", json!(-42)),
        ("int(7)", json!(7)),
    ]);
    refused(&[
        ("if('yes', 1, 2)", "expects its parameter to be a boolean"),
        ("div(1, 0)", "have no result"),
        ("mod(-9223372036854775808, -1)", "have no result"),
        ("mul(9223372036854775807, 2)", "have no result"),
        ("int('4x')", "no integer"),
        ("min(createArray())", "no integer"),
        ("and('a', true())", "a boolean"),
        ("less(true(), 1)", "an integer or a string"),
        ("bool('maybe')", "'true' or 'false'"),
    ]);
}

#[test]
fn lambdas() {
    check(&[
        (
            "filter(range(0, 6), lambda('n', greater(lambdaVariables('n'), 3)))",
            json!([4, 5]),
        ),
        (
            "map(createArray('a', 'b'), lambda('x', 'i', format('{0}{1}', lambdaVariables('x'), lambdaVariables('i'))))",
            json!(["a0", "b1"]),
        ),
        (
            "reduce(range(1, 4), 0, lambda('sum', 'n', add(lambdaVariables('sum'), lambdaVariables('n'))))",
            json!(10),
        ),
        (
            "toObject(createArray('a', 'b'), lambda('x', lambdaVariables('x')), lambda('x', toUpper(lambdaVariables('X'))))",
            json!({"a": "A", "b": "B"}),
        ),
        (
            "toObject(createArray('a'), lambda('x', lambdaVariables('x')))",
            json!({"a": "a"}),
        ),
    ]);
    refused(&[
        ("map(createArray(1), 2)", "expects a lambda"),
        ("map(1, lambda('x', 2))", "to be an array"),
        ("map(createArray(1), lambda('x'))", "expects a lambda"),
        (
            "map(createArray(1), lambda('x', lambdaVariables('y')))",
            "lambda variable 'y' is not found",
        ),
        ("filter(createArray(1), lambda('x', 1))", "give a boolean"),
        ("lambda('x', 1)", "not expected at this location"),
    ]);
}

#[test]
fn ids_and_names() {
    check(&[
        (
            "resourceId('Microsoft.Compute/disks', 'd1')",
            json!(format!("{GROUP}/providers/Microsoft.Compute/disks/d1")),
        ),
        (
            "resourceId('other', 'Microsoft.Compute/disks', 'd1')",
            json!(format!(
                "/subscriptions/{SUBSCRIPTION}/resourceGroups/other/providers/Microsoft.Compute/disks/d1"
            )),
        ),
        (
            "resourceId('s', 'g', 'Microsoft.A/b/c', 'x', 'y')",
            json!("/subscriptions/s/resourceGroups/g/providers/Microsoft.A/b/x/c/y"),
        ),
        (
            "subscriptionResourceId('Microsoft.Authorization/roleDefinitions', 'r')",
            json!(format!(
                "/subscriptions/{SUBSCRIPTION}/providers/Microsoft.Authorization/roleDefinitions/r"
            )),
        ),
        (
            "subscriptionResourceId('s', 'Microsoft.A/b', 'r')",
            json!("/subscriptions/s/providers/Microsoft.A/b/r"),
        ),
        (
            "tenantResourceId('Microsoft.A/b', 'r')",
            json!("/providers/Microsoft.A/b/r"),
        ),
        (
            "extensionResourceId('/subscriptions/s/resourceGroups/g', 'Microsoft.A/locks', 'l')",
            json!("/subscriptions/s/resourceGroups/g/providers/Microsoft.A/locks/l"),
        ),
        ("length(uniqueString('a', 'b'))", json!(13)),
        ("equals(uniqueString('a'), uniqueString('a'))", json!(true)),
        ("equals(uniqueString('a'), uniqueString('b'))", json!(false)),
        (
            "subscription().tenantId",
            json!("00000000-0000-0000-0000-000000000002"),
        ),
        (
            "tenant().tenantId",
            json!("00000000-0000-0000-0000-000000000002"),
        ),
        (
            "subscription().id",
            json!(format!("/subscriptions/{SUBSCRIPTION}")),
        ),
        ("resourceGroup().ID", json!(GROUP)),
        ("resourceGroup().tags['Owner']", json!("ada")),
        ("deployment().name", json!("des")),
        ("environment().name", json!("Sealdisk")),
    ]);
    // Known values of UUID v5.
    let guid = value("[guid('a', 'b')]").unwrap();
    let namespace = uuid::uuid!("11fb06fb-712d-4ddd-98c7-e71bbd588830");
    assert_eq!(
        guid,
        json!(uuid::Uuid::new_v5(&namespace, b"a-b").to_string())
    );
    refused(&[
        (
            "resourceId('Microsoft.A/b', 'x', 'y')",
            "the type 'Microsoft.A/b' requires '1' resource name argument(s)",
        ),
        ("resourceId('disks', 'd')", "no argument is a resource type"),
        ("resourceId('Microsoft.A/b', 1)", "must be strings"),
        ("tenantResourceId('Microsoft.A', 'x')", "requires '1'"),
        ("guid(1)", "a string"),
    ]);
}

#[test]
fn dates() {
    check(&[
        (
            "dateTimeAdd('2020-04-07 14:53:14Z', '-P9D')",
            json!("2020-03-29 14:53:14Z"),
        ),
        (
            "dateTimeAdd('2020-04-07T14:53:14Z', 'P3Y1M')",
            json!("2023-05-07 14:53:14Z"),
        ),
        (
            "dateTimeAdd('20200131T000000Z', 'P1M', 'yyyy-MM-dd')",
            json!("2020-02-29"),
        ),
        (
            "dateTimeAdd('2020-04-07 14:53:14Z', 'PT1H30M10S', 'd')",
            json!("4/7/2020"),
        ),
        ("dateTimeToEpoch('2020-01-01')", json!(1_577_836_800)),
        (
            "dateTimeFromEpoch(1577836800)",
            json!("2020-01-01T00:00:00Z"),
        ),
    ]);
    refused(&[
        ("dateTimeAdd('x', 'P1D')", "is no date"),
        ("dateTimeAdd('2020-01-01', '1D')", "no ISO 8601 duration"),
        ("dateTimeAdd('2020-01-01', 'P')", "no ISO 8601 duration"),
        (
            "dateTimeAdd('2020-01-01', 'P9223372036854775807Y')",
            "leads too far",
        ),
        (
            "dateTimeAdd('2020-01-01', 'P99999D', 'é')",
            "is not supported",
        ),
        (
            "dateTimeAdd('9999-12-31T23:59:59-01:00', 'PT0S')",
            "not between the years",
        ),
        ("dateTimeFromEpoch(9223372036854775807)", "no date"),
    ]);
}
