//! The text in which a volume group describes itself: `name = value` and `name { ... }`, where values are numbers, quoted
//! texts and lists of both.

/// Levels of sections and lists.
const DEEPEST: usize = 8;

/// What stands behind a name.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Number(i64),
    Text(String),
    List(Vec<Value>),
    Section(Section),
}

/// Names and what they stand for, in order.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Section(Vec<(String, Value)>);

impl IntoIterator for Section {
    type Item = (String, Value);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl Section {
    fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    pub fn number(&self, name: &str) -> Option<u64> {
        match self.get(name)? {
            Value::Number(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        match self.get(name)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn list(&self, name: &str) -> Option<&[Value]> {
        match self.get(name)? {
            Value::List(list) => Some(list),
            _ => None,
        }
    }

    /// The texts of a list.
    pub fn texts(&self, name: &str) -> impl Iterator<Item = &str> {
        self.list(name).unwrap_or_default().iter().filter_map(|value| match value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    pub fn section(&self, name: &str) -> Option<&Section> {
        match self.get(name)? {
            Value::Section(section) => Some(section),
            _ => None,
        }
    }

    /// The sections in it, with their names.
    pub fn sections(&self) -> impl Iterator<Item = (&str, &Section)> {
        self.0.iter().filter_map(|(name, value)| match value {
            Value::Section(section) => Some((name.as_str(), section)),
            _ => None,
        })
    }
}

/// Reads a description.
pub(super) fn parse(text: &str) -> Result<Section, String> {
    let mut parser = Parser { text, at: 0 };
    let section = parser.section(0)?;
    if parser.at < text.len() { Err(parser.wrong()) } else { Ok(section) }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn wrong(&self) -> String {
        format!("its description makes no sense at byte {}", self.at)
    }

    /// Passes over what means nothing; the next character.
    fn peek(&mut self) -> Option<char> {
        loop {
            let rest = &self.text[self.at..];
            let blank = rest.len() - rest.trim_start().len();
            self.at += blank;
            let rest = &rest[blank..];
            if !rest.starts_with('#') {
                return rest.chars().next();
            }
            self.at += rest.find('\n').unwrap_or(rest.len());
        }
    }

    fn take(&mut self, wanted: char) -> bool {
        let is_it = self.peek() == Some(wanted);
        if is_it {
            self.at += wanted.len_utf8();
        }
        is_it
    }

    /// The longest piece from here on of characters that fit.
    fn word(&mut self, fits: impl Fn(char) -> bool) -> Result<&'a str, String> {
        self.peek();
        let rest = &self.text[self.at..];
        let len = rest.find(|c| !fits(c)).unwrap_or(rest.len());
        if len == 0 {
            return Err(self.wrong());
        }
        self.at += len;
        Ok(&rest[..len])
    }

    fn section(&mut self, depth: usize) -> Result<Section, String> {
        let mut section = Section::default();
        if depth > DEEPEST {
            return Err(self.wrong());
        }
        while !matches!(self.peek(), None | Some('}')) {
            let name = self.word(|c| c.is_ascii_alphanumeric() || "+_.-/@:".contains(c))?.to_owned();
            let value = if self.take('{') {
                let inner = self.section(depth + 1)?;
                if !self.take('}') {
                    return Err(self.wrong());
                }
                Value::Section(inner)
            } else if self.take('=') {
                self.value(depth)?
            } else {
                return Err(self.wrong());
            };
            section.0.push((name, value));
        }
        Ok(section)
    }

    fn value(&mut self, depth: usize) -> Result<Value, String> {
        if depth > DEEPEST {
            return Err(self.wrong());
        }
        if self.take('[') {
            let mut list = Vec::new();
            while !self.take(']') {
                if !list.is_empty() && !self.take(',') {
                    return Err(self.wrong());
                }
                list.push(self.value(depth + 1)?);
            }
            return Ok(Value::List(list));
        }
        if self.take('"') {
            let mut text = String::new();
            let mut chars = self.text[self.at..].char_indices();
            while let Some((at, c)) = chars.next() {
                match c {
                    '"' => {
                        self.at += at + 1;
                        return Ok(Value::Text(text));
                    }
                    '\\' => text.extend(chars.next().map(|(_, c)| c)),
                    c => text.push(c),
                }
            }
            return Err(self.wrong());
        }
        // Fractions are of no interest here.
        let word = self.word(|c| c.is_ascii_digit() || "+-.".contains(c))?;
        let number = word.split('.').next().unwrap_or_default().parse().map_err(|_| self.wrong())?;
        Ok(Value::Number(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description() {
        let text = "# made by hand\nvg { # the group\n\tid = \"a\\\"b\"\n\tseqno=7\n\tlist = [\"x\", -3, 1.5]\n\tempty = []\n\
                    \tinner {\n\t\tk = 1\n\t}\n}\nversion = 1\n";
        let all = parse(text).unwrap();
        let vg = all.section("vg").unwrap();
        assert_eq!((vg.text("id"), vg.number("seqno")), (Some("a\"b"), Some(7)));
        assert_eq!(vg.list("list").unwrap()[1..], [Value::Number(-3), Value::Number(1)]);
        assert_eq!(vg.texts("list").collect::<Vec<_>>(), ["x"]);
        assert_eq!(vg.section("inner").unwrap().number("k"), Some(1));
        assert_eq!((vg.list("empty").unwrap().len(), all.number("version")), (0, Some(1)));
    }

    #[test]
    fn what_is_no_description() {
        for text in ["a", "a =", "a = [1", "a { b = 1", "a = \"x", "}", "a = 99999999999999999999", "= 1", "a = [1 2]"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse(&"a { ".repeat(100_000)).is_err());
        assert!(parse(&format!("a = {}", "[".repeat(100_000))).is_err());
    }
}
