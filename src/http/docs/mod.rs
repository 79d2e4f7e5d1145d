//! `GET /docs`: the OpenAPI document as a page to read.
//!
//! It is plain HTML without a script, rendered once from the document that `GET /openapi.json` returns. Like that, it
//! needs no permission.

mod document;
mod markup;
mod view;

use std::sync::LazyLock;

use askama::Template;
use warp::http::HeaderMap;
use warp::reply::Response;

use super::error::Problem;
use super::openapi;
use super::page::{self, Html};
use document::Document;
use view::{Group, SchemaView};

/// As rendered at the first request.
static PAGE: LazyLock<Result<Html, String>> =
    LazyLock::new(|| render().map(|html| Html::new(&html)));

#[derive(Template)]
#[template(path = "docs.html")]
struct Docs {
    /// Path of the assets, relative to the page.
    assets: String,
    version: &'static str,
    summary: String,
    introduction_html: String,
    groups: Vec<Group>,
    schemas: Vec<SchemaView>,
}

/// The page.
pub(super) fn handle(headers: &HeaderMap) -> Result<Response, Problem> {
    match &*PAGE {
        Ok(html) => html.respond(headers),
        Err(why) => {
            tracing::error!(%why, "the page of the API could not be rendered");
            Err(Problem::Internal)
        }
    }
}

fn render() -> Result<String, String> {
    let document = Document::parse(openapi::DOCUMENT).map_err(|e| e.to_string())?;
    let docs = Docs {
        assets: page::assets(),
        version: env!("CARGO_PKG_VERSION"),
        introduction_html: markup::paragraphs(&document.info.description),
        groups: view::groups(&document),
        schemas: view::schemas(&document),
        summary: document.info.summary,
    };
    docs.render().map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The values of an attribute of the page.
    fn attributes<'a>(html: &'a str, name: &str) -> Vec<&'a str> {
        let begin = format!(" {name}=\"");
        let rest = html.split(&begin).skip(1);
        rest.filter_map(|rest| rest.split('"').next()).collect()
    }

    #[test]
    fn the_page_has_all_of_the_document() {
        let html = render().unwrap();
        let document: serde_json::Value = serde_json::from_str(openapi::DOCUMENT).unwrap();
        let ids: BTreeSet<&str> = attributes(&html, "id").into_iter().collect();
        for (path, item) in document["paths"].as_object().unwrap() {
            assert!(html.contains(&format!("<code>{path}</code>")), "{path}");
            for (method, operation) in item.as_object().unwrap() {
                let Some(id) = operation["operationId"].as_str() else {
                    assert_eq!(method, "parameters");
                    continue;
                };
                let (_, section) = html.split_once(&format!("<section id=\"{id}\"")).unwrap();
                let section = section.split("</section>").next().unwrap();
                let parameters = operation["parameters"].as_array().into_iter().flatten();
                let names = parameters.map(|parameter| parameter["name"].as_str().unwrap());
                let statuses = operation["responses"].as_object().unwrap().keys();
                for word in names.chain(statuses.map(String::as_str)) {
                    let found = section.contains(&format!("<code>{word}</code>"));
                    assert!(found, "{method} {path}: {word}");
                }
                let samples = operation["x-codeSamples"].as_array().into_iter().flatten();
                for sample in samples {
                    let text = markup::escape(sample["source"].as_str().unwrap());
                    assert!(section.contains(&text), "{text}");
                }
            }
        }
        for name in document["components"]["schemas"]
            .as_object()
            .unwrap()
            .keys()
        {
            assert!(ids.contains(format!("schema-{name}").as_str()), "{name}");
        }
    }

    #[test]
    fn its_links_lead_somewhere_and_it_needs_no_script() {
        let html = render().unwrap();
        let ids = attributes(&html, "id");
        let apart: BTreeSet<&str> = ids.iter().copied().collect();
        assert_eq!(ids.len(), apart.len(), "an id is there twice");
        let links = attributes(&html, "href");
        let within: Vec<&str> = links.iter().filter_map(|l| l.strip_prefix('#')).collect();
        assert!(within.len() > 50, "{}", within.len());
        for id in within {
            assert!(apart.contains(id), "#{id}");
        }
        // The policy allows neither, and nothing from other hosts.
        for unwanted in ["<script", "style=", "<style", "://cdn"] {
            assert!(!html.contains(unwanted), "{unwanted}");
        }
        assert!(!links.iter().any(|link| link.starts_with("http")));
        for pair in ["section", "details", "dl", "pre", "code", "p", "a"] {
            let count = |tag: String| html.matches(&tag).count();
            let open = count(format!("<{pair}>")) + count(format!("<{pair} "));
            assert_eq!(open, count(format!("</{pair}>")), "{pair}");
        }
    }
}
