//! The pages of the documentation name every option and every error there is, and their links lead somewhere.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

use regex::Regex;
use vzkeep::schema::tables::VZDUMP;

/// Texts that say nothing alone: causes that stand behind a sentence that is on the page, and sentences that are only a name
/// before a cause that is there.
const INNER: [&str; 5] =
    ["cancelled", "value does not look like a valid VM ID", "VM …: …", "guest …: …", "… … failed: …"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(root().join(path)).unwrap()
}

/// All files below `dir` with this ending.
fn files(dir: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, ending));
        } else if path.extension().is_some_and(|extension| extension == ending) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The pieces of a page between backquotes.
fn quoted(page: &str) -> Vec<String> {
    let span = Regex::new("`([^`\n]+)`").unwrap();
    span.captures_iter(page).map(|found| found[1].to_owned()).collect()
}

/// The lines of all error texts in the sources of a room, with `…` for what is filled in.
fn error_texts(room: &Path) -> Vec<(PathBuf, String)> {
    let attribute = Regex::new(r#"#\[error\(\s*"((?:[^"\\]|\\(?s:.))*)""#).unwrap();
    let broken = Regex::new(r"\\\n\s*").unwrap();
    let filled = Regex::new(r"\{[^{}]*\}").unwrap();
    let mut texts = Vec::new();
    for file in files(room, "rs") {
        let source = std::fs::read_to_string(&file).unwrap();
        for found in attribute.captures_iter(&source) {
            let text = broken.replace_all(&found[1], "").replace("\\\"", "\"").replace("\\n", "\n");
            let text = filled.replace_all(&text, "…").into_owned();
            let says_something = |line: &&str| line.chars().any(char::is_alphabetic);
            texts.extend(text.lines().filter(says_something).map(|line| (file.clone(), line.to_owned())));
        }
    }
    texts
}

#[test]
fn every_error_is_explained() {
    let page = read("docs/TROUBLESHOOTING.md");
    // A text on the page may have `…` for more than the source has, but it has to say something.
    let patterns: Vec<Regex> = quoted(&page)
        .iter()
        .filter(|text| {
            text.split('…').map(|part| part.chars().filter(|c| c.is_alphabetic()).count()).sum::<usize>() > 5
        })
        .map(|text| {
            let parts: Vec<_> = text.split('…').map(regex::escape).collect();
            Regex::new(&format!("^{}$", parts.join(".+"))).unwrap()
        })
        .collect();
    let rooms = [
        "job",
        "guest",
        "storage",
        "transfer",
        "qemu",
        "schema",
        "config",
        "restore",
        "image",
        "archive",
        "host",
        "notify",
        "schedule",
        "filesystem",
        "mount",
    ];
    let texts: Vec<_> = rooms.iter().flat_map(|room| error_texts(&root().join("src").join(room))).collect();
    assert!(texts.len() > 150, "only {} errors were found in the sources", texts.len());
    let missing: Vec<_> = texts
        .iter()
        .filter(|(_, text)| !INNER.contains(&text.as_str()) && !patterns.iter().any(|pattern| pattern.is_match(text)))
        .map(|(file, text)| format!("{}: {text}", file.strip_prefix(root()).unwrap().display()))
        .collect();
    assert!(missing.is_empty(), "docs/TROUBLESHOOTING.md does not have\n{}", missing.join("\n"));
    for text in INNER {
        assert!(texts.iter().any(|(_, found)| found == text), "no error says '{text}' any more");
    }
}

#[test]
fn every_option_is_compared() {
    let page = read("docs/COMPATIBILITY.md");
    let rows: Vec<_> = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    for opt in VZDUMP.options.iter().filter(|opt| opt.name != "vmid") {
        let name = format!("--{}", opt.name);
        assert!(rows.contains(&name.as_str()), "docs/COMPATIBILITY.md has no row for {name}");
    }
    assert!(rows.contains(&"<vmid> ..."));
    for name in rows.iter().filter_map(|row| row.strip_prefix("--")) {
        assert!(VZDUMP.option(name).is_some(), "docs/COMPATIBILITY.md has a row for --{name}, which is no option");
    }
}

#[test]
fn links_lead_somewhere() {
    let link = Regex::new(r"\]\(([^)#\s]+)(?:#[^)]*)?\)").unwrap();
    let page_name = Regex::new(r"(?:docs/|hooks/)?[A-Za-z_-]+\.md").unwrap();
    let mut pages = files(&root().join("docs"), "md");
    for dir in [root(), root().join("hooks")] {
        let here = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        pages.extend(here.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    }
    for page in pages {
        let text = std::fs::read_to_string(&page).unwrap();
        let dir = page.parent().unwrap();
        let links = link.captures_iter(&text).map(|found| found[1].to_owned()).filter(|target| !target.contains("://"));
        // Pages are also named between backquotes: relative to the page, or to the top.
        let named =
            quoted(&text).into_iter().filter(|name| page_name.find(name).is_some_and(|m| m.len() == name.len()));
        for target in links.chain(named) {
            let exists = dir.join(&target).exists() || root().join(&target).exists();
            assert!(exists, "{}: '{target}' is not there", page.display());
        }
    }
    let source = files(&root().join("src"), "rs").into_iter().map(|file| std::fs::read_to_string(file).unwrap());
    for text in source {
        for name in page_name.find_iter(&text).map(|found| found.as_str()).filter(|name| name.starts_with("docs/")) {
            assert!(root().join(name).exists(), "the sources name '{name}', which is not there");
        }
    }
}
