//! The parts of an OpenAPI document that the page shows.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Number, Value};

#[derive(Debug, Deserialize)]
pub(super) struct Document {
    pub(super) info: Info,
    pub(super) tags: Vec<Tag>,
    pub(super) paths: InOrder<PathItem>,
    pub(super) components: Components,
}

impl Document {
    pub(super) fn parse(json: &str) -> Result<Document, serde_json::Error> {
        serde_json::from_str(json)
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Info {
    pub(super) summary: String,
    pub(super) description: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Tag {
    pub(super) name: String,
    pub(super) description: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct PathItem {
    /// Those of all its operations.
    #[serde(default)]
    pub(super) parameters: Vec<Parameter>,
    get: Option<Operation>,
    head: Option<Operation>,
    post: Option<Operation>,
    delete: Option<Operation>,
}

impl PathItem {
    /// Its operations, each with its method.
    pub(super) fn operations(&self) -> impl Iterator<Item = (&'static str, &Operation)> {
        let all = [
            ("GET", &self.get),
            ("HEAD", &self.head),
            ("POST", &self.post),
            ("DELETE", &self.delete),
        ];
        all.into_iter()
            .filter_map(|(method, operation)| Some((method, operation.as_ref()?)))
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Operation {
    pub(super) operation_id: String,
    pub(super) tags: Vec<String>,
    pub(super) summary: String,
    pub(super) description: String,
    #[serde(default)]
    pub(super) parameters: Vec<Parameter>,
    /// Any of these is enough. Each names security schemes.
    #[serde(default)]
    pub(super) security: Vec<BTreeMap<String, Vec<String>>>,
    pub(super) request_body: Option<Body>,
    pub(super) responses: InOrder<Answer>,
    /// An extension that other renderers know as well.
    #[serde(default, rename = "x-codeSamples")]
    pub(super) samples: Vec<Sample>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Sample {
    pub(super) label: String,
    pub(super) source: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Parameter {
    #[serde(rename = "$ref")]
    pub(super) reference: Option<String>,
    pub(super) name: String,
    #[serde(rename = "in")]
    pub(super) place: String,
    pub(super) required: bool,
    pub(super) description: String,
    pub(super) schema: Schema,
}

#[derive(Debug, Deserialize)]
pub(super) struct Body {
    pub(super) content: InOrder<Content>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Content {
    pub(super) schema: Schema,
    pub(super) example: Option<Box<RawValue>>,
}

/// A response.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Answer {
    #[serde(rename = "$ref")]
    pub(super) reference: Option<String>,
    pub(super) description: String,
    pub(super) content: InOrder<Content>,
    pub(super) headers: InOrder<Header>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Header {
    #[serde(rename = "$ref")]
    pub(super) reference: Option<String>,
    pub(super) description: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Schema {
    #[serde(rename = "$ref")]
    pub(super) reference: Option<String>,
    /// A name of a type, or a list of them.
    #[serde(rename = "type")]
    kind: Value,
    pub(super) description: String,
    pub(super) format: Option<String>,
    pub(super) pattern: Option<String>,
    pub(super) minimum: Option<Number>,
    pub(super) maximum: Option<Number>,
    pub(super) min_length: Option<u64>,
    pub(super) max_length: Option<u64>,
    pub(super) max_items: Option<u64>,
    #[serde(rename = "enum")]
    pub(super) values: Vec<Value>,
    #[serde(rename = "const")]
    pub(super) constant: Option<Value>,
    any_of: Vec<Schema>,
    one_of: Vec<Schema>,
    pub(super) items: Option<Box<Schema>>,
    pub(super) properties: InOrder<Schema>,
    pub(super) required: Vec<String>,
}

impl Schema {
    /// The names of its types.
    pub(super) fn kinds(&self) -> Vec<&str> {
        match &self.kind {
            Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
            kind => kind.as_str().into_iter().collect(),
        }
    }

    /// Schemas of which one has to match.
    pub(super) fn alternatives(&self) -> impl Iterator<Item = &Schema> {
        self.any_of.iter().chain(&self.one_of)
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Components {
    pub(super) schemas: InOrder<Schema>,
    pub(super) responses: InOrder<Answer>,
    pub(super) parameters: InOrder<Parameter>,
    pub(super) headers: InOrder<Header>,
}

/// The members of a JSON object in the order of the document, which a map does not keep.
#[derive(Debug)]
pub(super) struct InOrder<T>(Vec<(String, T)>);

impl<T> InOrder<T> {
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &T)> {
        self.0.iter().map(|(name, member)| (name.as_str(), member))
    }

    /// The member that a reference such as `#/components/headers/RequestId` names.
    pub(super) fn at(&self, reference: Option<&str>) -> Option<&T> {
        let sought = last_part(reference?);
        let found = self.iter().find(|(name, _)| *name == sought);
        found.map(|(_, member)| member)
    }
}

/// The name at the end of a reference.
pub(super) fn last_part(reference: &str) -> &str {
    reference.rsplit('/').next().unwrap_or(reference)
}

impl<T> Default for InOrder<T> {
    fn default() -> InOrder<T> {
        InOrder(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for InOrder<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<InOrder<T>, D::Error> {
        deserializer.deserialize_map(Members(PhantomData))
    }
}

struct Members<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
    type Value = InOrder<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<InOrder<T>, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        Ok(InOrder(members))
    }
}
