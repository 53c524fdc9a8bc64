//! The page that people see who are not passed on.

use std::fmt::Write as _;

use crate::refusal::Refusal;

/// Nothing is loaded and nothing runs.
pub(crate) const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'";

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:38rem;margin:15vh auto 0;padding:0 1.5rem;\
color:#1c1c1c;background:#fff}h1{font-size:1.4rem}p{margin:.8rem 0}small{color:#666}\
@media(prefers-color-scheme:dark){body{color:#e6e6e6;background:#161616}small{color:#999}}";

/// The page about a refusal.
pub(crate) fn of(refusal: &Refusal) -> String {
    let status = refusal.status();
    let title = escaped(status.canonical_reason().unwrap_or("Refused"));
    let (message, advice) = (escaped(refusal.message()), escaped(refusal.advice()));
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n<style>{STYLE}</style>\n\
         <h1>{message}</h1>\n<p>{advice}</p>\n<p><small>{code} {title}",
        code = status.as_u16()
    );
    if let Some(id) = refusal.sandbox() {
        // Writing to a string does not fail.
        let _ = write!(page, " · sandbox {}", escaped(id));
    }
    page.push_str("</small></p>\n</html>\n");
    page
}

pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_with_the_request_is_text() {
        let page = of(&Refusal::UnknownSandbox { id: "<script>'\"&".into() });
        assert!(page.contains("&lt;script&gt;&#39;&quot;&amp;") && !page.contains("<script"));
    }
}
