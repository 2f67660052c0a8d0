//! What the guest has a number for. A node is a file of this machine by device and inode, and the names under which the guest
//! has found it; each use goes by a name again, from the top, and finds out whether it is still the same file.
use rustix::io::Errno;
use std::collections::HashMap;
use std::os::fd::OwnedFd;

pub const ROOT: u64 = 1;
/// A guest remembers less before it has used up its memory. Of all directories together: `BYTES_MAX`.
const NODES_MAX: usize = 1 << 20;
/// Of names, with what it takes to keep each.
const BYTES_MAX: usize = 256 << 20;
const NAME_OVERHEAD: usize = 64;
/// Of one file; further ones are found again by a lookup.
const NAMES_MAX: usize = 16;
const PATH_BYTES_MAX: usize = 4095;
/// Files without a name that are kept.
const KEPT_MAX: usize = 1024;

pub type Identity = (u64, u64);

pub struct Node {
    pub identity: Identity,
    /// Lookups that the guest has not forgotten.
    references: u64,
    names: Vec<(u64, Vec<u8>)>,
    /// Of a file whose last known name is gone.
    pub kept: Option<OwnedFd>,
}

pub struct Nodes {
    nodes: HashMap<u64, Node>,
    by_identity: HashMap<Identity, u64>,
    next: u64,
    kept: usize,
    /// What names take, about.
    bytes: usize,
}

fn cost(name: &[u8]) -> usize {
    name.len() + NAME_OVERHEAD
}

impl Nodes {
    pub fn new(root: Identity) -> Nodes {
        let top = Node { identity: root, references: 1, names: Vec::new(), kept: None };
        Nodes {
            nodes: HashMap::from([(ROOT, top)]),
            by_identity: HashMap::from([(root, ROOT)]),
            next: ROOT + 1,
            kept: 0,
            bytes: 0,
        }
    }

    pub fn get(&self, id: u64) -> Result<&Node, Errno> {
        self.nodes.get(&id).ok_or(Errno::STALE)
    }

    /// The guest has found that file there, and refers to it once more.
    pub fn found(&mut self, identity: Identity, parent: u64, name: &[u8]) -> Result<u64, Errno> {
        let id = match self.by_identity.get(&identity) {
            Some(id) => *id,
            None if self.nodes.len() >= NODES_MAX || self.bytes >= BYTES_MAX => return Err(Errno::NFILE),
            None => {
                let id = self.next;
                self.next += 1;
                self.nodes.insert(id, Node { identity, references: 0, names: Vec::new(), kept: None });
                self.by_identity.insert(identity, id);
                id
            }
        };
        let node = self.nodes.get_mut(&id).ok_or(Errno::STALE)?;
        node.references = node.references.saturating_add(1);
        if id != ROOT && !node.names.iter().any(|(at, known)| *at == parent && known == name) {
            while node.names.len() >= NAMES_MAX {
                self.bytes -= node.names.pop().map_or(0, |(_, dropped)| cost(&dropped));
            }
            node.names.insert(0, (parent, name.to_vec()));
            self.bytes += cost(name);
        }
        if node.kept.take().is_some() {
            self.kept -= 1;
        }
        Ok(id)
    }

    /// True when nothing is left of it.
    pub fn forget(&mut self, id: u64, count: u64) -> bool {
        let Some(node) = self.nodes.get_mut(&id).filter(|_| id != ROOT) else { return false };
        node.references = node.references.saturating_sub(count);
        if node.references > 0 {
            return false;
        }
        if let Some(node) = self.nodes.remove(&id) {
            self.by_identity.remove(&node.identity);
            self.bytes -= node.names.iter().map(|(_, name)| cost(name)).sum::<usize>();
            self.kept -= usize::from(node.kept.is_some());
        }
        true
    }

    /// The node that was last found under that name.
    pub fn named(&self, identity: Identity) -> Option<u64> {
        self.by_identity.get(&identity).copied()
    }

    /// That name of it is gone; `kept` is the file itself, for those who have it open.
    pub fn unname(&mut self, id: u64, parent: u64, name: &[u8], kept: Option<OwnedFd>) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        self.bytes -= drop_name(node, parent, name);
        if node.names.is_empty() && node.kept.is_none() && self.kept < KEPT_MAX && kept.is_some() {
            node.kept = kept;
            self.kept += 1;
        }
    }

    pub fn rename(&mut self, id: u64, from: (u64, &[u8]), to: (u64, &[u8])) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        self.bytes -= drop_name(node, from.0, from.1) + drop_name(node, to.0, to.1);
        node.names.insert(0, (to.0, to.1.to_vec()));
        self.bytes += cost(to.1);
    }

    pub fn names(&self, id: u64) -> Result<&[(u64, Vec<u8>)], Errno> {
        Ok(&self.get(id)?.names)
    }

    /// Of a directory, from the top: `.`, or names with slashes between them.
    pub fn path(&self, id: u64) -> Result<Vec<u8>, Errno> {
        let mut parts: Vec<&[u8]> = Vec::new();
        let (mut at, mut length) = (id, 0);
        while at != ROOT {
            let (parent, name) = self.get(at)?.names.first().ok_or(Errno::NOENT)?;
            length += name.len() + 1;
            // Names of other times could lead in a circle.
            if length > PATH_BYTES_MAX {
                return Err(Errno::NAMETOOLONG);
            }
            parts.push(name);
            at = *parent;
        }
        if parts.is_empty() {
            return Ok(b".".to_vec());
        }
        parts.reverse();
        Ok(parts.join(&b'/'))
    }
}

/// What that gives back.
fn drop_name(node: &mut Node, parent: u64, name: &[u8]) -> usize {
    let before = node.names.len();
    node.names.retain(|(at, known)| *at != parent || known != name);
    (before - node.names.len()) * cost(name)
}
