//! Texts of the OpenAPI document as HTML.

use askama::filters::{Html, escape as escaped};

/// A description: paragraphs are separated by empty lines, and code is between backticks.
pub(super) fn paragraphs(text: &str) -> String {
    let mut html = String::new();
    for paragraph in text.split("\n\n") {
        html += "<p>";
        html += &inline(paragraph);
        html += "</p>";
    }
    html
}

/// The same as one line.
pub(super) fn inline(text: &str) -> String {
    let mut html = String::new();
    for (at, part) in text.split('`').enumerate() {
        match at % 2 {
            0 => html += &escape(part),
            _ => html += &code(part),
        }
    }
    html
}

pub(super) fn code(text: &str) -> String {
    format!("<code>{}</code>", escape(text))
}

/// For text and for the values of attributes.
pub(super) fn escape(text: &str) -> String {
    let Ok(html) = escaped(text, Html);
    html.to_string()
}

/// JSON of the document without the spaces by which it is indented there.
pub(super) fn unindent(json: &str) -> String {
    // The last line closes what the first one opens.
    let last = json.lines().last().unwrap_or_default();
    let depth = last.len() - last.trim_start().len();
    let line = |line: &str| {
        let spaces = line.len() - line.trim_start().len();
        line[spaces.min(depth)..].to_owned()
    };
    json.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_are_html() {
        assert_eq!(
            paragraphs("One `a<b`.\n\nTwo & `c`"),
            "<p>One <code>a&#60;b</code>.</p><p>Two &#38; <code>c</code></p>"
        );
        assert_eq!(inline("`a` and \"b\""), "<code>a</code> and &#34;b&#34;");
        assert_eq!(inline("it's"), "it&#39;s");
    }

    #[test]
    fn examples_begin_at_the_margin() {
        let json = "[\n        {\n          \"a\": 1\n        }\n      ]";
        assert_eq!(unindent(json), "[\n  {\n    \"a\": 1\n  }\n]");
        assert_eq!(unindent("7"), "7");
        assert_eq!(unindent(""), "");
    }
}
