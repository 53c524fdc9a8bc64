//! Values that name secrets of the host: `Bearer ${secrets.NAME}`.

/// Longest name.
const MAX_NAME: usize = 128;
/// What stands before a name; the second is E2B's.
const OPENINGS: [&str; 2] = ["${secrets.", "${e2b.secrets."];
const CLOSING: char = '}';

/// The name of a secret, which is also the name of a file: one component of a path that leads nowhere else.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SecretName(String);

/// A piece of a value.
#[derive(Clone, PartialEq, Eq)]
pub enum Part {
    /// What is written.
    Text(zeroize::Zeroizing<String>),
    /// The secret with this name.
    Secret(SecretName),
}

/// What stands where a secret's name belongs is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BadName;

impl SecretName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn parse(text: &str) -> Result<Self, BadName> {
        let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        let is_name = (1..=MAX_NAME).contains(&text.len()) && !text.starts_with('.');
        if is_name && text.bytes().all(is_part) { Ok(Self(text.to_owned())) } else { Err(BadName) }
    }
}

/// Takes a value apart. What opens like a secret and does not go on like one is refused: it was meant as one, and
/// would otherwise be sent as it stands.
pub(crate) fn split(value: &str) -> Result<Vec<Part>, BadName> {
    let mut parts = Vec::new();
    let mut rest = value;
    while let Some((at, opening)) = next_opening(rest) {
        let (text, from) = rest.split_at(at);
        if !text.is_empty() {
            parts.push(Part::Text(text.to_owned().into()));
        }
        let (_, behind) = from.split_at(opening.len());
        let (name, after) = behind.split_once(CLOSING).ok_or(BadName)?;
        parts.push(Part::Secret(SecretName::parse(name)?));
        rest = after;
    }
    if !rest.is_empty() {
        parts.push(Part::Text(rest.to_owned().into()));
    }
    Ok(parts)
}

fn next_opening(text: &str) -> Option<(usize, &'static str)> {
    OPENINGS.iter().filter_map(|opening| Some((text.find(opening)?, *opening))).min()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(value: &str) -> Result<Vec<String>, BadName> {
        let show = |part| match part {
            Part::Text(text) => format!("text {}", *text),
            Part::Secret(name) => format!("secret {}", name.as_str()),
        };
        split(value).map(|parts| parts.into_iter().map(show).collect())
    }

    #[test]
    fn a_value_is_text_and_secrets_in_turn() {
        for (value, parts) in [
            ("", &[][..]),
            ("plain", &["text plain"]),
            ("Bearer ${secrets.KEY}", &["text Bearer ", "secret KEY"]),
            ("${e2b.secrets.openai-api-key}", &["secret openai-api-key"]),
            ("${secrets.a}:${e2b.secrets.b.c_1}!", &["secret a", "text :", "secret b.c_1", "text !"]),
            ("${secrets.a}${secrets.a}", &["secret a", "secret a"]),
            ("$ {x} ${PORT} ${secret.a} $${secrets.a}", &["text $ {x} ${PORT} ${secret.a} $", "secret a"]),
        ] {
            assert_eq!(shown(value).unwrap(), parts, "{value}");
        }
    }

    #[test]
    fn what_opens_like_a_secret_names_one() {
        let long = format!("${{secrets.{}}}", "a".repeat(129));
        for value in [
            "${secrets.}",
            "${secrets.a",
            "${secrets.a/b}",
            "${secrets...}",
            "${secrets..}",
            "${secrets.../etc/passwd}",
            "${secrets.a b}",
            "${secrets.ä}",
            "${secrets.${secrets.a}}",
            "${e2b.secrets.}",
            "x ${secrets.ok} ${e2b.secrets.a\\b}",
            &long,
        ] {
            assert_eq!(shown(value), Err(BadName), "{value}");
        }
        assert!(split(&format!("${{secrets.{}}}", "a".repeat(128))).is_ok());
    }

    proptest! {
        #[test]
        fn names_lead_nowhere_else(value in "(\\$\\{(e2b\\.)?secrets\\.[a-z./]{0,6}\\}?|[a-z${}]{0,4}){0,4}") {
            for part in split(&value).into_iter().flatten() {
                if let Part::Secret(name) = part {
                    prop_assert!(!name.as_str().contains('/') && !matches!(name.as_str(), "" | "." | ".."));
                }
            }
        }
    }
}
