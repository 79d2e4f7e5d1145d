//! Rules that name applications, from a TOML file:
//!
//! ```toml
//! # The first rule that fits names the application.
//! [[app]]
//! name = "billing"
//! unit = "billing-*.service"
//!
//! [[app]]
//! name = "{executable}"
//! user = "batch"
//! ```
//!
//! All conditions of a rule have to fit, and all placeholders of its name need a value.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flow::NAME_BYTES_MAX;
use serde::Deserialize;

use super::facts::Facts;

/// The rules without a file.
const DEFAULT: &str = r#"
[[app]]
name = "{label:app.kubernetes.io/name}"
[[app]]
name = "{label:app}"
[[app]]
name = "{workload}"
[[app]]
name = "{container}"
[[app]]
name = "{unit}"
[[app]]
name = "{executable}"
"#;

/// The error of a file of rules.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", path.display())]
pub(in super::super) struct RulesError {
    path: PathBuf,
    why: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    app: Vec<RuleText>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleText {
    name: String,
    unit: Option<String>,
    container: Option<String>,
    pod: Option<String>,
    executable: Option<String>,
    user: Option<String>,
    port: Option<u16>,
}

/// What a rule may ask about.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fact {
    Unit,
    Container,
    Pod,
    Workload,
    Namespace,
    Label(String),
    Executable,
    User,
    Port,
    Host,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Fact(Fact),
}

#[derive(Clone, Debug)]
struct Rule {
    name: Vec<Part>,
    /// Patterns, in which `*` stands for any text.
    conditions: Vec<(Fact, String)>,
}

/// All rules, in order.
#[derive(Debug)]
pub(super) struct Rules {
    rules: Vec<Rule>,
    host: String,
    /// The name if the first rule gives it to each application of this host.
    constant: Option<Arc<str>>,
}

/// The outcome for one socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) enum Verdict {
    Name(Arc<str>),
    /// A rule asks about the process, which was not looked for.
    NeedsProcess,
    NoRule,
}

impl Verdict {
    pub(in super::super) fn into_name(self) -> Option<Arc<str>> {
        match self {
            Verdict::Name(name) => Some(name),
            Verdict::NeedsProcess | Verdict::NoRule => None,
        }
    }
}

impl Rules {
    pub(super) fn open(path: Option<&Path>) -> Result<Rules, RulesError> {
        let error = |why: String| RulesError {
            path: path.unwrap_or(Path::new("default rules")).to_owned(),
            why,
        };
        let text = match path {
            Some(path) => {
                std::fs::read_to_string(path).map_err(|e: io::Error| error(e.to_string()))?
            }
            None => DEFAULT.to_owned(),
        };
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Rules::parse(&text, host.trim()).map_err(error)
    }

    fn parse(text: &str, host: &str) -> Result<Rules, String> {
        let file: File = toml::from_str(text).map_err(|error| error.to_string())?;
        if file.app.is_empty() {
            return Err("it has no rule: add one that begins with [[app]]".into());
        }
        let rules = file.app.into_iter().map(Rule::parse);
        let mut rules = Rules {
            rules: rules.collect::<Result<_, _>>()?,
            host: host.to_owned(),
            constant: None,
        };
        let is_constant = |part: &Part| matches!(part, Part::Text(_) | Part::Fact(Fact::Host));
        if let Some(first) = rules.rules.first()
            && first.conditions.is_empty()
            && first.name.iter().all(is_constant)
            && let Verdict::Name(name) = rules.name_by(first, &Facts::default(), true)
        {
            rules.constant = Some(name);
        }
        Ok(rules)
    }

    /// The name that does not depend on the socket, if the first rule gives one.
    pub(super) fn constant(&self) -> Option<&Arc<str>> {
        self.constant.as_ref()
    }

    /// Names a socket, without its process.
    pub(super) fn name(&self, facts: &Facts) -> Verdict {
        self.first(facts, false)
    }

    /// Names a socket, whose process was looked for.
    pub(super) fn name_finally(&self, facts: &Facts) -> Verdict {
        self.first(facts, true)
    }

    fn first(&self, facts: &Facts, is_final: bool) -> Verdict {
        let verdicts = self
            .rules
            .iter()
            .map(|rule| self.name_by(rule, facts, is_final));
        let mut verdicts = verdicts.filter(|verdict| *verdict != Verdict::NoRule);
        verdicts.next().unwrap_or(Verdict::NoRule)
    }

    fn name_by(&self, rule: &Rule, facts: &Facts, is_final: bool) -> Verdict {
        let mut needs_process = false;
        let mut value = |fact: &Fact| {
            let value = self.value(fact, facts);
            // The control group is also found by the process.
            let is_by_process =
                *fact == Fact::Executable || facts.cgroup.is_none() && fact.is_of_cgroup();
            needs_process |= value.is_none() && is_by_process && !is_final;
            value
        };
        let mut fits = true;
        for (fact, pattern) in &rule.conditions {
            match value(fact) {
                Some(value) => fits &= matches(pattern, &value),
                None => fits = false,
            }
        }
        let mut name = String::new();
        for part in &rule.name {
            match part {
                Part::Text(text) => name += text,
                Part::Fact(fact) => match value(fact) {
                    Some(value) => name += &value,
                    None => fits = false,
                },
            }
        }
        match fits && !name.is_empty() {
            _ if needs_process => Verdict::NeedsProcess,
            true => Verdict::Name(shorten(&name).into()),
            false => Verdict::NoRule,
        }
    }

    fn value(&self, fact: &Fact, facts: &Facts) -> Option<String> {
        let cgroup = facts.cgroup.as_deref();
        let pod = || cgroup.and_then(|cgroup| cgroup.pod.as_ref());
        match fact {
            Fact::Unit => cgroup?
                .unit
                .clone()
                .map(|unit| match unit.strip_suffix(".service") {
                    Some(name) => name.to_owned(),
                    None => unit,
                }),
            Fact::Container => cgroup?.container.clone(),
            Fact::Pod => Some(pod()?.name.clone()),
            Fact::Workload => Some(pod()?.workload().to_owned()),
            Fact::Namespace => Some(pod()?.namespace.clone()),
            Fact::Label(key) => pod()?.labels.get(key).cloned(),
            Fact::Executable => {
                let executable = &facts.process.as_ref()?.executable;
                Some(executable.file_name()?.to_string_lossy().into_owned())
            }
            Fact::User => facts.user.as_deref().map(str::to_owned),
            Fact::Port => facts.port.map(|port| port.to_string()),
            Fact::Host => Some(self.host.clone()),
        }
    }
}

impl Fact {
    fn parse(text: &str) -> Option<Fact> {
        Some(match text {
            "unit" => Fact::Unit,
            "container" => Fact::Container,
            "pod" => Fact::Pod,
            "workload" => Fact::Workload,
            "namespace" => Fact::Namespace,
            "executable" => Fact::Executable,
            "user" => Fact::User,
            "port" => Fact::Port,
            "host" => Fact::Host,
            text => Fact::Label(text.strip_prefix("label:")?.to_owned()),
        })
    }

    fn is_of_cgroup(&self) -> bool {
        matches!(
            self,
            Fact::Unit
                | Fact::Container
                | Fact::Pod
                | Fact::Workload
                | Fact::Namespace
                | Fact::Label(_)
        )
    }
}

impl Rule {
    fn parse(text: RuleText) -> Result<Rule, String> {
        let conditions = [
            (
                Fact::Unit,
                text.unit
                    .map(|unit| unit.trim_end_matches(".service").to_owned()),
            ),
            (Fact::Container, text.container),
            (Fact::Pod, text.pod),
            (Fact::Executable, text.executable),
            (Fact::User, text.user),
            (Fact::Port, text.port.map(|port| port.to_string())),
        ];
        let conditions = conditions
            .into_iter()
            .filter_map(|(fact, pattern)| Some((fact, pattern?)));
        Ok(Rule {
            name: parse_name(&text.name)?,
            conditions: conditions.collect(),
        })
    }
}

fn parse_name(text: &str) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        let (fact, after) = after
            .split_once('}')
            .ok_or_else(|| format!("name {text:?}: a {{ has no }}"))?;
        let known =
            "unit, container, pod, workload, namespace, label:KEY, executable, user, port and host";
        let fact = Fact::parse(fact)
            .ok_or_else(|| format!("name {text:?}: {{{fact}}} is not known; {known} are"))?;
        if !before.is_empty() {
            parts.push(Part::Text(before.to_owned()));
        }
        parts.push(Part::Fact(fact));
        rest = after;
    }
    if !rest.is_empty() {
        parts.push(Part::Text(rest.to_owned()));
    }
    match parts.is_empty() {
        true => Err("name: it is empty".into()),
        false => Ok(parts),
    }
}

/// Whether `text` fits `pattern`, in which `*` stands for any text.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(mut text) = text.strip_prefix(first) else {
        return false;
    };
    let mut pieces: Vec<&str> = rest.split('*').collect();
    let last = pieces.pop().unwrap_or_default();
    for piece in pieces {
        let Some(at) = text.find(piece) else {
            return false;
        };
        text = &text[at + piece.len()..];
    }
    text.ends_with(last)
}

/// At most as long as the service allows.
fn shorten(name: &str) -> &str {
    let mut end = name.len().min(NAME_BYTES_MAX);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    &name[..end]
}

#[cfg(test)]
mod tests {
    use super::super::facts::{CgroupFacts, PodFacts, Process};
    use super::*;

    fn of_unit(unit: &str) -> Facts {
        let cgroup = CgroupFacts {
            unit: Some(unit.into()),
            ..CgroupFacts::default()
        };
        Facts {
            cgroup: Some(Arc::new(cgroup)),
            port: Some(443),
            ..Facts::default()
        }
    }

    fn with_process(facts: Facts, executable: &str) -> Facts {
        let process = Process {
            executable: executable.into(),
            cgroup: String::new(),
        };
        Facts {
            process: Some(process),
            ..facts
        }
    }

    #[test]
    fn default_rules_prefer_what_says_most() {
        let rules = Rules::parse(DEFAULT, "host-7").unwrap();
        let name = |facts: &Facts| rules.name(facts).into_name();
        assert_eq!(name(&of_unit("nginx.service")).as_deref(), Some("nginx"));
        let mut pod = PodFacts {
            namespace: "shop".into(),
            name: "checkout-7c6d9f8b5b-x2b4z".into(),
            ..PodFacts::default()
        };
        let of_pod = |pod: &PodFacts| Facts {
            cgroup: Some(Arc::new(CgroupFacts {
                container: Some("0011".into()),
                pod: Some(pod.clone()),
                unit: None,
            })),
            ..Facts::default()
        };
        assert_eq!(name(&of_pod(&pod)).as_deref(), Some("checkout"));
        pod.labels.insert("app".into(), "cart".into());
        assert_eq!(name(&of_pod(&pod)).as_deref(), Some("cart"));
        // A process that a user has started: its executable.
        let session = Facts {
            cgroup: Some(Arc::default()),
            ..Facts::default()
        };
        assert_eq!(rules.name(&session), Verdict::NeedsProcess);
        let session = with_process(session, "/usr/bin/curl");
        assert_eq!(
            rules.name_finally(&session).into_name().as_deref(),
            Some("curl")
        );
        assert_eq!(rules.name_finally(&Facts::default()), Verdict::NoRule);
        assert_eq!(rules.constant(), None);
    }

    #[test]
    fn all_conditions_have_to_fit() {
        let text = r#"
            [[app]]
            name = "web-{port}-{host}"
            unit = "nginx*.service"
            port = 443
            user = "www-*"

            [[app]]
            name = "{executable}"
            executable = "py*"
        "#;
        let rules = Rules::parse(text, "host-7").unwrap();
        let mut facts = of_unit("nginx@2.service");
        facts.user = Some("www-data".into());
        assert_eq!(
            rules.name(&facts).into_name().as_deref(),
            Some("web-443-host-7")
        );
        facts.port = Some(80);
        assert_eq!(rules.name(&facts), Verdict::NeedsProcess);
        let python = with_process(facts.clone(), "/usr/bin/python3.11");
        assert_eq!(
            rules.name_finally(&python).into_name().as_deref(),
            Some("python3.11")
        );
        let other = with_process(facts, "/usr/bin/perl");
        assert_eq!(rules.name_finally(&other), Verdict::NoRule);
    }

    #[test]
    fn one_name_for_a_host() {
        let rules = Rules::parse("[[app]]\nname = \"shop-{host}\"\n", "host-7").unwrap();
        assert_eq!(rules.constant().map(|name| &**name), Some("shop-host-7"));
        assert_eq!(
            rules.name(&Facts::default()).into_name().as_deref(),
            Some("shop-host-7")
        );
    }

    #[test]
    fn patterns() {
        for (pattern, text, fits) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("a*", "ab", true),
            ("*b", "ab", true),
            ("a*c*e", "abcde", true),
            ("a*c*e", "abde", false),
            ("*", "", true),
            ("ab*ba", "aba", false),
        ] {
            assert_eq!(matches(pattern, text), fits, "{pattern} {text}");
        }
    }

    #[test]
    fn errors_say_what_is_wrong() {
        for (text, why) in [
            ("", "it has no rule"),
            ("[[app]]\nunit = \"a\"\n", "missing field `name`"),
            (
                "[[app]]\nname = \"a\"\nuint = \"a\"\n",
                "unknown field `uint`",
            ),
            ("[[app]]\nname = \"{uint}\"\n", "{uint} is not known; unit,"),
            ("[[app]]\nname = \"{unit\"\n", "a { has no }"),
            ("[[app]]\nname = \"\"\n", "it is empty"),
        ] {
            let error = Rules::parse(text, "h").unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
