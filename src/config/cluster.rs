//! What the cluster's file system says of itself, as JSON: `/etc/pve/.vmlist` (which node has which guest) and
//! `/etc/pve/.members` (the cluster and its nodes).

use std::collections::BTreeMap;

use serde_json::Value;

use crate::schema::Vmid;

/// All guests of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Vmlist {
    guests: BTreeMap<Vmid, Residence>,
}

/// Where a guest lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Residence {
    /// The node's name.
    pub node: String,
    /// `qemu` or `lxc`.
    pub kind: String,
}

impl Vmlist {
    /// Where the file lies.
    pub const PATH: &'static str = "/etc/pve/.vmlist";

    /// Reads the text of the file; `None` when it is not such a list as a whole: half of one must not pass for all guests.
    pub fn parse(text: &str) -> Option<Self> {
        let json: Value = serde_json::from_str(text).ok()?;
        let mut list = Self::default();
        for (vmid, guest) in json.get("ids")?.as_object()? {
            let node = guest.get("node")?.as_str()?;
            list.insert(vmid.parse().ok()?, node, guest.get("type")?.as_str()?);
        }
        Some(list)
    }

    /// Notes that `node` has guest `vmid`.
    pub fn insert(&mut self, vmid: Vmid, node: &str, kind: &str) {
        self.guests.insert(vmid, Residence { node: node.to_owned(), kind: kind.to_owned() });
    }

    /// Where guest `vmid` lives.
    pub fn get(&self, vmid: Vmid) -> Option<&Residence> {
        self.guests.get(&vmid)
    }

    /// All guests by number.
    pub fn iter(&self) -> impl Iterator<Item = (Vmid, &Residence)> {
        self.guests.iter().map(|(vmid, residence)| (*vmid, residence))
    }
}

/// Where [`cluster_name`]'s text lies.
pub const MEMBERS_PATH: &str = "/etc/pve/.members";

/// The cluster's name in the text of `.members`; `None` on a node that is in no cluster, or when the text cannot be read.
pub fn cluster_name(members: &str) -> Option<String> {
    let json: Value = serde_json::from_str(members).ok()?;
    Some(json.get("cluster")?.get("name")?.as_str()?.to_owned())
}
