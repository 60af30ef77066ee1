//! One table per command line: option names, types, ranges, formats, defaults and words. Everything that talks about
//! options is made from it: the parser, the checks with their error texts, `help`, the man page, shell completion, and the
//! keys of `/etc/vzdump.conf`.
//!
//! Nothing here does I/O. A command line becomes [`Params`] (checked words, still text), and those become a typed
//! structure ([`VzdumpOptions`], [`RestoreOptions`], [`ContainerRestoreOptions`]) together with the defaults.

mod api;
mod check;
mod complete;
mod getopt;
mod keep;
mod man;
pub mod notes;
mod params;
mod pct_restore;
mod property;
mod request;
mod restore;
pub mod size;
pub mod tables;
mod usage;
mod vmid;
mod vzdump;
pub mod words;

pub use check::{check_value, parse_bool};
pub use complete::{Shell, Source, completion};
pub use keep::Keep;
pub use man::man_page;
pub use params::{Params, UsageError, parse};
pub use pct_restore::ContainerRestoreOptions;
pub use property::Properties;
pub use request::VzdumpRequest;
pub use restore::RestoreOptions;
pub use usage::{help, usage_line};
pub use vmid::{Vmid, VmidError};
pub use vzdump::{
    Compress, Fleecing, MailNotification, Mode, NotificationMode, OptionsError, Performance, VzdumpOptions,
};

/// What a word looks like, beyond being text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Any single line.
    Any,
    /// Any text, of several lines, too.
    Lines,
    /// The path of a file; empty where none is wanted.
    File,
    /// The path of a directory.
    Directory,
    /// An archive of a virtual machine: a path, a volume, or `-`.
    Archive,
    /// One of a container.
    ContainerArchive,
    /// The name of a pool.
    Pool,
    /// A storage's name.
    StorageId,
    /// A guest's number, 100 to 999999999.
    Vmid,
    /// A node's name: one label of a host name.
    Node,
    /// A mail address or the name of a user.
    Mail,
    /// Something without white space.
    Token,
}

/// The type of an option's value.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// On or off; on the command line the value may be left out.
    Bool,
    /// A whole number within bounds.
    Integer {
        /// Smallest value allowed.
        min: Option<i64>,
        /// Largest value allowed.
        max: Option<i64>,
    },
    /// A number that is not negative, whole or not.
    Number,
    /// One word.
    Text(Format),
    /// Several words, separated by commas, semicolons or white space; on the command line the option may also repeat.
    List(Format),
    /// One value each time the option is given, taken as it is.
    Array,
    /// One of these words, in the order error messages list them.
    Enum(&'static [&'static str]),
    /// Comma-separated `key=value` pairs.
    Property(&'static PropertyString),
}

/// An option, or a key of a property string.
#[derive(Debug)]
pub struct Opt {
    /// Name without dashes in front.
    pub name: &'static str,
    /// Type of the value.
    pub kind: Kind,
    /// What holds when neither the command line nor a configuration file says anything.
    pub default: Option<&'static str>,
    /// How `help` shows the value, where the type alone would say too little.
    pub typetext: Option<&'static str>,
    /// What it does, in the words of the manual.
    pub description: &'static str,
    /// Another option that must be given too.
    pub requires: Option<&'static str>,
    /// Longest text allowed, in characters.
    pub max_length: Option<usize>,
    /// What to use instead, for an option that still works but should not be used any more.
    pub deprecated: Option<&'static str>,
}

impl Opt {
    /// An option without default or further conditions.
    pub const fn new(name: &'static str, kind: Kind, description: &'static str) -> Self {
        Self {
            name,
            kind,
            description,
            default: None,
            typetext: None,
            requires: None,
            max_length: None,
            deprecated: None,
        }
    }

    /// The description, after a word about what to use instead where the option is deprecated.
    pub fn full_description(&self) -> String {
        let advice = self.deprecated.map(|instead| format!("Deprecated: {instead} ")).unwrap_or_default();
        advice + self.description
    }

    /// The same with a default.
    pub const fn default(mut self, default: &'static str) -> Self {
        self.default = Some(default);
        self
    }

    /// The same with its own text for the value.
    pub const fn typetext(mut self, text: &'static str) -> Self {
        self.typetext = Some(text);
        self
    }

    /// The same, needing another option beside it.
    pub const fn requires(mut self, other: &'static str) -> Self {
        self.requires = Some(other);
        self
    }

    /// The same, deprecated; the text says what to use instead.
    pub const fn deprecated(mut self, instead: &'static str) -> Self {
        self.deprecated = Some(instead);
        self
    }

    /// The same with a longest text.
    pub const fn max_length(mut self, characters: usize) -> Self {
        self.max_length = Some(characters);
        self
    }
}

/// The shape of a property string.
#[derive(Debug)]
pub struct PropertyString {
    /// The key whose name may be left out.
    pub default_key: Option<&'static str>,
    /// All keys, by name.
    pub keys: &'static [Opt],
    /// A condition between keys; the error is one sentence.
    pub check: Option<PropertyCheck>,
}

/// A condition between the keys of a property string.
pub type PropertyCheck = fn(&Properties) -> Result<(), String>;

impl PropertyString {
    /// The key named `name`.
    pub fn key(&self, name: &str) -> Option<&'static Opt> {
        self.keys.iter().find(|key| key.name == name)
    }
}

/// What a command takes besides options.
#[derive(Debug, Clone, Copy)]
pub enum Positional {
    /// Any number of words that together make the parameter of this name.
    Rest(&'static Opt),
    /// Exactly these words, in this order.
    Words(&'static [Opt]),
}

/// One command line.
#[derive(Debug)]
pub struct Command {
    /// Name of the program.
    pub name: &'static str,
    /// One line of what it does.
    pub summary: &'static str,
    /// Words that are not options.
    pub positional: Positional,
    /// Options, sorted by name.
    pub options: &'static [Opt],
    /// What the man page says before the arguments and after the options, as roff.
    pub manual: (&'static str, &'static str),
}

impl Command {
    /// The option or positional word named `name`.
    pub fn option(&self, name: &str) -> Option<&'static Opt> {
        self.positionals().iter().chain(self.options).find(|opt| opt.name == name)
    }

    /// The options whose names can be completed: not those that need a number.
    pub fn completable(&self) -> impl Iterator<Item = &'static Opt> {
        self.options.iter().filter(|opt| !opt.name.ends_with(']'))
    }

    /// The positional words.
    pub fn positionals(&self) -> &'static [Opt] {
        match self.positional {
            Positional::Rest(opt) => std::slice::from_ref(opt),
            Positional::Words(words) => words,
        }
    }
}

#[cfg(test)]
mod tests;
