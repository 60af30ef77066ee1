//! Completion for bash, zsh and fish, made from the table: option names, the words of enumerations, files, and what only
//! the node knows (guests, storages ...), for which the scripts ask `vzkeep complete <source>`.
//!
//! A script offers candidates; it never says that a command line is wrong.

mod bash;
mod fish;
mod zsh;

use super::{Command, Format, Kind, Opt, Positional};

/// A shell there is a completion script for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shell {
    /// GNU bash, with or without the package bash-completion.
    Bash,
    /// The Z shell with its completion system.
    Zsh,
    /// fish.
    Fish,
}

/// Lists only the node knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The numbers of all guests.
    Guests,
    /// The storages.
    Storages,
    /// The pools.
    Pools,
    /// The nodes.
    Nodes,
    /// The archives of virtual machines on storages, as volumes.
    Archives,
    /// Those of containers.
    ContainerArchives,
}

impl Source {
    /// The word after `vzkeep complete`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guests => "guests",
            Self::Storages => "storages",
            Self::Pools => "pools",
            Self::Nodes => "nodes",
            Self::Archives => "archives",
            Self::ContainerArchives => "container-archives",
        }
    }
}

/// The completion script of `command`.
pub fn completion(command: &Command, shell: Shell) -> String {
    match shell {
        Shell::Bash => bash::script(command),
        Shell::Zsh => zsh::script(command),
        Shell::Fish => fish::script(command),
    }
}

/// What can stand for a value.
enum Values {
    /// One of these words.
    Words(Vec<&'static str>),
    /// One of what the node has.
    Ask(Source),
    /// Several of them with commas between.
    AskList(Source),
    /// Pairs of these keys.
    Keys(&'static [Opt]),
    /// A directory.
    Directory,
    /// A file.
    File,
    /// A file or an archive on a storage.
    Archive(Source),
    /// Nothing that could be known.
    Free,
}

fn values(opt: &Opt) -> Values {
    match opt.kind {
        Kind::Bool => Values::Words(vec!["0", "1"]),
        Kind::Enum(words) => Values::Words(words.to_vec()),
        Kind::Property(shape) => Values::Keys(shape.keys),
        Kind::Text(Format::StorageId) => Values::Ask(Source::Storages),
        Kind::Text(Format::Pool) => Values::Ask(Source::Pools),
        Kind::Text(Format::Node) => Values::Ask(Source::Nodes),
        Kind::Text(Format::Vmid) => Values::Ask(Source::Guests),
        Kind::List(Format::Vmid) => Values::AskList(Source::Guests),
        Kind::Text(Format::Directory) => Values::Directory,
        Kind::Text(Format::File) => Values::File,
        Kind::Text(Format::Archive) => Values::Archive(Source::Archives),
        Kind::Text(Format::ContainerArchive) => Values::Archive(Source::ContainerArchives),
        Kind::Text(_) | Kind::List(_) | Kind::Array | Kind::Integer { .. } | Kind::Number => Values::Free,
    }
}

/// What can stand at a word that is no option: the one there is, or the first and the rest.
fn positionals(command: &Command) -> Vec<&'static Opt> {
    match command.positional {
        Positional::Rest(opt) => vec![opt],
        Positional::Words(opts) => opts.iter().collect(),
    }
}

/// The first sentence of a description, short enough for a list.
fn summary(opt: &Opt) -> String {
    let text = opt.full_description();
    let text = text.strip_prefix("Deprecated: ").map_or(text.clone(), |_| format!("{} (deprecated)", opt.description));
    match text.split_once(". ") {
        Some((first, rest)) if !rest.is_empty() && opt.deprecated.is_none() => first.to_owned(),
        _ => text.trim_end_matches('.').to_owned(),
    }
}
