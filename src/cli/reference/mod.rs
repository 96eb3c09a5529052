//! The reference of files and codes, made of the comments and types in the code: for `weir explain` and `docs/reference`.

mod explain;
#[cfg(test)]
mod pages;
pub(super) mod reasons;

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

pub use explain::{Explain, topics};

/// Texts that stand for quantities in files. Each names itself in the reference.
macro_rules! quantities {
    ($($name:ident $title:literal $types:tt $help:literal),* $(,)?) => {
        $(
            #[doc = $help]
            pub struct $name;

            impl JsonSchema for $name {
                fn schema_name() -> Cow<'static, str> {
                    $title.into()
                }

                fn inline_schema() -> bool {
                    true
                }

                fn json_schema(_: &mut SchemaGenerator) -> Schema {
                    json_schema!({ "title": $title, "type": $types })
                }
            }
        )*

        /// How each quantity is written: its name in the reference, and the forms that it has.
        pub const QUANTITIES: &[(&str, &str)] = &[$(($title, $help)),*];
    };
}

quantities! {
    Cpus "CPUs" ["string", "number"] "`2`, `1.5`, `500m` (thousandths)",
    Bytes "bytes" ["string", "number"] "`512Mi`, `2Gi` (powers of 1,024), `1.5G` (of 1,000), or a number of bytes",
    Devices "devices" "string" "`MODEL:COUNT`; `A\\|B:COUNT` for alternatives; `any:COUNT`; `MODEL:0.5` for a part of one",
    DeviceCount "number of devices" ["string", "number"] "`8`, `0.5`",
    Duration "duration" "string" "`90s`, `5m`, `1h30m`, `2d`",
    Indices "indices" ["string", "number"] "`0,3,7-9`",
}

/// A file that the reference covers.
struct File {
    /// The name in `weir explain`.
    name: &'static str,
    schema: fn() -> Schema,
}

const FILES: &[File] = &[
    File { name: "job", schema: || schemars::schema_for!(super::job_file::JobFile) },
    File { name: "queues", schema: || schemars::schema_for!(super::queue_file::QueuesFile) },
    File { name: "agent", schema: || schemars::schema_for!(crate::config::AgentFile) },
];

/// The JSON schema of a whole file, for editors. A job file may also be a list of jobs, or have them in `jobs`.
fn whole_schema(name: &str, mut root: Value) -> Value {
    if name != "job" {
        return root;
    }
    let mut take =
        |key: &str| root.as_object_mut().and_then(|root| root.shift_remove(key)).unwrap_or_default();
    let (dialect, mut definitions) = (take("$schema"), take("$defs"));
    definitions["job"] = root;
    let list = json!({ "type": "array", "items": { "$ref": "#/$defs/job" } });
    let jobs = json!({
        "type": "object",
        "properties": { "jobs": list },
        "required": ["jobs"],
        "additionalProperties": false,
    });
    json!({
        "$schema": dialect,
        "title": "job file",
        "anyOf": [{ "$ref": "#/$defs/job" }, list, jobs],
        "$defs": definitions,
    })
}

/// A field of a file, or the file itself.
struct Field<'a> {
    root: &'a Value,
    schema: &'a Value,
}

impl<'a> Field<'a> {
    fn of(root: &'a Value) -> Self {
        Self { root, schema: root }
    }

    /// The schema that holds the type: behind references, and without the absent alternative.
    fn resolved(&self) -> &'a Value {
        let mut schema = self.schema;
        loop {
            let reference = schema["$ref"].as_str().and_then(|path| path.strip_prefix('#'));
            let alternative =
                schema["anyOf"].as_array().and_then(|all| all.iter().rfind(|one| one["type"] != "null"));
            match (reference.and_then(|path| self.root.pointer(path)), alternative) {
                (Some(inner), _) | (None, Some(inner)) => schema = inner,
                (None, None) => return schema,
            }
        }
    }

    /// The fields inside of this one, of its elements, or of its values by name; in the order of the code.
    fn fields(&self) -> Vec<(&'a str, Field<'a>)> {
        let inner = self.resolved();
        for of in ["items", "additionalProperties"] {
            if inner[of].is_object() {
                return Field { schema: &inner[of], ..*self }.fields();
            }
        }
        let fields = inner["properties"].as_object().into_iter().flatten();
        fields.map(|(name, schema)| (name.as_str(), Field { schema, ..*self })).collect()
    }

    /// What the field means: its own comment.
    fn description(&self) -> String {
        let own = self.schema["description"].as_str();
        let text = own.or_else(|| self.resolved()["description"].as_str()).unwrap_or_default();
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// What can be written there, in words.
    fn type_text(&self) -> String {
        let inner = self.resolved();
        if let Some(title) = self.schema["title"].as_str().or_else(|| inner["title"].as_str())
            && QUANTITIES.iter().any(|(known, _)| *known == title)
        {
            return title.to_owned();
        }
        if let Some(values) = inner["enum"].as_array().or_else(|| inner["oneOf"].as_array()) {
            let value = |value: &Value| {
                value.as_str().or_else(|| value["const"].as_str()).map(|text| format!("`{text}`"))
            };
            return values.iter().filter_map(value).collect::<Vec<_>>().join(", ");
        }
        let kinds: Vec<&str> = match &inner["type"] {
            Value::String(kind) => vec![kind],
            Value::Array(kinds) => {
                kinds.iter().filter_map(Value::as_str).filter(|kind| *kind != "null").collect()
            }
            _ => Vec::new(),
        };
        let of = |name: &str| Field { schema: &inner[name], ..*self }.type_text();
        match kinds.as_slice() {
            ["array"] => format!("list of {}", of("items")),
            ["object"] if inner["additionalProperties"].is_object() => {
                format!("{} by name", of("additionalProperties"))
            }
            ["string"] => "text".to_owned(),
            ["integer"] => "whole number".to_owned(),
            ["number"] => "number".to_owned(),
            ["boolean"] => "`true`, `false`".to_owned(),
            ["string", "number"] | ["number", "string"] => "text or number".to_owned(),
            _ => "fields".to_owned(),
        }
    }
}
