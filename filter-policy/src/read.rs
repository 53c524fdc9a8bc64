//! Reading a JSON value while noting everything that is wrong with it and where.

use std::fmt;

use serde_json::{Map, Value};

use crate::problem::{Problem, code};

/// A place in the document; it becomes text only when something is wrong there.
#[derive(Clone, Copy)]
pub(crate) enum At<'a> {
    Root,
    Key(&'a Self, &'a str),
    Index(&'a Self, usize),
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Key(parent, key) => write!(f, "{parent}/{}", key.replace('~', "~0").replace('/', "~1")),
            Self::Index(parent, index) => write!(f, "{parent}/{index}"),
        }
    }
}

/// What was found wrong so far.
#[derive(Default)]
pub(crate) struct Problems(pub(crate) Vec<Problem>);

impl Problems {
    pub(crate) fn add(&mut self, at: &At<'_>, code: &'static str, message: impl Into<String>) {
        self.0.push(Problem { code, message: message.into(), pointer: at.to_string() });
    }
}

/// A value and its place.
pub(crate) struct Node<'a> {
    pub(crate) value: &'a Value,
    pub(crate) at: At<'a>,
}

/// How a value of one type is read; `None` once a problem is noted.
pub(crate) type Read<T> = fn(&Node<'_>, &mut Problems) -> Option<T>;

impl<'a> Node<'a> {
    pub(crate) fn wrong_type(&self, expected: &str, problems: &mut Problems) {
        problems.add(&self.at, code::WRONG_TYPE, format!("expected {expected}, found {}", kind(self.value)));
    }

    pub(crate) fn bool(&self, problems: &mut Problems) -> Option<bool> {
        let found = self.value.as_bool();
        if found.is_none() {
            self.wrong_type("true or false", problems);
        }
        found
    }

    pub(crate) fn str(&self, problems: &mut Problems) -> Option<&'a str> {
        let found = self.value.as_str();
        if found.is_none() {
            self.wrong_type("a string", problems);
        }
        found
    }

    /// A string that is one of a few words.
    pub(crate) fn choice<T: Copy>(&self, choices: &[(&str, T)], problems: &mut Problems) -> Option<T> {
        let word = self.str(problems)?;
        let found = choices.iter().find(|(name, _)| *name == word);
        if found.is_none() {
            let names: Vec<_> = choices.iter().map(|(name, _)| format!("`{name}`")).collect();
            let message = format!("expected {}, found `{word}`", names.join(" or "));
            problems.add(&self.at, code::INVALID_CHOICE, message);
        }
        found.map(|(_, choice)| *choice)
    }

    /// The entries of a list, each with its place.
    pub(crate) fn items<'s>(
        &'s self,
        problems: &mut Problems,
    ) -> Option<impl Iterator<Item = Node<'s>> + use<'s, 'a>> {
        let Some(items) = self.value.as_array() else {
            self.wrong_type("a list", problems);
            return None;
        };
        Some(items.iter().enumerate().map(|(index, value)| Node { value, at: At::Index(&self.at, index) }))
    }

    /// The members of a map whose keys are data.
    pub(crate) fn members<'s>(
        &'s self,
        problems: &mut Problems,
    ) -> Option<impl ExactSizeIterator<Item = (&'a str, Node<'s>)> + use<'s, 'a>> {
        let members = self.object(problems)?;
        Some(members.iter().map(|(key, value)| (key.as_str(), Node { value, at: At::Key(&self.at, key) })))
    }

    /// The members of a map whose keys are fields, given by their canonical names in camelCase.
    pub(crate) fn fields(&self, known: &[&str], problems: &mut Problems) -> Option<Fields<'_>> {
        let members = self.object(problems)?;
        for key in members.keys() {
            let Some(field) = known.iter().find(|field| *field == key || snake(field) == *key) else {
                let message = format!("unknown field `{key}`");
                problems.add(&At::Key(&self.at, key), code::UNKNOWN_FIELD, message);
                continue;
            };
            if field != key && members.contains_key(*field) {
                let message = format!("`{field}` and `{key}` are the same field");
                problems.add(&At::Key(&self.at, field), code::DUPLICATE_FIELD, message);
            }
        }
        Some(Fields { members, at: &self.at })
    }

    fn object(&self, problems: &mut Problems) -> Option<&'a Map<String, Value>> {
        let found = self.value.as_object();
        if found.is_none() {
            self.wrong_type("an object", problems);
        }
        found
    }
}

/// The fields of an object whose names have been checked.
pub(crate) struct Fields<'a> {
    members: &'a Map<String, Value>,
    at: &'a At<'a>,
}

impl<'a> Fields<'a> {
    /// The field with this canonical name, in whichever spelling it is there.
    pub(crate) fn find(&self, name: &'a str) -> Option<Node<'a>> {
        let value = self.members.get(name).or_else(|| self.members.get(&snake(name)))?;
        Some(Node { value, at: At::Key(self.at, name) })
    }

    /// Reads a field into its slot, which keeps the default when the field is absent.
    pub(crate) fn read<T>(&self, name: &'a str, slot: &mut T, problems: &mut Problems, read: Read<T>) {
        if let Some(value) = self.find(name).and_then(|node| read(&node, problems)) {
            *slot = value;
        }
    }
}

/// `allowOut` → `allow_out`.
fn snake(camel: &str) -> String {
    let mut snake = String::with_capacity(camel.len() + 2);
    for letter in camel.chars() {
        if letter.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
