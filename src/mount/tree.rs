//! The files of a container, packed: a few dozen bytes for each and its name, since there may be millions. What only a
//! member's header tells is noted when somebody asks.

use std::collections::HashMap;

/// The number of a file in the tree; that of the top directory is 0.
pub(super) type Number = u32;

/// The longest name that is shown.
const LONGEST: usize = u16::MAX as usize;
/// Files that are shown at most; about 100 bytes of memory each.
const MOST: usize = 20_000_000;
/// The offset of a directory that is not in the archive, but has files in it.
pub(super) const NOWHERE: u64 = u64::MAX;

/// A file, by what the archive's table has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Node {
    parent: Number,
    /// Where its name is: length and bytes.
    name: u32,
    /// What is in it, a range of `children`.
    first: u32,
    count: u32,
    /// Where its header is in the tar data.
    pub(super) offset: u64,
    /// Bytes of the file.
    pub(super) size: u64,
    /// As `ls -l` has it; `h` for a hard link.
    pub(super) kind: u8,
}

/// Collects files in any order.
pub(super) struct Builder {
    nodes: Vec<Node>,
    names: Vec<u8>,
    /// Directories in directories, by name.
    directories: HashMap<Number, HashMap<Vec<u8>, Number>>,
    /// The directory of the file before: the next one is often in the same.
    last: (Vec<u8>, Number),
    left_out: u64,
    is_full: bool,
}

/// The files, finished.
pub(super) struct Tree {
    nodes: Vec<Node>,
    names: Vec<u8>,
    children: Vec<Number>,
    /// Files that could not be shown, because their name cannot be one.
    pub(super) left_out: u64,
    /// There were more than can be shown.
    pub(super) is_full: bool,
}

impl Builder {
    /// With the top directory.
    pub(super) fn new() -> Self {
        let (directories, last) = (HashMap::new(), (Vec::new(), 0));
        let mut builder = Self { nodes: Vec::new(), names: Vec::new(), directories, last, left_out: 0, is_full: false };
        builder.push(0, b"", b'd', 0, NOWHERE);
        builder
    }

    fn push(&mut self, parent: Number, name: &[u8], kind: u8, size: u64, offset: u64) -> Option<Number> {
        if self.nodes.len() >= MOST {
            self.is_full = true;
            return None;
        }
        let number = Number::try_from(self.nodes.len()).ok()?;
        let at = u32::try_from(self.names.len()).ok()?;
        let len = u16::try_from(name.len()).ok()?;
        self.names.extend_from_slice(&len.to_le_bytes());
        self.names.extend_from_slice(name);
        self.nodes.push(Node { parent, name: at, first: 0, count: 0, offset, size, kind });
        Some(number)
    }

    /// Adds a file with this normal name. Of those with the same name the one with the largest offset stays. `None` when it
    /// cannot be shown.
    pub(super) fn add(&mut self, path: &[u8], kind: u8, size: u64, offset: u64) -> Option<Number> {
        let added = self.place(path, kind, size, offset);
        self.left_out += u64::from(added.is_none());
        added
    }

    fn place(&mut self, path: &[u8], kind: u8, size: u64, offset: u64) -> Option<Number> {
        if path.split(|byte| *byte == b'/').any(|part| part == b".." || part.len() > LONGEST || part.contains(&0)) {
            return None;
        }
        if kind == b'd' {
            let number = self.directory(path)?;
            let node = &mut self.nodes[number as usize];
            if node.offset == NOWHERE || node.offset < offset {
                node.offset = offset;
            }
            return Some(number);
        }
        let (directory, name) = split(path);
        // Nothing but a directory is the top.
        if name.is_empty() {
            return None;
        }
        let parent = self.directory(directory)?;
        self.push(parent, name, kind, size, offset)
    }

    /// The directory of this name, made with those above it if it is not known yet.
    fn directory(&mut self, path: &[u8]) -> Option<Number> {
        if self.last.0 == path {
            return Some(self.last.1);
        }
        let mut number = 0;
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            let known = self.directories.get(&number).and_then(|below| below.get(name)).copied();
            number = match known {
                Some(known) => known,
                None => {
                    let made = self.push(number, name, b'd', 0, NOWHERE)?;
                    self.directories.entry(number).or_default().insert(name.to_vec(), made);
                    made
                }
            };
        }
        self.last = (path.to_vec(), number);
        Some(number)
    }

    /// Sorts what is in each directory.
    pub(super) fn finish(self) -> Tree {
        let Self { mut nodes, names, left_out, is_full, .. } = self;
        let mut children: Vec<Number> = (1..nodes.len() as Number).collect();
        let name = |nodes: &[Node], number: Number| name_at(&names, nodes[number as usize].name);
        children.sort_unstable_by(|a, b| {
            let (left, right) = (nodes[*a as usize], nodes[*b as usize]);
            let by_name = || name(&nodes, *a).cmp(name(&nodes, *b));
            // The last one of several first. A directory that is not in the archive counts less than anything.
            let order = |node: Node| std::cmp::Reverse(if node.offset == NOWHERE { 0 } else { node.offset + 1 });
            left.parent.cmp(&right.parent).then_with(by_name).then_with(|| order(left).cmp(&order(right)))
        });
        children.dedup_by(|b, a| {
            nodes[*a as usize].parent == nodes[*b as usize].parent && name(&nodes, *a) == name(&nodes, *b)
        });
        for (at, number) in (0..).zip(&children) {
            let parent = nodes[*number as usize].parent as usize;
            if nodes[parent].count == 0 {
                nodes[parent].first = at;
            }
            nodes[parent].count += 1;
        }
        nodes.shrink_to_fit();
        Tree { nodes, names, children, left_out, is_full }
    }
}

impl Tree {
    /// How many files there are, with those that others of their name hide.
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The file with this number.
    pub(super) fn node(&self, number: Number) -> Option<Node> {
        self.nodes.get(number as usize).copied()
    }

    /// Its name in its directory.
    pub(super) fn name(&self, node: Node) -> &[u8] {
        name_at(&self.names, node.name)
    }

    /// The directory it is in.
    pub(super) fn parent(&self, number: Number) -> Number {
        self.node(number).map_or(0, |node| node.parent)
    }

    /// What is in a directory, sorted by name.
    pub(super) fn children(&self, directory: Number) -> &[Number] {
        let Some(node) = self.node(directory) else { return &[] };
        &self.children[node.first as usize..(node.first + node.count) as usize]
    }

    /// The file called `name` in a directory.
    pub(super) fn child(&self, directory: Number, name: &[u8]) -> Option<Number> {
        let children = self.children(directory);
        let found = children.binary_search_by(|child| self.name(self.nodes[*child as usize]).cmp(name));
        found.ok().map(|at| children[at])
    }

    /// The file with this normal name.
    pub(super) fn find(&self, path: &[u8]) -> Option<Number> {
        let parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty());
        parts.into_iter().try_fold(0, |directory, part| self.child(directory, part))
    }

    /// Its normal name.
    pub(super) fn path(&self, number: Number) -> Vec<u8> {
        let (mut parts, mut at) = (Vec::new(), number);
        while at != 0 {
            let Some(node) = self.node(at) else { break };
            parts.push(self.name(node));
            at = node.parent;
        }
        parts.reverse();
        parts.join(&b'/')
    }

    /// All files that are in the archive, in the order in which they are there.
    pub(super) fn by_offset(&self) -> Vec<Number> {
        let at = |number: &Number| self.nodes[*number as usize].offset;
        let mut numbers: Vec<_> = (0..self.nodes.len() as Number).filter(|number| at(number) != NOWHERE).collect();
        numbers.sort_unstable_by_key(at);
        numbers
    }
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    }
}

fn name_at(names: &[u8], at: u32) -> &[u8] {
    let at = at as usize;
    let len = names.get(at..at + 2).map_or(0, |len| u16::from_le_bytes([len[0], len[1]]));
    names.get(at + 2..at + 2 + usize::from(len)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(tree: &Tree, directory: &[u8]) -> Vec<String> {
        let children = tree.children(tree.find(directory).unwrap());
        children.iter().map(|child| String::from_utf8_lossy(tree.name(tree.node(*child).unwrap())).into()).collect()
    }

    #[test]
    fn files_in_any_order() {
        let mut builder = Builder::new();
        for (offset, (path, kind)) in [
            (&b"etc/network/interfaces"[..], b'-'),
            (b"", b'd'),
            (b"etc/hosts", b'-'),
            (b"etc", b'd'),
            (b"bin", b'l'),
            (b"etc/hosts", b'-'),
            (b"../outside", b'-'),
            (b"a/../b", b'd'),
            (b"", b'-'),
        ]
        .into_iter()
        .enumerate()
        {
            builder.add(path, kind, 10 + offset as u64, offset as u64 * 512);
        }
        let tree = builder.finish();
        assert_eq!(tree.left_out, 3);
        assert_eq!(names(&tree, b""), ["bin", "etc"]);
        assert_eq!(names(&tree, b"etc"), ["hosts", "network"]);
        assert_eq!(names(&tree, b"etc/network"), ["interfaces"]);
        // The last one of a name counts; a directory has its own place, or none.
        let node = |path: &[u8]| tree.node(tree.find(path).unwrap()).unwrap();
        assert_eq!((node(b"etc/hosts").offset, node(b"etc/hosts").size), (5 * 512, 15));
        assert_eq!([node(b"").offset, node(b"etc").offset, node(b"etc/network").offset], [512, 3 * 512, NOWHERE]);
        assert_eq!([tree.find(b"etc/nix"), tree.find(b"bin/x"), tree.find(b"b")], [None; 3]);
        let interfaces = tree.find(b"etc/network/interfaces").unwrap();
        assert_eq!(tree.path(interfaces), b"etc/network/interfaces");
        assert_eq!(tree.parent(tree.parent(interfaces)), tree.find(b"etc").unwrap());
        assert_eq!(tree.by_offset().len(), 6);
        assert_eq!(tree.by_offset()[0], interfaces);
    }

    #[test]
    fn a_million_files_are_small() {
        let mut builder = Builder::new();
        for n in 0..100_000_u64 {
            builder.add(format!("usr/share/doc/package-{}/file-{n}", n / 100).as_bytes(), b'-', 1, n);
        }
        let tree = builder.finish();
        let bytes = tree.nodes.capacity() * size_of::<Node>() + tree.names.capacity() + tree.children.capacity() * 4;
        assert!(bytes < 80 * tree.len(), "{} bytes a file", bytes / tree.len());
        assert_eq!(tree.children(tree.find(b"usr/share/doc/package-7").unwrap()).len(), 100);
        assert_eq!(tree.node(tree.find(b"usr/share/doc/package-999/file-99999").unwrap()).unwrap().offset, 99_999);
    }
}
