//! Restore: from an archive to a guest on this node.
