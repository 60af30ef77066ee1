//! The template of a backup's notes: variables `{{guestname}}`, escapes `\n` and `\\`.

use std::sync::LazyLock;

use regex::{Captures, Regex};

static VARIABLE: LazyLock<Regex> = LazyLock::new(|| regex(r"\{\{([^\s{}]+)\}\}"));
static ESCAPE: LazyLock<Regex> = LazyLock::new(|| regex(r"\\(.)"));
static TOKEN: LazyLock<Regex> = LazyLock::new(|| regex(r"\\(.)|\{\{([^\s{}]+)\}\}"));

fn regex(pattern: &'static str) -> Regex {
    Regex::new(pattern).expect("the patterns above are constant and tested")
}

/// What the variables stand for.
#[derive(Debug, Clone, Default)]
pub struct Variables {
    /// The cluster's name, or `standalone node`.
    pub cluster: String,
    /// The guest's name.
    pub guestname: String,
    /// The node's name.
    pub node: String,
    /// The guest's number.
    pub vmid: String,
}

/// Checks a template.
///
/// # Errors
/// What is wrong with it, as printed after `notes-template: ` and `unable to add notes - `.
pub fn verify(template: &str) -> Result<(), String> {
    if template.contains('\n') {
        return Err("contains a line feed".into());
    }
    let at = |byte: usize| template[..byte].chars().count();
    let mut unknown = Vec::new();
    for found in ESCAPE.captures_iter(template) {
        if !matches!(&found[1], "n" | "\\") {
            unknown.push(format!("escape sequence '{}' at char {}", &found[0], at(found.get_match().start())));
        }
    }
    for found in VARIABLE.captures_iter(template) {
        if !matches!(&found[1], "cluster" | "guestname" | "node" | "vmid") {
            // The position is the one the original prints: two behind the name's first character.
            unknown.push(format!("variable '{}' at char {}", &found[1], at(found.get_match().start()) + 4));
        }
    }
    if unknown.is_empty() { Ok(()) } else { Err(format!("found unknown: {}", unknown.join(", "))) }
}

/// The notes a template gives.
///
/// # Errors
/// As [`verify`].
pub fn render(template: &str, variables: &Variables) -> Result<String, String> {
    verify(template)?;
    let replace = |found: &Captures<'_>| match (found.get(1).map(|m| m.as_str()), found.get(2).map(|m| m.as_str())) {
        (Some("n"), _) => "\n".to_owned(),
        (Some(other), _) => other.to_owned(),
        (_, Some("cluster")) => variables.cluster.clone(),
        (_, Some("guestname")) => variables.guestname.clone(),
        (_, Some("node")) => variables.node.clone(),
        _ => variables.vmid.clone(),
    };
    Ok(TOKEN.replace_all(template, replace).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_the_recorded_template() {
        let variables = Variables {
            cluster: "standalone node".into(),
            guestname: "db01".into(),
            node: "pve1".into(),
            vmid: "101".into(),
        };
        let notes = render(r"{{guestname}}\n{{vmid}} on {{node}} {{cluster}}\\x", &variables).unwrap();
        assert_eq!(notes, "db01\n101 on pve1 standalone node\\x");
        assert_eq!(render("{{ guestname }}", &variables).unwrap(), "{{ guestname }}");
    }

    #[test]
    fn names_what_it_does_not_know() {
        assert_eq!(verify("{{bad}}").unwrap_err(), "found unknown: variable 'bad' at char 4");
        assert_eq!(verify(r"a\tb").unwrap_err(), r"found unknown: escape sequence '\t' at char 1");
        assert_eq!(verify("a\nb").unwrap_err(), "contains a line feed");
    }
}
