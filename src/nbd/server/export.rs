//! What is served: disks under their names.

use std::sync::Arc;

use crate::image::{Disk, Image};

/// One disk that is served.
pub struct Export {
    pub(super) name: String,
    aliases: Vec<String>,
    pub(super) description: String,
    pub(super) image: Arc<dyn Image>,
    pub(super) disk: Option<Arc<dyn Disk>>,
    pub(super) background: bool,
}

impl Export {
    /// A disk that can only be read.
    pub fn read_only(name: &str, image: Arc<dyn Image>) -> Self {
        let (name, description) = (name.to_owned(), String::new());
        Self { name, aliases: Vec::new(), description, image, disk: None, background: false }
    }

    /// A disk that can be written, too.
    pub fn writable(name: &str, disk: Arc<dyn Disk>) -> Self {
        let image: Arc<dyn Image> = Arc::clone(&disk) as _;
        Self { disk: Some(disk), ..Self::read_only(name, image) }
    }

    /// Another name it is found by; it does not appear in the list.
    #[must_use]
    pub fn alias(mut self, name: &str) -> Self {
        self.aliases.push(name.into());
        self
    }

    /// A text that clients can show.
    #[must_use]
    pub fn description(mut self, text: &str) -> Self {
        self.description = text.into();
        self
    }

    /// Reads of this export give way to those of the others: for a copy of a disk that somebody works with meanwhile.
    #[must_use]
    pub fn background(mut self) -> Self {
        self.background = true;
        self
    }
}

/// All disks that are served.
pub struct Exports {
    pub(super) list: Vec<Export>,
    default: Option<usize>,
}

impl Exports {
    /// These disks. A single one is also found by the empty name.
    pub fn new(list: Vec<Export>) -> Self {
        let default = (list.len() == 1).then_some(0);
        Self { list, default }
    }

    /// The disk called `name` is also found by the empty name; without such a disk none is.
    #[must_use]
    pub fn with_default(mut self, name: &str) -> Self {
        self.default = self.find(name);
        self
    }

    /// The place in the list of the disk a client asked for.
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        let called = |export: &Export| export.name == name || export.aliases.iter().any(|alias| alias == name);
        self.list.iter().position(called).or_else(|| self.default.filter(|_| name.is_empty()))
    }
}
