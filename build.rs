//! Bundles and compresses the page's files: one script and one stylesheet, since each request is slow on a phone, and the
//! sample day, which the page loads on request. The service sends the compressed files unchanged.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io::Read;
use std::path::Path;

use flate2::Compression;
use flate2::read::GzEncoder;

const PAGE: &str = "src/http/page";
const SAMPLE_DAY: &str = "data/sample-day.ndjson";
/// Later rules win.
const STYLES: [&str; 5] = [
    "colors.css",
    "frame.css",
    "cards.css",
    "charts.css",
    "media.css",
];
/// The page at `/docs`.
const DOCS: &str = "src/http/docs";
const DOCS_STYLES: [&str; 3] = ["colors.css", "frame.css", "../docs/docs.css"];
/// The module that imports all others.
const MAIN: &str = "page";

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={PAGE}");
    println!("cargo::rerun-if-changed={DOCS}");
    println!("cargo::rerun-if-changed={SAMPLE_DAY}");
    compress("page.css", &styles(&STYLES)?)?;
    compress("docs.css", &styles(&DOCS_STYLES)?)?;
    let mut modules = BTreeMap::new();
    let mut script = String::new();
    join(MAIN, &mut modules, &mut script)?;
    // For tests and the browser's console.
    let names = modules.keys().map(|name| format!("${name} as {name}"));
    script += &format!("export {{ {} }};\n", names.collect::<Vec<_>>().join(", "));
    compress("page.js", &script)?;
    compress("sample-day.ndjson", &read(Path::new(SAMPLE_DAY))?)
}

fn styles(files: &[&str]) -> Result<String> {
    let in_page = |file: &&str| read(&Path::new(PAGE).join(file));
    let styles: Result<Vec<_>> = files.iter().map(in_page).collect();
    Ok(styles?.join("\n"))
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()).into())
}

/// Adds the module `name` to `script`, after those that it imports. It becomes a function that returns its exports, in
/// a constant whose `$` distinguishes it from names within modules. `done` has the modules that were added (true) and
/// those that are being added (false).
fn join(name: &str, done: &mut BTreeMap<String, bool>, script: &mut String) -> Result<()> {
    match done.get(name) {
        Some(true) => return Ok(()),
        Some(false) => return Err(format!("{PAGE}/{name}.js: a cycle of imports").into()),
        None => done.insert(name.to_owned(), false),
    };
    let unknown = |line: &str| format!("{PAGE}/{name}.js: build.rs cannot join this line: {line}");
    let mut body = String::new();
    let mut exports = Vec::new();
    for line in read(&Path::new(PAGE).join(format!("{name}.js")))?.lines() {
        if let Some(import) = line.strip_prefix("import ") {
            // `* as other from './other.js';` or `{ one, two as three } from './other.js';`
            let parts = import
                .strip_suffix(".js';")
                .and_then(|rest| rest.split_once(" from './"));
            let (what, other) = parts.ok_or_else(|| unknown(line))?;
            join(other, done, script)?;
            let what = what.trim_start_matches("* as ").replace(" as ", ": ");
            body += &format!("const {what} = ${other};\n");
        } else if let Some(export) = line.strip_prefix("export ") {
            let word = export.split([' ', '(']).find(|w| !KEYWORDS.contains(w));
            let is_name =
                |w: &&str| *w != "default" && w.chars().all(|c| c.is_alphanumeric() || c == '_');
            let declared = word.filter(is_name).ok_or_else(|| unknown(line))?;
            exports.push(declared.to_owned());
            body += &format!("{export}\n");
        } else {
            body += &format!("{line}\n");
        }
    }
    *script += &format!(
        "const ${name} = (() => {{\n{body}return {{ {} }};\n}})();\n",
        exports.join(", ")
    );
    done.insert(name.to_owned(), true);
    Ok(())
}

/// Keywords before an exported name.
const KEYWORDS: [&str; 5] = ["async", "function", "const", "let", "class"];

fn compress(name: &str, content: &str) -> Result<()> {
    let mut gzip = Vec::new();
    GzEncoder::new(content.as_bytes(), Compression::best()).read_to_end(&mut gzip)?;
    let out = std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?;
    fs::write(Path::new(&out).join(format!("{name}.gz")), gzip)?;
    Ok(())
}
