//! The block graph of a QEMU process, as far as it is ours: which of our nodes exist, who sits on top of them, what
//! lies below. From `x-debug-query-block-graph`, the only command that names children.

use std::collections::HashMap;

use serde_json::Value;

use super::names::PREFIX;

/// One of our nodes.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct OurNode {
    pub(super) name: String,
    /// Anything at all uses this node: another node, a device, an export, a job.
    pub(super) used: bool,
    /// The node below it by the edge `file`.
    pub(super) below: Option<String>,
}

/// Our nodes in an answer to `x-debug-query-block-graph`.
pub(super) fn ours(graph: &Value) -> Vec<OurNode> {
    let list = |key: &str| graph[key].as_array().map_or(&[][..], Vec::as_slice);
    let names: HashMap<u64, &str> = list("nodes")
        .iter()
        .filter(|n| n["type"] == "block-driver")
        .filter_map(|n| Some((n["id"].as_u64()?, n["name"].as_str()?)))
        .collect();
    let mut nodes: Vec<(u64, &str)> =
        names.iter().map(|(id, name)| (*id, *name)).filter(|(_, name)| name.starts_with(PREFIX)).collect();
    nodes.sort_by_key(|(_, name)| *name);
    nodes
        .into_iter()
        .map(|(id, name)| {
            let used = list("edges").iter().any(|e| e["child"] == id);
            let below = list("edges")
                .iter()
                .find(|e| e["parent"] == id && e["name"] == "file")
                .and_then(|e| names.get(&e["child"].as_u64()?))
                .map(|n| (*n).to_owned());
            OurNode { name: name.to_owned(), used, below }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn finds_what_lies_below() {
        let graph = json!({
            "nodes": [
                {"id": 1, "type": "block-driver", "name": "drive-scsi0"},
                {"id": 2, "type": "block-driver", "name": "vzkeep-filter-scsi0"},
                {"id": 3, "type": "block-driver", "name": "vzkeep-snap-scsi0"},
                {"id": 4, "type": "block-driver", "name": "vzkeep-fleece-scsi0"},
                {"id": 5, "type": "block-backend", "name": "vzkeep-not-a-node"},
            ],
            "edges": [
                {"parent": 2, "child": 1, "name": "file"},
                {"parent": 2, "child": 4, "name": "target"},
                {"parent": 3, "child": 2, "name": "file"},
            ],
        });
        let nodes = ours(&graph);
        let summary: Vec<_> = nodes.iter().map(|n| (n.name.as_str(), n.used, n.below.as_deref())).collect();
        assert_eq!(
            summary,
            [
                ("vzkeep-filter-scsi0", true, Some("drive-scsi0")),
                ("vzkeep-fleece-scsi0", true, None),
                ("vzkeep-snap-scsi0", false, Some("vzkeep-filter-scsi0")),
            ]
        );
        assert_eq!(ours(&json!(7)), []);
    }
}
