//! The notations that a policy may be written in; all become the same JSON value.

use std::{fmt, path::Path};

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};

use crate::problem::{Invalid, Problem, code};

/// A notation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// RFC 8259.
    Json,
    /// TOML 1.0.
    Toml,
    /// YAML 1.2: only `true` and `false` are booleans.
    Yaml,
}

impl Format {
    /// By the file's extension, and without one that is known by how the text begins.
    pub fn guess(path: Option<&Path>, text: &str) -> Self {
        let extension = path.and_then(Path::extension).and_then(|extension| extension.to_str());
        match extension.map(str::to_ascii_lowercase).as_deref() {
            Some("json") => Self::Json,
            Some("toml") => Self::Toml,
            Some("yaml" | "yml") => Self::Yaml,
            Some(_) | None => Self::of_text(text),
        }
    }

    fn of_text(text: &str) -> Self {
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let first = lines.next().unwrap_or_default();
        // A TOML document begins with a table or an assignment, and neither begins a YAML mapping.
        let assigns = first.find('=').is_some_and(|at| !first[..at].contains(':'));
        match first.as_bytes().first() {
            Some(b'{') => Self::Json,
            Some(b'[') => Self::Toml,
            _ if assigns => Self::Toml,
            _ => Self::Yaml,
        }
    }

    /// Reads the text; a member that stands twice in one object is refused in every notation, since
    /// two readers could take different ones.
    ///
    /// # Errors
    /// When the text is no document of this notation.
    pub fn read(self, text: &str) -> Result<Value, Invalid> {
        // Only messages without an excerpt of the text: that could be somebody's secret.
        let read = match self {
            Self::Json => serde_json::from_str(text).map_err(|error| ("JSON", error.to_string())),
            Self::Toml => toml::from_str(text).map_err(|error| ("TOML", toml_message(text, &error))),
            Self::Yaml => {
                let options = serde_saphyr::options! { strict_booleans: true, with_snippet: false };
                serde_saphyr::from_str_with_options(text, options)
                    .map_err(|error| ("YAML", error.without_snippet().to_string()))
            }
        };
        read.map(|Strict(value)| value).map_err(|(name, message)| {
            let message = format!("the policy is no valid {name}: {message}");
            Invalid {
                errors: vec![Problem { code: code::MALFORMED_DOCUMENT, message, pointer: String::new() }],
            }
        })
    }
}

fn toml_message(text: &str, error: &toml::de::Error) -> String {
    let line =
        error.span().and_then(|span| text.get(..span.start)).map(|before| before.matches('\n').count() + 1);
    match line {
        Some(line) => format!("{} at line {line}", error.message()),
        None => error.message().to_owned(),
    }
}

/// A JSON value of which no object has a member twice.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue).map(Self)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value that JSON can express")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E: de::Error>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Strict(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = members.next_key::<String>()? {
            if object.contains_key(&key) {
                return Err(de::Error::custom(format_args!("`{key}` stands twice in one object")));
            }
            let Strict(value) = members.next_value()?;
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ALL: [Format; 3] = [Format::Json, Format::Toml, Format::Yaml];

    #[test]
    fn one_document_in_every_notation() {
        let expected = json!({ "allowOut": ["8.8.8.8", "*.x.test"], "limits": { "egressConnections": 7 }, "quic": "deny", "no": false });
        let texts = [
            r#"{"allowOut":["8.8.8.8","*.x.test"],"limits":{"egressConnections":7},"quic":"deny","no":false}"#,
            "allowOut = ['8.8.8.8', '*.x.test']\nquic = 'deny'\nno = false\n[limits]\negressConnections = 7\n",
            "# c\nallowOut:\n  - 8.8.8.8\n  - '*.x.test'\nlimits: {egressConnections: 7}\nquic: deny\nno: false\n",
        ];
        for (format, text) in ALL.into_iter().zip(texts) {
            assert_eq!(format.read(text).unwrap(), expected);
            assert_eq!(Format::guess(None, text), format);
        }
    }

    #[test]
    fn the_extension_decides_before_the_text() {
        for (path, format) in [
            ("a/p.json", Format::Json),
            ("p.TOML", Format::Toml),
            ("p.yaml", Format::Yaml),
            ("p.yml", Format::Yaml),
            ("p.txt", Format::Json),
            ("-", Format::Json),
        ] {
            assert_eq!(Format::guess(Some(Path::new(path)), "{}"), format, "{path}");
        }
        assert_eq!(Format::guess(None, "\n# about\n[limits]\n"), Format::Toml);
        assert_eq!(Format::guess(None, "maskRequestHost: a=b\n"), Format::Yaml);
        assert_eq!(Format::guess(None, ""), Format::Yaml);
    }

    #[test]
    fn a_member_twice_is_refused_at_any_depth() {
        for (format, text) in [
            (Format::Json, r#"{"quic":"deny","quic":"deny"}"#),
            (Format::Json, r#"{"a":[{"b":{"c":1,"c":2}}]}"#),
            (Format::Toml, "quic = 'deny'\nquic = 'deny'"),
            (Format::Yaml, "quic: deny\nquic: deny"),
            (Format::Yaml, "a:\n  - b: {c: 1, c: 2}"),
        ] {
            let invalid = format.read(text).unwrap_err();
            assert_eq!(invalid.errors[0].code, code::MALFORMED_DOCUMENT, "{text}");
        }
    }

    #[test]
    fn what_is_no_document_is_refused_without_an_excerpt() {
        for (format, text) in [
            (Format::Json, r#"{"secret-value": "secret-value" "#),
            (Format::Json, r#"{} "secret-value""#),
            (Format::Toml, "a = 'x'\nb = secret-value"),
            (Format::Yaml, "a: [secret-value\nb: }"),
            (Format::Yaml, "a: *secret-value"),
        ] {
            let invalid = format.read(text).unwrap_err();
            assert_eq!(invalid.errors.len(), 1);
            let problem = &invalid.errors[0];
            assert_eq!((problem.pointer.as_str(), problem.code), ("", code::MALFORMED_DOCUMENT));
            assert!(!problem.message.contains("secret-value"), "{}", problem.message);
        }
    }

    #[test]
    fn depth_and_aliases_are_bounded() {
        let deep = "[".repeat(100_000);
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let alias = format!("*a{}, ", level - 1).repeat(10);
            bomb.push_str(&format!("a{level}: &a{level} [{alias}]\n"));
        }
        assert!(Format::Json.read(&deep).is_err());
        assert!(Format::Toml.read(&format!("a = {deep}")).is_err());
        assert!(Format::Yaml.read(&deep).is_err());
        assert!(Format::Yaml.read(&bomb).is_err());
    }
}
