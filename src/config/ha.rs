//! `/etc/pve/ha/resources.cfg`: the guests that the cluster keeps running.

use super::sections::Sections;
use crate::schema::Vmid;

/// The guests under high availability.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HaResources {
    sections: Sections,
}

impl HaResources {
    /// Where the file lies.
    pub const PATH: &'static str = "/etc/pve/ha/resources.cfg";

    /// Reads the text of the file; an absent file is an empty one.
    pub fn parse(text: &str) -> Self {
        Self { sections: Sections::parse(text, |kind, id| (kind.to_owned(), id.to_owned())) }
    }

    /// Whether guest `vmid`, VM or container, is to run: then whoever shuts it down works against the cluster.
    pub fn keeps_running(&self, vmid: Vmid) -> bool {
        let id = vmid.to_string();
        // `started` is the default, `enabled` its name in old files; stopped, disabled and ignored guests may be switched off.
        let is_on = |state: Option<&str>| matches!(state, None | Some("started" | "enabled"));
        self.sections.sections.iter().any(|section| {
            matches!(section.kind.as_str(), "vm" | "ct") && section.id == id && is_on(section.get("state"))
        })
    }
}
