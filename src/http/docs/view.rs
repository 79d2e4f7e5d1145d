//! What the page shows, as its template takes it. Fields whose names end with `html` are markup, all others are text.

use super::document::{
    Answer, Content, Document, InOrder, Operation, Parameter, Schema, Tag, last_part,
};
use super::markup::{code, escape, inline, paragraphs, unindent};

/// A header of every response, which the introduction explains.
const ON_ALL: &str = "X-Request-Id";

/// The requests of a tag.
pub(super) struct Group {
    pub(super) name: String,
    pub(super) description_html: String,
    pub(super) operations: Vec<OperationView>,
}

pub(super) struct OperationView {
    pub(super) id: String,
    pub(super) method: &'static str,
    pub(super) path: String,
    pub(super) summary: String,
    pub(super) description_html: String,
    pub(super) permission: &'static str,
    pub(super) parameters: Vec<Field>,
    pub(super) body: Vec<ContentView>,
    pub(super) example: Option<String>,
    pub(super) samples: Vec<SampleView>,
    pub(super) answers: Vec<AnswerView>,
}

/// A parameter, or a field of an object.
pub(super) struct Field {
    pub(super) name: String,
    /// Where it is, and whether it is required.
    pub(super) note: String,
    pub(super) type_html: String,
    pub(super) description_html: String,
}

/// A media type, and what a body of it is.
pub(super) struct ContentView {
    pub(super) media_type: String,
    pub(super) type_html: String,
    pub(super) description_html: String,
}

pub(super) struct SampleView {
    pub(super) label: String,
    pub(super) source: String,
}

pub(super) struct AnswerView {
    pub(super) status: String,
    pub(super) description_html: String,
    pub(super) content: Vec<ContentView>,
    pub(super) headers: Vec<Field>,
}

pub(super) struct SchemaView {
    pub(super) name: String,
    pub(super) type_html: String,
    pub(super) description_html: String,
    pub(super) fields: Vec<Field>,
}

/// All requests, by their first tag.
pub(super) fn groups(document: &Document) -> Vec<Group> {
    let group = |tag: &Tag| {
        let mut operations = Vec::new();
        for (path, item) in document.paths.iter() {
            for (method, operation) in item.operations() {
                if operation.tags.first() == Some(&tag.name) {
                    let parameters = item.parameters.iter().chain(&operation.parameters);
                    let parameters = parameters.map(|parameter| of_parameter(document, parameter));
                    operations.push(OperationView {
                        method,
                        path: path.to_owned(),
                        parameters: parameters.collect(),
                        ..of_operation(document, operation)
                    });
                }
            }
        }
        Group {
            name: tag.name.clone(),
            description_html: inline(&tag.description),
            operations,
        }
    };
    document.tags.iter().map(group).collect()
}

/// All but its method, path and parameters.
fn of_operation(document: &Document, operation: &Operation) -> OperationView {
    let body = operation.request_body.as_ref();
    let example = body.and_then(|body| {
        let mut examples = body.content.iter().filter_map(|(_, c)| c.example.as_ref());
        examples.next().map(|example| unindent(example.get()))
    });
    let samples = operation.samples.iter().map(|sample| SampleView {
        label: sample.label.clone(),
        source: sample.source.clone(),
    });
    let answers = operation.responses.iter();
    OperationView {
        id: operation.operation_id.clone(),
        method: "",
        path: String::new(),
        summary: operation.summary.clone(),
        description_html: paragraphs(&operation.description),
        permission: permission(operation),
        parameters: Vec::new(),
        body: body.map_or_else(Vec::new, |body| contents(&body.content)),
        example,
        samples: samples.collect(),
        answers: answers
            .map(|(status, answer)| of_answer(document, status, answer))
            .collect(),
    }
}

fn permission(operation: &Operation) -> &'static str {
    let needs = |scheme: &str| operation.security.iter().any(|s| s.contains_key(scheme));
    match (needs("writeToken"), needs("readToken")) {
        (true, _) => "Needs a write token, where the service has tokens.",
        (_, true) => "Needs a read token, where the service has tokens.",
        (false, false) => "Needs no token.",
    }
}

fn of_parameter(document: &Document, parameter: &Parameter) -> Field {
    let known = &document.components.parameters;
    let parameter = known
        .at(parameter.reference.as_deref())
        .unwrap_or(parameter);
    let required = if parameter.required { ", required" } else { "" };
    Field {
        name: parameter.name.clone(),
        note: format!("{}{required}", parameter.place),
        type_html: type_of(&parameter.schema),
        description_html: inline(&parameter.description),
    }
}

fn of_answer(document: &Document, status: &str, answer: &Answer) -> AnswerView {
    let components = &document.components;
    let answer = components
        .responses
        .at(answer.reference.as_deref())
        .unwrap_or(answer);
    let own = answer.headers.iter().filter(|(name, _)| *name != ON_ALL);
    let headers = own.map(|(name, header)| {
        let known = components.headers.at(header.reference.as_deref());
        Field {
            name: name.to_owned(),
            note: String::new(),
            type_html: String::new(),
            description_html: inline(&known.unwrap_or(header).description),
        }
    });
    AnswerView {
        status: status.to_owned(),
        description_html: inline(&answer.description),
        content: contents(&answer.content),
        headers: headers.collect(),
    }
}

fn contents(content: &InOrder<Content>) -> Vec<ContentView> {
    let view = |(media_type, content): (&str, &Content)| ContentView {
        media_type: media_type.to_owned(),
        type_html: type_of(&content.schema),
        description_html: inline(&content.schema.description),
    };
    content.iter().map(view).collect()
}

/// All schemas that have a name.
pub(super) fn schemas(document: &Document) -> Vec<SchemaView> {
    let view = |(name, schema): (&str, &Schema)| {
        let mut fields = Vec::new();
        add_fields(schema, "", &mut fields);
        SchemaView {
            name: name.to_owned(),
            type_html: type_of(schema),
            description_html: inline(&schema.description),
            fields,
        }
    };
    document.components.schemas.iter().map(view).collect()
}

/// Adds the fields of an object, and those of objects within it, such as `files[].name`. It follows no references.
fn add_fields(schema: &Schema, before: &str, fields: &mut Vec<Field>) {
    for (name, property) in schema.properties.iter() {
        let path = format!("{before}{name}");
        let is_required = schema.required.iter().any(|required| required == name);
        fields.push(Field {
            name: path.clone(),
            note: if is_required { "required" } else { "" }.to_owned(),
            type_html: type_of(property),
            description_html: inline(&property.description),
        });
        add_fields(property, &format!("{path}."), fields);
        if let Some(items) = &property.items {
            add_fields(items, &format!("{path}[]."), fields);
        }
    }
}

/// What a value can be, in words.
fn type_of(schema: &Schema) -> String {
    if let Some(reference) = &schema.reference {
        let name = escape(last_part(reference));
        return format!("<a href=\"#schema-{name}\">{name}</a>");
    }
    if let Some(constant) = &schema.constant {
        return literal(constant);
    }
    if !schema.values.is_empty() {
        let values: Vec<String> = schema.values.iter().map(literal).collect();
        return values.join(", ");
    }
    let alternatives: Vec<String> = schema.alternatives().map(type_of).collect();
    if !alternatives.is_empty() {
        return alternatives.join(" or ");
    }
    let kind = |kind: &str| match (kind, &schema.items) {
        ("array", Some(items)) => format!("list of {}", type_of(items)),
        _ => escape(kind),
    };
    let kinds: Vec<String> = schema.kinds().into_iter().map(kind).collect();
    let mut parts = vec![kinds.join(" or ")];
    parts.extend(schema.format.as_deref().map(escape));
    match (&schema.minimum, &schema.maximum) {
        (Some(min), Some(max)) => parts.push(format!("{min} to {max}")),
        (Some(min), None) => parts.push(format!("at least {min}")),
        (None, Some(max)) => parts.push(format!("at most {max}")),
        (None, None) => {}
    }
    match (schema.min_length, schema.max_length) {
        (Some(min), Some(max)) => parts.push(format!("{min} to {max} characters")),
        (Some(min), None) => parts.push(format!("at least {min} characters")),
        (None, Some(max)) => parts.push(format!("at most {max} characters")),
        (None, None) => {}
    }
    parts.extend(schema.max_items.map(|max| format!("at most {max} of them")));
    parts.extend(schema.pattern.as_deref().map(code));
    parts.retain(|part| !part.is_empty());
    parts.join(", ")
}

/// A value as it is written in a query or in JSON: names without quotes.
fn literal(value: &serde_json::Value) -> String {
    match value.as_str() {
        Some(text) => code(text),
        None => code(&value.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(json: &str) -> String {
        type_of(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn types_are_told_in_words() {
        for (json, expected) in [
            (r#"{"type": "string"}"#, "string"),
            (
                r##"{"$ref": "#/components/schemas/Hour"}"##,
                "<a href=\"#schema-Hour\">Hour</a>",
            ),
            (
                r#"{"type": "integer", "minimum": 0, "maximum": 18446744073709551615}"#,
                "integer, 0 to 18446744073709551615",
            ),
            (
                r#"{"type": "integer", "minimum": 1}"#,
                "integer, at least 1",
            ),
            (
                r#"{"type": "array", "items": {"type": "string", "maxLength": 9}, "maxItems": 64}"#,
                "list of string, at most 9 characters, at most 64 of them",
            ),
            (r#"{"type": ["string", "null"]}"#, "string or null"),
            (
                r##"{"oneOf": [{"$ref": "#/x/Hour"}, {"const": "previous"}]}"##,
                "<a href=\"#schema-Hour\">Hour</a> or <code>previous</code>",
            ),
            (
                r#"{"type": "string", "anyOf": [{"format": "ipv4"}, {"format": "ipv6"}]}"#,
                "ipv4 or ipv6",
            ),
            (
                r#"{"enum": ["a", true]}"#,
                "<code>a</code>, <code>true</code>",
            ),
            (
                r#"{"type": "string", "pattern": "^<+$"}"#,
                "string, <code>^&#60;+$</code>",
            ),
            ("{}", ""),
        ] {
            assert_eq!(words(json), expected, "{json}");
        }
    }

    #[test]
    fn fields_within_fields_have_paths() {
        let schema = r#"{"required": ["b"], "properties": {
            "b": {"items": {"properties": {"c": {"type": "string"}}}}, "a": {"properties": {"d": {}}}}}"#;
        let mut fields = Vec::new();
        add_fields(&serde_json::from_str(schema).unwrap(), "", &mut fields);
        let found: Vec<_> = fields.iter().map(|f| (&*f.name, &*f.note)).collect();
        assert_eq!(
            found,
            [("b", "required"), ("b[].c", ""), ("a", ""), ("a.d", "")]
        );
    }
}
