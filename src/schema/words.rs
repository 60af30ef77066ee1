//! Words of a shell: quoting one for a log line, splitting a line into them, and the lists of PVE's files.

/// The word as it must be typed in a shell; plain words stay as they are.
///
/// An equals sign is quoted too, as the real program does: `--prune-backups 'keep-all=1'`.
pub fn shell_quote(word: &str) -> String {
    if word.is_empty() {
        return "''".to_owned();
    }
    if word.chars().all(|c| c.is_alphanumeric() || "_!%+,-./:@^".contains(c)) {
        return word.to_owned();
    }
    let quoted = format!("'{}'", word.replace('\'', r"'\''"));
    // A quote at an end leaves an empty pair there: '' is dropped.
    let quoted = quoted.strip_prefix("''").unwrap_or(&quoted);
    quoted.strip_suffix("''").unwrap_or(quoted).to_owned()
}

/// The items of a list separated by commas, semicolons or white space.
pub fn split_list(text: &str) -> Vec<String> {
    text.split(|c: char| c == ',' || c == ';' || c == '\0' || c.is_whitespace())
        .filter(|item| !item.is_empty())
        .map(str::to_owned)
        .collect()
}

/// The words of a line with single quotes, double quotes and backslashes; nothing at all when a quote is not closed.
pub fn split_words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        Some('\'') => break,
                        Some(c) => word.push(c),
                        None => return Vec::new(),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        Some('"') => break,
                        Some('\\') => match chars.next() {
                            Some(c @ ('"' | '\\')) => word.push(c),
                            Some(c) => word.extend(['\\', c]),
                            None => return Vec::new(),
                        },
                        Some(c) => word.push(c),
                        None => return Vec::new(),
                    }
                }
            }
            '\\' => word.get_or_insert_default().extend(chars.next()),
            c if c.is_whitespace() => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_what_a_shell_would_read_differently() {
        assert_eq!(shell_quote("/root/hook.pl"), "/root/hook.pl");
        assert_eq!(shell_quote("a@example.com,root"), "a@example.com,root");
        assert_eq!(shell_quote("keep-all=1"), "'keep-all=1'");
        assert_eq!(shell_quote("*.log"), "'*.log'");
        assert_eq!(shell_quote(""), "''");
        assert_eq!(shell_quote("it's"), r"'it'\''s'");
        assert_eq!(shell_quote("'x"), r"\''x'");
    }

    #[test]
    fn splits_words() {
        assert_eq!(split_words(r#""/a b" '/c d' /e\ f"#), ["/a b", "/c d", "/e f"]);
        assert!(split_words("\"/a b").is_empty());
        assert_eq!(split_list("a,b;c d"), ["a", "b", "c", "d"]);
    }
}
